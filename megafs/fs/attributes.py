"""Changing attributes: modes, owners, times, sizes, extended attributes and ACLs."""

from __future__ import annotations

import errno as e
import stat
from typing import Final

from megafs import clock
from megafs.errors import Refused
from megafs.fs import acl, callers
from megafs.fs.core import Core
from megafs.fs.live_tree import LINK, NAMESPACES, absent_xattr
from megafs.fs.requests import Caller
from megafs.tree import link_records, ops
from megafs.tree.inode import (
    FILE_SIZE_MAX,
    XATTR_LIST_MAX,
    XATTR_NAME_MAX,
    XATTR_SIZE_MAX,
    Inode,
    SetAttr,
    storable_time,
)

_CAPABILITY: Final = b"security.capability"


class Attributes:
    """Changes of attributes, in the present tree."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._tree = core.tree

    async def setattr(self, ino: int, changes: SetAttr, caller: Caller) -> Inode:
        """Change what *changes* says; return the attributes after that."""
        core = self._core
        core.check_writable()
        ino = core.changeable(ino)
        inode = self._tree.find(ino)
        if inode is None:
            return core.getattr(ino)  # unlinked and gone: nobody can see a change
        now = clock.now_ns()
        if changes.size is not None:
            await self.truncate(inode, changes.size, now, caller)
            inode = self._tree.inode(ino)
        data = core.files.get(ino)
        if data is not None and data.is_dirty and changes.mtime_ns is not None:
            # Later flushes must not bring an older time of writing back over the one set now.
            await data.flush()
            inode = self._tree.inode(ino)
        fields: dict[str, int] = {}
        mode = inode.mode
        if changes.mode is not None:
            mode = stat.S_IFMT(inode.mode) | changes.mode & 0o7777
        if changes.uid is not None or changes.gid is not None:
            fields["uid"] = inode.uid if changes.uid is None else changes.uid
            fields["gid"] = inode.gid if changes.gid is None else changes.gid
            if not inode.is_dir and changes.mode is None:
                mode = _without_set_id(mode, caller, inode.gid)
        if mode != inode.mode:
            fields["mode"] = mode
        if changes.atime_ns is not None:
            fields["atime"] = storable_time(changes.atime_ns)
        if changes.mtime_ns is not None:
            fields["mtime"] = storable_time(changes.mtime_ns)
        if fields or changes.mode is not None:
            fields["ctime"] = now
            core.record(ops.SetAttributes(ino, fields))
            if changes.mode is not None:
                self._acl_follows_mode(ino, mode, now)
            if "uid" in fields and self._tree.xattr(ino, _CAPABILITY) is not None:
                core.record(ops.RemoveXattr(ino, _CAPABILITY, now))
        return core.shown(self._tree.inode(ino))

    async def truncate(self, inode: Inode, size: int, now: int, caller: Caller) -> None:
        """Make a file *size* bytes long, with *now* (ns) as the time of writing."""
        if inode.is_dir:
            raise Refused(e.EISDIR)
        if not inode.is_file:
            raise Refused(e.EINVAL)
        if size > FILE_SIZE_MAX:
            raise Refused(e.EFBIG)
        data = self._core.file(inode.ino)
        data.users += 1
        try:
            await data.truncate(size, now)
        finally:
            data.users -= 1
            self._core.drop_unused(data)
        self.drop_privileges(inode.ino, caller)
        self._core.writer.poke()

    def _acl_follows_mode(self, ino: int, mode: int, now: int) -> None:
        value = self._tree.xattr(ino, acl.ACCESS)
        if value is not None:
            entries = acl.with_mode(acl.parse(value), mode)
            self._core.record(ops.SetXattr(ino, acl.ACCESS, acl.build(entries), 0, now))

    def drop_privileges(self, ino: int, caller: Caller) -> None:
        """Writing takes set-id bits and capabilities away, except from root (as Linux does)."""
        inode = self._tree.find(ino)
        if inode is None:
            return
        uid = caller.uid
        if uid != 0 and inode.mode & (stat.S_ISUID | stat.S_ISGID):
            mode = _without_set_id(inode.mode, caller, inode.gid)
            if mode != inode.mode:
                self._core.record(ops.SetAttributes(ino, {"mode": mode, "ctime": clock.now_ns()}))
        if self._tree.xattr(ino, _CAPABILITY) is not None:
            self._core.record(ops.RemoveXattr(ino, _CAPABILITY, clock.now_ns()))
        data = self._core.files.get(ino)
        if data is not None:
            data.unprivileged = uid != 0 or not inode.mode & (stat.S_ISUID | stat.S_ISGID)

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int, caller: Caller) -> None:
        self._core.check_writable()
        ino = self._core.changeable(ino)
        now = clock.now_ns()
        if len(name) > XATTR_NAME_MAX:
            raise Refused(e.ERANGE)
        if len(value) > XATTR_SIZE_MAX:
            raise Refused(e.E2BIG)
        if name in (acl.ACCESS, acl.DEFAULT):
            if self._set_acl(ino, name, value, now, caller):
                return
        elif not name.startswith(NAMESPACES):
            raise Refused(e.EOPNOTSUPP)
        elif name in NAMESPACES:
            raise Refused(e.EINVAL)  # a namespace, and no name in it
        elif name == LINK:
            raise Refused(e.EPERM)  # `megafs share` makes it
        self._check_list(ino, name)
        self._core.record(ops.SetXattr(ino, name, value, flags, now))

    def _check_list(self, ino: int, name: bytes) -> None:
        """ENOSPC if the names, *name* among them, would be more than listxattr(2) can return."""
        if self._tree.xattr(ino, name) is not None:
            return
        there = self._tree.xattrs(ino)
        if sum(len(other) + 1 for other, _ in there) + len(name) + 1 > XATTR_LIST_MAX:
            raise Refused(e.ENOSPC)

    def _set_acl(self, ino: int, name: bytes, value: bytes, now: int, caller: Caller) -> bool:
        """Bring the mode in step with a new ACL; True if the mode alone now says it all."""
        inode = self._tree.inode(ino)
        if inode.is_symlink:
            raise Refused(e.EOPNOTSUPP)
        entries = acl.parse(value)
        if name == acl.DEFAULT:
            if not inode.is_dir:
                raise Refused(e.EACCES)
            if not entries:
                if self._tree.xattr(ino, name) is not None:
                    self._core.record(ops.RemoveXattr(ino, name, now))
                return True
            return False
        if entries:
            mode = acl.mode_of(entries, inode.mode)
            if mode & stat.S_ISGID and not callers.may_keep_setgid(caller, inode.gid):
                mode &= ~stat.S_ISGID
            if mode != inode.mode:
                self._core.record(ops.SetAttributes(ino, {"mode": mode, "ctime": now}))
        if not entries or acl.is_minimal(entries):
            if self._tree.xattr(ino, name) is not None:
                self._core.record(ops.RemoveXattr(ino, name, now))
            return True
        return False

    def removexattr(self, ino: int, name: bytes) -> None:
        self._core.check_writable()
        ino = self._core.changeable(ino)
        if self._tree.xattr(ino, name) is None or name.startswith(link_records.INTERNAL):
            raise absent_xattr(name)
        self._core.record(ops.RemoveXattr(ino, name, clock.now_ns()))


def _without_set_id(mode: int, caller: Caller, gid: int) -> int:
    """*mode* without set-user-id, and without set-group-id.

    Without execution by the group, set-group-id does nothing (once it meant mandatory locking):
    then it stays for a member of the file's group *gid* (setattr_should_drop_sgid of Linux).
    """
    mode &= ~stat.S_ISUID
    if mode & stat.S_ISGID and (mode & stat.S_IXGRP or not callers.may_keep_setgid(caller, gid)):
        mode &= ~stat.S_ISGID
    return mode
