"""Opened chunks: fetched once, verified, kept in memory up to a limit.

A chunk that is wanted is looked for among the opened ones, then in the staged packs, then asked of
the store below (disk cache, retries, driver).  However many readers wait for a chunk, it is fetched
once; neighbours in one pack that are wanted together come in one ranged get and are opened in one
thread hop.  A small chunk brings the small ones around it: files that were written together lie
together, and whoever reads one of a directory mostly reads the next.  Bytes that do not verify are
asked for once more past the cache, then it is an error.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import trio

from megafs.chunks import codec as chunk_format
from megafs.chunks import ranges
from megafs.concurrency import offload
from megafs.crypto import aead
from megafs.crypto.volume_keys import Keyring, digest
from megafs.errors import Corrupt, Fault, Missing, Unavailable
from megafs.stores.abilities import LineAdvice, NoLineAdvice, NoRangeCache, RangeCache
from megafs.stores.base import ObjectStore
from megafs.stores.limit import URGENT, background, current_level
from megafs.tree.schema import PackRow
from megafs.tree.tree import Extent, Tree

log = logging.getLogger(__name__)

Key = tuple[int, int]
Data = bytes | memoryview

#: Chunks closer together than this in a pack are fetched in one get: a request costs more.
_GAP = 64 << 10
#: The most that one get asks for.
_RANGE = 4 << 20
#: Read-aheads under way, unless the store has use for more.
_AHEAD = 8
_OFFLOAD_FROM = 64 << 10
#: What is opened in place, 200 microseconds, if it is all that is being fetched.
_ALONE = 300 << 10
#: For so many seconds a chunk that took longer to fail is not asked for again.
_ECHO = 1.0
#: Reads up to this size open just the segments they need, if the chunk was whole before.
_PART = 32 << 10
#: Chunks that are known to be whole: 64 bytes each, so 256 KiB chunks of 64 GiB.
_WHOLE = 1 << 18
#: Chunks whose keys are kept for such reads.
_OPENERS = 4096
#: A chunk up to this size is small.
_SMALL = 32 << 10
#: What is fetched around a small one, in each direction: less than a round trip's worth of a
#: 100 Mbit line.
_AROUND = 128 << 10
#: Plaintext that is opened along with a chunk, at most.  Zeros take next to no room in a pack: 300
#: MiB of them lie in one `_AROUND`.
_ALONG = 4 << 20


class _Loading:
    """A fetch under way; those who wait for it find data or an error here."""

    __slots__ = ("begun", "data", "done", "error")

    def __init__(self) -> None:
        self.begun = trio.current_time()
        self.done = trio.Event()
        self.data: Data | None = None
        self.error: Fault | None = None


class StagedChunks(Protocol):
    """The packs that lie on this machine until the store has them (chunks/stage.py)."""

    def has(self, number: int) -> bool:
        """Whether that pack lies here."""

    def read(self, extent: Extent) -> bytes | None:
        """The sealed chunk, if it lies here."""

    def read_part(self, number: int, offset: int, length: int) -> bytes | None:
        """Sealed bytes of a pack, if they lie here."""


class ChunkStore:
    """Reads chunks of packs.

    limit: bytes of opened chunks that are kept.
    earlier_pack: finds a pack that the present tree does not know, but a snapshot may.
    """

    def __init__(
        self,
        store: ObjectStore,
        stage: StagedChunks,
        tree: Tree,
        keyring: Keyring,
        limit: int,
        *,
        earlier_pack: Callable[[int], PackRow | None] = lambda number: None,
    ) -> None:
        self._store = store
        self._cache = RangeCache.of(store) or NoRangeCache()
        self._line = LineAdvice.of(store) or NoLineAdvice()
        self._stage = stage
        self._tree = tree
        self._keyring = keyring
        self._limit = limit
        self._opened: OrderedDict[Key, Data] = OrderedDict()
        self._size = 0
        self._loading: dict[Key, _Loading] = {}
        self._late: dict[Key, tuple[float, Unavailable]] = {}
        self._keys: OrderedDict[int, tuple[PackRow, bytes]] = OrderedDict()
        # Chunks whose bytes were those that the tree says (`digest`) when they were read here, each
        # with the cached range that had them then: what is fetched again may be forged.
        self._whole: dict[Key, int] = {}
        self._openers: OrderedDict[Key, aead.PartOpener] = OrderedDict()
        self._ahead = trio.CapacityLimiter(_AHEAD)
        self._ahead_size = 0  # plaintext, in bytes, that is being read ahead
        self.hits = 0
        self.misses = 0
        #: How often a reader came for what somebody else was fetching.
        self.awaited = 0
        self._earlier_pack = earlier_pack

    def remember(self, extent: Extent, data: Data) -> None:
        """Keep an opened chunk that somebody just wrote."""
        self._keep((extent.pack, extent.offset), data)

    def has(self, extent: Extent) -> bool:
        key = (extent.pack, extent.offset)
        return key in self._opened or key in self._loading

    @property
    def worth(self) -> int:
        """Bytes that cost about as much as the round trip: see `LineAdvice.latency_bytes`."""
        return self._line.latency_bytes()

    @property
    def at_once(self) -> int:
        """How many large reads at once the store has use for; 0 while that is not known."""
        return self._line.useful_downloads()

    async def read(self, extents: Iterable[Extent], along: Sequence[Extent] = ()) -> list[Data]:
        """The whole chunk of each extent (its `data` for an inline one), in order.

        along: taken along, and kept, if one chunk has to be fetched and they lie next to it.
        Raises Corrupt, Missing or another StoreError if one cannot be had.
        """
        wanted = list(extents)
        found: list[Data | None] = [None] * len(wanted)
        absent: list[int] = []
        for n, extent in enumerate(wanted):
            found[n] = self._at_hand(extent)
            if found[n] is None:
                absent.append(n)
        while absent:
            for n, data in zip(
                absent, await self._load([wanted[n] for n in absent], along), strict=True
            ):
                found[n] = data
            # None: whoever was fetching it was cancelled; it is our turn now.
            absent = [n for n in absent if found[n] is None]
        return [data for data in found if data is not None]

    def part(self, extent: Extent, start: int, end: int) -> Data | None:
        """The bytes [start, end) of a chunk, if they can be had at once; None if they cannot.

        A chunk that is not open costs a small read no more than the segments of 16 KiB that it lies
        in: 10 microseconds, where the whole of 256 KiB takes 200.  Only for chunks that were whole
        when they were last read here, for a part says nothing of the digest, and only if the disk
        cache, which has had them since, or the stage has them in memory.  Whatever is not as it
        should be is left to `read`.
        """
        data = self._at_hand(extent)
        if data is not None:
            return memoryview(data)[start:end]
        key = (extent.pack, extent.offset)
        holder = self._whole.get(key)
        if end - start > _PART or holder is None or not chunk_format.is_plain(extent):
            return None
        try:
            pack, _ = self._pack(extent.pack)
            opener = self._openers.get(key)
            if opener is None:
                opener = self._new_opener(key, extent, holder)
                if opener is None:
                    return None
            begin, stop = start + chunk_format.HEAD.size, end + chunk_format.HEAD.size
            at, upto = opener.sealed_range(begin, stop)
            sealed = self._peek(pack, extent.offset + at, upto - at, holder)
            return None if sealed is None else opener.open(begin, stop, sealed)
        except Corrupt:
            self._whole.pop(key, None)
            return None

    def _new_opener(self, key: Key, extent: Extent, holder: int) -> aead.PartOpener | None:
        pack, pack_key = self._pack(extent.pack)
        header = self._peek(pack, extent.offset, aead.HEADER_SIZE, holder)
        if header is None:
            return None
        opener = chunk_format.part_opener(
            pack_key, self._keyring.fsid, pack.epoch, pack.name, extent, header
        )
        self._openers[key] = opener
        if len(self._openers) > _OPENERS:
            self._openers.popitem(last=False)
        return opener

    def _peek(self, pack: PackRow, offset: int, length: int, holder: int) -> bytes | None:
        staged = self._stage.read_part(pack.pack, offset, length)
        if staged is not None:
            return staged
        return self._cache.peek(chunk_format.pack_name(pack.name), offset, length, holder)

    def _at_hand(self, extent: Extent) -> Data | None:
        if extent.pack == 0:
            if extent.data is None:
                raise Corrupt("an inline extent has no data")
            return extent.data
        key = (extent.pack, extent.offset)
        data = self._opened.get(key)
        if data is not None:
            self._opened.move_to_end(key)
            self.hits += 1
        return data

    async def _load(
        self, extents: list[Extent], along: Sequence[Extent] = (), piece: int = _RANGE
    ) -> list[Data | None]:
        """Fetch, or wait for others who fetch.  piece: the most that one get asks for."""
        for extent in extents:
            self._check_echo((extent.pack, extent.offset))
        mine: dict[Key, Extent] = {}
        waits: list[_Loading] = []
        for extent in extents:
            key = (extent.pack, extent.offset)
            loading = self._loading.get(key)
            if loading is None:
                loading = self._loading[key] = _Loading()
                mine[key] = extent
            elif current_level() == URGENT:
                self.awaited += 1
            waits.append(loading)
        if mine:
            self.misses += len(mine)
            if len(mine) == 1:
                self._add_neighbours(mine, along)
            for key in mine:
                self._whole.pop(key, None)  # what comes now is not proven yet
            await self._fetch_all(mine, piece)
        results: list[Data | None] = []
        for loading in waits:
            await loading.done.wait()
            if loading.error is not None:
                raise loading.error
            results.append(loading.data)
        return results

    def _check_echo(self, key: Key) -> None:
        """Give up at once on what has just been given up on after a long time.

        The kernel asks again, page by page, for what its read-ahead did not get: without this, a
        program would wait for the store's deadline twice.
        """
        late = self._late.get(key)
        if late is None or key in self._loading:
            return
        ended, error = late
        if trio.current_time() - ended < _ECHO:
            raise Unavailable(str(error))
        del self._late[key]

    def _add_neighbours(self, mine: dict[Key, Extent], along: Sequence[Extent]) -> None:
        """*mine* is one chunk: take along what lies around it in its pack and will be wanted, too.

        That is what the caller names, or around a small chunk the other small ones.
        """
        (wanted,) = mine.values()
        if self._stage.has(wanted.pack):
            return
        largest = _SMALL
        if along:
            if self._is_near(wanted):
                return  # no round trip is to be saved
            largest = _RANGE
            around = sorted(
                (extent for extent in along if extent.pack == wanted.pack), key=lambda e: e.offset
            )
        elif wanted.sealed <= _SMALL:
            around = self._tree.extents_of_pack(
                wanted.pack, max(0, wanted.offset - _AROUND), wanted.offset + _AROUND
            )
        else:
            return
        here = next((n for n, e in enumerate(around) if e.offset == wanted.offset), None)
        if here is None:  # only a snapshot names it
            return
        room = _ALONG
        for way in (around[here + 1 :], around[here::-1]):
            last = wanted
            for extent in way:
                first, second = sorted((last, extent), key=lambda e: e.offset)
                gap = second.offset - first.offset - first.sealed
                if extent.sealed > largest or gap > _GAP:
                    break  # what lies beyond would need a request of its own
                last = extent
                key = (extent.pack, extent.offset)
                if key not in self._opened and key not in self._loading:
                    room -= extent.plain
                    if room < 0:
                        return
                    self._loading[key] = _Loading()
                    mine[key] = extent

    def _is_near(self, extent: Extent) -> bool:
        """Whether the disk cache has the chunk."""
        try:
            pack, _ = self._pack(extent.pack)
        except Corrupt:
            return False  # whoever fetches it says what is wrong
        return self._cache.cached(chunk_format.pack_name(pack.name), extent.offset, extent.sealed)

    async def _fetch_all(self, mine: dict[Key, Extent], piece: int) -> None:
        groups = ranges.runs(ranges.in_pack_order(mine.values()), gap=_GAP, longest=piece)
        try:
            if len(groups) == 1:
                await self._fetch(groups[0])
            else:
                async with trio.open_nursery() as nursery:
                    for group in groups:
                        nursery.start_soon(self._fetch, group)
        finally:
            for key in mine:  # what a cancellation or an unexpected error left undone
                loading = self._loading.pop(key, None)
                if loading is not None:
                    loading.done.set()

    async def _fetch(self, group: list[Extent]) -> None:
        """Fetch neighbours; every one of them ends with data or an error."""
        try:
            opened = await self._open_group(group)
        except Fault as exc:
            if len(group) > 1 and isinstance(exc, Corrupt | Missing):
                # One bad chunk must not take its neighbours with it.
                for extent in group:
                    await self._fetch([extent])
                return
            for extent in group:
                self._finish(extent, None, exc)
            return
        for extent, data in zip(group, opened, strict=True):
            self._finish(extent, data, None)

    def _finish(self, extent: Extent, data: Data | None, error: Fault | None) -> None:
        key = (extent.pack, extent.offset)
        loading = self._loading.pop(key, None)
        if data is not None:
            self._keep(key, data)
        if loading is not None:
            loading.data, loading.error = data, error
            loading.done.set()
            now = trio.current_time()
            if isinstance(error, Unavailable) and now - loading.begun > _ECHO:
                if len(self._late) >= 256:
                    self._late.clear()
                self._late[key] = (now, error)

    async def _open_group(self, group: list[Extent]) -> list[Data]:
        pack, key = self._pack(group[0].pack)
        staged = [self._stage.read(extent) for extent in group]
        sealed = [part for part in staged if part is not None]
        holder = 0
        if len(sealed) == len(group):
            try:
                return await self._open(pack, key, group, sealed, holder)
            except Corrupt as exc:
                # A pack file that a power cut or a backup left short: the store may have it whole.
                log.warning("staged bytes are not whole, asking the store: %s", exc)
        name = chunk_format.pack_name(pack.name)
        start, length = ranges.span(group)
        for attempt in (1, 2):
            before = self._cache.holder(name, start, length)
            body = memoryview(await self._store.get(name, start, length))
            holder = self._cache.holder(name, start, length)
            if holder != (before or self._cache.newest):
                holder = 0  # it may have come meanwhile, for somebody else
            parts = [body[e.offset - start : e.offset - start + e.sealed] for e in group]
            try:
                return await self._open(pack, key, group, parts, holder)
            except Corrupt as exc:
                bad = exc
            # The disk cache may have gone bad: drop what it holds and ask the store itself.
            await self._cache.forget(name)
            if attempt == 2:
                log.error("%s", bad)
                raise bad
        raise AssertionError("unreachable")

    async def _open(
        self,
        pack: PackRow,
        key: bytes,
        group: list[Extent],
        sealed: Sequence[bytes | memoryview],
        holder: int,
    ) -> list[Data]:
        """Open chunks.  holder: the cached range with these very bytes, 0 if unsure."""
        size = sum(extent.sealed for extent in group)
        # A lone reader waits for this and nobody for the loop: the hop would only come on top.
        alone = len(self._loading) == 1 and size <= _ALONE
        if alone or size < _OFFLOAD_FROM:
            opened = self._open_now(pack, key, group, sealed)
        else:
            opened = await offload(self._open_now, pack, key, group, sealed)
        for extent in group:
            if extent.digest is not None:
                self._whole[(extent.pack, extent.offset)] = holder
        while len(self._whole) > _WHOLE:
            del self._whole[next(iter(self._whole))]
        return opened

    def _open_now(
        self, pack: PackRow, key: bytes, group: list[Extent], sealed: Sequence[bytes | memoryview]
    ) -> list[Data]:
        opened: list[Data] = []
        for extent, part in zip(group, sealed, strict=True):
            # The digest is what keeps somebody with a share link and the store from forging one.
            if extent.digest is not None and digest(part) != extent.digest:
                raise Corrupt(
                    f"{chunk_format.pack_name(pack.name)} at {extent.offset}: not the bytes that"
                    " were stored"
                )
            opened.append(
                chunk_format.open_chunk(
                    key, self._keyring.fsid, pack.epoch, pack.name, extent, part
                )
            )
        return opened

    def _pack(self, number: int) -> tuple[PackRow, bytes]:
        known = self._keys.get(number)
        if known is None:
            try:
                pack = self._tree.pack(number)
            except Corrupt:
                found = self._earlier_pack(number)
                if found is None:
                    raise
                pack = found
            known = self._keys[number] = (pack, self._keyring.pack_key(pack.name, pack.epoch))
            if len(self._keys) > 4096:
                self._keys.popitem(last=False)
        return known

    def _keep(self, key: Key, data: Data) -> None:
        if key in self._opened:
            return
        self._opened[key] = data
        self._size += len(data)
        while self._size > self._limit and self._opened:
            _, old = self._opened.popitem(last=False)
            self._size -= len(old)

    async def fetch_ahead(self, extents: list[Extent], piece: int = _RANGE) -> None:
        """Have these chunks opened when somebody reads them; errors are left to the reader.

        piece: bytes that are worth a request.
        """
        missing = [e for e in extents if e.pack and not self.has(e)]
        if not missing:
            return
        size = sum(extent.plain for extent in missing)
        if self._ahead_size and self._ahead_size + size > self._limit:
            return  # more would push out of memory what was read ahead before anybody reads it
        self._ahead.total_tokens = max(_AHEAD, self.at_once)
        self._ahead_size += size
        try:
            async with self._ahead:
                missing = [e for e in missing if not self.has(e)]
                if missing:
                    with background():
                        await self._load(missing, piece=min(piece, _RANGE))
        except Fault as exc:
            log.debug("read-ahead: %s", exc)
        finally:
            self._ahead_size -= size

    def clear(self) -> None:
        """Forget every opened chunk."""
        self._opened.clear()
        self._openers.clear()
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes of opened chunks in memory."""
        return self._size
