"""The commits that are still in the store, by number, by time and by the name of a snapshot.

The journal is never rewritten, so every moment whose commits are in the store can be read.  Times
are those that the writers' clocks gave their commits; the moment of a time is just before the first
commit that is later.  Every commit is checked against the hash that the replica knows of it.
"""

from __future__ import annotations

import itertools
from typing import Final

import trio

from megafs import clock
from megafs.concurrency import one_error_nursery
from megafs.crypto.volume_keys import Keyring, digest
from megafs.errors import BadUsage, Corrupt, Missing
from megafs.history.moments import parse_moment, show_time
from megafs.journal import commit as commit_format
from megafs.journal.commit import Commit
from megafs.journal.replica import Replica
from megafs.stores.base import ObjectStore
from megafs.tree import queries_history
from megafs.tree.schema import SnapshotRow

#: Commits fetched side by side.
_FETCHES: Final = 8
#: Times of commits that are remembered.
_TIMES: Final = 10_000


class TooOld(BadUsage):
    """The journal begins later than the time that was asked for."""


class PastCommits:
    """The journal of one volume, as far back as the store has it."""

    def __init__(self, store: ObjectStore, keyring: Keyring, replica: Replica) -> None:
        self._store = store
        self._keyring = keyring
        self._times: dict[int, int] = {}
        self.replica = replica

    # ---- moments ----------------------------------------------------------------------------

    def snapshots(self) -> list[SnapshotRow]:
        """The snapshots, by name."""
        return queries_history.snapshots(self.replica.tree.db)

    def snapshot(self, name: str) -> int | None:
        """The sequence number of a snapshot, or None if there is none of that name."""
        return queries_history.snapshot(self.replica.tree.db, name)

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
            if not 1 <= moment.sequence <= self.replica.sequence:
                raise BadUsage(
                    f"there is no commit {moment.sequence}: they go from 1 to"
                    f" {self.replica.sequence}"
                )
            return moment.sequence
        assert moment.time_ns is not None
        if moment.time_ns > now:
            raise BadUsage(f"{text} is in the future")
        return await self.sequence_at(moment.time_ns)

    async def sequence_at(self, time_ns: int) -> int:
        """The last commit before the first one that is later than *time_ns*.

        Raises TooOld if the journal does not reach back that far.
        """
        replica = self.replica
        # What came from a checkpoint is known by its hash only: its time is in the commit.
        unknown = queries_history.last_without_time(replica.tree.db)
        later = queries_history.first_later(replica.tree.db, time_ns, unknown)
        if later is None:
            return replica.sequence
        if later > unknown + 1:
            return later - 1
        low, high = await self.oldest() - 1, later
        there = False
        while high - low > 1:
            middle = (low + high) // 2
            try:
                is_later = await self.time_of(middle) > time_ns
                there = there or not is_later
            except Missing:
                # Folded by gc.  What is left before it is kept for snapshots, and is found by their
                # names, not by a time.
                is_later = there = False
            if is_later:
                high = middle
            else:
                low = middle
        if not there:
            raise TooOld(
                f"the journal begins at {show_time(await self.time_of(high))}: nothing is known of"
                f" {show_time(time_ns)}"
            )
        return low

    async def first_since(self, text: str | None) -> int:
        """The first commit after the moment that *text* names, or of that number; 1 without one.

        A time before all that is known means the first commit.
        """
        if not text:
            return 1
        moment = parse_moment(text, 0)
        if moment.sequence is not None:
            return moment.sequence
        try:
            return await self.resolve(text) + 1
        except TooOld:
            return 1

    async def oldest(self) -> int:
        """The first commit that is in the store."""
        page = await self._store.list("commits/", limit=1)
        if not page.entries:
            raise Missing("there is no commit in the store")
        return commit_format.sequence_of(page.entries[0].name)

    async def time_of(self, sequence: int) -> int:
        """The time of a commit, in ns."""
        known = self._times.get(sequence) or queries_history.time_of(self.replica.tree.db, sequence)
        if known:
            return known
        _, commit = await self.commit(sequence)
        if len(self._times) > _TIMES:
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
        known = self.replica.hash_at(sequence)
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
