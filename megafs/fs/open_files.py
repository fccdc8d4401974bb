"""Open files: reading with read-ahead, writing, and what close(2) and fsync(2) promise."""

from __future__ import annotations

import errno as e
import logging
import os
from typing import Final, Protocol

from megafs.chunks.readahead import ReadAhead
from megafs.errors import Corrupt, Denied, Fault, Missing, NoStore, Refused, StoreError
from megafs.fs.access_times import AccessTimes
from megafs.fs.attributes import Attributes
from megafs.fs.core import Core
from megafs.fs.file_data import FileData
from megafs.fs.orphans import Orphans
from megafs.fs.repack import SOON
from megafs.fs.requests import Caller
from megafs.fs.snapshot_view import SnapshotFile
from megafs.tree.inode import FILE_SIZE_MAX

log = logging.getLogger(__name__)

#: A read up to this size, out of sequence, is answered without a plan if its bytes are here.
_AT_ONCE = 32 << 10


class OpenFile(Protocol):
    """An open file, of the present tree or of a snapshot."""

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        """Up to *size* bytes from *offset*, fewer only at the end of the file."""

    async def write(self, offset: int, data: bytes) -> int:
        """Write *data* at *offset* (the kernel has chosen it for O_APPEND)."""

    async def flush(self) -> None:
        """close(2): what was written is in the state directory, durable, when this returns."""

    async def fsync(self) -> None:
        """Durable in the store, or here, as the mount option `fsync` says."""

    async def release(self) -> None:
        """The last reference to this open file is gone."""


class LiveFile:
    """An open file of the present tree, with the reading pattern of whoever opened it.

    data: shared by all who have the same file open.  flags: of open(2).  caller: who opened it.
    """

    __slots__ = (
        "_ahead", "_attributes", "_caller", "_core", "_noatime", "_orphans", "_times", "data",
        "readable", "writable",
    )  # fmt: skip

    def __init__(
        self,
        core: Core,
        attributes: Attributes,
        orphans: Orphans,
        times: AccessTimes,
        ino: int,
        flags: int,
        caller: Caller,
    ) -> None:
        self._core = core
        self._attributes = attributes
        self._orphans = orphans
        self._caller = caller
        self._ahead = ReadAhead(*core.readahead)
        self._times = times
        self._noatime = not times.kept or bool(flags & os.O_NOATIME)
        self.readable = flags & os.O_ACCMODE != os.O_WRONLY
        self.writable = flags & os.O_ACCMODE != os.O_RDONLY
        self.data = core.file(ino)
        self.data.opens += 1

    # ---- reading ----------------------------------------------------------------------------

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        if not self.readable:
            raise Refused(e.EBADF)
        data, ahead = self.data, self._ahead
        jump = not ahead.goes_on(offset, size)
        if self._noatime and size <= _AT_ONCE:
            now = data.read_now(offset, size, whole=not jump)
            if now is not None:
                ahead.jumped(offset + len(now))
                return now
        chunks = self._core.chunks
        try:
            # Before the read itself, which may take a round trip: what comes next shares it.
            self._read_ahead(offset, min(size, data.size - offset))
            awaited = chunks.awaited
            found = await data.read(offset, size, jump=jump)
            if chunks.awaited != awaited:
                ahead.late()
        except Refused as no:
            # The tree has no such inode any more: removed by another mount.
            raise Refused(e.ESTALE) from no
        except (Corrupt, Missing, Denied, NoStore) as exc:
            path = (self._core.tree.path(data.ino) or b"?").decode("utf-8", "backslashreplace")
            raise _unreadable(self._core, path, offset, size, exc) from exc
        if not self._noatime:
            self._times.touch(data.ino)
        return found

    def _read_ahead(self, offset: int, length: int) -> None:
        """Fetch what the reader of [offset, offset+length) will want next."""
        core = self._core
        if length <= 0 or not core.background.is_running:
            return
        line = core.chunks.at_once, core.chunks.worth
        ahead = self._ahead.after(offset, length, self.data.size, *line)
        if ahead is not None and (extents := self.data.extents(*ahead)):
            core.background.start(core.chunks.fetch_ahead, extents, self._ahead.piece(*line))

    # ---- writing ----------------------------------------------------------------------------

    async def write(self, offset: int, data: bytes) -> int:
        if not self.writable:
            raise Refused(e.EBADF)
        core = self._core
        core.check_writable()
        if offset + len(data) > FILE_SIZE_MAX:
            raise Refused(e.EFBIG)
        file = self.data
        if core.params.quota is not None:
            await self._check_quota(core.params.quota, offset, len(data))
        await core.writeback.room(len(data))
        if not file.unprivileged:
            self._attributes.drop_privileges(file.ino, self._caller)
        try:
            written = file.write(offset, data)
        except Refused as no:
            raise Refused(e.ESTALE) from no
        core.writeback.wrote(file)
        return written

    async def _check_quota(self, quota: int, offset: int, size: int) -> None:
        core = self._core
        if core.used_bytes + size <= quota:
            return
        # Close to the limit: count exactly, for overwriting needs no room.
        await core.writeback.flush_all()
        growth = size - core.tree.allocated(self.data.ino, offset, offset + size)
        if core.tree.used + growth > quota:
            raise Refused(e.ENOSPC)

    async def flush(self) -> None:
        if not self.writable:
            return
        await _stage(self._core, self.data)
        await self._core.writeback.durability.local()
        self._core.writer.poke()

    async def fsync(self) -> None:
        soon = SOON if self._core.settings.fsync == "store" else 0
        await _stage(self._core, self.data, soon)
        await make_durable(self._core)
        self._core.repack.begin()

    async def release(self) -> None:
        core, data = self._core, self.data
        data.opens -= 1
        if data.opens:
            return
        inode = core.tree.find(data.ino)
        if inode is None or inode.nlink:
            try:
                if data.is_dirty:  # written through a mapping after close(2)
                    await _stage(core, data)
            finally:
                core.drop_unused(data)
            return
        core.files.pop(data.ino, None)
        core.writeback.account(-data.dirty)
        data.dirty = 0
        self._orphans.remove(data.ino)
        inode.nlink = 0
        if data.ino in core.kernel:
            core.kernel.unlinked[data.ino] = inode


class OpenSnapshotFile:
    """An open file of a snapshot: it can only be read."""

    def __init__(self, core: Core, file: SnapshotFile) -> None:
        self._core = core
        self._file = file

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        try:
            data, ahead = await self._file.read(offset, size)
        except (Corrupt, Missing) as exc:
            raise _unreadable(self._core, self._file.path(), offset, size, exc) from exc
        if ahead:
            self._core.background.start(self._core.chunks.fetch_ahead, ahead)
        return data

    async def write(self, offset: int, data: bytes) -> int:
        raise Refused(e.EBADF)

    async def flush(self) -> None:
        pass

    async def fsync(self) -> None:
        pass

    async def release(self) -> None:
        pass


class ClosedFile:
    """Answers EBADF: what a handle stands for that was never given out, or is released."""

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        raise Refused(e.EBADF)

    async def write(self, offset: int, data: bytes) -> int:
        raise Refused(e.EBADF)

    async def flush(self) -> None:
        raise Refused(e.EBADF)

    async def fsync(self) -> None:
        raise Refused(e.EBADF)

    async def release(self) -> None:
        pass


CLOSED: Final = ClosedFile()


async def make_durable(core: Core) -> None:
    """Return when all that was recorded is as durable as the mount option `fsync` says."""
    if core.settings.read_only:
        return
    if core.settings.fsync == "store":
        core.writer.poke(urgent=True)  # on its way while the local disk syncs
    batch = await core.writeback.durability.local()
    if core.settings.fsync == "store":
        try:
            await core.writer.committed(batch, core.settings.deadline)
        except (StoreError, Corrupt) as exc:
            core.errors.add(f"fsync: {exc}")
            raise
    else:
        core.writer.poke()


async def _stage(core: Core, data: FileData, soon: int = 0) -> None:
    """Bring what was written to a file into the stage.  soon: see `FileData.flush`."""
    error, data.error = data.error, None
    try:
        await data.flush(soon=soon)
    except Refused as no:
        raise Refused(e.ESTALE) from no  # the file is gone: whoever wrote must hear of it
    except Fault as exc:
        core.errors.add(str(exc))
        raise
    if error is not None:
        # Worked this time: the bytes are safe, and nobody was told of the failure before.
        log.info("inode %d is staged after an earlier failure", data.ino)


def _unreadable(core: Core, path: str, offset: int, size: int, cause: Fault) -> Fault:
    """The fault of a read, which names the file; EIO for the program."""
    text = f"{path}, bytes {offset} to {offset + size - 1}: {cause}"
    core.errors.add(text)
    if isinstance(cause, Corrupt):
        return Corrupt(text)
    # Not the store's own errno: EACCES or ENOENT would say something about the file.
    return Missing(text)
