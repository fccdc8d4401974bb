"""The batches that the log of operations holds when a process begins."""

from __future__ import annotations

from collections.abc import Container

from msgspec import Struct, field

from megafs.journal.batches import BatchOrigin
from megafs.journal.identity import BatchIdentity
from megafs.journal.operation_log import LoggedFrame, OperationLog, Restore
from megafs.tree import ops as tree_ops
from megafs.tree.ops import Operation


class LoggedBatch(Struct):
    """One batch, as the log has it.

    frames: the numbers of the operations at which its frames begin; a frame holds what was written
        at once, such as a new file with its contents.  strict: the numbers of operations that are
        done as they are or not at all.
    """

    operations: list[Operation]
    frames: list[int]
    origin: BatchOrigin
    strict: list[int]

    @classmethod
    def of(cls, batch: int, frames: list[LoggedFrame]) -> LoggedBatch:
        first = frames[0].note
        made = cls([], [], BatchOrigin(first.origin, True, ()), [])
        identity = BatchIdentity(first.origin, batch)
        for frame in frames:
            operations = tree_ops.decode(frame.operations)
            made.frames.append(len(made.operations))
            made.strict.extend(len(made.operations) + n for n in frame.note.strict)
            made.operations.extend(operations)
            identity.add(frame.operations, len(operations))
        prefixes = identity.prefixes
        if first.key:  # they were done again since
            prefixes = [(len(made.operations), first.key)]
        made.origin = BatchOrigin(first.origin, True, tuple(prefixes))
        return made

    def without(self, count: int) -> LoggedBatch:
        """What is left when the first *count* operations are in the journal."""
        return LoggedBatch(
            self.operations[count:],
            [n - count for n in self.frames if n >= count],
            self.origin.after(count),
            [n - count for n in self.strict if n >= count],
        )


class LoggedBatches(Struct):
    """The batches that the log held when this process began, by number."""

    batches: dict[int, LoggedBatch] = field(default_factory=dict)

    @classmethod
    def read(
        cls, oplog: OperationLog, restore: Restore | None, *, power_cut: bool
    ) -> LoggedBatches:
        """Read the log.  restore, power_cut: see `OperationLog.read`."""
        found = oplog.read(restore, power_cut=power_cut)
        return cls({batch: LoggedBatch.of(batch, frames) for batch, frames in found})

    def operations(self, batch: int) -> list[Operation] | None:
        """The operations of a batch, or None if the log does not hold it."""
        found = self.batches.get(batch)
        return None if found is None else found.operations

    def missing(self, *, after: int, pending: Container[int]) -> list[tuple[int, LoggedBatch]]:
        """The batches after number *after* that are not *pending* in the replica."""
        return [
            (number, batch)
            for number, batch in self.batches.items()
            if number > after and number not in pending
        ]

    def frame_of(self, batch: int, number: int) -> int:
        """Where the frame begins that holds operation *number* of a batch; *number* if unknown."""
        found = self.batches.get(batch)
        frames = found.frames if found is not None else []
        return max((at for at in frames if at <= number), default=number)

    def forget_frames(self, batch: int) -> None:
        """The operations of a batch have other numbers now."""
        if batch in self.batches:
            self.batches[batch].frames = []
