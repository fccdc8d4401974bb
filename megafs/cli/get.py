"""`megafs get`: fetch what lies behind a link.

One row of `SOURCES` for each kind of link there is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import click
from msgspec import Struct

from megafs.cli import arguments, mega_source
from megafs.errors import BadUsage
from megafs.mount.options import MountOptions
from megafs.printable import printable


class GetRequest(Struct, frozen=True):
    """What was asked for.

    dest: a directory, a new name, `-` for standard output; None for the directory we are in.
    list_only: show what there is, fetch nothing.
    """

    link: str
    dest: str | None
    list_only: bool
    as_json: bool
    options: MountOptions


class Getter(Protocol):
    """The function `get` of a source's module; returns an exit code."""

    def __call__(self, request: GetRequest) -> int: ...


class LinkSource(Struct, frozen=True):
    """One kind of link.

    fits: whether a text is meant as one.  module: has `get`.  options_of: whose -o options it
    takes, as a URL.
    """

    name: str
    fits: Callable[[str], bool]
    module: str
    options_of: str

    def load(self) -> Getter:
        getter: Getter = importlib.import_module(self.module).get
        return getter


SOURCES = (
    LinkSource(
        "https://mega.nz/file|folder/...#...",
        mega_source.is_of_mega,
        "megafs.cli.get_mega",
        "mega:",
    ),
)


@click.command(name="get", short_help="Fetch what lies behind a link.")
@click.argument("link")
@click.argument("dest", required=False)
@click.option("--list", "list_only", is_flag=True, help="Show what there is, and fetch nothing.")
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def command(
    link: str,
    dest: str | None,
    list_only: bool,
    as_json: bool,
    options: tuple[str, ...],
    **given: Any,
) -> int:
    """Fetch the file or folder that LINK leads to, into DEST: a directory, a new name, or - for
    standard output.

    Started again, it goes on where it stopped.  Every file is verified as a whole before it gets
    its name.  LINK may be - to be read from standard input: what stands on a command line, others
    can see for a moment.

    Links: https://mega.nz/file/...#..., https://mega.nz/folder/...#..., their older forms, and
    links with a password, which is asked for.
    """
    source = next((source for source in SOURCES if source.fits(link)), None)
    if source is None:
        known = ", ".join(source.name for source in SOURCES)
        # What follows # may be a key, whatever it belongs to.
        shown = printable(link.partition("#")[0][:60])
        raise BadUsage(f"not a link that is known here: {shown} (known: {known})")
    chosen = arguments.mount_options(source.options_of, options, **given)
    return source.load()(GetRequest(link, dest, list_only, as_json, chosen))
