"""Which reads change an access time, as the mount options say (atime in config.Settings).

The kernel keeps no access times for FUSE: what it answers from its page cache nobody counts.  So a
file whose access time is due is opened without its cached pages, and the first read arrives here.
"""

from __future__ import annotations

from megafs import clock
from megafs.fs.core import Core
from megafs.tree import ops
from megafs.tree.inode import Inode

_DAY_NS = 86400 * 10**9


class AccessTimes:
    """The access times of one mount.

    kept: whether any read changes one.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._strict = core.settings.atime == "strictatime"
        self.kept = not core.noatime

    def is_due(self, inode: Inode, now: int) -> bool:
        """Whether a read at *now* changes the access time."""
        return self._strict or (
            inode.atime_ns <= max(inode.mtime_ns, inode.ctime_ns) or now - inode.atime_ns > _DAY_NS
        )

    def touch(self, ino: int) -> None:
        """Something of the inode was read; only to be called where times are `kept`."""
        core = self._core
        inode = core.tree.find(ino)
        if inode is None or not core.is_writable():
            return
        now = clock.now_ns()
        if self.is_due(inode, now):
            core.record(ops.SetAttributes(ino, {"atime": now}))
