"""Small sealed chunks that were staged and are not in the log of operations yet.

The stage puts them here instead of syncing their pack; the replica takes them when it writes the
operation that names them to the log, so that a close(2) needs one sync (docs/decisions/0008).
"""

from __future__ import annotations

from megafs.tree.tree import Extent

#: Bytes that wait here at most.
LIMIT = 4 << 20


class UnloggedChunks:
    """Sealed chunks by pack and offset: `Stage` adds them, `Replica` takes them."""

    def __init__(self) -> None:
        self._sealed: dict[tuple[int, int], bytes] = {}
        self._size = 0

    def add(self, pack: int, offset: int, sealed: bytes) -> set[int]:
        """Keep a chunk; return the packs that have to be synced because nothing is kept of them."""
        full: set[int] = set()
        if self._size + len(sealed) > LIMIT:
            # Many files at once, or flushes that came to nothing: sync as for large ones.
            full = {number for number, _ in self._sealed}
            self._sealed.clear()
            self._size = 0
        self._sealed[pack, offset] = sealed
        self._size += len(sealed)
        return full

    def take(self, extent: Extent) -> bytes | None:
        """Take out the sealed chunk of *extent*; None if its pack is synced instead."""
        sealed = self._sealed.pop((extent.pack, extent.offset), None)
        if sealed is not None:
            self._size -= len(sealed)
        return sealed
