"""`megafs log`: the commits of a volume, or what happened to a path."""

from __future__ import annotations

from msgspec import UNSET

from megafs.errors import BadUsage, Missing
from megafs.history.backwards import Backwards
from megafs.history.file_events import Event, path_events
from megafs.jobs.committing import commit_written
from megafs.jobs.messages import (
    LogArgs,
    LogCommit,
    LogEvent,
    LogOfCommits,
    LogOfPath,
    limited,
)
from megafs.progress import OnProgress
from megafs.tree import paths, queries_history
from megafs.tree.mount_number import is_kin
from megafs.tree.queries_history import KnownCommit
from megafs.volume.volume import Volume


async def log(volume: Volume, args: LogArgs, on_progress: OnProgress) -> LogOfCommits | LogOfPath:
    """The commits themselves, of the root; else the events of the path."""
    path = paths.parse(args.path or "/")
    limit = limited(args.limit)
    await commit_written(volume)
    since = await volume.history.first_since(args.since)
    if path == b"/" and not args.recursive:
        return await _commits(volume, since, limit)
    events: list[Event] = []
    backwards = Backwards(volume.history, on_progress, since)
    try:

        def take(event: Event) -> bool:
            events.append(event)
            return len(events) <= limit

        await path_events(backwards, path, args.recursive, take)
        if not events and backwards.rewind.walk(path) is None:
            raise BadUsage(
                f"{paths.show(path)}: no such file now, nor as far back as the journal goes"
            )
        return LogOfPath(
            paths.show(path),
            [_shown(event) for event in events[:limit]],
            more=len(events) > limit,
            cut_short=backwards.cut_short,
            path_b64=paths.exact(path),
        )
    finally:
        backwards.close()


def _shown(event: Event) -> LogEvent:
    return LogEvent(
        event.sequence,
        event.time_ns / 1e9,
        event.host,
        event.what,
        paths.show(event.path),
        None if event.was is None else paths.show(event.was),
        event.size,
        event.old_size,
        event.text,
        paths.exact(event.path),
        UNSET if event.was is None else paths.exact(event.was),
    )


async def _commits(volume: Volume, since: int, limit: int) -> LogOfCommits:
    commits: list[LogCommit] = []
    cut_short = more = False
    for sequence in range(volume.replica.sequence, since - 1, -1):
        if len(commits) >= limit:
            more = True
            break
        found = queries_history.known_commit(volume.replica.tree.db, sequence)
        if found is None:
            try:
                made, commit = await volume.history.commit(sequence)
            except Missing:
                cut_short = True
                break
            found = KnownCommit(made, commit.mount, commit.host, commit.time_ns, commit.operations)
        commits.append(
            LogCommit(
                sequence,
                found.time_ns / 1e9,
                found.host,
                is_kin(found.mount, volume.replica.mount),
                found.operations,
                found.hash.hex(),
            )
        )
    return LogOfCommits(commits, more, cut_short)
