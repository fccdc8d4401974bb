"""mount.megafs: what mount(8) runs for `mount -t megafs`, fstab and systemd's .mount units.

    mount.megafs URL MOUNTPOINT [-sfnvN] [-o OPTIONS] [-t TYPE]
    mount.fuse.megafs           the same, for `mount -t fuse.megafs` and `mount -o remount`

-s ignores unknown options, -f does everything but mount, -n is obsolete, -v says more, -t is the
type without its subtype and is ignored.  The exit codes are mount(8)'s, since mount passes
them on:

    1 wrong usage   4 a bug   8 interrupted   32 the mount failed

The same program, called umount.megafs or umount.fuse.megafs, is what umount(8) runs.
"""

from __future__ import annotations

import getopt
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from megafs import logs
from megafs.cli import ending, output
from megafs.errors import BadStore, BadUsage
from megafs.hardening import protect_memory

if TYPE_CHECKING:
    from megafs.mount.control_messages import UmountMode

USAGE = 1
BUG = 4
INTERRUPTED = 8
FAILED = 32
#: Is there where systemd runs (sd_booted(3)).
SYSTEMD = Path("/run/systemd/system")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Mount, or unmount if called by such a name, and exit."""
    protect_memory()
    ending.open_missing_outputs()
    logs.set_up("terminal")
    args = list(sys.argv if argv is None else argv)
    umount = os.path.basename(args[0]).startswith("umount.")
    try:
        _umount(args[1:]) if umount else _mount(args[1:])
    except (BadUsage, BadStore) as exc:
        output.note(str(exc))
        sys.exit(USAGE)
    except BaseException as exc:  # noqa: ASYNC103  (nothing here is run by trio)
        if isinstance(exc, SystemExit | GeneratorExit):
            raise
        ends = ending.of(exc)
        output.note(f"{ends.text}; this is a bug" if ends.is_bug else ends.text)
        if ends.exit_code == ending.INTERRUPTED:
            sys.exit(INTERRUPTED)
        sys.exit(BUG if ends.is_bug else FAILED)
    sys.exit(0)


def _parse(args: list[str], short: str, usage: str) -> tuple[list[tuple[str, str]], list[str]]:
    try:
        options, rest = getopt.gnu_getopt(args, short)
    except getopt.GetoptError as exc:
        raise BadUsage(f"{exc.msg}; usage: {usage}") from None
    return options, rest


def _mount(args: list[str]) -> None:
    usage = "mount.megafs URL MOUNTPOINT [-sfnv] [-o OPTIONS]"
    options, rest = _parse(args, "sfnvo:t:N:", usage)
    if len(rest) != 2:
        raise BadUsage(f"usage: {usage}")
    url, path = rest
    names = {name for name, _ in options}
    if "-N" in names:
        raise BadUsage("megafs cannot mount into another namespace")

    from megafs.cli import arguments, mega_source

    given = tuple(value for name, value in options if name == "-o")
    if _remounted(path, given):
        return
    chosen = arguments.mount_options(mega_source.options_url(url), given, sloppy="-s" in names)
    if "-f" in names:
        return
    shown = mega_source.shown_url(url)
    if _is_mounted(shown, path):
        # `mount -a` compares sources, and ours is not the URL (mount/source.py).
        if "-v" in names:
            output.note(f"{shown} is mounted at {path} already")
        return

    from megafs.cli.mount import mount

    mount(url, path, chosen, foreground=False, quiet="-v" not in names)


def _is_mounted(url: str, path: str) -> bool:
    """Whether the volume at *url* is mounted at *path*, by this user and alive."""
    from megafs.mount import mountpoint
    from megafs.mount.mount_record import is_alive, record_of

    at = mountpoint.canonical(path)
    there = mountpoint.find(at)
    if there is None or there.fstype != mountpoint.FSTYPE:
        return False
    record = record_of(at)
    return record is not None and record.url == url and is_alive(record)


def _remounted(path: str, given: Sequence[str]) -> bool:
    """Obey -o remount, if it is among the options and there is a mount to change."""
    from megafs.mount.options import split

    found = [pair for text in given for pair in split(text)]
    if ("remount", None) not in found:
        return False

    from megafs.mount import mountpoint, remount
    from megafs.mount.option_table import OPTIONS

    there = mountpoint.find(mountpoint.canonical(path))
    if there is None or there.fstype != mountpoint.FSTYPE:
        return False  # refused with the option's own sentence
    names = [name for name, _ in found]
    remount.remount(there, names)
    stay = [
        name
        for name in names
        if not remount.changes(name)
        and (option := OPTIONS.get(name)) is not None
        and option.kind in ("setting", "secret", "mount")
        and option.field != "atime"  # mount(8) hands on what the kernel shows
    ]
    if stay:
        said = ", ".join(stay)
        output.note(f"as it was mounted: {said}; a remount changes ro, rw and flags only")
    return True


def _umount(args: list[str]) -> None:
    usage = "umount.megafs MOUNTPOINT [-flnrv]"
    options, rest = _parse(args, "flnrvt:N:", usage)
    if len(rest) != 1:
        raise BadUsage(f"usage: {usage}")
    names = {name for name, _ in options}
    if "-r" in names:
        raise BadUsage("megafs cannot be remounted read-only")

    from megafs.cli.umount import SHUTDOWN_PATIENCE, umount

    how: UmountMode = "force" if "-f" in names else "lazy" if "-l" in names else "wait"
    umount(rest[0], how, SHUTDOWN_PATIENCE if is_shutting_down() else math.inf)


def is_shutting_down() -> bool:
    """Whether systemd is stopping everything: then nobody reads what we say, or types Ctrl-C."""
    if not SYSTEMD.is_dir():
        return False
    try:
        done = subprocess.run(
            ["systemctl", "is-system-running"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == "stopping"
