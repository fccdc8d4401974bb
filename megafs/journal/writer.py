"""Commits this mount's operations: one task, so that they get into the journal in their order.

The writer closes the batch, has the packs it names uploaded, seals a commit and creates
`commits/<sequence + 1>`, if that name is free.  Won: the batch is in the journal.  Lost: the
follower applies the winner's commit, ours are done again on top, and the next number is tried.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Protocol

import trio

from megafs import clock
from megafs.concurrency import offload, one_error_nursery
from megafs.crypto.volume_keys import Keyring, digest
from megafs.errors import (
    Corrupt,
    Exists,
    Fault,
    Full,
    Missing,
    StoreError,
    TooLarge,
    TooNew,
    Unavailable,
)
from megafs.journal import commit as commit_format
from megafs.journal.commit import Commit
from megafs.journal.follower import TAIL_TRUST, Follower, Standing, Subscriber, Trust
from megafs.journal.replica import Replica
from megafs.stores.base import ObjectStore
from megafs.tree.schema import SequenceNumber

log = logging.getLogger(__name__)

#: A changeset up to this size is compressed on the event loop: 0.2 ms.
_IN_PLACE = 64 << 10


class Packs(Protocol):
    """The part of the stage that the writer uses."""

    @property
    def blocked(self) -> set[int]: ...
    @property
    def last_error(self) -> Fault | None: ...
    def cut(self) -> None: ...
    def release(self, named: Collection[int]) -> None: ...
    def doubt(self, older_than: float) -> None: ...
    async def wait_change(self) -> None: ...


class Fence(Protocol):
    """Keeps two writers apart where the store does not: the lease."""

    async def may_create(self, name: str) -> bool:
        """Whether a commit's name is free now; Unavailable if this mount must not commit."""

    async def create(self, name: str, data: bytes) -> None:
        """Create a commit, whose name is free; Unavailable if this machine was paused meanwhile."""

    async def committed(self, sequence: int, data: bytes) -> None:
        """Raise Unavailable if the commit that was created may not stand."""


class Writer:
    """Commits the operations of one mount.

    interval: seconds that operations are collected before they are committed.
    generation: of the key header that the mount opened the volume with.

    barred: why this mount must not write for now, or None.  commits, races_lost: how many.
    """

    def __init__(
        self,
        replica: Replica,
        store: ObjectStore,
        keyring: Keyring,
        packs: Packs,
        follower: Follower,
        *,
        interval: float,
        generation: int,
        fence: Fence | None = None,
    ) -> None:
        self._fence = fence
        self.follower = follower
        self._replica = replica
        self._store = store
        self._keyring = keyring
        self._packs = packs
        self._interval = interval
        self._generation = generation
        self._poked = trio.Event()
        self._urgent = False
        # The last commit of ours: its number, and how its object begins.
        self._last: tuple[int, bytes] = (0, b"")
        self.barred: str | None = None
        self._held_up: str | None = None
        self._allowed = trio.Event()
        self.last_error: Fault | None = None
        self.commits = 0
        self.races_lost = 0

    # ---- what the filesystem asks -----------------------------------------------------------

    def poke(self, urgent: bool = False) -> None:
        """There is something to commit; urgent: somebody waits for it."""
        self.follower.note_use()
        if urgent:
            self._urgent = True
        self._poked.set()

    def subscribe(self, subscriber: Subscriber) -> None:
        """Tell *subscriber* of every commit of another mount."""
        self.follower.subscribe(subscriber)

    def stir(self) -> None:
        """Somebody looks at the volume: an idle mount asks for others' commits at once."""
        self.follower.stir()

    async def catch_up(self) -> int:
        """Apply every commit that is in the store and not here; return how many."""
        return await self.follower.catch_up()

    @property
    def frozen(self) -> Fault | None:
        """Why nothing may be written any more; None while it may."""
        return self.follower.frozen

    async def committed(self, batch: int, deadline: float) -> None:
        """Return when *batch* is in the journal.

        When *deadline* seconds have passed raises Full if there is no room in the store, else
        Unavailable; Corrupt at once if the mount is frozen.  The batch stays staged: later calls
        may succeed.
        """
        with trio.move_on_after(deadline):
            while self._replica.committed < batch:
                if self.frozen is not None:
                    raise Corrupt(f"not written, for the mount is read-only: {self.frozen}")
                if self.barred is not None:
                    raise Unavailable(self.barred)
                self.poke(urgent=True)
                await self.follower.advance()
            return
        if self._replica.committed >= batch:
            return
        causes = [c for c in (self._held_up, self.last_error, self._packs.last_error) if c]
        full = next((cause for cause in causes if isinstance(cause, Full)), None)
        cause = full or next(iter(causes), "the store is slow")
        text = f"not in the store after {deadline:g} s, still staged: {cause}"
        raise Full(text) if full is not None else Unavailable(text)

    def bar(self, why: str) -> None:
        """This mount must not write for now: another one has the lease."""
        if self.barred is None:
            log.warning("%s", why)
        self.barred = why
        self._forbid()

    def unbar(self) -> None:
        """This mount may write again."""
        self.barred = self._held_up = None
        self._allowed.set()

    def hold_up(self, why: str) -> None:
        """Nothing can be committed for now, yet nobody else writes: what is written is staged."""
        if self._held_up is None:
            log.warning("%s; what is written meanwhile is staged", why)
        self.barred, self._held_up = None, why
        self._forbid()

    def _forbid(self) -> None:
        if self._allowed.is_set():  # else who waits for it would not hear
            self._allowed = trio.Event()

    # ---- committing -------------------------------------------------------------------------

    async def run(self) -> None:
        """Commit what there is to commit, for ever."""
        pause = 0.0
        while True:
            await self._wanted(pause)
            if self.barred is not None or self._held_up is not None:
                await self._allowed.wait()
            try:
                await self.commit_all()
                await self.follower.copy_wal()
                pause = 0.0
                if self.last_error is not None:
                    log.info("the store takes commits again")
                    self.last_error = None
            except (Corrupt, TooNew) as exc:
                self.follower.freeze(exc)
                await trio.sleep_forever()
            except StoreError as exc:
                if self.last_error is None:
                    log.warning("cannot commit, will go on trying: %s", exc)
                self.last_error = exc
                pause = min(5.0, max(0.5, pause * 2))

    async def _wanted(self, pause: float) -> None:
        """Wait until there is work, and a little longer to collect more of it."""
        if pause:
            await trio.sleep(clock.uniform(pause / 2, pause))
        while not self._replica.open_operations and not self._replica.pending:
            self._urgent = False
            await self._poked.wait()
            self._poked = trio.Event()
        with trio.move_on_after(0 if pause else self._interval):
            while not self._urgent:
                await self._poked.wait()
                self._poked = trio.Event()
        self._urgent = False

    async def commit_all(self) -> None:
        """Bring everything that was done until now into the journal."""
        target = self._replica.close_batch()
        self._packs.cut()
        while self._replica.committed < target and self._replica.pending:
            first = self._replica.first_to_commit(self._packs.blocked)
            if first is None:
                error = self._packs.last_error
                if error is not None:
                    raise error
                # A lost race may have brought bytes that lie in the open pack into an early batch.
                self._packs.cut()
                await self._packs.wait_change()
                continue
            await self._publish(first)

    async def _publish(self, first: int) -> None:
        replica, follower = self._replica, self.follower
        async with follower.turn:
            if self.frozen is not None:
                raise Corrupt(f"the mount is read-only: {self.frozen}")
            if replica.committed >= first or first not in replica.pending:
                return  # the follower changed what is pending while we waited for our turn
            if follower.trust is Trust.DOUBTFUL:
                await follower.apply_new()
                return
            if not follower.tail_is_fresh():
                await follower.check_tail()
                self._packs.doubt(TAIL_TRUST)
            sequence = SequenceNumber(replica.sequence + 1)
            fresh = replica.next_commit(self._packs.blocked)
            if fresh is None:
                return
            commit = Commit(
                prev=replica.head,
                mount=replica.mount,
                host=replica.host,
                commit_id=clock.random_bytes(16),
                first_batch=fresh.first,
                last_batch=fresh.last,
                time_ns=clock.now_ns(),
                generation=self._generation,
                operations=fresh.operations,
                changeset=await _packed(fresh.changeset),
            )
            data = commit_format.seal(self._keyring, sequence, commit)
            if len(data) > commit_format.MAX_OBJECT or len(fresh.changeset) > (
                commit_format.MAX_CHANGESET
            ):
                # Nobody could read it: the journal would end here for every mount.
                raise TooLarge(f"a commit of {len(data)} bytes is too large for the journal")
            replica.recognition.attempt(sequence, digest(data))
            name = commit_format.object_name(sequence)
            free = self._fence is None or await self._fence.may_create(name)
            if not free or not await self._create(sequence, data):
                await self._take_in(sequence)
                return
            if self._fence is not None:
                await self._fence.committed(sequence, data)
            if not follower.tail_is_fresh():
                await self._withdraw_if_folded(sequence)
            self.commits += 1
            self._last = (sequence, data[: commit_format.BEGINNING])
            follower.note_end()
            # The head first: once the replica says that the batch is committed, an fsync returns.
            replica.raise_epoch(self._keyring.epoch)
            await follower.remember(sequence, digest(data))
            replica.won(sequence, digest(data), commit, fresh.changeset)
            self._packs.release(replica.named_packs)
        follower.announce()

    async def _take_in(self, sequence: SequenceNumber) -> None:
        """Another mount has made the commit of this number: apply it."""
        self.races_lost += 1
        if not await self.follower.apply_new():
            # The name is taken, yet nothing is there to read: a store that lies, or a listing that
            # lags; ask again, but not at once.
            raise Unavailable(f"{commit_format.object_name(sequence)} exists and cannot be read")

    async def _create(self, sequence: SequenceNumber, data: bytes) -> bool:
        """Create a commit; false if its name is taken.

        Beside it the one before is looked for: whoever waits for this one is not told that it is
        safe behind a gap, or behind another mount's commit in the place of ours, which nobody could
        read past.  Corrupt then.
        """
        name = commit_format.object_name(sequence)
        unknown: StoreError | None = None
        gap = False

        async def look() -> None:
            nonlocal unknown, gap
            number, beginning = self._last
            try:
                there = await self._store.get(
                    commit_format.object_name(sequence - 1), 0, commit_format.BEGINNING
                )
                # With a lease, its holder puts back what was written over (lease.py).
                gap = number == sequence - 1 and there != beginning and self._fence is None
            except Missing:
                gap = True
            except StoreError as exc:
                unknown = exc

        async with one_error_nursery() as nursery:
            if sequence > 1:
                nursery.start_soon(look)
            put_new = self._store.put_new if self._fence is None else self._fence.create
            try:
                await put_new(name, data)
            except Exists:
                return False
        if unknown is not None:
            raise unknown
        if gap and await self.follower.standing() is Standing.GONE:
            await self._store.delete(name)
            raise Corrupt(
                f"commit {sequence - 1}, which this mount has seen, is gone from the store, or was"
                " written over: nothing that comes after it could be read. What is staged here is"
                " kept"
            )
        return True

    async def _withdraw_if_folded(self, sequence: SequenceNumber) -> None:
        """Delete our commit if gc had folded its number before it was created."""
        page = await self._store.list("commits/", commit_format.object_name(sequence), 1)
        if page.entries and commit_format.sequence_of(page.entries[0].name) > sequence + 1:
            await self._store.delete(commit_format.object_name(sequence))
            raise Corrupt(
                f"commit {sequence} came too late: this mount was away for longer than the volume"
                " keeps its journal. Unmount and mount again; what is staged here is kept"
            )


async def _packed(changeset: bytes) -> bytes:
    """As `pack_changeset`; a small one takes less than the way to a thread."""
    if len(changeset) < _IN_PLACE:
        return commit_format.pack_changeset(changeset)
    return await offload(commit_format.pack_changeset, changeset)
