"""The FUSE adapter: what the kernel asks, put to a FileSystem; the only importer of pyfuse3.

Nothing is decided here.  Each handler turns the kernel's arguments into the types of
`fs/filesystem.py`, calls one method and turns the answer back.  Whatever a handler raises becomes
an errno in one place (`RequestGuard`): any exception but FUSEError that leaves a handler would end
the mount for everybody.

Facts of pyfuse3 3.5 over libfuse 3.14 that the FileSystem below relies on:

- The kernel checks permissions (``default_permissions`` is always on) and has applied the umask to
  the mode of what is created.
- O_TRUNC comes with open(), not as a truncation before it.  Set-id bits that must go with a new
  owner or a stranger's write are taken away by the kernel, through setattr.
- Reads and writes come in pieces of at most 1 MiB (libfuse's FUSE_MAX_MAX_PAGES, 256 pages).
- There is no handler for fallocate, copy_file_range, lseek (SEEK_HOLE), ioctl, O_TMPFILE or locks:
  the kernel answers EOPNOTSUPP for the first few, and keeps locks to this machine.
- One mount per process: the module has global state.

Lookup counts: a reply that hands an inode to the kernel adds one (`FileSystem.remember`), and
FORGET takes them away.  Between the FileSystem's answer and the reply nothing is awaited, so
nobody can drop an inode in between.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

import pyfuse3
import trio
from msgspec import Struct

from megafs.concurrency import offload
from megafs.config import Settings
from megafs.errors import Fault, MegafsError, MountFailed, Refused, leaf
from megafs.fs.requests import Caller, Invalidation
from megafs.fs.served import ServedFileSystem
from megafs.fs.snapshot_view import attributes_may_change, in_snapshots
from megafs.metrics import Registry
from megafs.supervisor import keep_running
from megafs.tree.inode import Inode, SetAttr

log = logging.getLogger(__name__)

# More requests than this wait in the kernel.  It bounds memory (a waiting write holds its up to
# 1 MiB), and must be far above the number of programs that may hang on a store that is down, for
# one more `ls` needs a task, too.
MAX_TASKS = 256
MIN_TASKS = 8

# st_blksize, which stdio and Python take as the size of their buffers: a request costs some
# 100 microseconds whatever its size, so 4 KiB would make every buffered writer crawl.
BLOCK_SIZE = 128 << 10

# Invalidations that may wait until the kernel is told.  One is some 200 bytes.
MAX_WAITING = 100_000

_NAMES_PER_BATCH = 64


class _Count:
    """How one kind of request has fared."""

    __slots__ = ("failed", "refused", "requests", "seconds")

    def __init__(self, op: str, metrics: Registry) -> None:
        name = "megafs_fuse"
        self.requests = metrics.counter(f"{name}_requests", "Requests of the kernel.", op=op)
        self.refused = metrics.counter(
            f"{name}_refused", "Requests answered with an errno that is no fault.", op=op
        )
        self.failed = metrics.counter(f"{name}_failed", "Requests that failed.", op=op)
        self.seconds = metrics.counter(
            f"{name}_answer", "Time until the answer, waiting included.", "seconds", op=op
        )


class RequestGuard:
    """Turns whatever a handler raises into the errno the kernel gets; counts; logs faults once."""

    #: The same fault is logged again only after this many seconds.
    QUIET = 60.0

    def __init__(
        self, metrics: Registry | None = None, on_fault: Callable[[str], None] | None = None
    ) -> None:
        """on_fault: called with what nobody expected; faults are noted where they happen."""
        self._metrics = metrics or Registry()
        self._on_fault = on_fault
        self._logged: dict[tuple[str, str], tuple[float, int]] = {}
        self.counts: dict[str, _Count] = {}
        self.open: set[_Request] = set()

    def __call__(self, op: str) -> _Request:
        return _Request(self, op)

    def count(self, op: str) -> _Count:
        """Return the counters of *op*."""
        count = self.counts[op] = _Count(op, self._metrics)
        return count

    def errno_of(self, op: str, exc: BaseException, count: _Count) -> int | None:
        """Return the errno for *exc*, or None if it must pass (a cancellation)."""
        cause = leaf(exc)  # pyfuse3 does not look inside an ExceptionGroup
        if isinstance(cause, pyfuse3.FUSEError):
            count.refused.add()
            return int(cause.errno)
        if isinstance(cause, Refused):
            count.refused.add()
            return cause.errno
        if not isinstance(cause, Exception):
            return None
        count.failed.add()
        self._log(op, exc, cause)
        if isinstance(cause, MegafsError):
            return cause.errno
        return errno.ENOMEM if isinstance(cause, MemoryError) else errno.EIO

    def _log(self, op: str, exc: BaseException, cause: Exception) -> None:
        text = f"{type(cause).__name__}: {cause}"
        now = time.monotonic()
        last, muted = self._logged.get((op, text), (-self.QUIET, 0))
        if now - last < self.QUIET:
            self._logged[(op, text)] = (last, muted + 1)
            return
        if len(self._logged) >= 256:  # texts may differ for ever
            self._logged.clear()
        self._logged[(op, text)] = (now, 0)
        again = f" ({muted} more like it since)" if muted else ""
        if isinstance(cause, Fault):
            log.error("%s failed: %s%s", op, cause, again)
            log.debug("%s failed", op, exc_info=exc)
        else:
            log.error("%s failed: %s%s; this is a bug", op, text, again, exc_info=exc)
            if self._on_fault is not None:
                self._on_fault(f"{op}: {text}")


class _Request:
    """One request that is being answered."""

    __slots__ = ("_guard", "op", "start")

    def __init__(self, guard: RequestGuard, op: str) -> None:
        self._guard = guard
        self.op = op

    def __enter__(self) -> None:
        self.start = time.perf_counter()
        self._guard.open.add(self)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        guard = self._guard
        guard.open.discard(self)
        count = guard.counts.get(self.op) or guard.count(self.op)
        count.requests.add()
        count.seconds.add(time.perf_counter() - self.start)
        if exc is None:
            return
        number = guard.errno_of(self.op, exc, count)
        if number is not None:
            raise pyfuse3.FUSEError(number) from exc


class Presentation(Struct, frozen=True):
    """How inodes are shown to the kernel.  Timeouts in seconds."""

    entry_timeout: float = 60.0
    attr_timeout: float = 60.0
    negative_timeout: float = 1.0
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None

    @classmethod
    def of(cls, settings: Settings) -> Presentation:
        """The presentation that *settings* ask for."""
        strict = settings.consistency == "strict"
        return cls(
            entry_timeout=settings.entry_timeout,
            attr_timeout=settings.attr_timeout,
            # Strict asks that a name made elsewhere be seen at once.
            negative_timeout=0.0 if strict else settings.negative_timeout,
            uid=settings.uid,
            gid=settings.gid,
            umask=settings.umask,
        )

    def show(self, inode: Inode) -> pyfuse3.EntryAttributes:
        """Return *inode* as the kernel is to see it."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode.ino
        if attributes_may_change(inode.ino):  # it may turn out to be closed to whoever asks
            entry.entry_timeout = entry.attr_timeout = 0.0
        else:
            entry.entry_timeout = self.entry_timeout
            entry.attr_timeout = self.attr_timeout
        entry.st_mode = inode.mode if self.umask is None else self._masked(inode.mode, self.umask)
        entry.st_nlink = inode.nlink
        entry.st_uid = inode.uid if self.uid is None else self.uid
        entry.st_gid = inode.gid if self.gid is None else self.gid
        entry.st_rdev = inode.rdev
        entry.st_size = inode.size
        entry.st_blksize = BLOCK_SIZE
        entry.st_blocks = (inode.blocks + 511) // 512
        entry.st_atime_ns = inode.atime_ns
        entry.st_mtime_ns = inode.mtime_ns
        entry.st_ctime_ns = inode.ctime_ns
        return entry

    @staticmethod
    def _masked(mode: int, umask: int) -> int:
        return stat.S_IFMT(mode) | (0o777 & ~umask)

    def absent(self) -> pyfuse3.EntryAttributes:
        """Return the answer "there is no such name", which the kernel may keep for a while."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = self.negative_timeout
        return entry


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(uid=ctx.uid, gid=ctx.gid, pid=ctx.pid, umask=ctx.umask)


class Adapter(pyfuse3.Operations):
    """pyfuse3's handlers over one filesystem."""

    supports_dot_lookup = True
    # With it the kernel would never again believe a file's size from us, so that what another
    # mount appends would stay unseen.
    enable_writeback_cache = False

    def __init__(
        self,
        fs: ServedFileSystem,
        presentation: Presentation,
        metrics: Registry | None = None,
        on_fault: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__()
        self._fs = fs
        self._presentation = presentation
        self._request = RequestGuard(metrics, on_fault)
        self._directories: dict[int, int] = {}  # handle -> inode
        #: Set when the kernel has been answered for the first time.
        self.started = trio.Event()
        # The kernel enforces ACLs, the filesystem keeps mode and ACL in step and hands default
        # ACLs down; only offered by a FileSystem that does its part.
        self.enable_acl = fs.posix_acls

    def waiting(self) -> dict[str, float]:
        """How long the requests that are not answered yet have waited: the longest by kind."""
        now = time.perf_counter()
        longest: dict[str, float] = {}
        for request in self._request.open:
            longest[request.op] = max(longest.get(request.op, 0.0), now - request.start)
        return longest

    def init(self) -> None:
        self.started.set()

    def _new(self, inode: Inode) -> pyfuse3.EntryAttributes:
        """Hand *inode* to the kernel, which now knows it once more."""
        self._fs.remember(inode.ino)
        return self._presentation.show(inode)

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        with self._request("lookup"):
            try:
                if in_snapshots(parent_inode):
                    await self._fs.load_snapshot(parent_inode, name)
                return self._new(self._fs.lookup(parent_inode, name))
            except Refused as no:
                if no.errno == errno.ENOENT and self._presentation.negative_timeout > 0:
                    return self._presentation.absent()
                raise

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, n in inode_list:
            try:
                self._fs.forget(ino, n)
            except Exception:  # nobody waits for an answer, and raising would end the mount
                log.exception("forget of inode %d failed; this is a bug", ino)

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        with self._request("getattr"):
            if in_snapshots(inode):
                await self._fs.load_snapshot(inode, attributes=True)
            return self._presentation.show(self._fs.getattr(inode))

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        with self._request("setattr"):
            changes = SetAttr(
                mode=attr.st_mode if fields.update_mode else None,
                uid=attr.st_uid if fields.update_uid else None,
                gid=attr.st_gid if fields.update_gid else None,
                size=attr.st_size if fields.update_size else None,
                # "now" has been replaced by the time of the request before it gets here.
                atime_ns=attr.st_atime_ns if fields.update_atime else None,
                mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            )
            return self._presentation.show(await self._fs.setattr(inode, changes, _caller(ctx), fh))

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        with self._request("readlink"):
            if in_snapshots(inode):
                await self._fs.load_snapshot(inode)
            return self._fs.readlink(inode)

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        with self._request("mknod"):
            return self._new(await self._fs.mknod(parent_inode, name, mode, rdev, _caller(ctx)))

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        with self._request("mkdir"):
            return self._new(await self._fs.mkdir(parent_inode, name, mode, _caller(ctx)))

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        with self._request("symlink"):
            return self._new(await self._fs.symlink(parent_inode, name, target, _caller(ctx)))

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        with self._request("link"):
            return self._new(await self._fs.link(inode, new_parent_inode, new_name, _caller(ctx)))

    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        with self._request("unlink"):
            await self._fs.unlink(parent_inode, name, _caller(ctx))

    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        with self._request("rmdir"):
            await self._fs.rmdir(parent_inode, name, _caller(ctx))

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        with self._request("rename"):
            await self._fs.rename(
                parent_inode_old, name_old, parent_inode_new, name_new, flags, _caller(ctx)
            )

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        with self._request("open"):
            if in_snapshots(inode):
                await self._fs.load_snapshot(inode)
            fh, keep_cache = await self._fs.open(inode, flags, _caller(ctx))
            return pyfuse3.FileInfo(fh=fh, keep_cache=keep_cache)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        with self._request("create"):
            fh, inode = await self._fs.create(parent_inode, name, mode, flags, _caller(ctx))
            return pyfuse3.FileInfo(fh=fh, keep_cache=True), self._new(inode)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        with self._request("read"):
            # A memoryview is as good: pyfuse3 takes any contiguous buffer.
            return await self._fs.read(fh, off, size)  # type: ignore[return-value]

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        with self._request("write"):
            return await self._fs.write(fh, off, buf)

    async def flush(self, fh: int) -> None:
        with self._request("flush"):
            await self._fs.flush(fh)

    async def release(self, fh: int) -> None:
        with self._request("release"):
            await self._fs.release(fh)

    async def fsync(self, fh: int, datasync: bool) -> None:
        with self._request("fsync"):
            await self._fs.fsync(fh, datasync)

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        with self._request("opendir"):
            if in_snapshots(inode):
                await self._fs.load_snapshot(inode)
            fh = self._fs.opendir(inode)
            self._directories[fh] = inode
            return fh

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        # Cookies: 1 follows ".", 2 follows "..", and n + 2 follows the entry with cookie n.
        with self._request("readdir"):
            if in_snapshots(self._directories[fh]):
                await self._fs.load_snapshot(self._directories[fh])
            if start_id < 2 and not self._reply_dots(fh, start_id, token):
                return
            after = max(start_id - 2, 0)
            while True:
                entries = self._fs.readdir(fh, after, _NAMES_PER_BATCH)
                for name, inode, cookie in entries:
                    if not pyfuse3.readdir_reply(
                        token, name, self._presentation.show(inode), cookie + 2
                    ):
                        return
                    self._fs.remember(inode.ino)
                    after = cookie
                if len(entries) < _NAMES_PER_BATCH:
                    return

    def _reply_dots(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> bool:
        """Answer with "." and "..", which the kernel does not count as lookups."""
        here = self._directories[fh]
        dots = [(b".", here), (b"..", self._parent(here))]
        for i, (name, ino) in enumerate(dots[start_id:], start_id + 1):
            entry = pyfuse3.EntryAttributes()
            entry.st_ino = ino
            entry.st_mode = stat.S_IFDIR | 0o755  # only the type is used
            if not pyfuse3.readdir_reply(token, name, entry, i):
                return False
        return True

    def _parent(self, ino: int) -> int:
        try:
            return self._fs.lookup(ino, b"..").ino
        except Refused:  # removed while open: it has no parent any more
            return ino

    async def releasedir(self, fh: int) -> None:
        with self._request("releasedir"):
            self._directories.pop(fh, None)
            self._fs.releasedir(fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        with self._request("fsyncdir"):
            await self._fs.fsyncdir(fh)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        with self._request("statfs"):
            have = self._fs.statfs()
            data = pyfuse3.StatvfsData()
            data.f_bsize = have.bsize
            data.f_frsize = have.frsize
            data.f_blocks = have.blocks
            data.f_bfree = have.bfree
            data.f_bavail = have.bavail
            data.f_files = have.files
            data.f_ffree = have.ffree
            data.f_favail = have.favail
            data.f_namemax = have.namemax
            return data

    async def setxattr(
        self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        with self._request("setxattr"):
            # pyfuse3 has checked XATTR_CREATE and XATTR_REPLACE through getxattr() before it calls
            # this, without a pause in between.
            await self._fs.setxattr(inode, name, value, 0, _caller(ctx))

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        with self._request("getxattr"):
            if in_snapshots(inode):
                await self._fs.load_snapshot(inode, attributes=True)
            return self._fs.getxattr(inode, name)

    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        with self._request("listxattr"):
            if in_snapshots(inode):
                await self._fs.load_snapshot(inode, attributes=True)
            return self._fs.listxattr(inode, _caller(ctx))

    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        with self._request("removexattr"):
            await self._fs.removexattr(inode, name, _caller(ctx))


class InvalidationQueue:
    """Tells the kernel what it must forget, from a thread.

    Telling can block: the kernel wants the directory's lock, which a request that waits for us may
    hold.  So the event loop never does it, and items of the same name are told once.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, int, bytes | None], Invalidation] = {}
        self._wake = trio.Event()
        self._telling = threading.Lock()
        self._closed = False
        self._lost = 0

    def add(self, items: list[Invalidation]) -> None:
        """Queue *items*; never waits.  To be called on the event loop."""
        for item in items:
            key = (item.kind, item.ino, item.name)
            known = self._waiting.get(key)
            if known is None and len(self._waiting) >= MAX_WAITING:
                self._lost += 1
                if self._lost == 1:
                    log.warning(
                        "the kernel cannot be told of changes as fast as they come: "
                        "names and attributes may be stale until their timeout"
                    )
                continue
            if known is not None and not known.attr_only:
                continue  # the one that waits already covers more
            self._waiting[key] = item
        if self._waiting:
            self._wake.set()

    async def run(self) -> None:
        """Tell the kernel, for ever."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._waiting:
                batch = [self._waiting.pop(k) for k in list(self._waiting)[:256]]
                await offload(self._tell, batch, kind="kernel", abandon=True)

    def _tell(self, batch: list[Invalidation]) -> None:
        for item in batch:
            with self._telling:
                if self._closed:
                    return
                try:
                    if item.kind == "entry" and item.name is not None:
                        pyfuse3.invalidate_entry(item.ino, item.name)
                    else:
                        pyfuse3.invalidate_inode(item.ino, item.attr_only)
                except OSError as exc:
                    # ENOENT: the kernel does not know it, which is what we want.
                    if exc.errno not in (errno.ENOENT, errno.ENOTCONN, errno.ENODEV):
                        log.warning("the kernel did not take news of %s: %s", item, exc)

    def close(self, patience: float) -> bool:
        """Tell nothing more.  Return whether no thread is left inside the kernel."""
        self._closed = True
        if not self._telling.acquire(timeout=patience):
            return False
        self._telling.release()
        return True


class KernelMount:
    """One FileSystem at one mountpoint.

    Use: `open()`, then `serve()` in a task until it returns, then `close()`.
    """

    def __init__(
        self,
        fs: ServedFileSystem,
        mountpoint: str,
        presentation: Presentation,
        options: Sequence[str] = (),
        *,
        metrics: Registry | None = None,
        on_fault: Callable[[str], None] | None = None,
    ) -> None:
        """options: further mount options for libfuse and the kernel, "ro" for example."""
        self._fs = fs
        self._mountpoint = mountpoint
        self._options = set(pyfuse3.default_options) | set(options)
        self._adapter = Adapter(fs, presentation, metrics, on_fault)
        self._invalidations = InvalidationQueue()
        self._scope = trio.CancelScope()
        self._open = False

    @property
    def started(self) -> trio.Event:
        """Set when the kernel has begun to ask."""
        return self._adapter.started

    def waiting(self) -> dict[str, float]:
        """How long the requests that are not answered yet have waited: the longest by kind."""
        return self._adapter.waiting()

    def open(self, path: str | None = None) -> None:
        """Mount.  Requests wait until `serve` runs.

        path: another name of the mountpoint, to mount by; `close` must not unmount then.
        """
        path = path or self._mountpoint
        failure: RuntimeError | None = None
        with _stderr_text() as said:
            try:
                pyfuse3.init(self._adapter, path, self._options)
                self._open = True
            except RuntimeError as exc:
                failure = exc
        if failure is not None:
            raise MountFailed(
                f"cannot mount at {self._mountpoint}:"
                f" {(_reason(said()) or str(failure)).replace(path, self._mountpoint)}"
            ) from failure
        self._fs.attach_kernel(self._invalidations.add)

    async def serve(self) -> None:
        """Answer the kernel until the mount has gone or `stop` was called."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_running, "telling the kernel", self._invalidations.run)
                await pyfuse3.main(min_tasks=MIN_TASKS, max_tasks=MAX_TASKS)
                nursery.cancel_scope.cancel()

    def stop(self, patience: float = 5.0) -> None:
        """Let `serve` return: take no more requests, give those under way *patience* seconds."""
        if self._open:
            self._scope.deadline = min(self._scope.deadline, trio.current_time() + patience)
            pyfuse3.terminate()

    def close(self, *, unmount: bool) -> None:
        """Give everything back after `serve` has returned.

        unmount: detach the mountpoint first if it is still there; files that are still open there
            answer ENOTCONN from then on.
        """
        if not self._open:
            return
        self._open = False
        self._fs.detach_kernel()
        if self._invalidations.close(patience=2.0):
            pyfuse3.close(unmount=unmount)
        else:
            # A thread is inside the kernel with the session in its hands.  Freeing it would be
            # worse than leaving it to the end of the process, which is near.
            log.warning("the kernel still holds news; the mount ends with the process")


def _reason(said: str) -> str:
    """The error that libfuse or fusermount3 wrote, as one line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return "; ".join(line.removeprefix("fuse: ").removeprefix("fusermount3: ") for line in lines)


@contextmanager
def _stderr_text() -> Iterator[Callable[[], str]]:
    """Catch what C code and its children write to file descriptor 2 during the block."""
    kept = os.dup(2)
    caught = os.memfd_create("megafs-stderr")
    text = b""

    def said() -> str:
        return text.decode(errors="replace")

    try:
        os.dup2(caught, 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            text = os.pread(caught, 1 << 16, 0)
    finally:
        os.close(kept)
        os.close(caught)
