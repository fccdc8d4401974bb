"""`megafs log`: what happened to a file, or to a volume."""

from __future__ import annotations

from typing import Any

import click

from megafs.cli import arguments, output, run_job, volume_path
from megafs.cli.volume_path import VolumePath
from megafs.jobs.messages import LOG, LogArgs, LogEvent, LogOfCommits


@click.command(name="log", short_help="Show what happened to a file, or to the whole volume.")
@click.argument("where", metavar="PATH|URL", default=".")
@click.argument("path", metavar="[PATH]", required=False)
@click.option("-r", "--recursive", is_flag=True, help="Also what lies below a directory.")
@click.option("--since", metavar="TIME", help="No further back: 2026-11-23, '2h ago', a commit.")
@click.option(
    "-n", "--limit", type=click.IntRange(1, 10_000), default=1000, help="At most so many. [1000]"
)
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def command(
    where: str,
    path: str | None,
    recursive: bool,
    since: str | None,
    limit: int,
    as_json: bool,
    **given: Any,
) -> int:
    """Show the changes of the file or directory at PATH, newest first: when, where, what.

    Renames are followed, and a file that is gone has a log, too.  Of a mountpoint (or a URL alone)
    the commits are listed; with --recursive, what they did.

    For a volume that is not mounted give its URL and the path inside it.
    """
    target = volume_path.of(where, path)
    result = run_job.run(
        target.where,
        LOG,
        LogArgs(target.path, recursive=recursive, since=since, limit=limit),
        read_only=True,
        **given,
    )
    if as_json:
        run_job.show_json(result)
        return 0
    if isinstance(result, LogOfCommits):
        lines = [
            [
                str(commit.sequence),
                output.moment(commit.time),
                commit.host,
                f"{commit.operations} operation{'s' if commit.operations != 1 else ''}",
                commit.hash[:16],
            ]
            for commit in result.commits
        ]
        heads = ["commit", "time", "host", "what", "hash"]
    else:
        lines = [
            [
                str(event.sequence),
                output.moment(event.time),
                event.host,
                event.what,
                _details(target, event),
            ]
            for event in result.events
        ]
        heads = ["commit", "time", "host", "what", ""]
    if lines:
        output.show(*output.table(heads, lines))
    if result.more:
        output.note(f"there is more: --limit {limit} ends it here")
    if result.cut_short:
        output.note("the journal goes no further back")
    return 0


def _details(target: VolumePath, event: LogEvent) -> str:
    text = target.as_typed(event.path)
    if event.was:
        text = f"{target.as_typed(event.was)} -> {text}"
    if event.old_size is not None:
        text += f"  {event.old_size} -> {event.size} bytes"
    elif event.size is not None:
        text += f"  {event.size} bytes"
    return f"{text}  {event.text}" if event.text else text
