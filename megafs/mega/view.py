"""What a mount shows of MEGA: the tree as a read-only filesystem (fs/served.py).

Everybody may read; owner, modes and links are not among what MEGA keeps.  A node without a key is
shown, as "no key (mega HANDLE)", and cannot be opened.
"""

from __future__ import annotations

import errno as e
import os
import stat
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from msgspec import Struct

from megafs.chunks.readahead import ReadAhead
from megafs.errors import Refused
from megafs.fs.requests import Caller, Invalidation, StatFs
from megafs.mega.ciphers import FileKey
from megafs.mega.contents import FileRef
from megafs.mega.node_table import Moved, NodeRow, NodeTable
from megafs.mega.reader import RangeReader
from megafs.mega.sealed_ranges import SealedFile
from megafs.tree.inode import NAME_MAX, ROOT, Inode, SetAttr

_NS: Final = 10**9
_BLOCK: Final = 4096
_DIRECTORY: Final = stat.S_IFDIR | 0o555
_FILE: Final = stat.S_IFREG | 0o444


class _Handle(Struct):
    file: SealedFile
    ahead: ReadAhead


class MegaFileSystem:
    """See the module.  top: the inode number of the folder that is shown as the root."""

    root_ino: Final = ROOT
    posix_acls: Final = False

    def __init__(self, table: NodeTable, top: int, reader: RangeReader, *, readahead: int) -> None:
        self.top = top
        self._table = table
        self._reader = reader
        self._readahead = readahead
        self._tell_kernel: Callable[[list[Invalidation]], None] | None = None
        self._open: dict[int, _Handle] = {}
        self._directories: dict[int, int] = {}
        self._last_handle = 0
        self._lookups: dict[int, int] = {}
        self._owner = (os.getuid(), os.getgid())
        #: Room of the account, of which so much is used; None where nobody says (a link).
        self.quota: tuple[int, int] | None = None
        self._totals: tuple[int, int] | None = None

    # Looking

    def _row(self, ino: int) -> NodeRow:
        row = self._table.find(self.top if ino == ROOT else ino)
        if row is None:
            raise Refused(e.ESTALE if ino in self._lookups else e.ENOENT)
        return row

    def _shown(self, row: NodeRow) -> Inode:
        uid, gid = self._owner
        time = row.mtime * _NS
        return Inode(
            ino=ROOT if row.ino == self.top else row.ino,
            mode=_FILE if row.is_file else _DIRECTORY,
            nlink=1 if row.is_file else 2,
            uid=uid,
            gid=gid,
            rdev=0,
            size=row.size if row.is_file else 0,
            blocks=row.size if row.is_file else 0,
            atime_ns=time,
            mtime_ns=time,
            ctime_ns=time,
            btime_ns=time,
        )

    def lookup(self, parent: int, name: bytes) -> Inode:
        row = self._row(parent)
        if row.is_file:
            raise Refused(e.ENOTDIR)
        if name == b"." or (name == b".." and row.ino == self.top):
            return self._shown(row)
        if name == b"..":
            return self._shown(self._row(row.parent))
        if len(name) > NAME_MAX:
            raise Refused(e.ENAMETOOLONG)
        found = self._table.lookup(row.ino, name)
        if found is None or found.ino == self.top:
            raise Refused(e.ENOENT)
        return self._shown(found)

    def getattr(self, ino: int) -> Inode:
        return self._shown(self._row(ino))

    async def load_snapshot(self, ino: int, name: bytes = b"", *, attributes: bool = False) -> None:
        raise Refused(e.ENOENT)  # there are none

    def readlink(self, ino: int) -> NoReturn:
        raise Refused(e.EINVAL)

    def getxattr(self, ino: int, name: bytes) -> NoReturn:
        raise Refused(e.ENODATA)

    def listxattr(self, ino: int, caller: Caller | None = None) -> list[bytes]:
        return []

    def remember(self, ino: int) -> None:
        self._lookups[ino] = self._lookups.get(ino, 0) + 1

    def forget(self, ino: int, n: int) -> None:
        left = self._lookups.get(ino, 0) - n
        if left > 0:
            self._lookups[ino] = left
        else:
            self._lookups.pop(ino, None)

    def statfs(self) -> StatFs:
        if self._totals is None:
            self._totals = self._table.totals()
        nodes, used = self._totals
        total = used
        if self.quota is not None:
            total, used = self.quota
        blocks = -(-total // _BLOCK)
        free = max(0, blocks - -(-used // _BLOCK))
        return StatFs(_BLOCK, _BLOCK, blocks, free, free, nodes, 0, 0, NAME_MAX)

    def opendir(self, ino: int) -> int:
        row = self._row(ino)
        if row.is_file:
            raise Refused(e.ENOTDIR)
        self._last_handle += 1
        self._directories[self._last_handle] = row.ino
        return self._last_handle

    def readdir(self, fh: int, after: int, limit: int) -> list[tuple[bytes, Inode, int]]:
        """Up to *limit* entries; a cookie is the inode's number."""
        rows = self._table.children(self._directories[fh], after, limit)
        # The root may lie within itself, if the server says so; the kernel takes no such thing.
        return [(row.shown, self._shown(row), row.ino) for row in rows if row.ino != self.top]

    def releasedir(self, fh: int) -> None:
        self._directories.pop(fh, None)

    async def fsyncdir(self, fh: int) -> None:
        """Nothing is ever written."""

    # Reading

    async def open(self, ino: int, flags: int, caller: Caller) -> tuple[int, bool]:
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise Refused(e.EROFS)
        row = self._row(ino)
        if not row.is_file:
            raise Refused(e.EISDIR)
        if row.key is None:
            raise Refused(e.EACCES)
        self._last_handle += 1
        file = SealedFile(FileRef(row.handle), FileKey.of(row.key), row.size)
        ahead = ReadAhead(self._readahead, self._readahead)
        self._open[self._last_handle] = _Handle(file, ahead)
        return self._last_handle, True  # a node's contents never change: a new one has a new handle

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        handle = self._open[fh]
        wanted = handle.ahead.after(offset, size, handle.file.size)
        if wanted is not None:
            self._reader.read_ahead(handle.file, *wanted)
        return await self._reader.read(handle.file, offset, size)

    async def flush(self, fh: int) -> None:
        """Nothing is ever written."""

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Nothing is ever written."""

    async def release(self, fh: int) -> None:
        self._open.pop(fh, None)

    def names_in_use(self) -> dict[str, SealedFile]:
        """The files that are open, by the names of their ranges."""
        return {handle.file.name: handle.file for handle in self._open.values()}

    # News

    def attach_kernel(self, tell: Callable[[list[Invalidation]], None]) -> None:
        self._tell_kernel = tell

    def detach_kernel(self) -> None:
        self._tell_kernel = None

    def changed(self, moved: Sequence[Moved]) -> None:
        """Names that are no longer what they were: the kernel must forget them."""
        self._totals = None
        if self._tell_kernel is None:
            return
        news: list[Invalidation] = []
        for one in moved:
            parent = ROOT if one.parent == self.top else one.parent
            if parent == ROOT or parent in self._lookups:
                news.append(Invalidation("entry", parent, one.shown))
                news.append(Invalidation("inode", parent, attr_only=True))
            if one.ino in self._lookups:
                news.append(Invalidation("inode", one.ino, attr_only=True))
        self._tell_kernel(news)

    def changed_wholly(self) -> None:
        """The tree was loaded anew: what the kernel knows may all be different."""
        self._totals = None
        if self._tell_kernel is None:
            return
        news = [Invalidation("inode", ino, attr_only=True) for ino in self._lookups]
        for ino in list(self._lookups):
            row = self._table.find(ino)
            if row is not None:
                parent = ROOT if row.parent == self.top else row.parent
                news.append(Invalidation("entry", parent, row.shown))
        self._tell_kernel(news)

    # What a read-only filesystem refuses; the kernel refuses nearly all of it before

    async def setattr(
        self, ino: int, changes: SetAttr, caller: Caller, fh: int | None = None
    ) -> NoReturn:
        raise Refused(e.EROFS)

    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller
    ) -> NoReturn:
        raise Refused(e.EROFS)

    async def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> NoReturn:
        raise Refused(e.EROFS)

    async def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> NoReturn:
        raise Refused(e.EROFS)

    async def link(self, ino: int, parent: int, name: bytes, caller: Caller) -> NoReturn:
        raise Refused(e.EROFS)

    async def unlink(self, parent: int, name: bytes, caller: Caller) -> NoReturn:
        raise Refused(e.EROFS)

    async def rmdir(self, parent: int, name: bytes, caller: Caller) -> NoReturn:
        raise Refused(e.EROFS)

    async def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> NoReturn:
        raise Refused(e.EROFS)

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> NoReturn:
        raise Refused(e.EROFS)

    async def write(self, fh: int, offset: int, data: bytes) -> NoReturn:
        raise Refused(e.EROFS)

    async def setxattr(
        self, ino: int, name: bytes, value: bytes, flags: int, caller: Caller
    ) -> NoReturn:
        raise Refused(e.EROFS)

    async def removexattr(self, ino: int, name: bytes, caller: Caller) -> NoReturn:
        raise Refused(e.EROFS)
