"""Choices of the user: once for a volume (`Parameters`), or for each mount (`Settings`).

Parameters are recorded in the volume's header, authenticated, and never change the meaning of data
already written.  Settings are read from a file, the environment and ``-o`` options, in that order;
unknown names are refused.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from msgspec import Struct, field

from megafs.errors import BadUsage

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
GB = 10**9

#: What Mega gave everyone in January 2013.
DEFAULT_QUOTA = 50 * GB


#: When fsync(2) returns: the commit is in the store, or the state directory has it.
Fsync = Literal["store", "local"]
#: When names that another mount changed are seen: at the next open, or at once (names are
#: committed before an operation returns).
Consistency = Literal["close-to-open", "strict"]
#: Which reads change a file's access time, as mount(8) says.
Atime = Literal["noatime", "relatime", "strictatime"]


class Parameters(Struct, frozen=True):
    """Choices made for good when the volume was made.  Sizes in bytes.

    chunk_size: the most plaintext that is sealed as one unit; a power of two, 16 KiB to 1 MiB.
    pack_size: chunks are collected up to about this size before they go to the store.
    inline_limit: a piece of a file up to this size travels in the commit itself, not in a pack.
    compression: "zstd" (level 1, skipped where it does not help) or "none".
    deduplication: find equal chunks by a keyed hash; tells an attacker who can place a file in the
        tree whether we hold the same bytes, so off unless asked for.
    quota: the most bytes of file contents, or None for no limit.
    """

    chunk_size: int = 256 * KIB
    pack_size: int = 8 * MIB
    inline_limit: int = 1 * KIB
    compression: str = "zstd"
    deduplication: bool = False
    quota: int | None = DEFAULT_QUOTA


class Settings(Struct, frozen=True):
    """Choices for one mount.  Sizes in bytes, times in seconds.

    fsync, consistency, atime: see their types.
    entry_timeout, attr_timeout: how long the kernel may believe a name or attributes; other mounts'
        changes invalidate them as they are applied, so these only bound the damage of an
        invalidation that was lost.
    negative_timeout: how long the kernel may believe that a name does not exist.
    pack_size: at which packs are cut, instead of what the volume says.
    settle_forks: make the journal one chain again where two mounts have written at once.
    uid, gid, umask: what every file is shown with, instead of what is recorded.
    """

    state_dir: Path
    cache_dir: Path
    read_only: bool = False
    fsync: Fsync = "store"
    consistency: Consistency = "close-to-open"
    atime: Atime = "noatime"
    sync_interval: float = 1.0
    deadline: float = 60.0
    cache_size: int = 10 * GIB
    cache_min_free: int = 1 * GIB
    memory_cache: int = 48 * MIB
    dirty_limit: int = 48 * MIB
    stage_limit: int = 20 * GIB
    stage_min_free: int = 256 * MIB
    uploads: int = 12
    downloads: int = 24
    readahead: int = 8 * MIB
    pack_size: int | None = None
    entry_timeout: float = 60.0
    attr_timeout: float = 60.0
    negative_timeout: float = 1.0
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    accept_state: bool = False
    settle_forks: bool = False
    expect_head: str | None = None
    store_options: dict[str, str] = field(default_factory=dict)


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtpe]?)(i?b?)\Z", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d|)\Z", re.IGNORECASE)
#: The longest number that is taken: int() and float() refuse, or lose, what is far longer.
_DIGITS = 30
_AGES = 10_000 * 366 * 86400.0
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int:
    """Return the bytes that *text* means: "4096", "10G" and "10GiB" (2^30), "50GB" (10^9)."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise BadUsage(f"not a size: {_shortened(text)} (examples: 4096, 512K, 10G, 50GB, 1.5TiB)")
    number, letter, unit = match.groups()
    base = 1000 if unit.lower() == "b" and letter else 1024
    if unit.lower() == "i" or (unit.lower() == "ib" and not letter):
        raise BadUsage(f"not a size: {_shortened(text)} (examples: 4096, 512K, 10G, 50GB, 1.5TiB)")
    power = " kmgtpe".index(letter.lower()) if letter else 0
    if len(number) > _DIGITS or (size := float(number) * base**power) >= 2**63:
        raise BadUsage(f"not a size: {_shortened(text)} is more than any disk holds")
    return int(size)


def parse_duration(text: str) -> float:
    """Return the seconds that *text* means: "1.5", "500ms", "30s", "2min", "1h"."""
    match = _DURATION.match(text.strip())
    if match is None:
        raise BadUsage(
            f"not a length of time: {_shortened(text)} (examples: 1.5, 500ms, 30s, 2min, 1h)"
        )
    number, unit = match.groups()
    if len(number) > _DIGITS or (seconds := float(number) * _SECONDS[unit.lower()]) > _AGES:
        raise BadUsage(f"not a length of time: {_shortened(text)} is more than 10,000 years")
    return seconds


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


def state_home(environ: Mapping[str, str] | None = None, *, root: bool | None = None) -> Path:
    """The default state directory, for files that must survive a reboot.

    MEGAFS_STATE_DIR, else /var/lib/megafs for root, else $XDG_STATE_HOME/megafs.
    """
    return _home(
        "MEGAFS_STATE_DIR", "/var/lib/megafs", "XDG_STATE_HOME", ".local/state", environ, root
    )


def cache_home(environ: Mapping[str, str] | None = None, *, root: bool | None = None) -> Path:
    """The default cache directory, for files that may be deleted at any time.

    MEGAFS_CACHE_DIR, else /var/cache/megafs for root, else $XDG_CACHE_HOME/megafs.
    """
    return _home("MEGAFS_CACHE_DIR", "/var/cache/megafs", "XDG_CACHE_HOME", ".cache", environ, root)


def _home(
    variable: str,
    for_root: str,
    xdg: str,
    below_home: str,
    environ: Mapping[str, str] | None,
    root: bool | None,
) -> Path:
    environ = os.environ if environ is None else environ
    if environ.get(variable):
        return Path(environ[variable]).absolute()
    if os.geteuid() == 0 if root is None else root:
        return Path(for_root)
    # The XDG rules: a relative path is invalid and must be ignored.
    base = environ.get(xdg, "")
    if base.startswith("/"):
        return Path(base) / "megafs"
    home = user_home(environ)
    if home is None:
        raise BadUsage(f"neither {variable} nor {xdg} nor HOME says where to keep files")
    return home / below_home / "megafs"


def user_home(environ: Mapping[str, str]) -> Path | None:
    """This user's home directory: HOME, else what the system's list of users has; None if nowhere.

    mount(8) and systemd may start us without HOME.
    """
    home = environ.get("HOME", "")
    if not home.startswith("/"):
        try:
            home = pwd.getpwuid(os.geteuid()).pw_dir
        except KeyError:
            return None
    return Path(home) if home.startswith("/") else None
