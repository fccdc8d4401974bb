"""Tasks beside an open volume: checkpoints, the lease; and its numbers for Prometheus."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from megafs import clock
from megafs.chunks.pack_size import PackSize, largest_object
from megafs.concurrency import offload
from megafs.errors import Corrupt, Exists, Fault, TooLarge, TooNew, Unavailable
from megafs.journal import checkpoint
from megafs.journal.lease import Lease
from megafs.stores.abilities import LimitedBodies, uncached
from megafs.stores.limit import background
from megafs.stores.probe import LIMITS, probe_create_if_absent, probe_largest
from megafs.stores.stack import unlimited
from megafs.volume.recovery import CHECKED_AT_ONCE
from megafs.volume.volume import Volume

log = logging.getLogger(__name__)

#: Seconds after which a machine's first mount tries what the store can do, and tries again.  It is
#: one object of a pack's size and 24 races: after one second, all at once, it fell into what people
#: mount for, and 100 reads of cached pages took 135 ms, not 14.
_PROVE_AFTER = 10.0
_PROVE_AGAIN = 60.0
#: Between two races it rests for so many times as long as one took, and for a second at least: the
#: races take a twentieth of the time of whoever works meanwhile, at most.
_REST_FACTOR = 19.0
_REST_LEAST = 1.0
NOT_EXCLUSIVE = (
    "this store does not create an object only if its name is free, although it seemed to when the"
    " volume was made: two mounts could overwrite each other's commits, so this one writes nothing."
    " Mount read-only (-o ro) on one machine and copy the files to a new volume, which will allow"
    " one writing mount at a time"
)
#: A new checkpoint is due after so many commits, so that a new machine replays few.
CHECKPOINT_EVERY = 256
#: Seconds after which a large replica is read through: programs come first.
_CHECK_AFTER = 20.0
#: Seconds between two attempts to take the lease.
_LEASE_RETRY = 5


async def check_replica(volume: Volume) -> None:
    """Read a large replica through, beside everything else; a small one was when it was opened.

    A page that the disk has damaged is an I/O error for who meets it, and the next mount rebuilds
    the replica.
    """
    replica = volume.replica
    if replica.path.stat().st_size <= CHECKED_AT_ONCE:
        return
    await trio.sleep(_CHECK_AFTER)
    if not await offload(replica.checker(), kind="disk", abandon=True):
        replica.doubt()
        log.error(
            "%s is damaged: unmount and mount again, and it is rebuilt from the store", replica.path
        )


async def keep_checkpoints(volume: Volume) -> None:
    """Write a checkpoint whenever one is due, for ever."""
    replica = volume.replica
    epoch = 0  # of the newest checkpoint that was tried for the sake of its key
    while True:
        await trio.sleep(clock.uniform(5, 15))
        if volume.writer.frozen is not None:
            continue  # what this mount knows is not what the store shows
        if max(epoch, replica.checkpoint_epoch) < volume.keyring.epoch <= replica.epoch:
            # A new machine takes none that the key from before a rotation sealed.
            epoch = volume.keyring.epoch
            await write_checkpoint(volume)
        elif replica.sequence - replica.checkpoint >= CHECKPOINT_EVERY:
            await write_checkpoint(volume)


async def reap_after(volume: Volume, predecessor: int) -> None:
    """Remove what an earlier mount kept open without a name, once it is known to be dead."""
    await volume.heartbeats.buried.wait()
    await volume.fs.reap_orphans(predecessor)


async def write_checkpoint(volume: Volume) -> int | None:
    """Write a checkpoint now, unless another mount just did; errors are logged."""
    replica = volume.replica
    try:
        # Not by its name alone: anybody with the store can put a name there, and no mount would
        # write a checkpoint any more.
        recent = max(replica.checkpoint, replica.sequence - CHECKPOINT_EVERY // 2)
        if any(n > recent for n in await checkpoint.newest(volume.store)):
            found = await _newest_of_our_key(volume)
            if found > recent:
                return found
        return await volume.checkpointer.write()
    except Exists:
        return None
    except (Fault, OSError) as exc:
        log.warning("no checkpoint was written: %s", exc)
        return None


async def _newest_of_our_key(volume: Volume) -> int:
    """The number of the newest checkpoint that the current key opens; 0 if there is none."""
    try:
        manifest = await checkpoint.find_usable(
            volume.store, volume.keyring, least_epoch=volume.keyring.epoch
        )
    except Corrupt:
        return 0
    return 0 if manifest is None else manifest.sequence


async def prove_store(volume: Volume, pack_size: PackSize) -> None:
    """Prove on this machine what format proved on another: the first time it mounts the volume.

    The way to the store may be another one here, with a proxy on it; and a store that checks and
    then acts may have passed once.  That one must not be written to by two mounts: this one stops.

    The size first, for packs are small until it is known; behind everything that waits for the
    store.  Then the races, one at a time, with rests between them.
    """
    await trio.sleep(_PROVE_AFTER)
    store = unlimited(volume.store)
    while not (pack_size.known and pack_size.raced):
        try:
            if not pack_size.known:
                largest = largest_object(pack_size.wanted)
                if LimitedBodies.of(store) is not None:
                    with background():
                        largest = await probe_largest(uncached(volume.store), largest)
                pack_size.found(largest)
            if volume.header.create_if_absent and not await probe_create_if_absent(
                store, rest=_rest
            ):
                volume.writer.bar(NOT_EXCLUSIVE)
                return
            pack_size.note_races()
        except TooLarge as exc:
            log.warning("%s", exc)
            pack_size.found(LIMITS[-1])
        except (Fault, OSError) as exc:
            log.debug("what the store can do is not proved yet: %s", exc)
            await trio.sleep(_PROVE_AGAIN)


async def _rest(took: float) -> None:
    await trio.sleep(max(_REST_LEAST, _REST_FACTOR * took))


async def take_lease(volume: Volume, lease: Lease, say: Callable[[str], None]) -> None:
    """Try to become the one writer before the mount is usable; else begin read-only."""
    say("the store cannot keep two writers apart: taking the right to write, some 10 seconds")
    try:
        if lease.held or await lease.acquire(wait=False):
            return
        why = f"another mount ({lease.holder}) has the right to write to this volume"
    except Unavailable as exc:
        volume.writer.hold_up(f"the right to write to this volume could not be taken yet: {exc}")
        return
    except (Fault, TooNew) as exc:
        why = f"the right to write could not be taken: {exc}"
    volume.writer.bar(f"{why}, and the store cannot keep two writers apart: read-only until then")


async def keep_lease(volume: Volume, lease: Lease) -> None:
    """Keep the right to write, or try to get it, for ever."""
    while True:
        try:
            if not lease.held:
                await lease.mend()
            if lease.held or await lease.acquire(wait=True):
                volume.writer.unbar()
                await lease.keep()
            if lease.holder:
                volume.writer.bar(lease.why)
            else:
                volume.writer.hold_up(lease.why)
        except (Fault, TooNew) as exc:
            log.debug("lease: %s", exc)
        await trio.sleep(_LEASE_RETRY)


def register_gauges(volume: Volume) -> None:
    """The gauges of a mount, for Prometheus."""
    gauges: dict[str, tuple[str, Callable[[], float]]] = {
        "megafs_sequence": ("Last commit applied.", lambda: volume.replica.sequence),
        "megafs_staged_bytes": (
            "Sealed contents that the store does not have yet.",
            lambda: volume.stage.staged_bytes,
        ),
        "megafs_dirty_bytes": (
            "Contents in memory that are not staged yet.",
            lambda: volume.fs.writeback.dirty,
        ),
        "megafs_pending_operations": (
            "Operations that are not in the journal yet.",
            lambda: volume.progress().pending_operations,
        ),
        "megafs_memory_cache_bytes": ("Opened chunks in memory.", lambda: volume.chunks.size),
        "megafs_used_bytes": ("File contents in the volume.", lambda: volume.fs.used_bytes),
        "megafs_files": ("Inodes in the volume.", lambda: volume.replica.tree.files),
        "megafs_commits": ("Commits made by this mount.", lambda: volume.writer.commits),
        "megafs_races_lost": ("Commit races lost.", lambda: volume.writer.races_lost),
        "megafs_frozen": (
            "1 if the mount is read-only because the store misbehaved.",
            lambda: float(volume.writer.frozen is not None),
        ),
    }
    for name, (text, source) in gauges.items():
        volume.metrics.gauge(name, text, source=source)
