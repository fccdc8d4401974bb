"""Go on with what an earlier process of this machine had not committed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, NamedTuple

from megafs.chunks.stage import Stage, staged_ids
from megafs.chunks.unlogged import UnloggedChunks
from megafs.crypto.volume_keys import Keyring
from megafs.errors import Corrupt
from megafs.journal.database import remove_files
from megafs.journal.replica import Replica
from megafs.private_files import DAMAGED
from megafs.tree.ops import AddPack
from megafs.tree.tree import Extent
from megafs.volume.state_directory import Process, StateDirectory

log = logging.getLogger(__name__)

#: Bytes of a replica that are read through whenever a volume is opened: 3 ms of CPU for each MiB.
CHECKED_AT_ONCE: Final = 4 << 20
#: Bytes of staged chunks that are read through: 1 ms of CPU for each MiB; of more, only whether
#: they are there.
CHUNKS_CHECKED: Final = 64 << 20


def open_replica(
    directory: StateDirectory,
    keyring: Keyring,
    chunk_size: int,
    host: str,
    unlogged: UnloggedChunks,
    process: Process,
    commit_size: int,
) -> Replica:
    """The replica as it was left, or an empty one if it is damaged.

    A large one is looked at later, by `upkeep.check_replica`.
    """

    def opened() -> Replica:
        return Replica(
            directory.volume,
            keyring,
            chunk_size,
            process.number,
            host,
            unlogged,
            state_number=process.state_number,
            commit_size=commit_size,
        )

    try:
        replica = opened()
        if replica.path.stat().st_size > CHECKED_AT_ONCE or replica.is_sound():
            return replica
        replica.reset()
        log.warning("the replica is damaged and will be rebuilt from the store")
        return replica
    except Corrupt as exc:
        log.warning("the replica is damaged and will be rebuilt from the store: %s", exc)
    remove_files(directory.volume)
    return opened()


def recover(
    replica: Replica, stage: Stage, directory: StateDirectory, *, rebooted: bool, process: Process
) -> int:
    """Take up pending operations and staged packs; return how many operations there are.

    rebooted: the machine started anew since the last process, so bytes may be lost that no sync had
        covered.  They were promised to nobody, and operations that need them are dropped.
    process: tells whether the directory may be a copy of one that was in use, each file as it was
        at another time.  Operations that need bytes which the copy lacks are dropped, too; but
        nothing tells such a copy from one that a disk has damaged, so what is dropped is kept in
        `damaged/`.
    """
    power_cut = rebooted and not process.moved
    copied = not power_cut and not process.is_dead
    # Should others have dropped a pack that lies here and that pending operations name.
    replica.keep_packs(staged_ids(directory.packs))
    taken = replica.recover(stage.restore if power_cut or copied else None, power_cut=power_cut)
    stage.take_up(replica.tree.has_pack, is_all_known=not replica.oplog.is_damaged)
    if power_cut:
        _drop_torn(replica, stage)
    else:
        if copied:
            _drop_lacking(replica, stage, directory)
        _name_damaged(replica, stage)
    if rebooted or copied:
        directory.note_boot()
    return taken


def _name_damaged(replica: Replica, stage: Stage) -> None:
    """Say which staged packs the disk has damaged: what is in them is nowhere else.

    The operations stay: what else they did is sound, and the files tell by an I/O error.
    """
    checked = 0
    damaged: dict[int, int] = {}
    for batch in sorted(replica.pending):
        for op in replica.operations(batch):
            for extent in op.laid():
                if not stage.has(extent.pack):
                    continue
                whole = checked < CHUNKS_CHECKED
                checked += extent.sealed
                if not stage.holds(extent, only_length=not whole):
                    damaged[extent.pack] = damaged.get(extent.pack, 0) + extent.length
    for pack, size in damaged.items():
        log.error(
            "%s is damaged: %d bytes that are not in the store yet are lost; megafs scrub names the"
            " files",
            stage.path_of(pack),
            size,
        )


def _drop_torn(replica: Replica, stage: Stage) -> None:
    """Cut off what a power cut left half: operations whose staged bytes are not whole.

    Nothing from the first such operation on was ever promised to anybody.  What comes before it in
    its batch may have been: a batch stays open over many closes.
    """
    found = _first_without(
        replica, lambda extent, begun: not stage.holds(extent, must_be_here=begun)
    )
    if found is None:
        return
    stage.sync()  # the log is written anew, without the chunks that lay in it
    log.error(
        "a power cut took bytes that were not synced yet: the last %d operations are dropped",
        replica.drop_pending_from(found.batch, found.number),
    )


def _drop_lacking(replica: Replica, stage: Stage, directory: StateDirectory) -> None:
    """Cut off what the original of a copied directory did while it was copied: operations whose
    staged bytes are not here.  The original has them, if it is not gone: they are kept.

    Bytes that are here and wrong no copy in use explains (see `_name_damaged`).
    """
    found = _first_without(replica, lambda extent, begun: stage.lacks(extent, must_be_here=begun))
    if found is None:
        return
    stage.sync()
    packs = [
        {extent.pack for extent in op.laid()}
        for batch in sorted(replica.pending)
        for op in replica.operations(batch)
    ]
    replica.oplog.keep_copies()
    dropped = replica.drop_pending_from(found.batch, found.number)
    for pack in set().union(*packs[-dropped:]):
        if stage.has(pack):
            stage.keep_copy(pack, is_named=replica.tree.has_pack(pack))
    log.error(
        "%s lacks bytes of pack %016x: this state directory was moved or copied, while it was in"
        " use or by a disk that loses bytes. The last %d operations are dropped: they are kept in"
        " %s, and the original of this directory, if there is one, still has them",
        directory.packs,
        found.pack,
        dropped,
        directory.volume / DAMAGED,
    )


class _Found(NamedTuple):
    """An operation of a pending batch, by its number in it, that lays a chunk of a pack."""

    batch: int
    number: int
    pack: int


def _first_without(replica: Replica, is_without: Callable[[Extent, bool], bool]) -> _Found | None:
    """The first pending operation with a chunk of which *is_without* is true.

    is_without: given an extent, and whether its pack must lie here: one that pending batches began
        and name stays until one of them is committed.
    """
    begun: set[int] = set()
    for batch in sorted(replica.pending):
        for number, op in enumerate(replica.operations(batch)):
            if isinstance(op, AddPack):
                begun.add(op.pack)
            for extent in op.laid():
                if extent.pack and is_without(extent, extent.pack in begun):
                    return _Found(batch, number, extent.pack)
    return None
