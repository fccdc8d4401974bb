"""Where `megafs get` puts what it fetches, and how it tells of it, whatever kind the link is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from megafs.cli import output
from megafs.errors import BadUsage
from megafs.stores.base import Buffer

STDOUT = "-"


def place_for(name: str, dest: str | None) -> Path:
    """Where a file or folder of that name goes; BadUsage if there is no such directory."""
    path = Path.cwd() if dest is None else Path(dest).absolute()
    if path.is_dir():
        return path / name
    if dest is not None and dest.endswith("/"):
        raise BadUsage(f"{dest} is no directory")
    if not path.parent.is_dir():
        raise BadUsage(f"{path.parent} is no directory")
    return path


class CountedBytes:
    """Tells how much is left."""

    def __init__(self, step: output.OnStep, whole: int) -> None:
        self._step = step
        self._left = whole
        step(whole, "")

    def __call__(self, count: int) -> None:
        self._left -= count
        self._step(max(self._left, 0), "")


def write_stdout(data: Buffer) -> None:
    """Write all of it to standard output."""
    view = memoryview(data)
    while view:
        view = view[os.write(sys.stdout.fileno(), view) :]
