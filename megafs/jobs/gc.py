"""Remove from the store what nobody needs any more, while other mounts go on working.

    mark      packs that no file and no snapshot names are marked, in the journal, with the time
    drop      those marked for longer than the retention lose their row, if still nothing names them
    delete    the objects of packs without a row, once every live mount stands behind that commit
    compact   chunks of packs that are mostly dead are sealed again elsewhere (`Relocate`)
    fold      commits, checkpoints and parts that neither the retention nor a snapshot needs

Everything that decides is an operation in the journal, checked again wherever it lands; what only
deletes objects comes after, in batches in random order, and looks again before each.  A run that is
interrupted anywhere leaves only work for the next one.  docs/maintenance.md goes through the races.

`reencrypt` is the same copying for packs sealed under the key of an earlier epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final

import apsw
import trio
from msgspec import Struct, field

from megafs import clock
from megafs.chunks import codec as chunk_format
from megafs.concurrency import Background, offload
from megafs.crypto.volume_keys import Keyring, digest
from megafs.errors import BadUsage, Corrupt, Missing, Refused, TooNew
from megafs.history.moments import History
from megafs.jobs import registry
from megafs.jobs.registry import Args, Progress, Result
from megafs.journal import checkpoint, commit
from megafs.journal.checkpoint import Manifest
from megafs.journal.heartbeat import name_of
from megafs.stores.abilities import uncached
from megafs.stores.base import Entry, ObjectStore, list_all
from megafs.stores.limit import BACKGROUND, Pace, Priority
from megafs.tree import ops
from megafs.tree.schema import PackRow
from megafs.tree.tree import Extent
from megafs.volume.open import Volume, write_checkpoint

log = logging.getLogger(__name__)

DAY: Final = 86400.0
#: How long what is not named any more is kept, so that the past can be looked at.
RETENTION: Final = 30 * DAY
#: How long an object that no commit names is left alone: it may be on its way into one.
UNKNOWN_GRACE: Final = 7 * DAY
#: How long a mount that is not heard of is waited for; and the youngest journal that is folded.
GRACE: Final = DAY
#: The shortest grace that may be asked for: the writer trusts what it saw for an hour
#: (journal/writer.py), and heartbeats come every half minute.
SHORTEST_GRACE: Final = 2 * 3600.0
#: Packs with a smaller part of them in use are copied.
THRESHOLD: Final = 0.3
#: Younger packs are left alone: their files are being written or moved about.
COMPACT_AGE: Final = 3600.0
#: A heartbeat this old is nobody's any more; until then the packs it holds are kept.
DEAD_BEAT: Final = 180 * DAY

_BATCH: Final = 2000
_DELETES: Final = 100
_SIDE_BY_SIDE: Final = 4
#: Plaintext that is moved between two commits.
_MOVE: Final = 16 << 20
#: Seconds to wait for live mounts to say that they have applied the drop.
_WAIT_FOR_BEATS: Final = 90.0

OK: Final = 0
WAITING: Final = 3


class Limits(Struct):
    """How long things are kept; seconds."""

    retention: float = RETENTION
    grace: float = GRACE
    unknown_grace: float = UNKNOWN_GRACE
    threshold: float = THRESHOLD
    compact_age: float = COMPACT_AGE

    @classmethod
    def of(cls, args: Args) -> Limits:
        given = {name: args[name] for name in cls.__struct_fields__ if args.get(name) is not None}
        made = cls(**{name: float(value) for name, value in given.items()})
        if made.grace < SHORTEST_GRACE or made.unknown_grace < SHORTEST_GRACE:
            raise BadUsage(
                f"a grace below {SHORTEST_GRACE / 3600:g} h is not safe for other mounts"
            )
        if made.retention < 0 or not 0 <= made.threshold <= 1:
            raise BadUsage("the retention is at least 0, the threshold from 0 to 1")
        return made


class Counts(Struct):
    """What a run did, or with dry_run would do."""

    marked: int = 0
    unmarked: int = 0
    dropped: int = 0
    deleted: int = 0
    deleted_bytes: int = 0
    waiting: int = 0
    compacted_packs: int = 0
    moved_bytes: int = 0
    folded_commits: int = 0
    removed_checkpoints: int = 0
    removed_parts: int = 0
    removed_beats: int = 0
    notes: list[str] = field(default_factory=list)

    def result(self, dry_run: bool) -> Result:
        would = "would be " if dry_run else ""
        text = (
            f"{self.marked} packs {would}marked, {self.dropped} {would}dropped, {self.deleted}"
            f" objects ({self.deleted_bytes} bytes) {would}deleted, {self.compacted_packs} packs"
            f" {would}compacted, {self.folded_commits} commits {would}folded"
        )
        if self.waiting:
            text += f"; {self.waiting} objects wait for other mounts: run gc again later"
        made = {name: getattr(self, name) for name in self.__struct_fields__}
        return {"exit_code": WAITING if self.waiting else OK, "text": text, **made}


class _Survey(Struct):
    """The committed tree, as far as gc needs it.

    rows: packs by number.  live: of each named pack, the bytes of its chunks that are named.
    marks: since when, in ns.
    """

    rows: dict[int, PackRow]
    live: dict[int, int]
    marks: dict[int, int]


async def job(volume: Volume, args: Args, progress: Progress) -> Result:
    """Collect garbage.

    args: dry_run; retention, grace, unknown_grace, compact_age (seconds); threshold (0 to 1); rate
    (bytes per second for copying); no_compact, no_fold.
    """
    return await collect(volume, Limits.of(args), args, progress)


async def collect(volume: Volume, limits: Limits, args: Args, progress: Progress) -> Result:
    dry_run = bool(args.get("dry_run"))
    registry.check_writable(volume, "collecting garbage")
    run = _Collection(volume, limits, dry_run, progress)
    await run.prepare()
    await run.mark_and_drop()
    if not args.get("no_compact"):
        await run.repack()
        await run.compact(args.get("rate"))
    if not dry_run:
        await registry.settle(volume)
    await run.delete_packs()
    if not args.get("no_fold"):
        await run.fold()
    await run.remove_beats()
    return run.counts.result(dry_run)


async def reencrypt(volume: Volume, args: Args, progress: Progress) -> Result:
    """Seal everything that an earlier epoch's key sealed again, under the current one.

    args: rate (bytes per second); limit (bytes, then stop).
    """
    registry.check_writable(volume, "re-encrypting")
    epoch = volume.keyring.epoch
    survey = await _look(volume)
    old = [n for n in sorted(survey.live) if survey.rows[n].epoch < epoch]
    mover = _Mover(volume, args.get("rate"), progress)
    limit = args.get("limit")
    for done, number in enumerate(old):
        progress({"done": done, "total": len(old), "text": "packs sealed again"})
        await mover.move(survey.rows[number])
        if limit and mover.moved_bytes >= limit:
            break
    await mover.finish()
    left = [n for n in old if volume.replica.tree.is_named(n)]
    if not left:
        # What commits and checkpoints hold is sealed anew by a checkpoint of every row.
        volume.replica.parts.forget()
        await volume.checkpointer.write()
    text = f"{mover.packs} packs ({mover.moved_bytes} bytes) sealed under the key of epoch {epoch}"
    if left:
        text += f"; {len(left)} packs are left: run it again"
    else:
        text += "; what was sealed before goes with gc, after the retention"
    return {
        "exit_code": OK if not left else WAITING,
        "text": text,
        "epoch": epoch,
        "packs": mover.packs,
        "moved_bytes": mover.moved_bytes,
        "left": len(left),
        "notes": mover.notes,
    }


async def _look(volume: Volume) -> _Survey:
    reader = volume.replica.committed_reader()
    try:
        return await offload(_survey, reader)
    finally:
        reader.close()


def _survey(db: apsw.Connection) -> _Survey:
    rows: Any = db.execute("SELECT pack, name, epoch FROM packs")
    packs = {row[0]: PackRow(row[0], bytes(row[1]), row[2]) for row in rows}
    rows = db.execute(
        "SELECT pack, sum(sealed) FROM (SELECT DISTINCT pack, offset, sealed FROM extents"
        " WHERE pack > 0) GROUP BY pack"
    )
    live = {row[0]: row[1] for row in rows if row[0] in packs}
    rows = db.execute("SELECT pack, since FROM garbage")
    return _Survey(packs, live, {row[0]: row[1] for row in rows})


class _Collection:
    """One run of gc."""

    def __init__(self, volume: Volume, limits: Limits, dry_run: bool, progress: Progress) -> None:
        self._volume = volume
        self._limits = limits
        self._dry = dry_run
        self._progress = progress
        self._store: ObjectStore = uncached(volume.store)
        self._entries: dict[str, Entry] = {}
        self._survey = _Survey({}, {}, {})
        self._snapshots: tuple[int, ...] = ()
        self._kept: set[bytes] = set()
        self.counts = Counts()

    async def prepare(self) -> None:
        """See what is there: other mounts, objects, rows, what snapshots name."""
        volume = self._volume
        await registry.catch_up(volume)
        await volume.presence.look()
        # The listing first: whatever a mount uploads from here on is not in it, and so is safe.
        async for page in list_all(self._store, "packs/"):
            for entry in page.entries:
                self._entries[entry.name] = entry
            self._progress({"done": len(self._entries), "total": 0, "text": "packs in the store"})
        await registry.catch_up(volume)
        rows: Any = volume.replica.db.execute("SELECT DISTINCT seq FROM snapshots ORDER BY seq")
        self._snapshots = tuple(row[0] for row in rows)
        await self._read_snapshots()
        self._survey = await _look(volume)

    async def _read_snapshots(self) -> None:
        """The packs that snapshots name."""
        if not self._snapshots:
            return
        volume = self._volume
        background = Background()
        async with background.running():
            history = History(
                volume.store,
                volume.keyring,
                volume.replica,
                volume.settings.cache_dir / "gc",
                volume.params.chunk_size,
                background,
                keep=1,
            )
            for done, sequence in enumerate(self._snapshots):
                self._progress(
                    {
                        "done": done,
                        "total": len(self._snapshots),
                        "text": "reading what snapshots name",
                    }
                )
                async with history.view(sequence) as tree:
                    names = await offload(
                        lambda db: [
                            bytes(row[0])
                            for row in db.execute(
                                "SELECT name FROM packs WHERE pack IN"
                                " (SELECT pack FROM extents WHERE pack > 0)"
                            )
                        ],
                        tree.db,
                    )
                self._kept.update(names)
            history.close()

    # ---- marking ----------------------------------------------------------------------------

    def _young(self, pack: PackRow) -> bool:
        """Whether a pack is new, or on its way: what names it may be about to be committed."""
        if pack.pack in self._volume.stage.blocked:
            return True
        entry = self._entries.get(chunk_format.pack_name(pack.name))
        return entry is not None and clock.now() - entry.modified < self._limits.compact_age

    async def mark_and_drop(self) -> None:
        """Mark what nothing names; drop what was marked for long enough."""
        volume, survey, counts = self._volume, self._survey, self.counts
        now = clock.now_ns()
        dead = [
            number
            for number, pack in survey.rows.items()
            if number not in survey.live and pack.name not in self._kept
        ]
        fresh = [n for n in dead if n not in survey.marks and not self._young(survey.rows[n])]
        wrong = [n for n in survey.marks if n in survey.live or self._is_kept(n)]
        limit = now - int(self._limits.retention * 1e9)
        old = [n for n in dead if survey.marks.get(n, now + 1) <= limit]
        counts.marked, counts.unmarked, counts.dropped = len(fresh), len(wrong), len(old)
        if self._dry:
            return
        operations: list[ops.Operation] = [
            ops.Mend("garbage", (number, survey.marks[number]), None) for number in wrong
        ]
        operations += [ops.MarkGarbage(tuple(part), now) for part in _batches(fresh, _BATCH)]
        operations += [
            ops.DropPacks(tuple(part), self._snapshots) for part in _batches(old, _BATCH)
        ]
        for operation in operations:
            try:
                volume.replica.record(operation)
            except Refused:
                counts.notes.append("a snapshot was made meanwhile: nothing was dropped")
        if operations:
            await registry.settle(volume)

    def _is_kept(self, number: int) -> bool:
        pack = self._survey.rows.get(number)
        return pack is not None and pack.name in self._kept

    async def repack(self) -> None:
        """Move to packs what fsyncs put into commits and no process has moved since."""
        if self._dry:
            return
        volume = self._volume
        places = await offload(_inlined, volume.replica.reader(), volume.params.inline_limit)
        for batch in _batches(places, 64):
            await volume.fs.repack.move(batch)
        if places:
            await registry.settle(volume)

    # ---- compacting -------------------------------------------------------------------------

    async def compact(self, rate: float | None) -> None:
        """Copy what is live out of packs that are mostly dead."""
        survey = self._survey
        found = []
        for number, live in survey.live.items():
            pack = survey.rows[number]
            entry = self._entries.get(chunk_format.pack_name(pack.name))
            if (
                entry is not None
                and live < entry.size * self._limits.threshold
                and not self._young(pack)
                and pack.name not in self._kept
            ):
                found.append((live / entry.size, pack))
        found.sort()
        self.counts.compacted_packs = len(found)
        self.counts.moved_bytes = sum(survey.live[pack.pack] for _, pack in found)
        if self._dry or not found:
            return
        mover = _Mover(self._volume, rate, self._progress)
        for done, (_, pack) in enumerate(found):
            self._progress({"done": done, "total": len(found), "text": "packs compacted"})
            await mover.move(pack)
        await mover.finish()
        self.counts.compacted_packs = mover.packs
        self.counts.moved_bytes = mover.moved_bytes
        self.counts.notes.extend(mover.notes)

    # ---- deleting ---------------------------------------------------------------------------

    def _stragglers(self, sequence: int) -> list[str]:
        """The mounts that do not stand at *sequence* yet.

        One that was not heard of for longer than the grace is not waited for.
        """
        since = clock.now_ns() - int(self._limits.grace * 1e9)
        return [
            beat.host
            for beat, _ in self._volume.presence.others.values()
            if beat.time_ns > since and beat.sequence < sequence
        ]

    async def delete_packs(self) -> None:
        """Delete the objects of packs that no row names, and that are not new."""
        volume, counts = self._volume, self.counts
        names = self._names()
        limit = clock.now() - self._limits.unknown_grace
        doomed = [
            entry
            for entry in self._entries.values()
            if entry.name not in names and entry.modified < limit and _pack_id(entry.name)
        ]
        if not doomed or self._dry:
            counts.deleted = len(doomed)
            counts.deleted_bytes = sum(entry.size for entry in doomed)
            return
        if not await self._wait_for_mounts(volume.replica.sequence):
            counts.waiting = len(doomed)
            return
        _shuffle(doomed)
        for number, batch in enumerate(_batches(doomed, _DELETES)):
            self._progress(
                {"done": number * _DELETES, "total": len(doomed), "text": "packs deleted"}
            )
            await registry.catch_up(volume)
            await volume.presence.look()
            names = self._names()
            free = [entry for entry in batch if entry.name not in names]
            # However long ago it was heard of: what it holds is all it may ever have of its files.
            held = {name for beat, _ in volume.presence.others.values() for name in beat.holds}
            ready = [entry for entry in free if _pack_id(entry.name) not in held]
            counts.waiting += len(free) - len(ready)
            await self._delete([entry.name for entry in ready])
            counts.deleted += len(ready)
            counts.deleted_bytes += sum(entry.size for entry in ready)

    def _names(self) -> set[str]:
        """The objects of all packs that have a row, also one that is not committed yet."""
        rows: Any = self._volume.replica.db.execute("SELECT name FROM packs")
        return {chunk_format.pack_name(bytes(row[0])) for row in rows}

    async def _wait_for_mounts(self, sequence: int) -> bool:
        deadline = trio.current_time() + _WAIT_FOR_BEATS
        while True:
            await self._volume.presence.look()
            late = self._stragglers(sequence)
            if not late:
                return True
            if trio.current_time() >= deadline:
                self.counts.notes.append(
                    f"not everything was deleted: {', '.join(sorted(set(late)))} has not applied"
                    f" commit {sequence} yet"
                )
                return False
            self._progress(
                {"done": 0, "total": 0, "text": f"waiting for {', '.join(sorted(set(late)))}"}
            )
            await trio.sleep(5)

    async def _delete(self, names: list[str]) -> None:
        limiter = trio.CapacityLimiter(_SIDE_BY_SIDE)

        async def delete(name: str) -> None:
            async with limiter:
                await self._store.delete(name)

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(delete, name)

    # ---- folding the journal ----------------------------------------------------------------

    async def fold(self) -> None:
        """Delete commits and checkpoints that are not needed any more."""
        volume, counts = self._volume, self.counts
        if not self._dry and volume.replica.sequence - volume.replica.checkpoint > 0:
            there = await checkpoint.newest(self._store)
            if len(there) < 2 or there[0] < volume.replica.sequence - 64:
                await write_checkpoint(volume)
        entries: dict[str, Entry] = {}
        async for page in list_all(self._store, "checkpoints/"):
            entries.update((entry.name, entry) for entry in page.entries)
        whole = await self._whole_checkpoints(entries)
        base = self._base(whole)
        if base is None:
            counts.notes.append("the journal is kept whole: it is not older than the retention")
            return
        needed = {m.sequence for m in whole if m.sequence >= base}
        ranges: list[tuple[int, int]] = []
        for seq in self._snapshots:
            start = max((m.sequence for m in whole if m.sequence <= seq), default=0)
            needed.add(start)
            ranges.append((start, seq))
        await self._fold_commits(base, ranges)
        await self._remove_checkpoints(entries, whole, needed, base)

    async def _whole_checkpoints(self, entries: dict[str, Entry]) -> list[Manifest]:
        """The checkpoints that open and have all their parts, oldest first."""
        found = []
        for sequence in await checkpoint.newest(self._store):
            try:
                manifest = await checkpoint.read_manifest(
                    self._store, self._volume.keyring, sequence
                )
            except (Corrupt, Missing, TooNew) as exc:
                self.counts.notes.append(f"checkpoint {sequence} does not count: {exc}")
                continue
            known = self._volume.replica.hash_at(sequence)
            parts = [part for entries in manifest.tables.values() for part in entries]
            if (known is None or known == manifest.head) and all(
                part.object in entries and entries[part.object].size == part.size for part in parts
            ):
                found.append(manifest)
        return sorted(found, key=lambda manifest: manifest.sequence)

    def _base(self, whole: list[Manifest]) -> int | None:
        """The checkpoint behind which all of the journal is kept; None if all must be kept.

        The newest that is older than the retention and the grace, and that no live mount has yet to
        reach; a second one must be there that is not older.
        """
        limit = clock.now_ns() - int(max(self._limits.retention, self._limits.grace) * 1e9)
        since = clock.now_ns() - int(self._limits.grace * 1e9)
        reached = min(
            (
                beat.sequence
                for beat, _ in self._volume.presence.others.values()
                if beat.time_ns > since
            ),
            default=self._volume.replica.sequence,
        )
        fit = [m.sequence for m in whole if m.last[0] <= limit and m.sequence <= reached]
        if not fit or sum(m.sequence >= fit[-1] for m in whole) < 2:
            return None
        return fit[-1]

    async def _fold_commits(self, base: int, ranges: list[tuple[int, int]]) -> None:
        """Delete the commits up to *base*, oldest first, but for those that snapshots need."""
        names: list[str] = []
        async for page in list_all(self._store, "commits/"):
            for entry in page.entries:
                try:
                    sequence = commit.sequence_of(entry.name)
                except Corrupt:
                    continue
                if sequence <= base and not any(a < sequence <= b for a, b in ranges):
                    names.append(entry.name)
            if page.entries and page.entries[-1].name > commit.object_name(base):
                break
        self.counts.folded_commits = len(names)
        if self._dry:
            return
        # Oldest first: a mount that was away finds its place either with all that follows, or not.
        for number, batch in enumerate(_batches(names, 16)):
            self._progress({"done": number * 16, "total": len(names), "text": "commits folded"})
            await self._delete(batch)

    async def _remove_checkpoints(
        self, entries: dict[str, Entry], whole: list[Manifest], needed: set[int], base: int
    ) -> None:
        """Delete manifests that are not needed, then parts that no manifest names."""
        gone = {
            checkpoint.manifest_name(m.sequence)
            for m in whole
            if m.sequence not in needed and m.sequence < base
        }
        self.counts.removed_checkpoints = len(gone)
        if not self._dry:
            await self._delete(sorted(gone))
        # Looked at again, for another mount may have written one that builds on those.
        named: set[str] = set()
        for sequence in await checkpoint.newest(self._store):
            name = checkpoint.manifest_name(sequence)
            if self._dry and name in gone:
                continue
            named.add(name)
            try:
                manifest = await checkpoint.read_manifest(
                    self._store, self._volume.keyring, sequence
                )
            except Missing:
                continue
            except (Corrupt, TooNew):
                # Damaged: what it names is not known, so no part can be told to be nobody's.
                self.counts.notes.append(
                    f"checkpoint {sequence} does not open: no part was removed"
                )
                return
            named.update(part.object for parts in manifest.tables.values() for part in parts)
        limit = clock.now() - self._limits.grace
        parts = [
            entry.name
            for entry in entries.values()
            if entry.name not in named and entry.name not in gone and entry.modified < limit
        ]
        self.counts.removed_parts = len(parts)
        if not self._dry:
            _shuffle(parts)
            await self._delete(parts)

    async def remove_beats(self) -> None:
        """Delete the heartbeats of mounts that ended long ago without a word."""
        since = clock.now_ns() - int(DEAD_BEAT * 1e9)
        old = [
            name_of(mount)
            for mount, (beat, _) in self._volume.presence.others.items()
            if beat.time_ns < since
        ]
        self.counts.removed_beats = len(old)
        if not self._dry:
            await self._delete(old)


def _inlined(reader: apsw.Connection, limit: int) -> list[tuple[int, int, int]]:
    """Where pieces longer than *limit* lie in the tree: (inode, start, size); in a thread."""
    try:
        rows: Any = reader.execute(
            "SELECT ino, start, length FROM extents WHERE pack=0 AND length>?", (limit,)
        )
        return list(rows)
    finally:
        reader.close()


class _Mover:
    """Seals chunks of old packs again in new ones, and records where they are now."""

    def __init__(self, volume: Volume, rate: float | None, progress: Progress) -> None:
        self._volume = volume
        self._store: ObjectStore = uncached(volume.store)
        self._pace = Pace(float(rate) if rate else None)
        self._priority = Priority(BACKGROUND)
        self._progress = progress
        self._unsettled = 0
        self.packs = 0
        self.moved_bytes = 0
        self.notes: list[str] = []

    async def move(self, pack: PackRow) -> None:
        """Copy every chunk of *pack* that is named."""
        whole = True
        for group in _groups(self._chunks(pack.pack)):
            whole &= await self._move_group(pack, group)
            if self._unsettled >= _MOVE:
                await self.finish()
        self.packs += whole

    async def finish(self) -> None:
        """Bring what was moved into the journal."""
        self._unsettled = 0
        await registry.settle(self._volume)

    def _chunks(self, number: int) -> list[Extent]:
        rows: Any = self._volume.replica.db.execute(
            "SELECT DISTINCT offset, sealed, plain, digest FROM extents"
            " WHERE pack=? AND pack>0 ORDER BY offset",
            (number,),
        )
        return [Extent(0, r[2], number, r[0], r[1], r[2], 0, r[3], None) for r in rows]

    async def _move_group(self, pack: PackRow, group: list[Extent]) -> bool:
        volume = self._volume
        start = group[0].offset
        length = max(extent.offset + extent.sealed for extent in group) - start
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
        self._unsettled += size
        return not bad


def _open(
    keyring: Keyring, pack: PackRow, group: list[Extent], start: int, body: bytes
) -> tuple[list[tuple[Extent, bytes | memoryview]], list[str]]:
    """The data of the chunks that are whole, and what is to be said of the others."""
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


def _groups(extents: list[Extent]) -> list[list[Extent]]:
    """Chunks of one pack in runs that one get brings and that fit into memory a few times."""
    groups: list[list[Extent]] = []
    for extent in extents:
        last = groups[-1] if groups else None
        if (
            last is not None
            and extent.offset - (last[-1].offset + last[-1].sealed) <= 256 << 10
            and extent.offset + extent.sealed - last[0].offset <= 4 << 20
        ):
            last.append(extent)
        else:
            groups.append([extent])
    return groups


def _pack_id(name: str) -> bytes | None:
    """The random id in a pack's object name; None if it is not one."""
    parts = name.split("/")
    if len(parts) == 3 and len(parts[2]) == 32 and parts[2].startswith(parts[1]):
        try:
            return bytes.fromhex(parts[2])
        except ValueError:
            return None
    return None


def _batches(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _shuffle(items: list[Any]) -> None:
    """Random order: deletes that follow one another then say nothing of which files they were."""
    for last in range(len(items) - 1, 0, -1):
        other = int.from_bytes(clock.random_bytes(8), "big") % (last + 1)
        items[last], items[other] = items[other], items[last]
