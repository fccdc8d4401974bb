"""Reads commits from the store: lists them, fetches them, verifies them.

Nothing is applied here: the caller says which commit its replica stands on (`Position`).

While a mount is being opened, requests are made early (stores/early_requests.py), and one listing
of the journal's end answers every question about it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from msgspec import Struct

from megafs import clock
from megafs.concurrency import one_error_nursery
from megafs.crypto.volume_keys import Keyring, digest
from megafs.errors import Corrupt, Missing
from megafs.journal import commit as commit_format
from megafs.journal.commit import Commit, VerifiedCommit
from megafs.stores.base import ObjectStore, list_all
from megafs.stores.early_requests import EarlyRequests
from megafs.tree.schema import SequenceNumber

log = logging.getLogger(__name__)

#: Commits that are fetched side by side where a listing has told which there are, and how large: so
#: many at most, and of so many bytes.  How many requests are out at once is for the store's limits.
WINDOW_LISTED = 64
_WINDOW_BYTES = 16 << 20
# Commits of one listing, all of which are kept (130 bytes each): nobody mounts to replay more.
_MOST_LISTED = 1_000_000
#: Commits up to this size are held in memory side by side; larger ones are read one at a time.
_USUAL = 4 << 20


class Position(Struct, frozen=True):
    """A commit that a replica stands on: its number, its hash, and the epoch of its key."""

    sequence: SequenceNumber
    hash: bytes
    epoch: int


class CommitListing(Struct, frozen=True):
    """The commits after number `after` that the store listed: (number, bytes).

    at: the time just before it was asked.
    """

    after: int
    at: float
    found: list[tuple[SequenceNumber, int]]

    def first_after(self, sequence: int) -> SequenceNumber | None:
        """The first commit after *sequence* that was listed."""
        return next((number for number, _ in self.found if number > sequence), None)


def side_by_side(found: Iterable[tuple[int, int]], sequence: int) -> list[tuple[int, int]]:
    """Those of *found* from *sequence* on, without a gap, that may be fetched side by side.

    found: (number, bytes), as the store lists them.
    """
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
    """Request, before the keys are known, the listing of the commits after *sequence*.

    Returns a function that waits for the listing and then requests the commits it names.
    """
    after = commit_format.object_name(sequence)
    listing = ahead.ask_list("commits/", after)

    async def follow() -> None:
        page = await listing.get()
        try:
            found = [(commit_format.sequence_of(e.name), e.size) for e in page.entries]
        except Corrupt:
            return  # said by whoever reads the listing
        window = side_by_side(found, sequence + 1)
        ask_for(ahead, window)
        if len(window) == len(found):
            _ask_alone(ahead, sequence + len(window) + 1)

    return follow


def ask_for_standing(ahead: EarlyRequests, sequence: int) -> None:
    """Request commit *sequence*, which `Follower.standing` reads, and the one after it."""
    _ask_alone(ahead, sequence)
    _ask_alone(ahead, sequence + 1)


def _ask_alone(ahead: EarlyRequests, sequence: int) -> None:
    ahead.ask(commit_format.object_name(sequence), commit_format.MAX_OBJECT + 1)


def ask_for(ahead: EarlyRequests, commits: Sequence[tuple[int, int]]) -> None:
    for number, size in commits:
        ahead.ask(commit_format.object_name(number), size + 1)


class JournalReader:
    """The commits of one volume in its store.

    newest_generation: the newest generation of the key header that a commit read here names.
    """

    def __init__(self, store: ObjectStore, keyring: Keyring) -> None:
        self.store = store
        self.keyring = keyring
        self.newest_generation = 0
        #: The highest epoch of the commits read here.
        self.epoch = 0
        # While a mount is being opened.
        self._ahead: EarlyRequests | None = None
        self._listing: CommitListing | None = None

    @contextmanager
    def opening(self, ahead: EarlyRequests) -> Iterator[None]:
        """A mount is being opened in the block: requests go to *ahead*, and one listing serves."""
        real, self.store, self._ahead = self.store, ahead, ahead
        try:
            yield
        finally:
            self.store, self._ahead, self._listing = real, None, None

    @property
    def is_opening(self) -> bool:
        """Whether a mount is being opened."""
        return self._ahead is not None

    def look_anew(self) -> None:
        """While opening: forget the listing, for the journal has grown since."""
        self._listing = None

    # ---- listing ----------------------------------------------------------------------------

    async def listed(self, sequence: int) -> CommitListing:
        """The commits after *sequence*; while opening, one listing serves all questions.

        It tells how the journal ended when the store was asked.  What is applied since is in it, so
        what it has beyond that is what would be missing.
        """
        if self._listing is None or self._listing.after > sequence:
            now = clock.now()
            found: list[tuple[SequenceNumber, int]] = []
            after = commit_format.object_name(sequence)
            async for page in list_all(self.store, "commits/", after, most=_MOST_LISTED):
                found += [(commit_format.sequence_of(e.name), e.size) for e in page.entries]
            listing = CommitListing(sequence, now, found)
            if self._ahead is None:
                return listing
            self._listing = listing
        return self._listing

    async def first_listed(self, sequence: int) -> tuple[float, SequenceNumber | None]:
        """When the store was asked, and the first commit that it lists after *sequence*."""
        if self._ahead is not None:
            listing = await self.listed(sequence)
            return listing.at, listing.first_after(sequence)
        now = clock.now()
        page = await self.store.list("commits/", commit_format.object_name(sequence), 1)
        return now, commit_format.sequence_of(page.entries[0].name) if page.entries else None

    # ---- reading ----------------------------------------------------------------------------

    async def get(self, sequence: int, limit: int = commit_format.MAX_OBJECT) -> bytes:
        """The object of a commit, unverified; one byte more than *limit* if it is larger."""
        return await self.store.get(commit_format.object_name(sequence), 0, limit + 1)

    async def read_listed(self, stand: Position) -> list[VerifiedCommit]:
        """While opening: the commits after *stand* that are listed, as many as fit in memory.

        An empty answer is not the end of the journal: a listing may lag behind.
        """
        if self._ahead is None:
            return []
        first = stand.sequence + 1
        window = side_by_side((await self.listed(stand.sequence)).found, first)
        if not window:
            return []
        read = await self.read(stand, len(window), [size for _, size in window])
        if self._listing is not None:
            # The next window is on its way while this one is applied.
            ask_for(self._ahead, side_by_side(self._listing.found, first + len(read)))
        return read

    async def read(
        self, stand: Position, count: int, sizes: Sequence[int] = ()
    ) -> list[VerifiedCommit]:
        """Up to *count* commits after *stand*, verified one by one and against the chain.

        sizes: their bytes, if a listing told.
        """
        first = stand.sequence + 1
        found: dict[int, bytes] = {}

        def limit(sequence: int) -> int:
            if sizes:
                return sizes[sequence - first]
            return _USUAL if count > 1 else commit_format.MAX_OBJECT

        async def fetch(sequence: int) -> None:
            try:
                found[sequence] = await self.get(sequence, limit(sequence))
            except Missing:
                pass

        if count == 1:
            await fetch(first)
        else:
            async with one_error_nursery() as nursery:
                for sequence in range(first, first + count):
                    nursery.start_soon(fetch, sequence)
        commits: list[VerifiedCommit] = []
        prev, epoch = stand.hash, stand.epoch
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
            if len(data) > limit(sequence) and limit(sequence) < commit_format.MAX_OBJECT:
                data = await self.get(sequence)  # a large one: one at a time in memory
            try:
                commit = self._verified(sequence, data, prev, epoch)
            except Corrupt as exc:
                # Once more, as for every object that does not verify: it may be the way, not the
                # store.  Then it is final.
                log.debug("reading it again: %s", exc)
                data = await self.get(sequence)
                commit = self._verified(sequence, data, prev, epoch)
            prev = digest(data)
            commits.append(VerifiedCommit(SequenceNumber(sequence), prev, commit))
        return commits

    def _verified(self, sequence: int, data: bytes, prev: bytes, least: int) -> Commit:
        if len(data) > commit_format.MAX_OBJECT:
            raise Corrupt(f"{commit_format.object_name(sequence)} is too large for a commit")
        commit = commit_format.open_commit(self.keyring, sequence, data)
        epoch = commit_format.epoch_of(data)
        if epoch < max(self.epoch, least):
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
        self.epoch = max(self.epoch, epoch)
        return commit
