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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio
from msgspec import Struct

from megafs.chunks.pack_size import PackSize
from megafs.chunks.stage import Adopter, Stage, StageLimits
from megafs.chunks.store import ChunkStore
from megafs.chunks.unlogged import UnloggedChunks
from megafs.concurrency import Background, offload
from megafs.config import MIB, Settings
from megafs.errors import BadUsage, Fault, TooNew
from megafs.fs.core import Below
from megafs.fs.filesystem import FileSystem
from megafs.fs.snapshot_view import SnapshotView
from megafs.history.earlier_trees import History
from megafs.journal import head
from megafs.journal.batches import COMMIT_SIZE
from megafs.journal.checkpoint import PART_SIZE, Checkpointer
from megafs.journal.follower import Follower, RightToWrite
from megafs.journal.head import HeadKeeper, OpenedHeader
from megafs.journal.heartbeat import Heartbeats, Predecessor
from megafs.journal.kept_commits import KeptCommits
from megafs.journal.lease import Lease, Onlooker
from megafs.journal.reader import JournalReader
from megafs.journal.replica import Replica
from megafs.journal.writer import Writer
from megafs.metrics import Registry
from megafs.stores.abilities import (
    DiskCache,
    LimitedBodies,
    SpaceLeft,
    UnconditionalPuts,
    Watch,
)
from megafs.stores.base import ObjectStore
from megafs.stores.early_requests import EarlyRequests
from megafs.stores.retry import CONTACT, CONTACT_HANG
from megafs.stores.stack import Traffic, cached, open_store
from megafs.supervisor import keep_running
from megafs.tree.inode import ROOT
from megafs.volume import kdf_process, upkeep
from megafs.volume.account_space import AccountSpace
from megafs.volume.catch_up import Expected, catch_up, check_head
from megafs.volume.fork import ForkSettler, SettledFork
from megafs.volume.header import Credential, Header, check_epoch
from megafs.volume.kdf_process import Derivation
from megafs.volume.recovery import open_replica, recover
from megafs.volume.state_directory import (
    HEADER,
    STORE_LIMITS,
    Process,
    StateDirectory,
    keep_durably,
    remember_fsid,
    remembered_fsid,
)
from megafs.volume.unlock import UnlockedVolume, ask_early, unlock
from megafs.volume.volume import Volume

log = logging.getLogger(__name__)

#: Called with each step, for people.
Say = Callable[[str], None]

#: Seconds that leaving a volume may take to say good-bye to the store.
_LEAVE_WITHIN = 5
#: Seconds for the first connection, on a machine that knows the volume: then it goes on without.
_CONTACT_IF_KNOWN = 1.0


class _Opening(Struct, frozen=True):
    """The inputs to opening a volume, once its keys are known.

    store: with its cache, if it has one.  early: the same store, with requests that are under way
    already.  host: what other machines see as this one's name.
    own_store: whether it was opened here, by its URL.
    """

    url: str
    store: ObjectStore
    early: EarlyRequests
    found: UnlockedVolume
    settings: Settings
    host: str
    metrics: Registry
    say: Say
    own_store: bool


class _Journal(Struct, frozen=True):
    """The parts that read and write the journal, and the packs that it names."""

    replica: Replica
    stage: Stage
    follower: Follower
    writer: Writer
    heads: HeadKeeper
    pack_size: PackSize
    lease: Lease | None
    kept: KeptCommits


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
    for tests; not closed here.  say: called with each step, for people.  early: what
    `kdf_process.begin` has begun for this; begun here if it is not given.

    Leaving does not wait for the store: call `drain()` first.  What is not in it stays in the state
    directory for the next time.
    """
    if early is None:
        early = kdf_process.begin(url, credential, settings.state_dir)
    metrics = Registry()
    own = store is None
    if store is None:
        store = open_store(url, settings.store_options, _traffic(url, settings), metrics)
    requests = EarlyRequests(store)
    try:
        ask_early(requests, url, settings)
        found = await unlock(requests, url, credential, settings, early)
        if own:
            # Where the cache lies depends on the volume that was found.
            store = cached(
                store, found.directory.cache, settings.cache_size, settings.cache_min_free, metrics
            )
        lock = found.directory.lock()
        try:
            found.directory.inspect()
            opening = _Opening(
                url,
                store,
                requests,
                found,
                settings,
                host or socket.gethostname(),
                metrics,
                say,
                own,
            )
            async with _opened(opening) as volume:
                yield volume
        finally:
            os.close(lock)
    finally:
        requests.drop()
        if own:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _LEAVE_WITHIN):
                await store.aclose()


def _traffic(url: str, settings: Settings) -> Traffic:
    """How the store is used; a volume that this machine knows is opened without it, too."""
    known = remembered_fsid(settings.state_dir, url) is not None
    return Traffic(
        patience=settings.deadline,
        uploads=settings.uploads,
        downloads=settings.downloads,
        contact=_CONTACT_IF_KNOWN if known else CONTACT,
        hang=_CONTACT_IF_KNOWN if known else CONTACT_HANG,
    )


@asynccontextmanager
async def _opened(opening: _Opening) -> AsyncIterator[Volume]:
    """Open the volume step by step; its tasks run for the block."""
    found, settings = opening.found, opening.settings
    keyring, header = found.unlocked.keyring, found.unlocked.header
    unlogged = UnloggedChunks()
    process = found.directory.begin()
    pack_size = _pack_size(opening)
    replica = open_replica(
        found.directory,
        keyring,
        header.parameters.chunk_size,
        opening.host,
        unlogged,
        process,
        min(COMMIT_SIZE, pack_size.others),
    )
    try:
        if not settings.accept_state:
            check_epoch(header, replica.epoch, "this machine's copy of the tree is of")
        journal = _wire_journal(opening, process, replica, unlogged, pack_size)
        rebooted = found.directory.rebooted()
        if rebooted and not replica.fresh and not replica.is_sound():
            log.warning("the replica did not survive a power cut: rebuilding it from the store")
            replica.reset()
        settled = await _settle(opening, journal)
        expected = Expected(
            found.last_head,
            header.generation,
            settings.expect_head,
            accept_any=settings.accept_state or settled is not None,
            read_only=settings.read_only,
            began_epoch=_rotating(found) == header.epoch,
        )
        offline = await catch_up(
            replica, journal.follower, opening.early, expected, opening.say, offline=found.offline
        )
        taken = recover(
            replica,
            journal.stage,
            found.directory,
            rebooted=rebooted,
            process=process,
        )
        if settled is not None:
            await _bring_back(journal, settled)
        if taken:
            opening.say(f"taking up {taken} operations that were not committed")
        if process.moved:
            log.warning(
                "%s is at another place than when it was used last: it was moved or copied. What"
                " waits in it is brought to the store, unless another copy of it has done so",
                found.directory.volume,
            )
        volume = _wire_volume(opening, journal, process, offline=offline)
        if settled is not None:
            volume.settled = settled.notes
        if process.is_dead and not settings.read_only:
            await volume.fs.reap_orphans(process.predecessor)
        check_head(replica, settings.expect_head)
        await _remember(opening, journal)
        upkeep.register_gauges(volume)
        if volume.lease is not None:
            await upkeep.take_lease(volume, volume.lease, opening.say)
        async with volume.background.running() as nursery:
            _start_tasks(volume, journal, process, nursery)
            if opening.own_store and not settings.read_only and not journal.pack_size.proved:
                nursery.start_soon(
                    keep_running, "proving the store", upkeep.prove_store, volume, journal.pack_size
                )
            yield volume
        await _leave(volume)
    finally:
        replica.close()


def _wire_journal(
    opening: _Opening,
    process: Process,
    replica: Replica,
    unlogged: UnloggedChunks,
    pack_size: PackSize,
) -> _Journal:
    """Make what reads and writes the journal."""
    found, settings, store = opening.found, opening.settings, opening.store
    header, keyring = found.unlocked.header, found.unlocked.keyring
    stage = Stage(
        found.directory.packs,
        store,
        keyring,
        replica,
        unlogged,
        StageLimits.of(
            header.parameters, settings, pack_size, may_overwrite=not header.create_if_absent
        ),
        _adopter(DiskCache.of(store)),
    )
    opened = OpenedHeader(
        header.fsid.hex(),
        header.generation,
        found.unlocked.slot_id.hex(),
        header.epoch,
        found.unlocked.digest.hex(),
    )
    heads = HeadKeeper(found.directory.volume, opened, _rotating(found))
    known = None if settings.accept_state else found.last_head
    lease: Lease | None = None
    kept = KeptCommits(found.directory.volume)
    if not header.create_if_absent:
        unconditional = UnconditionalPuts.of(store)
        if unconditional is not None:
            unconditional.do_without_conditions()
        if not settings.read_only:
            dead = process.predecessor if process.is_dead else 0
            lease = Lease(replica, store, keyring, kept, dead)
    right: RightToWrite | None = lease
    if lease is None and not header.create_if_absent:
        right = Onlooker()
    follower = Follower(
        replica,
        JournalReader(store, keyring),
        heads,
        known,
        interval=settings.sync_interval,
        right=right,
    )
    writer = Writer(
        replica,
        store,
        keyring,
        stage,
        follower,
        interval=settings.sync_interval,
        generation=header.generation,
        fence=lease,
    )
    return _Journal(replica, stage, follower, writer, heads, pack_size, lease, kept)


async def _settle(opening: _Opening, journal: _Journal) -> SettledFork | None:
    """Settle a fork of the journal, if that is asked for; put back what was written over."""
    lease = journal.lease
    if lease is None or opening.found.offline:
        return None
    if opening.settings.settle_forks:
        settler = ForkSettler(
            opening.store,
            journal.replica,
            opening.found.unlocked.keyring,
            lease,
            journal.kept,
            opening.say,
        )
        settled = await settler.settle()
        if settled is not None:
            opening.early.drop()  # what was asked for is as it was before
        return settled
    try:
        if await lease.mend():
            opening.early.drop()
    except (Fault, TooNew) as exc:
        log.debug("what this machine committed is not compared: %s", exc)
    return None


async def _bring_back(journal: _Journal, settled: SettledFork) -> None:
    """Do again what the other side of a fork had changed; its objects are not needed then."""
    if settled.changes is not None:
        journal.replica.bring_back(settled.changes)
        await offload(journal.replica.oplog.sync, kind="disk")
    await offload(journal.kept.forget_settled, settled.lost, kind="disk")


def _rotating(found: UnlockedVolume) -> int:
    """The epoch that a rotation on this machine began, and of which no commit was seen; or 0."""
    return found.last_head.rotating if found.last_head is not None else 0


def _pack_size(opening: _Opening) -> PackSize:
    """How large packs are made; small ones while this machine does not know what the store takes.

    Who brings a store along (tests) knows it.
    """
    params, wanted = opening.found.unlocked.header.parameters, opening.settings.pack_size
    if wanted is not None and not params.chunk_size <= wanted <= 64 * MIB:
        raise BadUsage(
            f"pack_size={wanted}: from one chunk of this volume ({params.chunk_size >> 10}K) to 64M"
        )
    made = PackSize(
        wanted or params.pack_size,
        params.chunk_size,
        opening.found.directory.volume / STORE_LIMITS,
        is_bound=wanted is not None,
    )
    if opening.own_store and not made.known and LimitedBodies.of(opening.store) is not None:
        made.be_cautious()
    return made


def _wire_volume(
    opening: _Opening, journal: _Journal, process: Process, *, offline: bool
) -> Volume:
    """Make the filesystem over the journal, the past beside it, and the volume around them."""
    found, settings, store = opening.found, opening.settings, opening.store
    header, keyring = found.unlocked.header, found.unlocked.keyring
    replica, stage, writer = journal.replica, journal.stage, journal.writer
    background = Background()
    history = History(
        store,
        keyring,
        replica,
        found.directory.cache / "past",
        header.parameters.chunk_size,
        background,
    )
    chunks = ChunkStore(
        store, stage, replica.tree, keyring, settings.memory_cache, earlier_pack=history.pack
    )
    fs = FileSystem(
        Below(replica, chunks, stage, writer),
        header.parameters,
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
    return Volume(
        fs=fs,
        url=opening.url,
        fsid=header.fsid,
        header=header,
        settings=settings,
        store=store,
        keyring=keyring,
        replica=replica,
        stage=stage,
        chunks=chunks,
        writer=writer,
        checkpointer=Checkpointer(
            replica, store, keyring, min(PART_SIZE, journal.pack_size.others)
        ),
        heartbeats=Heartbeats(
            replica,
            store,
            keyring,
            read_only=settings.read_only,
            predecessor=Predecessor(process.predecessor, process.is_dead, process.moved),
        ),
        history=history,
        metrics=opening.metrics,
        background=background,
        cache=DiskCache.of(store),
        lease=journal.lease,
        offline=offline,
    )


def _start_tasks(
    volume: Volume, journal: _Journal, process: Process, nursery: trio.Nursery
) -> None:
    """Start everything that goes on while the volume is open.

    None of it may end the mount: programs would write into the bare directory below.
    """

    def start(
        what: str,
        work: Callable[..., Awaitable[object]],
        *args: object,
        give_up: Callable[[Fault], None] | None = None,
    ) -> None:
        nursery.start_soon(partial(keep_running, what, work, *args, give_up=give_up))

    freeze = journal.follower.freeze
    start("following the journal", journal.follower.run, give_up=freeze)
    if (watch := Watch.of(volume.store)) is not None:
        start("watching the store", journal.follower.watch, watch)
    if (account := SpaceLeft.of(volume.store)) is not None:
        space = AccountSpace(account, volume.sent_bytes)
        volume.account = space
        volume.fs.core.account_left = lambda: space.left
        start("asking for the room in the account", space.run)
    if not volume.settings.read_only:
        start("uploading packs", volume.stage.run)
        start("committing", volume.writer.run, give_up=freeze)
        start("writing back", volume.fs.writeback.run)
        start("writing checkpoints", upkeep.keep_checkpoints, volume)
        if not process.is_dead:
            start("removing orphans", upkeep.reap_after, volume, process.predecessor)
    start("checking the replica", upkeep.check_replica, volume)
    start("the heartbeat", volume.heartbeats.run)
    if volume.lease is not None:
        start("keeping the lease", upkeep.keep_lease, volume, volume.lease)
    if volume.cache is not None:
        volume.cache.begin()  # or the first read would wait for the index, some 30 ms


async def _leave(volume: Volume) -> None:
    """Close what holds files, and tell other mounts that this one is gone."""
    volume.stage.close()
    volume.history.close()
    with trio.CancelScope(shield=True, deadline=trio.current_time() + _LEAVE_WITHIN):
        await volume.heartbeats.leave()
        if volume.lease is not None:
            await volume.lease.release()


async def _remember(opening: _Opening, journal: _Journal) -> None:
    """Keep on this machine what the next mount goes by."""
    found, replica = opening.found, journal.replica
    last = found.last_head
    now: head.RememberedHead | None = None
    # Never backwards: away from the store, an old copy of the replica proves nothing.
    accepted = opening.settings.accept_state or opening.settings.settle_forks
    if last is None or accepted or replica.sequence >= last.sequence:
        now = journal.heads.at(replica.sequence, replica.head, replica.epoch)
    await offload(
        _write_remembered,
        opening.settings.state_dir,
        opening.url,
        found.directory,
        found.unlocked.header,
        None if now == last else now,
        kind="disk",
    )


def _write_remembered(
    state_dir: Path,
    url: str,
    directory: StateDirectory,
    header: Header,
    now: head.RememberedHead | None,
) -> None:
    """Write the volume's id, its header and its head, durably; blocks for syncs.

    now: None if the head that is there stays: its directory is synced all the same.
    """
    remember_fsid(state_dir, url, header.fsid)
    directory.keep_reserve()
    keep_durably(directory.volume / HEADER, header.encode())
    if now is not None:
        head.write(directory.volume, now)


def _adopter(cache: DiskCache | None) -> Adopter | None:
    """Return the function that gives an uploaded pack to the cache; None without a cache."""
    if cache is None:
        return None

    async def adopt(name: str, path: Path, size: int) -> None:
        await cache.remember(name, 0, path)

    return adopt
