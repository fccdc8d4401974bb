"""The batches that the log of operations holds when a process begins."""

from __future__ import annotations

from collections.abc import Container

from msgspec import Struct, field

from megafs.journal.operation_log import OperationLog, Restore
from megafs.tree import ops as tree_ops
from megafs.tree.ops import Operation


class LoggedBatches(Struct):
    """The batches that the log held when this process began.

    operations: of each batch, in order.  frames: of each batch, the numbers of the operations at
        which its frames begin; a frame holds what was written at once, such as a new file with its
        contents.
    """

    operations: dict[int, list[Operation]] = field(default_factory=dict)
    frames: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def read(cls, oplog: OperationLog, restore: Restore | None) -> LoggedBatches:
        """Read the log.  restore: see `OperationLog.read`."""
        found = cls()
        for batch, frames in oplog.read(restore):
            ops = found.operations[batch] = []
            starts = found.frames[batch] = []
            for frame in frames:
                starts.append(len(ops))
                ops.extend(tree_ops.decode(frame))
        return found

    def missing(self, *, after: int, pending: Container[int]) -> list[tuple[int, list[Operation]]]:
        """The batches after number *after* that are not *pending* in the replica."""
        return [
            (batch, ops)
            for batch, ops in self.operations.items()
            if batch > after and batch not in pending
        ]

    def frame_of(self, batch: int, number: int) -> int:
        """Where the frame begins that holds operation *number* of a batch; *number* if unknown."""
        return max((at for at in self.frames.get(batch, ()) if at <= number), default=number)

    def forget_frames(self, batch: int) -> None:
        """The operations of a batch have other numbers now."""
        self.frames.pop(batch, None)
