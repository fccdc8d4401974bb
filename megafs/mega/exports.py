"""Files and folders of MEGA as they are copied out: by `megafs get` and `megafs import`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from megafs.errors import BadUsage, Missing
from megafs.mega.ciphers import FileKey, decode, mtime_of, open_attributes
from megafs.mega.contents import FileContents, FileRef
from megafs.mega.errors import KeyRefused
from megafs.mega.links import MegaLink
from megafs.mega.names import marked, needs_mark, plain_name
from megafs.mega.node_table import NodeRow, NodeTable
from megafs.mega.transfer import Copying, WantedFile

#: Nodes of one look into the table.
_BATCH = 200


class TreeEntry(NamedTuple):
    """path: the names below the folder that is copied, () for itself."""

    path: tuple[str, ...]
    row: NodeRow


async def file_of_link(contents: FileContents, link: MegaLink) -> WantedFile:
    """Ask what lies behind a link to a file.  KeyRefused if the link's key does not open it."""
    ref = FileRef(link.handle, public=True)
    found = await contents.find(ref)
    key = FileKey.of(link.key)
    try:
        attributes = open_attributes(key.key, decode(found.attributes))
    except ValueError:
        attributes = None
    if attributes is None:
        raise KeyRefused
    name = plain_name(attributes.get("n"))
    if needs_mark(name):
        name = marked(name, link.handle)
    return WantedFile(ref, key, found.size, os.fsdecode(name), mtime_of(attributes.get("c")))


def wanted_file(row: NodeRow, name: str) -> WantedFile:
    """A file of the tree, to be copied.  KeyRefused if no key opens it."""
    if row.key is None:
        raise KeyRefused
    return WantedFile(FileRef(row.handle), FileKey.of(row.key), row.size, name, row.mtime)


def name_of(row: NodeRow) -> str:
    """What a node is called as the top of a copy; the root of an account has no name."""
    name = os.fsdecode(row.shown)
    return "MEGA" if name == "." else name


def find_path(table: NodeTable, top: NodeRow, path: str) -> NodeRow:
    """The node at *path* below *top*: "" or "/a/b"; Missing."""
    at = top
    for part in [part for part in path.split("/") if part]:
        below = None if at.is_file else table.lookup(at.ino, os.fsencode(part))
        if below is None:
            raise Missing(f"there is no {path} in this part of MEGA")
        at = below
    return at


def walk(table: NodeTable, top: NodeRow) -> Iterator[TreeEntry]:
    """*top* and everything below it, folders before what lies in them, in order of names."""
    waiting: list[TreeEntry] = [TreeEntry((), top)]
    while waiting:
        entry = waiting.pop()
        yield entry
        if entry.row.is_file:
            continue
        below = [
            TreeEntry((*entry.path, os.fsdecode(row.shown)), row)
            for row in _children(table, entry.row.ino)
            if row.ino != top.ino  # a server may say that a folder lies within itself
        ]
        below.sort(key=lambda one: one.path, reverse=True)
        waiting.extend(below)


def _children(table: NodeTable, ino: int) -> Iterator[NodeRow]:
    after = 0
    while rows := table.children(ino, after, _BATCH):
        yield from rows
        after = rows[-1].ino


class CopiedTree(NamedTuple):
    """How a copy went.  skipped: were there already.  unopened: nodes that no key opens."""

    files: int
    skipped: int
    unopened: int


async def copy_tree(copying: Copying, table: NodeTable, top: NodeRow, dest: Path) -> CopiedTree:
    """Copy a folder to *dest*, which is made; what an earlier copy brought is left as it is.

    The times of folders are set last, as bringing files changes them.
    """
    files = skipped = unopened = 0
    folders: list[tuple[Path, int]] = []
    for entry in walk(table, top):
        path = dest.joinpath(*entry.path)
        if entry.row.is_file:
            if entry.row.key is None:
                unopened += 1
                continue
            done = await copying.to_file(wanted_file(entry.row, "/".join(entry.path)), path)
            files += 1
            skipped += not done
        else:
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise BadUsage(f"{path} is there already, and is no directory: move it away")
            path.mkdir(exist_ok=True)
            folders.append((path, entry.row.mtime))
    for path, mtime in reversed(folders):
        if mtime:
            os.utime(path, ns=(mtime * 10**9,) * 2)
    return CopiedTree(files, skipped, unopened)
