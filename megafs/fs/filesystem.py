"""The POSIX operations, by families, over one replica; no FUSE types.

    names.py         making, moving and removing names
    attributes.py    changing modes, owners, times, sizes, extended attributes, ACLs
    live_tree.py     looking at the present tree
    snapshot_view.py looking at `.megafs/snapshots`
    open_files.py    reading and writing open files; what close(2) and fsync(2) promise
    orphans.py       files without a name
    core.py          what all of these share

Looking things up is synchronous and answered from the replica: `ls` and `df` never wait for the
network.  What changes the tree becomes one operation (tree/ops.py), applied at once and committed
in the background.  The kernel has checked permissions before it asks (default_permissions).

Raises Refused for a correct "no", Fault when something below failed; mount/fuse.py makes both
errnos.
"""

from __future__ import annotations

import errno as e
import os
import stat
from collections.abc import Awaitable, Callable, Set
from typing import Final, Protocol

from megafs import clock
from megafs.concurrency import Background
from megafs.config import Parameters, Settings
from megafs.errors import Refused
from megafs.fs import callers
from megafs.fs.access_times import AccessTimes
from megafs.fs.attributes import Attributes
from megafs.fs.core import Below, Core
from megafs.fs.live_tree import LiveDirectory, LiveTree
from megafs.fs.names import Names
from megafs.fs.open_files import CLOSED, LiveFile, OpenFile, OpenSnapshotFile, make_durable
from megafs.fs.orphans import Orphans
from megafs.fs.requests import Caller, Invalidation, StatFs
from megafs.fs.snapshot_view import FIRST_LIVE, SnapshotDirectory, SnapshotView, in_snapshots
from megafs.journal.rebase import RemoteChanges
from megafs.tree.inode import NAME_MAX, ROOT, Inode, SetAttr

#: statfs of a volume without quota: what most tools can still add up without overflowing.
_NO_QUOTA = 1 << 50
#: Inodes that statfs shows: numbers do not run out, tools want a number.
_FILES = 1 << 40


class _Tree(Protocol):
    """The questions that the present tree and the snapshots both answer."""

    def lookup(self, parent: int, name: bytes) -> Inode: ...
    def getattr(self, ino: int, /) -> Inode: ...
    def readlink(self, ino: int, /) -> bytes: ...
    def getxattr(self, ino: int, name: bytes, /) -> bytes: ...
    def listxattr(self, ino: int, /) -> list[bytes]: ...
    def open_directory(self, ino: int, /) -> LiveDirectory | SnapshotDirectory: ...
    def remember(self, ino: int, /) -> None: ...
    def forget(self, ino: int, n: int, /) -> None: ...


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
        self.core = Core(below, params, settings, background, dedup_key)
        self.writeback = self.core.writeback
        self.repack = self.core.repack
        self.errors = self.core.errors
        self.snapshots = snapshots
        self._live = LiveTree(self.core, snapshots)
        self._orphans = Orphans(self.core)
        self._names = Names(self.core, self._live, self._orphans)
        self._attributes = Attributes(self.core)
        self._times = AccessTimes(self.core)
        self._tell_kernel: Callable[[list[Invalidation]], None] | None = None
        self._open: dict[int, OpenFile] = {}
        self._directories: dict[int, LiveDirectory | SnapshotDirectory] = {}
        self._last_handle = 0
        below.writer.subscribe(self)

    def _tree_of(self, ino: int) -> _Tree:
        """The present tree or the snapshots, whichever the inode belongs to."""
        if ino >= FIRST_LIVE or ino == ROOT:  # `in_snapshots`, without a call for every request
            return self._live
        return self._of_snapshots()

    def _of_snapshots(self) -> SnapshotView:
        if self.snapshots is None:
            raise Refused(e.ENOENT)
        return self.snapshots

    # ---- looking ----------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode that *name* in *parent* stands for."""
        return self._tree_of(parent).lookup(parent, name)

    def getattr(self, ino: int) -> Inode:
        """The attributes of an inode, also of an unlinked one that the kernel still knows."""
        return self._tree_of(ino).getattr(ino)

    async def load_snapshot(self, ino: int, name: bytes = b"", *, attributes: bool = False) -> None:
        """Read the tree that *ino*, an inode of a snapshot (`in_snapshots`), belongs to.

        Await it right before `lookup`, `opendir` and the like, which are synchronous.
        """
        await self._of_snapshots().load_snapshot(ino, name, attributes=attributes)

    def readlink(self, ino: int) -> bytes:
        target = self._tree_of(ino).readlink(ino)
        if self._times.kept and not in_snapshots(ino):
            self._times.touch(self.core.current(ino))
        return target

    def getxattr(self, ino: int, name: bytes) -> bytes:
        return self._tree_of(ino).getxattr(ino, name)

    def listxattr(self, ino: int, caller: Caller | None = None) -> list[bytes]:
        """The names of the extended attributes that *caller* may see; without one, all."""
        names = self._tree_of(ino).listxattr(ino)
        if caller is None or not any(name.startswith(b"trusted.") for name in names):
            return names
        if callers.sees_trusted(caller):
            return names
        return [name for name in names if not name.startswith(b"trusted.")]

    def remember(self, ino: int) -> None:
        """The kernel knows this inode once more."""
        self._tree_of(ino).remember(ino)

    def forget(self, ino: int, n: int) -> None:
        """The kernel knows this inode *n* times less."""
        self._tree_of(ino).forget(ino, n)

    @property
    def used_bytes(self) -> int:
        """Bytes of file contents in the volume, counting what is not flushed yet."""
        return self.core.used_bytes

    def statfs(self) -> StatFs:
        """Room in the volume: what the quota leaves, or the account if that is less."""
        size = self.core.params.quota
        block = 4096
        used = -(-self.used_bytes // block)
        total = (size if size is not None else _NO_QUOTA) // block
        free = max(0, total - used)
        left = self.core.account_left()
        if left is not None:
            free = min(free, max(0, left - self.core.unsent_bytes) // block)
            total = min(total, used + free)
        free_inodes = _FILES - self.core.tree.files
        return StatFs(block, block, total, free, free, _FILES, free_inodes, free_inodes, NAME_MAX)

    # ---- directories ------------------------------------------------------------------------

    def opendir(self, ino: int) -> int:
        directory = self._tree_of(ino).open_directory(ino)
        self._last_handle += 1
        self._directories[self._last_handle] = directory
        return self._last_handle

    def readdir(self, fh: int, after: int, limit: int) -> list[tuple[bytes, Inode, int]]:
        """Up to *limit* entries whose cookies follow *after*: (name, inode, cookie).

        See `LiveDirectory.read`.
        """
        directory = self._directories[fh]
        if after == 0 and self._times.kept and isinstance(directory, LiveDirectory):
            self._times.touch(directory.ino)
        return directory.read(after, limit)

    def releasedir(self, fh: int) -> None:
        self._directories.pop(fh, None)

    async def fsyncdir(self, fh: int) -> None:
        """The names in a directory are as durable as `fsync` says."""
        await make_durable(self.core)

    # ---- names ------------------------------------------------------------------------------

    def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller
    ) -> Awaitable[Inode]:
        return self._names.create(parent, name, mode, caller, rdev=rdev)

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Awaitable[Inode]:
        return self._names.create(parent, name, stat.S_IFDIR | mode & 0o7777, caller)

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Awaitable[Inode]:
        return self._names.create(parent, name, stat.S_IFLNK | 0o777, caller, target=target)

    def link(self, ino: int, parent: int, name: bytes, caller: Caller) -> Awaitable[Inode]:
        return self._names.link(ino, parent, name)

    def unlink(self, parent: int, name: bytes, caller: Caller) -> Awaitable[None]:
        return self._names.unlink(parent, name)

    def rmdir(self, parent: int, name: bytes, caller: Caller) -> Awaitable[None]:
        return self._names.rmdir(parent, name)

    def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> Awaitable[None]:
        return self._names.rename(parent, name, new_parent, new_name, flags, caller)

    # ---- attributes -------------------------------------------------------------------------

    def setattr(
        self, ino: int, changes: SetAttr, caller: Caller, fh: int | None = None
    ) -> Awaitable[Inode]:
        return self._attributes.setattr(ino, changes, caller)

    async def setxattr(
        self, ino: int, name: bytes, value: bytes, flags: int, caller: Caller
    ) -> None:
        self._attributes.setxattr(ino, name, value, flags, caller)

    async def removexattr(self, ino: int, name: bytes, caller: Caller) -> None:
        self._attributes.removexattr(ino, name)

    # ---- open files -------------------------------------------------------------------------

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[int, Inode]:
        """Make a file and open it: (handle, inode)."""
        inode = await self._names.create(parent, name, stat.S_IFREG | mode & 0o7777, caller)
        return self._opened(inode.ino, flags, caller), inode

    async def open(self, ino: int, flags: int, caller: Caller) -> tuple[int, bool]:
        """Open a file: (handle, whether the kernel's cached pages still hold)."""
        core = self.core
        if in_snapshots(ino):
            file = self._of_snapshots().open(ino, flags)
            return self._add(OpenSnapshotFile(core, file)), True
        core.writer.stir()
        ino = core.current(ino)
        inode = core.tree.find(ino)
        if inode is None:
            raise Refused(e.ESTALE)
        if inode.is_dir:
            raise Refused(e.EISDIR)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            core.check_writable()
        if flags & os.O_TRUNC:
            await self._attributes.truncate(inode, 0, clock.now_ns(), caller)
        stale = core.kernel.stale
        keep = ino not in stale
        stale.discard(ino)
        times = self._times
        if times.kept and keep and not flags & os.O_NOATIME:
            keep = not times.is_due(inode, clock.now_ns())
        return self._opened(ino, flags, caller), keep

    def _opened(self, ino: int, flags: int, caller: Caller) -> int:
        return self._add(
            LiveFile(self.core, self._attributes, self._orphans, self._times, ino, flags, caller)
        )

    def _add(self, file: OpenFile) -> int:
        self._last_handle += 1
        self._open[self._last_handle] = file
        return self._last_handle

    def file(self, fh: int) -> OpenFile:
        """The open file that a handle stands for."""
        return self._open.get(fh, CLOSED)

    def read(self, fh: int, offset: int, size: int) -> Awaitable[bytes | memoryview]:
        """Up to *size* bytes from *offset*, fewer only at the end of the file."""
        return self.file(fh).read(offset, size)

    def write(self, fh: int, offset: int, data: bytes) -> Awaitable[int]:
        """Write *data* at *offset* (the kernel has chosen it for O_APPEND)."""
        return self.file(fh).write(offset, data)

    def flush(self, fh: int) -> Awaitable[None]:
        """close(2): what was written is in the state directory, durable, when this returns."""
        return self.file(fh).flush()

    def fsync(self, fh: int, datasync: bool) -> Awaitable[None]:
        """Durable in the store, or here, as the mount option `fsync` says."""
        return self.file(fh).fsync()

    async def release(self, fh: int) -> None:
        """The last reference to a handle is gone."""
        await self._open.pop(fh, CLOSED).release()

    def keeps(self, ino: int) -> int:
        """This mount's number, if the file's bytes outlive its last name; 0 if not."""
        return self._orphans.keeps(ino)

    async def reap_orphans(self, mount: int) -> None:
        """Remove the files that an earlier process of this mount kept open without a name."""
        await self._orphans.remove_left(mount)

    # ---- other mounts' commits, and the kernel ----------------------------------------------

    async def before_commits(self, touched: Set[int], removed: Set[int]) -> None:
        """Flush what is written to *touched* before another mount's commits change those inodes."""
        await self.writeback.flush_some(touched)
        for ino in removed & self.core.files.keys():
            self.core.files[ino].keep_removed()

    def after_commits(self, news: RemoteChanges) -> None:
        """Tell the kernel to forget everything that another mount's commits have changed."""
        core, kernel = self.core, self.core.kernel
        for note in news.notes:
            self.errors.add(f"conflict: {note}")
        forget: list[Invalidation] = []
        for ino in news.inodes & core.files.keys():
            data = core.files[ino]
            data.unprivileged = False
            if data.gone is not None and not data.is_gone:
                data.gone = None  # it came back
            elif data.gone is not None and ino in kernel:
                kernel.unlinked[ino] = data.gone[0]
        for ino in news.contents | news.inodes:
            if ino in news.contents:
                changed = core.files.get(ino)
                if changed is not None:
                    changed.revision += 1
                if ino in kernel:
                    kernel.stale.add(ino)
            if ino in kernel:
                forget.append(Invalidation("inode", ino, None, ino not in news.contents))
        if not core.settings.read_only:
            self._orphans.remove_closed()
        forget.extend(
            Invalidation("entry", parent, name)
            for parent, name in news.names
            if parent in kernel or parent == ROOT
        )
        if forget:
            self.invalidate(forget)

    def attach_kernel(self, tell: Callable[[list[Invalidation]], None]) -> None:
        """Call *tell* with whatever the kernel must forget, until `detach_kernel`."""
        self._tell_kernel = tell

    def detach_kernel(self) -> None:
        """No kernel asks any more."""
        self._tell_kernel = None

    def invalidate(self, items: list[Invalidation]) -> None:
        """Tell the kernel to forget *items*, if the filesystem is mounted."""
        if self._tell_kernel is not None:
            self._tell_kernel(items)
