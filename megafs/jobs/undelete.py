"""`megafs undelete`: what was removed, and bringing it back."""

from __future__ import annotations

from msgspec import UNSET

from megafs.errors import AlreadyThere, BadUsage, Refused
from megafs.history.backwards import Backwards
from megafs.history.removals import Gathering, Removal, removal_of, removals
from megafs.jobs.committing import commit_written
from megafs.jobs.messages import RemovedFile, RemovedFiles, RestoreResult, UndeleteArgs, limited
from megafs.jobs.restore import bring_back
from megafs.progress import OnProgress
from megafs.tree import paths
from megafs.volume.volume import Volume


async def undelete(
    volume: Volume, args: UndeleteArgs, on_progress: OnProgress
) -> RemovedFiles | RestoreResult:
    """List what was removed below the path or, if the path itself is gone, bring it back."""
    path = paths.parse(args.path or "/")
    to = paths.parse(args.to) if args.to else None
    await commit_written(volume)
    try:
        there = volume.replica.tree.inode(volume.replica.tree.walk(path))
    except Refused:
        there = None
    if args.list or (there is not None and there.is_dir and to is None):
        return await _list_removed(volume, path, args, on_progress)
    if there is not None and to is None:
        raise AlreadyThere(
            f"{paths.show(path)} exists; to have what was there before, give --to, or restore it"
            " with megafs restore --at"
        )
    since = await volume.history.first_since(args.since)
    backwards = Backwards(volume.history, on_progress, since)
    try:
        sequence = await removal_of(backwards, path)
    finally:
        backwards.close()
    if sequence is None:
        raise BadUsage(
            f"nothing named {paths.show(path)} was removed as far back as the journal goes;"
            " megafs undelete lists what was"
        )
    return await bring_back(volume, path, sequence - 1, to=to, on_progress=on_progress)


async def _list_removed(
    volume: Volume, path: bytes, args: UndeleteArgs, on_progress: OnProgress
) -> RemovedFiles:
    limit = limited(args.limit)
    since = await volume.history.first_since(args.since)
    backwards = Backwards(volume.history, on_progress, since)
    found: list[Removal] = []
    gathering = Gathering()
    more = False
    try:

        def take(removal: Removal) -> bool:
            nonlocal more
            home = gathering.home(removal)
            if home is not None:
                home.files += 1
                home.size += removal.size
                removal.below = home.path
                if not args.all:
                    return True
            if len(found) >= limit:
                more = True
                return False
            if home is None and removal.is_dir:
                gathering.add(removal)
            found.append(removal)
            return True

        await removals(backwards, path, take, gathering.changed, gathering.watching)
        cut_short = backwards.cut_short
    finally:
        backwards.close()
    return RemovedFiles(
        paths.show(path),
        [_shown(volume, removal) for removal in found],
        more,
        cut_short,
        paths.exact(path),
    )


def _shown(volume: Volume, removal: Removal) -> RemovedFile:
    return RemovedFile(
        path=paths.show(removal.path),
        sequence=removal.sequence,
        time=removal.time_ns / 1e9,
        host=removal.host,
        directory=removal.is_dir,
        size=removal.size,
        mtime=removal.mtime_ns / 1e9,
        files=removal.files,
        above=None if removal.below is None else paths.show(removal.below),
        exists=_exists(volume, removal.path),
        path_b64=paths.exact(removal.path),
        above_b64=UNSET if removal.below is None else paths.exact(removal.below),
    )


def _exists(volume: Volume, path: bytes) -> bool:
    try:
        volume.replica.tree.walk(path)
    except Refused:
        return False
    return True
