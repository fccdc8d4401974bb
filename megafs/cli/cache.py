"""`megafs cache`: the cache of a mount, or of a volume that is not mounted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import click
from msgspec.structs import asdict

from megafs.cli import arguments, output
from megafs.errors import BadUsage
from megafs.mount import control_client, mount_record
from megafs.mount.control_messages import (
    CacheClearRequest,
    CacheClearResult,
    MountStatus,
    StatusRequest,
)
from megafs.mount.mount_record import MountRecord
from megafs.mount.processes import is_running
from megafs.stores.drivers import is_url


@click.group(name="cache", short_help="Show or clear the cache.")
def command() -> None:
    """Show or clear the cache of the mount at a MOUNTPOINT, or of the volume at a URL.

    The cache holds sealed objects only and can be cleared at any time; what is not in the store yet
    lies in the state directory and is not touched.
    """


@command.command(name="show")
@click.argument("where", metavar="MOUNTPOINT|URL")
@arguments.volume_options
@arguments.json_option
def show(
    where: str,
    options: tuple[str, ...],
    state_dir: Path | None,
    cache_dir: Path | None,
    as_json: bool,
) -> None:
    """Show how much is cached."""
    record = running_mount(where)
    if record is not None:
        status = control_client.ask(record, StatusRequest(), MountStatus)
        facts: dict[str, Any] = {
            "cache_bytes": status.cache_bytes,
            "cache_limit": status.cache_limit,
            "memory_cache_bytes": status.memory_cache_bytes,
            "directory": status.cache_dir,
            **status.cache,
        }
    else:
        directory, limit = _directory(where, options, state_dir, cache_dir)
        facts = {
            "cache_bytes": _used(directory),
            "cache_limit": limit,
            "directory": str(directory),
        }
    if as_json:
        output.show_json(facts)
        return
    output.show(
        f"{output.size(facts['cache_bytes'])} of {output.size(facts['cache_limit'])}"
        f" in {facts['directory']}"
    )


@command.command(name="clear")
@click.argument("where", metavar="MOUNTPOINT|URL")
@arguments.volume_options
@arguments.json_option
def clear(
    where: str,
    options: tuple[str, ...],
    state_dir: Path | None,
    cache_dir: Path | None,
    as_json: bool,
) -> None:
    """Forget what is cached, on disk and in memory."""
    record = running_mount(where)
    if record is not None:
        cleared = control_client.ask(record, CacheClearRequest(), CacheClearResult, patience=120.0)
    else:
        directory, _ = _directory(where, options, state_dir, cache_dir)
        before = _used(directory)
        shutil.rmtree(directory, ignore_errors=True)
        cleared = CacheClearResult(before, _used(directory))
    if as_json:
        output.show_json(asdict(cleared))
    else:
        output.show(f"{output.size(cleared.before)} cleared")


def running_mount(where: str) -> MountRecord | None:
    """Return the record of the running mount that *where*, a mountpoint or URL, names.

    None if no mount of this user has that URL; BadUsage if nothing is mounted at that mountpoint.
    """
    if is_url(where):
        found = mount_record.records(mount_record.runtime_dir())
        return next((r for r in found if r.url == where and is_running(r.pid)), None)
    from megafs.cli.umount import find_record
    from megafs.mount.mountpoint import canonical

    record = find_record(canonical(where))
    if record is None or not is_running(record.pid):
        raise BadUsage(f"no megafs volume is mounted at {where}; for an unmounted one say its URL")
    return record


def _directory(
    url: str, options: tuple[str, ...], state_dir: Path | None, cache_dir: Path | None
) -> tuple[Path, int]:
    from megafs.volume.state_directory import remembered_fsid

    settings = arguments.mount_options(
        url, options, state_dir=state_dir, cache_dir=cache_dir
    ).settings
    fsid = remembered_fsid(settings.state_dir, url)
    if fsid is None:
        raise BadUsage(f"{url} was not mounted on this machine yet, so nothing of it is cached")
    return settings.cache_dir / fsid.hex(), settings.cache_size


def _used(directory: Path) -> int:
    """Return the bytes of disk that the files below *directory* take."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
            except OSError:
                continue
    return total
