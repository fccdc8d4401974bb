"""The operations that are collected for the next batch, and how far the log holds them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from megafs.journal.batches import BatchOrigin, StrictOutcome
from megafs.journal.identity import BatchIdentity
from megafs.journal.operation_log import Note, OperationLog, Piece
from megafs.tree import ops as tree_ops
from megafs.tree.ops import Create, Operation
from megafs.tree.schema import Ino
from megafs.tree.tree import Extent


class ChunksForLog(Protocol):
    """Sealed chunks that lie in a staged pack which nobody syncs (chunks/unlogged.py)."""

    def take(self, extent: Extent) -> bytes | None:
        """The chunk that *extent* names, if it has to go into the log with the operation."""


class CollectedOperations:
    """The operations of one mount since its last closed batch.

    mount: its number.  chunks: small chunks to be written to the log with the operations that name
    them.

    operations: in order.  packs: that they name.  outcomes: of those whose callers wait, by their
    place.
    """

    def __init__(self, mount: int, chunks: ChunksForLog | None) -> None:
        self._mount = mount
        self._chunks = chunks
        self.operations: list[Operation] = []
        self.packs: set[int] = set()
        self.outcomes: dict[int, StrictOutcome] = {}
        self._logged = 0  # how many of them the log of operations has
        self._identity: BatchIdentity | None = None  # once they are in the log

    def __len__(self) -> int:
        return len(self.operations)

    def add(self, op: Operation, outcome: StrictOutcome | None) -> None:
        """*op* was applied.  outcome: see `Replica.record`."""
        if outcome is not None:
            self.outcomes[len(self.operations)] = outcome
            if isinstance(op, Create):
                outcome.ino = Ino(op.ino)
        self.operations.append(op)
        self.packs.update(piece.pack for piece in op.laid() if piece.pack)

    @property
    def unlogged(self) -> int:
        """How many the log does not have yet."""
        return len(self.operations) - self._logged

    def log(self, oplog: OperationLog, batch: int) -> None:
        """Append to the log what it does not have yet.  batch: the number of the batch."""
        if self._identity is None:
            self._identity = BatchIdentity(self._mount, batch)
        if not self.unlogged:
            return
        ops = self.operations[self._logged :]
        encoded = tree_ops.encode(ops)
        strict = [n - self._logged for n in self.outcomes if n >= self._logged]
        note = Note(self._mount, 0, tuple(strict))
        oplog.append(batch, encoded, self._logged, self._pieces(ops), note)
        self._identity.add(encoded, len(ops))
        self._logged = len(self.operations)

    def _pieces(self, ops: Iterable[Operation]) -> list[Piece]:
        """The small chunks that these name and nobody syncs."""
        chunks = self._chunks
        if chunks is None:
            return []
        return [
            (extent.pack, extent.offset, sealed)
            for op in ops
            for extent in op.laid()
            if extent.pack and (sealed := chunks.take(extent)) is not None
        ]

    @property
    def origin(self) -> BatchOrigin:
        """What the batch of them is known by; they are in the log."""
        assert self._identity is not None
        return BatchOrigin(self._mount, False, tuple(self._identity.prefixes))

    def clear(self) -> None:
        """They are a closed batch."""
        self.operations, self.packs, self.outcomes = [], set(), {}
        self._logged = 0
        self._identity = None
