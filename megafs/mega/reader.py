"""Read files of MEGA by range: memory, then the sealed cache on the disk, then MEGA."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from megafs.concurrency import Background, offload
from megafs.errors import Corrupt, Fault
from megafs.mega.sealed_ranges import BLOCK, SealedFile, SealedRanges
from megafs.stores.abilities import DiskCache
from megafs.stores.limit import background

#: Blocks of one request of read-ahead: 1 MiB.
_AHEAD: Final = 8


class RangeReader:
    """memory: bytes of opened blocks to keep."""

    def __init__(
        self, store: SealedRanges, cache: DiskCache, memory: int, background: Background
    ) -> None:
        self._store = store
        self._cache = cache
        self._background = background
        self._most = max(8, memory // BLOCK)
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    @property
    def memory_in_use(self) -> int:
        return len(self._blocks) * BLOCK

    async def read(self, file: SealedFile, offset: int, size: int) -> bytes:
        """Up to *size* bytes from *offset*, fewer only at the end of the file."""
        size = min(size, file.size - offset)
        if size <= 0:
            return b""
        first, end = offset // BLOCK, -(-(offset + size) // BLOCK)
        blocks = self._at_hand(file, first, end)
        if blocks is None:
            blocks = await self._fetched(file, first, end)
            self._keep(file, first, blocks)
        whole = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        start = offset - first * BLOCK
        return whole[start : start + size]

    def _at_hand(self, file: SealedFile, first: int, end: int) -> list[bytes] | None:
        found = []
        for number in range(first, end):
            block = self._blocks.get((file.name, number))
            if block is None:
                return None
            self._blocks.move_to_end((file.name, number))
            found.append(block)
        return found

    def _keep(self, file: SealedFile, first: int, blocks: list[bytes]) -> None:
        for i, block in enumerate(blocks):
            self._blocks[file.name, first + i] = block
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)

    async def _fetched(self, file: SealedFile, first: int, end: int) -> list[bytes]:
        self._store.know(file)
        start, length = file.sealed_range(first, end)
        for _ in range(2):
            sealed = await self._cache.get(file.name, start, length)
            try:
                if len(sealed) != length:
                    raise Corrupt(f"{file.name}: cut short")
                return await offload(self._store.opened, file, first, sealed)
            except Corrupt:
                await self._cache.forget(file.name)  # the disk's, and so it is fetched once more
        raise Fault(f"{file.name}: what was sealed a moment ago does not open")

    def read_ahead(self, file: SealedFile, start: int, stop: int) -> None:
        """Bring [start, stop) to the cache, in the background."""
        self._store.know(file)
        last = -(-stop // BLOCK)
        for first in range(start // BLOCK, last, _AHEAD):
            self._background.start(self._ahead, file, first, min(first + _AHEAD, last))

    async def _ahead(self, file: SealedFile, first: int, end: int) -> None:
        start, length = file.sealed_range(first, end)
        if self._at_hand(file, first, end) is not None or self._cache.cached(
            file.name, start, length
        ):
            return
        try:
            with background():
                await self._cache.get(file.name, start, length)
        except Fault:
            pass  # who reads it meets it again

    def forget(self) -> None:
        """Forget what is in memory."""
        self._blocks.clear()
