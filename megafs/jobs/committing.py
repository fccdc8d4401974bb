"""How a job brings its operations into the journal."""

from __future__ import annotations

from collections.abc import Iterable

from megafs.errors import BadUsage, Corrupt
from megafs.stores.limit import Priority, at_priority
from megafs.tree.ops import Operation
from megafs.volume.volume import Volume


def check_writable(volume: Volume, what: str) -> None:
    """Raise unless operations can be committed."""
    if volume.settings.read_only:
        raise BadUsage(f"{what} needs to write, and this mount is read-only")
    if volume.writer.frozen is not None:
        raise Corrupt(f"{what} needs to write, but the mount is frozen: {volume.writer.frozen}")


async def commit(volume: Volume, operations: Iterable[Operation]) -> int:
    """Do these operations and return when they are in the journal: its number then."""
    for operation in operations:
        volume.replica.record(operation)
    await commit_all(volume)
    return volume.replica.sequence


async def commit_all(volume: Volume) -> None:
    """Return when everything that was done so far is in the journal."""
    volume.stage.cut()
    batch = await volume.fs.writeback.durability.local()
    await volume.writer.committed(batch, volume.settings.deadline)


async def commit_written(volume: Volume) -> None:
    """Commit what was written here, if that is possible, so that the journal shows it."""
    if not volume.settings.read_only and volume.writer.frozen is None:
        await volume.fs.writeback.flush_all()
        await commit_all(volume)


async def catch_up(volume: Volume) -> None:
    """Apply the others' commits; at once, for the mount's own commits wait until that is done."""
    with at_priority(Priority()):
        await volume.writer.catch_up()
