"""Open a volume on this machine: store, keys, replica, journal, and the tasks that keep it going.

The order of opening (docs/ordering.md):

    key header      from the store, or the copy kept here if the store is away
    replica         as it was left; rebuilt from a checkpoint and the journal if damaged or gone
    catch up        commits since; the remembered head must be among them
    take up         what an earlier process of this machine had not committed
    tasks           uploads, the writer, the follower, write-back, checkpoints

The questions of the first three are under way together (stores/early_requests.py): a volume seen
before takes one round trip.  Mounting needs no network once the volume has been open here.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio
from msgspec import Struct, field

from megafs import clock
from megafs.chunks.stage import Adopter, Stage, StageLimits, staged_ids
from megafs.chunks.store import ChunkStore
from megafs.chunks.unlogged import UnloggedChunks
from megafs.concurrency import Background, offload
from megafs.config import Parameters, Settings
from megafs.crypto.volume_keys import Keyring, digest
from megafs.errors import (
    BadUsage,
    Busy,
    Corrupt,
    Exists,
    Fault,
    Missing,
    NotAVolume,
    Rollback,
    TooNew,
    Unavailable,
)
from megafs.fs.core import Below
from megafs.fs.filesystem import FileSystem
from megafs.fs.snapshot_view import SnapshotView
from megafs.history.earlier_trees import History
from megafs.journal import checkpoint, head
from megafs.journal.checkpoint import Checkpointer
from megafs.journal.commit import MAX_OBJECT, open_commit, sequence_of
from megafs.journal.database import remove_files
from megafs.journal.follower import Follower, Standing
from megafs.journal.head import HeadKeeper
from megafs.journal.heartbeat import Heartbeats
from megafs.journal.lease import Lease
from megafs.journal.reader import JournalReader, ask_for_commits, ask_for_standing
from megafs.journal.replica import Replica
from megafs.journal.writer import Writer
from megafs.metrics import Registry
from megafs.stores.abilities import DiskCache
from megafs.stores.base import ObjectStore, list_all
from megafs.stores.early_requests import EarlyRequests
from megafs.stores.stack import Traffic, cached, open_store
from megafs.tree.inode import ROOT
from megafs.tree.ops import AddPack
from megafs.volume import header as headers
from megafs.volume import header_store, isolated_unlock, kdf_process
from megafs.volume.create import write_first_commit
from megafs.volume.header import Credential, Header, Remembered, Unlocked
from megafs.volume.kdf_process import Derivation
from megafs.volume.state_directory import (
    HEADER,
    StateDirectory,
    directory_of,
    keep_durably,
    remember_fsid,
    remembered_fsid,
)

log = logging.getLogger(__name__)

#: A new checkpoint is due after so many commits, so that a new machine replays few.
CHECKPOINT_EVERY = 256
#: Leaving writes one if at least so many commits were made since the last.
CHECKPOINT_AT_END = 64


class Progress(Struct, frozen=True):
    """What is still on its way to the store.  error: why it does not get on, or ""."""

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
    offline: bool = False
    started: float = field(default_factory=clock.now)

    @property
    def params(self) -> Parameters:
        return self.header.parameters

    def progress(self) -> Progress:
        """What is not in the store yet."""
        error = self.writer.frozen or self.writer.last_error or self.stage.last_error
        waiting = self.stage.staged_bytes + self.fs.writeback.dirty
        operations = sum(info.operations for info in self.replica.pending.values())
        return Progress(waiting, operations + self.replica.unsealed, str(error) if error else "")

    async def drain(self, progress: Callable[[Progress], None] | None = None) -> None:
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
                except (Unavailable, Corrupt):
                    continue
                if not self.fs.writeback.dirty and not self.replica.unsealed:
                    break
            nursery.cancel_scope.cancel()
        if progress is not None:
            progress(self.progress())
        if self.writer.frozen is not None:
            raise Corrupt(f"not everything could be written: {self.writer.frozen}")
        if self.writer.barred is not None and not self.progress().done:
            raise Busy(f"not everything could be written: {self.writer.barred}")

    def status(self) -> dict[str, Any]:
        """What `megafs status` shows; JSON-able."""
        replica = self.replica
        time_ns, host, mount = replica.last_commit()
        now = self.progress()
        health = self.store.health()
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
            "head_is_ours": mount == replica.mount,
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
            "store": {"state": health.state, "last_error": health.last_error, **health.details},
            "commits": self.writer.commits,
            "races_lost": self.writer.races_lost,
            "mounts": self.mounts(),
            "conflicts": [{"time": t / 1e9, "text": text} for t, text in replica.conflicts()],
            "errors": errors,
            "pid": os.getpid(),
        }

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


async def unlock(
    store: ObjectStore,
    url: str,
    credential: Credential,
    settings: Settings,
    early: Derivation | None = None,
) -> tuple[Unlocked, StateDirectory, head.RememberedHead | None, bool]:
    """Open the key header, with what this machine remembers of the volume.

    early: as `deriving.begin` returned it.

    Returns also whether the store was away and the copy kept here was used.
    """
    known = remembered_fsid(settings.state_dir, url)
    offline = False
    try:
        header = await header_store.load(store)
    except Unavailable as exc:
        if known is None:
            raise
        path = directory_of(settings.state_dir, known) / HEADER
        try:
            header = headers.parse_copy(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise exc from None
        log.warning("the store is away (%s): going on with what this machine has", exc)
        offline = True
    if known is not None and known != header.fsid:
        changed = (
            f"{url} held volume {known.hex()} when it was last opened here and now holds"
            f" {header.fsid.hex()}: another volume was put in its place"
        )
        if not settings.accept_state:
            raise Rollback(f"{changed}. Mount with -o accept_state if that was you")
        log.warning("another volume is accepted, as asked: %s", changed)
    places = StateDirectory.of(settings.state_dir, settings.cache_dir, header.fsid)
    seen = head.read(places.volume)
    remembered: Remembered | None = None
    if seen is not None and not settings.accept_state:
        remembered = Remembered(
            header.fsid, seen.generation, bytes.fromhex(seen.slot) if seen.slot else None
        )
    unlocked = await isolated_unlock.unlock(header, credential, remembered, early)
    return unlocked, places, seen, offline


@asynccontextmanager
async def open_volume(
    url: str,
    credential: Credential,
    settings: Settings,
    *,
    host: str | None = None,
    store: ObjectStore | None = None,
    say: Callable[[str], None] = lambda text: None,
    early: Derivation | None = None,
) -> AsyncIterator[Volume]:
    """Open the volume at *url* for the block; its tasks end, and its files close, with it.

    host: what other machines see as this one's name.  store: instead of the one that *url* names,
    for tests; not closed here.  say: told what happens, for people.  early: what `deriving.begin`
    has begun for this; done here if it is not given.

    Leaving does not wait for the store: call `drain()` first.  What is not in it stays in the state
    directory for the next time.
    """
    if early is None:
        early = kdf_process.begin(url, credential, settings.state_dir)
    metrics = Registry()
    own = store is None
    if store is None:
        store = open_store(
            url,
            settings.store_options,
            Traffic(
                patience=settings.deadline,
                uploads=settings.uploads,
                downloads=settings.downloads,
            ),
            metrics,
        )
    ahead = EarlyRequests(store)
    try:
        _ask_ahead(ahead, url, settings)
        unlocked, places, seen, offline = await unlock(ahead, url, credential, settings, early)
        if own:
            # Where the cache lies depends on the volume that was found.
            store = cached(
                store, places.cache, settings.cache_size, settings.cache_min_free, metrics
            )
        lock = places.lock()
        try:
            async with _opened(
                url,
                store,
                ahead,
                unlocked,
                places,
                seen,
                offline,
                settings,
                host or socket.gethostname(),
                metrics,
                say,
            ) as volume:
                yield volume
        finally:
            os.close(lock)
    finally:
        ahead.drop()
        if own:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await store.aclose()


def _ask_ahead(ahead: EarlyRequests, url: str, settings: Settings) -> None:
    """Have under way what opening asks of the store, before any key is known.

    Nothing is decided here: every check is made later, in its order, on these answers.
    """
    ahead.ask_list(header_store.PREFIX)
    seen: head.RememberedHead | None = None
    fsid = remembered_fsid(settings.state_dir, url)
    if fsid is not None:
        try:
            seen = head.read(directory_of(settings.state_dir, fsid))
        except Corrupt:
            return  # opening says so
    if seen is None:

        async def explore() -> None:
            await ask_for_commits(ahead, await checkpoint.ask_for_newest(ahead))()

        ahead.spawn(explore)
        return
    ahead.ask(headers.name_of(seen.generation), headers.SIZE_LIMIT + 1)
    ask_for_standing(ahead, seen.sequence)
    ahead.spawn(ask_for_commits(ahead, seen.sequence))


@asynccontextmanager
async def _opened(
    url: str,
    store: ObjectStore,
    ahead: EarlyRequests,
    unlocked: Unlocked,
    places: StateDirectory,
    seen: head.RememberedHead | None,
    offline: bool,
    settings: Settings,
    host: str,
    metrics: Registry,
    say: Callable[[str], None],
) -> AsyncIterator[Volume]:
    header, keyring = unlocked.header, unlocked.keyring
    params = header.parameters
    cache = DiskCache.of(store)
    unlogged = UnloggedChunks()
    replica = _open_replica(places, keyring, params, host, unlogged)
    try:
        stage = Stage(
            places.packs,
            store,
            keyring,
            replica,
            unlogged,
            StageLimits.of(params, settings),
            _adopter(cache),
        )
        reader = JournalReader(store, keyring)
        heads = HeadKeeper(places.volume, header.fsid, header.generation, unlocked.slot_id.hex())
        known = None if settings.accept_state else seen
        follower = Follower(replica, reader, heads, known, interval=settings.sync_interval)
        writer = Writer(
            replica,
            store,
            keyring,
            stage,
            follower,
            interval=settings.sync_interval,
            generation=header.generation,
        )
        rebooted = places.rebooted()
        if rebooted and not replica.fresh and not replica.is_sound():
            log.warning("the replica did not survive a power cut: rebuilding it from the store")
            replica.reset()
        if not offline:
            try:
                with reader.opening(ahead):
                    try:
                        await _catch_up(replica, ahead, follower, header, seen, settings, say)
                    except Corrupt as exc:
                        if isinstance(exc, Rollback) or replica.is_sound():
                            raise
                        log.warning("the replica is damaged, rebuilding it from the store: %s", exc)
                        replica.reset()
                        reader.look_anew()
                        await _catch_up(replica, ahead, follower, header, seen, settings, say)
            except Unavailable as exc:
                if replica.sequence == 0 or replica.sequence < replica.expected:
                    raise
                log.warning("the store is away (%s): going on with what this machine has", exc)
                offline = True
        if offline and (replica.sequence == 0 or replica.sequence < replica.expected):
            raise Unavailable(
                "the store is away, and this machine does not hold the volume's tree yet"
            )
        ahead.drop()
        follower.opened(offline=offline)
        # Should others have dropped a pack that lies here and that pending operations name.
        replica.keep_packs(staged_ids(places.packs))
        taken = replica.recover(stage.restore if rebooted else None)
        if taken:
            say(f"taking up {taken} operations that were not committed")
        stage.take_up(replica.tree.has_pack)
        if rebooted:
            _drop_unsynced(replica, stage)
            places.note_boot()
        background = Background()
        history = History(
            store, keyring, replica, places.cache / "past", params.chunk_size, background
        )
        chunks = ChunkStore(
            store,
            stage,
            replica.tree,
            keyring,
            settings.memory_cache,
            earlier_pack=history.pack,
        )
        fs = FileSystem(
            Below(replica, chunks, stage, writer),
            params,
            settings,
            background,
            snapshots=SnapshotView(
                history,
                chunks,
                lambda: replica.tree.inode(ROOT),
                patience=settings.deadline,
                readahead=settings.readahead,
            ),
            dedup_key=keyring.subkey("name"),
        )
        if not settings.read_only:
            await fs.reap_orphans()
        volume = Volume(
            fs,
            url,
            header.fsid,
            header,
            settings,
            store,
            keyring,
            replica,
            stage,
            chunks,
            writer,
            Checkpointer(replica, store, keyring),
            Heartbeats(replica, store, keyring, read_only=settings.read_only),
            history,
            metrics,
            background,
            cache,
            offline=offline,
        )
        _check_head(replica, settings)
        # Never backwards: away from the store, an old copy of the replica proves nothing.
        now: head.RememberedHead | None = None
        if seen is None or settings.accept_state or replica.sequence >= seen.sequence:
            now = heads.at(replica.sequence, replica.head)
        new = None if now == seen else now
        await offload(_remember, settings.state_dir, url, places, header, new, kind="disk")
        _metrics(volume)
        if not header.create_if_absent and not settings.read_only:
            volume.lease = Lease(replica, store, keyring, writer.bar)
            await _first_lease(volume, say)
        async with background.running() as nursery:
            nursery.start_soon(follower.run)
            if not settings.read_only:
                nursery.start_soon(stage.run)
                nursery.start_soon(writer.run)
                nursery.start_soon(fs.writeback.run)
                nursery.start_soon(_checkpoints, volume)
            nursery.start_soon(volume.heartbeats.run)
            if volume.lease is not None:
                nursery.start_soon(_keep_lease, volume)
            if cache is not None:
                cache.begin()  # or the first read would wait for the index, some 30 ms
            yield volume
        stage.close()
        history.close()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await volume.heartbeats.leave()
            if volume.lease is not None:
                await volume.lease.release()
    finally:
        replica.close()


def _remember(
    state_dir: Path,
    url: str,
    places: StateDirectory,
    header: Header,
    now: head.RememberedHead | None,
) -> None:
    """Keep what the next mount goes by, durably; blocks for syncs.

    now: None if the head that is there stays: its directory is synced all the same.
    """
    remember_fsid(state_dir, url, header.fsid)
    keep_durably(places.volume / HEADER, header.encode())
    if now is not None:
        head.write(places.volume, now)


async def _first_lease(volume: Volume, say: Callable[[str], None]) -> None:
    """Try to become the one writer before the mount is usable; else begin read-only."""
    lease = volume.lease
    assert lease is not None
    say("the store cannot keep two writers apart: taking the right to write, some 10 seconds")
    try:
        if await lease.acquire(wait=False):
            return
        why = f"another mount ({lease.holder}) has the right to write to this volume"
    except Unavailable as exc:
        why = f"the right to write could not be taken: {exc}"
    volume.writer.bar(f"{why}, and the store cannot keep two writers apart: read-only until then")


async def _keep_lease(volume: Volume) -> None:
    """Keep the right to write, or try to get it, for ever."""
    lease = volume.lease
    assert lease is not None
    while True:
        try:
            if lease.held or await lease.acquire(wait=True):
                volume.writer.unbar()
                await lease.keep()
        except Fault as exc:
            log.debug("lease: %s", exc)
        await trio.sleep(5)


def _open_replica(
    places: StateDirectory,
    keyring: Keyring,
    params: Parameters,
    host: str,
    unlogged: UnloggedChunks,
) -> Replica:
    """The replica as it was left, or an empty one if it is damaged."""
    mount = places.mount_number()
    try:
        return Replica(places.volume, keyring, params.chunk_size, mount, host, unlogged)
    except Corrupt as exc:
        log.warning("the replica is damaged and will be rebuilt from the store: %s", exc)
    remove_files(places.volume)
    return Replica(places.volume, keyring, params.chunk_size, mount, host, unlogged)


async def _catch_up(
    replica: Replica,
    store: ObjectStore,
    follower: Follower,
    header: Header,
    seen: head.RememberedHead | None,
    settings: Settings,
    say: Callable[[str], None],
) -> None:
    """Bring the replica to the end of the journal, and check it against what was seen before."""
    reader = follower.reader
    before = _stand(replica) if seen is not None and replica.sequence == seen.sequence else ""
    if replica.sequence:
        standing = await follower.standing()
        if standing is Standing.GONE and not settings.accept_state:
            raise Rollback(
                f"the store does not hold commit {replica.sequence}, which this machine has seen:"
                " it was rolled back, or shows another history. Mount with -o accept_state to go on"
                f" from what it has now. Seen here: {_stand(replica)}; in the store now:"
                f" {await _end_of(store, replica.keyring)}"
            )
        if standing is not Standing.THERE:
            log.warning("commit %d is %s: reading the tree again", replica.sequence, standing.value)
            replica.reset()
    elif not replica.fresh:
        replica.reset()  # an earlier process was reading the tree and did not get to its end
    if replica.sequence == 0:
        if seen is not None:
            replica.expect(seen.sequence)
        await checkpoint.load_newest(store, replica, say)
    await follower.catch_up()
    await follower.check_gap()
    replica.expect(0)
    if seen is not None:
        try:
            follower.check_seen(seen)
        except Rollback as exc:
            seen_here = before or _named(seen.sequence, bytes.fromhex(seen.hash))
            changed = f"Seen here: {seen_here}; in the store now: {_stand(replica)}"
            if not settings.accept_state:
                raise Rollback(f"{exc}. {changed}") from exc
            log.warning("another state of the store is accepted, as asked. %s", changed)
    if reader.newest_generation > header.generation and not settings.accept_state:
        # Changed while we were reading, or rolled back.
        now = await header_store.load(store)
        if now.generation < reader.newest_generation:
            raise Rollback(
                f"the store serves generation {now.generation} of the keys, but the journal was"
                f" written with generation {reader.newest_generation}: the keys were rolled back"
            )
    _check_head(replica, settings)
    if replica.sequence == 0:
        if settings.read_only:
            raise NotAVolume(f"{store.url}: the volume has no root directory yet")
        say("the volume has no root directory yet: making it")
        await write_first_commit(store, replica.keyring, header.generation)
        reader.look_anew()
        await follower.catch_up()


def _named(sequence: int, newest: bytes) -> str:
    return f"commit {sequence} ({head.words(newest)})"


def _stand(replica: Replica) -> str:
    """The commit that the replica stands on, for people: number, words, time and host."""
    time_ns, host, _ = replica.last_commit()
    return f"{_named(replica.sequence, replica.head)}, written {_moment(time_ns)} by {host}"


async def _end_of(store: ObjectStore, keyring: Keyring) -> str:
    """The last commit that the store lists, for people; it was not checked against those before."""
    last = ""
    async for page in list_all(store, "commits/"):
        for entry in page.entries:
            last = entry.name
    if not last:
        return "no commit at all"
    try:
        data = await store.get(last, 0, MAX_OBJECT + 1)
        commit = open_commit(keyring, sequence_of(last), data)
    except (Corrupt, TooNew, Missing):
        return f"{last}, which cannot be read"
    named = _named(sequence_of(last), digest(data))
    return f"{named}, written {_moment(commit.time_ns)} by {commit.host}"


def _moment(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _check_head(replica: Replica, settings: Settings) -> None:
    """Refuse a head other than the one the user expects."""
    wanted = settings.expect_head
    if wanted is None:
        return
    number, _, digest = wanted.rpartition(":")
    if number:
        if not number.isdecimal():
            raise BadUsage(f"expect_head={wanted}: give HASH or SEQUENCE:HASH")
        known = replica.hash_at(int(number))
    else:
        known = replica.head
    digest = digest.lower()
    words = digest.replace("-", " ")
    if known is None or not (
        (len(digest) >= 16 and known.hex().startswith(digest)) or head.words(known) == words
    ):
        raise Rollback(
            f"the store's head is commit {replica.sequence}, {replica.head.hex()[:16]}"
            f" ({head.words(replica.head)}), not the expected {wanted}"
        )


def _drop_unsynced(replica: Replica, stage: Stage) -> None:
    """Cut off what a power cut left half: operations whose staged bytes are not whole.

    Nothing from the first such operation on was ever promised to anybody.  What comes before it in
    its batch may have been: a batch stays open over many closes.
    """
    begun: set[int] = set()
    for batch in sorted(replica.pending):
        for number, op in enumerate(replica.operations(batch)):
            if isinstance(op, AddPack):
                begun.add(op.pack)
            for extent in op.laid():
                # A pack that pending batches began and name stays here until one is committed.
                if not extent.pack or stage.holds(extent, must_be_here=extent.pack in begun):
                    continue
                stage.sync()  # the log is written anew, without the chunks that lay in it
                dropped = replica.drop_pending_from(batch, number)
                log.error(
                    "a power cut took bytes that were not synced yet: the last %d operations are"
                    " dropped",
                    dropped,
                )
                return


def _adopter(cache: DiskCache | None) -> Adopter | None:
    if cache is None:
        return None

    async def adopt(name: str, path: Path, size: int) -> None:
        await cache.remember(name, 0, path)

    return adopt


async def _checkpoints(volume: Volume) -> None:
    """Write a checkpoint whenever one is due, for ever."""
    replica = volume.replica
    while True:
        await trio.sleep(clock.uniform(5, 15))
        if volume.writer.frozen is not None:
            continue  # what this mount knows is not what the store shows
        if replica.sequence - replica.checkpoint >= CHECKPOINT_EVERY:
            await write_checkpoint(volume)


async def write_checkpoint(volume: Volume) -> int | None:
    """Write a checkpoint now, unless another mount just did; errors are logged."""
    replica = volume.replica
    try:
        there = await checkpoint.newest(volume.store)
        if (
            there
            and there[0] > replica.checkpoint
            and (replica.sequence - there[0] < CHECKPOINT_EVERY // 2)
        ):
            return there[0]
        return await volume.checkpointer.write()
    except Exists:
        return None
    except (Fault, OSError) as exc:
        log.warning("no checkpoint was written: %s", exc)
        return None


def _metrics(volume: Volume) -> None:
    """The gauges of a mount, for Prometheus."""
    gauges: dict[str, tuple[str, Callable[[], float]]] = {
        "megafs_sequence": ("Last commit applied.", lambda: volume.replica.sequence),
        "megafs_staged_bytes": (
            "Sealed contents that the store does not have yet.",
            lambda: volume.stage.staged_bytes,
        ),
        "megafs_dirty_bytes": (
            "Contents in memory that are not staged yet.",
            lambda: volume.fs.writeback.dirty,
        ),
        "megafs_pending_operations": (
            "Operations that are not in the journal yet.",
            lambda: volume.progress().pending_operations,
        ),
        "megafs_memory_cache_bytes": ("Opened chunks in memory.", lambda: volume.chunks.size),
        "megafs_used_bytes": ("File contents in the volume.", lambda: volume.fs.used_bytes),
        "megafs_files": ("Inodes in the volume.", lambda: volume.replica.tree.files),
        "megafs_commits": ("Commits made by this mount.", lambda: volume.writer.commits),
        "megafs_races_lost": ("Commit races lost.", lambda: volume.writer.races_lost),
        "megafs_frozen": (
            "1 if the mount is read-only because the store misbehaved.",
            lambda: float(volume.writer.frozen is not None),
        ),
    }
    for name, (text, source) in gauges.items():
        volume.metrics.gauge(name, text, source=source)
