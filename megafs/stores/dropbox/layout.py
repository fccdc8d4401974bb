"""Where an object lies: names that differ in case only must not meet, for Dropbox knows no case.

    packs/ab/ab0123     /root/packs/ab/ab0123.o
    packs/AB/one        /root/packs/ab=3/one.o

A part with capitals is written small, and after "=" stands which letters are large (the n-th bit
for the n-th letter, in hexadecimal); in the worst case that adds a quarter, and 255 characters are
allowed.  Names have neither "=" nor ".", so nothing here can be taken for another object, or for a
folder.  None can be one that Dropbox refuses (desktop.ini, .dropbox, a dot at the end).
"""

from __future__ import annotations

import re

from megafs.errors import BadUsage
from megafs.stores.base import check_name

#: What a file that is an object ends with.
FILE = ".o"

_SMALL = re.compile(r"[a-z0-9_-]+(?:=[0-9a-f]+)?\Z")


def path_of(name: str) -> str:
    """Return the path of the object *name* below the store's folder."""
    return "/" + "/".join(map(_written, check_name(name).split("/"))) + FILE


def folder_of(prefix: str) -> str:
    """Return the path of the folder whose objects' names begin with *prefix*, "ab/" or "ab/cd/"."""
    return "".join(f"/{_written(part)}" for part in prefix.split("/") if part)


def name_of(path: str) -> str | None:
    """Return the object that the file *path* is, None if it is none."""
    if not path.endswith(FILE):
        return None
    parts = [_read(part) for part in path[: -len(FILE)].removeprefix("/").split("/")]
    if None in parts:
        return None
    name = "/".join(part for part in parts if part is not None)
    try:
        return check_name(name)
    except BadUsage:
        return None


def prefix_of(path: str) -> str | None:
    """Return what the names of the objects in the folder *path* begin with, None if none can."""
    parts = [_read(part) for part in path.removeprefix("/").split("/")]
    if None in parts:
        return None
    return "".join(f"{part}/" for part in parts)


def _written(part: str) -> str:
    large = sum(1 << i for i, letter in enumerate(part) if letter.isupper())
    return f"{part.lower()}={large:x}" if large else part


def _read(part: str) -> str | None:
    if not _SMALL.match(part):
        return None
    small, _, bits = part.partition("=")
    large = int(bits or "0", 16)
    name = "".join(letter.upper() if large >> i & 1 else letter for i, letter in enumerate(small))
    return name if _written(name) == part else None
