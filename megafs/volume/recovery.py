"""Go on with what an earlier process of this machine had not committed."""

from __future__ import annotations

import logging
from typing import Final

from megafs.chunks.stage import Stage, staged_ids
from megafs.chunks.unlogged import UnloggedChunks
from megafs.crypto.volume_keys import Keyring
from megafs.errors import Corrupt
from megafs.journal.database import remove_files
from megafs.journal.replica import Replica
from megafs.tree.ops import AddPack
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
    replica: Replica, stage: Stage, directory: StateDirectory, *, rebooted: bool, copied: bool
) -> int:
    """Take up pending operations and staged packs; return how many operations there are.

    rebooted: the machine started anew since the last process, so bytes may be lost that no sync had
        covered.
    copied: the directory may be a copy of one that was in use, each file as it was at another time.
    Operations whose bytes are not whole are dropped in either case.
    """
    torn = rebooted or copied
    # Should others have dropped a pack that lies here and that pending operations name.
    replica.keep_packs(staged_ids(directory.packs))
    taken = replica.recover(stage.restore if torn else None)
    stage.take_up(replica.tree.has_pack, is_all_known=not replica.oplog.is_damaged)
    if torn:
        why = "a power cut took bytes that were not synced yet"
        if not rebooted:
            why = "this state directory was copied while it was in use, and lacks what came last"
        _drop_torn(replica, stage, why)
        directory.note_boot()
    else:
        _name_damaged(replica, stage)
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


def _drop_torn(replica: Replica, stage: Stage, why: str) -> None:
    """Cut off what a power cut or a copy left half: operations whose staged bytes are not whole.

    After a power cut nothing from the first such operation on was ever promised to anybody.  What
    comes before it in its batch may have been: a batch stays open over many closes.  In a copy they
    are what the original did after the log was copied, and the original has them.
    why: for the log.
    """
    begun: set[int] = set()
    for batch in sorted(replica.pending):
        for number, op in enumerate(replica.operations(batch)):
            if isinstance(op, AddPack):
                begun.add(op.pack)
            for extent in op.laid():
                # A pack that pending batches began and name stays here until one is committed.
                if not extent.pack or stage.holds(extent, must_be_here=extent.pack in begun):
                    continue
                stage.sync()  # the log is written anew, without the chunks that lay in it
                dropped = replica.drop_pending_from(batch, number)
                log.error("%s: the last %d operations are dropped", why, dropped)
                return
