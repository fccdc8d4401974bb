"""The protocols of the parts that a filesystem stands on.

A mount gives it the replica (journal/replica.py), the stage (chunks/stage.py) and the writer
(journal/writer.py).  A salvage mount gives it parts that change nothing (jobs/salvage_view.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from megafs.chunks.store import StagedChunks
from megafs.errors import Fault
from megafs.journal.batches import StrictOutcome
from megafs.journal.follower import Subscriber
from megafs.tree.ops import Operation
from megafs.tree.tree import Extent, Tree


class OperationLogPort(Protocol):
    """The log of operations on this machine's disk.  position: bytes written to it so far."""

    @property
    def position(self) -> int: ...
    def sync(self) -> None: ...


class ReplicaPort(Protocol):
    """The tree, with this mount's operations applied to it.

    mount: the number of this mount.  aliases: the inode that another one became.
    last_number: (newest, end): numbers above `newest` and up to `end` are still to be given out.
    unlogged: operations that the log of operations does not hold yet.
    """

    @property
    def tree(self) -> Tree: ...
    @property
    def mount(self) -> int: ...
    @property
    def aliases(self) -> Mapping[int, int]: ...
    @property
    def last_number(self) -> tuple[int, int]: ...
    @property
    def unlogged(self) -> int: ...
    @property
    def oplog(self) -> OperationLogPort: ...

    def number(self) -> int:
        """A number that no inode, entry or version has."""

    def record(self, op: Operation, outcome: StrictOutcome | None = None) -> None:
        """Apply an operation; raises Refused if it does not fit."""

    def log(self) -> int:
        """Append what was recorded to the log of operations; return the number of its batch."""

    def close_batch(self) -> int:
        """Close the batch of operations; return its number."""


class StagePort(StagedChunks, Protocol):
    """Where written contents become packs.

    staged_bytes: what the store does not have yet.  unsynced: whether `sync` has work.
    """

    @property
    def staged_bytes(self) -> int: ...
    @property
    def unsynced(self) -> bool: ...
    @property
    def last_error(self) -> Fault | None: ...

    async def put(self, pieces: list[bytes | bytearray | memoryview]) -> list[Extent]:
        """Seal pieces, each at most a chunk long; return an extent with start 0 for each."""

    def check_room(self, size: int) -> None:
        """Raise Full if *size* more bytes must not be staged now."""

    def cut(self) -> None:
        """Upload what was put so far."""

    def sync(self) -> None:
        """Make durable what was put; blocks."""

    async def wait_change(self) -> None:
        """Return when a pack has reached the store, or has failed to."""


class WriterPort(Protocol):
    """Commits operations in the background, and follows the commits of other mounts.

    frozen, barred: why nothing may be written any more, or for now; None while it may.
    """

    @property
    def frozen(self) -> Fault | None: ...
    @property
    def barred(self) -> str | None: ...

    def poke(self, urgent: bool = False) -> None:
        """There is something to commit; urgent: somebody waits for it."""

    def stir(self) -> None:
        """Somebody looks at the volume."""

    async def committed(self, batch: int, deadline: float) -> None:
        """Return when *batch* is in the journal; raises after *deadline* seconds."""

    async def catch_up(self) -> int:
        """Apply the commits of other mounts; return how many there were."""

    def subscribe(self, subscriber: Subscriber) -> None:
        """Tell *subscriber* of every commit of another mount."""
