"""Snapshots: names for moments of the journal.

A snapshot is one row: a name and the number of the last commit that belongs to it.  Nothing is
copied; gc keeps what lies in a snapshot for as long as it has its name.
"""

from __future__ import annotations

import unicodedata
from typing import Final

import trio

from megafs import clock
from megafs.errors import AlreadyThere, BadUsage
from megafs.history.moments import parse_moment, show_time
from megafs.jobs.committing import check_writable, commit_all
from megafs.jobs.messages import (
    ListedSnapshot,
    Nothing,
    SnapshotArgs,
    SnapshotCreated,
    SnapshotDeleted,
    SnapshotList,
)
from megafs.progress import OnProgress, Progress
from megafs.tree.ops import Snapshot
from megafs.volume.volume import Volume

#: Bytes of a name: it is a file's name in `.megafs/snapshots`, perhaps with a conflict's date.
NAME_MAX: Final = 160


def check_name(name: str) -> str:
    """Return *name* if a snapshot may have it, or raise BadUsage."""
    why = ""
    if not name or name != name.strip():
        why = "it is empty, or begins or ends with a space"
    elif len(name.encode("utf-8", "surrogateescape")) > NAME_MAX:
        why = f"it is longer than {NAME_MAX} bytes"
    elif "/" in name or name[0] in ".@-":
        why = "it has a / in it, or begins with . @ or -"
    elif any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        why = "it has control characters, or is not UTF-8"
    elif parse_moment(name, 0).name is None:
        why = "it could be a time or a commit's number"
    if why:
        raise BadUsage(f"{name!r} cannot be the name of a snapshot: {why}")
    return name


async def create(volume: Volume, args: SnapshotArgs, on_progress: OnProgress) -> SnapshotCreated:
    """Give the present moment a name; everything done before belongs to it."""
    name = check_name(args.name)
    check_writable(volume, "making a snapshot")
    if volume.history.snapshot(name) is not None:
        raise AlreadyThere(f"there is a snapshot {name!r} already: megafs snapshot delete frees it")
    on_progress(Progress(0, 0, "bringing everything to the store"))
    await volume.fs.writeback.flush_all()
    await commit_all(volume)
    await volume.writer.catch_up()  # what others have committed by now belongs to it, too
    sequence, now = volume.replica.sequence, clock.now_ns()
    if volume.history.snapshot(name) is not None:
        raise AlreadyThere(f"another machine has just made a snapshot {name!r}")
    volume.replica.record(Snapshot(name, sequence, now))
    await commit_all(volume)
    # Where another machine won the race for the name, ours has got another one (tree/merge.py).
    kept = next(
        (n for n, seq, time_ns in volume.history.snapshots() if (seq, time_ns) == (sequence, now)),
        name,
    )
    return SnapshotCreated(
        kept, sequence, now / 1e9, f"snapshot {kept}: commit {sequence}, {show_time(now)}"
    )


async def list_snapshots(volume: Volume, args: Nothing, on_progress: OnProgress) -> SnapshotList:
    """The snapshots, oldest first."""
    await trio.lowlevel.checkpoint()
    there = sorted(volume.history.snapshots(), key=lambda row: (row.seq, row.time))
    return SnapshotList(
        [ListedSnapshot(name, sequence, time_ns / 1e9) for name, sequence, time_ns in there]
    )


async def delete(volume: Volume, args: SnapshotArgs, on_progress: OnProgress) -> SnapshotDeleted:
    """Take the name away; what only this snapshot kept goes with gc."""
    name = args.name
    check_writable(volume, "deleting a snapshot")
    sequence = volume.history.snapshot(name)
    if sequence is None:
        raise BadUsage(f"there is no snapshot {name!r}")
    volume.replica.record(Snapshot(name, 0, clock.now_ns()))
    await commit_all(volume)
    return SnapshotDeleted(name, sequence, f"snapshot {name} is deleted")
