"""`megafs snapshot`: names for moments of a volume."""

from __future__ import annotations

from typing import Any

import click

from megafs.cli import arguments, output, run_job
from megafs.jobs import messages


@click.group(name="snapshot", short_help="Names for moments: create, list, delete.")
def command() -> None:
    """Give moments of a volume names.  What lies in a snapshot is kept until it is deleted.

    In a mount, .megafs/snapshots/NAME shows the volume as it was, read-only.
    """


@command.command(name="create")
@click.argument("where", metavar="MOUNTPOINT|URL")
@click.argument("name")
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def create(where: str, name: str, as_json: bool, **given: Any) -> int:
    """Give the present moment NAME.  Everything written before belongs to it."""
    result = run_job.run(where, messages.SNAPSHOT_CREATE, messages.SnapshotArgs(name), **given)
    if as_json:
        run_job.show_json(result)
    else:
        output.show(result.text)
    return 0


@command.command(name="list")
@click.argument("where", metavar="MOUNTPOINT|URL")
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def listing(where: str, as_json: bool, **given: Any) -> int:
    """List the snapshots, oldest first."""
    result = run_job.run(where, messages.SNAPSHOT_LIST, messages.Nothing(), read_only=True, **given)
    if as_json:
        run_job.show_json(result)
    elif result.snapshots:
        output.show(
            *output.table(
                ["name", "time", "commit"],
                [
                    [row.name, output.moment(row.time), str(row.sequence)]
                    for row in result.snapshots
                ],
            )
        )
    else:
        output.note("there are no snapshots")
    return 0


@command.command(name="delete")
@click.argument("where", metavar="MOUNTPOINT|URL")
@click.argument("name")
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def delete(where: str, name: str, as_json: bool, **given: Any) -> int:
    """Delete the snapshot NAME; what only it kept is removed by megafs gc."""
    result = run_job.run(where, messages.SNAPSHOT_DELETE, messages.SnapshotArgs(name), **given)
    if as_json:
        run_job.show_json(result)
    else:
        output.show(result.text)
    return 0
