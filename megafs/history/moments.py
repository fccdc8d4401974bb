"""The past of a volume: which moments there are, and the tree as it was at one of them.

The journal is never rewritten and packs are immutable, so every moment whose commits are still in
the store can be read.  A moment is named by the sequence number of its last commit, by a time or by
the name of a snapshot (`parse_moment`).  Times are those that the writers' clocks gave their
commits; the moment of a time is just before the first commit that is later.

A view is the tree at one sequence number: an SQLite file in the cache directory, sealed under a key
that only this process's memory holds and without a name (so nothing is left of it, however the
process ends), filled from the newest checkpoint before that moment and the commits in between.
Every commit is checked against the chain of hashes that the replica knows.  A few views are kept
for the next one who asks.
"""

from __future__ import annotations

import datetime
import itertools
import logging
import os
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import apsw
import trio
from msgspec import Struct, field

from megafs import clock
from megafs.concurrency import Background, offload, one_error_nursery
from megafs.crypto.volume_keys import Keyring, digest
from megafs.errors import (
    BadUsage,
    Corrupt,
    Fault,
    Full,
    MegafsError,
    Missing,
    Unavailable,
    leaf,
)
from megafs.journal import checkpoint
from megafs.journal import commit as commit_format
from megafs.journal.commit import Commit
from megafs.journal.replica import Replica
from megafs.stores.base import ObjectStore
from megafs.tree.schema import BY_NAME, INDEXES, REPLICATED, PackRow
from megafs.tree.tree import Tree

log = logging.getLogger(__name__)

#: Views that are kept.
VIEWS: Final = 3
#: Commits fetched side by side, and applied in one hop to a thread.
_WINDOW: Final = 32
_FETCHES: Final = 8

Progress = Callable[[int, int], None]

_UNITS = {
    "s": 1,
    "sec": 1,
    "second": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hour": 3600,
    "d": 86400,
    "day": 86400,
    "w": 604800,
    "week": 604800,
    "month": 30 * 86400,
    "year": 365 * 86400,
}


class Moment(Struct, frozen=True):
    """What a text names: one of the three is set."""

    sequence: int | None = None
    time_ns: int | None = None
    name: str | None = None


def parse_moment(text: str, now_ns: int) -> Moment:
    """What *text* means.

    "1234" and "@1234" are sequence numbers; "now", "2h ago", "2026-11-23", "2026-11-23 14:05" and
    "2026-11-23T14:05:00Z" are times (without a zone: of this machine); anything else is the name of
    a snapshot.
    """
    text = text.strip()
    digits = text.removeprefix("@")
    if digits.isascii() and digits.isdecimal():
        return Moment(sequence=int(digits))
    if text.lower() == "now":
        return Moment(time_ns=now_ns)
    ago = re.match(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s+ago\Z", text, re.IGNORECASE)
    if ago is not None:
        unit = ago.group(2).lower()
        seconds = _UNITS.get(unit) or _UNITS.get(unit.removesuffix("s"))
        if seconds is not None:
            return Moment(time_ns=now_ns - int(float(ago.group(1)) * seconds * 1e9))
    if re.match(r"\d{4}-?\d\d-?\d\d", text):
        try:
            when = datetime.datetime.fromisoformat(text)
            return Moment(time_ns=int(when.timestamp()) * 10**9 + when.microsecond * 1000)
        except (ValueError, OverflowError):
            pass
    return Moment(name=text)


def show_time(time_ns: int) -> str:
    """A time as people and `parse_moment` read it: UTC, to the second."""
    when = datetime.datetime.fromtimestamp(time_ns // 10**9, datetime.UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def scratch(directory: Path, cache_kib: int = 4096) -> apsw.Connection:
    """A database for a while: a file without a name, under a key that only memory holds."""
    path = directory / f"scratch-{clock.random_bytes(8).hex()}"
    old = os.umask(0o077)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        db = apsw.Connection(str(path))
        try:
            db.pragma("hexkey", clock.random_bytes(32).hex())
            db.pragma("temp_store", 2)
            db.pragma("cache_size", -cache_kib)
            db.pragma("journal_mode", "memory")
            db.pragma("synchronous", 0)
            db.pragma("locking_mode", "exclusive")
            db.execute("CREATE TABLE scratch(x)")  # opens the file, which may then lose its name
        except BaseException:
            db.close()
            raise
        finally:
            path.unlink(missing_ok=True)
    except apsw.FullError as exc:
        raise Full(f"{directory}: the disk is full") from exc
    except (apsw.Error, OSError) as exc:
        raise Fault(f"{directory}: {exc}") from exc
    finally:
        os.umask(old)
    return db


class _View(Struct):
    """A view that is ready.  users: who reads it right now."""

    db: apsw.Connection
    tree: Tree
    users: int = 0


class _Building(Struct):
    """A view that is being made; those who wait for it look here."""

    done: trio.Event = field(default_factory=trio.Event)
    error: MegafsError | None = None
    progress: tuple[int, int] = (0, 0)


class History:
    """The moments of one volume, and views of them.

    directory: where views lie; made when the first one is.  longest: the volume's chunk size.
    background: runs the tasks that make views.
    """

    def __init__(
        self,
        store: ObjectStore,
        keyring: Keyring,
        replica: Replica,
        directory: Path,
        longest: int,
        background: Background,
        *,
        keep: int = VIEWS,
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._replica = replica
        self._longest = longest
        self._background = background
        self._keep = keep
        self._views: OrderedDict[int, _View] = OrderedDict()
        self._building: dict[int, _Building] = {}
        self._times: dict[int, int] = {}
        self.directory = directory

    # ---- moments ----------------------------------------------------------------------------

    def snapshots(self) -> list[tuple[str, int, int]]:
        """The snapshots by name: (name, sequence, time in ns)."""
        rows: list[Any] = self._replica.tree.db.execute(
            "SELECT name, seq, time FROM snapshots ORDER BY name"
        ).fetchall()
        return rows

    def snapshot(self, name: str) -> int | None:
        """The sequence number of a snapshot, or None if there is none of that name."""
        found = self._replica.tree.one("SELECT seq FROM snapshots WHERE name=?", (name,))
        return None if found is None else int(found)

    async def resolve(self, text: str) -> int:
        """The sequence number of the moment that *text* names; BadUsage if there is none."""
        now = clock.now_ns()
        by_name = self.snapshot(text)
        if by_name is not None:
            return by_name
        moment = parse_moment(text, now)
        if moment.name is not None:
            raise BadUsage(
                f"{text}: neither a snapshot nor a time (examples: 2026-11-23,"
                " 2026-11-23T14:05:00Z, '2h ago', or a commit's number)"
            )
        if moment.sequence is not None:
            if not 1 <= moment.sequence <= self._replica.sequence:
                raise BadUsage(
                    f"there is no commit {moment.sequence}: they go from 1 to"
                    f" {self._replica.sequence}"
                )
            return moment.sequence
        assert moment.time_ns is not None
        if moment.time_ns > now:
            raise BadUsage(f"{text} is in the future")
        return await self.sequence_at(moment.time_ns)

    async def sequence_at(self, time_ns: int) -> int:
        """The last commit before the first one that is later than *time_ns*.

        Raises BadUsage if the journal does not reach back that far.
        """
        replica = self._replica
        one = replica.tree.one
        # What came from a checkpoint is known by its hash only: its time is in the commit.
        unknown = one("SELECT max(seq) FROM history WHERE time=0") or 0
        first = one("SELECT min(seq) FROM history") or 1
        if not unknown and first > 1:
            unknown = first - 1
        later = one("SELECT min(seq) FROM history WHERE time>? AND seq>?", (time_ns, unknown))
        if later is None:
            return replica.sequence
        if later > unknown + 1:
            return int(later) - 1
        low, high = await self.oldest() - 1, int(later)
        there = False
        while high - low > 1:
            middle = (low + high) // 2
            try:
                is_later = await self.time_of(middle) > time_ns
                there = there or not is_later
            except Missing:
                # Folded by gc: what snapshots need lies apart from the rest, and has a name.
                is_later = there = False
            if is_later:
                high = middle
            else:
                low = middle
        if not there:
            raise BadUsage(
                f"the journal begins at {show_time(await self.time_of(high))}: nothing is known of"
                f" {show_time(time_ns)}"
            )
        return low

    async def oldest(self) -> int:
        """The first commit that is in the store."""
        page = await self._store.list("commits/", limit=1)
        if not page.entries:
            raise Missing("there is no commit in the store")
        return commit_format.sequence_of(page.entries[0].name)

    async def time_of(self, sequence: int) -> int:
        """The time of a commit, in ns."""
        known = self._times.get(sequence) or self._replica.tree.one(
            "SELECT time FROM history WHERE seq=?", (sequence,)
        )
        if known:
            return int(known)
        _, commit = await self.commit(sequence)
        if len(self._times) > 10_000:
            self._times.clear()
        self._times[sequence] = commit.time_ns
        return commit.time_ns

    # ---- commits ----------------------------------------------------------------------------

    async def commit(self, sequence: int) -> tuple[bytes, Commit]:
        """One commit and its hash, checked against what the replica knows of it."""
        name = commit_format.object_name(sequence)
        try:
            data = await self._store.get(name, 0, commit_format.MAX_OBJECT)
        except Missing as exc:
            raise Missing(f"{name} is not in the store: the past is kept only so far back") from exc
        made = digest(data)
        known = self._replica.hash_at(sequence)
        if known is not None and known != made:
            raise Corrupt(f"{name} is not the commit that this machine has seen")
        return made, commit_format.open_commit(self._keyring, sequence, data)

    async def commits(self, first: int, last: int) -> list[tuple[bytes, Commit]]:
        """The commits *first* to *last*, fetched side by side; each follows the one before it."""
        found: dict[int, tuple[bytes, Commit]] = {}
        limiter = trio.CapacityLimiter(_FETCHES)

        async def fetch(sequence: int) -> None:
            async with limiter:
                found[sequence] = await self.commit(sequence)

        async with one_error_nursery() as nursery:
            for sequence in range(first, last + 1):
                nursery.start_soon(fetch, sequence)
        ordered = [found[sequence] for sequence in range(first, last + 1)]
        for number, ((before, _), (_, after)) in enumerate(itertools.pairwise(ordered), first + 1):
            if after.prev != before:
                raise Corrupt(f"commit {number} does not follow commit {number - 1}")
        return ordered

    # ---- views ------------------------------------------------------------------------------

    def at_hand(self, sequence: int) -> Tree | None:
        """The tree at *sequence*, if its view is ready."""
        view = self._views.get(sequence)
        return None if view is None else view.tree

    def pack(self, number: int) -> PackRow | None:
        """A pack that some view knows, though the present tree may not."""
        for view in self._views.values():
            row = view.db.execute(
                "SELECT pack, name, epoch FROM packs WHERE pack=?", (number,)
            ).fetchone()
            if row is not None:
                return PackRow(*row)
        return None

    async def have(
        self, sequence: int, patience: float | None = None, progress: Progress | None = None
    ) -> Tree:
        """The tree at *sequence*, made if need be.  It holds until the caller awaits again.

        patience: seconds to wait; then Unavailable, and the view goes on being made.
        """
        return (await self._have(sequence, patience, progress)).tree

    @asynccontextmanager
    async def view(
        self, sequence: int, patience: float | None = None, progress: Progress | None = None
    ) -> AsyncIterator[Tree]:
        """The tree at *sequence*, for the block; not to be changed.

        patience: as for `have`.  progress: called with (steps done, steps in all).
        """
        view = await self._have(sequence, patience, progress)
        view.users += 1
        try:
            yield view.tree
        finally:
            view.users -= 1
            self._evict()

    async def _have(
        self, sequence: int, patience: float | None, progress: Progress | None
    ) -> _View:
        deadline = trio.current_time() + (float("inf") if patience is None else patience)
        while True:
            view = self._views.get(sequence)
            if view is not None:
                self._views.move_to_end(sequence)
                return view
            building = self._building.get(sequence)
            if building is None:
                building = _Building()
                if not self._background.start(self._make, sequence, building):
                    raise Unavailable("the volume is being closed")
                self._building[sequence] = building
            while not building.done.is_set() and trio.current_time() < deadline:
                if progress is not None:
                    progress(*building.progress)
                with trio.move_on_at(min(deadline, trio.current_time() + 0.5)):
                    await building.done.wait()
            if not building.done.is_set():
                done, total = building.progress
                raise Unavailable(
                    f"the tree as of commit {sequence} is still being read ({done} of"
                    f" {total or '?'} parts): try again"
                )
            if building.error is not None:
                raise building.error

    def _evict(self, coming: int = 0) -> None:
        for sequence, view in list(self._views.items()):
            if len(self._views) + coming <= self._keep:
                return
            if not view.users:
                del self._views[sequence]
                view.db.close()

    def close(self) -> None:
        """Forget every view."""
        for view in self._views.values():
            view.db.close()
        self._views.clear()

    async def _make(self, sequence: int, building: _Building) -> None:
        """Make a view; whoever waits learns how it went."""

        def progress(done: int, total: int) -> None:
            building.progress = (done, total)

        try:
            self._evict(1)
            db = await self._build(sequence, progress)
            self._views[sequence] = _View(db, Tree(db, self._longest))
        except Exception as exc:
            cause = leaf(exc)
            if isinstance(cause, MegafsError):
                building.error = cause
            else:
                log.exception("the tree as of commit %d could not be read; a bug", sequence)
                building.error = Fault(f"the tree as of commit {sequence}: {cause}")
        finally:
            if sequence not in self._views and building.error is None:
                building.error = Unavailable("the volume is being closed")
            del self._building[sequence]
            building.done.set()

    async def _build(self, sequence: int, progress: Progress) -> apsw.Connection:
        """The tree at *sequence*, from the newest checkpoint before it that is whole."""
        there = [n for n in await checkpoint.newest(self._store) if n <= sequence]
        for start in there:
            try:
                manifest = await checkpoint.read_manifest(self._store, self._keyring, start)
                return await self._build_from(manifest, sequence, progress)
            except (Corrupt, Missing) as exc:
                log.warning("checkpoint %d does not lead to commit %d: %s", start, sequence, exc)
        return await self._build_from(None, sequence, progress)

    async def _build_from(
        self, manifest: checkpoint.Manifest | None, sequence: int, progress: Progress
    ) -> apsw.Connection:
        start, head = 0, commit_format.genesis(self._keyring.fsid)
        jobs = []
        if manifest is not None:
            start, head = manifest.sequence, manifest.head
            known = self._replica.hash_at(start)
            if known is not None and known != head:
                raise Corrupt(f"checkpoint {start} is of another history")
            jobs = [
                (table, entry)
                for table in REPLICATED
                for entry in manifest.tables.get(table.name, ())
            ]
        total = len(jobs) + (sequence - start)
        db = scratch(self.directory)
        try:
            await offload(_make_tables, db)
            for n, (table, entry) in enumerate(jobs):
                rows = await checkpoint.read_part(self._store, self._keyring, entry)
                await offload(_insert, db, table.name, len(table.columns), rows)
                progress(n + 1, total)
            for first in range(start + 1, sequence + 1, _WINDOW):
                last = min(sequence, first + _WINDOW - 1)
                commits = await self.commits(first, last)
                if commits[0][1].prev != head:
                    raise Corrupt(f"commit {first} does not follow commit {first - 1}")
                head = commits[-1][0]
                await offload(_apply, db, first, [commit for _, commit in commits])
                progress(len(jobs) + last - start, total)
            await self._check_leads_on(sequence, head)
            await offload(_finish, db)
        except apsw.FullError as exc:
            db.close()
            raise Full(f"{self.directory}: the disk is full") from exc
        except apsw.Error as exc:
            db.close()
            raise Corrupt(f"the tree as of commit {sequence}: {exc}") from exc
        except BaseException:
            db.close()
            raise
        return db

    async def _check_leads_on(self, sequence: int, head: bytes) -> None:
        """Raise Corrupt unless the commits after *sequence* lead to one that the replica knows."""
        first, last = self._replica.tree.db.execute(
            "SELECT min(seq), max(seq) FROM history"
        ).fetchone() or (None, None)
        while first is not None and sequence < first <= last:
            upto = min(first, sequence + _WINDOW)
            try:
                commits = await self.commits(sequence + 1, upto)
            except Missing:
                # Folded by gc.  That the keys open it, for its number, is what is left to go by.
                log.info("commit %d: what follows it is gone, and so is its hash here", sequence)
                return
            if commits[0][1].prev != head:
                raise Corrupt(f"commit {sequence + 1} does not follow commit {sequence}")
            sequence, head = upto, commits[-1][0]
        known = self._replica.hash_at(sequence)
        if known is not None and known != head:
            raise Corrupt(f"commit {sequence} is not the one that this machine has seen")


def _make_tables(db: apsw.Connection) -> None:
    with db:
        for table in REPLICATED:
            db.execute(table.sql)


def _insert(db: apsw.Connection, table: str, columns: int, rows: list[list[Any]]) -> None:
    marks = ",".join("?" * columns)
    with db:
        db.executemany(f"INSERT INTO {table} VALUES({marks})", rows)


def _apply(db: apsw.Connection, first: int, commits: list[Commit]) -> None:
    with db:
        for number, commit in enumerate(commits, first):
            changeset = commit_format.unpack_changeset(commit)
            if not changeset:
                continue
            try:
                apsw.Changeset.apply(
                    changeset, db, filter=BY_NAME.__contains__, conflict=_no_conflict
                )
            except apsw.FullError:
                raise
            except apsw.Error as exc:
                raise Corrupt(f"commit {number} does not fit the tree: {exc}") from exc


def _finish(db: apsw.Connection) -> None:
    for sql in INDEXES:
        db.execute(sql)
    db.pragma("query_only", 1)


def _no_conflict(_reason: int, _change: apsw.TableChange) -> int:
    return apsw.SQLITE_CHANGESET_ABORT
