"""Options that several commands share, and what they lead to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from msgspec.structs import replace

from megafs.mount.options import MountOptions, Secrets, parse

# A mountpoint is plain text for click: click.Path would stat(2) it, and a mount may hang.

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

new_recovery_key_option = click.option(
    "--recovery-key-file",
    type=click.Path(path_type=Path),
    help="New file that the recovery key is written to, for you alone, instead of stdout.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def volume_options(command: F) -> F:
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


def secret_options(command: F) -> F:
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


def mount_options(
    url: str,
    options: tuple[str, ...],
    *,
    state_dir: Path | None = None,
    cache_dir: Path | None = None,
    passphrase_file: Path | None = None,
    passphrase_fd: int | None = None,
    passphrase_command: str | None = None,
    key_file: Path | None = None,
    sloppy: bool = False,
) -> MountOptions:
    """Return what -o, the configuration file and the options above ask for together.

    sloppy: warn of unknown options instead of refusing them (mount -s).
    """
    parsed = parse(url, options, sloppy=sloppy)
    settings, secrets = parsed.settings, parsed.secrets
    return replace(
        parsed,
        settings=replace(
            settings,
            state_dir=_absolute(state_dir) or settings.state_dir,
            cache_dir=_absolute(cache_dir) or settings.cache_dir,
        ),
        secrets=Secrets(
            passphrase_file=_either(passphrase_file, secrets.passphrase_file),
            passphrase_fd=_either(passphrase_fd, secrets.passphrase_fd),
            passphrase_command=_either(passphrase_command, secrets.passphrase_command),
            key_file=_either(key_file, secrets.key_file),
        ),
    )


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().absolute()


def _either(value: T | None, otherwise: T | None) -> T | None:
    return otherwise if value is None else value
