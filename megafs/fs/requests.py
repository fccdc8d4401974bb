"""The values that the FUSE adapter and the filesystem exchange."""

from __future__ import annotations

from msgspec import Struct


class Caller(Struct, frozen=True):
    """The caller of a request.  umask: applied by the kernel already."""

    uid: int = 0
    gid: int = 0
    pid: int = 0
    umask: int = 0


class StatFs(Struct, frozen=True):
    """As statvfs(3)."""

    bsize: int
    frsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    favail: int
    namemax: int


class Invalidation(Struct, frozen=True):
    """Something the kernel must forget.

    kind: "inode" (attributes, and contents unless attr_only) or "entry" (*name* in the directory).
    """

    kind: str
    ino: int
    name: bytes | None = None
    attr_only: bool = False
