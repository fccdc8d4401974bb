"""The state of a replica, and going back to it when a transaction fails."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import apsw
from msgspec import Struct

from megafs.errors import Full
from megafs.journal.batches import PendingBatch
from megafs.tree.schema import SequenceNumber


class ReplicaState(Struct):
    """Where a replica stands, so that a transaction that fails can go back to it.

    sequence, head: the last commit applied and its hash.  batch: the last closed batch; committed:
    the last one that is in the journal.  prefix, counter: the last number given out.
    used, files: bytes allocated and inodes in use.  pending: the batches that are not committed.
    """

    sequence: SequenceNumber
    head: bytes
    batch: int
    committed: int
    prefix: int
    counter: int
    used: int
    files: int
    pending: dict[int, PendingBatch]


class Rewindable(Protocol):
    """A replica that can go back to its last closed batch.  path: of its file."""

    path: Path

    def rewind(self) -> None:
        """Go back, and do the operations since then again."""


P = ParamSpec("P")
R = TypeVar("R", bound=Rewindable)
T = TypeVar("T")


def whole(method: Callable[Concatenate[R, P], T]) -> Callable[Concatenate[R, P], T]:
    """A method that a full disk may stop in the middle: then nothing of it was done."""

    @functools.wraps(method)
    def run(replica: R, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(replica, *args, **kwargs)
        except (Full, apsw.FullError) as exc:
            replica.rewind()
            if isinstance(exc, Full):
                raise
            raise Full(f"{replica.path}: the disk is full") from exc

    return run
