"""Making, moving and removing names: create, mkdir, symlink, mknod, link, unlink, rmdir, rename."""

from __future__ import annotations

import errno as e
import stat
from collections.abc import Callable
from typing import Final, TypeVar

from megafs import clock
from megafs.errors import Refused
from megafs.fs import acl
from megafs.fs.core import Core
from megafs.fs.live_tree import LiveTree
from megafs.fs.orphans import Orphans
from megafs.fs.requests import Caller
from megafs.journal.batches import StrictOutcome
from megafs.tree import ops
from megafs.tree.inode import NAME_MAX, SYMLINK_MAX, Inode

RENAME_NOREPLACE: Final = ops.RENAME_NOREPLACE
RENAME_EXCHANGE: Final = ops.RENAME_EXCHANGE
RENAME_WHITEOUT: Final = ops.RENAME_WHITEOUT

#: How often a strict operation is decided anew because others were faster.
_STRICT_ATTEMPTS = 16
T = TypeVar("T")


class Names:
    """Changes of names.  Each is decided on the tree as it is, then recorded as one operation."""

    def __init__(self, core: Core, live: LiveTree, orphans: Orphans) -> None:
        self._core = core
        self._live = live
        self._orphans = orphans
        self._replica = core.replica
        self._tree = core.tree
        self._writer = core.writer
        self._settings = core.settings

    async def create(
        self,
        parent: int,
        name: bytes,
        mode: int,
        caller: Caller,
        *,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Inode:
        """Make a file of any kind; mode: its type and permissions."""
        if target is not None and len(target) > SYMLINK_MAX:
            raise Refused(e.ENAMETOOLONG)
        return await self._change(
            lambda t: self._create(t, parent, name, mode, caller, rdev=rdev, target=target)
        )

    def _create(
        self,
        outcome: StrictOutcome | None,
        parent: int,
        name: bytes,
        mode: int,
        caller: Caller,
        *,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Inode:
        self._core.check_writable()
        parent = self._core.changeable(parent)
        above = self._tree.directory(parent)
        if len(name) > NAME_MAX:
            raise Refused(e.ENAMETOOLONG)
        if self._tree.child(parent, name) is not None:
            raise Refused(e.EEXIST)
        self._check_not_reserved(parent, name)
        self._check_quota()
        gid = caller.gid
        is_dir = stat.S_ISDIR(mode)
        if above.mode & stat.S_ISGID:
            gid = above.gid
            if is_dir:
                mode |= stat.S_ISGID
        xattrs: list[tuple[bytes, bytes]] = []
        if not stat.S_ISLNK(mode):
            default = self._tree.xattr(parent, acl.DEFAULT)
            if default is not None:
                mode, access = acl.inherit(default, mode)
                if not acl.is_minimal(access):
                    xattrs.append((acl.ACCESS, acl.build(access)))
                if is_dir:
                    xattrs.append((acl.DEFAULT, default))
        ino = self._replica.number()
        self._replica.record(
            ops.Create(
                parent,
                name,
                ino,
                self._replica.number(),
                mode,
                caller.uid,
                gid,
                rdev,
                clock.now_ns(),
                0,
                target,
                tuple(xattrs),
            ),
            outcome,
        )
        return self._tree.inode(ino)

    async def link(self, ino: int, parent: int, name: bytes) -> Inode:
        await self._change(lambda t: self._link(t, ino, parent, name))
        return self._core.getattr(ino)

    def _link(self, outcome: StrictOutcome | None, ino: int, parent: int, name: bytes) -> None:
        self._core.check_writable()
        ino, parent = self._core.changeable(ino), self._core.changeable(parent)
        self._replica.record(
            ops.Link(ino, parent, name, self._replica.number(), clock.now_ns()), outcome
        )

    async def unlink(self, parent: int, name: bytes) -> None:
        self._orphans.unlinked(await self._change(lambda t: self._unlink(t, parent, name)))

    def _unlink(self, outcome: StrictOutcome | None, parent: int, name: bytes) -> Inode:
        self._core.check_writable()
        parent = self._core.changeable(parent)
        inode = self._child(parent, name)
        if inode.is_dir:
            raise Refused(e.EISDIR)
        self._replica.record(
            ops.Unlink(
                parent,
                name,
                inode.ino,
                inode.version,
                clock.now_ns(),
                self._orphans.keeps(inode.ino),
            ),
            outcome,
        )
        return inode

    async def rmdir(self, parent: int, name: bytes) -> None:
        self._orphans.unlinked(await self._change(lambda t: self._rmdir(t, parent, name)))

    def _rmdir(self, outcome: StrictOutcome | None, parent: int, name: bytes) -> Inode:
        self._core.check_writable()
        parent = self._core.changeable(parent)
        inode = self._child(parent, name)
        if not inode.is_dir:
            raise Refused(e.ENOTDIR)
        if not self._tree.is_empty(inode.ino):
            raise Refused(e.ENOTEMPTY)
        self._replica.record(ops.Rmdir(parent, name, inode.ino, clock.now_ns()), outcome)
        return inode

    async def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> None:
        replaced = await self._change(
            lambda t: self._rename(t, parent, name, new_parent, new_name, flags, caller)
        )
        if replaced is not None:
            self._orphans.unlinked(replaced)

    def _rename(
        self,
        outcome: StrictOutcome | None,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> Inode | None:
        """Rename; return the inode whose name was taken over, if any."""
        self._core.check_writable()
        whiteout = bool(flags & RENAME_WHITEOUT)
        flags &= ~RENAME_WHITEOUT
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise Refused(e.EINVAL)
        if whiteout and flags == RENAME_EXCHANGE:
            raise Refused(e.EINVAL)
        parent, new_parent = self._core.changeable(parent), self._core.changeable(new_parent)
        moved = self._child(parent, name)
        if len(new_name) > NAME_MAX:
            raise Refused(e.ENAMETOOLONG)
        replaced = self._tree.lookup(new_parent, new_name)
        if replaced is None:
            self._check_not_reserved(new_parent, new_name)
        if flags & RENAME_NOREPLACE and replaced is not None:
            raise Refused(e.EEXIST)
        if flags & RENAME_EXCHANGE and replaced is None:
            raise Refused(e.ENOENT)
        if replaced is not None and replaced.ino == moved.ino:
            return None
        exchange = bool(flags & RENAME_EXCHANGE)
        keep = 0 if replaced is None or exchange else self._orphans.keeps(replaced.ino)
        self._replica.record(
            ops.Rename(
                parent,
                name,
                new_parent,
                new_name,
                flags,
                moved.ino,
                replaced.ino if replaced is not None else 0,
                replaced.version if replaced is not None else 0,
                self._replica.number(),
                self._replica.number() if exchange else 0,
                clock.now_ns(),
                keep,
            ),
            outcome,
        )
        if whiteout:
            # Nothing is awaited between the two, so one batch holds both, and so does one commit.
            self._replica.record(
                ops.Create(
                    parent,
                    name,
                    self._replica.number(),
                    self._replica.number(),
                    stat.S_IFCHR,
                    caller.uid,
                    caller.gid,
                    0,
                    clock.now_ns(),
                ),
                outcome,
            )
        return None if exchange else replaced

    async def _change(self, change: Callable[[StrictOutcome | None], T]) -> T:
        """Change names; with strict consistency, answer only when that is in the journal.

        Strict: a refusal may come from names that another mount has changed meanwhile, so the
        journal is looked at before it is believed; and an operation that loses the race to one that
        it does not fit is refused with the errno that a single machine would have given.
        """
        if self._settings.consistency != "strict":
            result = change(None)
            self._writer.poke()
            return result
        for attempt in range(_STRICT_ATTEMPTS):
            outcome = StrictOutcome()
            no: Refused | None = None
            try:
                result = change(outcome)
            except Refused as refused:
                no = refused
            if no is not None:
                if attempt or not await self._writer.catch_up():
                    raise no
                continue
            await self._writer.committed(self._replica.close_batch(), self._settings.deadline)
            if outcome.refused is None:
                return result
            if outcome.refused.errno not in (e.ESTALE, e.ENOENT, e.EEXIST):
                raise outcome.refused
            # Decided again on what the winner left: the answer may be another errno, or success.
        raise Refused(e.EBUSY)

    def _child(self, parent: int, name: bytes) -> Inode:
        if len(name) > NAME_MAX:
            raise Refused(e.ENAMETOOLONG)
        found = self._tree.lookup(parent, name)
        if found is None:
            self._check_not_reserved(parent, name)
            self._tree.directory(parent)
            raise Refused(e.ENOENT)
        return found

    def _check_not_reserved(self, parent: int, name: bytes) -> None:
        """EROFS if the name stands for the snapshots, which may not be removed or moved over."""
        if self._live.is_reserved(parent, name):
            raise Refused(e.EROFS)

    def _check_quota(self) -> None:
        quota = self._core.params.quota
        if quota is not None and self._tree.used > quota:
            raise Refused(e.ENOSPC)
