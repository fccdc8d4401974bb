"""`megafs salvage`: get out of a damaged volume what still verifies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from megafs.cli import arguments, output, run_job
from megafs.errors import BadUsage
from megafs.jobs.messages import SalvageResult
from megafs.progress import OnProgress


@click.command(name="salvage", short_help="Export what is left of a damaged volume.")
@click.argument("url")
@click.option(
    "--to",
    type=click.Path(path_type=Path, file_okay=False),
    help="New or empty directory for the files.",
)
@click.option(
    "--mount",
    "mountpoint",
    metavar="DIRECTORY",
    help="Mount it read-only instead, until Ctrl-C or umount.",
)
@click.option("--at", type=click.IntRange(min=1), metavar="N", help="As of commit N.")
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def command(
    url: str, to: Path | None, mountpoint: str | None, at: int | None, as_json: bool, **given: Any
) -> int:
    """Export everything of the volume at URL that can still be read and verified.

    With --mount, look at it first: a read-only mount, in the foreground; what does not verify is an
    I/O error there.

    Writes nothing to the store, and needs no replica or state of this machine.  Bytes that cannot
    be had are left as holes; salvage-report.json, beside the directory, names each file and range.

    Exit codes: 0 everything was exported, 4 something is missing; others as for every command.
    """
    import trio

    from megafs.cli.passphrase import credential
    from megafs.concurrency import run_interruptible
    from megafs.jobs.salvage import salvage
    from megafs.stores.stack import Traffic, open_store

    if (to is None) == (mountpoint is None):
        raise BadUsage("give either --to DIRECTORY, to export, or --mount DIRECTORY, to look")
    chosen = arguments.mount_options(url, given.pop("options"), **given)
    opened_by = credential(chosen.secrets, prompt=f"Passphrase for {url}")

    if mountpoint is not None:
        from megafs.mount import daemon, salvage_mount

        daemon.harden()
        salvage_mount.run(url, mountpoint, opened_by, chosen.settings, at, output.note)
        return 0
    assert to is not None
    target = to.absolute()

    async def work(on_progress: OnProgress) -> SalvageResult:
        store = open_store(
            url, chosen.settings.store_options, Traffic(patience=chosen.settings.deadline)
        )
        try:
            return await salvage(
                store, url, opened_by, chosen.settings, target, at=at, on_progress=on_progress
            )
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await store.aclose()

    with run_job.progress("salvage") as step:
        result = run_interruptible(work, step)
    if as_json:
        run_job.show_json(result)
        return result.exit_code
    lines = [run_job.damage_line(damage) for damage in result.damaged[:100]]
    if len(result.damaged) > 100:
        lines.append(f"... and {len(result.damaged) - 100} more")
    lines += [f"without a name: {name}" for name in result.lost[:100]]
    for text in result.problems:
        output.note(text)
    lines.append(f"report: {result.report}")
    return run_job.finish(result, False, lines)
