"""Where an object lies on the server.

    packs/ab/ab0123                  packs/ab/ab0123.o
    commits/0000000000012345         commits/00000000000123.s/0000000000012345.o
        or, if creating needs it     commits/00000000000123.s/0000000000012345.x/o

An object's name has no dot, so nothing here can be taken for another object, for a folder of
objects, or for what the driver keeps for itself (tmp.d, exclusive.txt): deleting an object can
never delete a folder of them.  Names of sixteen digits, which count up, are kept by the hundred in
folders of their own (".s"), since each look at a folder (PROPFIND) returns all of it.
"""

from __future__ import annotations

import re

from msgspec import Struct

from megafs.errors import BadUsage
from megafs.stores.base import check_name

#: The file that is an object, the folder that holds nothing but one, and its file there.
FILE = ".o"
FOLDER = ".x"
INSIDE = "o"
#: A folder of the objects whose names begin with its own.
SHARD = ".s"
#: Uploads before they have their names.
TEMPORARY = "tmp.d"
#: How objects are created exclusively in this volume: a word of `exclusive.Way`.
RECORD = "exclusive.txt"

_NUMBERED = re.compile(r"[0-9]{16}\Z")
_SHARD = re.compile(r"[0-9]{14}\Z")
_LAST = 2
_PART = re.compile(r"[A-Za-z0-9_-]+\Z")

#: Objects that only one writer ever makes, under a name drawn at random, or overwrites.
_ONE_WRITER = ("packs/", "mounts/")


class Listed(Struct, frozen=True, order=True):
    """What a folder's member stands for.

    key: names of objects at or below it are not less than this.
    name: the object's, or what the names of all objects below begin with.
    path: on the server, without a slash at its end.
    kind: "file" and "in folder" (objects), "folder", "shard".
    """

    key: str
    name: str
    path: str
    kind: str


def is_contested(name: str) -> bool:
    """Whether several writers may want to create the object."""
    return not name.startswith(_ONE_WRITER)


def base_of(name: str) -> str:
    """Return the path of the object *name* without its ending."""
    folder, slash, last = check_name(name).rpartition("/")
    if _NUMBERED.match(last):
        return f"{folder}{slash}{last[:-_LAST]}{SHARD}/{last}"
    return name


def parent_of(path: str) -> str:
    """Return the folder that *path* lies in, "" for the store itself."""
    return path.rpartition("/")[0]


def understand(names: str, path: str, member: str, is_folder: bool) -> Listed | None:
    """Return what *member* of the folder at *path* stands for; None if it is not ours.

    names: what the names of the objects in the folder begin with, up to its slash.
    """
    place = f"{path}/{member}" if path else member
    if not is_folder:
        if member.endswith(FILE) and _is_name(names + member[: -len(FILE)]):
            name = names + member[: -len(FILE)]
            return Listed(name, name, place, "file")
        return None
    if _PART.match(member):
        return Listed(f"{names}{member}/", f"{names}{member}/", place, "folder")
    if member.endswith(FOLDER) and _is_name(names + member[: -len(FOLDER)]):
        name = names + member[: -len(FOLDER)]
        return Listed(name, name, place, "in folder")
    if member.endswith(SHARD) and _SHARD.match(member[: -len(SHARD)]):
        name = names + member[: -len(SHARD)]
        return Listed(name + "0" * _LAST, name, place, "shard")
    return None


def is_wanted(found: Listed, prefix: str, after: str) -> bool:
    """Whether *found* is, or may lead to, an object that a listing wants."""
    name = found.name
    if found.kind in ("file", "in folder"):
        return name.startswith(prefix) and name > after
    if not (name.startswith(prefix) or prefix.startswith(name)):
        return False
    if found.kind == "shard":
        return name + "9" * _LAST > after
    # All names below begin with it, so they compare to `after` as it does.
    return name > after or after.startswith(name)


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except BadUsage:
        return False
    return True
