"""The configuration file: options for every mount, and for one volume.

~/.config/megafs/config.toml, /etc/megafs/config.toml for root, or MEGAFS_CONFIG

[mount]                       # for every mount
cache_size = "20G"
[volume."s3://bucket/home"]   # for one volume, over the former
endpoint = "http://127.0.0.1:8000"
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megafs.config import user_home
from megafs.errors import BadUsage


def path_of(environ: Mapping[str, str]) -> Path:
    """Where the configuration file is looked for."""
    if environ.get("MEGAFS_CONFIG"):
        return Path(environ["MEGAFS_CONFIG"])
    if os.geteuid() == 0:
        return Path("/etc/megafs/config.toml")
    base = environ.get("XDG_CONFIG_HOME", "")
    home = Path(base) if base.startswith("/") else (user_home(environ) or Path("/")) / ".config"
    return home / "megafs" / "config.toml"


def read(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the configuration file's contents; nothing if there is none."""
    path = path_of(environ)
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_mode & stat.S_IWOTH:
                raise BadUsage(f"{path} can be written by everybody: chmod o-w {path}")
            text = file.read()
    except FileNotFoundError:
        if environ.get("MEGAFS_CONFIG"):
            raise BadUsage(f"MEGAFS_CONFIG={path}: there is no such file") from None
        return {}
    except OSError as exc:
        raise BadUsage(f"{path} cannot be read: {exc.strerror}") from exc
    if not text.strip():
        return {}
    import tomllib  # most mounts have no such file

    try:
        return tomllib.loads(text.decode())
    except ValueError as exc:  # not TOML, or not UTF-8
        raise BadUsage(f"{path}: {exc}") from exc


def options_for(url: str, config: Mapping[str, Any]) -> Iterable[tuple[str, str | None]]:
    """Return the options that *config* gives to the volume at *url*, the later over the earlier."""
    for name in config:
        if name not in ("mount", "volume"):
            raise BadUsage(
                f'configuration: unknown table [{name}]; there are [mount], [volume."URL"]'
            )
    volumes = config.get("volume", {})
    for table in (config.get("mount", {}), volumes.get(url, {})):
        if not isinstance(table, dict):
            raise BadUsage('configuration: [mount] and [volume."URL"] must be tables')
        for name, value in table.items():
            if value is False:
                continue
            if value is True:
                yield name, None
            elif isinstance(value, str | int | float):
                yield name, str(value)
            else:
                raise BadUsage(f"configuration: {name} must be a text, a number or true")
