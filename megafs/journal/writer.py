"""The one task that commits, and the one that follows: the order of everything.

The writer closes the batch, has the packs it names uploaded, seals a commit and creates
`commits/<sequence + 1>`, if that name is free.  Won: the batch is in the journal.  Lost: the
winner's commit is applied first, ours are done again on top, and the next number is tried.

The follower reads `commits/<sequence + 1>` now and then, which is how other mounts' work arrives.
Both change the replica only while they hold `_turn`, so a commit that is under way is not overtaken
by news of itself.

A commit that does not verify, or does not follow the one before it, freezes the mount: nothing is
written any more, reads go on, one line says why (docs/threats.md, rows 2, 9 to 14).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import trio
from msgspec import Struct

from megafs import clock
from megafs.concurrency import Syncs, offload, one_error_nursery
from megafs.crypto.volume_keys import Keyring, digest
from megafs.errors import (
    Corrupt,
    Exists,
    Fault,
    Full,
    Missing,
    Rollback,
    StoreError,
    TooNew,
    Unavailable,
)
from megafs.journal import checkpoint, head
from megafs.journal import commit as commit_format
from megafs.journal.commit import Commit, VerifiedCommit
from megafs.journal.replica import Candidate, News, Replica
from megafs.stores.base import ObjectStore, list_all
from megafs.stores.early_requests import EarlyRequests
from megafs.tree.schema import Ino, SequenceNumber

log = logging.getLogger(__name__)

#: Commits that are fetched side by side and applied together when far behind.
_WINDOW = 16
#: The same where a listing has told which there are, and how large: so many at most, and of so many
#: bytes.  How many requests are out at once is for the store's limits.
WINDOW_LISTED = 64
_WINDOW_BYTES = 16 << 20
#: Commits up to this size are held in memory side by side; larger ones are read one at a time.
_USUAL = 4 << 20
#: An idle mount looks for others' commits this many times less often.
_IDLE_FACTOR = 5
_IDLE_AFTER = 30.0
#: A changeset up to this size is compressed on the event loop: 0.2 ms.
_IN_PLACE = 64 << 10
#: For so many seconds after the end of the journal was seen, gc cannot have folded it: gc leaves
#: alone what is younger than a day (jobs/gc.py).
_TAIL_TRUST = 3600.0


class Packs(Protocol):
    """What the writer needs of the stage."""

    @property
    def blocked(self) -> set[int]: ...
    @property
    def last_error(self) -> Fault | None: ...
    def cut(self) -> None: ...
    def release(self, named: Collection[int]) -> None: ...
    def doubt(self, older_than: float) -> None: ...
    async def wait_change(self) -> None: ...


class Subscriber(Protocol):
    """Hears of the commits of other mounts: the filesystem."""

    async def before_commits(self, touched: Set[Ino], removed: Set[Ino]) -> None:
        """Commits that change *touched*, and remove *removed* of them, are about to be applied."""

    def after_commits(self, news: News) -> None:
        """They were applied."""


class Listing(Struct, frozen=True):
    """The commits after number `after` that the store listed: (number, bytes).

    at: the time just before it was asked.
    """

    after: int
    at: float
    found: list[tuple[int, int]]


def usual(found: Iterable[tuple[int, int]], sequence: int) -> list[tuple[int, int]]:
    """Those of *found* from *sequence* on, without a gap, that may be fetched side by side."""
    window: list[tuple[int, int]] = []
    room = _WINDOW_BYTES
    for number, size in found:
        if number < sequence:
            continue
        room -= size
        if number != sequence + len(window) or size > _USUAL or room < 0:
            break
        window.append((number, size))
        if len(window) == WINDOW_LISTED:
            break
    return window


def ask_for_commits(ahead: EarlyRequests, sequence: int) -> Callable[[], Awaitable[None]]:
    """Have under way what `Writer` asks first of all where the replica stands on *sequence*.

    Returns what asks for the rest, which depends on the listing.
    """
    after = commit_format.object_name(sequence)
    listing = ahead.ask_list("commits/", after)

    async def follow() -> None:
        page = await listing.get()
        try:
            found = [(commit_format.sequence_of(e.name), e.size) for e in page.entries]
        except Corrupt:
            return  # said by whoever reads the listing
        window = usual(found, sequence + 1)
        _ask(ahead, window)
        if len(window) == len(found):
            _ask_alone(ahead, sequence + len(window) + 1)

    return follow


def ask_for_standing(ahead: EarlyRequests, sequence: int) -> None:
    """Have under way what `Writer.standing` reads, and whether there is a commit after it."""
    _ask_alone(ahead, sequence)
    _ask_alone(ahead, sequence + 1)


def _ask_alone(ahead: EarlyRequests, sequence: int) -> None:
    ahead.ask(commit_format.object_name(sequence), commit_format.MAX_OBJECT + 1)


def _ask(ahead: EarlyRequests, commits: Sequence[tuple[int, int]]) -> None:
    for number, size in commits:
        ahead.ask(commit_format.object_name(number), size + 1)


class Writer:
    """Commits this mount's operations and follows the others'.

    state: the directory that remembers the head.  interval: seconds that operations are collected
        before they are committed, and between two looks for others' commits.
    """

    def __init__(
        self,
        replica: Replica,
        store: ObjectStore,
        keyring: Keyring,
        packs: Packs,
        state: Path,
        *,
        interval: float,
        generation: int,
        slot: str = "",
    ) -> None:
        self._replica = replica
        self._store = store
        self._keyring = keyring
        self._packs = packs
        self._state = state
        self._interval = interval
        self.generation = generation
        #: The newest generation of the key header that a commit read here names.
        self.newest_generation = 0
        self.slot = slot
        self._subscriber: Subscriber | None = None
        self._turn = trio.Lock()
        self._syncs = Syncs()
        self._poked = trio.Event()
        self._urgent = False
        self._advanced = trio.Event()
        self._active = -_IDLE_AFTER
        self._stirred = trio.Event()
        self.frozen: Fault | None = None
        self.barred: str | None = None
        self._allowed = trio.Event()
        self.last_error: Fault | None = None
        self.last_contact: float = 0.0
        self._tail_seen: float = 0.0
        # While a mount is being opened.
        self._ahead: EarlyRequests | None = None
        self._listing: Listing | None = None
        self._epoch = 0
        #: How far the store's history was compared with what this machine has seen (`seen`):
        #: "full", "checking" (a mount does so now; nothing is remembered until it has), or
        #: "doubtful" (the mount began without the store; to be done at the first contact).
        self.trust = "full"
        self.seen: head.Seen | None = None
        self.commits = 0
        self.races_lost = 0

    # ---- what the filesystem asks -----------------------------------------------------------

    def poke(self, urgent: bool = False) -> None:
        """There is something to commit; urgent: somebody waits for it."""
        self._active = trio.current_time()
        if urgent:
            self._urgent = True
        self._poked.set()

    def subscribe(self, subscriber: Subscriber) -> None:
        """Tell *subscriber* of every commit of another mount."""
        self._subscriber = subscriber

    def stir(self) -> None:
        """Somebody looks at the volume: an idle mount asks for others' commits at once."""
        now = trio.current_time()
        if now - self._active > _IDLE_AFTER:
            self._stirred.set()
        self._active = now

    async def committed(self, batch: int, deadline: float) -> None:
        """Return when *batch* is in the journal.

        Raises the fault that keeps it from getting there when *deadline* seconds have passed, or at
        once if the mount is frozen.  The batch stays staged: later calls may succeed.
        """
        with trio.move_on_after(deadline):
            while self._replica.committed < batch:
                if self.frozen is not None:
                    raise Corrupt(f"not written, for the mount is read-only: {self.frozen}")
                if self.barred is not None:
                    raise Unavailable(self.barred)
                self.poke(urgent=True)
                await self._advanced.wait()
            return
        if self._replica.committed >= batch:
            return
        cause = self.last_error or self._packs.last_error
        raise Unavailable(
            f"not in the store after {deadline:g} s, still staged: {cause or 'the store is slow'}"
        )

    def bar(self, why: str) -> None:
        """This mount must not write for now: another one has the lease."""
        if self.barred is None:
            log.warning("%s", why)
        self.barred = why
        self._allowed = trio.Event()

    def unbar(self) -> None:
        """This mount may write again."""
        self.barred = None
        self._allowed.set()

    # ---- committing -------------------------------------------------------------------------

    async def run(self) -> None:
        """Commit what there is to commit, for ever."""
        pause = 0.0
        while True:
            await self._wanted(pause)
            if self.barred is not None:
                await self._allowed.wait()
            try:
                await self.commit_all()
                await self._tidy()
                pause = 0.0
                if self.last_error is not None:
                    log.info("the store takes commits again")
                    self.last_error = None
            except (Corrupt, TooNew) as exc:
                self._freeze(exc if isinstance(exc, Fault) else Corrupt(str(exc)))
                self._tell()
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
        while not self._replica.unsealed and not self._replica.pending:
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
        target = self._replica.seal()
        self._packs.cut()
        while self._replica.committed < target and self._replica.pending:
            candidate = self._replica.next_commit(self._packs.blocked)
            if candidate is None:
                error = self._packs.last_error
                if error is not None:
                    raise error
                # A lost race may have brought bytes that lie in the open pack into an early batch.
                self._packs.cut()
                await self._packs.wait_change()
                continue
            await self._publish(candidate)

    async def _publish(self, candidate: Candidate) -> None:
        async with self._turn:
            if self.frozen is not None:
                raise Corrupt(f"the mount is read-only: {self.frozen}")
            replica = self._replica
            if replica.committed >= candidate.first or candidate.first not in replica.pending:
                return  # the follower changed what is pending while we waited for our turn
            if self.trust == "doubtful":
                await self._first_contact()
                return
            if not self._tail_is_fresh():
                await self._check_tail()
                self._packs.doubt(_TAIL_TRUST)
            sequence = replica.sequence + 1
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
                generation=self.generation,
                operations=fresh.operations,
                changeset=await _packed(fresh.changeset),
            )
            data = commit_format.seal(self._keyring, sequence, commit)
            if len(data) > commit_format.MAX_OBJECT or len(fresh.changeset) > (
                commit_format.MAX_CHANGESET
            ):
                # Nobody could read it: the journal would end here for every mount.
                raise Full(f"a commit of {len(data)} bytes is too large for the journal")
            try:
                await self._store.put_new(commit_format.object_name(sequence), data)
            except Exists:
                won = False
            else:
                won = True
            if not won:
                self.races_lost += 1
                found = await self._catch_up()
                if not found:
                    # The name is taken, yet nothing is there to read: a store that lies, or a
                    # listing that lags; ask again, but not at once.
                    raise Unavailable(
                        f"{commit_format.object_name(sequence)} exists and cannot be read"
                    )
                return
            if not self._tail_is_fresh():
                await self._withdraw_if_folded(sequence)
            self.commits += 1
            self.last_contact = self._tail_seen = clock.now()
            # The head first: once the replica says that the batch is committed, an fsync returns.
            await self._remember(sequence, digest(data))
            replica.raise_epoch(self._keyring.epoch)
            replica.won(sequence, digest(data), commit, fresh.changeset)
            self._packs.release(replica.named_packs)
        self._tell()

    async def _remember(self, sequence: int, newest: bytes) -> None:
        if self.trust != "full":
            return  # else a history that is refused now would be the known one next time
        seen = head.Seen(
            self._keyring.fsid.hex(), sequence, newest.hex(), self.generation, self.slot
        )
        try:
            await self._syncs.run(head.write, self._state, seen)
        except OSError as exc:
            raise Full(f"{self._state}/head cannot be written: {exc.strerror}") from exc

    def _tell(self) -> None:
        self._advanced.set()
        self._advanced = trio.Event()

    async def _tidy(self) -> None:
        tidying = self._replica.tidying()
        if tidying is not None:
            await offload(tidying, kind="disk")

    def _freeze(self, cause: Fault) -> None:
        if self.frozen is None:
            self.frozen = cause
            log.error("the mount is read-only from here on: %s", cause)

    # ---- following --------------------------------------------------------------------------

    async def follow(self) -> None:
        """Look for others' commits, for ever; slower when nothing happens here."""
        while True:
            idle = trio.current_time() - self._active > _IDLE_AFTER
            pause = self._interval * (_IDLE_FACTOR if idle else 1)
            with trio.move_on_after(clock.uniform(pause * 0.8, pause * 1.2)):
                if idle:
                    await self._stirred.wait()  # somebody came: what others did is news now
                else:
                    await trio.sleep_forever()
            self._stirred = trio.Event()
            if self.frozen is not None:
                continue
            try:
                if await self.catch_up():
                    self._active = trio.current_time()
                    await self._tidy()
            except (Corrupt, TooNew) as exc:
                self._freeze(exc if isinstance(exc, Fault) else Corrupt(str(exc)))
                self._tell()
            except StoreError as exc:
                log.debug("cannot look for others' commits: %s", exc)

    async def catch_up(self) -> int:
        """Apply every commit that is in the store and not here; return how many."""
        async with self._turn:
            return await self._catch_up()

    async def _first_contact(self) -> int:
        """Check what a mount checks, for one that began while the store was away."""
        self.trust = "checking"
        try:
            standing = await self.standing()
            if standing == "gone":
                raise Rollback(
                    f"the store does not hold commit {self._replica.sequence}, which this machine"
                    " has seen: it was rolled back, or shows another history"
                )
            if standing == "folded":
                raise Corrupt(
                    f"the journal has gone on without this machine since commit"
                    f" {self._replica.sequence}: mount again, to read the tree anew"
                )
            total = await self._catch_up()
            self.check_seen(self.seen)
        except BaseException:
            self.trust = "doubtful"
            raise
        self.trust = "full"
        await self._remember(self._replica.sequence, self._replica.head)
        return total

    async def _catch_up(self) -> int:
        if self.trust == "doubtful":
            return await self._first_contact()
        total = 0
        window = 1
        while True:
            first = self._replica.sequence + 1
            listed = usual((await self._listed()).found, first) if self._ahead is not None else []
            if listed:
                got = await self._read_commits(first, len(listed), [size for _, size in listed])
                self._ask_next(first + len(got))
            else:  # a listing may lag behind, so the end is where nothing can be read
                got = await self._read_commits(first, window)
            self.last_contact = clock.now()
            if not got:
                if self._ahead is not None and (await self._following())[1] not in (None, first):
                    raise Corrupt(
                        f"{commit_format.object_name(first)} is missing although later commits"
                        " exist"
                    )
                if not self._tail_is_fresh():
                    await self._check_tail()
                return total
            if self._subscriber is not None:
                touched = self._replica.touched(got)
                removed = {ino for verified in got for ino in verified.changes.removed}
                await self._subscriber.before_commits(touched | self._replica.undecided, removed)
            self._replica.raise_epoch(self._epoch)
            news = self._replica.follow(got)
            await self._remember(self._replica.sequence, self._replica.head)
            self._tell()
            if self._subscriber is not None:
                self._subscriber.after_commits(news)
            total += len(got)
            if listed:
                continue
            if len(got) < window and window > 1:
                return total
            window = _WINDOW

    def _tail_is_fresh(self) -> bool:
        """Whether the end of the journal was seen so lately that nobody can have folded it since.

        By the wall clock, which goes on while a machine sleeps; one set back proves nothing.
        """
        return 0 <= clock.now() - self._tail_seen < _TAIL_TRUST

    async def _check_tail(self) -> None:
        """See that there really is no commit after ours.

        gc removes old commits, so after a long sleep a missing one may mean that the journal has
        gone on without us.  Committing there would be a history that nobody else ever sees.
        """
        sequence = self._replica.sequence
        now, following = await self._following()
        if following is not None and following > sequence + 1:
            raise Corrupt(
                f"commit {sequence + 1} is gone although later commits exist: this mount was away"
                " for longer than the volume keeps its journal. Unmount and mount again; what is"
                " staged here is kept and will be written then"
            )
        self._tail_seen = now

    async def _withdraw_if_folded(self, sequence: int) -> None:
        """Our commit took so long that its place may have been in the past already."""
        page = await self._store.list("commits/", commit_format.object_name(sequence), 1)
        if page.entries and commit_format.sequence_of(page.entries[0].name) > sequence + 1:
            await self._store.delete(commit_format.object_name(sequence))
            raise Corrupt(
                f"commit {sequence} came too late: this mount was away for longer than the volume"
                " keeps its journal. Unmount and mount again; what is staged here is kept"
            )

    async def _read_commits(
        self, first: int, count: int, sizes: Sequence[int] = ()
    ) -> list[VerifiedCommit]:
        """Up to *count* commits from *first* on, verified one by one and against the chain.

        sizes: their bytes, if a listing told.
        """
        found: dict[int, bytes] = {}

        def limit(sequence: int) -> int | None:
            if sizes:
                return sizes[sequence - first]
            return _USUAL if count > 1 else None

        async def fetch(sequence: int) -> None:
            try:
                found[sequence] = await self._get(sequence, limit(sequence))
            except Missing:
                pass

        if count == 1:
            await fetch(first)
        else:
            async with one_error_nursery() as nursery:
                for sequence in range(first, first + count):
                    nursery.start_soon(fetch, sequence)
        commits: list[VerifiedCommit] = []
        prev = self._replica.head
        for sequence in range(first, first + count):
            data = found.get(sequence)
            if data is None:
                if any(later > sequence for later in found):
                    # Another mount may have written both since our first get: look again.
                    await fetch(sequence)
                    data = found.get(sequence)
                    if data is None:
                        raise Corrupt(
                            f"{commit_format.object_name(sequence)} is missing although later"
                            " commits exist"
                        )
                else:
                    break
            most = limit(sequence)
            if most is not None and len(data) > most:
                data = await self._get(sequence)  # a large one: one at a time in memory
            try:
                commit = self._verified(sequence, data, prev)
            except Corrupt as exc:
                # Once more, as for every object that does not verify: it may be the way, not the
                # store.  Then it is final.
                log.debug("reading it again: %s", exc)
                data = await self._get(sequence)
                commit = self._verified(sequence, data, prev)
            prev = digest(data)
            commits.append(VerifiedCommit(SequenceNumber(sequence), prev, commit))
        return commits

    async def _get(self, sequence: int, limit: int | None = None) -> bytes:
        limit = commit_format.MAX_OBJECT if limit is None else limit
        return await self._store.get(commit_format.object_name(sequence), 0, limit + 1)

    def _verified(self, sequence: int, data: bytes, prev: bytes) -> Commit:
        if len(data) > commit_format.MAX_OBJECT:
            raise Corrupt(f"{commit_format.object_name(sequence)} is too large for a commit")
        commit = commit_format.open_commit(self._keyring, sequence, data)
        epoch = commit_format.epoch_of(data)
        if epoch < max(self._epoch, self._replica.epoch):
            # Whoever still has only the old key must not write any more: rotating is for that.
            raise Corrupt(
                f"{commit_format.object_name(sequence)} is sealed under the key of an earlier epoch"
                " than commits before it"
            )
        if commit.prev != prev:
            raise Corrupt(
                f"{commit_format.object_name(sequence)} does not follow the commit before it:"
                " the store shows different histories"
            )
        self.newest_generation = max(self.newest_generation, commit.generation)
        self._epoch = max(self._epoch, epoch)
        return commit

    # ---- at mount ---------------------------------------------------------------------------

    async def standing(self) -> str:
        """Whether the store's history holds the commit that the replica stands on.

        "there", "folded" (only checkpoints tell of it, and what follows it is gone), or "gone".
        """
        replica = self._replica
        cut_off = False
        for patience in (1.0, 0.0):
            try:
                data = await self._get(replica.sequence)
            except Missing:
                pass
            else:
                if digest(data) != replica.head:
                    return "gone"
                if not await self._is_cut_off():
                    return "there"
                cut_off = True
                break
            if patience:
                await trio.sleep(patience)  # a store may show a new object a little late
        manifest = await checkpoint.find_usable(self._store, self._keyring)
        if manifest is None or manifest.sequence < replica.sequence:
            return "there" if cut_off else "gone"  # check_gap says what is missing
        at = len(manifest.history) - 32 * (manifest.sequence - replica.sequence + 1)
        if at < 0 or manifest.history[at : at + 32] != replica.head:
            return "gone"
        return "folded" if manifest.sequence > replica.sequence else "there"

    async def _is_cut_off(self) -> bool:
        """Whether the commit after ours is gone and later ones exist: folded, or a bad store."""
        _, following = await self._following()
        return following is not None and following > self._replica.sequence + 1

    async def _following(self) -> tuple[float, int | None]:
        """When the store was asked, and the first commit that it lists after ours."""
        sequence = self._replica.sequence
        if self._ahead is not None:
            listing = await self._listed()
            return listing.at, next((n for n, _ in listing.found if n > sequence), None)
        now = clock.now()
        page = await self._store.list("commits/", commit_format.object_name(sequence), 1)
        return now, commit_format.sequence_of(page.entries[0].name) if page.entries else None

    async def _listed(self) -> Listing:
        """What the store lists after our commit; while opening, one listing serves all questions.

        It tells how the journal ended when it was asked.  What is applied since is in it, so what
        it has beyond that is what would be missing.
        """
        sequence = self._replica.sequence
        if self._listing is None or self._listing.after > sequence:
            now = clock.now()
            found: list[tuple[int, int]] = []
            async for page in list_all(
                self._store, "commits/", commit_format.object_name(sequence)
            ):
                found += [(commit_format.sequence_of(e.name), e.size) for e in page.entries]
            listing = Listing(sequence, now, found)
            if self._ahead is None:
                return listing
            self._listing = listing
        return self._listing

    def _ask_next(self, sequence: int) -> None:
        """Have the next window under way while this one is applied."""
        if self._ahead is not None and self._listing is not None:
            _ask(self._ahead, usual(self._listing.found, sequence))

    @contextmanager
    def opening(self, ahead: EarlyRequests) -> Iterator[None]:
        """A mount is being opened in the block: its questions go to *ahead*."""
        real, self._store, self._ahead = self._store, ahead, ahead
        try:
            yield
        finally:
            self._store, self._ahead, self._listing = real, None, None

    def look_anew(self) -> None:
        """While opening: what was listed is no longer how the journal ends."""
        self._listing = None

    async def check_gap(self) -> None:
        """Raise Corrupt if the store lists a commit later than the first missing one."""
        listing = await self._listed()
        for later, _ in listing.found:
            if later > self._replica.sequence + 1:
                # It may have appeared between our last look and the listing.
                self.look_anew()
                await self.catch_up()
                if later > self._replica.sequence:
                    raise Corrupt(
                        f"commit {self._replica.sequence + 1} is missing although commit"
                        f" {later} exists"
                    )
        self._tail_seen = listing.at

    def check_seen(self, seen: head.Seen | None) -> None:
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


async def _packed(changeset: bytes) -> bytes:
    """As `pack_changeset`; a small one takes less than the way to a thread."""
    if len(changeset) < _IN_PLACE:
        return commit_format.pack_changeset(changeset)
    return await offload(commit_format.pack_changeset, changeset)
