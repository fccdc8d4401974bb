"""Looking at the present tree: names, attributes, directories.  Synchronous, from the replica."""

from __future__ import annotations

import errno as e
from typing import Final

from megafs import clock
from megafs.errors import Refused
from megafs.fs import acl, snapshot_view
from megafs.fs.core import Core
from megafs.fs.snapshot_view import SnapshotView
from megafs.links import link_text
from megafs.tree import link_records
from megafs.tree.inode import NAME_MAX, ROOT, Inode

#: The namespaces of extended attributes that anything may be kept in.
NAMESPACES: Final = (b"user.", b"trusted.", b"security.")


#: Holds the links to a file or folder, while there are any.  No listing shows it, for programs that
#: copy attributes would try to set it.
LINK: Final = b"user.megafs.link"


def absent_xattr(name: bytes) -> Refused:
    """The errno of Linux for an extended attribute that is not there, or cannot be."""
    if name in NAMESPACES:
        return Refused(e.EINVAL)
    if name.startswith(NAMESPACES) or name in (acl.ACCESS, acl.DEFAULT):
        return Refused(e.ENODATA)
    return Refused(e.EOPNOTSUPP)


class LiveTree:
    """The present tree.  snapshots: what `.megafs` in the root stands for, if anything."""

    def __init__(self, core: Core, snapshots: SnapshotView | None) -> None:
        self._core = core
        self._tree = core.tree
        self._writer = core.writer
        self._snapshots = snapshots
        self.remember = core.kernel.remember
        self.forget = core.kernel.forget
        self.getattr = core.getattr

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode that *name* in *parent* stands for."""
        self._writer.stir()
        parent = self._core.current(parent)
        if name == b".":
            return self._core.getattr(parent)
        if name == b"..":
            return self._core.getattr(self._tree.directory(parent).parent)
        if len(name) > NAME_MAX:
            raise Refused(e.ENAMETOOLONG)
        found = self._tree.lookup(parent, name)
        if found is None:
            if self.is_reserved(parent, name) and self._snapshots is not None:
                return self._snapshots.top()
            self._tree.directory(parent)
            raise Refused(e.ENOENT)
        return self._core.shown(found)

    def is_reserved(self, parent: int, name: bytes) -> bool:
        """Whether the name stands for the snapshots where the tree has no such name."""
        return parent == ROOT and name == snapshot_view.NAME and self._snapshots is not None

    def readlink(self, ino: int) -> bytes:
        return self._tree.target(self._core.current(ino))

    def getxattr(self, ino: int, name: bytes) -> bytes:
        ino = self._core.current(ino)
        if name == LINK:
            return self._links(ino)
        value = self._tree.xattr(ino, name)
        if value is None or name.startswith(link_records.INTERNAL):
            raise absent_xattr(name)
        return value

    def _links(self, ino: int) -> bytes:
        """The links to an inode that have not ended, a line each."""
        now = clock.now_ns()
        found = [
            link_text.of_record(record).text
            for record in link_records.records(self._tree.db)
            if record.ino == ino and not record.is_expired(now)
        ]
        if not found:
            raise absent_xattr(LINK)
        return "\n".join(found).encode()

    def listxattr(self, ino: int) -> list[bytes]:
        return [name for name, _ in self._tree.xattrs(self._core.current(ino))]

    def open_directory(self, ino: int) -> LiveDirectory:
        """ENOTDIR unless it is a directory; one that was removed while it was known is empty."""
        ino = self._core.current(ino)
        if ino not in self._core.kernel.unlinked:
            self._tree.directory(ino)
        return LiveDirectory(self._core, ino)


class LiveDirectory:
    """An open directory.  ino: which."""

    def __init__(self, core: Core, ino: int) -> None:
        self._core = core
        self._ino = ino
        # (newest, end): cookies in between were given since the listing began.
        self._skip = (0, 0)

    @property
    def ino(self) -> int:
        return self._core.current(self._ino)

    def read(self, after: int, limit: int) -> list[tuple[bytes, Inode, int]]:
        """Up to *limit* entries whose cookies follow *after*: (name, inode, cookie).

        Names that stay while others come and go are given exactly once; without "." and "..".
        Names that this mount makes while a listing is under way are not in it: a program that makes
        a file for each one it finds would never come to the end.  after=0 begins anew.
        """
        core = self._core
        if after == 0:
            self._skip = core.replica.last_number
        newest, end = self._skip
        ino = core.current(self._ino)
        entries = core.tree.entries(ino, after, limit)
        if any(newest < cookie <= end for _, _, cookie in entries):
            entries = [entry for entry in entries if entry[2] <= newest]
            entries += core.tree.entries(ino, end, limit - len(entries))
        if core.files:
            for _, inode, _ in entries:
                core.shown(inode)
        return entries
