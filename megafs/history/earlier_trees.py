"""The tree of a volume as it was at a commit.

A view is the tree at one sequence number: an SQLite file in the cache directory, sealed under a key
that only this process's memory holds and without a name (so nothing is left of it, however the
process ends), filled from the newest checkpoint before that commit and the commits in between.
Every commit is checked against the chain of hashes that the replica knows.  The views that were
used last are kept.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import apsw
import trio
from msgspec import Struct, field

from megafs.concurrency import Background, offload
from megafs.crypto.volume_keys import Keyring
from megafs.errors import Corrupt, Fault, Full, MegafsError, Missing, TooNew, Unavailable, leaf
from megafs.history.past_commits import PastCommits
from megafs.history.scratch import scratch
from megafs.journal import checkpoint
from megafs.journal import commit as commit_format
from megafs.journal.commit import Commit
from megafs.journal.replica import Replica
from megafs.stores.base import ObjectStore
from megafs.tree import queries_history, queries_packs, rebuild
from megafs.tree.schema import REPLICATED, PackRow
from megafs.tree.tree import Tree

log = logging.getLogger(__name__)

#: Views that are kept.
VIEWS: Final = 3
#: Commits applied in one hop to a thread.
_WINDOW: Final = 32

#: Called with the steps that are done, and how many there are.
StepsDone = Callable[[int, int], None]


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


class History(PastCommits):
    """The moments of one volume, and the tree at each of them.

    directory: where the trees lie; made when the first one is.  background: runs the
    tasks that fill them.  keep: how many are kept.
    """

    def __init__(
        self,
        store: ObjectStore,
        keyring: Keyring,
        replica: Replica,
        directory: Path,
        chunk_size: int,
        background: Background,
        *,
        keep: int = VIEWS,
    ) -> None:
        super().__init__(store, keyring, replica)
        self._background = background
        self._keep = keep
        self._views: OrderedDict[int, _View] = OrderedDict()
        self._building: dict[int, _Building] = {}
        self.chunk_size = chunk_size
        self.directory = directory

    # ---- views ------------------------------------------------------------------------------

    def at_hand(self, sequence: int) -> Tree | None:
        """The tree at *sequence*, if its view is ready."""
        view = self._views.get(sequence)
        return None if view is None else view.tree

    def pack(self, number: int) -> PackRow | None:
        """A pack that some view knows, though the present tree may not."""
        for view in self._views.values():
            found = queries_packs.pack(view.db, number)
            if found is not None:
                return found
        return None

    async def have(
        self, sequence: int, patience: float | None = None, progress: StepsDone | None = None
    ) -> Tree:
        """The tree at *sequence*; its view is built if there is none.

        It may be used until the caller awaits again, for then the view may be dropped.


        patience: seconds to wait; then Unavailable, and the view goes on being made.
        """
        return (await self._have(sequence, patience, progress)).tree

    @asynccontextmanager
    async def view(
        self, sequence: int, patience: float | None = None, progress: StepsDone | None = None
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
        self, sequence: int, patience: float | None, progress: StepsDone | None
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
            self._views[sequence] = _View(db, Tree(db, self.chunk_size))
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

    async def _build(self, sequence: int, progress: StepsDone) -> apsw.Connection:
        """The tree at *sequence*, from the newest checkpoint before it that is whole.

        Of one that an earlier key sealed, only the hash of its commit can be checked: its rows may
        be of somebody who was locked out by the rotation.  So it is taken only if the journal does
        not reach back to its beginning.
        """
        there = [n for n in await checkpoint.newest(self._store) if n <= sequence]
        old = []
        for start in there:
            try:
                manifest, epoch = await checkpoint.read_manifest_and_epoch(
                    self._store, self._keyring, start
                )
                if epoch < self._keyring.epoch:
                    old.append(manifest)
                    continue
                return await self._build_from(manifest, sequence, progress)
            except (Corrupt, Missing, TooNew) as exc:
                log.warning("checkpoint %d does not lead to commit %d: %s", start, sequence, exc)
        if not old or await self.oldest() == 1:
            return await self._build_from(None, sequence, progress)
        for manifest in old:
            try:
                return await self._build_from(manifest, sequence, progress)
            except (Corrupt, Missing, TooNew) as exc:
                log.warning(
                    "checkpoint %d does not lead to commit %d: %s", manifest.sequence, sequence, exc
                )
        return await self._build_from(None, sequence, progress)

    async def _build_from(
        self, manifest: checkpoint.Manifest | None, sequence: int, progress: StepsDone
    ) -> apsw.Connection:
        start, head = 0, commit_format.genesis(self._keyring.fsid)
        jobs = []
        if manifest is not None:
            start, head = manifest.sequence, manifest.head
            known = self.replica.hash_at(start)
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
            await offload(rebuild.create_tables, db)
            for n, (table, entry) in enumerate(jobs):
                rows = await checkpoint.read_part(self._store, self._keyring, entry)
                checkpoint.check_rows(table, rows)
                await offload(rebuild.insert_rows, db, table.name, rows)
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
        except (apsw.Error, OverflowError) as exc:
            db.close()
            raise Corrupt(f"the tree as of commit {sequence}: {exc}") from exc
        except BaseException:
            db.close()
            raise
        return db

    async def _check_leads_on(self, sequence: int, head: bytes) -> None:
        """Raise Corrupt unless the commits after *sequence* lead to one that the replica knows."""
        first, last = queries_history.known_range(self.replica.tree.db)
        while first is not None and last is not None and sequence < first <= last:
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
        known = self.replica.hash_at(sequence)
        if known is not None and known != head:
            raise Corrupt(f"commit {sequence} is not the one that this machine has seen")


def _apply(db: apsw.Connection, first: int, commits: list[Commit]) -> None:
    rebuild.apply_changesets(
        db,
        (
            (number, commit_format.unpack_changeset(commit))
            for number, commit in enumerate(commits, first)
        ),
    )


def _finish(db: apsw.Connection) -> None:
    rebuild.create_indexes(db)
    db.pragma("query_only", 1)
