"""The password of a link: from the terminal, a file or the environment; never an argument."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from megafs.cli import passphrase
from megafs.errors import BadUsage
from megafs.links.manifest import PASSWORD_MAX

VARIABLE = "MEGAFS_LINK_PASSWORD"

F = TypeVar("F", bound=Callable[..., Any])


def file_option(command: F) -> F:
    """--password-file."""
    return click.option(
        "--password-file",
        type=click.Path(path_type=Path),
        help=f"File whose first line is the link's password. [{VARIABLE}]",
    )(command)


def new(wanted: bool, file: Path | None) -> str:
    """The password of a link that is being made; "" if it shall have none."""
    given = passphrase.secret_from(file, VARIABLE)
    if given is None and not wanted:
        return ""
    if given is None:
        given = passphrase.asked_twice("Password of the link")
    if not given or len(given.encode("utf-8", "replace")) > PASSWORD_MAX:
        raise BadUsage(f"the password of a link has 1 to {PASSWORD_MAX} bytes")
    return given


def known(file: Path | None) -> str | None:
    """The password of a link that is being opened; None to ask when it is needed."""
    return passphrase.secret_from(file, VARIABLE)


def ask() -> str:
    """Ask for it at the terminal; BadUsage if there is none."""
    if not passphrase.has_terminal():
        raise BadUsage(f"the link needs a password: give --password-file FILE or {VARIABLE}")
    return passphrase.typed("Password of the link: ")
