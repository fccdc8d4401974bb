"""Every POSIX operation, one short method each; no FUSE types.

Looking things up is synchronous and answered from the replica: `ls` and `df` never wait for the
network.  What changes the tree becomes one operation (tree/ops.py), applied at once and committed
in the background.  The kernel has checked permissions before it asks (default_permissions).

Raises Refused for a correct "no", Fault when something below failed; mount/fuse.py makes both
errnos.
"""

from __future__ import annotations

import errno as e
import logging
import os
import stat
from collections.abc import Callable, Set
from typing import Final, TypeVar

import trio
from blake3 import blake3
from msgspec import Struct, field

from megafs import clock
from megafs.chunks.readahead import ReadAhead
from megafs.chunks.store import ChunkStore
from megafs.concurrency import Background
from megafs.config import Parameters, Settings
from megafs.errors import Corrupt, Denied, Fault, Missing, NoStore, Refused, StoreError
from megafs.fs import acl, snapshot_view
from megafs.fs.contents import Contents
from megafs.fs.ports import Replica, Stage, Writer
from megafs.fs.repack import SOON, Repacker
from megafs.fs.snapshot_view import FIRST_REAL, SnapshotView
from megafs.fs.writeback import Writeback
from megafs.journal.replica import News, Ticket
from megafs.tree import ops
from megafs.tree.inode import (
    FILE_SIZE_MAX,
    NAME_MAX,
    ROOT,
    SYMLINK_MAX,
    XATTR_NAME_MAX,
    XATTR_SIZE_MAX,
    Inode,
    SetAttr,
)
from megafs.tree.tree import Extent

log = logging.getLogger(__name__)

RENAME_NOREPLACE: Final = ops.RENAME_NOREPLACE
RENAME_EXCHANGE: Final = ops.RENAME_EXCHANGE

_DAY_NS = 86400 * 10**9
#: statfs of a volume without quota: what most tools can still add up without overflowing.
_NO_QUOTA = 1 << 50
#: Inodes that statfs shows: numbers do not run out, tools want a number.
_FILES = 1 << 40
#: How often a strict operation is decided anew because others were faster.
_STRICT_ATTEMPTS = 16
#: A read-ahead that was asked to be smaller than this stays as small as it is.
_GROWING = 4 << 20
#: A read up to this size, out of sequence, is answered without a plan if its bytes are here.
_AT_ONCE = 32 << 10
T = TypeVar("T")
_NAMESPACES = (b"user.", b"trusted.", b"security.")


class Caller(Struct, frozen=True):
    """Who asks.  umask: applied by the kernel already."""

    uid: int = 0
    gid: int = 0
    pid: int = 0
    umask: int = 0


class StatFs(Struct, frozen=True):
    """As statvfs(3)."""

    bsize: int
    frsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    favail: int
    namemax: int


class Invalidation(Struct, frozen=True):
    """Something the kernel must forget.

    kind: "inode" (attributes, and contents unless attr_only) or "entry" (*name* in the directory).
    """

    kind: str
    ino: int
    name: bytes | None = None
    attr_only: bool = False


class _Handle(Struct):
    """An open file."""

    contents: Contents
    flags: int
    uid: int
    ahead: ReadAhead

    @property
    def readable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY


class _Listing(Struct):
    """An open directory.  skip: (after, up to) of the cookies made since its listing began."""

    ino: int
    skip: tuple[int, int] = (0, 0)


class Below(Struct, frozen=True):
    """What a filesystem stands on."""

    replica: Replica
    chunks: ChunkStore
    stage: Stage
    writer: Writer


class Errors(Struct):
    """The last faults, for `megafs status`: (time in ns, text), newest last."""

    last: list[tuple[int, str]] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.last.append((clock.now_ns(), text))
        del self.last[:-20]


class FileSystem:
    """POSIX semantics over one replica, its chunks and its journal.

    snapshots: what `.megafs` in the root shows; nothing if None.
    dedup_key: for finding equal chunks, if the volume wants that.
    """

    root_ino: Final = ROOT
    #: ACLs and mode are kept in step here, and default ACLs are handed down (fs/acl.py).
    posix_acls: Final = True

    def __init__(
        self,
        below: Below,
        params: Parameters,
        settings: Settings,
        background: Background,
        *,
        snapshots: SnapshotView | None = None,
        dedup_key: bytes | None = None,
    ) -> None:
        replica, chunks, stage, writer = below.replica, below.chunks, below.stage, below.writer
        self._replica = replica
        self._tree = replica.tree
        self._chunks = chunks
        self._stage = stage
        self._writer = writer
        self._params = params
        self._settings = settings
        self._dedup_key = dedup_key if params.deduplication else None
        self._background = background
        self.writeback = Writeback(replica, stage, writer, settings.dirty_limit, self._settle)
        self.repack = Repacker(
            replica,
            stage,
            params.inline_limit,
            background,
            allowed=self._writable,
            poke=writer.poke,
        )
        self.errors = Errors()
        self._tell_kernel: Callable[[list[Invalidation]], None] | None = None
        self._handles: dict[int, _Handle] = {}
        self._directories: dict[int, _Listing] = {}
        self._next_handle = 1
        self._contents: dict[int, Contents] = {}
        self._known: dict[int, int] = {}
        self._ghosts: dict[int, Inode] = {}
        self._stale: set[int] = set()
        self._shrinking: set[int] = set()
        self.snapshots = snapshots
        writer.subscribe(self)

    # ---- looking up -------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode that *name* in *parent* stands for."""
        if parent < FIRST_REAL and parent != ROOT:
            return self._the_past().lookup(parent, name)
        self._writer.stir()
        parent = self._real(parent)
        if name == b".":
            return self.getattr(parent)
        if name == b"..":
            return self.getattr(self._tree.directory(parent).parent)
        if len(name) > NAME_MAX:
            raise Refused(e.ENAMETOOLONG)
        found = self._tree.lookup(parent, name)
        if found is None:
            if parent == ROOT and name == snapshot_view.NAME and self.snapshots is not None:
                return self.snapshots.top()
            self._tree.directory(parent)
            raise Refused(e.ENOENT)
        return self._shown(found)

    def getattr(self, ino: int) -> Inode:
        """The attributes of an inode, also of an unlinked one that the kernel still knows."""
        if ino < FIRST_REAL and ino != ROOT:
            return self._the_past().getattr(ino)
        ino = self._real(ino)
        found = self._tree.find(ino)
        if found is None:
            ghost = self._ghosts.get(ino)
            if ghost is None:
                raise Refused(e.ESTALE if ino in self._known else e.ENOENT)
            return ghost
        return self._shown(found)

    def _shown(self, inode: Inode) -> Inode:
        contents = self._contents.get(inode.ino)
        return inode if contents is None else contents.show(inode)

    def _real(self, ino: int) -> int:
        """The inode that *ino* became when two directories of one name became one.

        EROFS for what lies in the past: whoever only reads does not ask.
        """
        if ino < FIRST_REAL and ino != ROOT:
            raise Refused(e.EROFS)
        return self._replica.aliases.get(ino, ino) if self._replica.aliases else ino

    def _the_past(self) -> SnapshotView:
        if self.snapshots is None:
            raise Refused(e.ENOENT)
        return self.snapshots

    async def reach(self, ino: int, name: bytes = b"", *, attributes: bool = False) -> None:
        """Have what `lookup`, `opendir` and the like need: to be awaited right before one of them
        when *ino* lies in the past (`past.is_past`), whose trees have to be read first.
        """
        await self._the_past().reach(ino, name, attributes=attributes)

    def _keep_past_name(self, parent: int, name: bytes) -> None:
        """EROFS if this is the name of the past, which may not be removed or moved over."""
        if parent == ROOT and name == snapshot_view.NAME and self.snapshots is not None:
            raise Refused(e.EROFS)

    def readlink(self, ino: int) -> bytes:
        if ino < FIRST_REAL and ino != ROOT:
            return self._the_past().readlink(ino)
        return self._tree.target(self._real(ino))

    def remember(self, ino: int) -> None:
        """The kernel knows this inode once more."""
        if ino < FIRST_REAL and ino != ROOT and self.snapshots is not None:
            self.snapshots.remember(ino)
            return
        self._known[ino] = self._known.get(ino, 0) + 1

    def forget(self, ino: int, n: int) -> None:
        """The kernel knows this inode *n* times less."""
        if ino < FIRST_REAL and ino != ROOT and self.snapshots is not None:
            self.snapshots.forget(ino, n)
            return
        left = self._known.get(ino, 0) - n
        if left > 0:
            self._known[ino] = left
        else:
            self._known.pop(ino, None)
            self._ghosts.pop(ino, None)
            self._stale.discard(ino)

    @property
    def used_bytes(self) -> int:
        """Bytes of file contents in the volume, counting what is not flushed yet."""
        return self._tree.used + self.writeback.dirty

    def statfs(self) -> StatFs:
        """Room in the volume: what the quota leaves."""
        size = self._params.quota
        used = self.used_bytes
        block = 4096
        total = (size if size is not None else _NO_QUOTA) // block
        free = max(0, total - -(-used // block))
        return StatFs(
            block,
            block,
            total,
            free,
            free,
            _FILES,
            _FILES - self._tree.files,
            _FILES - self._tree.files,
            NAME_MAX,
        )

    # ---- directories ------------------------------------------------------------------------

    def opendir(self, ino: int) -> int:
        if ino < FIRST_REAL and ino != ROOT:
            self._the_past().check_directory(ino)
        else:
            ino = self._real(ino)
            if ino not in self._ghosts:
                self._tree.directory(ino)
        handle = self._handle_number()
        self._directories[handle] = _Listing(ino)
        return handle

    def readdir(self, fh: int, after: int, limit: int) -> list[tuple[bytes, Inode, int]]:
        """Up to *limit* entries whose cookies follow *after*: (name, inode, cookie).

        Names that stay while others come and go are given exactly once; without "." and "..".
        Names that this mount makes while a listing is under way are not in it: a program that makes
        a file for each one it finds would never come to the end.  after=0 begins anew.
        """
        listing = self._directories[fh]
        ino = listing.ino
        if ino < FIRST_REAL and ino != ROOT:
            return self._the_past().readdir(ino, after, limit)
        if after == 0:
            listing.skip = self._replica.last_number
        newest, end = listing.skip
        ino = self._real(ino)
        entries = self._tree.entries(ino, after, limit)
        if any(newest < cookie <= end for _, _, cookie in entries):
            entries = [entry for entry in entries if entry[2] <= newest]
            entries += self._tree.entries(ino, end, limit - len(entries))
        if self._contents:
            for _, inode, _ in entries:
                self._shown(inode)
        return entries

    def releasedir(self, fh: int) -> None:
        self._directories.pop(fh, None)

    async def fsyncdir(self, fh: int) -> None:
        """The names in a directory are as durable as `fsync` says."""
        await self._make_durable()

    # ---- making and removing names ----------------------------------------------------------

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Inode:
        return await self._named(lambda t: self._create(t, parent, name, mode, caller, rdev=rdev))

    async def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Inode:
        mode = stat.S_IFDIR | mode & 0o7777
        return await self._named(lambda t: self._create(t, parent, name, mode, caller))

    async def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Inode:
        if len(target) > SYMLINK_MAX:
            raise Refused(e.ENAMETOOLONG)
        mode = stat.S_IFLNK | 0o777
        return await self._named(
            lambda t: self._create(t, parent, name, mode, caller, target=target)
        )

    def _create(
        self,
        ticket: Ticket | None,
        parent: int,
        name: bytes,
        mode: int,
        caller: Caller,
        *,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Inode:
        self._may_write()
        parent = self._real(parent)
        above = self._tree.directory(parent)
        if len(name) > NAME_MAX:
            raise Refused(e.ENAMETOOLONG)
        if self._tree.child(parent, name) is not None:
            raise Refused(e.EEXIST)
        self._keep_past_name(parent, name)
        self._check_quota_for_names()
        gid = caller.gid
        is_dir = stat.S_ISDIR(mode)
        if above.mode & stat.S_ISGID:
            gid = above.gid
            if is_dir:
                mode |= stat.S_ISGID
        xattrs: list[tuple[bytes, bytes]] = []
        if not stat.S_ISLNK(mode):
            default = self._tree.xattr(parent, acl.DEFAULT)
            if default is not None:
                mode, access = acl.inherit(default, mode)
                if not acl.is_minimal(access):
                    xattrs.append((acl.ACCESS, acl.build(access)))
                if is_dir:
                    xattrs.append((acl.DEFAULT, default))
        ino = self._replica.number()
        self._replica.record(
            ops.Create(
                parent,
                name,
                ino,
                self._replica.number(),
                mode,
                caller.uid,
                gid,
                rdev,
                clock.now_ns(),
                0,
                target,
                tuple(xattrs),
            ),
            ticket,
        )
        return self._tree.inode(ino)

    async def link(self, ino: int, parent: int, name: bytes, caller: Caller) -> Inode:
        await self._named(lambda t: self._link(t, ino, parent, name))
        return self.getattr(ino)

    def _link(self, ticket: Ticket | None, ino: int, parent: int, name: bytes) -> None:
        self._may_write()
        ino, parent = self._real(ino), self._real(parent)
        self._replica.record(
            ops.Link(ino, parent, name, self._replica.number(), clock.now_ns()), ticket
        )

    async def unlink(self, parent: int, name: bytes, caller: Caller) -> None:
        self._bury(await self._named(lambda t: self._unlink(t, parent, name)))

    def _unlink(self, ticket: Ticket | None, parent: int, name: bytes) -> Inode:
        self._may_write()
        parent = self._real(parent)
        inode = self._child(parent, name)
        if inode.is_dir:
            raise Refused(e.EISDIR)
        self._replica.record(
            ops.Unlink(
                parent, name, inode.ino, inode.version, clock.now_ns(), self.keeps(inode.ino)
            ),
            ticket,
        )
        return inode

    async def rmdir(self, parent: int, name: bytes, caller: Caller) -> None:
        self._bury(await self._named(lambda t: self._rmdir(t, parent, name)))

    def _rmdir(self, ticket: Ticket | None, parent: int, name: bytes) -> Inode:
        self._may_write()
        parent = self._real(parent)
        inode = self._child(parent, name)
        if not inode.is_dir:
            raise Refused(e.ENOTDIR)
        if not self._tree.is_empty(inode.ino):
            raise Refused(e.ENOTEMPTY)
        self._replica.record(ops.Rmdir(parent, name, inode.ino, clock.now_ns()), ticket)
        return inode

    async def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> None:
        replaced = await self._named(
            lambda t: self._rename(t, parent, name, new_parent, new_name, flags)
        )
        if replaced is not None:
            self._bury(replaced)

    def _rename(
        self,
        ticket: Ticket | None,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
    ) -> Inode | None:
        """Rename; return the inode whose name was taken over, if any."""
        self._may_write()
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == 3:
            raise Refused(e.EINVAL)
        parent, new_parent = self._real(parent), self._real(new_parent)
        moved = self._child(parent, name)
        if len(new_name) > NAME_MAX:
            raise Refused(e.ENAMETOOLONG)
        replaced = self._tree.lookup(new_parent, new_name)
        if replaced is None:
            self._keep_past_name(new_parent, new_name)
        if flags & RENAME_NOREPLACE and replaced is not None:
            raise Refused(e.EEXIST)
        if flags & RENAME_EXCHANGE and replaced is None:
            raise Refused(e.ENOENT)
        if replaced is not None and replaced.ino == moved.ino:
            return None
        exchange = bool(flags & RENAME_EXCHANGE)
        keep = 0 if replaced is None or exchange else self.keeps(replaced.ino)
        self._replica.record(
            ops.Rename(
                parent,
                name,
                new_parent,
                new_name,
                flags,
                moved.ino,
                replaced.ino if replaced is not None else 0,
                replaced.version if replaced is not None else 0,
                self._replica.number(),
                self._replica.number() if exchange else 0,
                clock.now_ns(),
                keep,
            ),
            ticket,
        )
        return None if exchange else replaced

    async def _named(self, change: Callable[[Ticket | None], T]) -> T:
        """Change names; with strict consistency, answer only when that is in the journal.

        Strict: a refusal may come from names that another mount has changed meanwhile, so the
        journal is looked at before it is believed; and an operation that loses the race to one that
        it does not fit is refused with the errno that a single machine would have given.
        """
        if self._settings.consistency != "strict":
            result = change(None)
            self._writer.poke()
            return result
        for attempt in range(_STRICT_ATTEMPTS):
            ticket = Ticket()
            no: Refused | None = None
            try:
                result = change(ticket)
            except Refused as refused:
                no = refused
            if no is not None:
                if attempt or not await self._writer.catch_up():
                    raise no
                continue
            await self._writer.committed(self._replica.seal(), self._settings.deadline)
            if ticket.refused is None:
                return result
            if ticket.refused.errno not in (e.ESTALE, e.ENOENT, e.EEXIST):
                raise ticket.refused
            # Decided again on what the winner left: the answer may be another errno, or success.
        raise Refused(e.EBUSY)

    def _child(self, parent: int, name: bytes) -> Inode:
        if len(name) > NAME_MAX:
            raise Refused(e.ENAMETOOLONG)
        found = self._tree.lookup(parent, name)
        if found is None:
            self._keep_past_name(parent, name)
            self._tree.directory(parent)
            raise Refused(e.ENOENT)
        return found

    def keeps(self, ino: int) -> int:
        """This mount, if the file's bytes outlive its last name: it is open, or goes in steps."""
        contents = self._contents.get(ino)
        if contents is not None and contents.opens:
            return self._replica.mount
        return self._replica.mount if self._tree.far_cut(ino, 0) is not None else 0

    def _remove_orphan(self, ino: int) -> None:
        """A file without a name that nobody has open goes, in the background if it is huge."""
        inode = self._tree.find(ino)
        contents = self._contents.get(ino)
        if inode is None or inode.nlink or inode.is_dir or (contents and contents.opens):
            return
        if self._writer.frozen is not None:
            return
        if self._tree.far_cut(ino, 0) is None:
            self._replica.record(ops.Reap(ino))
            self._writer.poke()
        elif ino not in self._shrinking and self._background.start(self._remove_in_steps, ino):
            self._shrinking.add(ino)

    async def _remove_in_steps(self, ino: int) -> None:
        step = True
        while step:
            await trio.sleep(0.02)  # programs go first
            step = self._cut_step(ino)
            self._writer.poke()
        self._shrinking.discard(ino)
        self._remove_orphan(ino)

    def _cut_step(self, ino: int) -> bool:
        """Take a batch of extents from a huge orphan; False if there is no need to."""
        inode = self._tree.find(ino)
        cut = self._tree.far_cut(ino, 0)
        if inode is None or inode.nlink or cut is None or self._writer.frozen is not None:
            return False
        now = clock.now_ns()
        self._replica.record(
            ops.Contents(ino, inode.version, self._replica.number(), cut, cut, now, now, ())
        )
        self._replica.seal()
        return True

    def _bury(self, inode: Inode) -> None:
        """An inode may be gone now; the kernel may still ask for its attributes."""
        self._remove_orphan(inode.ino)
        if self._tree.find(inode.ino) is None and inode.ino in self._known:
            inode.nlink = 0
            inode.ctime_ns = clock.now_ns()
            self._ghosts[inode.ino] = inode

    # ---- attributes -------------------------------------------------------------------------

    async def setattr(
        self, ino: int, changes: SetAttr, caller: Caller, fh: int | None = None
    ) -> Inode:
        self._may_write()
        ino = self._real(ino)
        inode = self._tree.find(ino)
        if inode is None:
            return self.getattr(ino)  # unlinked and gone: nobody can see a change
        now = clock.now_ns()
        if changes.size is not None:
            await self._truncate(inode, changes.size, now, caller)
            inode = self._tree.inode(ino)
        contents = self._contents.get(ino)
        if contents is not None and contents.is_dirty and changes.mtime_ns is not None:
            # Later flushes must not bring an older time of writing back over the one set now.
            await contents.flush()
            inode = self._tree.inode(ino)
        fields: dict[str, int] = {}
        mode = inode.mode
        if changes.mode is not None:
            mode = stat.S_IFMT(inode.mode) | changes.mode & 0o7777
        if changes.uid is not None or changes.gid is not None:
            fields["uid"] = inode.uid if changes.uid is None else changes.uid
            fields["gid"] = inode.gid if changes.gid is None else changes.gid
            if not inode.is_dir and changes.mode is None:
                mode = _without_set_id(mode)
        if mode != inode.mode:
            fields["mode"] = mode
        if changes.atime_ns is not None:
            fields["atime"] = changes.atime_ns
        if changes.mtime_ns is not None:
            fields["mtime"] = changes.mtime_ns
        if fields or changes.mode is not None:
            fields["ctime"] = now
            await self._record(ops.Attributes(ino, fields))
            if changes.mode is not None:
                await self._acl_follows_mode(ino, mode, now)
            if "uid" in fields and self._tree.xattr(ino, b"security.capability") is not None:
                await self._record(ops.RemoveXattr(ino, b"security.capability", now))
        return self._shown(self._tree.inode(ino))

    async def _truncate(self, inode: Inode, size: int, now: int, caller: Caller) -> None:
        if inode.is_dir:
            raise Refused(e.EISDIR)
        if not inode.is_file:
            raise Refused(e.EINVAL)
        if size > FILE_SIZE_MAX:
            raise Refused(e.EFBIG)
        contents = self._of(inode.ino)
        contents.users += 1
        try:
            await contents.truncate(size, now)
        finally:
            contents.users -= 1
            self._settle(contents)
        await self._drop_set_id(inode.ino, caller.uid)
        self._writer.poke()

    async def _acl_follows_mode(self, ino: int, mode: int, now: int) -> None:
        value = self._tree.xattr(ino, acl.ACCESS)
        if value is not None:
            entries = acl.with_mode(acl.parse(value), mode)
            await self._record(ops.SetXattr(ino, acl.ACCESS, acl.build(entries), 0, now))

    async def _drop_set_id(self, ino: int, uid: int) -> None:
        """Writing takes set-id bits and capabilities away, except from root (as Linux does)."""
        inode = self._tree.find(ino)
        if inode is None:
            return
        if uid != 0 and inode.mode & (stat.S_ISUID | stat.S_ISGID):
            mode = _without_set_id(inode.mode)
            if mode != inode.mode:
                await self._record(ops.Attributes(ino, {"mode": mode, "ctime": clock.now_ns()}))
        if self._tree.xattr(ino, b"security.capability") is not None:
            await self._record(ops.RemoveXattr(ino, b"security.capability", clock.now_ns()))
        contents = self._contents.get(ino)
        if contents is not None:
            contents.unprivileged = uid != 0 or not inode.mode & (stat.S_ISUID | stat.S_ISGID)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        if ino < FIRST_REAL and ino != ROOT:
            return self._the_past().getxattr(ino, name)
        value = self._tree.xattr(self._real(ino), name)
        if value is None:
            raise Refused(e.ENODATA)
        return value

    def listxattr(self, ino: int) -> list[bytes]:
        if ino < FIRST_REAL and ino != ROOT:
            return self._the_past().listxattr(ino)
        return [name for name, _ in self._tree.xattrs(self._real(ino))]

    async def setxattr(
        self, ino: int, name: bytes, value: bytes, flags: int, caller: Caller
    ) -> None:
        self._may_write()
        ino = self._real(ino)
        now = clock.now_ns()
        if len(name) > XATTR_NAME_MAX:
            raise Refused(e.ERANGE)
        if len(value) > XATTR_SIZE_MAX:
            raise Refused(e.E2BIG)
        if name in (acl.ACCESS, acl.DEFAULT):
            if await self._set_acl(ino, name, value, now):
                return
        elif not name.startswith(_NAMESPACES):
            raise Refused(e.EOPNOTSUPP)
        await self._record(ops.SetXattr(ino, name, value, flags, now))

    async def _set_acl(self, ino: int, name: bytes, value: bytes, now: int) -> bool:
        """Bring the mode in step with a new ACL; True if the mode alone now says it all."""
        inode = self._tree.inode(ino)
        if inode.is_symlink:
            raise Refused(e.EOPNOTSUPP)
        entries = acl.parse(value)
        if name == acl.DEFAULT:
            if not inode.is_dir:
                raise Refused(e.EACCES)
            if not entries:
                if self._tree.xattr(ino, name) is not None:
                    await self._record(ops.RemoveXattr(ino, name, now))
                return True
            return False
        if entries:
            mode = acl.mode_of(entries, inode.mode)
            if mode != inode.mode:
                await self._record(ops.Attributes(ino, {"mode": mode, "ctime": now}))
        if not entries or acl.is_minimal(entries):
            if self._tree.xattr(ino, name) is not None:
                await self._record(ops.RemoveXattr(ino, name, now))
            return True
        return False

    async def removexattr(self, ino: int, name: bytes, caller: Caller) -> None:
        self._may_write()
        await self._record(ops.RemoveXattr(self._real(ino), name, clock.now_ns()))

    # ---- open files -------------------------------------------------------------------------

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[int, Inode]:
        """Make a file and open it: (handle, inode)."""
        mode = stat.S_IFREG | mode & 0o7777
        inode = await self._named(lambda t: self._create(t, parent, name, mode, caller))
        return self._opened(inode.ino, flags, caller), inode

    async def open(self, ino: int, flags: int, caller: Caller) -> tuple[int, bool]:
        """Open a file: (handle, whether the kernel's cached pages still hold)."""
        if ino < FIRST_REAL and ino != ROOT:
            handle = self._handle_number()
            self._the_past().open(ino, flags, handle)
            return handle, True
        self._writer.stir()
        ino = self._real(ino)
        inode = self._tree.find(ino)
        if inode is None:
            raise Refused(e.ESTALE)
        if inode.is_dir:
            raise Refused(e.EISDIR)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            self._may_write()
        if flags & os.O_TRUNC:
            await self._truncate(inode, 0, clock.now_ns(), caller)
        keep = ino not in self._stale
        self._stale.discard(ino)
        return self._opened(ino, flags, caller), keep

    def _opened(self, ino: int, flags: int, caller: Caller) -> int:
        contents = self._of(ino)
        contents.opens += 1
        handle = self._handle_number()
        self._handles[handle] = _Handle(contents, flags, caller.uid, self._new_ahead())
        return handle

    def _new_ahead(self) -> ReadAhead:
        most = self._settings.readahead
        if most >= _GROWING:
            most = max(most, min(4 * most, self._settings.memory_cache // 2))
        return ReadAhead(self._settings.readahead, most)

    def _handle_number(self) -> int:
        self._next_handle += 1
        return self._next_handle

    def _of(self, ino: int) -> Contents:
        contents = self._contents.get(ino)
        if contents is None:
            contents = self._contents[ino] = Contents(
                ino,
                self._replica,
                self._chunks,
                self._stage,
                chunk_size=self._params.chunk_size,
                inline_limit=self._params.inline_limit,
                account=self.writeback.account,
                deduplicate=self._find_duplicate if self._dedup_key else None,
                stored=self._note_stored if self._dedup_key else None,
                travelled=self.repack.note,
            )
        return contents

    def _settle(self, contents: Contents) -> None:
        """Forget a file's contents object when nobody needs it."""
        if contents.opens or contents.users or contents.is_dirty:
            return
        if self._contents.get(contents.ino) is contents:  # else it was forgotten, and opened again
            del self._contents[contents.ino]

    def _handle(self, fh: int) -> _Handle:
        handle = self._handles.get(fh)
        if handle is None:
            raise Refused(e.EBADF)
        return handle

    async def read(self, fh: int, offset: int, size: int) -> bytes | memoryview:
        """Up to *size* bytes from *offset*, fewer only at the end of the file."""
        if fh not in self._handles and self.snapshots is not None and self.snapshots.has(fh):
            return await self._read_past(self.snapshots, fh, offset, size)
        handle = self._handle(fh)
        if not handle.readable:
            raise Refused(e.EBADF)
        contents = handle.contents
        noatime = self._settings.atime == "noatime" or self._settings.read_only
        jump = not handle.ahead.goes_on(offset, size)
        if noatime and size <= _AT_ONCE:
            now = contents.read_now(offset, size, whole=not jump)
            if now is not None:
                handle.ahead.jumped(offset + len(now))
                return now
        try:
            # Before the read itself, which may take a round trip: what comes next shares it.
            self._read_ahead(handle, offset, min(size, contents.size - offset))
            awaited = self._chunks.awaited
            data = await contents.read(offset, size, jump=jump)
            if self._chunks.awaited != awaited:
                handle.ahead.late()
        except Refused as no:
            # The tree has no such inode any more: removed by another mount.
            raise Refused(e.ESTALE) from no
        except (Corrupt, Missing, Denied, NoStore) as exc:
            path = (self._tree.path(contents.ino) or b"?").decode("utf-8", "backslashreplace")
            text = f"{path}, bytes {offset} to {offset + size - 1}: {exc}"
            self.errors.add(text)
            if isinstance(exc, Corrupt):
                raise Corrupt(text) from exc
            # Not the store's own errno: EACCES or ENOENT would say something about the file.
            raise Missing(text) from exc
        if not noatime:
            await self._touch_atime(contents.ino)
        return data

    def _read_ahead(self, handle: _Handle, offset: int, length: int) -> None:
        """Fetch what the reader of [offset, offset+length) will want next."""
        if length <= 0 or not self._background.is_running:
            return
        contents = handle.contents
        line = self._chunks.at_once, self._chunks.worth
        ahead = handle.ahead.after(offset, length, contents.size, *line)
        if ahead is not None and (extents := contents.extents(*ahead)):
            piece = handle.ahead.piece(*line)
            self._background.start(self._chunks.fetch_ahead, extents, piece)

    async def _read_past(
        self, past: SnapshotView, fh: int, offset: int, size: int
    ) -> bytes | memoryview:
        try:
            data, ahead = await past.read(fh, offset, size)
        except (Corrupt, Missing) as exc:
            text = f"{past.path(fh)}, bytes {offset} to {offset + size - 1}: {exc}"
            self.errors.add(text)
            if isinstance(exc, Corrupt):
                raise Corrupt(text) from exc
            # Not the store's own errno: EACCES or ENOENT would say something about the file.
            raise Missing(text) from exc
        if ahead:
            self._background.start(self._chunks.fetch_ahead, ahead)
        return data

    async def _touch_atime(self, ino: int) -> None:
        inode = self._tree.find(ino)
        if inode is None or self._writer.frozen is not None:
            return
        now = clock.now_ns()
        if self._settings.atime == "relatime" and not (
            inode.atime_ns <= max(inode.mtime_ns, inode.ctime_ns) or now - inode.atime_ns > _DAY_NS
        ):
            return
        await self._record(ops.Attributes(ino, {"atime": now}))

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        """Write *data* at *offset* (the kernel has chosen it for O_APPEND)."""
        handle = self._handle(fh)
        if not handle.writable:
            raise Refused(e.EBADF)
        self._may_write()
        if offset + len(data) > FILE_SIZE_MAX:
            raise Refused(e.EFBIG)
        contents = handle.contents
        await self._check_quota(contents, offset, len(data))
        await self.writeback.room(len(data))
        if not contents.unprivileged:
            await self._drop_set_id(contents.ino, handle.uid)
        try:
            written = contents.write(offset, data)
        except Refused as no:
            raise Refused(e.ESTALE) from no
        self.writeback.wrote(contents)
        return written

    async def _check_quota(self, contents: Contents, offset: int, size: int) -> None:
        quota = self._params.quota
        if quota is None or self._tree.used + self.writeback.dirty + size <= quota:
            return
        # Close to the limit: count exactly, for overwriting needs no room.
        await self.writeback.flush_all()
        growth = size - self._tree.allocated(contents.ino, offset, offset + size)
        if self._tree.used + growth > quota:
            raise Refused(e.ENOSPC)

    def _check_quota_for_names(self) -> None:
        quota = self._params.quota
        if quota is not None and self._tree.used > quota:
            raise Refused(e.ENOSPC)

    async def flush(self, fh: int) -> None:
        """close(2): what was written is in the state directory, durable, when this returns."""
        if self.snapshots is not None and self.snapshots.has(fh):
            return
        handle = self._handle(fh)
        if not handle.writable:
            return
        await self._stage_file(handle.contents)
        await self.writeback.durability.local()
        self._writer.poke()

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Durable in the store, or here, as the mount option `fsync` says."""
        if self.snapshots is not None and self.snapshots.has(fh):
            return
        soon = SOON if self._settings.fsync == "store" else 0
        await self._stage_file(self._handle(fh).contents, soon)
        await self._make_durable()
        self.repack.begin()

    async def _stage_file(self, contents: Contents, soon: int = 0) -> None:
        error, contents.error = contents.error, None
        try:
            await contents.flush(soon=soon)
        except Refused as no:
            raise Refused(e.ESTALE) from no  # the file is gone: whoever wrote must hear of it
        except Fault as exc:
            self.errors.add(str(exc))
            raise
        if error is not None:
            # Worked this time: the bytes are safe, and nobody was told of the failure before.
            log.info("inode %d is staged after an earlier failure", contents.ino)

    async def _make_durable(self) -> None:
        if self._settings.read_only:
            return
        if self._settings.fsync == "store":
            self._writer.poke(urgent=True)  # on its way while the local disk syncs
        batch = await self.writeback.durability.local()
        if self._settings.fsync == "store":
            try:
                await self._writer.committed(batch, self._settings.deadline)
            except (StoreError, Corrupt) as exc:
                self.errors.add(f"fsync: {exc}")
                raise
        else:
            self._writer.poke()

    async def release(self, fh: int) -> None:
        """The last reference to a handle is gone."""
        handle = self._handles.pop(fh, None)
        if handle is None:
            if self.snapshots is not None:
                self.snapshots.release(fh)
            return
        contents = handle.contents
        contents.opens -= 1
        if contents.opens:
            return
        inode = self._tree.find(contents.ino)
        if inode is None or inode.nlink:
            try:
                if contents.is_dirty:  # written through a mapping after close(2)
                    await self._stage_file(contents)
            finally:
                self._settle(contents)
            return
        self._contents.pop(contents.ino, None)
        self.writeback.account(-contents.dirty)
        contents.dirty = 0
        self._remove_orphan(contents.ino)
        inode.nlink = 0
        if contents.ino in self._known:
            self._ghosts[contents.ino] = inode

    # ---- deduplication ----------------------------------------------------------------------

    def _duplicate_hash(self, data: memoryview | bytearray | bytes) -> bytes:
        assert self._dedup_key is not None
        return blake3(data, key=self._dedup_key).digest()

    def _find_duplicate(self, data: memoryview | bytearray | bytes) -> Extent | None:
        row = self._tree.db.execute(
            # gc may have dropped the pack, or be about to (docs/maintenance.md).
            "SELECT pack, offset, sealed, plain, digest FROM duplicates WHERE hash=?"
            " AND pack IN (SELECT pack FROM packs) AND pack NOT IN (SELECT pack FROM garbage)",
            (self._duplicate_hash(data),),
        ).fetchone()
        if row is None or row[3] != len(data):
            return None
        pack, offset, sealed, plain, digest = row
        return Extent(0, len(data), pack, offset, sealed, plain, 0, digest, None)

    def _note_stored(self, data: memoryview | bytearray | bytes, extent: Extent) -> None:
        self._tree.db.execute(
            "INSERT OR REPLACE INTO duplicates VALUES(?,?,?,?,?,?)",
            (
                self._duplicate_hash(data),
                extent.pack,
                extent.offset,
                extent.sealed,
                extent.plain,
                extent.digest,
            ),
        )

    # ---- common -----------------------------------------------------------------------------

    def _writable(self) -> bool:
        writer = self._writer
        return not self._settings.read_only and writer.frozen is None and writer.barred is None

    def _may_write(self) -> None:
        if not self._writable():
            raise Refused(e.EROFS)

    async def _record(self, op: ops.Operation) -> None:
        """Apply an operation; it is committed in the background."""
        if isinstance(op, ops.Attributes | ops.SetXattr):
            contents = self._contents.get(op.ino)
            if contents is not None:
                contents.unprivileged = False
        self._replica.record(op)
        self._writer.poke()

    async def before_commits(self, touched: Set[int], removed: Set[int]) -> None:
        """Flush what is written to *touched* before another mount's commits change those inodes."""
        await self.writeback.flush_some(touched)
        for ino in removed & self._contents.keys():
            self._contents[ino].look_back()

    def after_commits(self, news: News) -> None:
        """Have the kernel forget what another mount's commits have changed."""
        for note in news.notes:
            self.errors.add(f"conflict: {note}")
        told: list[Invalidation] = []
        for ino in news.inodes & self._contents.keys():
            opened = self._contents[ino]
            opened.unprivileged = False
            if opened.gone is not None and not opened.is_gone:
                opened.gone = None  # it came back
            elif opened.gone is not None and ino in self._known:
                self._ghosts[ino] = opened.gone[0]
        for ino in news.contents | news.inodes:
            if ino in news.contents:
                contents = self._contents.get(ino)
                if contents is not None:
                    contents.generation += 1
                if ino in self._known:
                    self._stale.add(ino)
            if ino in self._known:
                told.append(Invalidation("inode", ino, None, ino not in news.contents))
        if not self._settings.read_only:
            for ino in self._tree.orphans(self._replica.mount):
                kept = self._contents.get(ino)
                if kept is None or not kept.opens:
                    # Its last name went elsewhere, after we had closed it.
                    self._remove_orphan(ino)
        told.extend(
            Invalidation("entry", parent, name)
            for parent, name in news.names
            if parent in self._known or parent == ROOT
        )
        if told:
            self.invalidate(told)

    def attach_kernel(self, tell: Callable[[list[Invalidation]], None]) -> None:
        """Have *tell* called with what the kernel must forget, until `detach_kernel`."""
        self._tell_kernel = tell

    def detach_kernel(self) -> None:
        """No kernel asks any more."""
        self._tell_kernel = None

    def invalidate(self, items: list[Invalidation]) -> None:
        """Have the kernel forget *items*, if the filesystem is mounted."""
        if self._tell_kernel is not None:
            self._tell_kernel(items)

    async def reap_orphans(self) -> None:
        """Remove the files that an earlier process of this mount kept open without a name."""
        for ino in self._tree.orphans(self._replica.mount):
            inode = self._tree.find(ino)
            if inode is not None and inode.nlink == 0:
                while self._cut_step(ino):
                    pass
                self._replica.record(ops.Reap(ino))
                await trio.lowlevel.checkpoint()


def _without_set_id(mode: int) -> int:
    """*mode* without set-user-id, and without set-group-id if that is not mandatory locking."""
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode
