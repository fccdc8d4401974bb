"""Copy chunks out of old packs: opened, checked, and sealed again in new packs.

gc does so with packs that are mostly dead, reencrypt with those of an earlier epoch.  The operation
`Relocate` says where a chunk is now; a file that was changed meanwhile keeps its new contents.
"""

from __future__ import annotations

from typing import Final

from megafs.chunks import codec as chunk_format
from megafs.chunks import ranges
from megafs.concurrency import offload
from megafs.crypto.volume_keys import Keyring, digest
from megafs.errors import Corrupt, Missing
from megafs.jobs.committing import commit_all
from megafs.stores.abilities import uncached
from megafs.stores.base import ObjectStore
from megafs.stores.limit import BACKGROUND, Pace, Priority
from megafs.tree import ops, queries_packs
from megafs.tree.schema import PackRow
from megafs.tree.tree import Extent
from megafs.volume.volume import Volume

#: Plaintext that is moved between two commits.
_MOVE: Final = 16 << 20
#: One get brings chunks this close, up to so many bytes: they fit into memory a few times.
_GAP: Final = 256 << 10
_LONGEST: Final = 4 << 20


class Resealer:
    """Copies chunks of old packs into new ones, and records where they are now.

    rate: bytes per second, or None.
    """

    def __init__(self, volume: Volume, rate: float | None) -> None:
        self._volume = volume
        self._store: ObjectStore = uncached(volume.store)
        self._pace = Pace(rate or None)
        self._priority = Priority(BACKGROUND)
        self._uncommitted = 0
        self.packs = 0
        self.moved_bytes = 0
        self.notes: list[str] = []

    async def reseal(self, pack: PackRow) -> None:
        """Copy every chunk of *pack* that is named."""
        whole = True
        chunks = queries_packs.chunks_of(self._volume.replica.db, pack.pack)
        for group in ranges.runs(chunks, gap=_GAP, longest=_LONGEST):
            whole &= await self._reseal_run(pack, group)
            if self._uncommitted >= _MOVE:
                await self.finish()
        self.packs += whole

    async def finish(self) -> None:
        """Bring what was moved into the journal."""
        self._uncommitted = 0
        await commit_all(self._volume)

    async def _reseal_run(self, pack: PackRow, group: list[Extent]) -> bool:
        volume = self._volume
        start, length = ranges.span(group)
        name = chunk_format.pack_name(pack.name)
        try:
            await self._pace.pay(length, self._priority)
            body = await self._store.get(name, start, length)
        except Missing as exc:
            self.notes.append(str(exc))
            return False
        opened, bad = await offload(_open, volume.keyring, pack, group, start, body)
        self.notes.extend(bad)
        if not opened:
            return False
        size = sum(len(data) for _, data in opened)
        await volume.stage.wait_below(max(volume.settings.stage_limit // 2, 64 << 20))
        volume.stage.check_room(size)
        made = await volume.stage.put([data for _, data in opened])
        moves = tuple(
            (old.pack, old.offset, new) for (old, _), new in zip(opened, made, strict=True)
        )
        volume.replica.record(ops.Relocate(moves))
        volume.writer.poke()
        self.moved_bytes += size
        self._uncommitted += size
        return not bad


def _open(
    keyring: Keyring, pack: PackRow, group: list[Extent], start: int, body: bytes
) -> tuple[list[tuple[Extent, bytes | memoryview]], list[str]]:
    """Open chunks: (the data of those that verify, what is wrong with each of the others)."""
    key = keyring.pack_key(pack.name, pack.epoch)
    view = memoryview(body)
    opened: list[tuple[Extent, bytes | memoryview]] = []
    bad = []
    for extent in group:
        sealed = view[extent.offset - start : extent.offset - start + extent.sealed]
        try:
            if extent.digest is not None and digest(sealed) != extent.digest:
                raise Corrupt(
                    f"{chunk_format.pack_name(pack.name)} at {extent.offset}: not the bytes that"
                    " were stored"
                )
            data = chunk_format.open_chunk(key, keyring.fsid, pack.epoch, pack.name, extent, sealed)
            opened.append((extent, data))
        except Corrupt as exc:
            bad.append(str(exc))
    return opened, bad
