"""Long work on a whole volume: fsck, scrub, gc and what else takes minutes.

A job is `async def job(volume, args, progress) -> result`.  The same function runs inside a mount's
process, asked over its control socket, and in a command of its own that has opened the volume.

    args      what the command line gave, JSON-able
    progress  called now and then with {"done": n, "total": n, "text": ...}; total 0: not known
    result    JSON-able; "exit_code" is what the shell gets, "text" what people read

Jobs live in modules of their own and are imported when first asked for.  Whatever is asked of the
store within `run` gives way to what programs wait for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Final

from megafs.errors import BadUsage, Corrupt
from megafs.stores.limit import Priority, at_priority, background
from megafs.tree.ops import Operation
from megafs.volume.open import Volume

Args = dict[str, Any]
Result = dict[str, Any]
Progress = Callable[[dict[str, Any]], None]
Job = Callable[[Volume, Args, Progress], Coroutine[Any, Any, Result]]

_PLACES: Final = {
    "fsck": "megafs.jobs.fsck:job",
    "scrub": "megafs.jobs.scrub:job",
    "gc": "megafs.jobs.gc:job",
    "reencrypt": "megafs.jobs.gc:reencrypt",
    "log": "megafs.history.changes:log",
    "undelete": "megafs.history.changes:undelete",
    "restore": "megafs.jobs.restore:job",
    "pin": "megafs.jobs.pins:pin",
    "unpin": "megafs.jobs.pins:unpin",
    "pin-list": "megafs.jobs.pins:listing",
    "snapshot-create": "megafs.jobs.snapshots:create",
    "snapshot-list": "megafs.jobs.snapshots:listing",
    "snapshot-delete": "megafs.jobs.snapshots:delete",
}


class _Jobs(Mapping[str, Job]):
    """Jobs by name."""

    def __getitem__(self, name: str) -> Job:
        module, _, function = _PLACES[name].partition(":")
        job: Job = getattr(importlib.import_module(module), function)
        return job

    def __iter__(self) -> Iterator[str]:
        return iter(_PLACES)

    def __len__(self) -> int:
        return len(_PLACES)


JOBS: Final[Mapping[str, Job]] = _Jobs()


def add_job(name: str, place: str) -> None:
    """Let *name* stand for the job at "module:function"."""
    _PLACES[name] = place


async def run(volume: Volume, name: str, args: Args, progress: Progress) -> Result:
    """Run the job called *name*."""
    if name not in JOBS:
        raise BadUsage(f"there is no job {name!r}; there are {', '.join(sorted(JOBS))}")
    with background():
        return await JOBS[name](volume, args, progress)


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
    await settle(volume)
    return volume.replica.sequence


async def catch_up(volume: Volume) -> None:
    """Apply the others' commits; at once, for the mount's own commits wait until that is done."""
    with at_priority(Priority()):
        await volume.writer.catch_up()


async def settle(volume: Volume) -> None:
    """Return when everything that was done so far is in the journal."""
    volume.stage.cut()
    batch = await volume.fs.writeback.durability.local()
    await volume.writer.committed(batch, volume.settings.deadline)
