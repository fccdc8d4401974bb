"""`megafs import`: copy files of another service into a mounted volume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from megafs.cli import arguments, mega_source
from megafs.errors import BadUsage
from megafs.printable import printable


@click.command(name="import", short_help="Copy files from MEGA into a volume.")
@click.argument("source")
@click.argument("dest")
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def command(source: str, dest: str, as_json: bool, options: tuple[str, ...], **given: Any) -> int:
    """Copy SOURCE, an account's file or folder (mega:/Folder) or what a link leads to, into DEST, a
    directory or a new name in a mounted volume.

    Every file is verified as a whole before it gets its name, and keeps its time.  Started again,
    it goes on where it stopped.  Returns when everything is as durable as the mount makes it.
    """
    if not mega_source.is_of_mega(source):
        raise BadUsage(
            f"not a place to import from: {printable(source.partition('#')[0][:60])}"
            " (known: mega:/Folder, https://mega.nz/...)"
        )
    chosen = arguments.mount_options(mega_source.options_url(source), options, **given)
    check_dest(dest)
    from megafs.cli.import_mega import import_from_mega

    return import_from_mega(source, dest, chosen, as_json=as_json)


def check_dest(dest: str) -> None:
    """BadUsage unless *dest* lies in a megafs mount that can be written."""
    from megafs.cli import volume_path

    found = volume_path.of(dest, None)
    if found.moment is not None:
        raise BadUsage(f"{dest} lies in the past: give a directory of the present tree")
    there = Path(dest).absolute()
    if os.statvfs(there if there.is_dir() else there.parent).f_flag & os.ST_RDONLY:
        raise BadUsage(f"the mount at {found.where} is read-only")
