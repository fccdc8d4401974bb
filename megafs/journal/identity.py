"""What a batch is known by, whoever brings it to the journal.

Every process that opens a volume has a number of its own among its mounts, and numbers its batches.
So (number, batch) names what one process did, and the table `writers` tells how far each has come.
What a process left behind, its heir commits under the heir's number.  There may be several heirs:
the state directory can have been copied, or an old copy of it put back, at any moment, also while
the process was writing.  So the batches of another process are known by their bytes: a key, which
an heir puts into `writers` together with them, as a row of its own.  Keys are negative; numbers of
mounts are not.

A copy that was made in the middle of a batch ends with one of its frames.  So the key of a batch is
known after every frame: who holds more of it than was committed does only the rest again.
"""

from __future__ import annotations

from blake3 import blake3

from megafs.tree import ops as tree_ops
from megafs.tree.ops import Operation


class BatchIdentity:
    """Collects the operations of one batch in order, and says what it is known by so far.

    origin: the number of the mount that did them first.
    """

    def __init__(self, origin: int, batch: int) -> None:
        self._hash = blake3(
            b"megafs batch" + origin.to_bytes(8, "big", signed=True) + batch.to_bytes(8, "big")
        )
        self._count = 0
        self.prefixes: list[tuple[int, int]] = []

    def add(self, encoded: bytes, count: int) -> None:
        """*count* further operations, as `tree_ops.encode` gives them: a frame ends here."""
        # Without the head of the array: what was written as two frames may be read as one.
        head = 1 if count < 16 else 3 if count < 1 << 16 else 5
        self._hash.update(encoded[head:])
        self._count += count
        key = -1 - (int.from_bytes(self._hash.digest(8), "big") >> 2)
        self.prefixes.append((self._count, key))

    @classmethod
    def of(cls, origin: int, batch: int, operations: list[Operation]) -> BatchIdentity:
        """That of a batch that holds exactly these."""
        made = cls(origin, batch)
        made.add(tree_ops.encode(operations), len(operations))
        return made
