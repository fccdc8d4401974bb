"""`megafs gc`: remove from the store what nothing needs any more."""

from __future__ import annotations

from typing import Any

import click

from megafs.cli import arguments, run_job
from megafs.config import parse_duration, parse_size
from megafs.jobs.messages import GC, GcArgs


@click.command(name="gc", short_help="Remove from the store what nothing needs any more.")
@click.argument("where", metavar="MOUNTPOINT|URL")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option(
    "--retention",
    metavar="TIME",
    help="How long the past is kept, e.g. 7d. [30d]",
)
@click.option(
    "--grace",
    metavar="TIME",
    help="How long a mount that is not heard of is waited for; at least 2h. [1d]",
)
@click.option(
    "--unknown-grace",
    metavar="TIME",
    help="How long an object that no commit names is left alone; at least 2h. [7d]",
)
@click.option(
    "--threshold",
    type=click.IntRange(0, 100),
    metavar="PERCENT",
    help="Copy what is left of packs of which less than this is in use. [30]",
)
@click.option("--no-compact", is_flag=True, help="Copy nothing.")
@click.option("--no-fold", is_flag=True, help="Leave the journal and the checkpoints alone.")
@click.option("--rate", metavar="SIZE", help="Copy at most so many bytes per second, e.g. 5MiB.")
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def command(
    where: str,
    dry_run: bool,
    retention: str | None,
    grace: str | None,
    unknown_grace: str | None,
    threshold: int | None,
    no_compact: bool,
    no_fold: bool,
    rate: str | None,
    as_json: bool,
    **given: Any,
) -> int:
    """Collect garbage in the volume mounted at MOUNTPOINT, or in the one at URL.

    What no file and no snapshot names is marked, and removed by a later run when it has been
    marked for as long as the past is kept.  Other mounts go on working.  Run it regularly, for
    example once a day; on one machine is enough.

    Exit codes: 0 done, 3 done as far as possible now, for another mount has to catch up first;
    others as for every command.
    """
    args = GcArgs(
        dry_run=dry_run,
        retention=parse_duration(retention) if retention else None,
        grace=parse_duration(grace) if grace else None,
        unknown_grace=parse_duration(unknown_grace) if unknown_grace else None,
        threshold=threshold / 100 if threshold is not None else None,
        no_compact=no_compact,
        no_fold=no_fold,
        rate=parse_size(rate) if rate else None,
    )
    result = run_job.run(where, GC, args, **given)
    return run_job.finish(result, as_json, result.notes)
