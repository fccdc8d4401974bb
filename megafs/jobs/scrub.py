"""Read what lies in the store, and see whether it still is what was put there.

    packs        every sealed chunk that a file names: digest, then opened
    commits      every one that is there: opened, and following the one before
    checkpoints  every manifest, and every part: digest, then opened
    key header   its authentication code
    the rest     objects that nobody names are counted, never touched (that is what gc is for)

Works on a mounted volume, gives way to what programs read, and can be limited to so many bytes per
second.  Its position is kept in the state directory (`scrub`: numbers only, no names), so one that
was interrupted goes on there.  It reads from the store itself, past the disk cache.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from pathlib import Path
from typing import Final

import msgspec
import trio
from msgspec import UNSET, Struct, field
from msgspec.structs import asdict

from megafs import clock
from megafs.chunks import codec as chunk_format
from megafs.chunks import ranges
from megafs.concurrency import offload
from megafs.crypto.volume_keys import Keyring, digest
from megafs.errors import Corrupt, MegafsError, Missing, StoreError, TooNew
from megafs.jobs.messages import Damage, ScrubArgs, ScrubResult, UnnamedObject
from megafs.journal import checkpoint, commit
from megafs.journal.checkpoint import Manifest
from megafs.private_files import read_private
from megafs.progress import OnProgress, Progress
from megafs.stores.abilities import uncached
from megafs.stores.base import ObjectStore, list_all
from megafs.stores.limit import BACKGROUND, Pace, Priority
from megafs.tree import paths, queries_packs
from megafs.tree.schema import PackRow
from megafs.tree.tree import Extent
from megafs.volume import header as headers
from megafs.volume import header_store
from megafs.volume.state_directory import write_durably
from megafs.volume.volume import Volume

log = logging.getLogger(__name__)

#: Exit codes.
CLEAN: Final = 0
DAMAGED: Final = 4

#: Packs under way at once, and how many are done between two notes of the position.
_SIDE_BY_SIDE: Final = 3
_ROUND: Final = 24
#: Chunks further apart than this are not worth one get.
_GAP: Final = 256 << 10
_RANGE: Final = 16 << 20
#: Objects without a known name that are listed one by one.
_SHOWN: Final = 200
#: Pieces of damage that are listed one by one.
_SHOWN_DAMAGE: Final = 5000


class ScrubPosition(Struct):
    """How far a scrub is.  pack: all up to this number are done.  bad: (pack, offset, why)."""

    started: float = 0.0
    pack: int = 0
    chunks: int = 0
    bytes: int = 0
    bad: list[tuple[int, int, str]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> ScrubPosition:
        try:
            return msgspec.json.decode(read_private(path), type=cls)
        except FileNotFoundError:
            return cls()
        except (OSError, msgspec.MsgspecError) as exc:
            log.warning("%s cannot be read (%s): this scrub begins anew", path, exc)
            return cls()


async def scrub(volume: Volume, args: ScrubArgs, on_progress: OnProgress) -> ScrubResult:
    """Read what the volume needs of the store, and verify it."""
    path = volume.replica.directory / "scrub"
    position = ScrubPosition() if args.restart else ScrubPosition.read(path)
    resumed = position.pack > 0
    if not position.started:
        position.started = clock.now()
    run = _Scrub(volume, position, path, args.rate, on_progress)
    whole = await run.packs(args.limit)
    damaged = run.damage()
    if whole:
        await run.rest()
        damaged += run.found
        await offload(path.unlink, True, kind="disk")
    text = (
        f"{position.chunks} chunks ({position.bytes} bytes) read"
        + (", going on from an earlier scrub" if resumed else "")
        + ("" if whole else "; not all yet: run it again to go on")
        + (f"; {len(damaged)} damaged places" if damaged else "; nothing is damaged")
    )
    return ScrubResult(
        exit_code=DAMAGED if damaged else CLEAN,
        text=text,
        complete=whole,
        resumed=resumed,
        chunks=position.chunks,
        bytes=position.bytes,
        objects=run.objects,
        damaged=damaged[:_SHOWN_DAMAGE],
        damaged_count=len(damaged),
        unnamed=run.unnamed[:_SHOWN],
        unnamed_count=len(run.unnamed),
        unnamed_bytes=sum(entry.size for entry in run.unnamed),
    )


class _Scrub:
    """One run."""

    def __init__(
        self,
        volume: Volume,
        position: ScrubPosition,
        path: Path,
        rate: float | None,
        on_progress: OnProgress,
    ) -> None:
        self._volume = volume
        self._store: ObjectStore = uncached(volume.store)
        self._position = position
        self._path = path
        self._pace = Pace(float(rate) if rate else None)
        self._priority = Priority(BACKGROUND)
        self._on_progress = on_progress
        self.found: list[Damage] = []
        self.unnamed: list[UnnamedObject] = []
        self.objects = 0

    async def _get(self, name: str, start: int, length: int) -> bytes:
        await self._pace.pay(length, self._priority)
        data = await self._store.get(name, start, length)
        self._pace.refund(length - len(data))
        self.objects += 1
        return data

    # ---- chunks -----------------------------------------------------------------------------

    async def packs(self, limit: int | None) -> bool:
        """Read the packs that are left; whether all are done."""
        db = self._volume.replica.db
        position = self._position
        budget = position.bytes + limit if limit else None
        total = queries_packs.count_named(db)
        done = queries_packs.count_named(db, position.pack)
        while True:
            numbers = queries_packs.next_named(db, position.pack, _ROUND)
            if not numbers:
                return True
            waiting = deque(numbers)
            async with trio.open_nursery() as nursery:
                for _ in range(_SIDE_BY_SIDE):
                    nursery.start_soon(self._worker, waiting)
            done += len(numbers)
            position.pack = numbers[-1]
            await offload(
                write_durably, self._path, json.dumps(asdict(position)).encode(), kind="disk"
            )
            self._on_progress(Progress(done, total, f"packs; {len(position.bad)} damaged chunks"))
            if budget is not None and position.bytes >= budget:
                return False

    async def _worker(self, waiting: deque[int]) -> None:
        while waiting:
            await self._pack(waiting.popleft())

    async def _pack(self, number: int) -> None:
        tree = self._volume.replica.tree
        try:
            pack = tree.pack(number)
        except Corrupt as exc:
            for extent in self._chunks_of(number):
                self._position.bad.append((number, extent.offset, str(exc)))
            return
        for group in ranges.runs(self._chunks_of(number), gap=_GAP, longest=_RANGE):
            await self._group(pack, group)

    def _chunks_of(self, number: int) -> list[Extent]:
        """Every chunk of a pack that is named, once, in order."""
        return queries_packs.chunks_of(self._volume.replica.db, number)

    async def _group(self, pack: PackRow, group: list[Extent]) -> None:
        name = chunk_format.pack_name(pack.name)
        if pack.pack in self._volume.stage.blocked:
            return  # not in the store yet
        start, length = ranges.span(group)
        try:
            body = await self._get(name, start, length)
        except Missing as exc:
            named = {extent.offset for extent in self._chunks_of(pack.pack)}
            for extent in group:
                if extent.offset in named:  # not moved elsewhere meanwhile
                    self._position.bad.append((pack.pack, extent.offset, str(exc)))
            return
        bad = await offload(_verify, self._volume.keyring, pack, group, start, body)
        self._position.bad.extend((pack.pack, offset, why) for offset, why in bad)
        self._position.chunks += len(group)
        self._position.bytes += len(body)

    def damage(self) -> list[Damage]:
        """The damaged chunks as the files and bytes that need them."""
        tree = self._volume.replica.tree
        found = []
        for number, offset, why in sorted(set(self._position.bad)):
            for ino, start, length in queries_packs.files_with_chunk(tree.db, number, offset):
                path = tree.path(ino)
                found.append(
                    Damage(
                        path=paths.show(path) if path else None,
                        path_b64=paths.exact(path) if path else UNSET,
                        inode=ino,
                        start=start,
                        end=start + length,
                        text=why,
                    )
                )
        return found

    # ---- everything else --------------------------------------------------------------------

    async def rest(self) -> None:
        """The journal, the checkpoints, the key header, and what nobody names."""
        await self._commits()
        named = await self._checkpoints()
        await self._header()
        await self._strangers(named)

    def _bad(self, name: str, why: object) -> None:
        self.found.append(Damage(object=name, text=str(why)))

    async def _commits(self) -> None:
        volume = self._volume
        last = volume.replica.sequence
        before: tuple[int, bytes] | None = None
        count = 0
        async for page in list_all(self._store, "commits/"):
            for entry in page.entries:
                try:
                    sequence = commit.sequence_of(entry.name)
                except Corrupt:
                    continue  # a stranger
                if sequence > last:
                    return
                count += 1
                if count % 64 == 0:
                    self._on_progress(Progress(count, last, "commits"))
                try:
                    data = await self._get(entry.name, 0, min(entry.size, commit.MAX_OBJECT))
                    opened = commit.open_commit(volume.keyring, sequence, data)
                except (Corrupt, Missing, TooNew) as exc:
                    self._bad(entry.name, exc)
                    before = None
                    continue
                made = digest(data)
                known = volume.replica.hash_at(sequence)
                if known is not None and known != made:
                    self._bad(entry.name, "not the commit that this machine has seen")
                if before is not None and before[0] == sequence - 1 and before[1] != opened.prev:
                    self._bad(entry.name, "does not follow the commit before it")
                before = (sequence, made)

    async def _checkpoints(self) -> set[str]:
        """Read every checkpoint; the names of all parts that manifests name."""
        named: set[str] = set()
        numbers = await checkpoint.newest(self._store)
        for n, sequence in enumerate(numbers):
            name = checkpoint.manifest_name(sequence)
            named.add(name)
            try:
                manifest: Manifest = await checkpoint.read_manifest(
                    self._store, self._volume.keyring, sequence
                )
            except Missing:
                continue  # removed by gc
            except (Corrupt, TooNew) as exc:
                self._bad(name, exc)
                continue
            parts = {p.object: p for entries in manifest.tables.values() for p in entries}
            for part in parts.values():
                if part.object in named:
                    continue  # stands in a newer checkpoint, too
                named.add(part.object)
                try:
                    await self._pace.pay(part.size, self._priority)
                    await checkpoint.read_part(self._store, self._volume.keyring, part)
                    self.objects += 1
                except (Corrupt, Missing, TooNew) as exc:
                    self._bad(part.object, f"part of checkpoint {sequence}: {exc}")
            self._on_progress(Progress(n + 1, len(numbers), "checkpoints"))
        return named

    async def _header(self) -> None:
        ours = self._volume.header
        try:
            there = await header_store.load(self._store)
            if there.generation == ours.generation:
                if headers.digest_of(there) != headers.digest_of(ours):
                    self._bad(there.name, "not the key header that this volume was opened with")
            else:
                headers.check_successor(there, ours, self._volume.keyring)
        except StoreError:
            raise
        except MegafsError as exc:
            self._bad(ours.name, exc)

    async def _strangers(self, named: set[str]) -> None:
        """Objects that nothing names."""
        volume = self._volume
        packs = {
            chunk_format.pack_name(name) for name in queries_packs.pack_names(volume.replica.db)
        }
        async for page in list_all(self._store, ""):
            for entry in page.entries:
                kind = entry.name.partition("/")[0]
                known = (
                    entry.name in packs
                    if kind == "packs"
                    else entry.name in named
                    if kind == "checkpoints"
                    else kind in ("commits", "keys", "mounts", "shares", "probe")
                )
                if not known:
                    self.unnamed.append(UnnamedObject(entry.name, entry.size, entry.modified))
            self._on_progress(Progress(0, 0, "objects that nobody names"))


def _verify(
    keyring: Keyring, pack: PackRow, group: list[Extent], start: int, body: bytes
) -> list[tuple[int, str]]:
    """The chunks of *group* that are not whole: (offset, why)."""
    key = keyring.pack_key(pack.name, pack.epoch)
    view = memoryview(body)
    bad = []
    for extent in group:
        sealed = view[extent.offset - start : extent.offset - start + extent.sealed]
        try:
            if len(sealed) == extent.sealed and digest(sealed) != extent.digest:
                raise Corrupt(
                    f"{chunk_format.pack_name(pack.name)} at {extent.offset}: not the bytes that"
                    " were stored"
                )
            chunk_format.open_chunk(key, keyring.fsid, pack.epoch, pack.name, extent, sealed)
        except Corrupt as exc:
            bad.append((extent.offset, str(exc)))
    return bad
