"""`megafs fsck`: check a volume, and repair it."""

from __future__ import annotations

from typing import Any

import click

from megafs.cli import arguments, output, run_job
from megafs.errors import BadUsage
from megafs.jobs.messages import FSCK, FsckArgs


@click.command(name="fsck", short_help="Check a volume, and repair it.")
@click.argument("where", metavar="MOUNTPOINT|URL")
@click.option("--repair", is_flag=True, help="Repair what can be repaired.")
@click.option("--yes", is_flag=True, help="Do not ask before repairing.")
@click.option("--no-store", is_flag=True, help="Check the tree only; ask nothing of the store.")
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def command(
    where: str, repair: bool, yes: bool, no_store: bool, as_json: bool, **given: Any
) -> int:
    """Check the volume mounted at MOUNTPOINT, or the one at URL.

    Checked are the tree (names, link counts, extents, sums), whether the store has every pack that
    a file needs, the journal since the newest checkpoint, and the checkpoints.  Contents are not
    read: megafs scrub does that.  The mount can be used meanwhile.

    Repairs remove no bytes: what no name leads to is put into lost+found.  Where two mounts have
    written at once on a store that cannot keep them apart, --repair with a URL keeps one journal
    and does what the other one held again.

    Exit codes: 0 clean, 1 problems were found and all were repaired, 4 problems are left; others as
    for every command (megafs help exit-codes).
    """
    if repair and not yes:
        import sys

        if as_json or not sys.stdin.isatty():
            raise BadUsage("--repair changes the volume: say --yes as well")
        click.confirm("Repair what can be repaired?", abort=True, err=True)
    result = run_job.run(
        where,
        FSCK,
        FsckArgs(repair=repair, store=not no_store),
        read_only=not repair,
        settle_forks=repair,
        **given,
    )
    lines = [f"repaired: {problem.text}" for problem in result.repaired]
    for problem in result.problems:
        hint = " (--repair can)" if problem.can_repair and not repair else ""
        lines.append(f"{problem.text}{hint}")
    hidden = result.problem_count - len(result.problems)
    if hidden:
        lines.append(f"... and {hidden} more")
    for note in result.notes:
        if not as_json:
            output.note(note)
    return run_job.finish(result, as_json, lines)
