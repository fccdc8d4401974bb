"""`megafs cache`: the cache of a mount, or of a volume that is not mounted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import click

from megafs.cli import arguments, output
from megafs.errors import BadUsage
from megafs.mount import control_client
from megafs.stores.drivers import is_url


@click.group(name="cache", short_help="Show or clear the cache.")
def command() -> None:
    """Show or clear the cache of the mount at a MOUNTPOINT, or of the volume at a URL.

    The cache holds sealed objects only and can be cleared at any time; what is not in the store yet
    lies in the state directory and is not touched.
    """


@command.command(name="show")
@click.argument("where", metavar="MOUNTPOINT|URL")
@arguments.places
@arguments.json_option
def show(
    where: str,
    options: tuple[str, ...],
    state_dir: Path | None,
    cache_dir: Path | None,
    as_json: bool,
) -> None:
    """Show how much is cached."""
    card = _mounted(where)
    if card is not None:
        status = control_client.call(card, "status")
        facts = {
            "cache_bytes": status["cache_bytes"],
            "cache_limit": status["cache_limit"],
            "memory_cache_bytes": status.get("memory_cache_bytes"),
            "directory": status["cache_dir"],
            **status.get("cache", {}),
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
@arguments.places
@arguments.json_option
def clear(
    where: str,
    options: tuple[str, ...],
    state_dir: Path | None,
    cache_dir: Path | None,
    as_json: bool,
) -> None:
    """Forget what is cached, on disk and in memory."""
    card = _mounted(where)
    if card is not None:
        facts: dict[str, Any] = control_client.call(card, "cache-clear", patience=120.0)
    else:
        directory, _ = _directory(where, options, state_dir, cache_dir)
        facts = {"before": _used(directory)}
        shutil.rmtree(directory, ignore_errors=True)
        facts["after"] = _used(directory)
    if as_json:
        output.show_json(facts)
    else:
        output.show(f"{output.size(facts['before'])} cleared")


def _mounted(where: str) -> control_client.MountRecord | None:
    """Return the running mount that *where* names by mountpoint or by URL."""
    if is_url(where):
        cards = control_client.cards(control_client.runtime_dir())
        return next((c for c in cards if c.url == where and control_client.is_running(c.pid)), None)
    from megafs.cli.umount import find_card
    from megafs.mount.mountpoint import canonical

    card = find_card(canonical(where))
    if card is None or not control_client.is_running(card.pid):
        raise BadUsage(f"no megafs volume is mounted at {where}; for an unmounted one say its URL")
    return card


def _directory(
    url: str, options: tuple[str, ...], state_dir: Path | None, cache_dir: Path | None
) -> tuple[Path, int]:
    from megafs.volume.state_directory import remembered_fsid

    settings = arguments.read(url, options, state_dir=state_dir, cache_dir=cache_dir).settings
    fsid = remembered_fsid(settings.state_dir, url)
    if fsid is None:
        raise BadUsage(f"{url} was not mounted on this machine yet, so nothing of it is cached")
    return settings.cache_dir / fsid.hex(), settings.cache_size


def _used(directory: Path) -> int:
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
            except OSError:
                continue
    return total
