"""Options that several commands share, and what they lead to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from msgspec.structs import replace

from megafs.mount import options as mount_options
from megafs.mount.options import MountOptions

# A mountpoint is plain text for click: click.Path would stat(2) it, and a mount may hang.

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def places(command: F) -> F:
    """-o, --state-dir and --cache-dir."""
    command = click.option(
        "--cache-dir",
        type=click.Path(path_type=Path),
        help="Where the cache lies. [MEGAFS_CACHE_DIR; /var/cache/megafs for root, else"
        " ~/.cache/megafs]",
    )(command)
    command = click.option(
        "--state-dir",
        type=click.Path(path_type=Path),
        help="Where staged data and the replica lie; must survive a reboot. [MEGAFS_STATE_DIR;"
        " /var/lib/megafs for root, else ~/.local/state/megafs]",
    )(command)
    return click.option(
        "-o",
        "options",
        multiple=True,
        metavar="NAME=VALUE,...",
        help="Options of the store (endpoint=, region=, profile=, ...) and of the mount; see"
        " docs/mount-options.md.",
    )(command)


def secrets(command: F) -> F:
    """--passphrase-file and its like, and --key-file."""
    command = click.option(
        "--key-file", type=click.Path(path_type=Path), help="Key file of a slot that wants one."
    )(command)
    command = click.option(
        "--passphrase-command",
        metavar="COMMAND",
        help="Shell command whose first line of output is the passphrase.",
    )(command)
    command = click.option(
        "--passphrase-fd",
        type=click.IntRange(min=0),
        metavar="N",
        help="File descriptor to read the passphrase from.",
    )(command)
    return click.option(
        "--passphrase-file",
        type=click.Path(path_type=Path),
        help="File whose first line is the passphrase.",
    )(command)


def read(
    url: str,
    options: tuple[str, ...],
    *,
    state_dir: Path | None = None,
    cache_dir: Path | None = None,
    sloppy: bool = False,
    **given: Any,
) -> MountOptions:
    """Return what -o, the configuration file and the options above ask for together.

    given: passphrase_file, passphrase_fd, passphrase_command, key_file, as click names them.
    """
    read = mount_options.parse(url, options, sloppy=sloppy)
    changes = {
        name: path.expanduser().absolute()
        for name, path in (("state_dir", state_dir), ("cache_dir", cache_dir))
        if path is not None
    }
    if changes:
        read = mount_options.with_settings(read, **changes)
    secrets = {name: value for name, value in given.items() if value is not None}
    if secrets:
        read = replace(read, secrets=replace(read.secrets, **secrets))
    return read
