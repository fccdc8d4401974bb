"""A file's size and extents, remembered between two changes of the tree."""

from __future__ import annotations

from megafs.tree.tree import Extent, Tree

#: Blocks of a file whose extents are kept: 1 GiB of chunks of 256 KiB, some 1.5 MB.
_BLOCKS = 4096


class ExtentMap:
    """Which extents a file's bytes lie in: read from the tree, kept until anything there changes.

    A query costs 5 microseconds, but it also lets go of the interpreter, and beside a thread that
    opens chunks it may take a hundred times as long to get it back; each MiB read needs four.
    """

    __slots__ = ("_blocks", "_changes", "_chunk", "_ino", "_size", "_tree")

    def __init__(self, tree: Tree, ino: int, chunk: int) -> None:
        self._tree = tree
        self._ino = ino
        self._chunk = chunk
        self._changes = -1
        self._size: int | None = None
        # By number, the extents that hold bytes of each block (a chunk's length of the file).
        self._blocks: dict[int, list[Extent]] = {}

    def _refresh(self) -> None:
        changes = self._tree.db.total_changes()
        if changes != self._changes:
            self._changes = changes
            self._blocks.clear()
            inode = self._tree.find(self._ino)
            self._size = None if inode is None else inode.size

    @property
    def size(self) -> int | None:
        """Bytes in the file; None if there is no such file any more."""
        self._refresh()
        return self._size

    def extents(self, start: int, end: int) -> list[Extent]:
        """As `Tree.extents`, but perhaps with some that lie just outside."""
        self._refresh()
        if end <= start:
            return []
        first, last = start // self._chunk, (end - 1) // self._chunk
        blocks = self._blocks
        if any(n not in blocks for n in range(first, last + 1)):
            if len(blocks) + last - first >= _BLOCKS:
                blocks.clear()
            blocks.update((n, []) for n in range(first, last + 1))
            for extent in self._tree.extents(
                self._ino, first * self._chunk, (last + 1) * self._chunk
            ):
                low, high = extent.start // self._chunk, (extent.end - 1) // self._chunk
                for n in range(max(first, low), min(last, high) + 1):
                    blocks[n].append(extent)
        if first == last:
            return blocks[first]
        found: list[Extent] = []
        for n in range(first, last + 1):
            for extent in blocks[n]:
                if not found or found[-1].start < extent.start:
                    found.append(extent)
        return found
