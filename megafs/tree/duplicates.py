"""Chunks that this machine has stored before, found by a keyed hash of their bytes."""

from __future__ import annotations

from blake3 import blake3

from megafs.tree.tree import Extent, Tree

Plain = memoryview | bytearray | bytes


class Duplicates:
    """The table `duplicates` of the replica.  key: of the hash, 32 bytes."""

    def __init__(self, tree: Tree, key: bytes) -> None:
        self._tree = tree
        self._key = key

    def _hash(self, data: Plain) -> bytes:
        return blake3(data, key=self._key).digest()

    def find(self, data: Plain) -> Extent | None:
        """An extent, with start 0, of a chunk that holds the same bytes."""
        row = self._tree.db.execute(
            # gc may have dropped the pack, or be about to (docs/maintenance.md).
            "SELECT pack, offset, sealed, plain, digest FROM duplicates WHERE hash=?"
            " AND pack IN (SELECT pack FROM packs) AND pack NOT IN (SELECT pack FROM garbage)",
            (self._hash(data),),
        ).fetchone()
        if row is None:
            return None
        pack, offset, sealed, plain, digest = row
        if plain != len(data):
            return None
        return Extent(0, len(data), pack, offset, sealed, plain, 0, digest, None)

    def add(self, data: Plain, extent: Extent) -> None:
        """*data* was sealed into the chunk of *extent*."""
        self._tree.db.execute(
            "INSERT OR REPLACE INTO duplicates VALUES(?,?,?,?,?,?)",
            (
                self._hash(data),
                extent.pack,
                extent.offset,
                extent.sealed,
                extent.plain,
                extent.digest,
            ),
        )
