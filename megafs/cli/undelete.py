"""`megafs undelete`: what was removed, and bringing it back."""

from __future__ import annotations

from typing import Any

import click

from megafs.cli import arguments, output, run_job, volume_path
from megafs.cli.restore import restored_line
from megafs.jobs.messages import UNDELETE, RemovedFiles, UndeleteArgs


@click.command(name="undelete", short_help="Show what was removed; bring it back.")
@click.argument("where", metavar="PATH|URL", default=".")
@click.argument("path", metavar="[PATH]", required=False)
@click.option("--list", "only_list", is_flag=True, help="Only show what was removed.")
@click.option("--all", "everything", is_flag=True, help="Also each file of a removed directory.")
@click.option("--to", metavar="NEWPATH", help="Put it there, not where it was.")
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
    only_list: bool,
    everything: bool,
    to: str | None,
    since: str | None,
    limit: int,
    as_json: bool,
    **given: Any,
) -> int:
    """Bring PATH back if it is gone; below a directory that exists, list what was removed.

    A directory comes back with what was removed with it: what went without a pause of more than a
    minute in between.  For a volume that is not mounted give its URL and the path inside it.
    """
    target = volume_path.of(where, path)
    args = UndeleteArgs(
        target.path,
        list=only_list,
        all=everything,
        to=target.in_same_volume(to),
        since=since,
        limit=limit,
    )
    result = run_job.run(target.where, UNDELETE, args, read_only=only_list, **given)
    if as_json:
        run_job.show_json(result)
        return 0
    if not isinstance(result, RemovedFiles):
        output.show(restored_line(target, result))
        return 0
    lines = [
        [
            output.moment(item.time),
            item.host,
            output.size(item.size),
            f"{item.files} files" if item.directory else "",
            target.as_typed(item.path) + ("/" if item.directory else ""),
            "exists again" if item.exists else "",
        ]
        for item in result.removed
    ]
    if lines:
        output.show(*output.table(["removed", "host", "size", "", "what", ""], lines))
    else:
        output.note(f"nothing was removed below {target.as_typed(target.path)}")
    if result.more:
        output.note(f"there is more: --limit {limit} ends it here")
    if result.cut_short:
        output.note("the journal goes no further back")
    return 0
