"""The lease: the right to write, where a store cannot keep two writers apart.

Where a store cannot create an object only if it is absent, no two mounts may commit at once.  Then
`mounts/lease` names the one that may, in the format of a heartbeat: it is taken by writing it,
waiting `CONTEST` seconds for others who do the same, and reading it back; it is kept by writing it
again.  A lease that did not change for `LEASE_DEAD` seconds, by the clock of whoever looks, is
free.  Nobody compares two machines' clocks.

A holder may be paused at any moment, for any time: SIGSTOP, a laptop's lid.  Then another one takes
the lease, and the store would let the first write over what the second has committed.  So the lease
is read before every commit and after it, by a clock that goes on while the machine sleeps; a put
that stood still is given up and not tried again; what was committed is read back before anybody is
told; and what a holder commits first after it took the lease, which is all that an earlier holder
can still write over, it keeps in its state directory (kept_commits.py), and puts it back (`Fence`;
docs/decisions/0021).
"""

from __future__ import annotations

import logging
from typing import Final

import trio
from msgspec import Struct

from megafs import clock
from megafs.concurrency import offload, one_error_nursery
from megafs.crypto.volume_keys import Keyring, digest
from megafs.errors import Missing, StoreError, Unavailable
from megafs.journal.commit import BEGINNING, Commit, VerifiedCommit, object_name, open_commit
from megafs.journal.commit import MAX_OBJECT as MAX_COMMIT
from megafs.journal.heartbeat import LEASE, MAX_OBJECT, Heartbeat, open_heartbeat, seal
from megafs.journal.kept_commits import KeptCommit, KeptCommits
from megafs.journal.replica import Replica
from megafs.stores.base import ObjectStore

log = logging.getLogger(__name__)

#: Seconds between writing a lease and reading it back, in which others who want it write theirs.
CONTEST: Final = 10.0
#: Seconds between two writes by who holds it.
LEASE_INTERVAL: Final = 20.0
#: Seconds without a change after which a lease is free.
LEASE_DEAD: Final = 120.0
#: An answer that took longer says nothing of now.
_FRESH: Final = 15.0


class Lease:
    """The right to write where the store cannot keep two writers apart.

    kept: what this machine committed first after it took the lease, earlier mounts' included.
    dead: the number of a mount of this machine that is known to live no more, whose lease is free;
        or 0.

    held: whether this mount has it, as far as it knows.  holder: the other mount that was seen to
    have it; "" if none was.
    """

    def __init__(
        self,
        replica: Replica,
        store: ObjectStore,
        keyring: Keyring,
        kept: KeptCommits,
        dead: int = 0,
    ) -> None:
        self._replica = replica
        self._store = store
        self._keyring = keyring
        self._kept = kept
        self._dead = dead
        self._token = clock.random_bytes(16)
        self._beat = 0
        self._written = _Moment.now()
        self._lost = trio.Event()
        self.held = False
        self.holder = ""
        #: What this holder committed first.
        self._first: KeptCommit | None = None

    async def acquire(self, *, wait: bool) -> bool:
        """Try to take the lease; false if another mount has it (`holder` says which).

        wait: watch another's lease for as long as it takes to tell whether it is dead.
        """
        there = await self._read()
        ours = there is not None and there.mount in (self._replica.mount, self._dead)
        if there is not None and not ours:
            self.holder = there.host
            if not wait:
                return False
            deadline = trio.current_time() + LEASE_DEAD
            while trio.current_time() < deadline:
                await trio.sleep(LEASE_INTERVAL / 2)
                now = await self._read()
                if now is None:
                    break
                if (now.token, now.beat) != (there.token, there.beat):
                    return False
        await self._write()
        await trio.sleep(CONTEST)
        there = await self._read()
        self.held = there is not None and there.token == self._token
        if there is not None and not self.held:
            self.holder = there.host
        if self.held:
            self.holder = ""
            self._lost = trio.Event()
            # Nobody else had it since: the first commit is still the one to keep.
            kept = await offload(self._kept.read, kind="disk") if ours else []
            self._first = kept[-1] if kept else None
        return self.held

    async def keep(self) -> None:
        """Keep the lease alive, for ever or until somebody else has it."""
        while self.held:
            with trio.move_on_after(LEASE_INTERVAL):
                await self._lost.wait()
            if not self.held:
                return
            try:
                await self.check()
                if self.held:
                    await self._write()
                    await self._put_back()
            except StoreError as exc:
                log.debug("lease: %s", exc)
                if self._written.age() > LEASE_DEAD / 2:
                    # Somebody may take it as dead from now on: stop before that.
                    self._lose("")
                    return

    async def check(self) -> None:
        """Read whether this mount has the lease; Unavailable if it has not.

        However long it has been paused before this: it is asked what is so now.
        """
        begun = _Moment.now()
        there = await self._read() if self.held else None
        while self.held and begun.age() > _FRESH:  # paused meanwhile: the answer is an old one
            begun = _Moment.now()
            there = await self._read()
        if there is not None and there.token == self._token:
            if self._written.age() < LEASE_DEAD / 2:
                return
            there = None  # others may be about to take it: take it as they do
        if self.held:
            self._lose(there.host if there is not None else "")
        raise Unavailable(self.why)

    async def may_create(self, name: str) -> bool:
        """Whether a commit's name is free, for this mount, now; Unavailable if it must not commit.

        The store would write over what is there.
        """
        free = False

        async def look() -> None:
            nonlocal free
            try:
                await self._store.get(name, 0, 1)
            except Missing:
                free = True
            else:
                free = False

        while True:
            begun = _Moment.now()
            async with one_error_nursery() as nursery:
                nursery.start_soon(look)
                await self.check()
            if begun.age() <= _FRESH:
                return free

    async def create(self, name: str, data: bytes) -> None:
        """As `put_new` of the store, and given up if this machine stands still meanwhile.

        It may have arrived then: Unavailable.
        """
        scope = trio.CancelScope(deadline=trio.current_time() + _FRESH)

        async def watch() -> None:
            seen = _Moment.now()
            while True:
                await trio.sleep(_FRESH / 5)
                if seen.age() > _FRESH:
                    scope.cancel()  # asleep: the clock of deadlines stood still as well
                seen = _Moment.now()
                # On waking from a pause it has passed before any task goes on.
                scope.deadline = max(scope.deadline, trio.current_time() + _FRESH)

        async with one_error_nursery() as nursery:
            nursery.start_soon(watch)
            with scope:
                await self._store.put_new(name, data)
            nursery.cancel_scope.cancel()
        if scope.cancelled_caught:
            raise Unavailable(f"{name}: this machine stood still meanwhile", maybe_done=True)

    async def committed(self, sequence: int, data: bytes) -> None:
        """This mount has created a commit: see that it stands; Unavailable if it may not.

        Called before anybody is told of it.
        """
        name = object_name(sequence)
        there: bytes | None = None
        try:
            there = await self._store.get(name, 0, len(data) + 1)
        except Missing:
            pass
        await self.check()
        if there != data:
            raise Unavailable(f"{name} is not what this mount wrote: another one writes as well")
        await self._keep_first(sequence, data)

    async def recognised(self, verified: VerifiedCommit) -> None:
        """A commit that this mount has created, without hearing of it, is there.

        Called before anybody is told of it.
        """
        if self._first is None:
            name = object_name(verified.sequence)
            data = await self._store.get(name, 0, MAX_COMMIT + 1)
            if digest(data) != verified.hash:
                raise Unavailable(f"{name} is another one now: another mount writes as well")
            await self._keep_first(verified.sequence, data)

    async def _keep_first(self, sequence: int, data: bytes) -> None:
        if self._first is None:
            await offload(self._kept.keep, sequence, data, kind="disk")
            self._first = KeptCommit(sequence, data, False)

    async def mend(self) -> bool:
        """Put back what this machine committed first and another mount has written over, if that
        is proven: by the commit after it, or because nobody but this machine had the lease since.

        Returns whether anything was put back.
        """
        mended = False
        for kept in reversed(await offload(self._kept.read, kind="disk")):
            if not await self._is_written_over(kept):
                continue
            following = await self._commit_after(kept)
            if following is not None:
                if following.prev == digest(kept.data):
                    await self._put(kept)
                    mended = True
                continue
            there = await self._read()
            ours = there is not None and there.mount == self._dead
            if not self.held and ours:
                await self.acquire(wait=False)
            if self.held and kept == self._first:
                await self._put_back()
                mended = True
        return mended

    async def _commit_after(self, kept: KeptCommit) -> Commit | None:
        sequence = kept.sequence + 1
        try:
            data = await self._store.get(object_name(sequence), 0, MAX_COMMIT + 1)
        except Missing:
            return None
        return open_commit(self._keyring, sequence, data)

    async def _is_written_over(self, kept: KeptCommit) -> bool:
        try:
            there = await self._store.get(object_name(kept.sequence), 0, len(_beginning(kept)))
        except Missing:
            return False
        return there != _beginning(kept)

    async def _put_back(self) -> None:
        """Put this holder's first commit back, if an earlier holder has written over it."""
        if self._first is not None and await self._is_written_over(self._first):
            await self.check()
            await self._put(self._first)

    async def _put(self, kept: KeptCommit) -> None:
        name = object_name(kept.sequence)
        await self._store.put(name, kept.data)
        self._replica.note(
            f"{name} was written over by a mount that had lost the right to write (it had been"
            " paused): it was put back. What that mount wrote waits there, and comes after it"
        )

    @property
    def why(self) -> str:
        """Why this mount may not commit, for people."""
        who = self.holder or "nobody yet, for the store was away for too long"
        return (
            f"the right to write to this volume was lost (it is held by {who}): the store cannot"
            " keep two writers apart"
        )

    def _lose(self, holder: str) -> None:
        self.held = False
        self.holder = holder
        self._lost.set()

    async def release(self) -> None:
        """Let others have it at once."""
        if not self.held:
            return
        self.held = False
        try:
            await self._store.delete(LEASE)
        except StoreError as exc:
            log.debug("lease: %s", exc)

    async def _read(self) -> Heartbeat | None:
        try:
            data = await self._store.get(LEASE, 0, MAX_OBJECT)
        except Missing:
            return None
        return open_heartbeat(self._keyring, LEASE, data)

    async def _write(self) -> None:
        begun = _Moment.now()
        self._beat += 1
        beat = Heartbeat(
            self._replica.mount,
            self._replica.host,
            self._replica.sequence,
            clock.now_ns(),
            self._beat,
            False,
            self._token,
        )
        await self._store.put(LEASE, seal(self._keyring, LEASE, beat))
        self._written = begun


class Onlooker:
    """Stands for the lease in a mount that never writes."""

    held = False

    async def recognised(self, verified: VerifiedCommit) -> None:
        """Never called: it makes no commit."""


class _Moment(Struct, frozen=True):
    """A moment, by the clocks of this machine: the one that stands still in its sleep, and not."""

    awake: float
    boot: float

    @classmethod
    def now(cls) -> _Moment:
        return cls(trio.current_time(), clock.boottime())

    def age(self) -> float:
        """Seconds since then."""
        now = _Moment.now()
        return max(now.awake - self.awake, now.boot - self.boot)


def _beginning(kept: KeptCommit) -> bytes:
    """What tells a commit from another one: format, epoch, salt and commitment."""
    return kept.data[:BEGINNING]
