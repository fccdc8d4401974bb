"""Remove from the store what nobody needs any more, while other mounts go on working.

    mark      packs that no file and no snapshot names are marked, in the journal, with the time
    drop      those marked for longer than the retention lose their row, if still nothing names them
    delete    the objects of packs without a row, once every live mount stands behind that commit
    compact   chunks of packs that are mostly dead are sealed again elsewhere (`Relocate`)
    fold      commits, checkpoints and parts that neither the retention nor a snapshot needs

Everything that decides is an operation in the journal, checked again wherever it lands; what only
deletes objects comes after, in batches in random order, and looks again before each.  A run that is
interrupted anywhere leaves only work for the next one.  docs/maintenance.md goes through the races.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

import apsw
import trio
from msgspec import Struct, field
from msgspec.structs import asdict

from megafs import clock
from megafs.chunks import codec as chunk_format
from megafs.concurrency import Background, offload
from megafs.errors import BadUsage, Corrupt, Missing, Refused, TooNew
from megafs.history.earlier_trees import History
from megafs.jobs.committing import catch_up, check_writable, commit_all
from megafs.jobs.messages import GcArgs, GcResult
from megafs.jobs.pack_survey import PackSurvey, survey_packs
from megafs.jobs.reseal import Resealer
from megafs.journal import checkpoint, commit
from megafs.journal.checkpoint import Manifest
from megafs.journal.heartbeat import name_of
from megafs.progress import OnProgress, Progress
from megafs.stores.abilities import uncached
from megafs.stores.base import Entry, ObjectStore, list_all
from megafs.tree import link_records, ops, queries_history, queries_packs
from megafs.tree.queries_packs import FileRange
from megafs.tree.schema import PackRow
from megafs.volume.upkeep import write_checkpoint
from megafs.volume.volume import Volume

log = logging.getLogger(__name__)

T = TypeVar("T")

DAY: Final = 86400.0
#: How long what is not named any more is kept, so that the past can be looked at.
RETENTION: Final = 30 * DAY
#: How long an object that no commit names is left alone: it may be on its way into one.
UNKNOWN_GRACE: Final = 7 * DAY
#: How long a mount that is not heard of is waited for; and the youngest journal that is folded.
GRACE: Final = DAY
#: The shortest grace that may be asked for: the writer trusts what it saw for an hour
#: (journal/follower.py), and heartbeats come every half minute.
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
    def of(cls, args: GcArgs) -> Limits:
        """Those that were asked for, and the defaults; BadUsage if they are not safe."""
        default = cls()
        made = cls(
            default.retention if args.retention is None else args.retention,
            default.grace if args.grace is None else args.grace,
            default.unknown_grace if args.unknown_grace is None else args.unknown_grace,
            default.threshold if args.threshold is None else args.threshold,
            default.compact_age if args.compact_age is None else args.compact_age,
        )
        if made.grace < SHORTEST_GRACE or made.unknown_grace < SHORTEST_GRACE:
            raise BadUsage(
                f"a grace below {SHORTEST_GRACE / 3600:g} h is not safe for other mounts"
            )
        if made.retention < 0 or not 0 <= made.threshold <= 1:
            raise BadUsage("the retention is at least 0, the threshold from 0 to 1")
        return made


class Counts(Struct):
    """The work of a run, done or with dry_run only counted."""

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
    removed_shares: int = 0
    notes: list[str] = field(default_factory=list)

    def result(self, dry_run: bool) -> GcResult:
        would = "would be " if dry_run else ""
        text = (
            f"{self.marked} packs {would}marked, {self.dropped} {would}dropped, {self.deleted}"
            f" objects ({self.deleted_bytes} bytes) {would}deleted, {self.compacted_packs} packs"
            f" {would}compacted, {self.folded_commits} commits {would}folded"
        )
        if self.waiting:
            text += f"; {self.waiting} objects wait for other mounts: run gc again later"
        return GcResult(exit_code=WAITING if self.waiting else OK, text=text, **asdict(self))


async def collect_garbage(volume: Volume, args: GcArgs, on_progress: OnProgress) -> GcResult:
    """Remove what neither a file, nor a snapshot, nor another mount needs any more."""
    return await collect(volume, Limits.of(args), args, on_progress)


async def collect(
    volume: Volume, limits: Limits, args: GcArgs, on_progress: OnProgress
) -> GcResult:
    """As `collect_garbage`, with limits of which not even the shortest is checked."""
    check_writable(volume, "collecting garbage")
    run = _Collection(volume, limits, args.dry_run, on_progress)
    await run.prepare()
    await run.mark_and_drop()
    if not args.no_compact:
        await run.repack()
        await run.compact(args.rate)
    if not args.dry_run:
        await commit_all(volume)
    await run.delete_packs()
    if not args.no_fold:
        await run.fold()
    await run.remove_beats()
    await run.remove_shares()
    return run.counts.result(args.dry_run)


class _Collection:
    """One run of gc."""

    def __init__(
        self, volume: Volume, limits: Limits, dry_run: bool, on_progress: OnProgress
    ) -> None:
        self._volume = volume
        self._limits = limits
        self._dry = dry_run
        self._on_progress = on_progress
        self._store: ObjectStore = uncached(volume.store)
        self._entries: dict[str, Entry] = {}
        self._survey = PackSurvey({}, {}, {})
        self._snapshots: tuple[int, ...] = ()
        self._kept: set[bytes] = set()  # names of packs that snapshots or links need
        self.counts = Counts()

    async def prepare(self) -> None:
        """See what is there: other mounts, objects, rows, what snapshots name."""
        volume = self._volume
        await catch_up(volume)
        await volume.heartbeats.look()
        # The listing first: whatever a mount uploads from here on is not in it, and so is safe.
        async for page in list_all(self._store, "packs/"):
            for entry in page.entries:
                self._entries[entry.name] = entry
            self._on_progress(Progress(len(self._entries), 0, "packs in the store"))
        await catch_up(volume)
        self._snapshots = queries_history.snapshot_sequences(volume.replica.db)
        await self._read_snapshots()
        self._survey = await survey_packs(volume)
        rows = self._survey.rows
        linked = link_records.linked_packs(volume.replica.db)
        self._kept.update(rows[number].name for number in linked if number in rows)

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
                self._on_progress(
                    Progress(done, len(self._snapshots), "reading what snapshots name")
                )
                async with history.view(sequence) as tree:
                    names = await offload(queries_packs.named_pack_names, tree.db)
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
            await commit_all(volume)

    def _is_kept(self, number: int) -> bool:
        pack = self._survey.rows.get(number)
        return pack is not None and pack.name in self._kept

    async def repack(self) -> None:
        """Move to packs what fsyncs put into commits and no process has moved since."""
        if self._dry:
            return
        volume = self._volume
        pieces = await offload(_inlined, volume.replica.reader(), volume.params.inline_limit)
        for batch in _batches(pieces, 64):
            await volume.fs.repack.move(batch)
        if pieces:
            await commit_all(volume)

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
        resealer = Resealer(self._volume, rate)
        for done, (_, pack) in enumerate(found):
            self._on_progress(Progress(done, len(found), "packs compacted"))
            await resealer.reseal(pack)
        await resealer.finish()
        self.counts.compacted_packs = resealer.packs
        self.counts.moved_bytes = resealer.moved_bytes
        self.counts.notes.extend(resealer.notes)

    # ---- deleting ---------------------------------------------------------------------------

    def _stragglers(self, sequence: int) -> list[str]:
        """The mounts that do not stand at *sequence* yet.

        One that was not heard of for longer than the grace is not waited for.
        """
        since = clock.now_ns() - int(self._limits.grace * 1e9)
        return [
            beat.host
            for beat, _ in self._volume.heartbeats.others.values()
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
            self._on_progress(Progress(number * _DELETES, len(doomed), "packs deleted"))
            await catch_up(volume)
            await volume.heartbeats.look()
            names = self._names()
            free = [entry for entry in batch if entry.name not in names]
            # However old the heartbeat: these packs may be all there is of what that mount has not
            # committed yet.
            held = {name for beat, _ in volume.heartbeats.others.values() for name in beat.holds}
            ready = [entry for entry in free if _pack_id(entry.name) not in held]
            counts.waiting += len(free) - len(ready)
            await self._delete([entry.name for entry in ready])
            counts.deleted += len(ready)
            counts.deleted_bytes += sum(entry.size for entry in ready)

    def _names(self) -> set[str]:
        """The objects of all packs that have a row, also one that is not committed yet."""
        names = queries_packs.pack_names(self._volume.replica.db)
        return {chunk_format.pack_name(name) for name in names}

    async def _wait_for_mounts(self, sequence: int) -> bool:
        deadline = trio.current_time() + _WAIT_FOR_BEATS
        while True:
            await self._volume.heartbeats.look()
            late = self._stragglers(sequence)
            if not late:
                return True
            if trio.current_time() >= deadline:
                self.counts.notes.append(
                    f"not everything was deleted: {', '.join(sorted(set(late)))} has not applied"
                    f" commit {sequence} yet"
                )
                return False
            self._on_progress(Progress(0, 0, f"waiting for {', '.join(sorted(set(late)))}"))
            await trio.sleep(5)

    async def _delete(self, names: Sequence[str]) -> None:
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
            # What lies beyond the journal's end is not ours, whatever its name says.
            there = [
                n for n in await checkpoint.newest(self._store) if n <= volume.replica.sequence
            ]
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
        needed: set[int] = {m.sequence for m in whole if m.sequence >= base}
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
                for beat, _ in self._volume.heartbeats.others.values()
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
            self._on_progress(Progress(number * 16, len(names), "commits folded"))
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
            for mount, (beat, _) in self._volume.heartbeats.others.items()
            if beat.time_ns < since
        ]
        self.counts.removed_beats = len(old)
        if not self._dry:
            await self._delete(old)

    async def remove_shares(self) -> None:
        """Delete what links have left behind: objects below share/ of no link that there is."""
        limit = clock.now() - self._limits.unknown_grace
        entries: list[Entry] = []
        async for page in list_all(self._store, "share/"):
            entries += [entry for entry in page.entries if entry.modified < limit]
        if not entries:
            return
        await catch_up(self._volume)
        links = {record.id for record in link_records.records(self._volume.replica.db)}
        left = [entry.name for entry in entries if entry.name.split("/")[1] not in links]
        self.counts.removed_shares = len(left)
        if not self._dry:
            await self._delete(left)


def _inlined(reader: apsw.Connection, limit: int) -> list[FileRange]:
    """Pieces longer than *limit* that lie in the tree; in a thread, which closes *reader*."""
    try:
        return queries_packs.long_inlined(reader, limit)
    finally:
        reader.close()


def _pack_id(name: str) -> bytes | None:
    """The random id in a pack's object name; None if it is not one."""
    parts = name.split("/")
    if len(parts) == 3 and len(parts[2]) == 32 and parts[2].startswith(parts[1]):
        try:
            return bytes.fromhex(parts[2])
        except ValueError:
            return None
    return None


def _batches(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _shuffle(items: list[T]) -> None:
    """Random order: deletes that follow one another then say nothing of which files they were."""
    for last in range(len(items) - 1, 0, -1):
        other = int.from_bytes(clock.random_bytes(8), "big") % (last + 1)
        items[last], items[other] = items[other], items[last]
