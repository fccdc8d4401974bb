"""Ranges of packs on the local disk, so that they are fetched once.

What is cached are the sealed bytes as they lie in the store, of objects named packs/* and no
others: those never change, and whoever reads them decrypts and thereby verifies them.  If that
fails, the reader calls `forget()` and asks once more, and the bytes come from the store.

The index lies in memory (cache_index.py), filled from cache_directory.py at the start; a reader's
bytes come by pread from files that are kept open.  However many readers want the same bytes, one
fetches them.  Everything that writes happens in one background task, in batches, in threads: the
reader that fetched does not wait for it.  Access times are written back now and then.

The size limit is one for the whole directory, in blocks as du counts them, and holds at every
moment: room is made before a write.  The same goes for the space that is left free for others.

A cache that fails in any way (a full, broken, read-only or vanished disk, a damaged table) costs
speed, never an error: reads go to the store, one line is logged, and it is tried again later.
"""

from __future__ import annotations

import contextvars
import copy
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import trio

from megafs.buffers import aligned
from megafs.concurrency import offload
from megafs.errors import StoreError
from megafs.metrics import Registry
from megafs.stores.abilities import DiskCache
from megafs.stores.base import Buffer, Health, ObjectStore, check_name
from megafs.stores.disk_cache.cache_directory import (
    PREFIX,
    CacheDirectory,
    Measured,
    file_name,
)
from megafs.stores.disk_cache.cache_entries import CacheEntry
from megafs.stores.disk_cache.cache_index import CacheIndex, Drops
from megafs.stores.disk_cache.fetches import Fetch, Fetches
from megafs.stores.disk_cache.range_file import RangeFile
from megafs.stores.limit import BACKGROUND, URGENT, at_priority, current_level

log = logging.getLogger(__name__)

#: Bytes read but not written yet; more are not cached.
QUEUE = 24 << 20
#: Files kept open.
HANDLES = 128

# What one round of the background task writes, at most.
_BATCH_COUNT = 16
_BATCH_BYTES = 8 << 20
# A read as large as this is copied on the loop if the kernel has it in memory: 0.1 ms at most.
_IN_PLACE = 512 << 10
# Seconds: a disk that takes longer to open or to read is as good as none.
_SLOW_START = 10.0
_SLOW_READ = 10.0
# Seconds that read-ahead waits for the disk to take what was read before it.
_SLOW_WRITE = 0.5
# Seconds between looks at the free space, and at the access times to be written back.
_TICK = 30.0
# Seconds that nothing is written after the disk was full, and between attempts to use a sick one.
_PAUSE = 60.0


# `list` is a method's name below.
Row = list[CacheEntry]
Touches = list[tuple[float, str]]


class DiskCached(DiskCache):
    """*store*, with ranges of its packs on the local disk.

    directory: for this cache alone; made when first used.
    size_limit: the most bytes of disk it takes.
    min_free: bytes of the file system that it leaves to others.

    The background task starts with the first use and ends in aclose(), which must be called; it
    is a system task of trio, so that a store need not be opened within a nursery, and lets nothing
    but cancellation out.
    """

    def __init__(
        self,
        store: ObjectStore,
        directory: Path | str,
        size_limit: int,
        min_free: int = 0,
        *,
        metrics: Registry | None = None,
        queue: int = QUEUE,
        handles: int = HANDLES,
    ) -> None:
        super().__init__(store)
        self._directory = os.fspath(directory)
        self._limit = size_limit
        # What cache.db and the directories may grow by in a round: two pages for each row changed.
        self._slack = min(8 << 20, max(256 << 10, size_limit // 16))
        self._rows = self._slack // 8192
        self._min_free = min_free
        self._queue_limit = queue

        # Owned by the loop; the background task hands copies to its threads.
        self._index = CacheIndex(handles, self._wake_writer)
        self._scratch = memoryview(aligned(_IN_PLACE))
        self._fetches = Fetches()
        self._newest = 0  # the number of the last entry that came
        self._coming = 0  # bytes that read-ahead is fetching
        self._room = trio.Event()  # set when there may be some again
        self._hopeful = True  # that it will be soon

        self._opened: CacheDirectory | None = None  # to be closed
        self._usable: CacheDirectory | None = None  # None while there is no cache to be used
        self._started = False
        self._ready = trio.Event()
        self._wake = trio.Event()
        self._quiet = trio.Event()
        self._closing = False
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._paused_until = float("-inf")
        self._trouble = ""  # why it is not used, "" while it is
        self._reported = False
        self._backoff = 1.0  # seconds until a sick cache is tried again

        metrics = metrics or Registry()
        name = "megafs_cache"
        self._hits = metrics.counter(f"{name}_hits", "Reads answered by the disk cache.")
        self._misses = metrics.counter(f"{name}_misses", "Reads the disk cache could not answer.")
        self._shared = metrics.counter(f"{name}_shared", "Reads that waited for another's fetch.")
        self._evicted = metrics.counter(f"{name}_evicted", "Ranges thrown out to make room.")
        self._dropped = metrics.counter(f"{name}_not_kept", "Ranges read and not cached.")
        self._written = metrics.counter(f"{name}_written", "Bytes written to the cache.", "bytes")
        metrics.gauge(
            f"{name}_used",
            "Disk taken by cached ranges.",
            "bytes",
            lambda: float(self._index.used),
        )
        metrics.gauge(f"{name}_limit", "The most disk the cache may take.", "bytes").set(size_limit)

    # Reading.

    async def get(self, name: str, start: int, length: int) -> bytes:
        if not name.startswith(PREFIX) or length <= 0:
            return await self.beneath.get(name, start, length)
        check_name(name)
        if not self._ready.is_set():
            await self._start()
        while True:
            entries = self._index.entries.cover(name, start, length)
            if entries:
                data = await self._read_all(entries, start, length)
                if data is not None:
                    self._hits.add()
                    return data
                continue  # it is not what it should be, and no longer in the index
            fetch = self._fetches.find(name, start, length)
            if fetch is None:
                ahead = current_level() == BACKGROUND
                if ahead and not self._has_room(length) and await self._wait_for_room(length):
                    continue  # somebody may have brought it meanwhile
                self._misses.add()
                return await self._fetch(name, start, length)
            if current_level() == URGENT:
                fetch.priority.raise_to_urgent()
            await fetch.done.wait()
            if fetch.data is not None:
                self._shared.add()
                return fetch.data[start - fetch.start : start - fetch.start + length]
            if fetch.error is not None:
                # Not a fetch for each of us: the store has just said no.
                raise copy.copy(fetch.error) from fetch.error
            # Its reader was cancelled: the first of us to come here takes over.

    def begin(self) -> None:
        """Start the background task, which fills the index, without waiting for it."""
        if not self._started:
            self._started = True
            trio.lowlevel.spawn_system_task(
                self._run, name="disk cache", context=contextvars.copy_context()
            )

    def _has_room(self, length: int) -> bool:
        """Whether so many bytes could wait to be written, too."""
        return self._index.queued + self._coming + length <= self._queue_limit

    async def _wait_for_room(self, length: int) -> bool:
        """Wait, but not long, until what is fetched now will be kept; False if it is no use.

        A line faster than the disk, or a busy machine, would have a third of a big file read past
        the cache, and fetched again next time.
        """
        with trio.move_on_after(_SLOW_WRITE):
            while self._is_writing and not self._has_room(length):
                await self._room.wait()
            return self._has_room(length)
        self._hopeful = False  # nobody waits again before something is written
        return False

    @property
    def _is_writing(self) -> bool:
        return (
            self._usable is not None
            and not self._closing
            and trio.current_time() >= self._paused_until
            and self._index.queued + self._coming > 0
            and self._hopeful
        )

    async def _fetch(self, name: str, start: int, length: int) -> bytes:
        fetch = Fetch(name, start, length, current_level())
        self._fetches.add(fetch)
        ahead = length if current_level() == BACKGROUND else 0
        self._coming += ahead
        try:
            with at_priority(fetch.priority):
                fetch.data = await self.beneath.get(name, start, length)
        except StoreError as exc:
            fetch.error = exc
            raise
        finally:
            if ahead:
                self._coming -= ahead
                self._announce_room()
            self._fetches.remove(fetch)
            fetch.done.set()
        if not fetch.stale:
            self._keep(CacheEntry(name, start, length, len(fetch.data)), fetch.data)
        return fetch.data

    async def _read_all(self, row: Row, start: int, length: int) -> bytes | None:
        """Return the bytes that several entries hold together; None if one has lost them."""
        if len(row) == 1:
            return await self._read(row[0], start, length)
        parts: list[bytes] = []
        end = start + length
        for entry, then in zip(row, [*row[1:], None], strict=True):
            if entry not in self._index.entries:
                return None  # thrown out while the one before it was read
            stop = end if then is None else min(end, then.start)
            data = await self._read(entry, start, stop - start)
            if data is None:
                return None
            parts.append(data)
            start = stop
        return b"".join(parts)

    async def _read(self, entry: CacheEntry, start: int, length: int) -> bytes | None:
        """Return the bytes from an entry; None, and it is dropped, if they cannot be had."""
        offset = start - entry.start
        size = min(length, entry.size - offset)
        self._index.use(entry)
        if entry.data is not None:
            data: bytes | None = entry.data[offset : offset + max(size, 0)]
            await trio.lowlevel.checkpoint()
            return data
        if size <= 0:
            await trio.lowlevel.checkpoint()
            return b""
        handle: RangeFile | None = entry.handle
        if handle is not None and size <= _IN_PLACE:
            data = handle.read_in_place(offset, size, self._scratch)
            if data is not None:
                await trio.lowlevel.checkpoint()
                return data
        trouble = "does not answer"
        with trio.move_on_after(_SLOW_READ) as scope:
            try:
                # Abandoned when we are cancelled: the thread keeps the handle it was given.
                opened, found = await offload(
                    _read_file, handle, self._path(entry), offset, size, kind="disk", abandon=True
                )
                if len(found) == size:
                    if handle is None:
                        self._index.keep_open(entry, opened)
                    return found
                trouble = "lost a part of a file"
            except OSError as exc:
                trouble = exc.strerror or str(exc)
        log.debug("cache %s: %s: %s", self._directory, entry, trouble)
        self._index.discard(entry)
        if scope.cancelled_caught:
            self._stop_using("the disk does not answer")
        return None

    def holder(self, name: str, start: int, length: int) -> int:
        entry = self._index.entries.find(name, start, length)
        return 0 if entry is None else entry.number

    @property
    def newest(self) -> int:
        return self._newest

    def peek(self, name: str, start: int, length: int, holder: int | None = None) -> bytes | None:
        entry = self._index.entries.find(name, start, length)
        if entry is None or length > _IN_PLACE or holder not in (None, entry.number):
            return None
        offset = start - entry.start
        data: bytes | None = None
        if entry.data is not None:
            data = entry.data[offset : offset + length]
        else:
            if entry.handle is None:
                opened = RangeFile.at_hand(self._path(entry))
                if opened is not None:
                    self._index.keep_open(entry, opened)
            if entry.handle is not None:
                data = entry.handle.read_in_place(offset, length, self._scratch)
        if data is None or len(data) != length:
            return None
        self._index.use(entry)
        self._hits.add()
        return data

    def _path(self, entry: CacheEntry) -> str:
        return os.path.join(self._directory, file_name(entry.key))

    # Keeping.

    async def remember(self, name: str, start: int, data: Buffer | Path | str) -> None:
        """Cache bytes that did not come from a get: a pack that was just uploaded.

        data: the bytes, or the file that holds them, which may be removed when this returns: then
            it has one more name in the cache, or was copied, or is not cached.
        """
        if not name.startswith(PREFIX):
            return
        check_name(name)
        if not self._ready.is_set():
            await self._start()
        if self._usable is None:
            return
        if not isinstance(data, Path | str):
            await trio.lowlevel.checkpoint()
            kept = bytes(data)
            self._keep(CacheEntry(name, start, len(kept), len(kept)), kept)
            return
        try:
            source = await offload(RangeFile.at, os.fspath(data), kind="disk")
        except OSError as exc:
            log.debug("cache %s: %s: %s", self._directory, name, exc)
            return
        landed = trio.Event()
        entry = CacheEntry(name, start, source.size, source.size)
        entry.landed = landed.set
        if self._keep(entry, source):
            await landed.wait()

    def _keep(self, entry: CacheEntry, data: bytes | RangeFile) -> bool:
        """Index an entry and queue it to be written; readers get it from memory until then.

        Returns whether it will be.
        """
        self._newest = entry.number
        size = len(data) if isinstance(data, bytes) else 0
        if (
            self._usable is None
            or self._closing
            or entry.size == 0
            or trio.current_time() < self._paused_until
            or self._index.queued + size > self._queue_limit
            or len(self._index.queue) >= 4096
        ):
            self._dropped.add()
            return False
        if not self._index.add(entry, data):
            return False
        self._wake_writer()
        return True

    async def forget(self, name: str) -> None:
        """Drop what is cached of an object, for its bytes did not verify."""
        await trio.lowlevel.checkpoint()
        self._forget(name)

    def _forget(self, name: str) -> None:
        for entry in self._index.entries.of(name):
            self._index.discard(entry)
        self._fetches.forget(name)

    def cached(self, name: str, start: int, length: int) -> bool:
        return bool(self._index.entries.cover(name, start, length))

    def pin(self, names: Iterable[str]) -> None:
        """Never evict ranges of these objects."""
        self._index.pinned.update(names)

    def unpin(self, names: Iterable[str]) -> None:
        """Evict ranges of these objects again when room is needed."""
        self._index.pinned.difference_update(names)

    async def clear(self) -> None:
        """Throw out everything, pinned or not."""
        if not self._ready.is_set():
            await self._start()
        for entry in tuple(self._index.entries.oldest()):
            self._index.discard(entry)
        for name in self._fetches.names():
            self._forget(name)
        await self.written()

    async def written(self) -> None:
        """Wait until everything is written that waits to be."""
        if not self._ready.is_set():
            await self._start()
        while self._usable is not None and not self._quiet.is_set():
            await self._quiet.wait()

    def stats(self) -> dict[str, Any]:
        """Numbers for `megafs status`."""
        return {
            "state": "ok" if self._usable is not None else "off",
            "trouble": self._trouble,
            "directory": self._directory,
            "entries": len(self._index.entries),
            "bytes": self._index.used,
            "limit": self._limit,
            "min_free": self._min_free,
            "pinned": len(self._index.pinned),
            "hits": int(self._hits.value),
            "misses": int(self._misses.value),
            "shared": int(self._shared.value),
            "evicted": int(self._evicted.value),
            "not_kept": int(self._dropped.value),
            "written_bytes": int(self._written.value),
            "queued_bytes": self._index.queued,
            "open_files": len(self._index.handles),
        }

    def _wake_writer(self) -> None:
        """There is something to do."""
        if self._quiet.is_set():
            self._quiet = trio.Event()
        self._wake.set()

    # The rest of the interface.

    async def put(self, name: str, data: Buffer) -> None:
        await self.beneath.put(name, data)
        self._forget(name)

    async def delete(self, name: str) -> None:
        self._forget(name)
        await self.beneath.delete(name)

    def health(self) -> Health:
        below = self.beneath.health()
        return Health(below.state, below.last_error, {**below.details, "cache": self.stats()})

    async def aclose(self) -> None:
        """Write what is queued, within a few seconds, and close everything."""
        self._closing = True
        self._wake.set()
        try:
            with trio.move_on_after(5) as scope:
                if self._started:
                    await self._ended.wait()
            if scope.cancelled_caught:
                log.debug("cache %s: left behind with a disk that hangs", self._directory)
        finally:
            self._scope.cancel()
            with trio.CancelScope(shield=True):
                if self._started:
                    await self._ended.wait()
                await self.beneath.aclose()

    # The background task.

    async def _start(self) -> None:
        """Wait until the index is there, or it is clear that there will be none soon."""
        self.begin()
        with trio.move_on_after(_SLOW_START) as scope:
            await self._ready.wait()
        if scope.cancelled_caught:
            self._report("the disk does not answer")
            self._ready.set()

    async def _run(self) -> None:
        """Open the cache, serve it, and begin again later if it breaks."""
        try:
            with self._scope:
                while not self._closing:
                    try:
                        await self._open()
                        await self._serve()
                    except Exception as exc:
                        # Anything: OSError, sqlite3.Error, what diskcache makes of them.
                        system = exc.strerror if isinstance(exc, OSError) else None
                        self._stop_using(system or str(exc) or repr(exc))
                    finally:
                        with trio.move_on_after(5, shield=True):
                            await self._shut_anyhow()
                    if not self._closing:
                        self._wake = trio.Event()  # only aclose() need wake us now
                        with trio.move_on_after(self._backoff):
                            await self._wake.wait()
                        self._backoff = min(2 * self._backoff, _PAUSE)
        finally:
            self._index.empty()
            self._ended.set()

    async def _shut_anyhow(self) -> None:
        try:
            await self._shut()
        except Exception as exc:
            # What leaves this task ends the process, and with it the mount.
            log.warning("the disk cache could not be closed well: %s", exc)

    async def _shut(self) -> None:
        self._usable = None
        self._quiet.set()
        directory, self._opened = self._opened, None
        if directory is not None:
            await offload(_close, directory, kind="disk", abandon=True)

    async def _wake_up(self) -> None:
        """Wait for something to do."""
        await self._wake.wait()
        self._wake = trio.Event()

    async def _open(self) -> None:
        self._opened = directory = CacheDirectory(self._directory, self._limit)
        found = await offload(directory.open, kind="disk", abandon=True)
        self._index.empty()
        for entry in found:
            for old in self._index.entries.add(entry) or ():
                self._index.throw_out(old)
            if entry in self._index.entries:
                self._index.used += entry.cost
            else:
                self._index.throw_out(entry)
        self._usable = directory
        self._ready.set()

    async def _serve(self) -> None:
        """Do what is queued until closed; look after the free space now and then."""
        assert self._usable is not None
        tick = trio.current_time() + _TICK
        while self._usable is not None:
            if self._index.queue or self._index.drops or trio.current_time() >= tick:
                if trio.current_time() >= tick:
                    tick = trio.current_time() + _TICK
                await self._round(self._usable, flush=False)
                continue
            self._quiet.set()
            if self._closing:
                while self._index.touched:
                    await self._round(self._usable, flush=True)
                return
            with trio.move_on_at(tick):
                await self._wake_up()

    async def _round(self, directory: CacheDirectory, *, flush: bool) -> None:
        """Write one batch, and make the room for it first."""
        measured = await offload(directory.measure, kind="disk", abandon=True)
        drops, writes = self._plan(directory, measured)
        touched: Touches = []
        if flush or len(self._index.touched) > 1024 or not writes:
            while self._index.touched and len(touched) < self._rows:
                entry = self._index.touched.pop()
                touched.append((entry.access, entry.key))
        if not (drops or writes or touched):
            return
        values = [
            (entry.key, entry.data if entry.data is not None else entry.handle) for entry in writes
        ]
        results = await offload(directory.apply, drops, values, touched, kind="disk", abandon=True)
        for entry, error in zip(writes, results, strict=True):
            self._index.queued -= len(entry.data or b"")
            entry.let_go()
            if error is not None:
                self._index.used -= entry.cost
                self._index.entries.remove(entry)
                self._dropped.add()
                self._paused_until = trio.current_time() + _PAUSE
                self._trouble = f"{error.strerror}; nothing is written for a minute"
                self._report(self._trouble)
                continue
            self._written.add(entry.size)
            entry.on_disk = True
            if entry not in self._index.entries:  # forgotten while it was written
                self._index.throw_out(entry)
        self._hopeful = True
        self._announce_room()
        if writes and not any(results):
            self._works_again()

    def _plan(self, directory: CacheDirectory, measured: Measured) -> tuple[Drops, Row]:
        """Choose what to write now, and what to throw out so that it fits."""
        drops: Drops = []
        free = measured.free
        while self._index.drops and len(drops) < self._rows:
            key, cost, handle = self._index.drops.popleft()
            drops.append((key, handle))
            self._index.used -= cost
            free += cost
        room = self._limit - measured.overhead - self._slack
        # Of the file system, until others would miss it.
        spare = free - self._min_free - min(self._slack, 1 << 20)
        if self._index.drops:
            return drops, []  # first things first: a long list of drops is room for all
        writes: Row = []
        planned = 0
        while self._index.queue and len(writes) < _BATCH_COUNT and planned < _BATCH_BYTES:
            entry = self._index.queue.popleft()
            if entry not in self._index.entries:  # forgotten before it was written
                self._index.queued -= len(entry.data or b"")
                entry.let_go()
                continue
            entry.cost = directory.cost(entry.size)
            spare += self._evict(
                max(self._index.used + entry.cost - room, entry.cost - spare), drops
            )
            if self._index.used + entry.cost > room or entry.cost > spare:
                if entry.cost > spare:
                    self._trouble = (
                        f"nothing is written: the file system has {measured.free >> 20} MiB free,"
                        f" and {self._min_free >> 20} MiB are for others"
                    )
                self._index.queued -= len(entry.data or b"")
                entry.let_go()
                self._index.entries.remove(entry)
                self._dropped.add()
                continue
            self._index.used += entry.cost
            spare -= entry.cost
            planned += entry.size
            writes.append(entry)
        if not writes:
            self._evict(max(self._index.used - room, -spare), drops)
        return drops, writes

    def _evict(self, wanted: int, drops: Drops) -> int:
        before = len(drops)
        gained = self._index.evict(wanted, drops)
        self._evicted.add(len(drops) - before)
        return gained

    def _stop_using(self, why: str) -> None:
        """Do without the cache for a while."""
        self._trouble = why
        self._report(why)
        self._usable = None
        self._index.empty()
        self._announce_room()
        self._quiet.set()
        self._wake.set()
        self._ready.set()

    def _announce_room(self) -> None:
        self._room.set()
        self._room = trio.Event()

    def _works_again(self) -> None:
        """Something was written: whatever the trouble was, it is over."""
        self._trouble = ""
        self._backoff = 1.0
        if self._reported:
            self._reported = False
            log.info("cache %s works again", self._directory)

    def _report(self, why: str) -> None:
        """One line for one trouble, however long it lasts."""
        if not self._reported:
            self._reported = True
            log.warning(
                "cache %s is not used for now: %s; reading from the store", self._directory, why
            )


def _read_file(
    handle: RangeFile | None, path: str, offset: int, size: int
) -> tuple[RangeFile, bytes]:
    if handle is None:
        handle = RangeFile.at(path)
    return handle, handle.read(offset, size)


def _close(directory: CacheDirectory) -> None:
    try:
        directory.close()
    except Exception as exc:  # a disk that failed before fails again
        log.debug("cache: %s", exc)
