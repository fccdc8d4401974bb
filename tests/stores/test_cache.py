"""The disk cache: what it answers, what it costs, and what it never does."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import diskcache
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from megafs import concurrency
from megafs.errors import Missing, Unavailable
from megafs.stores.base import Buffer, ObjectStore
from megafs.stores.disk_cache.cache_directory import (
    BytesDisk,
    CacheDirectory,
    file_name,
    is_file_name,
)
from megafs.stores.disk_cache.cached_store import DiskCached
from megafs.stores.disk_cache.range_file import RangeFile
from megafs.stores.limit import URGENT, background, current_level
from megafs.stores.memory import MemoryStore
from tests.fakes.faulty import Fault, Faulty, before, slow

MIB = 1 << 20
ONE = "packs/ab/one"


def du(directory: Path) -> int:
    """Bytes of disk of a directory and all in it, as du counts."""
    total = directory.stat().st_blocks * 512
    for path in directory.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except FileNotFoundError:  # SQLite's files come and go
            pass
    return total


@pytest.fixture
async def below() -> Faulty:
    memory = MemoryStore()
    await memory.put_new(ONE, os.urandom(256 << 10))
    for i in range(8):
        await memory.put_new(f"packs/ab/{i}", os.urandom(256 << 10))
    return Faulty(memory)


@pytest.fixture
async def cached(below: Faulty, tmp_path: Path) -> AsyncIterator[DiskCached]:
    store = DiskCached(below, tmp_path / "cache", 64 * MIB)
    yield store
    await store.aclose()


async def again(store: DiskCached, **options: Any) -> DiskCached:
    """Close *store* and open another on the same directory."""
    await store.aclose()
    options = {"size_limit": store._limit, **options}
    return DiskCached(store.beneath, store._directory, **options)


async def test_a_range_is_fetched_once(cached: DiskCached, below: Faulty) -> None:
    data = await cached.get(ONE, 1000, 5000)
    await cached.written()

    assert await cached.get(ONE, 1000, 5000) == data
    assert await cached.get(ONE, 1500, 100) == data[500:600]
    assert await cached.get(ONE, 5999, 1) == data[-1:]
    assert below.count("get") == 1
    assert cached.cached(ONE, 1000, 5000)
    assert not cached.cached(ONE, 999, 2)


async def test_a_reader_need_not_wait_for_the_cache_to_be_written(
    cached: DiskCached, below: Faulty
) -> None:
    data = await cached.get(ONE, 0, 5000)

    assert await cached.get(ONE, 10, 50) == data[10:60]  # from memory, or already from disk
    assert below.count("get") == 1


async def test_the_end_of_an_object_is_remembered(cached: DiskCached, below: Faulty) -> None:
    await cached.get(ONE, 200 << 10, MIB)
    await cached.written()
    reads = below.count("get")

    assert len(await cached.get(ONE, 250 << 10, MIB)) == 6 << 10
    assert await cached.get(ONE, 256 << 10, 10) == b""
    assert below.count("get") == reads


async def test_only_packs_are_cached(cached: DiskCached, below: Faulty) -> None:
    for name in ("commits/1", "keys/1", "mounts/1", "checkpoints/1/a"):
        await cached.put_new(name, b"sealed")
        await cached.get(name, 0, 10)
        await cached.get(name, 0, 10)

    assert below.count("get") == 8
    assert cached.stats()["entries"] == 0


async def test_a_cache_of_an_earlier_version_is_taken_over(below: Faulty, tmp_path: Path) -> None:
    """Its keys did not say a range's size: those as long as they were asked for are known."""
    directory = tmp_path / "cache"
    whole = await below.beneath.get(ONE, 0, 5000)
    made = diskcache.Cache(str(directory), disk=BytesDisk, eviction_policy="none", cull_limit=0)
    for letter in "0123456789abcdef":
        (directory / letter).mkdir(mode=0o700)
    made.set(f"{ONE}:0:5000", whole)
    made.set(f"{ONE}:250000:99999999", whole[:7])  # at the end of the object
    made.close()

    store = DiskCached(below, directory, 64 * MIB)
    assert await store.get(ONE, 0, 5000) == whole
    assert below.count("get") == 0
    assert not store.cached(ONE, 250000, 7)
    await store.written()
    assert not (directory / file_name(f"{ONE}:250000:99999999")).exists()
    await store.aclose()


async def test_it_is_there_after_a_restart(cached: DiskCached, below: Faulty) -> None:
    data = await cached.get(ONE, 0, 100_000)
    more = await cached.get(ONE, 200_000, MIB)
    store = await again(cached)

    assert await store.get(ONE, 0, 100_000) == data
    assert await store.get(ONE, 200_000, MIB) == more
    assert below.count("get") == 2
    assert store.stats()["entries"] == 2
    await store.aclose()


async def test_what_was_used_last_is_evicted_last_even_after_a_restart(
    below: Faulty, tmp_path: Path
) -> None:
    limit = 2 * MIB
    store = DiskCached(below, tmp_path / "cache", limit)
    for i in range(4):
        await store.get(f"packs/ab/{i}", 0, 256 << 10)
        await store.written()
    await store.get("packs/ab/0", 0, 10)
    store = await again(store)
    for i in range(4, 8):
        await store.get(f"packs/ab/{i}", 0, 256 << 10)
        await store.written()
        if not store.cached("packs/ab/1", 0, 10):
            break

    assert store.cached("packs/ab/0", 0, 10)
    assert not store.cached("packs/ab/1", 0, 10)
    await store.aclose()


async def test_one_fetch_however_many_readers_wait(
    autojump_clock: MockClock, tmp_path: Path, below: Faulty
) -> None:
    below.script = [slow(5)]
    with concurrency.in_place():
        store = DiskCached(below, tmp_path / "cache", 64 * MIB)
        got: dict[int, bytes] = {}

        async def read(i: int) -> None:
            got[i] = await store.get(ONE, 100 * i, 100)

        async def leader() -> None:
            got[-1] = await store.get(ONE, 0, 5000)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leader)
            await trio.sleep(1)
            for i in range(50):
                nursery.start_soon(read, i)

        assert below.count("get") == 1
        assert all(got[i] == got[-1][100 * i : 100 * i + 100] for i in range(50))
        assert trio.current_time() == pytest.approx(5, abs=0.1)
        await store.aclose()


async def test_a_failed_fetch_is_one_failure_for_all_who_wait(
    autojump_clock: MockClock, tmp_path: Path, below: Faulty
) -> None:
    below.script = [Fault("slow", 5, op="get"), before(3)]
    below.rates = {}
    failed = []

    class FailsLate(Faulty):
        async def get(self, name: str, start: int, length: int) -> bytes:
            self.calls.append(("get", name))
            await trio.sleep(5)
            raise Unavailable("503", retry_after=3, maybe_done=True)

    with concurrency.in_place():
        failing = FailsLate(MemoryStore())
        store = DiskCached(failing, tmp_path / "cache", 64 * MIB)

        async def read() -> None:
            try:
                await store.get(ONE, 0, 100)
            except Unavailable as exc:
                failed.append(exc)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(read)

        assert len(failed) == 20
        assert {(exc.retry_after, exc.maybe_done) for exc in failed} == {(3, True)}
        assert len({id(exc) for exc in failed}) == 20
        assert failing.count("get") == 1
        await store.aclose()


async def test_a_cancelled_reader_hands_the_fetch_over(
    autojump_clock: MockClock, tmp_path: Path, below: Faulty
) -> None:
    below.script = [slow(5), slow(5)]
    with concurrency.in_place():
        store = DiskCached(below, tmp_path / "cache", 64 * MIB)
        got = []

        async def read() -> None:
            got.append(await store.get(ONE, 0, 100))

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(2):
                async with trio.open_nursery() as first:
                    first.start_soon(store.get, ONE, 0, 100)
                    await trio.sleep(1)
                    for _ in range(10):
                        nursery.start_soon(read)
            assert got == []

        assert len(got) == 10
        assert below.count("get") == 2
        assert trio.current_time() == pytest.approx(7, abs=0.1)
        await store.aclose()


async def test_a_reader_raises_the_readahead_it_waits_for(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    levels = []

    class Looking(MemoryStore):
        async def get(self, name: str, start: int, length: int) -> bytes:
            await trio.sleep(5)
            levels.append(current_level())
            return bytes(length)

    with concurrency.in_place():
        store = DiskCached(Looking(), tmp_path / "cache", 64 * MIB)

        async def ahead() -> None:
            with background():
                await store.get(ONE, 0, 1000)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ahead)
            await trio.sleep(1)
            await store.get(ONE, 10, 10)

        assert levels == [URGENT]
        await store.aclose()


async def test_what_did_not_verify_is_fetched_anew(cached: DiskCached, below: Faulty) -> None:
    good = await cached.get(ONE, 0, 5000)
    await cached.written()
    path = Path(cached._directory) / file_name(f"{ONE}:0:5000")
    path.write_bytes(bytes(5000))
    assert await cached.get(ONE, 0, 5000) == bytes(5000)  # nothing here can tell

    await cached.forget(ONE)

    assert await cached.get(ONE, 0, 5000) == good
    await cached.written()
    assert await cached.get(ONE, 0, 5000) == good
    assert below.count("get") == 2


async def test_a_fetch_that_began_before_forget_is_not_cached(
    autojump_clock: MockClock, tmp_path: Path, below: Faulty
) -> None:
    below.script = [Fault("slow", 5), None]
    with concurrency.in_place():
        store = DiskCached(below, tmp_path / "cache", 64 * MIB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.get, ONE, 0, 100)
            await trio.sleep(1)
            await store.forget(ONE)
            await store.get(ONE, 0, 50)  # does not wait for the old one
            assert trio.current_time() < 2
        assert not store.cached(ONE, 0, 100)
        assert store.cached(ONE, 0, 50)
        await store.aclose()


async def test_a_deleted_pack_is_dropped(cached: DiskCached) -> None:
    await cached.get(ONE, 0, 5000)
    await cached.written()
    await cached.delete(ONE)

    with pytest.raises(Missing):
        await cached.get(ONE, 0, 5000)


def spoil(cached: DiskCached, damage: str) -> None:
    """Do something to the file of the first 5,000 bytes of ONE."""
    path = Path(cached._directory) / file_name(f"{ONE}:0:5000")
    if damage == "shorter":
        os.truncate(path, 100)
    else:
        path.unlink()
        if damage == "a directory":
            path.mkdir()
        elif damage == "unreadable":
            path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("damage", ["shorter", "gone", "unreadable", "a directory"])
async def test_a_damaged_file_is_read_from_the_store(
    cached: DiskCached, below: Faulty, damage: str
) -> None:
    good = await cached.get(ONE, 0, 5000)
    await cached.written()
    spoil(cached, damage)

    assert await cached.get(ONE, 0, 5000) == good
    assert below.count("get") == 2


async def read_ahead(store: ObjectStore, number: int) -> None:
    with background():
        await store.get(f"packs/ab/{number}", 0, 256 << 10)


async def test_read_ahead_waits_for_the_disk_so_that_all_of_it_is_kept(
    below: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = CacheDirectory.apply

    def slowly(self: CacheDirectory, *args: Any) -> list[OSError | None]:
        time.sleep(0.02)
        return apply(self, *args)

    monkeypatch.setattr(CacheDirectory, "apply", slowly)
    store = DiskCached(below, tmp_path / "cache", 64 * MIB, queue=600 << 10)
    async with trio.open_nursery() as nursery:
        for i in range(8):
            nursery.start_soon(read_ahead, store, i)
    await store.written()

    assert store.stats()["not_kept"] == 0
    assert all(store.cached(f"packs/ab/{i}", 0, 256 << 10) for i in range(8))
    await store.aclose()


async def test_read_ahead_does_not_wait_for_a_disk_that_hangs(
    below: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    with concurrency.in_place():
        store = DiskCached(below, tmp_path / "cache", 64 * MIB, queue=600 << 10)
        await store.get(ONE, 0, 10)
        await store.written()

        async def hang(*_: object, **__: object) -> None:
            await trio.sleep_forever()

        monkeypatch.setattr(store, "_round", hang)
        begin = trio.current_time()
        for i in range(8):
            await read_ahead(store, i)
        assert 0 < trio.current_time() - begin <= 1
        assert store.stats()["not_kept"] == 6
        store._scope.cancel()
        await store.aclose()


async def test_who_waits_for_a_read_waits_for_no_disk(
    below: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    with concurrency.in_place():
        store = DiskCached(below, tmp_path / "cache", 64 * MIB, queue=100 << 10)
        await store.get(ONE, 0, 10)
        await store.written()
        begin = trio.current_time()
        for i in range(8):
            await store.get(f"packs/ab/{i}", 0, 256 << 10)
        assert trio.current_time() == begin
        await store.aclose()


async def test_what_was_just_written_is_read_at_once(cached: DiskCached, below: Faulty) -> None:
    data = await cached.get(ONE, 0, 200_000)
    assert cached.peek(ONE, 5, 100) == data[5:105]  # still in memory
    await cached.written()
    assert cached.stats()["open_files"] == 0
    assert cached.peek(ONE, 5, 100) == data[5:105]  # from its file, which it opens itself
    assert cached.stats()["open_files"] == 1


@pytest.mark.parametrize("damage", ["gone", "unreadable", "shorter"])
async def test_what_is_not_as_it_should_be_is_not_read_at_once(
    cached: DiskCached, damage: str
) -> None:
    await cached.get(ONE, 0, 5000)
    await cached.written()
    spoil(cached, damage)

    assert cached.peek(ONE, 200, 100) is None


async def test_a_range_that_several_gets_brought_together_is_there(
    cached: DiskCached, below: Faulty
) -> None:
    data = await cached.get(ONE, 0, 100_000)
    data += await cached.get(ONE, 100_000, 1000)
    data += (await cached.get(ONE, 90_000, 100_000))[11_000:]
    await cached.written()

    assert await cached.get(ONE, 50_000, 120_000) == data[50_000:170_000]
    assert cached.cached(ONE, 0, 190_000)
    assert not cached.cached(ONE, 0, 190_001)
    assert below.count("get") == 3
    (Path(cached._directory) / file_name(f"{ONE}:0:100000")).unlink()
    store = await again(cached)
    assert await store.get(ONE, 50_000, 120_000) == data[50_000:170_000]
    assert below.count("get") == 4
    await store.aclose()


async def test_an_uploaded_pack_can_be_remembered(
    cached: DiskCached, below: Faulty, tmp_path: Path
) -> None:
    data = os.urandom(300_000)
    await cached.remember("packs/cd/bytes", 0, data)
    staged = tmp_path / "staged"
    staged.write_bytes(data)
    await cached.remember("packs/cd/file", 0, staged)
    staged.unlink()

    assert await cached.get("packs/cd/file", 1000, 10) == data[1000:1010]
    await cached.written()
    assert await cached.get("packs/cd/bytes", 5, 200_000) == data[5:200_005]
    assert await cached.get("packs/cd/file", 0, 300_000) == data
    store = await again(cached)
    assert await store.get("packs/cd/file", 7, 200_000) == data[7:200_007]
    assert below.count("get") == 0
    await store.aclose()


async def test_remembering_replaces_the_ranges_within(cached: DiskCached) -> None:
    await cached.get(ONE, 1000, 100)
    await cached.get(ONE, 5000, 100)
    await cached.written()
    await cached.remember(ONE, 0, bytes(256 << 10))
    await cached.written()

    assert cached.stats()["entries"] == 1
    files = list(Path(cached._directory).glob("?/*"))
    assert len(files) == 1


async def test_a_file_that_is_not_there_is_not_remembered(
    cached: DiskCached, tmp_path: Path
) -> None:
    await cached.remember("packs/cd/file", 0, tmp_path / "nothing")

    assert not cached.cached("packs/cd/file", 0, 1)


async def test_pinned_objects_stay(below: Faulty, tmp_path: Path) -> None:
    store = DiskCached(below, tmp_path / "cache", 3 * MIB // 2)
    store.pin(["packs/ab/0"])
    for _ in range(2):
        for i in range(8):
            await store.get(f"packs/ab/{i}", 0, 256 << 10)
            await store.written()

    assert store.cached("packs/ab/0", 0, 256 << 10)
    assert store.stats()["evicted"] > 0
    store.unpin(["packs/ab/0"])
    for i in range(1, 8):
        await store.get(f"packs/ab/{i}", 0, 256 << 10)
        await store.written()
    assert not store.cached("packs/ab/0", 0, 256 << 10)
    await store.aclose()


async def test_clear_leaves_nothing(cached: DiskCached) -> None:
    for i in range(8):
        await cached.get(f"packs/ab/{i}", 0, 256 << 10)
    cached.pin(["packs/ab/0"])
    await cached.clear()

    assert cached.stats()["entries"] == 0
    assert cached.stats()["bytes"] == 0
    assert list(Path(cached._directory).glob("?/*")) == []


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["get", "get", "get", "get", "remember", "forget", "restart", "pin"]),
            st.integers(0, 5),
            st.integers(0, 200_000),
            st.integers(1, 120_000),
        ),
        min_size=1,
        max_size=40,
    ),
    limit=st.integers(600_000, 3 * MIB),
)
def test_ranges_are_those_of_the_store_and_the_limit_holds(steps: list[Any], limit: int) -> None:
    objects = {f"packs/aa/{i}": bytes([i]) + os.urandom(60_000 * i + 1) for i in range(6)}

    async def run(directory: Path) -> None:
        memory = MemoryStore()
        for name, data in objects.items():
            await memory.put_new(name, data)
        store = DiskCached(memory, directory, limit)
        for what, which, start, length in steps:
            name = f"packs/aa/{which}"
            data = objects[name]
            if what == "get":
                assert await store.get(name, start, length) == data[start : start + length]
            elif what == "remember":
                await store.remember(name, start, data[start : start + length])
            elif what == "forget":
                await store.forget(name)
            elif what == "pin":
                store.pin([name])
            else:
                store = await again(store)
            if what != "get" or length % 2:
                await store.written()
                assert du(directory) <= limit
                assert store.stats()["queued_bytes"] == 0
                assert store._index.used == sum(s.cost for s in store._index.entries.oldest())
        await store.written()
        await store.aclose()
        assert du(directory) <= limit

    with tempfile.TemporaryDirectory() as directory:
        trio.run(run, Path(directory) / "cache")


async def test_a_small_limit_holds_with_many_small_ranges(below: Faulty, tmp_path: Path) -> None:
    store = DiskCached(below, tmp_path / "cache", 2 * MIB)
    for i in range(600):
        await store.get(f"packs/ab/{i % 8}", i * 400, 300)
        if i % 50 == 0:
            await store.written()
            assert du(tmp_path / "cache") <= 2 * MIB
    await store.written()
    assert du(tmp_path / "cache") <= 2 * MIB
    assert store.stats()["entries"] > 100
    await store.aclose()


async def test_a_cache_made_smaller_shrinks(cached: DiskCached, tmp_path: Path) -> None:
    for i in range(8):
        await cached.get(f"packs/ab/{i}", 0, 256 << 10)
    store = await again(cached, size_limit=MIB)
    await store.get(ONE, 0, 10)
    await store.written()

    assert du(tmp_path / "cache") <= MIB
    await store.aclose()


Space = namedtuple("Space", "f_bavail f_frsize")


async def test_free_space_is_left_to_others(
    autojump_clock: MockClock, below: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk of 4 MiB of which others use more and more."""
    directory = tmp_path / "cache"
    others = 0

    def statvfs(path: str) -> Space:
        return Space((4 * MIB - others - du(directory)) // 4096, 4096)

    with concurrency.in_place():
        monkeypatch.setattr(os, "statvfs", statvfs)
        store = DiskCached(below, directory, 4 * MIB, min_free=MIB)
        for i in range(8):
            await store.get(f"packs/ab/{i}", 0, 256 << 10)
            await store.written()
        assert 4 * MIB - du(directory) >= MIB
        before = store.stats()["entries"]
        assert before > 2

        others = 5 * MIB // 2
        await trio.sleep(61)  # it looks by itself now and then
        assert store.stats()["entries"] < before

        others = 4 * MIB
        await trio.sleep(61)
        assert store.stats()["entries"] == 0
        await store.get(ONE, 0, 100)
        await store.written()
        assert store.stats()["entries"] == 0
        assert "1 MiB are for others" in store.stats()["trouble"]

        others = 0
        await store.get(ONE, 0, 100)
        await store.written()
        assert store.stats()["entries"] == 1
        assert store.stats()["trouble"] == ""
        await store.aclose()


async def test_what_cannot_be_written_as_fast_as_it_is_read_is_not_cached(
    below: Faulty, tmp_path: Path
) -> None:
    store = DiskCached(below, tmp_path / "cache", 64 * MIB, queue=300 << 10)
    await store.get(ONE, 0, 1)
    await store.written()
    for i in range(8):
        await store.get(f"packs/ab/{i}", 0, 256 << 10)
        assert store.stats()["queued_bytes"] <= 300 << 10
    await store.written()

    assert store.stats()["not_kept"] > 0
    assert store.stats()["entries"] + store.stats()["not_kept"] == 9
    await store.aclose()


async def test_open_files_are_few(below: Faulty, tmp_path: Path) -> None:
    store = DiskCached(below, tmp_path / "cache", 64 * MIB, handles=3)
    for _ in range(2):
        for i in range(8):
            await store.get(f"packs/ab/{i}", 0, 1000)
        await store.written()
    files = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
             if os.path.lexists(f"/proc/self/fd/{fd}")]  # fmt: skip

    assert store.stats()["open_files"] == 3
    values = [path for path in files if is_file_name("/".join(path.split("/")[-2:]))]
    assert len(values) <= 3
    await store.aclose()


async def test_a_hit_makes_no_call_of_diskcache(
    cached: DiskCached, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cached.get(ONE, 0, 5000)
    await cached.written()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("diskcache was called")

    for name in ("get", "set", "read", "touch", "_sql", "_con"):
        monkeypatch.setattr(diskcache.Cache, name, refuse)
    for i in range(100):
        await cached.get(ONE, i, 4000)
    monkeypatch.undo()


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.where,)

    def __init__(self, where: Path) -> None:
        self.where = str(where)


@pytest.mark.parametrize("what", ["inline value", "value in a file", "key", "settings"])
async def test_a_planted_pickle_is_not_opened(
    cached: DiskCached, below: Faulty, tmp_path: Path, what: str
) -> None:
    good = await cached.get(ONE, 0, 5000)
    await cached.aclose()
    directory = tmp_path / "cache"
    bomb = pickle.dumps(Bomb(tmp_path / "owned"))
    name = file_name(f"{ONE}:0:5000")
    with sqlite3.connect(directory / "cache.db") as db:
        match what:
            case "inline value":
                db.execute("UPDATE Cache SET mode=4, value=?, filename=NULL", (bomb,))
            case "value in a file":
                (directory / name).write_bytes(bomb)
                db.execute("UPDATE Cache SET mode=4")
            case "key":
                db.execute("UPDATE Cache SET key=?, raw=0", (bomb,))
            case "settings":
                db.execute("INSERT INTO Settings VALUES ('sqlite_user_version', 7)")
    db.close()

    store = DiskCached(below, directory, 64 * MIB)
    assert await store.get(ONE, 0, 5000) == good
    await store.written()
    assert await store.get(ONE, 0, 5000) == good
    await store.aclose()

    assert not (tmp_path / "owned").exists()
    assert below.count("get") == 2  # it was thrown out, and fetched anew
    with sqlite3.connect(directory / "cache.db") as db:
        assert db.execute("SELECT key, raw, mode FROM Cache").fetchall() == [
            (f"{ONE}:0:5000", 1, 2)
        ]
    db.close()


def test_the_disk_class_never_pickles(tmp_path: Path) -> None:
    disk = BytesDisk(str(tmp_path))
    bomb = pickle.dumps(Bomb(tmp_path / "owned"))

    for mode in (1, 2, 3, 4):
        with pytest.raises(TypeError):
            disk.fetch(mode, None, bomb, False)
    with pytest.raises(TypeError):
        disk.get(bomb, False)
    with pytest.raises(TypeError):
        disk.put(("a", "tuple"))
    (tmp_path / file_name("packs/a:0:1")[0]).mkdir()
    with pytest.raises(TypeError):
        disk.store({"not": "bytes"}, False, key="packs/a:0:1")
    assert not (tmp_path / "owned").exists()
    assert list(tmp_path.rglob("*")) == [tmp_path / file_name("packs/a:0:1")[0]]


async def test_a_planted_row_cannot_lead_out_of_the_directory(
    cached: DiskCached, below: Faulty, tmp_path: Path
) -> None:
    await cached.get(ONE, 0, 5000)
    await cached.aclose()
    outside = tmp_path / "outside"
    outside.write_bytes(bytes(5000))
    with sqlite3.connect(tmp_path / "cache" / "cache.db") as db:
        db.execute("UPDATE Cache SET filename='../outside'")
    db.close()

    store = DiskCached(below, tmp_path / "cache", 64 * MIB)
    await store.get(ONE, 0, 5000)
    await store.clear()
    await store.aclose()

    assert outside.read_bytes() == bytes(5000)


async def test_files_that_are_not_ours_are_left_alone(
    cached: DiskCached, below: Faulty, tmp_path: Path
) -> None:
    await cached.get(ONE, 0, 5000)
    await cached.aclose()
    directory = tmp_path / "cache"
    (directory / "letter").write_text("keep")
    (directory / "a" / "letter").write_text("keep")
    orphan = directory / file_name("packs/x:0:1")
    orphan.write_bytes(b"left by a crash")
    (directory / "cache.db").write_bytes(b"not a database" * 1000)

    store = DiskCached(below, directory, 64 * MIB)
    await store.get(ONE, 0, 5000)
    await store.clear()
    await store.aclose()

    assert (directory / "letter").read_text() == "keep"
    assert (directory / "a" / "letter").read_text() == "keep"
    assert not orphan.exists()


@pytest.mark.parametrize("damage", [b"", b"not a database" * 1000, None, "middle"])
async def test_a_damaged_table_is_begun_anew(
    cached: DiskCached, below: Faulty, tmp_path: Path, damage: str | bytes | None
) -> None:
    good = await cached.get(ONE, 0, 5000)
    for i in range(8):
        await cached.get(f"packs/ab/{i}", 0, 5000)
    await cached.aclose()
    table = tmp_path / "cache" / "cache.db"
    if isinstance(damage, str):  # in the middle
        content = bytearray(table.read_bytes())
        for at in range(4096, len(content), 4096):
            content[at : at + 200] = os.urandom(200)
        table.write_bytes(content)
    elif damage is None:
        table.unlink()
    else:
        table.write_bytes(damage)

    store = DiskCached(below, tmp_path / "cache", 64 * MIB)
    assert await store.get(ONE, 0, 5000) == good
    await store.written()
    assert store.stats()["state"] == "ok"
    assert store.cached(ONE, 0, 5000)
    assert len(list((tmp_path / "cache").glob("?/*"))) == store.stats()["entries"]
    await store.aclose()


async def test_a_full_disk_at_the_start_is_not_damage(
    cached: DiskCached, below: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cached.get(ONE, 0, 5000)
    await cached.aclose()
    wiped = []
    monkeypatch.setattr(CacheDirectory, "_wipe", lambda self: wiped.append(self))

    def full(self: CacheDirectory) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(CacheDirectory, "_load", full)
        store = DiskCached(below, tmp_path / "cache", 64 * MIB)
        assert len(await store.get(ONE, 0, 5000)) == 5000
        assert store.stats()["state"] == "off"
        await store.aclose()

    assert wiped == []
    store = DiskCached(below, tmp_path / "cache", 64 * MIB)
    await store.written()
    assert store.cached(ONE, 0, 5000)
    await store.aclose()


async def test_a_kill_leaves_a_cache_that_works(tmp_path: Path) -> None:
    """kill -9 in the middle of writing, several times."""
    script = """
import os, sys, trio
from megafs.stores.disk_cache.cached_store import DiskCached
from megafs.stores.memory import MemoryStore
async def main():
    memory = MemoryStore()
    store = DiskCached(memory, sys.argv[1], 1 << 22)
    for i in range(10**6):
        await store.remember(f"packs/aa/{os.getpid()}-{i}", 0, b"%d" % i * 2000)
        if i == 20:
            print("writing", flush=True)
        await trio.sleep(0)
trio.run(main)
"""
    for i in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", script, tmp_path / "cache"], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            process.stdout.readline()
            await trio.sleep(0.05 * i)
            process.kill()
    store = DiskCached(MemoryStore(), tmp_path / "cache", 1 << 22)
    await store.written()

    assert store.stats()["state"] == "ok"
    assert store.stats()["entries"] > 0
    assert du(tmp_path / "cache") <= 1 << 22
    for entry in tuple(store._index.entries.oldest()):
        number = entry.name.rpartition("-")[2].encode()
        assert await store.get(entry.name, 0, entry.size) == number * 2000
    await store.aclose()


async def test_the_directory_is_ours_alone(cached: DiskCached, tmp_path: Path) -> None:
    await cached.get(ONE, 0, 5000)
    await cached.written()

    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


async def test_a_second_mount_does_without(
    cached: DiskCached, below: Faulty, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await cached.get(ONE, 0, 5000)
    other = DiskCached(below, tmp_path / "cache", 64 * MIB)
    for _ in range(3):
        assert len(await other.get(ONE, 0, 5000)) == 5000

    assert other.stats()["state"] == "off"
    assert "another mount uses it" in other.stats()["trouble"]
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
    await other.aclose()


class Sick(CacheDirectory):
    """A shelf whose every write fails."""

    error = OSError(errno.EIO, os.strerror(errno.EIO))

    def apply(self, drops: Any, writes: Any, touched: Any) -> list[OSError | None]:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, os.strerror(errno.EIO)),
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
        sqlite3.DatabaseError("database disk image is malformed"),
        sqlite3.OperationalError("attempt to write a readonly database"),
        RuntimeError("anything at all"),
    ],
)
async def test_a_sick_disk_costs_speed_and_one_line(
    autojump_clock: MockClock,
    below: Faulty,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
) -> None:
    with concurrency.in_place():
        store = DiskCached(below, tmp_path / "cache", 64 * MIB)
        await store.get(ONE, 0, 1)
        await store.written()
        monkeypatch.setattr(CacheDirectory, "apply", Sick.apply)
        monkeypatch.setattr(CacheDirectory, "error", error, raising=False)
        good = await below.beneath.get(ONE, 0, 256 << 10)
        for i in range(20):
            assert await store.get(ONE, i, 1000) == good[i : i + 1000]
            await trio.sleep(1)

        assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
        assert str(getattr(error, "strerror", None) or error) in caplog.text

        monkeypatch.undo()  # the disk is well again
        await trio.sleep(200)
        await store.get(ONE, 0, 1000)
        await store.written()
        assert store.stats()["state"] == "ok"
        assert store.cached(ONE, 0, 1000)
        await store.aclose()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_stops_writing_and_not_reading(
    autojump_clock: MockClock,
    below: Faulty,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    with concurrency.in_place():
        store = DiskCached(below, tmp_path / "cache", 64 * MIB)
        await store.get(ONE, 0, 1000)
        await store.written()
        write = os.write

        def full(fd: int, data: Buffer) -> int:
            if len(data) > 500:
                write(fd, data[:100])
                raise OSError(code, os.strerror(code))
            return write(fd, data)

        monkeypatch.setattr(os, "write", full)
        for i in range(1, 8):
            await store.get(f"packs/ab/{i}", 0, 1000)
            await store.written()
        assert store.cached(ONE, 0, 1000)
        assert not store.cached("packs/ab/1", 0, 1000)
        assert len(list((tmp_path / "cache").glob("?/*"))) == 1  # no half files
        assert os.strerror(code) in store.stats()["trouble"]
        assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1

        monkeypatch.undo()
        await trio.sleep(61)
        await store.get("packs/ab/1", 0, 1000)
        await store.written()
        assert store.cached("packs/ab/1", 0, 1000)
        assert store.stats()["trouble"] == ""
        await store.aclose()


async def test_a_directory_that_vanishes_is_made_again(
    cached: DiskCached, below: Faulty, tmp_path: Path
) -> None:
    good = await cached.get(ONE, 0, 5000)
    await cached.written()
    subprocess.run(["rm", "-rf", tmp_path / "cache"], check=True)

    assert await cached.get(ONE, 0, 5000) == good
    for i in range(8):
        assert len(await cached.get(f"packs/ab/{i}", 0, 1000)) == 1000
    with trio.fail_after(10):
        while not list((tmp_path / "cache").glob("?/*")):
            await cached.get("packs/ab/7", 0, 1000)
            await trio.sleep(0.2)
    await cached.written()
    assert cached.stats()["state"] == "ok"
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


async def test_a_hung_disk_costs_a_few_seconds_and_no_error(
    below: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megafs.stores.disk_cache.cached_store._SLOW_READ", 0.1)
    monkeypatch.setattr("megafs.stores.disk_cache.cached_store._IN_PLACE", 0)
    store = DiskCached(below, tmp_path / "cache", 64 * MIB)
    good = await store.get(ONE, 0, 5000)
    await store.written()
    release = __import__("threading").Event()
    monkeypatch.setattr(RangeFile, "read", lambda self, offset, size: release.wait(20) and b"")

    with trio.fail_after(5):
        assert await store.get(ONE, 0, 5000) == good

    assert "does not answer" in store.stats()["trouble"]
    release.set()
    await store.aclose()


async def test_a_path_that_diskcache_would_expand_is_refused(below: Faulty, tmp_path: Path) -> None:
    store = DiskCached(below, tmp_path / "$HOME" / "cache", 64 * MIB)

    assert len(await store.get(ONE, 0, 10)) == 10
    assert "must not hold $" in store.stats()["trouble"]
    await store.aclose()


async def test_closing_unused_is_fine(below: Faulty, tmp_path: Path) -> None:
    await DiskCached(below, tmp_path / "cache", 64 * MIB).aclose()

    assert not (tmp_path / "cache").exists()


async def test_errors_of_the_store_pass(cached: DiskCached) -> None:
    with pytest.raises(Missing):
        await cached.get("packs/ab/none", 0, 10)
    with pytest.raises(Missing):
        await cached.get("packs/ab/none", 0, 10)
    assert len(cached._fetches) == 0


@pytest.mark.parametrize("seed", range(8))
async def test_readers_who_come_and_go_over_a_bad_line_get_the_right_bytes(
    autojump_clock: MockClock, tmp_path: Path, seed: int
) -> None:
    """Many tasks, cancelled at any moment, with faults, forgetting, eviction and restarts."""
    chance = random.Random(seed)
    memory = MemoryStore()
    for i in range(4):
        await memory.put_new(f"packs/aa/{i}", chance.randbytes(150_000))
    faulty = Faulty(memory, seed=seed, rates={"slow": 0.3, "before": 0.1, "hang": 0.02})
    results = {"right": 0, "failed": 0}

    with concurrency.in_place():
        store = DiskCached(faulty, tmp_path / "cache", 900_000, queue=200_000, handles=4)

        async def reader() -> None:
            for _ in range(30):
                name = f"packs/aa/{chance.randrange(4)}"
                start, length = chance.randrange(160_000), chance.randrange(1, 60_000)
                with trio.move_on_after(chance.choice([0, 0.5, 1, 3, 60])):
                    try:
                        data = await store.get(name, start, length)
                    except Unavailable:
                        results["failed"] += 1
                        continue
                    assert data == memory.objects[name][start : start + length]
                    results["right"] += 1
                if chance.random() < 0.05:
                    await store.forget(name)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(reader)
        assert len(store._fetches) == 0
        await store.written()
        assert store.stats()["queued_bytes"] == 0
        assert du(tmp_path / "cache") <= 900_000
        await store.aclose()

    assert results["right"] > 50
