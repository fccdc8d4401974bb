"""What can be chosen: once for a volume (`Parameters`), or for each mount (`Settings`).

Parameters are recorded in the volume's header, authenticated, and never change the meaning of data
already written.  Settings are read from a file, the environment and ``-o`` options, in that order;
unknown names are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
GB = 10**9

#: What Mega gave everyone in January 2013.
DEFAULT_QUOTA = 50 * GB


@dataclass(frozen=True, slots=True)
class Parameters:
    """What was decided when the volume was made.  Sizes in bytes.

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


@dataclass(frozen=True, slots=True)
class Settings:
    """What one mount was asked for.  Sizes in bytes, times in seconds.

    fsync: "store" (the commit is in the store) or "local" (the state directory has it).
    consistency: "close-to-open" or "strict" (namespace operations are committed before they return).
    atime: "noatime", "relatime" or "strictatime".
    """

    state_dir: Path
    cache_dir: Path
    read_only: bool = False
    fsync: str = "store"
    consistency: str = "close-to-open"
    atime: str = "noatime"
    sync_interval: float = 1.0
    deadline: float = 60.0
    cache_size: int = 10 * GIB
    cache_min_free: int = 1 * GIB
    memory_cache: int = 48 * MIB
    dirty_limit: int = 48 * MIB
    stage_limit: int = 20 * GIB
    stage_min_free: int = 256 * MIB
    uploads: int = 4
    downloads: int = 8
    readahead: int = 8 * MIB
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    accept_state: bool = False
    expect_head: str | None = None
    store_options: dict[str, str] = field(default_factory=dict)
