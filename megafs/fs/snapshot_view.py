"""`.megafs/snapshots/<snapshot or time>/` in the root of a mount: the tree as it was, read-only.

    .megafs                      not listed in the root, but found by its name
    .megafs/snapshots            lists the snapshots
    .megafs/snapshots/NAME       the tree as of the snapshot; or of a time such as
                                 2026-11-23T14:05:00Z, or of the commit @1234, which are not listed

A real entry `.megafs` in the root hides all this.  Modes and owners are as they were, so whoever
may read the original may read what it was.  Everything that would change something is refused with
EROFS.

Inode numbers here are below those of the present tree (`in_snapshots`): the two directories at the
top, one for each tree that was named, then the inodes in these trees as the kernel comes to know
them.  A tree has to be read before anything below it can be looked at, which may take a while:
`load_snapshot` does that; everything else is synchronous and comes right after it.
"""

from __future__ import annotations

import errno as e
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from msgspec import Struct
from msgspec.structs import replace

from megafs.chunks.readahead import ReadAhead
from megafs.chunks.store import ChunkStore
from megafs.errors import BadUsage, Missing, Refused
from megafs.fs import acl, extent_bytes
from megafs.tree.inode import ROOT, Inode
from megafs.tree.schema import SnapshotRow
from megafs.tree.tree import Extent, Tree

NAME: Final = b".megafs"
_SNAPSHOTS_NAME: Final = b"snapshots"

#: The first number that an inode of the present tree can have: prefix 1 (journal/replica.py).
FIRST_LIVE: Final = 1 << 25
TOP: Final = 2
SNAPSHOTS: Final = 3
_FIRST_ROOT: Final = 4
#: The root directories of named trees have numbers below this one.
_FIRST_INSIDE: Final = 1 << 16
#: Beyond this many, numbers that a listing gave out and the kernel does not know are forgotten.
_SPARE: Final = 1 << 18


def in_snapshots(ino: int) -> bool:
    """Whether an inode number belongs to a snapshot (or `.megafs`), not to the present tree."""
    return ino < FIRST_LIVE and ino != ROOT


def attributes_may_change(ino: int) -> bool:
    """Whether it is one of the directories whose attributes may change: the kernel must ask."""
    return ROOT < ino < _FIRST_INSIDE


class EarlierTrees(Protocol):
    """The trees of earlier commits (megafs/history)."""

    def snapshots(self) -> list[SnapshotRow]: ...
    async def resolve(self, text: str) -> int: ...
    def at_hand(self, sequence: int) -> Tree | None: ...
    async def have(self, sequence: int, patience: float | None = None) -> Tree: ...
    def view(
        self, sequence: int, patience: float | None = None
    ) -> AbstractAsyncContextManager[Tree]: ...


class _NamedTree(Struct):
    """The tree as of commit *sequence*, under the name in `snapshots` that somebody used for it.

    number: the inode number of its root directory here.
    root, xattrs: the root directory as it was; None before the tree was read.
    """

    number: int
    name: bytes
    sequence: int
    root: Inode | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


class SnapshotView:
    """The directories below `.megafs`.

    present_root: the root directory of the present tree.
    patience: seconds that a request waits for a tree to be read.
    """

    def __init__(
        self,
        trees: EarlierTrees,
        chunks: ChunkStore,
        present_root: Callable[[], Inode],
        *,
        patience: float,
        readahead: int = 0,
    ) -> None:
        self._trees = trees
        self._chunks = chunks
        self._present_root = present_root
        self._patience = patience
        self._readahead = readahead
        self._by_name: dict[bytes, _NamedTree] = {}
        self._by_number: dict[int, _NamedTree] = {}
        self._inside: dict[int, tuple[_NamedTree, int]] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        self._known: dict[int, int] = {}
        self._next_root = _FIRST_ROOT
        self._next_inside = _FIRST_INSIDE

    # ---- before anything is looked at -------------------------------------------------------

    async def load_snapshot(self, ino: int, name: bytes = b"", *, attributes: bool = False) -> None:
        """Read the tree that is needed to look *name* up in *ino*, or to list or read *ino*.

        attributes: only its attributes are wanted.  ESTALE once when the root directory of a tree
        turns out to have other permissions than it was shown with: the kernel then looks again.
        """
        if ino == SNAPSHOTS:
            if name not in (b"", b".", b".."):
                await self._name(name)
        elif ino >= (_FIRST_INSIDE if attributes else _FIRST_ROOT):
            named, _ = self._inside_of(ino)
            tree = await self._trees.have(named.sequence, self._patience)
            if named.root is None:
                shown = self._shown_root(named)
                named.root = tree.inode(ROOT)
                named.xattrs = tuple(tree.xattrs(ROOT))
                now = self._shown_root(named)
                same = (now.mode, now.uid, now.gid) == (shown.mode, shown.uid, shown.gid)
                if not same or any(name == acl.ACCESS for name, _ in named.xattrs):
                    raise Refused(e.ESTALE)

    async def _name(self, name: bytes) -> None:
        """Find the commit that a name in `snapshots` means."""
        try:
            text = name.decode()
            if " ago" in text or text == "now":  # a directory stays what it is
                raise Refused(e.ENOENT)
            sequence = await self._trees.resolve(text)
        except (UnicodeDecodeError, BadUsage, Missing) as exc:
            self._by_name.pop(name, None)
            raise Refused(e.ENOENT) from exc
        named = self._by_name.get(name)
        if named is None or named.sequence != sequence:
            self._by_name[name] = self._add(name, sequence)

    def _add(self, name: bytes, sequence: int) -> _NamedTree:
        if len(self._by_number) > _FIRST_INSIDE // 2:
            used = {named.number for named, _ in self._inside.values()}
            for number, old in list(self._by_number.items()):
                if number not in self._known and number not in used:
                    del self._by_number[number]
                    if self._by_name.get(old.name) is old:
                        del self._by_name[old.name]
        while self._next_root in self._by_number or self._next_root >= _FIRST_INSIDE:
            self._next_root += 1
            if self._next_root >= _FIRST_INSIDE:
                self._next_root = _FIRST_ROOT
        named = _NamedTree(self._next_root, name, sequence)
        self._next_root += 1
        self._by_number[named.number] = named
        return named

    # ---- numbers ----------------------------------------------------------------------------

    def _inside_of(self, number: int) -> tuple[_NamedTree, int]:
        """The tree, and the inode in it, that *number* stands for."""
        if number < _FIRST_INSIDE:
            named = self._by_number.get(number)
            if named is not None:
                return named, ROOT
        else:
            found = self._inside.get(number)
            if found is not None:
                return found
        raise Refused(e.ESTALE)

    def _number(self, named: _NamedTree, ino: int) -> int:
        if ino == ROOT:
            return named.number
        key = (named.number, ino)
        number = self._numbers.get(key)
        if number is None:
            if len(self._inside) - len(self._known) > _SPARE:
                self._sweep()
            while self._next_inside in self._inside or self._next_inside >= FIRST_LIVE:
                self._next_inside += 1
                if self._next_inside >= FIRST_LIVE:
                    self._next_inside = _FIRST_INSIDE
            number = self._numbers[key] = self._next_inside
            self._inside[number] = (named, ino)
            self._next_inside += 1
        return number

    def _sweep(self) -> None:
        """Forget the numbers that the kernel does not know."""
        for number in [n for n in self._inside if n not in self._known]:
            self._drop(number)

    def _drop(self, number: int) -> None:
        found = self._inside.pop(number, None)
        if found is not None:
            self._numbers.pop((found[0].number, found[1]), None)

    def remember(self, number: int) -> None:
        """The kernel knows this inode once more."""
        self._known[number] = self._known.get(number, 0) + 1

    def forget(self, number: int, n: int) -> None:
        """The kernel knows this inode *n* times less."""
        left = self._known.get(number, 0) - n
        if left > 0:
            self._known[number] = left
        else:
            self._known.pop(number, None)
            self._drop(number)

    # ---- looking up -------------------------------------------------------------------------

    def top(self) -> Inode:
        """`.megafs` itself."""
        return self._virtual(TOP)

    def _virtual(self, number: int) -> Inode:
        """A directory that lies in no tree: who may enter the root may enter it."""
        root = self._present_root()
        mode = stat.S_IFDIR | root.mode & 0o555
        return replace(root, ino=number, mode=mode, nlink=2, parent=0, version=0)

    def _shown_root(self, named: _NamedTree) -> Inode:
        """The root directory of a tree, with the present one's permissions before it was read."""
        root = named.root if named.root is not None else self._present_root()
        return replace(root, ino=named.number)

    def _shown(self, named: _NamedTree, inode: Inode) -> Inode:
        inode.ino = self._number(named, inode.ino)
        return inode

    def _tree(self, named: _NamedTree) -> Tree:
        tree = self._trees.at_hand(named.sequence)
        if tree is None:
            raise Refused(e.EAGAIN)  # only without `load_snapshot`
        return tree

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode that *name* in *parent* stands for."""
        if name == b".":
            return self.getattr(parent)
        if parent == TOP:
            if name == b"..":
                return self._present_root()
            if name == _SNAPSHOTS_NAME:
                return self._virtual(SNAPSHOTS)
            raise Refused(e.ENOENT)
        if parent == SNAPSHOTS:
            if name == b"..":
                return self.top()
            named = self._by_name.get(name)
            if named is None:
                raise Refused(e.ENOENT)
            return self._shown_root(named)
        named, ino = self._inside_of(parent)
        if name == b".." and ino == ROOT:
            return self._virtual(SNAPSHOTS)
        tree = self._tree(named)
        if name == b"..":
            above = tree.directory(ino).parent
            return (
                self._shown_root(named) if above == ROOT else self._shown(named, tree.inode(above))
            )
        found = tree.lookup(ino, name)
        if found is None:
            tree.directory(ino)
            raise Refused(e.ENOENT)
        return self._shown(named, found)

    def getattr(self, number: int) -> Inode:
        """Attributes; of the root of a tree also before that was read."""
        if number in (TOP, SNAPSHOTS):
            return self._virtual(number)
        named, ino = self._inside_of(number)
        if ino == ROOT:
            return self._shown_root(named)
        return self._shown(named, self._tree(named).inode(ino))

    def readlink(self, number: int) -> bytes:
        named, ino = self._inside_of(number)
        return self._tree(named).target(ino)

    def getxattr(self, number: int, name: bytes) -> bytes:
        """An extended attribute; ACLs among them, which the kernel enforces here, too."""
        for there, value in self._xattrs(number):
            if there == name:
                return value
        raise Refused(e.ENODATA)

    def listxattr(self, number: int) -> list[bytes]:
        return [name for name, _ in self._xattrs(number)]

    def _xattrs(self, number: int) -> Sequence[tuple[bytes, bytes]]:
        if number in (TOP, SNAPSHOTS):
            return ()
        named, ino = self._inside_of(number)
        return named.xattrs if ino == ROOT else self._tree(named).xattrs(ino)

    # ---- directories ------------------------------------------------------------------------

    def open_directory(self, number: int) -> SnapshotDirectory:
        """ENOTDIR or ESTALE unless it is a directory."""
        if not self.getattr(number).is_dir:
            raise Refused(e.ENOTDIR)
        return SnapshotDirectory(self, number)

    def readdir(self, number: int, after: int, limit: int) -> list[tuple[bytes, Inode, int]]:
        """Up to *limit* entries whose cookies follow *after*: (name, inode, cookie)."""
        if number == TOP:
            return [(_SNAPSHOTS_NAME, self._virtual(SNAPSHOTS), 1)] if after < 1 else []
        if number == SNAPSHOTS:
            return self._list_snapshots(after, limit)
        named, ino = self._inside_of(number)
        entries = self._tree(named).entries(ino, after, limit)
        for _, inode, _ in entries:
            self._shown(named, inode)
        return entries

    def _list_snapshots(self, after: int, limit: int) -> list[tuple[bytes, Inode, int]]:
        entries = []
        listed = self._trees.snapshots()
        for cookie, (text, sequence, time_ns) in enumerate(
            listed[after : after + limit], after + 1
        ):
            name = text.encode()
            named = self._by_name.get(name)
            if named is None or named.sequence != sequence:
                named = self._by_name[name] = self._add(name, sequence)
            shown = self._shown_root(named)
            if named.root is None:
                shown.mtime_ns = shown.ctime_ns = time_ns
            entries.append((name, shown, cookie))
        return entries

    # ---- files ------------------------------------------------------------------------------

    def open(self, number: int, flags: int) -> SnapshotFile:
        """Open a file for reading."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise Refused(e.EROFS)
        inode = self.getattr(number)
        if inode.is_dir:
            raise Refused(e.EISDIR)
        root, ino = self._inside_of(number)
        return SnapshotFile(
            self._trees, self._chunks, root, ino, inode.size, self._readahead, self._patience
        )


class SnapshotDirectory:
    """An open directory."""

    def __init__(self, view: SnapshotView, number: int) -> None:
        self._view = view
        self._number = number

    def read(self, after: int, limit: int) -> list[tuple[bytes, Inode, int]]:
        """Up to *limit* entries whose cookies follow *after*: (name, inode, cookie)."""
        return self._view.readdir(self._number, after, limit)


class SnapshotFile:
    """An open file, of *size* bytes, with the reading pattern of whoever opened it."""

    def __init__(
        self,
        trees: EarlierTrees,
        chunks: ChunkStore,
        named: _NamedTree,
        ino: int,
        size: int,
        readahead: int,
        patience: float,
    ) -> None:
        self._trees = trees
        self._chunks = chunks
        self._named = named
        self._ino = ino
        self._size = size
        self._ahead = ReadAhead(readahead)
        self._patience = patience

    async def read(self, offset: int, size: int) -> tuple[bytes | memoryview, list[Extent]]:
        """Up to *size* bytes from *offset*, and what is worth fetching ahead."""
        end = min(self._size, offset + size)
        if offset >= end:
            return b"", []
        async with self._trees.view(self._named.sequence, self._patience) as tree:
            extents = tree.extents(self._ino, offset, end)
            ahead = self._ahead.after(offset, end - offset, self._size)
            coming = tree.extents(self._ino, *ahead) if ahead is not None else []
            chunks = await self._chunks.read(extents)
        return extent_bytes.join(extents, chunks, offset, end), coming

    def path(self) -> str:
        """The path in the mount, for messages."""
        tree = self._trees.at_hand(self._named.sequence)
        found = tree.path(self._ino) if tree is not None else None
        name = self._named.name.decode("utf-8", "backslashreplace")
        inner = (found or b"/?").decode("utf-8", "backslashreplace")
        return f"/.megafs/snapshots/{name}{inner}"
