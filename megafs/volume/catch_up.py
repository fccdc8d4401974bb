"""Bring the replica to the end of the journal when a volume is opened.

The head that this machine remembers must be among the commits that the store shows; otherwise the
store was rolled back, or shows another history, and is refused unless the user accepts it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime

from msgspec import Struct

from megafs.crypto.volume_keys import Keyring, digest
from megafs.errors import BadUsage, Corrupt, Missing, NotAVolume, Rollback, TooNew, Unavailable
from megafs.journal import checkpoint, head
from megafs.journal.commit import MAX_OBJECT, open_commit, sequence_of
from megafs.journal.follower import Follower, Standing
from megafs.journal.replica import Replica
from megafs.stores.base import ObjectStore, list_all
from megafs.stores.early_requests import EarlyRequests
from megafs.volume import header_store
from megafs.volume.create import write_first_commit

log = logging.getLogger(__name__)


class Expected(Struct, frozen=True):
    """The conditions that the store's history must meet.

    last_head: the head that this machine remembers.  generation: that of the key header that was
    opened.  head: HASH or SEQUENCE:HASH that the user named.  accept_any: take what the store shows
    instead of the remembered head, as the user asked.  read_only: make no first commit.
    began_epoch: a rotation on this machine began that header's epoch, and may have ended before the
    first commit.
    """

    last_head: head.RememberedHead | None
    generation: int
    head: str | None
    accept_any: bool
    read_only: bool
    began_epoch: bool = False


async def catch_up(
    replica: Replica,
    follower: Follower,
    early: EarlyRequests,
    expected: Expected,
    say: Callable[[str], None],
    *,
    offline: bool,
) -> bool:
    """Bring the replica to the end of the journal; return whether the store is away.

    A damaged replica is rebuilt from the store.  Raises Unavailable if the store is away and this
    machine does not hold the whole tree, Rollback if the store shows another history.
    """
    if not offline:
        try:
            with follower.reader.opening(early):
                try:
                    await _follow(replica, early, follower, expected, say)
                except Corrupt as exc:
                    if isinstance(exc, Rollback) or replica.is_sound():
                        raise
                    log.warning("the replica is damaged, rebuilding it from the store: %s", exc)
                    replica.reset()
                    follower.reader.look_anew()
                    await _follow(replica, early, follower, expected, say)
        except Unavailable as exc:
            if replica.sequence == 0 or replica.sequence < replica.expected:
                raise
            log.warning("the store is away (%s): going on with what this machine has", exc)
            offline = True
    if offline and (replica.sequence == 0 or replica.sequence < replica.expected):
        raise Unavailable("the store is away, and this machine does not hold the volume's tree yet")
    early.drop()
    follower.opened(offline=offline)
    return offline


async def _follow(
    replica: Replica,
    store: ObjectStore,
    follower: Follower,
    expected: Expected,
    say: Callable[[str], None],
) -> None:
    """Apply the commits that the replica lacks, and check them against the remembered head."""
    reader, last_head = follower.reader, expected.last_head
    before = (
        _stand(replica)
        if last_head is not None and 0 < replica.sequence == last_head.sequence
        else ""
    )
    began_at = replica.sequence
    # A megafs that did not keep the epoch has opened the volume with this very header.
    opened_before = (
        replica.sequence > 0
        and last_head is not None
        and last_head.epoch is None
        and last_head.generation == expected.generation
    )
    if replica.sequence:
        standing = await follower.standing()
        if standing is Standing.GONE and not expected.accept_any:
            raise Rollback(
                f"the store does not hold commit {replica.sequence}, which this machine has seen:"
                " it was rolled back, or shows another history. Mount with -o accept_state to go on"
                f" from what it has now. Seen here: {_stand(replica)}; in the store now:"
                f" {await _end_of(store, replica.keyring)}"
            )
        if standing is not Standing.THERE:
            log.warning("commit %d is %s: reading the tree again", replica.sequence, standing.value)
            replica.reset()
    elif not replica.fresh:
        replica.reset()  # an earlier process was reading the tree and did not get to its end
    if replica.sequence == 0:
        if last_head is not None:
            replica.expect(last_head.sequence)
        # A rotation that ended with the key header has no checkpoint of its epoch, and the machine
        # that did it knows so.
        lenient = expected.accept_any or expected.began_epoch
        await checkpoint.load_newest(store, replica, say, 0 if lenient else replica.keyring.epoch)
    await follower.catch_up()
    await follower.check_gap()
    replica.expect(0)
    if last_head is not None:
        try:
            follower.check_seen(last_head)
        except Rollback as exc:
            known_here = before or _named(last_head.sequence, bytes.fromhex(last_head.hash))
            changed = f"Seen here: {known_here}; in the store now: {_stand(replica)}"
            if not expected.accept_any:
                raise Rollback(f"{exc}. {changed}") from exc
            log.warning("another state of the store is accepted, as asked. %s", changed)
    if reader.newest_generation > expected.generation and not expected.accept_any:
        # Changed while we were reading, or rolled back.
        now = await header_store.load(store)
        if now.generation < reader.newest_generation:
            raise Rollback(
                f"the store serves generation {now.generation} of the keys, but the journal was"
                f" written with generation {reader.newest_generation}: the keys were rolled back"
            )
    if not (expected.accept_any or expected.began_epoch or opened_before):
        try:
            _check_epoch(replica)
        except Rollback:
            if replica.sequence != began_at:
                replica.reset()  # else it would not fit to the store when that is right again
            raise
    check_head(replica, expected.head)
    if replica.sequence == 0:
        if expected.read_only:
            raise NotAVolume(f"{store.url}: the volume has no root directory yet")
        say("the volume has no root directory yet: making it")
        await write_first_commit(store, replica.keyring, expected.generation)
        reader.look_anew()
        await follower.catch_up()


def _check_epoch(replica: Replica) -> None:
    """Raise Rollback if nothing in the store is of the key header's epoch.

    Else the journal could be cut before a rotation, and continued by whoever has the old key.
    """
    epoch = replica.keyring.epoch
    if replica.epoch < epoch:
        raise Rollback(
            f"the volume's key was rotated (epoch {epoch}), but the store has no commit and no"
            f" checkpoint of that epoch, only of epoch {replica.epoch}: either the rotation did not"
            " get to its end, then mount once on the machine that did it; or the store was rolled"
            " back."
            " Mount with -o accept_state to go on from what it has now"
        )


def _named(sequence: int, newest: bytes) -> str:
    return f"commit {sequence} ({head.words(newest)})"


def _stand(replica: Replica) -> str:
    """The commit that the replica stands on, for people: number, words, time and host."""
    time_ns, host, _ = replica.last_commit()
    return f"{_named(replica.sequence, replica.head)}, written {_date(time_ns)} by {host}"


async def _end_of(store: ObjectStore, keyring: Keyring) -> str:
    """The last commit that the store lists, for people; it was not checked against those before."""
    last = ""
    async for page in list_all(store, "commits/"):
        for entry in page.entries:
            last = entry.name
    if not last:
        return "no commit at all"
    try:
        data = await store.get(last, 0, MAX_OBJECT + 1)
        commit = open_commit(keyring, sequence_of(last), data)
    except (Corrupt, TooNew, Missing):
        return f"{last}, which cannot be read"
    named = _named(sequence_of(last), digest(data))
    return f"{named}, written {_date(commit.time_ns)} by {commit.host}"


def _date(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def check_head(replica: Replica, wanted: str | None) -> None:
    """Raise Rollback if the head is not *wanted*, as the user wrote it: HASH or SEQUENCE:HASH."""
    if wanted is None:
        return
    number, _, digest = wanted.rpartition(":")
    if number:
        if not number.isdecimal():
            raise BadUsage(f"expect_head={wanted}: give HASH or SEQUENCE:HASH")
        known = replica.hash_at(int(number))
    else:
        known = replica.head
    digest = digest.lower()
    words = digest.replace("-", " ")
    if known is None or not (
        (len(digest) >= 16 and known.hex().startswith(digest)) or head.words(known) == words
    ):
        raise Rollback(
            f"the store's head is commit {replica.sequence}, {replica.head.hex()[:16]}"
            f" ({head.words(replica.head)}), not the expected {wanted}"
        )
