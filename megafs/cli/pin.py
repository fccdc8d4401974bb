"""`megafs pin` and `megafs unpin`: keep a subtree readable without the store."""

from __future__ import annotations

from typing import Any

import click

from megafs.cli import arguments, output, run_job, volume_path
from megafs.cli.volume_path import VolumePath
from megafs.errors import BadUsage
from megafs.jobs import messages
from megafs.stores.drivers import is_url


@click.command(name="pin", short_help="Keep a subtree readable without the store.")
@click.argument("path", metavar="PATH")
@click.option("--list", "listing", is_flag=True, help="Show what is pinned in the mount of PATH.")
@arguments.json_option
def command(path: str, listing: bool, as_json: bool, **given: Any) -> int:
    """Fetch the file or directory PATH, in a mount, and keep it in the cache.

    What is pinned is never evicted, follows renames, and grows with what is put below it.  It must
    fit into the cache (mount option cache_size).
    """
    target = _inside_mount(path)
    if not listing:
        result = run_job.run(target.where, messages.PIN, messages.PinArgs(target.path))
        return run_job.finish(result, as_json, [])
    listed = run_job.run(target.where, messages.PIN_LIST, messages.Nothing())
    lines = [
        f"{target.as_typed(row.path)}  {output.size(row.cached_bytes)}"
        f" of {output.size(row.bytes)} cached"
        for row in listed.pins
    ]
    if as_json:
        run_job.show_json(listed)
    else:
        output.show(*(lines or ["nothing is pinned"]))
    return 0


@click.command(name="unpin", short_help="Let a pinned subtree be evicted again.")
@click.argument("path", metavar="PATH")
@arguments.json_option
def unpin(path: str, as_json: bool, **given: Any) -> int:
    """Undo `megafs pin PATH`; what is cached stays until the room is needed."""
    target = _inside_mount(path)
    result = run_job.run(target.where, messages.UNPIN, messages.PinArgs(target.path))
    return run_job.finish(result, as_json, [])


def _inside_mount(path: str) -> VolumePath:
    if is_url(path):
        raise BadUsage("pins belong to a mount: give a path inside one")
    return volume_path.of(path, None)
