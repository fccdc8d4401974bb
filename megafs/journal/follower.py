"""Follows the journal: brings the commits of other mounts into the replica.

The follower reads `commits/<sequence + 1>` now and then; the writer has it read what won a race.
Both change the replica only while they hold `turn`, so a commit that is under way is not overtaken
by the commits of others.

It also compares the store's history with what this machine has seen.  A commit that does not
verify, or does not follow the one before it, freezes the mount: nothing is written any more, reads
go on, one line says why (docs/threats.md, rows 2, 9 to 14).
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Set
from typing import NoReturn, Protocol

import trio

from megafs import clock
from megafs.concurrency import offload
from megafs.crypto.volume_keys import digest
from megafs.errors import Corrupt, Fault, Missing, Rollback, StoreError, TooNew, Unavailable
from megafs.journal import checkpoint
from megafs.journal import commit as commit_format
from megafs.journal.commit import VerifiedCommit
from megafs.journal.head import HeadKeeper, RememberedHead
from megafs.journal.reader import JournalReader, Position
from megafs.journal.rebase import RemoteChanges
from megafs.journal.replica import Replica
from megafs.stores.abilities import Watch
from megafs.tree.schema import Ino

log = logging.getLogger(__name__)

#: Commits that are fetched side by side and applied together when far behind.
_WINDOW = 16
#: An idle mount looks for others' commits this many times less often.
_IDLE_FACTOR = 5
_IDLE_AFTER = 30.0
#: Seconds between two looks by the clock while the store tells of changes by itself.
WATCHED_INTERVAL = 60.0
#: Seconds between two waits for the store's news, be there ever so many.
_NEWS_INTERVAL = 0.5
#: Seconds before a wait that failed is tried again: the first time, and at most.
_WATCH_PAUSE, _WATCH_PAUSE_MOST = 1.0, 300.0
#: A store that did not tell so many times in a row is not relied on for so many seconds.
_MISSES, _DISTRUST = 2, 600.0
#: For so many seconds after the end of the journal was seen, gc cannot have folded it: gc leaves
#: alone what is younger than a day (jobs/gc.py).
TAIL_TRUST = 3600.0
#: For so many seconds a commit that does not fit is asked for again, on a store without conditions.
_PUT_BACK = 120.0
#: What to do about two commits of one number, for people.
SETTLE = (
    "two mounts have written at once, on a store that cannot keep them apart: unmount, and settle"
    " it with megafs fsck --repair URL"
)


class Trust(enum.Enum):
    """How far the store's history was compared with what this machine has seen.

    CHECKING: it is being compared; no head is remembered until that has ended well.
    DOUBTFUL: the mount began without the store; it is compared at the first contact.
    """

    FULL = "full"
    CHECKING = "checking"
    DOUBTFUL = "doubtful"


class Standing(enum.Enum):
    """Whether the store's history holds the commit that the replica stands on.

    FOLDED: only checkpoints tell of it, and what follows it is gone.
    """

    THERE = "there"
    FOLDED = "folded"
    GONE = "gone"


class Subscriber(Protocol):
    """Hears of the commits of other mounts: the filesystem."""

    async def before_commits(self, touched: Set[Ino], removed: Set[Ino]) -> None:
        """Commits that change *touched*, and remove *removed* of them, are about to be applied."""

    def after_commits(self, news: RemoteChanges) -> None:
        """They were applied."""


class RightToWrite(Protocol):
    """Whether this mount is the one that may write."""

    @property
    def held(self) -> bool: ...

    async def recognised(self, verified: VerifiedCommit) -> None:
        """A commit of this mount's is there, of which it had no answer; Unavailable if it may not
        count.
        """


class Follower:
    """Applies the commits of other mounts to the replica of this one.

    heads: remembers the newest commit, for the next mount.  seen: what it remembered when this
        mount began; None on a machine that has not seen the volume, or if the user accepts any
        history.
    interval: seconds between two looks for others' commits.

    right: the right to write, on a store that cannot keep two writers apart; else None.

    turn: held while the replica is changed by a commit.
    last_contact: when the store last answered, in seconds since 1970; 0 for never.
    frozen: why nothing may be written any more.
    """

    def __init__(
        self,
        replica: Replica,
        reader: JournalReader,
        heads: HeadKeeper,
        seen: RememberedHead | None,
        *,
        interval: float,
        right: RightToWrite | None = None,
    ) -> None:
        self.reader = reader
        self._right = right
        self._broken_since: float | None = None
        self._replica = replica
        self._heads = heads
        self._seen = seen
        self._interval = interval
        self._subscriber: Subscriber | None = None
        self.turn = trio.Lock()
        self.frozen: Fault | None = None
        self.last_contact: float = 0.0
        self._trust = Trust.CHECKING
        self._tail_seen: float = 0.0
        self._advanced = trio.Event()
        self._active = -_IDLE_AFTER
        self._stirred = trio.Event()
        self._watching = False
        self._told = False
        self._misses = 0
        self._distrusted_until = float("-inf")

    def opened(self, *, offline: bool) -> None:
        """The mount is open: its history was compared, or the store was away (*offline*)."""
        self._trust = Trust.DOUBTFUL if offline else Trust.FULL

    @property
    def trust(self) -> Trust:
        """How far the store's history was compared."""
        return self._trust

    def subscribe(self, subscriber: Subscriber) -> None:
        """Tell *subscriber* of every commit of another mount."""
        self._subscriber = subscriber

    def stir(self) -> None:
        """Somebody looks at the volume: an idle mount asks for others' commits at once."""
        now = trio.current_time()
        if now - self._active > _IDLE_AFTER:
            self._stirred.set()
        self._active = now

    def note_use(self) -> None:
        """Somebody changes the volume: it is not idle."""
        self._active = trio.current_time()

    async def advance(self) -> None:
        """Return when a commit, of this mount or another, was applied, or the mount froze."""
        await self._advanced.wait()

    def announce(self) -> None:
        """Wake who waits in `advance`."""
        self._advanced.set()
        self._advanced = trio.Event()

    def freeze(self, cause: Fault | TooNew) -> None:
        """Let nothing be written any more."""
        if self.frozen is None:
            self.frozen = cause if isinstance(cause, Fault) else Corrupt(str(cause))
            log.error("the mount is read-only from here on: %s", self.frozen)
        self.announce()

    # ---- following --------------------------------------------------------------------------

    @property
    def is_watching(self) -> bool:
        """Whether the store tells of others' commits by itself just now, and is relied on."""
        return self._watching and trio.current_time() >= self._distrusted_until

    async def watch(self, store: Watch) -> None:
        """Look for others' commits whenever *store* tells of a change, for ever.

        While that works the clock looks seldom; where it fails, as often as ever.
        """
        pause = _WATCH_PAUSE
        while True:
            begun = trio.current_time()
            self._watching = True
            try:
                await store.wait_for_change(commit_format.PREFIX)
            except StoreError as exc:
                log.debug("the store does not tell of changes: %s", exc)
                self._watching = False
                self._stirred.set()  # the clock has been slow
                await trio.sleep(clock.uniform(0.8, 1.2) * pause)
                pause = min(2 * pause, _WATCH_PAUSE_MOST)
                continue
            pause = _WATCH_PAUSE
            self._told = True
            self._stirred.set()
            await trio.sleep(max(0.0, begun + _NEWS_INTERVAL - trio.current_time()))

    async def run(self) -> None:
        """Look for others' commits, for ever; slower when nothing happens here."""
        while True:
            idle = trio.current_time() - self._active > _IDLE_AFTER
            pause = self._interval * (_IDLE_FACTOR if idle else 1)
            watched = self.is_watching
            if watched:
                pause = max(pause, WATCHED_INTERVAL)
            with trio.move_on_after(clock.uniform(pause * 0.8, pause * 1.2)):
                # Somebody uses an idle mount again, or the store tells of a change: look at once.
                await self._stirred.wait()
            self._stirred = trio.Event()
            if self._told:
                self._told, self._misses = False, 0
                watched = False  # this look says nothing of it
            if self.frozen is not None:
                continue
            try:
                if found := await self.catch_up():
                    self._active = trio.current_time()
                    await self.copy_wal()
                if watched and found:
                    self._note_miss()
            except (Corrupt, TooNew) as exc:
                self.freeze(exc)
            except StoreError as exc:
                log.debug("cannot look for others' commits: %s", exc)

    def _note_miss(self) -> None:
        """Commits were found of which the store has not told, or not yet."""
        self._misses += 1
        if self._misses >= _MISSES:
            self._misses = 0
            self._distrusted_until = trio.current_time() + _DISTRUST
            log.info("the store does not tell of every change: looking by the clock again")

    async def catch_up(self) -> int:
        """Apply every commit that is in the store and not here; return how many."""
        async with self.turn:
            return await self.apply_new()

    async def _first_contact(self) -> int:
        """Check what a mount checks, for one that began while the store was away."""
        self._trust = Trust.CHECKING
        try:
            standing = await self.standing()
            if standing is Standing.GONE:
                raise Rollback(
                    f"the store does not hold commit {self._replica.sequence}, which this machine"
                    " has seen: it was rolled back, or shows another history"
                )
            if standing is Standing.FOLDED:
                raise Corrupt(
                    f"the journal has gone on without this machine since commit"
                    f" {self._replica.sequence}: mount again, to read the tree anew"
                )
            total = await self.apply_new()
            self.check_seen(self._seen)
        except BaseException:
            self._trust = Trust.DOUBTFUL
            raise
        self._trust = Trust.FULL
        await self.remember(self._replica.sequence, self._replica.head)
        return total

    # ---- while `turn` is held ---------------------------------------------------------------

    async def apply_new(self) -> int:
        """Apply every commit that is in the store and not here; return how many."""
        if self._trust is Trust.DOUBTFUL:
            return await self._first_contact()
        replica, reader = self._replica, self.reader
        total = 0
        window = 1
        while True:
            stand = Position(replica.sequence, replica.head, replica.epoch)
            got, listed = await self._read(stand, window)
            got = await self._certain(got)
            self._broken_since = None
            self.last_contact = clock.now()
            if not got:
                if reader.is_opening:
                    await self._check_end(stand.sequence + 1)
                if not self.tail_is_fresh():
                    await self.check_tail()
                return total
            if self._subscriber is not None:
                touched = replica.touched(got)
                removed = {ino for verified in got for ino in verified.changes.removed}
                await self._subscriber.before_commits(touched | replica.undecided, removed)
            replica.raise_epoch(reader.epoch)
            news = replica.follow(got)
            twin = replica.recognition.twin
            if twin is not None:
                replica.disown_pending()
                raise Corrupt(
                    f"commit {twin} was made under the number of this mount by another"
                    " process: this machine was copied, or set back, with its memory. Unmount and"
                    " mount again; what is staged here is kept"
                )
            await self.remember(replica.sequence, replica.head)
            self.announce()
            if self._subscriber is not None:
                self._subscriber.after_commits(news)
            total += len(got)
            if listed:
                continue
            if len(got) < window and window > 1:
                return total
            window = _WINDOW

    async def _read(
        self, stand: Position, window: int
    ) -> tuple[list[VerifiedCommit], list[VerifiedCommit]]:
        """The commits after *stand*, and those of them that a listing had announced."""
        try:
            got = listed = await self.reader.read_listed(stand)
            if not listed:  # a listing may lag behind, so the end is where nothing can be read
                got = await self.reader.read(stand, window)
        except Corrupt as exc:
            if self._right is None:
                raise
            self._perhaps_put_back(exc)
        return got, listed

    def _perhaps_put_back(self, exc: Corrupt) -> NoReturn:
        """Where the store cannot keep two writers apart, one that was paused may write over a
        commit, and the holder of the lease puts it back within half a minute: wait for that.
        """
        now = trio.current_time()
        self._broken_since = self._broken_since or now
        if now - self._broken_since > _PUT_BACK:
            raise Corrupt(f"{exc}; {SETTLE}") from exc
        raise Unavailable(
            f"{exc}; perhaps another mount is about to put it back. If it stays so for two minutes,"
            f" {SETTLE}"
        ) from exc

    async def _certain(self, got: list[VerifiedCommit]) -> list[VerifiedCommit]:
        """*got*, without a commit of ours that may have written over another's, and what follows.

        Without the right to write, ours does not stand: whoever has the right has its own there.
        And none does that is not the one which the next follows.
        """
        if self._right is None or not got:
            return got
        await self._check_followed(got[-1])
        for n, verified in enumerate(got):
            if not self._replica.recognition.attempted(verified):
                continue
            if not self._right.held:
                return got[:n]
            await self._right.recognised(verified)
        return got

    async def _check_followed(self, verified: VerifiedCommit) -> None:
        stand = Position(verified.sequence, verified.hash, self.reader.epoch)
        try:
            await self.reader.read(stand, 1)
        except Corrupt as exc:
            self._perhaps_put_back(exc)

    async def _check_end(self, missing: int) -> None:
        """Raise Corrupt if the store lists a commit after *missing*, which it does not have."""
        _, listed = await self.reader.first_listed(missing - 1)
        if listed not in (None, missing):
            raise Corrupt(
                f"{commit_format.object_name(missing)} is missing although later commits exist"
            )

    def tail_is_fresh(self) -> bool:
        """Whether the end of the journal was seen so lately that nobody can have folded it since.

        By the wall clock, which goes on while a machine sleeps; one set back proves nothing.
        """
        return 0 <= clock.now() - self._tail_seen < TAIL_TRUST

    def note_end(self) -> None:
        """A commit of ours was created just now: it is the end of the journal."""
        self.last_contact = self._tail_seen = clock.now()

    async def check_tail(self) -> None:
        """See that there really is no commit after ours.

        gc removes old commits, so after a long sleep a missing one may mean that the journal has
        gone on without us.  Committing there would be a history that nobody else ever sees.
        """
        sequence = self._replica.sequence
        now, following = await self.reader.first_listed(sequence)
        if following is not None and following > sequence + 1:
            raise Corrupt(
                f"commit {sequence + 1} is gone although later commits exist: this mount was away"
                " for longer than the volume keeps its journal. Unmount and mount again; what is"
                " staged here is kept and will be written then"
            )
        self._tail_seen = now

    async def remember(self, sequence: int, newest: bytes) -> None:
        """Remember the newest commit for the next mount, durably."""
        if self._trust is Trust.FULL:  # else a history that is refused now would be the known one
            await self._heads.remember(sequence, newest, self._replica.epoch)

    async def copy_wal(self) -> None:
        """Copy SQLite's log into the database in a thread, should it be long."""
        copy = self._replica.wal_copier()
        if copy is not None:
            await offload(copy, kind="disk")

    # ---- at mount ---------------------------------------------------------------------------

    async def standing(self) -> Standing:
        """Whether the store's history holds the commit that the replica stands on."""
        replica = self._replica
        cut_off = False
        for patience in (1.0, 0.0):
            try:
                data = await self.reader.get(replica.sequence)
            except Missing:
                pass
            else:
                if digest(data) != replica.head:
                    return Standing.GONE
                if not await self._is_cut_off():
                    return Standing.THERE
                cut_off = True
                break
            if patience:
                await trio.sleep(patience)  # a store may show a new object a little late
        keyring = self.reader.keyring
        manifest = await checkpoint.find_usable(
            self.reader.store, keyring, least_epoch=keyring.epoch
        )
        if manifest is None or manifest.sequence < replica.sequence:
            return Standing.THERE if cut_off else Standing.GONE  # check_gap says what is missing
        at = len(manifest.history) - 32 * (manifest.sequence - replica.sequence + 1)
        if at < 0 or manifest.history[at : at + 32] != replica.head:
            return Standing.GONE
        return Standing.FOLDED if manifest.sequence > replica.sequence else Standing.THERE

    async def _is_cut_off(self) -> bool:
        """Whether the commit after ours is gone and later ones exist: folded, or a bad store."""
        _, following = await self.reader.first_listed(self._replica.sequence)
        return following is not None and following > self._replica.sequence + 1

    async def check_gap(self) -> None:
        """Raise Corrupt if the store lists a commit later than the first missing one."""
        listing = await self.reader.listed(self._replica.sequence)
        for later, _ in listing.found:
            if later > self._replica.sequence + 1:
                # It may have appeared between our last look and the listing.
                self.reader.look_anew()
                await self.catch_up()
                if later > self._replica.sequence:
                    raise Corrupt(
                        f"commit {self._replica.sequence + 1} is missing although commit"
                        f" {later} exists"
                    )
        self._tail_seen = listing.at

    def check_seen(self, seen: RememberedHead | None) -> None:
        """Raise Rollback if the store's history is not the one this machine has seen."""
        if seen is None:
            return
        replica = self._replica
        if seen.sequence > replica.sequence:
            raise Rollback(
                f"the store ends at commit {replica.sequence}, but this machine has seen commit"
                f" {seen.sequence}: the store was rolled back. Mount with -o accept_state to go on"
                " from what it has now"
            )
        known = replica.hash_at(seen.sequence)
        if known is None:
            raise Rollback(
                f"the store's history does not reach back to commit {seen.sequence}, which this"
                " machine has seen, so it cannot be told whether it is the same one. Mount with"
                " -o accept_state to trust it"
            )
        if known.hex() != seen.hash:
            raise Rollback(
                f"commit {seen.sequence} is not the one that this machine has seen: the store shows"
                " another history. Mount with -o accept_state to go on with it"
            )
