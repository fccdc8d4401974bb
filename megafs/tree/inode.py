"""Inodes: the attributes of one file, directory or other node, and what may be changed of them.

Times are nanoseconds since 1970; sizes are bytes.  An inode number is never used twice in the life
of a volume: every mount takes numbers from ranges of its own (journal/replica.py), so two mounts
never make the same one.
"""

from __future__ import annotations

import stat

from msgspec import Struct

#: The inode number of the root directory; FUSE asks for 1.
ROOT = 1

NAME_MAX = 255
SYMLINK_MAX = 4095
XATTR_NAME_MAX = 255
XATTR_SIZE_MAX = 65536
#: All names of one inode, each with its NUL: what listxattr(2) can return.
XATTR_LIST_MAX = 65536
#: The first and the last second, 1677-09-21 and 2262-04-11, whose nanoseconds fit 64 bits with a
#: sign, as SQLite, commits and checkpoints keep them.
TIME_MIN_NS = -9_223_372_036 * 10**9
TIME_MAX_NS = 9_223_372_036 * 10**9
#: Linux keeps offsets in a signed 64-bit number; leave room so that start + length never overflows.
FILE_SIZE_MAX = (1 << 63) - (1 << 20)
LINK_MAX = 1 << 31


def storable_time(time_ns: int) -> int:
    """*time_ns*, or the nearest time that can be kept: utimensat(2) never fails for a time."""
    return min(max(time_ns, TIME_MIN_NS), TIME_MAX_NS)


class Inode(Struct):
    """One inode.

    blocks: bytes of contents that are allocated (not st_blocks' 512-byte units); holes are not.
    parent: of a directory, the inode of the directory it lies in; 0 for everything else.
    version: changes with every change of the contents; a number used nowhere else in the volume.
    """

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    parent: int = 0
    version: int = 0

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)


class SetAttr(Struct):
    """Changes of an inode's attributes; None leaves the old value."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
