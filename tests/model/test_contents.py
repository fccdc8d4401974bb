"""One file against a plain array of bytes: what is read is what was written, whatever happens.

The file is looked at through windows that lie far apart, so that it may be sparse and of many TiB.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from megafs.chunks.stage import Stage
from megafs.config import Parameters
from megafs.errors import Fault, Full
from megafs.stores.disk_cache.cached_store import DiskCached
from megafs.tree.inode import SetAttr
from megafs.tree.tree import Extent
from tests.fakes.faulty import Faulty
from tests.fs.opened import CHUNK, ROOT, contents, new_store, new_store_here, opened, put_file
from tests.model.loop import Machine
from tests.tree.invariants import check

pytestmark = pytest.mark.timeout(900)  # a failure is made small, which takes minutes

TIB = 1 << 40
WINDOW = 5 * CHUNK
BASES = (0, TIB, 35 * TIB, (1 << 62) + 7)

offsets = st.one_of(
    st.integers(0, 300),
    st.builds(lambda n, d: max(0, n * CHUNK + d), st.integers(0, 3), st.integers(-3, 3)),
    st.integers(0, 4 * CHUNK),
)
datas = st.one_of(
    st.binary(min_size=1, max_size=80),
    st.builds(lambda b, n: (b * n)[:n], st.binary(min_size=1, max_size=7), st.integers(1, CHUNK)),
    st.builds(lambda b: b * CHUNK, st.binary(min_size=1, max_size=1)),
)
bases = st.sampled_from((0, 0, 0, *BASES))


class FullStage:
    """A stage on a disk that may be full, and that may be slow."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.full = False
        self.hold: trio.Event | None = None
        self.waiting = trio.Event()

    async def put(self, pieces: list[bytes | bytearray | memoryview]) -> list[Extent]:
        if self.hold is not None:
            self.waiting.set()
            await self.hold.wait()
        if self.full:
            raise Full("the disk is full, for a test")
        return await self.stage.put(pieces)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stage, name)


class OneFile(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.machine = Machine(new_store())
        self.windows = {base: bytearray(WINDOW) for base in BASES}
        self.size = 0
        self.ino = self.machine.call(put_file, self.machine.volume.fs, 1, b"f")
        self.attach()

    def attach(self) -> None:
        fs = self.machine.volume.fs
        self.stage = FullStage(self.machine.volume.stage)
        fs.core.file_parts.stage = self.stage
        self.handle, _ = self.machine.call(fs.open, self.ino, os.O_RDWR, ROOT)

    def teardown(self) -> None:
        if hasattr(self, "machine"):
            try:
                self.mount_again(empty=True)
            finally:
                self.machine.close()

    @rule(base=bases, offset=offsets, data=datas)
    def write(self, base: int, offset: int, data: bytes) -> None:
        wrote = self.machine.call(self.machine.volume.fs.write, self.handle, base + offset, data)
        assert wrote == len(data)
        self.windows[base][offset : offset + len(data)] = data
        self.size = max(self.size, base + offset + len(data))

    @rule(base=bases, offset=offsets)
    def truncate(self, base: int, offset: int) -> None:
        size = base + offset
        fs = self.machine.volume.fs

        def cut() -> Any:
            return self.machine.call(fs.setattr, self.ino, SetAttr(size=size), ROOT)

        if self.may_fail(cut):
            self.size = size
            for start, window in self.windows.items():
                if start + WINDOW > size:
                    keep = max(0, size - start)
                    window[keep:] = bytes(WINDOW - keep)

    @rule(base=bases, offset=offsets, length=st.integers(1, 3 * CHUNK))
    def read(self, base: int, offset: int, length: int) -> None:
        length = min(length, WINDOW - offset)
        start = base + offset
        data = self.machine.call(self.machine.volume.fs.read, self.handle, start, length)
        end = max(offset, min(offset + length, self.size - base))
        assert bytes(data) == self.windows[base][offset:end]

    @rule(how=st.sampled_from(("flush", "fsync", "all")))
    def flush(self, how: str) -> None:
        fs = self.machine.volume.fs
        acts: dict[str, Callable[[], Any]] = {
            "flush": lambda: self.machine.call(fs.flush, self.handle),
            "fsync": lambda: self.machine.call(fs.fsync, self.handle, True),
            "all": lambda: self.machine.call(fs.writeback.flush_all),
        }
        if self.may_fail(acts[how]):
            assert not fs.writeback.dirty
            self.machine.now(check, self.machine.volume.replica.tree)

    def may_fail(self, act: Callable[[], Any]) -> bool:
        """Whether *act* worked; when the disk is full it need not."""
        try:
            act()
        except Full:
            assert self.stage.full
            return False
        return True

    @rule()
    def fill_disk(self) -> None:
        self.stage.full = True

    @rule()
    def free_disk(self) -> None:
        self.stage.full = False

    @rule()
    def commit(self) -> None:
        self.stage.full = False
        self.machine.call(self.machine.volume.drain)

    @rule()
    def forget_what_was_opened(self) -> None:
        self.machine.now(self.machine.volume.chunks.clear)

    @rule()
    def size_and_bytes_agree(self) -> None:
        fs = self.machine.volume.fs
        assert self.machine.now(fs.getattr, self.ino).size == self.size
        for base in BASES:
            self.read(base, 0, WINDOW)
            self.read(base, 3 * CHUNK, WINDOW)

    @rule(empty=st.booleans())
    def mount_again(self, empty: bool) -> None:
        self.stage.full = False
        self.machine.call(self.machine.volume.fs.flush, self.handle)
        self.machine.call(self.machine.volume.fs.release, self.handle)
        self.machine.reopen(empty=empty)
        self.attach()
        self.size_and_bytes_agree()
        self.machine.now(check, self.machine.volume.replica.tree)


TestOneFile = OneFile.TestCase
TestOneFile.settings = settings(
    max_examples=80,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@asynccontextmanager
async def one_file(place: Path) -> AsyncIterator[tuple[Any, FullStage, int, int]]:
    """(filesystem, its stage, inode, handle) of a file in a new volume."""
    async with opened(place) as volume:
        stage = FullStage(volume.stage)
        volume.fs.core.file_parts.stage = stage
        handle, inode = await volume.fs.create(1, b"f", 0o644, os.O_RDWR, ROOT)
        yield volume.fs, stage, inode.ino, handle
        check(volume.replica.tree)


async def test_a_failed_flush_loses_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    async with one_file(tmp_path) as (fs, stage, _ino, handle):
        data = os.urandom(3 * CHUNK + 17)
        await fs.write(handle, 5, data)
        stage.full = True
        for _ in range(2):
            with pytest.raises(Full):
                await fs.flush(handle)
            assert bytes(await fs.read(handle, 0, 9 * CHUNK)) == bytes(5) + data
        stage.full = False
        await fs.write(handle, 100, b"x" * 50)
        await fs.flush(handle)
        expected = bytearray(bytes(5) + data)
        expected[100:150] = b"x" * 50
        assert bytes(await fs.read(handle, 0, 9 * CHUNK)) == expected
        assert fs.writeback.dirty == 0


async def test_a_failed_truncate_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    async with one_file(tmp_path) as (fs, stage, ino, handle):
        data = os.urandom(3 * CHUNK)
        await fs.write(handle, 0, data)
        await fs.flush(handle)
        newer = os.urandom(2 * CHUNK)
        await fs.write(handle, CHUNK // 2, newer)
        expected = data[: CHUNK // 2] + newer + data[CHUNK // 2 + 2 * CHUNK :]
        stage.full = True
        with pytest.raises(Full):
            await fs.setattr(ino, SetAttr(size=CHUNK + 1000), ROOT)
        assert fs.getattr(ino).size == len(expected)
        assert bytes(await fs.read(handle, 0, 9 * CHUNK)) == expected
        stage.full = False
        await fs.flush(handle)
        assert bytes(await fs.read(handle, 0, 9 * CHUNK)) == expected
        assert fs.writeback.dirty == 0


async def test_a_full_disk_under_parallel_sealing_is_one_error(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        real = volume.stage._seal

        def full(*args: Any) -> Extent:
            raise Full("the disk is full, for a test")

        volume.stage._seal = full  # type: ignore[method-assign, assignment]
        handle, _ = await volume.fs.create(1, b"f", 0o644, os.O_RDWR, ROOT)
        data = os.urandom(20 * CHUNK)
        await volume.fs.write(handle, 0, data)
        with pytest.raises(Full):
            await volume.fs.flush(handle)
        volume.stage._seal = real  # type: ignore[method-assign]
        await volume.fs.flush(handle)
        volume.chunks.clear()
        assert bytes(await volume.fs.read(handle, 0, len(data))) == data


async def test_reads_and_writes_during_a_flush_see_the_newest_bytes(tmp_path: Path) -> None:
    async with one_file(tmp_path) as (fs, stage, ino, handle):
        await fs.write(handle, 0, b"a" * CHUNK * 2)
        await fs.flush(handle)
        await fs.write(handle, 10, b"b" * CHUNK)
        stage.hold = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.flush, handle)
            await stage.waiting.wait()
            await fs.write(handle, 20, b"c" * 5)
            await fs.write(handle, 3 * CHUNK, b"d")
            expected = bytearray(b"a" * CHUNK * 2 + bytes(CHUNK) + b"d")
            expected[10 : 10 + CHUNK] = b"b" * CHUNK
            expected[20:25] = b"c" * 5
            assert bytes(await fs.read(handle, 0, 9 * CHUNK)) == expected
            assert fs.getattr(ino).size == len(expected)
            stage.hold.set()
        stage.hold = None
        assert bytes(await fs.read(handle, 0, 9 * CHUNK)) == expected
        assert fs.getattr(ino).size == len(expected)
        await fs.flush(handle)
        assert bytes(await fs.read(handle, 0, 9 * CHUNK)) == expected


async def test_writes_during_a_flush_that_fails_stay_on_top(tmp_path: Path) -> None:
    async with one_file(tmp_path) as (fs, stage, _ino, handle):
        await fs.write(handle, 10, b"b" * CHUNK)
        stage.hold = trio.Event()
        stage.full = True

        async def fail() -> None:
            with pytest.raises(Full):
                await fs.flush(handle)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await stage.waiting.wait()
            await fs.write(handle, 20, b"c" * 5)
            await fs.write(handle, CHUNK - 2, b"d" * 4)
            stage.hold.set()
        stage.hold, stage.full = None, False
        expected = bytearray(bytes(10) + b"b" * CHUNK)
        expected[20:25] = b"c" * 5
        expected[CHUNK - 2 : CHUNK + 2] = b"d" * 4
        assert bytes(await fs.read(handle, 0, 9 * CHUNK)) == expected
        assert fs.writeback.dirty == len(expected) - 10
        await fs.flush(handle)
        assert bytes(await fs.read(handle, 0, 9 * CHUNK)) == expected
        assert fs.writeback.dirty == 0


async def test_a_cancelled_flush_loses_nothing(tmp_path: Path) -> None:
    async with one_file(tmp_path) as (fs, stage, _ino, handle):
        data = os.urandom(3 * CHUNK)
        await fs.write(handle, 0, data)
        stage.hold = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.flush, handle)
            await stage.waiting.wait()
            nursery.cancel_scope.cancel()
        stage.hold = None
        assert bytes(await fs.read(handle, 0, 9 * CHUNK)) == data
        await fs.flush(handle)
        assert bytes(await fs.read(handle, 0, 9 * CHUNK)) == data
        assert fs.writeback.dirty == 0


@pytest.mark.parametrize("seed", range(3))
async def test_readers_beside_writers_see_whole_writes_in_order(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    block, count = 1000, 60
    async with opened(tmp_path) as volume:
        fs = volume.fs
        ino = await put_file(fs, 1, b"f", bytes(block * count))
        newest = [0] * count
        busy = 2

        async def write() -> None:
            nonlocal busy
            handle, _ = await fs.open(ino, os.O_RDWR, ROOT)
            for _ in range(200):
                n = chance.randrange(count)
                newest[n] += 1
                await fs.write(handle, n * block, newest[n].to_bytes(4, "big") * (block // 4))
                await trio.lowlevel.checkpoint()
                match chance.randrange(12):
                    case 0:
                        await fs.flush(handle)
                    case 1:
                        volume.chunks.clear()
                    case 2:
                        await trio.sleep(0.001)
            await fs.release(handle)
            busy -= 1

        async def read() -> None:
            handle, _ = await fs.open(ino, os.O_RDONLY, ROOT)
            while busy:
                first = chance.randrange(count)
                last = chance.randrange(first, count) + 1
                before = newest[first:last]
                size = (last - first) * block
                data = bytes(await fs.read(handle, first * block, size))
                assert len(data) == size
                for n, low in enumerate(before):
                    part = data[n * block : (n + 1) * block]
                    value = int.from_bytes(part[:4], "big")
                    assert part == part[:4] * (block // 4), "half a write"
                    assert low <= value <= newest[first + n]
                await trio.lowlevel.checkpoint()
            await fs.release(handle)

        async with trio.open_nursery() as nursery:
            for task in (write, write, read, read):
                nursery.start_soon(task)
        data = await contents(fs, ino)
        assert data == b"".join(n.to_bytes(4, "big") * (block // 4) for n in newest)
        check(volume.replica.tree)


async def test_many_small_overwrites_do_not_shatter_a_chunk(tmp_path: Path) -> None:
    chance = random.Random(1)
    async with opened(tmp_path) as volume:
        fs = volume.fs
        expected = bytearray(os.urandom(4 * CHUNK))
        ino = await put_file(fs, 1, b"f", bytes(expected))
        handle, _ = await fs.open(ino, os.O_RDWR, ROOT)
        for _ in range(150):
            offset = chance.randrange(4 * CHUNK - 200)
            data = os.urandom(chance.randrange(1, 200))
            expected[offset : offset + len(data)] = data
            await fs.write(handle, offset, data)
            await fs.flush(handle)
        assert len(volume.replica.tree.all_extents(ino)) <= 4 * 12
        assert await contents(fs, ino) == expected


async def test_overwriting_a_little_of_a_big_file_stages_only_a_little(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        fs = volume.fs
        ino = await put_file(fs, 1, b"f", os.urandom(60 * CHUNK))
        before = {x[2:5] for x in volume.replica.tree.all_extents(ino)}
        handle, _ = await fs.open(ino, os.O_RDWR, ROOT)
        await fs.write(handle, 20 * CHUNK + 5, os.urandom(4096))
        await fs.flush(handle)
        sealed = {x[2:5] for x in volume.replica.tree.all_extents(ino)} - before
        assert 4096 <= sum(size for _, _, size in sealed) < 4300


async def test_a_write_back_error_reaches_the_next_close(tmp_path: Path) -> None:
    async with one_file(tmp_path) as (fs, stage, _ino, handle):
        await fs.write(handle, 0, os.urandom(CHUNK))
        stage.full = True
        with trio.move_on_after(0.2):
            await fs.writeback._flush(fs.core.files[_ino])
        with pytest.raises(Fault):
            await fs.flush(handle)
        assert fs.errors.last
        stage.full = False
        await fs.flush(handle)


@pytest.mark.parametrize("seed", range(4))
async def test_pages_of_a_file_in_the_cache_are_what_was_written_last(
    tmp_path: Path, seed: int
) -> None:
    """Small reads take a short way, by segments of chunks that are not open; writes go on."""
    chance = random.Random(seed)
    store = DiskCached(await new_store_here(), tmp_path / "cache", 1 << 26)
    async with opened(tmp_path, store) as volume:
        fs, size = volume.fs, 12 * CHUNK
        expected = bytearray(chance.randbytes(size))
        ino = await put_file(fs, 1, b"f", bytes(expected))
        handle, _ = await fs.open(ino, os.O_RDWR, ROOT)
        short = 0
        for _ in range(400):
            match chance.randrange(40):
                case 0:
                    offset = chance.randrange(size)
                    data = chance.randbytes(chance.randrange(1, min(9000, size - offset + 1)))
                    expected[offset : offset + len(data)] = data
                    await fs.write(handle, offset, data)
                    if chance.randrange(2):
                        await fs.flush(handle)
                case 1:
                    await volume.drain()
                    await store.written()
                case 2:
                    cut = chance.randrange(size)
                    await fs.setattr(ino, SetAttr(size=cut), ROOT)
                    await fs.setattr(ino, SetAttr(size=size), ROOT)
                    expected[cut:] = bytes(size - cut)
                case 3:
                    await put_file(fs, 1, b"other-%d" % chance.randrange(1 << 30), b"x" * 5000)
                case 4:
                    volume.chunks.clear()
            offset = chance.randrange(size)
            length = chance.choice((1, 100, 4096, CHUNK))
            now = fs.core.files[ino].read_now(offset, length)
            if now is not None:
                short += 1
                assert bytes(now) == expected[offset : offset + length]
            got = bytes(await fs.read(handle, offset, length))
            assert got == expected[offset : offset + length]
        assert short > 10
    await store.aclose()


async def test_a_truncation_that_fails_changes_nothing(tmp_path: Path) -> None:
    async with one_file(tmp_path) as (fs, stage, ino, handle):
        await fs.setattr(ino, SetAttr(size=TIB), ROOT)
        await fs.write(handle, 0, b"x" * CHUNK)
        stage.full = True
        with pytest.raises(Full):
            await fs.setattr(ino, SetAttr(size=CHUNK), ROOT)  # ends right behind what was written
        assert fs.getattr(ino).size == TIB
        stage.full = False
        await fs.flush(handle)
        assert fs.getattr(ino).size == TIB
        assert bytes(await fs.read(handle, CHUNK - 1, 3)) == b"x\0\0"


async def test_whoever_jumps_about_in_a_file_gets_it_in_blocks(tmp_path: Path) -> None:
    params = Parameters(chunk_size=256 << 10, quota=None)
    faulty = Faulty(await new_store_here(params))
    size = 8 << 20
    data = os.urandom(size)
    async with opened(tmp_path, faulty) as volume:
        await put_file(volume.fs, 1, b"f", data)
        await volume.drain()
    async with opened(tmp_path / "elsewhere", faulty) as volume:
        fs = volume.fs
        handle, _ = await fs.open(fs.lookup(1, b"f").ino, os.O_RDONLY, ROOT)
        chance = random.Random(1)
        waits = 0
        for place in chance.sample(range(32), 32):  # every chunk, in any order
            before = len(faulty.calls)
            offset = place * (256 << 10) + 5000
            assert bytes(await fs.read(handle, offset, 4096)) == data[offset : offset + 4096]
            waits += any(name.startswith("packs/") for _, name in faulty.calls[before:])
        assert waits <= 4 + 8  # one each until it is clear, then one for each block
