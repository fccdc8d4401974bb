"""`megafs get`: fetch what lies behind a link.

One row of `SOURCES` for each kind of link there is.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import click
from msgspec import Struct

from megafs.cli import arguments, link_password, mega_source
from megafs.errors import BadUsage
from megafs.links import link_text
from megafs.mount.options import MountOptions
from megafs.printable import printable

#: The link is the first line of standard input.
FROM_STDIN = "-"
_LONGEST = 16 << 10


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
    password_file: Path | None = None


class Getter(Protocol):
    """The function `get` of a source's module; returns an exit code."""

    def __call__(self, request: GetRequest) -> int: ...


class LinkSource(Struct, frozen=True):
    """One kind of link.

    fits: whether a text is meant as one.  module: has `get`.  options_of: whose -o options it
    takes, as a URL; "" if it takes none.
    """

    name: str
    fits: Callable[[str], bool]
    module: str
    options_of: str

    def load(self) -> Getter:
        getter: Getter = importlib.import_module(self.module).get
        return getter


SOURCES = (
    LinkSource("https://PAGE/#1....", link_text.is_link, "megafs.cli.get_shared", ""),
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
@link_password.file_option
@arguments.volume_options
@arguments.secret_options
@arguments.json_option
def command(
    link: str,
    dest: str | None,
    list_only: bool,
    password_file: Path | None,
    as_json: bool,
    options: tuple[str, ...],
    **given: Any,
) -> int:
    """Fetch the file or folder that LINK leads to, into DEST: a directory, a new name, or - for
    standard output.

    Started again, it goes on where it stopped.  Every file is verified as a whole before it gets
    its name.  LINK may be - to be read from standard input: what stands on a command line, others
    can see for a moment.

    Links: those of megafs share; https://mega.nz/file/...#..., https://mega.nz/folder/...#...,
    and their older forms.  A password is asked for where one is needed.
    """
    if link == FROM_STDIN:
        link = sys.stdin.readline(_LONGEST).strip()
        if not link:
            raise BadUsage("no link came on standard input")
    source = next((source for source in SOURCES if source.fits(link)), None)
    if source is None:
        known = ", ".join(source.name for source in SOURCES)
        # What follows # may be a key, whatever it belongs to.
        shown = printable(link.partition("#")[0][:60])
        raise BadUsage(f"not a link that is known here: {shown} (known: {known})")
    if not source.options_of and options:
        raise BadUsage("a link of megafs share takes no -o options")
    chosen = arguments.mount_options(source.options_of or "memory://none", options, **given)
    return source.load()(GetRequest(link, dest, list_only, as_json, chosen, password_file))
