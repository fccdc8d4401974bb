"""When bytes leave memory, how many may wait, and when they are durable.

The order of one close(2) after writing, which is the promise of docs/ordering.md:

    1  seal what was written into staged packs        (FileData.flush)
    2  record the operation that names them           (Replica.record)
    3  append it to the log of operations, and with   (Replica.log)
       it the chunks of a small flush
    4  sync the packs with other chunks, and the log  (Durability)

An fsync(2) with `fsync=store` goes on: packs to the store, then the commit, then the remembered
head. Many closers share one sync.
"""

from __future__ import annotations

import errno as e
import logging
from collections.abc import Callable, Set

import trio

from megafs import supervisor
from megafs.concurrency import Syncs
from megafs.errors import Fault, Full, Refused
from megafs.fs.file_data import FileData
from megafs.fs.ports import ReplicaPort, StagePort, WriterPort

log = logging.getLogger(__name__)

#: A file with this much waiting is flushed while it is still being written.
_FLUSH_AT = 4 << 20
#: Nothing waits in memory longer than this many seconds.
_FLUSH_AGE = 5.0
#: How long a writer waits for room in the stage while the store takes packs.
_ROOM_PATIENCE = 60.0


class Durability:
    """Makes what was recorded survive a power cut; one sync serves all who wait for it.

    synced: how much of the log of operations is, with the packs that it names
    (`OperationLog.position`).
    """

    def __init__(self, replica: ReplicaPort, stage: StagePort) -> None:
        self._replica = replica
        self._stage = stage
        self._under_way: trio.Event | None = None
        self._syncs = Syncs()
        self.synced = 0
        self.last_error: Fault | None = None

    @property
    def is_behind(self) -> bool:
        """Whether there is anything for `local` to do."""
        return self._replica.unlogged > 0 or self._replica.oplog.position > self.synced

    async def local(self) -> int:
        """Return when all that was recorded is durable here.

        Returns the number of the batch that holds the last of it, to wait for with
        `Writer.committed`; it may be open still.
        """
        batch = self._replica.log()
        needed = self._replica.oplog.position
        while self.synced < needed:
            if self._under_way is not None:
                await self._under_way.wait()  # it may have begun before what we need was there
                continue
            self._replica.log()  # those who come meanwhile need no sync of their own
            newest = self._replica.oplog.position
            self._under_way = trio.Event()
            try:
                await self._sync()
            except OSError as exc:
                full = exc.errno in (e.ENOSPC, e.EDQUOT)
                text = f"the state directory cannot be synced: {exc.strerror}"
                self.last_error = Full(text) if full else Fault(text)
                raise self.last_error from exc
            finally:
                self._under_way.set()
                self._under_way = None
            self.synced = newest
        return batch

    async def _sync(self) -> None:
        """Sync the packs, then the log, in one thread, or here.

        Two threads side by side cost 0.95 CPU-ms against 0.57 and were no sooner done (1.2 ms, 1.0
        in turn): the first sync makes the filesystem write down the second file's size too.

        The kernel may have written the log before: after a power cut it may still name bytes that
        are gone.  Nobody was promised those, and the chunks' digests show which they are
        (volume/recovery.py, `_drop_torn`).
        """
        await self._syncs.run(self._sync_now, large=self._stage.unsynced)

    def _sync_now(self) -> None:
        if self._stage.unsynced:
            self._stage.sync()
        self._replica.oplog.sync()


class Writeback:
    """Flushes files in the background and holds writers back when too much waits.

    limit: bytes of written contents that may wait in memory.
    on_clean: called with a file of which nothing waits any more.
    """

    def __init__(
        self,
        replica: ReplicaPort,
        stage: StagePort,
        writer: WriterPort,
        limit: int,
        on_clean: Callable[[FileData], None],
    ) -> None:
        self._replica = replica
        self._stage = stage
        self._writer = writer
        self._limit = limit
        self._files: dict[int, FileData] = {}
        self._wake = trio.Event()
        self._drained = trio.Event()
        self._on_clean = on_clean
        self._stuck: Fault | None = None
        self._warned = -60.0
        #: Why writers get ENOSPC; None while they do not.
        self.refused: Fault | None = None
        self.durability = Durability(replica, stage)
        self.dirty = 0

    def account(self, by: int) -> None:
        """*by* more (or, negative, fewer) bytes wait in memory."""
        self.dirty += by
        if by < 0:
            self._drained.set()
            self._drained = trio.Event()

    def wrote(self, data: FileData) -> None:
        """A file has bytes waiting."""
        self._files[data.ino] = data
        if data.dirty >= _FLUSH_AT or self.dirty > self._limit // 2:
            self._wake.set()

    async def room(self, size: int) -> None:
        """Return when *size* more bytes may be written.

        Raises Refused(ENOSPC) if they could not be staged: the disk of the state directory is full,
        or the store is away and as much waits for it as may.
        """
        patience = trio.current_time() + _ROOM_PATIENCE
        while self.dirty and self.dirty + size > self._limit:
            if self._stuck is not None or trio.current_time() >= patience:
                raise self._refusal(self._stuck or Full("the state directory's disk is too slow"))
            self._wake.set()
            with trio.move_on_at(patience):
                await self._drained.wait()
        while True:
            try:
                self._stage.check_room(self.dirty + size)
                self.refused = None
                return
            except Full as exc:
                away = self._stage.last_error is not None or not self._stage.staged_bytes
                if away or trio.current_time() >= patience:
                    raise self._refusal(exc) from exc
                self._stage.cut()
                self._writer.poke(urgent=True)
                with trio.move_on_at(patience):
                    await self._stage.wait_change()

    def _refusal(self, cause: Fault) -> Refused:
        """ENOSPC for a writer; a program that keeps trying makes one line a minute."""
        self.refused = cause
        now = trio.current_time()
        if now - self._warned >= 60:
            self._warned = now
            log.warning("writes are refused: %s", cause)
        return Refused(e.ENOSPC)

    async def run(self) -> None:
        """Flush files that have much, or old bytes, waiting; never returns."""
        while True:
            with trio.move_on_after(1.0):
                await self._wake.wait()
            self._wake = trio.Event()
            now = trio.current_time()
            pressed = self.dirty > self._limit // 2
            for ino, data in list(self._files.items()):
                if not data.is_dirty:
                    self._files.pop(ino, None)
                    self._on_clean(data)
                elif pressed or data.dirty >= _FLUSH_AT or now - data.dirty_since > _FLUSH_AGE:
                    await self._flush(data)
            if self.durability.is_behind:
                # Operations without a close: durable within about a second all the same.
                try:
                    await self.durability.local()
                except Fault as exc:
                    log.debug("%s", exc)  # whoever needs it to be durable gets the error
                self._writer.poke()

    async def _flush(self, data: FileData) -> None:
        try:
            await data.flush()
        except Refused:
            pass  # the file is gone
        except Exception as unexpected:
            if isinstance(unexpected, Fault):
                exc = unexpected
            elif supervisor.raises():
                raise
            else:
                if self._stuck is None:
                    log.exception("what was written cannot be staged; this is a bug")
                exc = Fault(f"{type(unexpected).__name__}: {unexpected}")
            # Reaches the next fsync or close of this file; the bytes stay in memory.
            data.error = exc
            if self._stuck is None:
                log.error("what was written cannot be staged, will go on trying: %s", exc)
            self._stuck = exc
            self._drained.set()  # whoever waits for room must not wait for this
            self._drained = trio.Event()
            await trio.sleep(1)
            return
        self._stuck = None
        self._writer.poke()

    async def flush_all(self) -> None:
        """Stage everything that waits in memory."""
        for data in list(self._files.values()):
            if data.is_dirty:
                await data.flush()
        self._writer.poke()

    async def flush_some(self, inos: Set[int]) -> None:
        """Stage what waits of these inodes, until nothing of them does."""
        while True:
            waiting = [c for ino, c in self._files.items() if ino in inos and c.is_dirty]
            if not waiting:
                return
            for data in waiting:
                try:
                    await data.flush()
                except Refused:
                    pass
