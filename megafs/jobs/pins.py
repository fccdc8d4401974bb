"""Pins: subtrees whose contents are kept in the disk cache, so that they read without the store.

What is pinned is remembered as inode numbers in the state directory (`pins`, JSON), follows
renames, and grows with what is put below.  The packs that hold pinned chunks are never evicted; new
contents are fetched within about half a minute, in the background.  A pinned subtree must fit into
the cache.
"""

from __future__ import annotations

import json
import logging
import stat
from typing import Final

import msgspec
import trio

from megafs.chunks import ranges
from megafs.chunks.codec import pack_name
from megafs.chunks.ranges import SealedRange
from megafs.concurrency import offload
from megafs.errors import BadUsage, Fault, Refused, StoreError
from megafs.jobs.messages import Nothing, PinArgs, PinList, PinResult, PinRow, UnpinResult
from megafs.private_files import read_private, set_aside
from megafs.progress import OnProgress, Progress, ignore
from megafs.stores.abilities import DiskCache
from megafs.stores.limit import background
from megafs.tree import paths, queries_packs
from megafs.tree.tree import Extent
from megafs.volume.state_directory import write_durably
from megafs.volume.volume import Volume

log = logging.getLogger(__name__)

INTERVAL: Final = 30.0
#: Chunks of one pack that lie this close are fetched in one get, up to so many bytes.
_GAP: Final = 128 << 10
_RANGE: Final = 4 << 20


def pinned(volume: Volume) -> list[int]:
    """The inodes that are pinned here."""
    path = volume.replica.directory / "pins"
    try:
        return msgspec.json.decode(read_private(path), type=list[int])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError) as exc:
        try:
            log.warning(
                "%s cannot be read (%s), so nothing is pinned: pin again; moved to %s",
                path,
                exc,
                set_aside(path),
            )
        except OSError as why:
            log.warning("%s cannot be read (%s), nor moved away (%s)", path, exc, why)
        return []


def _remember(volume: Volume, inos: list[int]) -> None:
    write_durably(volume.replica.directory / "pins", json.dumps(sorted(set(inos))).encode())


def _cache(volume: Volume) -> DiskCache:
    if volume.cache is None:
        raise BadUsage("this mount has no disk cache, so nothing can be kept in it")
    return volume.cache


async def _wanted(volume: Volume, inos: list[int]) -> list[SealedRange]:
    """Every chunk of these subtrees, looked up beside the event loop."""
    volume.replica.close_batch()
    reader = volume.replica.reader()
    found: set[SealedRange] = set()
    try:
        for ino in inos:
            below = await offload(queries_packs.chunks_below, reader, ino, kind="disk")
            found.update(SealedRange(*row) for row in below)
    finally:
        reader.close()
    return sorted(found)


async def _fetch(
    volume: Volume, chunks: list[SealedRange], on_progress: OnProgress
) -> tuple[int, int]:
    """Bring chunks into the cache; return (bytes there, bytes that could not be had)."""
    cache = _cache(volume)
    tree = volume.replica.tree
    missing = []
    for pack, offset, sealed in chunks:
        extent = Extent(0, 0, pack, offset, sealed, 0, 0, None, None)
        name = pack_name(tree.pack(pack).name)
        if volume.stage.read(extent) is None and not cache.cached(name, offset, sealed):
            missing.append(SealedRange(pack, offset, sealed))
    total = sum(sealed for _, _, sealed in chunks)
    absent = sum(sealed for _, _, sealed in missing)
    wanted = [
        (run[0].pack, *ranges.span(run)) for run in ranges.runs(missing, gap=_GAP, longest=_RANGE)
    ]
    asked = sum(length for _, _, length in wanted)
    done = failed = 0
    send, receive = trio.open_memory_channel[tuple[int, int, int]](0)

    async def worker(jobs: trio.MemoryReceiveChannel[tuple[int, int, int]]) -> None:
        nonlocal done, failed
        async with jobs:
            async for pack, start, length in jobs:
                try:
                    await cache.get(pack_name(tree.pack(pack).name), start, length)
                except StoreError as exc:
                    failed += length
                    log.info("a pinned range cannot be had now: %s", exc)
                done += length
                on_progress(Progress(done, asked, "fetching"))

    with background():
        async with trio.open_nursery() as nursery:
            async with receive:
                for _ in range(4):
                    nursery.start_soon(worker, receive.clone())
            async with send:
                for item in wanted:
                    await send.send(item)
                    # The writer of the cache takes only so much at a time.
                    await cache.written()
    return total - min(absent, failed), failed


async def pin(volume: Volume, args: PinArgs, on_progress: OnProgress) -> PinResult:
    """Keep the subtree at a path in the cache."""
    ino = _ino(volume, args.path)
    cache = _cache(volume)
    inos = sorted({*pinned(volume), ino})
    chunks = await _wanted(volume, inos)
    size = sum(sealed for _, _, sealed in chunks)
    if size > volume.settings.cache_size * 9 // 10:
        raise BadUsage(
            f"everything pinned would be {size >> 20} MiB, and the cache holds"
            f" {volume.settings.cache_size >> 20} MiB: mount with a larger cache_size, or unpin"
        )
    _remember(volume, inos)
    _mark(volume, cache, chunks)
    mine = await _wanted(volume, [ino])
    kept, failed = await _fetch(volume, mine, on_progress)
    text = f"{args.path} is pinned: {kept >> 10} KiB can be read without the store"
    if failed:
        text += f"; {failed >> 10} KiB could not be fetched now and will be later"
    return PinResult(0, text, kept, failed)


async def unpin(volume: Volume, args: PinArgs, on_progress: OnProgress) -> UnpinResult:
    """Let the subtree at a path be evicted again."""
    ino = _ino(volume, args.path)
    inos = pinned(volume)
    if ino not in inos:
        raise BadUsage(f"{args.path} is not pinned itself (megafs pin --list shows what is)")
    left = [other for other in inos if other != ino]
    _remember(volume, left)
    tree = volume.replica.tree
    gone = {pack_name(tree.pack(pack).name) for pack, _, _ in await _wanted(volume, [ino])}
    kept = {pack_name(tree.pack(pack).name) for pack, _, _ in await _wanted(volume, left)}
    _cache(volume).unpin(gone - kept)
    return UnpinResult(0, f"{args.path} is no longer pinned")


async def list_pins(volume: Volume, args: Nothing, on_progress: OnProgress) -> PinList:
    """The pinned subtrees, and how much of each is in the cache."""
    cache = _cache(volume)
    tree = volume.replica.tree
    rows = []
    for ino in pinned(volume):
        path = tree.path(ino)
        if path is None:
            continue
        chunks = await _wanted(volume, [ino])
        there = sum(
            sealed
            for pack, offset, sealed in chunks
            if cache.cached(pack_name(tree.pack(pack).name), offset, sealed)
        )
        rows.append(
            PinRow(
                paths.show(path),
                sum(sealed for _, _, sealed in chunks),
                there,
                stat.S_ISDIR(tree.inode(ino).mode),
                paths.exact(path),
            )
        )
    return PinList(0, rows)


def _ino(volume: Volume, path: str) -> int:
    try:
        return volume.replica.tree.walk(path.encode("utf-8", "surrogateescape"))
    except Refused:
        raise BadUsage(f"{path}: there is no such file or directory in the volume") from None


async def protect(volume: Volume) -> None:
    """Let nothing that is pinned be evicted while the volume is open; fetch nothing.

    For commands that open a volume for a while: what they read must not push out what is pinned.
    """
    inos = pinned(volume)
    if volume.cache is None or not inos:
        return
    try:
        _mark(volume, volume.cache, await _wanted(volume, inos))
    except Fault as exc:
        log.info("what is pinned is not protected now: %s", exc)


def _mark(volume: Volume, cache: DiskCache, chunks: list[SealedRange]) -> None:
    """Never evict the packs of these chunks."""
    tree = volume.replica.tree
    cache.pin({pack_name(tree.pack(pack).name) for pack, _, _ in chunks})


async def keep(volume: Volume) -> None:
    """Keep what is pinned in the cache as it changes, for ever."""
    if volume.cache is None:
        return
    seen = -1
    while True:
        inos = pinned(volume)
        if inos and volume.replica.sequence != seen:
            try:
                seen = volume.replica.sequence
                chunks = await _wanted(volume, inos)
                _mark(volume, volume.cache, chunks)
                _, failed = await _fetch(volume, chunks, ignore)
                if failed:
                    seen = -1
            except Fault as exc:
                seen = -1
                log.info("what is pinned could not all be fetched: %s", exc)
        await trio.sleep(INTERVAL)
