"""Moves file contents that fsyncs put into commits to packs.

An fsync(2) that waits for the store puts up to `SOON` bytes into the commit itself: one round trip,
where a pack and then the commit that names it would take two.  But bytes in a commit lie in every
machine's replica for good.  So they are sealed again into packs, of many files together, once there
are enough for a pack or half a minute has passed; an operation (`ops.Repack`) then lets the files
name the packs, where they still hold the same contents.

`megafs gc` moves what a process leaves behind when it ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

import trio

from megafs.concurrency import Background
from megafs.errors import Fault, Refused
from megafs.fs.ports import ReplicaPort, StagePort
from megafs.tree.ops import Repack
from megafs.tree.tree import Extent

log = logging.getLogger(__name__)

#: The most bytes that one fsync puts into the commit.  Whoever writes much more than this waits for
#: the line, not for the round trip.
SOON: Final = 32 << 10

_LOOK: Final = 5.0
_ENOUGH: Final = 1 << 20
_AGE: Final = 30.0
_BATCH: Final = 4 << 20


class Repacker:
    """Moves inline pieces longer than *limit* bytes to packs.

    allowed: whether this mount may write just now.  poke: there is something to commit.
    """

    def __init__(
        self,
        replica: ReplicaPort,
        stage: StagePort,
        limit: int,
        background: Background,
        *,
        allowed: Callable[[], bool],
        poke: Callable[[], None],
    ) -> None:
        self._replica = replica
        self._stage = stage
        self._limit = limit
        self._background = background
        self._allowed = allowed
        self._poke = poke
        self._waiting: dict[tuple[int, int], int] = {}
        self._size = 0
        self._since = 0.0
        self._running = False

    @property
    def waiting(self) -> int:
        """How many pieces have travelled in a commit and are to be moved."""
        return len(self._waiting)

    def note(self, ino: int, start: int, size: int) -> None:
        """A piece of *size* bytes at *start* of a file went into the tree."""
        if not self._waiting:
            self._since = trio.current_time()
        self._size += size - self._waiting.get((ino, start), 0)
        self._waiting[(ino, start)] = size

    def begin(self) -> None:
        """Start the work in the background, if there is any."""
        if self._waiting and not self._running:
            self._running = self._background.start(self._run)

    async def _run(self) -> None:
        try:
            while self._waiting:
                await trio.sleep(_LOOK)
                old = trio.current_time() - self._since >= _AGE
                if (old or self._size >= _ENOUGH) and self._allowed():
                    try:
                        await self._some()
                    except (Fault, Refused) as exc:  # the pieces stay where they are
                        log.debug("not moved to a pack: %s", exc)
                        await trio.sleep(_AGE)
        finally:
            self._running = False

    async def _some(self) -> None:
        batch = []
        size = 0
        for (ino, start), length in self._waiting.items():
            batch.append((ino, start, length))
            size += length
            if size >= _BATCH:
                break
        await self.move(batch)
        for ino, start, _ in batch:
            self._size -= self._waiting.pop((ino, start), 0)
        self._since = trio.current_time()

    async def move(self, where: Iterable[tuple[int, int, int]]) -> int:
        """Move the pieces that lie at these (inode, start, size); return how many bytes it were.

        What is not there any more, or is in a pack already, is passed over.
        """
        found: list[tuple[int, int, Extent]] = []
        pieces: list[bytes | bytearray | memoryview] = []
        for ino, start, length in where:
            inode = self._replica.tree.find(ino)
            if inode is None:
                continue
            for piece in self._replica.tree.extents(ino, start, start + length):
                if not piece.pack and piece.data is not None and piece.length > self._limit:
                    found.append((ino, inode.version, piece))
                    pieces.append(memoryview(piece.data)[piece.skip : piece.skip + piece.length])
        if not found:
            return 0
        sealed = await self._stage.put(pieces)
        self._replica.record(
            Repack(
                tuple(
                    (ino, version, new._replace(start=old.start))
                    for (ino, version, old), new in zip(found, sealed, strict=True)
                )
            )
        )
        self._poke()
        return sum(len(piece) for piece in pieces)
