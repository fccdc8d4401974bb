"""A read-only mount of what is left of a damaged volume, without replica, state or cache.

The tree is found as for an export (salvage.py); the filesystem over it is the ordinary one, on
parts that stand still: nothing is written, followed or committed.  Bytes that do not verify are
EIO.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn, cast

from msgspec.structs import replace

from megafs.chunks.stage import Stage
from megafs.chunks.store import ChunkStore
from megafs.concurrency import offload
from megafs.config import Settings
from megafs.errors import Corrupt
from megafs.fs.filesystem import FileSystem
from megafs.history.moments import scratch
from megafs.jobs import salvage
from megafs.jobs.salvage import Progress, Report
from megafs.journal.replica import Replica
from megafs.journal.writer import Writer
from megafs.stores.base import ObjectStore
from megafs.tree.tree import Extent, Tree
from megafs.volume.header import Credential


class _StillReplica:
    """What the filesystem reads of a replica, when there is none."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.aliases: dict[int, int] = {}
        self.mount = 0
        self.last_number = (0, 0)  # no name is newer than a listing
        self.unsealed = 0
        self.batch = 0

    def number(self) -> NoReturn:
        raise Corrupt("a rescue mount changes nothing")

    def record(self, *_: Any) -> NoReturn:
        raise Corrupt("a rescue mount changes nothing")


class _StillStage:
    """Nothing is staged."""

    staged_bytes = 0
    last_error = None

    def has(self, _number: int) -> bool:
        return False

    def read(self, _extent: Extent) -> None:
        return None


class _StillWriter:
    """Nothing is committed, nobody is followed."""

    frozen = None
    barred = None
    before_follow: Any = None
    on_news: Any = None

    def stir(self) -> None:
        pass

    def poke(self, urgent: bool = False) -> None:
        pass


@asynccontextmanager
async def rescued(
    store: ObjectStore,
    url: str,
    credential: Credential,
    settings: Settings,
    report: Report,
    *,
    at: int | None = None,
    progress: Progress = lambda step: None,
) -> AsyncIterator[FileSystem]:
    """The filesystem of what can be found of the volume in *store*, for the block.

    report: told what is damaged of header, checkpoints and journal.  Raises as `salvage` does.
    """
    unlocked = await salvage.unlock(store, url, credential, settings, report)
    db = await offload(scratch, settings.cache_dir / "salvage", 64 << 10)
    try:
        tree = await salvage.find_tree(store, unlocked, db, at, report, progress)
        stage = cast(Stage, _StillStage())
        chunks = ChunkStore(store, stage, tree, unlocked.keyring, settings.memory_cache)
        yield FileSystem(
            cast(Replica, _StillReplica(tree)),
            chunks,
            stage,
            cast(Writer, _StillWriter()),
            unlocked.header.parameters,
            replace(settings, read_only=True, atime="noatime"),
        )
    finally:
        db.close()
