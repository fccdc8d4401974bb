"""`megafs scrub`: read everything in the store and verify it."""

from __future__ import annotations

from typing import Any

import click

from megafs.cli import arguments, output, run_job
from megafs.config import parse_size
from megafs.jobs.messages import SCRUB, ScrubArgs


@click.command(name="scrub", short_help="Read everything in the store and verify it.")
@click.argument("where", metavar="MOUNTPOINT|URL")
@click.option("--rate", metavar="SIZE", help="Read at most so many bytes per second, e.g. 5MiB.")
@click.option("--limit", metavar="SIZE", help="Stop after so many bytes; the next run goes on.")
@click.option("--restart", is_flag=True, help="Begin again, not where the last run stopped.")
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def command(
    where: str,
    rate: str | None,
    limit: str | None,
    restart: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Read and decrypt everything in the store that the volume mounted at MOUNTPOINT, or the one at
    URL, needs: chunks, commits, checkpoints, the key header.

    Damage is told by path and byte range.  Objects that nobody names are listed, too.  The mount
    can be used meanwhile and goes first.  A scrub that is interrupted goes on where it was.

    Exit codes: 0 nothing is damaged, 4 something is; others as for every command.
    """
    result = run_job.run(
        where,
        SCRUB,
        ScrubArgs(
            rate=parse_size(rate) if rate else None,
            limit=parse_size(limit) if limit else None,
            restart=restart,
        ),
        read_only=True,
        **given,
    )
    lines = [run_job.damage_line(damage) for damage in result.damaged]
    hidden = result.damaged_count - len(result.damaged)
    if hidden:
        lines.append(f"... and {hidden} more")
    if result.unnamed_count and not as_json:
        lines.append(
            f"{result.unnamed_count} objects ({output.size(result.unnamed_bytes)}) that"
            " nothing names: garbage, or on their way (megafs gc looks after them)"
        )
    return run_job.finish(result, as_json, lines)
