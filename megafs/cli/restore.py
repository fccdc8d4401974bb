"""`megafs restore`: bring a file or directory back as it was."""

from __future__ import annotations

from typing import Any

import click

from megafs.cli import arguments, output, run_job, volume_path
from megafs.cli.volume_path import VolumePath
from megafs.errors import BadUsage
from megafs.jobs.messages import RESTORE, RestoreArgs, RestoreResult


@click.command(name="restore", short_help="Bring a file or directory back as it was.")
@click.argument("where", metavar="PATH|URL")
@click.argument("path", metavar="[PATH]", required=False)
@click.option(
    "--at",
    metavar="TIME",
    help="As of when: 2026-11-23T14:05:00Z, '2h ago', a snapshot, or a commit's number.",
)
@click.option("--to", metavar="NEWPATH", help="Put it there, not where it was.")
@click.option("--replace", is_flag=True, help="Over what lies there now, which stays in the log.")
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def command(
    where: str,
    path: str | None,
    at: str | None,
    to: str | None,
    replace: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Bring PATH back as it was at --at TIME, with everything below it.

    Contents are not sent again.  Without a zone a time is this machine's.  A path below
    .megafs/snapshots needs no --at.  For a volume that is not mounted give its URL and the path
    inside it; --to is then a path inside it as well.
    """
    target = volume_path.of(where, path)
    moment = at or target.moment
    if moment is None:
        raise BadUsage("say as of when: --at '2h ago', for example")
    args = RestoreArgs(target.path, moment, to=target.in_same_volume(to), replace=replace)
    result = run_job.run(target.where, RESTORE, args, **given)
    if as_json:
        run_job.show_json(result)
    else:
        output.show(restored_line(target, result))
    return 0


def restored_line(target: VolumePath, result: RestoreResult) -> str:
    """The restored path and its origin, as one line."""
    parts = []
    for number, one, many in (
        (result.directories, "directory", "directories"),
        (result.files, "file", "files"),
    ):
        if number:
            parts.append(f"{number} {one if number == 1 else many}")
    return (
        f"{target.as_typed(result.path)} is as it was at {output.moment(result.time)}"
        f" (commit {result.sequence}): {', '.join(parts)}, {output.size(result.bytes)}"
    )
