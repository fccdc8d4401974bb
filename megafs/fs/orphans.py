"""Files without a name: kept while they are open, then removed, a huge one in steps."""

from __future__ import annotations

from typing import Final

import trio

from megafs import clock
from megafs.fs.core import Core
from megafs.tree import ops
from megafs.tree.inode import Inode

#: Seconds between two steps of removing a huge file: programs go first.
_PAUSE: Final = 0.02


class Orphans:
    """Removes this mount's files that have no name any more."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._replica = core.replica
        self._tree = core.tree
        self._in_steps: set[int] = set()

    def keeps(self, ino: int) -> int:
        """This mount, if the file's bytes outlive its last name: it is open, or goes in steps."""
        data = self._core.files.get(ino)
        if data is not None and data.opens:
            return self._replica.mount
        return self._replica.mount if self._tree.far_cut(ino, 0) is not None else 0

    def unlinked(self, inode: Inode) -> None:
        """A name of *inode* was removed; the kernel may ask for its attributes all the same."""
        self.remove(inode.ino)
        kernel = self._core.kernel
        if inode.ino in kernel and self._tree.find(inode.ino) is None:
            inode.nlink = 0
            inode.ctime_ns = clock.now_ns()
            kernel.unlinked[inode.ino] = inode

    def remove(self, ino: int) -> None:
        """Remove a file that has no name and that nobody has open; a huge one in the background."""
        inode = self._tree.find(ino)
        data = self._core.files.get(ino)
        if inode is None or inode.nlink or inode.is_dir or (data and data.opens):
            return
        if self._core.writer.frozen is not None:
            return
        if self._tree.far_cut(ino, 0) is None:
            self._replica.record(ops.Reap(ino))
            self._core.writer.poke()
        elif ino not in self._in_steps and self._core.background.start(self._remove_in_steps, ino):
            self._in_steps.add(ino)

    def remove_closed(self) -> None:
        """Remove those that lost their last name, by another mount's commit, after we closed."""
        for ino in self._tree.orphans(self._replica.mount):
            data = self._core.files.get(ino)
            if data is None or not data.opens:
                self.remove(ino)

    async def remove_left(self, mount: int) -> None:
        """Remove the files that a mount which has ended kept open without a name."""
        for ino in self._tree.orphans(mount):
            inode = self._tree.find(ino)
            if inode is not None and inode.nlink == 0:
                while self._cut_step(ino):
                    pass
                self._replica.record(ops.Reap(ino))
                await trio.lowlevel.checkpoint()

    async def _remove_in_steps(self, ino: int) -> None:
        step = True
        while step:
            await trio.sleep(_PAUSE)
            step = self._cut_step(ino)
            self._core.writer.poke()
        self._in_steps.discard(ino)
        self.remove(ino)

    def _cut_step(self, ino: int) -> bool:
        """Take a batch of extents from a huge file; False if there is no need to."""
        inode = self._tree.find(ino)
        cut = self._tree.far_cut(ino, 0)
        if inode is None or inode.nlink or cut is None or self._core.writer.frozen is not None:
            return False
        now = clock.now_ns()
        self._replica.record(
            ops.SetContents(ino, inode.version, self._replica.number(), cut, cut, now, now, ())
        )
        self._replica.close_batch()
        return True
