"""A read-only mount of what is left of a damaged volume, without replica, state or cache.

The tree is found as for an export (salvage.py).  The filesystem over it is the one of every mount;
below it are parts that change nothing (the protocols of fs/ports.py).  Reading bytes that do not
verify gives EIO.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import trio
from msgspec.structs import replace

from megafs.chunks.store import ChunkStore
from megafs.concurrency import Background, offload
from megafs.config import Settings
from megafs.errors import Fault, Full
from megafs.fs.core import Below
from megafs.fs.filesystem import FileSystem
from megafs.history.scratch import scratch
from megafs.jobs import salvage
from megafs.jobs.salvage import SalvageReport
from megafs.journal.batches import StrictOutcome
from megafs.journal.follower import Subscriber
from megafs.progress import OnProgress, ignore
from megafs.stores.base import ObjectStore
from megafs.tree.ops import Operation
from megafs.tree.tree import Extent, Tree
from megafs.volume.header import Credential

_NOTHING_CHANGES = "a salvage mount changes nothing"


class _NoLog:
    """No operation is ever logged."""

    position = 0

    def sync(self) -> None:
        pass


class _FixedReplica:
    """A tree that nobody changes.  The filesystem is read-only, so it never asks to."""

    mount = 0
    last_number = (0, 0)  # no name is newer than a listing
    unlogged = 0

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.aliases: dict[int, int] = {}
        self.oplog = _NoLog()

    def number(self) -> NoReturn:
        raise Fault(_NOTHING_CHANGES)

    def record(self, op: Operation, outcome: StrictOutcome | None = None) -> NoReturn:
        raise Fault(_NOTHING_CHANGES)

    def log(self) -> int:
        return 0

    def close_batch(self) -> int:
        return 0


class _EmptyStage:
    """No pack lies on this machine."""

    staged_bytes = 0
    unsynced = False
    last_error = None

    def has(self, number: int) -> bool:
        return False

    def read(self, extent: Extent) -> None:
        return None

    def read_part(self, number: int, offset: int, length: int) -> None:
        return None

    async def put(self, pieces: list[bytes | bytearray | memoryview]) -> NoReturn:
        raise Fault(_NOTHING_CHANGES)

    def check_room(self, size: int) -> NoReturn:
        raise Full(_NOTHING_CHANGES)

    def cut(self) -> None:
        pass

    def sync(self) -> None:
        pass

    async def wait_change(self) -> None:
        await trio.sleep_forever()


class _NoWriter:
    """Commits nothing and follows nobody."""

    frozen = None
    barred = None

    def poke(self, urgent: bool = False) -> None:
        pass

    def stir(self) -> None:
        pass

    async def committed(self, batch: int, deadline: float) -> None:
        pass

    async def catch_up(self) -> int:
        return 0

    def subscribe(self, subscriber: Subscriber) -> None:
        pass


@asynccontextmanager
async def salvaged(
    store: ObjectStore,
    url: str,
    credential: Credential,
    settings: Settings,
    report: SalvageReport,
    *,
    at: int | None = None,
    on_progress: OnProgress = ignore,
) -> AsyncIterator[FileSystem]:
    """The filesystem of what can be found of the volume in *store*, for the block.

    report: gets what is damaged of header, checkpoints and journal.  Raises as `salvage` does.
    """
    unlocked = await salvage.unlock(store, url, credential, settings, report)
    db = await offload(scratch, settings.cache_dir / "salvage", 64 << 10)
    try:
        tree = await salvage.find_tree(store, unlocked, db, at, report, on_progress)
        stage = _EmptyStage()
        chunks = ChunkStore(store, stage, tree, unlocked.keyring, settings.memory_cache)
        yield FileSystem(
            Below(_FixedReplica(tree), chunks, stage, _NoWriter()),
            unlocked.header.parameters,
            replace(settings, read_only=True, atime="noatime"),
            Background(),  # never runs: nothing is read ahead
        )
    finally:
        db.close()
