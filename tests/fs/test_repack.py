"""An fsync of a little takes one round trip; what it put into the commit moves to a pack later."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import trio

from megafs.concurrency import in_place
from megafs.fs.repack import SOON
from megafs.jobs import gc
from megafs.jobs.messages import GcArgs
from megafs.progress import ignore
from megafs.stores.memory import MemoryStore
from megafs.tree.tree import Extent
from megafs.volume.volume import Volume
from tests.fakes.faulty import Faulty
from tests.fs.opened import CHUNK, ROOT, contents, new_store_here, opened
from tests.tree.invariants import check


async def synced(volume: Volume, name: bytes, data: bytes) -> int:
    """Write a file and have it in the store with fsync; return its inode number."""
    handle, inode = await volume.fs.create(1, name, 0o644, os.O_RDWR, ROOT)
    await volume.fs.write(handle, 0, data)
    await volume.fs.fsync(handle, False)
    await volume.fs.flush(handle)
    await volume.fs.release(handle)
    return inode.ino


def extents(volume: Volume, ino: int) -> list[Extent]:
    return volume.replica.tree.all_extents(ino)


def packs(store: MemoryStore) -> int:
    return sum(name.startswith("packs/") for name in store.objects)


async def test_an_fsync_of_a_little_is_one_put(tmp_path: Path) -> None:
    memory = await new_store_here()
    faulty = Faulty(memory)
    async with opened(tmp_path, faulty, fsync="store") as volume:
        await synced(volume, b"first", b"x" * 100)  # claims a range of numbers, and so on
        for number in range(5):
            puts = faulty.count("put_new")
            await synced(volume, b"f%d" % number, os.urandom(5000))
            assert faulty.count("put_new") == puts + 1
        assert packs(memory) == 0
    async with opened(tmp_path / "elsewhere", memory) as other:  # with the commit, all is there
        for number in range(5):
            assert other.fs.lookup(1, b"f%d" % number).size == 5000


async def test_more_than_a_little_goes_by_pack(tmp_path: Path) -> None:
    memory = await new_store_here()
    async with opened(tmp_path, memory, fsync="store") as volume:
        ino = await synced(volume, b"f", os.urandom(SOON + CHUNK))
        assert all(x.pack for x in extents(volume, ino))
        assert packs(memory) == 1


async def test_an_fsync_on_this_machine_alone_has_no_hurry(tmp_path: Path) -> None:
    async with opened(tmp_path, fsync="local") as volume:
        ino = await synced(volume, b"f", os.urandom(5000))
        assert all(x.pack for x in extents(volume, ino))


async def test_what_travelled_in_commits_moves_to_one_pack(
    tmp_path: Path, autojump_clock: Any
) -> None:
    with in_place():
        memory = await new_store_here()
        data = {b"f%d" % n: os.urandom(3000 + n) for n in range(20)}
        async with opened(tmp_path, memory, fsync="store") as volume:
            inos = {name: await synced(volume, name, what) for name, what in data.items()}
            assert all(x.data for ino in inos.values() for x in extents(volume, ino))
            # One is overwritten in part, one removed, before it is their turn.
            handle, _ = await volume.fs.open(inos[b"f3"], os.O_RDWR, ROOT)
            await volume.fs.write(handle, 1000, b"new")
            await volume.fs.flush(handle)
            await volume.fs.release(handle)
            data[b"f3"] = data[b"f3"][:1000] + b"new" + data[b"f3"][1003:]
            await volume.fs.unlink(1, b"f4", ROOT)
            del data[b"f4"]

            await trio.sleep(60)
            await volume.drain()

            assert not volume.fs.repack.waiting
            assert packs(memory) == 1
            for name in data:
                kept = [x.length for x in extents(volume, inos[name]) if not x.pack]
                assert all(length <= volume.params.inline_limit for length in kept), name
                assert await contents(volume.fs, inos[name]) == data[name]
            check(volume.replica.tree)
        async with opened(tmp_path / "elsewhere", memory) as other:
            for name, what in data.items():
                assert await contents(other.fs, other.fs.lookup(1, name).ino) == what
            check(other.replica.tree)


async def test_gc_moves_what_a_process_left_behind(tmp_path: Path, autojump_clock: Any) -> None:
    with in_place():
        memory = await new_store_here()
        data = os.urandom(CHUNK // 2)
        async with opened(tmp_path, memory, fsync="store") as volume:
            ino = await synced(volume, b"f", data)
        async with opened(tmp_path, memory) as volume:
            assert extents(volume, ino)[0].data == data
            await gc.collect_garbage(volume, GcArgs(), ignore)
            (piece,) = extents(volume, ino)
            assert piece.pack and piece.data is None
            assert await contents(volume.fs, ino) == data
            check(volume.replica.tree)
