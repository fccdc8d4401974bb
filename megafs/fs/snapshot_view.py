"""`.megafs/snapshots/<snapshot or time>/` in the root of a mount: the tree as it was, read-only.

    .megafs                      not listed in the root, but found by its name
    .megafs/snapshots            lists the snapshots
    .megafs/snapshots/NAME       the tree as of the snapshot; or of a time such as
                                 2026-11-23T14:05:00Z, or of the commit @1234, which are not listed

A real entry `.megafs` in the root hides all this.  Modes and owners are as they were, so whoever
may read the original may read its past.  Everything that would change something is refused with
EROFS.

Inode numbers here are below those of the present tree (`is_past`): the two directories at the top,
one for each moment that was named, then the inodes of the moments' trees as the kernel comes to
know them.  A moment's tree has to be read before anything below it can be looked at, which may take
a while: `reach` does that, everything else is synchronous and comes right after it.
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
from megafs.fs import acl
from megafs.tree.inode import ROOT, Inode
from megafs.tree.tree import Extent, Tree

NAME: Final = b".megafs"
_SNAPSHOTS_NAME: Final = b"snapshots"

#: The first number that an inode of the present tree can have: prefix 1 (journal/replica.py).
FIRST_REAL: Final = 1 << 25
TOP: Final = 2
SNAPSHOTS: Final = 3
_FIRST_MOMENT: Final = 4
#: The root directories of moments have numbers below this one.
_FIRST_INSIDE: Final = 1 << 16
#: Numbers that the kernel was told of and has not remembered are forgotten beyond this many.
_SPARE: Final = 1 << 18


def is_past(ino: int) -> bool:
    """Whether an inode number is one of the past, not of the present tree."""
    return ino < FIRST_REAL and ino != ROOT


def is_top(ino: int) -> bool:
    """Whether it is one of the directories whose attributes may change: the kernel must ask."""
    return ROOT < ino < _FIRST_INSIDE


class Moments(Protocol):
    """The past of the volume (history/moments.py)."""

    def snapshots(self) -> list[tuple[str, int, int]]: ...
    async def resolve(self, text: str) -> int: ...
    def at_hand(self, sequence: int) -> Tree | None: ...
    async def have(self, sequence: int, patience: float | None = None) -> Tree: ...
    def view(
        self, sequence: int, patience: float | None = None
    ) -> AbstractAsyncContextManager[Tree]: ...


class _Moment(Struct):
    """A moment that somebody named.

    root, xattrs: its root directory as it was; None before its tree was read.
    """

    number: int
    name: bytes
    sequence: int
    root: Inode | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


class _File(Struct):
    """An open file."""

    moment: _Moment
    ino: int
    size: int
    ahead: ReadAhead


class SnapshotView:
    """What lies below `.megafs`.

    root: the present root directory.  patience: seconds that a request waits for a moment's tree.
    """

    def __init__(
        self,
        moments: Moments,
        chunks: ChunkStore,
        root: Callable[[], Inode],
        *,
        patience: float,
        readahead: int = 0,
    ) -> None:
        self._moments = moments
        self._chunks = chunks
        self._root = root
        self._patience = patience
        self._readahead = readahead
        self._by_name: dict[bytes, _Moment] = {}
        self._by_number: dict[int, _Moment] = {}
        self._inside: dict[int, tuple[_Moment, int]] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        self._known: dict[int, int] = {}
        self._next_moment = _FIRST_MOMENT
        self._next_inside = _FIRST_INSIDE
        self._files: dict[int, _File] = {}

    # ---- before anything is looked at -------------------------------------------------------

    async def reach(self, ino: int, name: bytes = b"", *, attributes: bool = False) -> None:
        """Have what is needed to look *name* up in, or to list or read, what *ino* stands for.

        attributes: only its attributes are wanted.  ESTALE once when the root directory of a moment
        turns out to have other permissions than it was shown with: the kernel then looks again.
        """
        if ino == SNAPSHOTS:
            if name not in (b"", b".", b".."):
                await self._name(name)
        elif ino >= (_FIRST_INSIDE if attributes else _FIRST_MOMENT):
            moment, _ = self._place(ino)
            tree = await self._moments.have(moment.sequence, self._patience)
            if moment.root is None:
                shown = self._shown_root(moment)
                moment.root = tree.inode(ROOT)
                moment.xattrs = tuple(tree.xattrs(ROOT))
                now = self._shown_root(moment)
                same = (now.mode, now.uid, now.gid) == (shown.mode, shown.uid, shown.gid)
                if not same or any(name == acl.ACCESS for name, _ in moment.xattrs):
                    raise Refused(e.ESTALE)

    async def _name(self, name: bytes) -> None:
        """Find the moment that a name in `snapshots` means."""
        try:
            text = name.decode()
            if " ago" in text or text == "now":  # a directory stays what it is
                raise Refused(e.ENOENT)
            sequence = await self._moments.resolve(text)
        except (UnicodeDecodeError, BadUsage, Missing) as exc:
            self._by_name.pop(name, None)
            raise Refused(e.ENOENT) from exc
        moment = self._by_name.get(name)
        if moment is None or moment.sequence != sequence:
            self._by_name[name] = self._new_moment(name, sequence)

    def _new_moment(self, name: bytes, sequence: int) -> _Moment:
        if len(self._by_number) > _FIRST_INSIDE // 2:
            used = {moment.number for moment, _ in self._inside.values()}
            for number, old in list(self._by_number.items()):
                if number not in self._known and number not in used:
                    del self._by_number[number]
                    if self._by_name.get(old.name) is old:
                        del self._by_name[old.name]
        while self._next_moment in self._by_number or self._next_moment >= _FIRST_INSIDE:
            self._next_moment += 1
            if self._next_moment >= _FIRST_INSIDE:
                self._next_moment = _FIRST_MOMENT
        moment = _Moment(self._next_moment, name, sequence)
        self._next_moment += 1
        self._by_number[moment.number] = moment
        return moment

    # ---- numbers ----------------------------------------------------------------------------

    def _place(self, number: int) -> tuple[_Moment, int]:
        """The moment and the inode in its tree that *number* stands for."""
        if number < _FIRST_INSIDE:
            moment = self._by_number.get(number)
            if moment is not None:
                return moment, ROOT
        else:
            found = self._inside.get(number)
            if found is not None:
                return found
        raise Refused(e.ESTALE)

    def _number(self, moment: _Moment, ino: int) -> int:
        if ino == ROOT:
            return moment.number
        key = (moment.number, ino)
        number = self._numbers.get(key)
        if number is None:
            if len(self._inside) - len(self._known) > _SPARE:
                self._sweep()
            while self._next_inside in self._inside or self._next_inside >= FIRST_REAL:
                self._next_inside += 1
                if self._next_inside >= FIRST_REAL:
                    self._next_inside = _FIRST_INSIDE
            number = self._numbers[key] = self._next_inside
            self._inside[number] = (moment, ino)
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
        root = self._root()
        mode = stat.S_IFDIR | root.mode & 0o555
        return replace(root, ino=number, mode=mode, nlink=2, parent=0, version=0)

    def _shown_root(self, moment: _Moment) -> Inode:
        """The root directory of a moment, with the present one's permissions before it was read."""
        root = moment.root if moment.root is not None else self._root()
        return replace(root, ino=moment.number)

    def _shown(self, moment: _Moment, inode: Inode) -> Inode:
        inode.ino = self._number(moment, inode.ino)
        return inode

    def _tree(self, moment: _Moment) -> Tree:
        tree = self._moments.at_hand(moment.sequence)
        if tree is None:
            raise Refused(e.EAGAIN)  # only without `reach`
        return tree

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode that *name* in *parent* stands for."""
        if name == b".":
            return self.getattr(parent)
        if parent == TOP:
            if name == b"..":
                return self._root()
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
        moment, ino = self._place(parent)
        if name == b".." and ino == ROOT:
            return self._virtual(SNAPSHOTS)
        tree = self._tree(moment)
        if name == b"..":
            above = tree.directory(ino).parent
            return (
                self._shown_root(moment)
                if above == ROOT
                else self._shown(moment, tree.inode(above))
            )
        found = tree.lookup(ino, name)
        if found is None:
            tree.directory(ino)
            raise Refused(e.ENOENT)
        return self._shown(moment, found)

    def getattr(self, number: int) -> Inode:
        """Attributes; of the root of a moment also before its tree was read."""
        if number in (TOP, SNAPSHOTS):
            return self._virtual(number)
        moment, ino = self._place(number)
        if ino == ROOT:
            return self._shown_root(moment)
        return self._shown(moment, self._tree(moment).inode(ino))

    def readlink(self, number: int) -> bytes:
        moment, ino = self._place(number)
        return self._tree(moment).target(ino)

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
        moment, ino = self._place(number)
        return moment.xattrs if ino == ROOT else self._tree(moment).xattrs(ino)

    # ---- directories ------------------------------------------------------------------------

    def check_directory(self, number: int) -> None:
        """ENOTDIR or ESTALE unless it is a directory."""
        if not self.getattr(number).is_dir:
            raise Refused(e.ENOTDIR)

    def readdir(self, number: int, after: int, limit: int) -> list[tuple[bytes, Inode, int]]:
        """Up to *limit* entries whose cookies follow *after*: (name, inode, cookie)."""
        if number == TOP:
            return [(_SNAPSHOTS_NAME, self._virtual(SNAPSHOTS), 1)] if after < 1 else []
        if number == SNAPSHOTS:
            return self._list_snapshots(after, limit)
        moment, ino = self._place(number)
        entries = self._tree(moment).entries(ino, after, limit)
        for _, inode, _ in entries:
            self._shown(moment, inode)
        return entries

    def _list_snapshots(self, after: int, limit: int) -> list[tuple[bytes, Inode, int]]:
        entries = []
        listed = self._moments.snapshots()
        for cookie, (text, sequence, time_ns) in enumerate(
            listed[after : after + limit], after + 1
        ):
            name = text.encode()
            moment = self._by_name.get(name)
            if moment is None or moment.sequence != sequence:
                moment = self._by_name[name] = self._new_moment(name, sequence)
            shown = self._shown_root(moment)
            if moment.root is None:
                shown.mtime_ns = shown.ctime_ns = time_ns
            entries.append((name, shown, cookie))
        return entries

    # ---- files ------------------------------------------------------------------------------

    def open(self, number: int, flags: int, handle: int) -> None:
        """Open a file for reading as *handle*."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise Refused(e.EROFS)
        inode = self.getattr(number)
        if inode.is_dir:
            raise Refused(e.EISDIR)
        moment, ino = self._place(number)
        self._files[handle] = _File(moment, ino, inode.size, ReadAhead(self._readahead))

    def has(self, handle: int) -> bool:
        """Whether this is the handle of a file of the past."""
        return handle in self._files

    def release(self, handle: int) -> None:
        self._files.pop(handle, None)

    async def read(
        self, handle: int, offset: int, size: int
    ) -> tuple[bytes | memoryview, list[Extent]]:
        """Up to *size* bytes from *offset*, and what is worth fetching ahead."""
        file = self._files[handle]
        end = min(file.size, offset + size)
        if offset >= end:
            return b"", []
        async with self._moments.view(file.moment.sequence, self._patience) as tree:
            extents = tree.extents(file.ino, offset, end)
            ahead = file.ahead.after(offset, end - offset, file.size)
            coming = tree.extents(file.ino, *ahead) if ahead is not None else []
            chunks = await self._chunks.read(extents)
        out = bytearray(end - offset)  # zeros: holes
        for extent, chunk in zip(extents, chunks, strict=True):
            begin, stop = max(offset, extent.start), min(end, extent.end)
            skip = extent.skip + begin - extent.start
            out[begin - offset : stop - offset] = memoryview(chunk)[skip : skip + stop - begin]
        return memoryview(out), coming

    def path(self, handle: int) -> str:
        """Which file a handle stands for, for messages."""
        file = self._files[handle]
        tree = self._moments.at_hand(file.moment.sequence)
        found = tree.path(file.ino) if tree is not None else None
        moment = file.moment.name.decode("utf-8", "backslashreplace")
        inner = (found or b"/?").decode("utf-8", "backslashreplace")
        return f"/.megafs/snapshots/{moment}{inner}"
