"""The `megafs` command, also as `python -m megafs`."""

from __future__ import annotations

import sys
from typing import NoReturn

from megafs import garbage


def main() -> NoReturn:
    """Run the command line of this process, and exit."""
    try:
        with garbage.paused():
            from megafs.cli import main as command
    except KeyboardInterrupt:
        sys.exit(130)  # as `command.main` would; nothing has begun
    command.main()


if __name__ == "__main__":
    main()
