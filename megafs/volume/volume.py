"""An open volume: its parts, what is not in the store yet, and what `megafs status` shows of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import trio
from msgspec import Struct, field

from megafs import clock
from megafs.chunks.stage import Stage
from megafs.chunks.store import ChunkStore
from megafs.concurrency import Background
from megafs.config import Parameters, Settings
from megafs.crypto.volume_keys import Keyring
from megafs.errors import Busy, Corrupt, Full, Unavailable
from megafs.fs.filesystem import FileSystem
from megafs.history.earlier_trees import History
from megafs.journal import head
from megafs.journal.checkpoint import Checkpointer
from megafs.journal.heartbeat import Heartbeats
from megafs.journal.lease import Lease
from megafs.journal.replica import Replica
from megafs.journal.writer import Writer
from megafs.metrics import Registry
from megafs.stores.abilities import DiskCache
from megafs.stores.base import Health, ObjectStore
from megafs.tree.mount_number import is_kin
from megafs.volume.account_space import AccountSpace
from megafs.volume.header import Header


class Unsent(Struct, frozen=True):
    """The amount that is still on its way to the store.  error: why it does not get on, or ""."""

    staged_bytes: int
    pending_operations: int
    error: str = ""

    @property
    def done(self) -> bool:
        return not self.staged_bytes and not self.pending_operations


class Volume(Struct):
    """An open volume."""

    fs: FileSystem
    url: str
    fsid: bytes
    header: Header
    settings: Settings
    store: ObjectStore
    keyring: Keyring
    replica: Replica
    stage: Stage
    chunks: ChunkStore
    writer: Writer
    checkpointer: Checkpointer
    heartbeats: Heartbeats
    history: History
    metrics: Registry
    background: Background
    #: None if there is none.
    cache: DiskCache | None = None
    lease: Lease | None = None
    #: What the account behind the store has left; None if the store cannot tell.
    account: AccountSpace | None = None
    #: How a fork of the journal was settled when the volume was opened, for people.
    settled: list[str] = field(default_factory=list)
    offline: bool = False
    started: float = field(default_factory=clock.now)

    @property
    def params(self) -> Parameters:
        return self.header.parameters

    def progress(self) -> Unsent:
        """The amount that is not in the store yet."""
        error = self.writer.frozen or self.writer.last_error or self.stage.last_error
        waiting = self.stage.staged_bytes + self.fs.writeback.dirty
        operations = sum(info.operations for info in self.replica.pending.values())
        return Unsent(
            waiting, operations + self.replica.open_operations, str(error) if error else ""
        )

    async def drain(self, progress: Callable[[Unsent], None] | None = None) -> None:
        """Return when everything is in the store.

        progress: called about twice a second.  Raises Corrupt if the mount is frozen: what is
        staged then stays here.  A store that is away is waited for; cancel to give up.
        """
        if self.settings.read_only:
            return
        async with trio.open_nursery() as nursery:

            async def report() -> None:
                while True:
                    if progress is not None:
                        progress(self.progress())
                    await trio.sleep(0.5)

            nursery.start_soon(report)
            while True:
                if self.writer.frozen is not None or self.writer.barred is not None:
                    break
                await self.fs.writeback.flush_all()
                batch = await self.fs.writeback.durability.local()
                try:
                    await self.writer.committed(batch, 5.0)
                except (Unavailable, Full, Corrupt):
                    continue
                if not self.fs.writeback.dirty and not self.replica.open_operations:
                    break
            nursery.cancel_scope.cancel()
        if progress is not None:
            progress(self.progress())
        if self.writer.frozen is not None:
            raise Corrupt(f"not everything could be written: {self.writer.frozen}")
        if self.writer.barred is not None and not self.progress().done:
            raise Busy(f"not everything could be written: {self.writer.barred}")

    def sent_bytes(self) -> int:
        """Bytes that were put into the store since the mount."""
        return int(self.store.health().details.get("bytes_up", 0))

    @property
    def memory_in_use(self) -> int:
        """Bytes of contents in memory: opened chunks, and what was written and is not staged."""
        return self.chunks.size + self.fs.writeback.dirty

    def status(self) -> dict[str, Any]:
        """The status that `megafs status` shows; JSON-able."""
        replica = self.replica
        time_ns, host, mount = replica.last_commit()
        now = self.progress()
        store = self._store_health()
        cache = self.cache.stats() if self.cache is not None else {}
        errors = [{"time": t / 1e9, "text": text} for t, text in self.fs.errors.last]
        now_wrong = (
            self.writer.frozen,
            self.writer.last_error,
            self.stage.last_error,
            self.fs.writeback.refused,
        )
        errors.extend(
            {"time": clock.now(), "text": str(error)} for error in now_wrong if error is not None
        )
        return {
            "url": self.url,
            "volume": self.fsid.hex(),
            "sequence": replica.sequence,
            "head": replica.head.hex(),
            "head_words": head.words(replica.head),
            "head_time": time_ns / 1e9,
            "head_host": host,
            "head_is_ours": is_kin(mount, replica.mount),
            "mount_id": replica.mount,
            "host": replica.host,
            "read_only": (
                self.settings.read_only
                or self.writer.frozen is not None
                or self.writer.barred is not None
            ),
            "frozen": str(self.writer.frozen) if self.writer.frozen else self.writer.barred,
            "offline": self.offline and not self.writer.follower.last_contact,
            "last_contact": self.writer.follower.last_contact,
            "staged_bytes": now.staged_bytes,
            "pending_operations": now.pending_operations,
            "dirty_bytes": self.fs.writeback.dirty,
            "memory_cache_bytes": self.chunks.size,
            "cache_bytes": cache.get("bytes", 0),
            "cache_limit": self.settings.cache_size,
            "cache": cache,
            "used_bytes": self.fs.used_bytes,
            "quota": self.params.quota,
            "account_left": self.account.left if self.account is not None else None,
            "watching": self.writer.follower.is_watching,
            "files": self.replica.tree.files,
            "checkpoint": replica.checkpoint,
            "generation": self.header.generation,
            "parameters": {
                "chunk_size": self.params.chunk_size,
                "pack_size": self.params.pack_size,
                "inline_limit": self.params.inline_limit,
                "compression": self.params.compression,
                "deduplication": self.params.deduplication,
                "create_if_absent": self.header.create_if_absent,
            },
            "store": {**store.details, "state": store.state, "last_error": store.last_error},
            "commits": self.writer.commits,
            "races_lost": self.writer.races_lost,
            "mounts": self.mounts(),
            "conflicts": [{"time": t / 1e9, "text": text} for t, text in replica.conflicts()],
            "errors": errors,
            "pid": os.getpid(),
        }

    def _store_health(self) -> Health:
        """How the store is; "ok" it is not while what this mount has for it does not get there."""
        health = self.store.health()
        refused = self.stage.last_error or self.writer.last_error
        if refused is None or health.state != "ok":
            return health
        return Health("degraded", str(refused), health.details)

    def mounts(self) -> list[dict[str, Any]]:
        """Every mount that is known of, this one first."""
        return self.heartbeats.mounts()

    async def clear_cache(self) -> None:
        """Forget everything that is only cached, on disk and in memory."""
        self.chunks.clear()
        if self.cache is not None:
            await self.cache.clear()

    async def flush(self) -> None:
        """Bring everything done so far into the store."""
        await self.drain()
