"""A FileSystem in memory: small, true to the interface, with knobs for trouble.

For tests of the FUSE adapter, which are not about how bytes are kept.  It does what POSIX asks of
the calls the kernel makes, no more, and counts what the kernel knows.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from megafs.errors import Refused
from megafs.fs.requests import Caller, Invalidation, StatFs
from megafs.tree.inode import Inode, SetAttr


@dataclass
class Node:
    inode: Inode
    data: bytearray = field(default_factory=bytearray)
    names: dict[bytes, int] = field(default_factory=dict)
    cookies: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    target: bytes = b""
    parent: int = 1


class MemoryFS:
    """Files in memory.

    fail: what the next call of a method raises, by its name; each once.
    hold: methods wait for the event under their name.
    calls: how often each method with a caller was called.
    """

    root_ino = 1
    posix_acls = False

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.known: Counter[int] = Counter()
        self.fail: dict[str, BaseException] = {}
        self.hold: dict[str, trio.Event] = {}
        self.calls: Counter[str] = Counter()
        self._tell_kernel: Callable[[list[Invalidation]], None] | None = None
        self.keep_cache = True
        self._next = 1
        self._handles: dict[int, int] = {}
        self._cookie = 0
        self._make(stat.S_IFDIR | 0o755, Caller(os.getuid(), os.getgid(), 0, 0), 0)
        self._next = 1 << 25  # numbers below are those of the past

    def attach_kernel(self, tell: Callable[[list[Invalidation]], None]) -> None:
        self._tell_kernel = tell

    def detach_kernel(self) -> None:
        self._tell_kernel = None

    def invalidate(self, items: list[Invalidation]) -> None:
        assert self._tell_kernel is not None
        self._tell_kernel(items)

    # -- inside

    def _make(self, mode: int, caller: Caller, rdev: int) -> Node:
        now = time.time_ns()
        ino, self._next = self._next, self._next + 1
        nlink = 2 if stat.S_ISDIR(mode) else 1
        node = Node(Inode(ino, mode, nlink, caller.uid, caller.gid, rdev, 0, 0, now, now, now, now))
        self.nodes[ino] = node
        return node

    def _node(self, ino: int) -> Node:
        try:
            return self.nodes[ino]
        except KeyError:
            raise Refused(errno.ESTALE) from None

    def _dir(self, ino: int) -> Node:
        node = self._node(ino)
        if not stat.S_ISDIR(node.inode.mode):
            raise Refused(errno.ENOTDIR)
        return node

    def _find(self, parent: int, name: bytes) -> Node:
        names = self._dir(parent).names
        if name not in names:
            raise Refused(errno.ENOENT)
        return self._node(names[name])

    def _add(self, parent: int, name: bytes, node: Node) -> None:
        where = self._dir(parent)
        if len(name) > 255:
            raise Refused(errno.ENAMETOOLONG)
        if name in where.names:
            raise Refused(errno.EEXIST)
        self._cookie += 1
        where.names[name] = node.inode.ino
        where.cookies[name] = self._cookie
        if stat.S_ISDIR(node.inode.mode):
            node.parent = parent
            where.inode.nlink += 1
        where.inode.mtime_ns = where.inode.ctime_ns = time.time_ns()

    def _drop(self, parent: int, name: bytes) -> Node:
        node = self._find(parent, name)
        where = self._dir(parent)
        del where.names[name], where.cookies[name]
        if stat.S_ISDIR(node.inode.mode):
            where.inode.nlink -= 1
        where.inode.mtime_ns = where.inode.ctime_ns = time.time_ns()
        return node

    async def _enter(self, method: str) -> None:
        self.calls[method] += 1
        self._trouble(method)
        if method in self.hold:
            await self.hold[method].wait()
        else:
            await trio.lowlevel.checkpoint()

    def _trouble(self, method: str) -> None:
        exc = self.fail.pop(method, None)
        if exc is not None:
            raise exc

    # -- answered at once

    def lookup(self, parent: int, name: bytes) -> Inode:
        self._trouble("lookup")
        if name == b".":
            return self._dir(parent).inode
        if name == b"..":
            return self._node(self._dir(parent).parent).inode
        return self._find(parent, name).inode

    def getattr(self, ino: int) -> Inode:
        self._trouble("getattr")
        return self._node(ino).inode

    def readlink(self, ino: int) -> bytes:
        return self._node(ino).target

    def getxattr(self, ino: int, name: bytes) -> bytes:
        try:
            return self._node(ino).xattrs[name]
        except KeyError:
            raise Refused(errno.ENODATA) from None

    def listxattr(self, ino: int, caller: Caller | None = None) -> list[bytes]:
        return list(self._node(ino).xattrs)

    def statfs(self) -> StatFs:
        return StatFs(4096, 4096, 1000, 900, 900, 500, 400, 400, 255)

    def opendir(self, ino: int) -> int:
        self._dir(ino)
        return self._handle(ino)

    def readdir(self, fh: int, after: int, limit: int) -> list[tuple[bytes, Inode, int]]:
        node = self._node(self._handles[fh])
        entries = sorted((cookie, name) for name, cookie in node.cookies.items() if cookie > after)
        return [(n, self._node(node.names[n]).inode, c) for c, n in entries[:limit]]

    def releasedir(self, fh: int) -> None:
        del self._handles[fh]

    def remember(self, ino: int) -> None:
        self.known[ino] += 1

    def forget(self, ino: int, n: int) -> None:
        self._trouble("forget")
        self.known[ino] -= n

    def _handle(self, ino: int) -> int:
        fh = max(self._handles, default=0) + 1
        self._handles[fh] = ino
        return fh

    # -- may wait

    async def setattr(
        self, ino: int, changes: SetAttr, caller: Caller, fh: int | None = None
    ) -> Inode:
        await self._enter("setattr")
        node = self._node(ino)
        if changes.mode is not None:
            node.inode.mode = stat.S_IFMT(node.inode.mode) | stat.S_IMODE(changes.mode)
        for field_ in ("uid", "gid", "atime_ns", "mtime_ns"):
            value = getattr(changes, field_)
            if value is not None:
                setattr(node.inode, field_, value)
        if changes.size is not None:
            del node.data[changes.size :]
            node.data.extend(bytes(changes.size - len(node.data)))
            self._touch(node)
        node.inode.ctime_ns = time.time_ns()
        return node.inode

    def _touch(self, node: Node) -> None:
        node.inode.size = node.inode.blocks = len(node.data)
        node.inode.mtime_ns = node.inode.ctime_ns = time.time_ns()

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Inode:
        await self._enter("mknod")
        node = self._make(mode, caller, rdev)
        self._add(parent, name, node)
        return node.inode

    async def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Inode:
        await self._enter("mkdir")
        node = self._make(stat.S_IFDIR | stat.S_IMODE(mode), caller, 0)
        self._add(parent, name, node)
        return node.inode

    async def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Inode:
        await self._enter("symlink")
        node = self._make(stat.S_IFLNK | 0o777, caller, 0)
        node.target = target
        node.inode.size = len(target)
        self._add(parent, name, node)
        return node.inode

    async def link(self, ino: int, parent: int, name: bytes, caller: Caller) -> Inode:
        await self._enter("link")
        node = self._node(ino)
        self._add(parent, name, node)
        node.inode.nlink += 1
        return node.inode

    async def unlink(self, parent: int, name: bytes, caller: Caller) -> None:
        await self._enter("unlink")
        self._drop(parent, name).inode.nlink -= 1

    async def rmdir(self, parent: int, name: bytes, caller: Caller) -> None:
        await self._enter("rmdir")
        if self._find(parent, name).names:
            raise Refused(errno.ENOTEMPTY)
        self._drop(parent, name).inode.nlink = 0

    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, caller: Caller
    ) -> None:
        await self._enter("rename")
        node = self._find(parent, name)
        there = self._dir(new_parent).names.get(new_name)
        if flags == 1 and there is not None:
            raise Refused(errno.EEXIST)
        if flags == 2:
            other = self._find(new_parent, new_name)
            self._dir(parent).names[name] = other.inode.ino
            self._dir(new_parent).names[new_name] = node.inode.ino
            return
        if flags not in (0, 1):
            raise Refused(errno.EINVAL)
        if there is not None:
            if self._node(there).names:
                raise Refused(errno.ENOTEMPTY)
            self._drop(new_parent, new_name).inode.nlink -= 1
        self._drop(parent, name)
        self._add(new_parent, new_name, node)

    async def open(self, ino: int, flags: int, caller: Caller) -> tuple[int, bool]:
        await self._enter("open")
        node = self._node(ino)
        if flags & os.O_TRUNC:
            node.data.clear()
            self._touch(node)
        return self._handle(ino), self.keep_cache

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[int, Inode]:
        await self._enter("create")
        node = self._make(stat.S_IFREG | stat.S_IMODE(mode), caller, 0)
        self._add(parent, name, node)
        return self._handle(node.inode.ino), node.inode

    async def read(self, fh: int, offset: int, size: int) -> bytes | memoryview:
        await self._enter("read")
        return memoryview(bytes(self._node(self._handles[fh]).data[offset : offset + size]))

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        await self._enter("write")
        node = self._node(self._handles[fh])
        if len(node.data) < offset:
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + len(data)] = data
        self._touch(node)
        return len(data)

    async def flush(self, fh: int) -> None:
        await self._enter("flush")

    async def release(self, fh: int) -> None:
        await self._enter("release")
        del self._handles[fh]

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._enter("fsync")

    async def fsyncdir(self, fh: int) -> None:
        await self._enter("fsyncdir")

    async def setxattr(
        self, ino: int, name: bytes, value: bytes, flags: int, caller: Caller
    ) -> None:
        await self._enter("setxattr")
        self._node(ino).xattrs[name] = value

    async def removexattr(self, ino: int, name: bytes, caller: Caller) -> None:
        await self._enter("removexattr")
        if self._node(ino).xattrs.pop(name, None) is None:
            raise Refused(errno.ENODATA)
