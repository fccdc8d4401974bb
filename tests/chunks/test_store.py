"""Reading and writing chunks through the stage and a store: once, verified, in few requests."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from megafs.chunks import codec as chunk_format
from megafs.chunks.pack_size import PackSize
from megafs.chunks.stage import Adopter, Stage, StageLimits
from megafs.chunks.store import ChunkStore
from megafs.chunks.unlogged import UnloggedChunks
from megafs.concurrency import in_place
from megafs.crypto.volume_keys import FSID_SIZE, Keyring
from megafs.errors import Corrupt, Full, Missing, Unavailable
from megafs.stores.abilities import LineAdvice
from megafs.stores.disk_cache.cached_store import DiskCached
from megafs.stores.memory import MemoryStore
from megafs.stores.wrapper import Wrapper
from megafs.tree.schema import INDEXES, REPLICATED
from megafs.tree.tree import Extent, Tree
from tests.fakes.faulty import Faulty, before, hang, slow

KEYRING = Keyring(bytes(FSID_SIZE), {1: bytes(32)}, 1)
CHUNK = 16384


class Advised(Wrapper, LineAdvice):
    """*store*, which has use for as many transfers at once as the test says."""

    uploads = downloads = 0

    def latency_bytes(self) -> int:
        return 0

    def useful_uploads(self) -> int:
        return self.uploads

    def useful_downloads(self) -> int:
        return self.downloads


@dataclass
class Parts:
    memory: MemoryStore
    faulty: Faulty
    advice: Advised
    stage: Stage
    chunks: ChunkStore
    tree: Tree
    unlogged: UnloggedChunks

    @property
    def packs(self) -> list[str]:
        return [name for name in self.memory.objects if name.startswith("packs/")]

    def gets(self) -> int:
        return self.faulty.count("get")

    async def put(self, pieces: list[bytes]) -> list[Extent]:
        """Seal pieces into packs and have them uploaded and nowhere else."""
        extents = await self.stage.put(list(pieces))
        self.stage.cut()
        while self.stage.blocked:
            await self.stage.wait_change()
        self.stage.release(())
        return extents


class Registry:
    """Numbers packs from 1 on and writes them into a tree."""

    def __init__(self, tree: Tree) -> None:
        self._numbers = itertools.count(1)
        self.announce_pack = tree.add_pack
        self.chunks_of = lambda number: tree.extents_of_pack(number, 0, 1 << 62)

    def number(self) -> int:
        return next(self._numbers)


@asynccontextmanager
async def parts(
    place: Path,
    *,
    cache: bool = False,
    memory_cache: int = 1 << 20,
    adopt: Adopter | None = None,
    **settings: Any,
) -> AsyncIterator[Parts]:
    memory = MemoryStore()
    faulty = Faulty(memory)
    advice = Advised(faulty)
    below = DiskCached(advice, place / "cache", size_limit=1 << 24, min_free=0) if cache else advice
    db = apsw.Connection(":memory:")
    for table in REPLICATED:
        db.execute(table.sql)
    for sql in INDEXES:
        db.execute(sql)
    tree = Tree(db, CHUNK)
    (place / "packs").mkdir(exist_ok=True)
    chosen: dict[str, Any] = {
        "pack_size": 64 * CHUNK,
        "staged": 1 << 30,
        "min_free": 0,
        "uploads": 2,
        "compress": True,
    }
    chosen |= settings
    chosen["pack_size"] = PackSize(chosen["pack_size"], CHUNK)
    unlogged = UnloggedChunks()
    stage = Stage(
        place / "packs",
        below,
        KEYRING,
        Registry(tree),
        unlogged,
        StageLimits(**chosen),
        adopt,
    )
    chunks = ChunkStore(below, stage, tree, KEYRING, memory_cache)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        yield Parts(memory, faulty, advice, stage, chunks, tree, unlogged)
        nursery.cancel_scope.cancel()
    stage.close()
    if cache:
        await below.aclose()


def pieces(count: int, size: int = CHUNK) -> list[bytes]:
    return [os.urandom(size) for _ in range(count)]


async def read(p: Parts, extents: list[Extent]) -> list[bytes]:
    return [bytes(data) for data in await p.chunks.read(extents)]


# ---- reading ----------------------------------------------------------------------------------


async def test_a_staged_chunk_is_read_without_the_store(tmp_path: Path) -> None:
    async with parts(tmp_path) as p:
        data = pieces(3)
        extents = await p.stage.put(list(data))
        assert await read(p, extents) == data
        assert p.gets() == 0 and not p.packs


async def test_neighbours_come_in_one_request(tmp_path: Path) -> None:
    async with parts(tmp_path) as p:
        data = pieces(10)
        extents = await p.put(data)
        assert await read(p, extents) == data
        assert p.gets() == 1
        assert await read(p, extents[3:5]) == data[3:5]
        assert p.gets() == 1  # they are open


async def test_a_small_chunk_brings_the_small_ones_around_it(tmp_path: Path) -> None:
    async with parts(tmp_path) as p:
        data = pieces(20, 2000)
        data[10] = os.urandom(40_000)
        extents = await p.put(data)
        for ino, extent in enumerate(extents, 10):
            p.tree.db.execute("INSERT INTO extents VALUES(?,?,?,?,?,?,?,?,?,?)", (ino, *extent))
        # Two threads seal, so chunks do not lie in the order they were given in.
        small = sorted((n for n in range(20) if n != 10), key=lambda n: extents[n].offset)
        before = [n for n in small if extents[n].offset < extents[10].offset]
        run = max(before, small[len(before) :], key=len)
        assert await read(p, [extents[run[len(run) // 2]]]) == [data[run[len(run) // 2]]]
        for n in run:
            assert await read(p, [extents[n]]) == [data[n]]
        assert p.gets() == 1
        await read(p, [extents[10]])
        assert p.gets() == 2, "a large one is fetched when it is wanted"


async def test_chunks_far_apart_come_in_requests_of_their_own(tmp_path: Path) -> None:
    async with parts(tmp_path) as p:
        data = pieces(30)
        extents = await p.put(data)
        # Two threads seal, so chunks do not lie in the order they were given in.
        first, *_, last = sorted(range(30), key=lambda n: extents[n].offset)
        assert await read(p, [extents[first], extents[last]]) == [data[first], data[last]]
        assert p.gets() == 2


async def test_a_chunk_wanted_twice_at_once_is_given_twice(tmp_path: Path) -> None:
    async with parts(tmp_path) as p:
        data = pieces(2)
        one, two = await p.put(data)
        assert await read(p, [two, one, two]) == [data[1], data[0], data[1]]
        assert p.gets() == 1


async def test_however_many_wait_for_a_chunk_it_is_fetched_once(tmp_path: Path) -> None:
    async with parts(tmp_path) as p:
        data = pieces(4)
        extents = await p.put(data)
        answers: list[list[bytes]] = []

        async def reader(n: int) -> None:
            answers.append(await read(p, extents[n % 3 : 4]))

        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(reader, n)
        assert len(answers) == 20
        assert sum(len(answer) for answer in answers) == sum(4 - n % 3 for n in range(20))
        assert p.chunks.misses == 4
        assert p.gets() <= 3


async def test_when_the_one_who_fetches_is_cancelled_a_waiter_takes_over(tmp_path: Path) -> None:
    async with parts(tmp_path) as p:
        (data,) = pieces(1)
        (extent,) = await p.put([data])
        p.faulty.script = [hang()]
        answers: list[list[bytes]] = []

        async def waiter() -> None:
            answers.append(await read(p, [extent]))

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner:
                    inner.start_soon(p.chunks.read, [extent])
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.start_soon(waiter)
                    nursery.start_soon(waiter)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
        assert answers == [[data], [data]]
        assert p.gets() == 2


async def test_an_error_reaches_all_who_wait_and_is_not_remembered(tmp_path: Path) -> None:
    async with parts(tmp_path) as p:
        (data,) = pieces(1)
        (extent,) = await p.put([data])
        p.faulty.script = [before()]
        failed = 0

        async def reader() -> None:
            nonlocal failed
            with pytest.raises(Unavailable):
                await p.chunks.read([extent])
            failed += 1

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(reader)
        assert failed == 3
        assert await read(p, [extent]) == [data]


async def test_memory_for_opened_chunks_is_bounded(tmp_path: Path) -> None:
    limit = 5 * CHUNK
    async with parts(tmp_path, memory_cache=limit) as p:
        data = pieces(20)
        extents = await p.put(data)
        for extent, expected in zip(extents, data, strict=True):
            assert await read(p, [extent]) == [expected]
            assert p.chunks.size <= limit
        before_ = p.gets()
        assert await read(p, extents[-5:]) == data[-5:]
        assert p.gets() == before_
        p.chunks.clear()
        assert p.chunks.size == 0


async def test_reading_ahead_makes_the_read_free_and_hides_errors(tmp_path: Path) -> None:
    async with parts(tmp_path) as p:
        data = pieces(4)
        extents = await p.put(data)
        p.faulty.script = [before()]
        await p.chunks.fetch_ahead(extents)
        p.faulty.script = []
        await p.chunks.fetch_ahead(extents)
        count = p.gets()
        assert await read(p, extents) == data
        assert p.gets() == count


# ---- bad bytes --------------------------------------------------------------------------------


async def test_bytes_that_went_bad_in_the_cache_are_fetched_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with parts(tmp_path, cache=True) as p:
        data = pieces(3)
        extents = await p.put(data)
        (name,) = p.packs
        good = p.memory.objects[name]
        spoilt = bytearray(good)
        spoilt[extents[1].offset + 100] ^= 1
        p.memory.objects[name] = bytes(spoilt)
        cache: Any = p.chunks._store
        await cache.clear()
        with pytest.raises(Corrupt):
            await p.chunks.read([extents[1]])
        # What is in the cache now is bad; what the store has is good again.
        await cache.get(name, 0, len(good))
        await cache.written()
        p.memory.objects[name] = good
        assert await read(p, extents) == data


async def test_one_bad_chunk_does_not_take_its_neighbours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with parts(tmp_path) as p:
        data = pieces(5)
        extents = await p.put(data)
        (name,) = p.packs
        spoilt = bytearray(p.memory.objects[name])
        spoilt[extents[2].offset + 100] ^= 1
        p.memory.objects[name] = bytes(spoilt)
        with caplog.at_level(logging.CRITICAL), pytest.raises(Corrupt) as bad:
            await p.chunks.read(extents)
        assert name in str(bad.value)
        for n in (0, 1, 3, 4):
            assert await read(p, [extents[n]]) == [data[n]]


async def test_a_chunk_moved_to_another_place_does_not_open(tmp_path: Path) -> None:
    async with parts(tmp_path) as p:
        data = [b"a" * CHUNK, b"b" * CHUNK]
        one, two = await p.put(data)
        assert one.sealed == two.sealed
        (name,) = p.packs
        body = p.memory.objects[name]
        first, second = (body[x.offset : x.offset + x.sealed] for x in (one, two))
        p.memory.objects[name] = second + first + body[two.offset + two.sealed :]
        for extent in (one, two):
            with pytest.raises(Corrupt):
                # Not even when the tree does not know what it should be.
                await p.chunks.read([extent._replace(digest=None)])


async def test_a_missing_pack_is_missing_not_zeros(tmp_path: Path) -> None:
    async with parts(tmp_path) as p:
        (extent,) = await p.put(pieces(1))
        (name,) = p.packs
        await p.memory.delete(name)
        with pytest.raises(Missing):
            await p.chunks.read([extent])
        with pytest.raises(Corrupt):
            await p.chunks.read([extent._replace(pack=999)])


# ---- the stage --------------------------------------------------------------------------------


async def test_packs_are_of_the_size_that_was_chosen_and_tell_nothing(tmp_path: Path) -> None:
    async with parts(tmp_path, pack_size=10 * CHUNK) as p:
        data = pieces(95, 3000) + pieces(30)
        extents: list[Extent] = []
        for n in range(0, len(data), 5):
            extents += await p.stage.put(list(data[n : n + 5]))
        await p.put([])
        assert await read(p, extents) == data
        sizes = [len(p.memory.objects[name]) for name in p.packs]
        assert len(sizes) >= 4
        for size in sizes:
            assert size < 10 * CHUNK + 6 * CHUNK
            # Padmé: only the highest few bits may be set.
            bits = size.bit_length()
            assert size % (1 << bits - 1 - (bits - 1).bit_length()) == 0
        assert not [n for body in p.memory.objects.values() for n in data if n[:64] in body]


async def test_a_pack_is_uploaded_until_the_store_takes_it(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with in_place():
        async with parts(tmp_path) as p:
            p.faulty.script = [before() for _ in range(6)]
            data = pieces(2)
            with trio.fail_after(300):
                extents = await p.put(data)
            assert p.faulty.count("put_new") == 7
            assert p.stage.last_error is None
            assert await read(p, extents) == data


async def test_what_an_earlier_process_staged_is_taken_up(tmp_path: Path) -> None:
    data = pieces(3)
    async with parts(tmp_path) as p:
        extents = await p.stage.put(list(data))
        p.stage.sync()
        rows = list(p.tree.db.execute("SELECT pack, name, epoch FROM packs"))
    (tmp_path / "packs" / "foreign file").touch()
    async with parts(tmp_path) as p:
        for row in rows:
            p.tree.add_pack(*row)
        p.stage.take_up(lambda number: True)
        assert p.stage.blocked == {extents[0].pack}
        assert await read(p, extents) == data
        while p.stage.blocked:
            await p.stage.wait_change()
        p.stage.release(())
        p.chunks.clear()
        assert await read(p, extents) == data
        assert p.gets() == 1
    assert [path.name for path in (tmp_path / "packs").iterdir()] == ["foreign file"]


async def test_what_nothing_names_is_thrown_away(tmp_path: Path) -> None:
    async with parts(tmp_path) as p:
        await p.stage.put(list(pieces(3)))
    async with parts(tmp_path) as p:
        p.stage.take_up(lambda number: False)
        assert not p.stage.blocked
    assert not list((tmp_path / "packs").iterdir())


async def test_a_pack_the_store_has_already_counts_if_it_is_the_same(tmp_path: Path) -> None:
    async with parts(tmp_path) as p:
        data = pieces(2)
        extents = await p.stage.put(list(data))
        (file,) = (tmp_path / "packs").iterdir()
        name = chunk_format.pack_name(bytes.fromhex(file.name.split("-")[1]))
        await p.memory.put_new(name, file.read_bytes() + b"other padding")
        p.stage.cut()
        while p.stage.blocked:
            await p.stage.wait_change()
        p.stage.release(())
        assert await read(p, extents) == data


async def test_a_full_stage_says_so_before_anything_is_written(tmp_path: Path) -> None:
    async with parts(tmp_path, staged=3 * CHUNK) as p:
        p.stage.check_room(CHUNK)
        await p.stage.put(list(pieces(2)))
        with pytest.raises(Full):
            p.stage.check_room(CHUNK)
        p.stage.cut()
        while p.stage.blocked:
            await p.stage.wait_change()
        p.stage.check_room(CHUNK)


async def test_nothing_staged_is_plaintext(tmp_path: Path) -> None:
    async with parts(tmp_path) as p:
        await p.stage.put([b"a secret of some length, " * 50])
        for path in (tmp_path / "packs").iterdir():
            assert b"secret" not in path.read_bytes()
            assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("uploaded", [False, True])
async def test_sync_covers_every_chunk_no_commit_names_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uploaded: bool
) -> None:
    """After a power cut, what lies here decides whether a batch is whole: also of a pack that the
    store had taken already, and the name of its file with it."""
    synced: list[str] = []

    def note(sync: Any) -> Any:
        def wrapped(fd: int) -> None:
            synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
            sync(fd)

        return wrapped

    monkeypatch.setattr("megafs.chunks.stage.os.fdatasync", note(os.fdatasync))
    monkeypatch.setattr("megafs.chunks.stage.os.fsync", note(os.fsync))
    async with parts(tmp_path) as p:
        await p.stage.put(list(pieces(2, 65536)))
        if uploaded:
            p.stage.cut()
            while p.stage.blocked:
                await p.stage.wait_change()
        (file,) = (tmp_path / "packs").iterdir()
        p.stage.sync()
        assert synced == [file.name, "packs"]
        p.stage.sync()
        assert synced == [file.name, "packs"]
        await p.put(pieces(1))


async def test_a_small_chunk_goes_into_the_log_and_its_pack_is_not_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    async with parts(tmp_path) as p:
        monkeypatch.setattr("megafs.chunks.stage.os.fdatasync", synced.append)
        data = pieces(2, 3000)
        extents = await p.stage.put(list(data))
        assert p.stage.unsynced  # the name of its file
        p.stage.sync()
        assert not p.stage.unsynced
        sealed = [p.unlogged.take(extent) for extent in extents]
        assert sealed == [p.stage.read(extent) for extent in extents]
        assert [p.unlogged.take(extent) for extent in extents] == [None, None]
        assert synced == []


async def test_chunks_that_nobody_logs_are_synced_when_they_become_many(tmp_path: Path) -> None:
    async with parts(tmp_path) as p:
        first = (await p.stage.put(list(pieces(1, 60_000))))[0]
        p.stage.sync()
        for _ in range(80):
            (last,) = await p.stage.put(list(pieces(1, 60_000)))
        assert p.stage.unsynced
        assert p.unlogged.take(first) is None
        assert p.unlogged.take(last) is not None


async def test_chunks_from_the_log_are_put_back(tmp_path: Path) -> None:
    async with parts(tmp_path) as p:
        extents = await p.stage.put(list(pieces(3, 3000)))
        chunks = [(extent.offset, p.stage.read(extent)) for extent in extents]
    (file,) = (tmp_path / "packs").iterdir()
    whole = file.read_bytes()
    os.truncate(file, 5)
    async with parts(tmp_path) as p:
        for offset, sealed in chunks:
            assert sealed is not None
            p.stage.restore(extents[0].pack, offset, memoryview(sealed))
            p.stage.restore(77, offset, memoryview(sealed))  # committed long ago
        p.stage.take_up(lambda number: True)
        assert file.read_bytes() == whole
        assert p.stage.unsynced
        assert all(p.stage.holds(extent, must_be_here=True) for extent in extents)


@pytest.mark.parametrize("how", ["taken", "hangs", "unmounted"])
async def test_a_pack_stays_until_the_cache_has_taken_it_over(
    tmp_path: Path, autojump_clock: MockClock, how: str
) -> None:
    """The commit does not wait for the cache, and the file does not go before the cache has it."""
    taken = trio.Event()

    async def adopt(name: str, path: Path, size: int) -> None:
        assert path.exists()
        await taken.wait()

    async with parts(tmp_path, adopt=adopt) as p:
        await p.stage.put(list(pieces(1)))
        p.stage.cut()
        while p.stage.blocked:
            await p.stage.wait_change()
        (file,) = (tmp_path / "packs").iterdir()
        p.stage.release([])  # a commit names it
        assert file.exists()
        assert not p.stage.uploading
        if how == "taken":
            taken.set()
            await trio.testing.wait_all_tasks_blocked()
        elif how == "hangs":
            await trio.sleep(60)
        if how != "unmounted":
            assert not file.exists()
    assert not file.exists()


async def test_an_uploaded_pack_is_linked_into_the_cache(tmp_path: Path) -> None:
    async with parts(tmp_path, cache=True) as p:
        cache = p.chunks._store
        assert isinstance(cache, DiskCached)

        async def adopt(name: str, path: Path, size: int) -> None:
            await cache.remember(name, 0, path)

        p.stage._adopt = adopt
        await p.stage.put(list(pieces(3)))
        (file,) = (tmp_path / "packs").iterdir()
        inode = file.stat().st_ino
        p.stage.cut()
        while p.stage.blocked:
            await p.stage.wait_change()
        p.stage.release([])
        with trio.fail_after(10):
            while file.exists():  # noqa: ASYNC110
                await trio.sleep(0.001)
        (kept,) = (tmp_path / "cache").glob("?/*")
        assert kept.stat().st_ino == inode


async def cached_and_closed(p: Parts, extents: list[Extent]) -> None:
    """Have the chunks verified and in the disk cache, and none of them open."""
    await p.chunks.read(extents)
    await p.chunks._store.written()  # type: ignore[attr-defined]
    for extent in extents:  # opens the files
        await p.chunks._store.get(chunk_format.pack_name(p.tree.pack(extent.pack).name), 0, 10)
    p.chunks.clear()


async def test_a_part_of_a_chunk_that_was_whole_comes_from_the_cache_at_once(
    tmp_path: Path,
) -> None:
    data = os.urandom(CHUNK)
    async with parts(tmp_path, cache=True) as p:
        (extent,) = await p.put([data])
        assert p.chunks.part(extent, 0, 10) is None  # not proven to be whole yet
        await cached_and_closed(p, [extent])
        gets = p.gets()
        for start, end in ((0, 1), (5000, 9096), (CHUNK - 1, CHUNK), (0, CHUNK)):
            found = p.chunks.part(extent, start, end)
            assert found is not None and bytes(found) == data[start:end]
        assert p.gets() == gets
        assert not p.chunks.size


@pytest.mark.parametrize("how", ["gone from the cache", "forgotten", "a second one beside it"])
async def test_a_part_of_a_chunk_that_was_forged_meanwhile_is_not_taken(
    tmp_path: Path, how: str
) -> None:
    """A recipient of a link has the chunk's key, and colludes with the store.

    The chunk was whole when it was read.  Then the cache lost it, and fetched it again for somebody
    else: a pin, a neighbour in the pack.
    """
    data = [os.urandom(CHUNK), os.urandom(CHUNK)]
    async with parts(tmp_path, cache=True) as p:
        extent, second = await p.put(data)
        await cached_and_closed(p, [extent])
        (name,) = p.packs
        pack = p.tree.pack(extent.pack)
        forged = chunk_format.seal(
            KEYRING.pack_key(pack.name, pack.epoch),
            KEYRING.fsid,
            pack.epoch,
            pack.name,
            extent.offset,
            chunk_format.encode(bytes(CHUNK), compress=False),
        )
        assert len(forged) == extent.sealed
        body = p.memory.objects[name]
        p.memory.objects[name] = (
            body[: extent.offset] + forged + body[extent.offset + extent.sealed :]
        )
        cache = p.chunks._store
        if how != "a second one beside it":
            await p.chunks._cache.forget(name)
        if how == "forgotten":
            p.chunks._openers.clear()
        await cache.get(name, 0, second.offset + second.sealed)
        await cache.written()  # type: ignore[attr-defined]
        await cache.get(name, 0, second.offset + second.sealed)

        found = p.chunks.part(extent, 100, 200)

        assert found is None or bytes(found) == data[0][100:200]
        with pytest.raises(Corrupt):
            await p.chunks._cache.forget(name)
            await p.chunks.read([extent])


async def test_a_part_of_a_staged_chunk_comes_from_the_stage(tmp_path: Path) -> None:
    data = os.urandom(CHUNK)
    async with parts(tmp_path) as p:
        (extent,) = await p.stage.put([data])
        await p.chunks.read([extent])
        p.chunks.clear()
        assert bytes(p.chunks.part(extent, 100, 200) or b"") == data[100:200]


async def test_a_compressed_chunk_has_no_parts(tmp_path: Path) -> None:
    data = b"0123456789abcdef" * (CHUNK // 16)
    async with parts(tmp_path, cache=True) as p:
        (extent,) = await p.put([data])
        await cached_and_closed(p, [extent])
        assert p.chunks.part(extent, 0, 10) is None
        assert bytes((await p.chunks.read([extent]))[0]) == data


async def test_a_part_that_went_bad_in_the_cache_is_left_to_a_whole_read(tmp_path: Path) -> None:
    data = os.urandom(CHUNK)
    async with parts(tmp_path, cache=True) as p:
        (extent,) = await p.put([data])
        await cached_and_closed(p, [extent])
        for path in (tmp_path / "cache").glob("?/*"):
            whole = bytearray(path.read_bytes())
            whole[extent.offset + 9000] ^= 1
            with path.open("r+b") as file:  # in place: the cache has it open
                file.write(whole)
        assert p.chunks.part(extent, 8000, 10000) is None
        assert p.chunks.part(extent, 0, 10) is None  # nothing of it counts any more
        assert bytes((await p.chunks.read([extent]))[0]) == data  # from the store


async def test_what_lies_around_a_chunk_comes_along_in_its_request(tmp_path: Path) -> None:
    data = [os.urandom(CHUNK) for _ in range(12)]
    async with parts(tmp_path) as p:
        extents = []
        for piece in data:  # one behind the other: two threads seal what comes together
            extents += await p.stage.put([piece])
        await p.put([])
        gets = p.gets()
        assert bytes((await p.chunks.read([extents[5]], extents[2:9]))[0]) == data[5]
        assert p.gets() == gets + 1
        assert [n for n, extent in enumerate(extents) if p.chunks.has(extent)] == [*range(2, 9)]
        for extent, what in zip(extents[2:9], data[2:9], strict=True):
            assert bytes((await p.chunks.read([extent]))[0]) == what
        assert p.gets() == gets + 1


async def test_no_more_packs_lie_in_memory_than_the_store_has_use_for(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """One more than it takes at once, so that the next is at hand; the others stay on the disk."""
    with in_place():
        async with parts(tmp_path, uploads=8) as p:
            p.advice.uploads = 2
            p.faulty.script = [slow(1)] * 30
            for piece in pieces(30):
                await p.stage.put([piece])
                p.stage.cut()
            for p.advice.uploads, under_way in ((2, 3), (5, 6), (20, 8), (0, 8), (1, 2)):
                await trio.sleep(1)
                assert p.stage.uploading == under_way


async def test_what_is_read_ahead_comes_in_pieces_of_the_size_asked_for(tmp_path: Path) -> None:
    async with parts(tmp_path) as p:
        data = pieces(16)
        extents = await p.put(data)
        await p.chunks.fetch_ahead(extents, 5 * CHUNK)
        assert p.gets() == 4
        assert await read(p, extents) == data
        assert p.gets() == 4


async def test_as_many_read_aheads_as_the_store_has_use_for(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with in_place():
        async with parts(tmp_path) as p:
            extents = await p.put(pieces(40))
            for useful, together in ((0, 8), (4, 8), (20, 20)):
                p.chunks.clear()
                p.advice.downloads = useful
                p.faulty.script = [slow(1)] * 40
                before = p.gets()
                with trio.move_on_after(0.5):
                    async with trio.open_nursery() as nursery:
                        for extent in extents:
                            nursery.start_soon(p.chunks.fetch_ahead, [extent])
                assert p.gets() - before == together


async def test_chunks_that_take_no_room_in_a_pack_are_not_all_opened(tmp_path: Path) -> None:
    """Hundreds of MiB of zeros lie within what is fetched around a small chunk."""
    async with parts(tmp_path, memory_cache=64 << 20) as p:
        extents = await p.put([bytes(CHUNK)] * 1000)
        for ino, extent in enumerate(extents, 10):
            p.tree.db.execute("INSERT INTO extents VALUES(?,?,?,?,?,?,?,?,?,?)", (ino, *extent))
        assert await read(p, [extents[500]]) == [bytes(CHUNK)]
        assert CHUNK < p.chunks.size <= 5 << 20


async def test_what_is_read_ahead_at_once_is_bounded(tmp_path: Path) -> None:
    """Many readers of large files: more than the cache holds would only push itself out."""
    limit = 20 * CHUNK
    async with parts(tmp_path, memory_cache=limit) as p:
        extents = await p.put(pieces(60))
        under_way: list[int] = []

        async def ahead(first: int) -> None:
            await p.chunks.fetch_ahead(extents[first : first + 10])

        async with trio.open_nursery() as nursery:
            for first in range(0, 60, 10):
                nursery.start_soon(ahead, first)
            for _ in range(50):
                under_way.append(sum(p.chunks.has(extent) for extent in extents))
                await trio.lowlevel.checkpoint()
        assert max(under_way) <= 30
        assert p.chunks.size <= limit
        assert p.chunks.size >= 10 * CHUNK
