"""The `megafs` command, also as `python -m megafs`."""

from __future__ import annotations

from typing import NoReturn

from megafs import garbage


def main() -> NoReturn:
    """Run the command line of this process, and exit."""
    with garbage.paused():
        from megafs.cli import main as command
    command.main()


if __name__ == "__main__":
    main()
