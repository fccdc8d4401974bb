"""Checkpoints that are written while the tree goes on changing, or while gc removes older ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from megafs.errors import Unavailable
from megafs.journal import checkpoint
from megafs.stores.base import Buffer
from megafs.stores.memory import MemoryStore
from tests.fakes.machine import Machine, make_volume, snapshot, write_file
from tests.tree.invariants import check


class Slow(MemoryStore):
    """Takes ten seconds for every part of a checkpoint."""

    slow = True

    async def put_new(self, name: str, data: Buffer) -> None:
        if self.slow and name.startswith("checkpoints/"):
            await trio.sleep(10)
        await super().put_new(name, data)


async def test_what_changes_while_the_first_checkpoint_is_written_is_in_the_second(
    tmp_path: Path, autojump_clock: Any
) -> None:
    store = Slow("slow")
    await make_volume(store)
    async with Machine(tmp_path / "a", "a").open(store) as a:
        await write_file(a.fs, "before", b"1")
        await a.flush()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.checkpointer.write)
            await trio.sleep(15)
            await write_file(a.fs, "meanwhile", b"2")
            await a.flush()
        newest = await a.checkpointer.write()
        everything = await snapshot(a.fs)
    for name in [n for n in store.objects if n.startswith("commits/")]:
        if int(name[-16:]) < newest:
            await store.delete(name)  # the checkpoint alone must do

    async with Machine(tmp_path / "b", "b").open(store) as b:
        check(b.replica.tree)
        assert await snapshot(b.fs) == everything


async def test_a_checkpoint_whose_base_was_removed_is_written_whole(
    tmp_path: Path, autojump_clock: Any
) -> None:
    store = MemoryStore("base")
    await make_volume(store)
    async with Machine(tmp_path).open(store) as volume:
        await write_file(volume.fs, "x", b"1")
        await volume.flush()
        first = await volume.checkpointer.write()
        for name in [n for n in store.objects if n.startswith(f"checkpoints/{first:016d}/")]:
            await store.delete(name)
        await write_file(volume.fs, "y", b"2")
        await volume.flush()

        second = await volume.checkpointer.write()

        manifest = await checkpoint.read_manifest(store, volume.keyring, second)
        for parts in manifest.tables.values():
            for part in parts:
                assert part.object in store.objects


async def test_a_checkpoint_whose_base_goes_meanwhile_is_taken_back(
    tmp_path: Path, autojump_clock: Any
) -> None:
    store = Slow("meanwhile")
    await make_volume(store)
    async with Machine(tmp_path).open(store) as volume:
        await write_file(volume.fs, "x", b"1")
        await volume.flush()
        first = await volume.checkpointer.write()
        await write_file(volume.fs, "y", b"2")
        await volume.flush()

        async def remove() -> None:
            await trio.sleep(5)
            await store.delete(checkpoint.manifest_name(first))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(remove)
            with pytest.raises(Unavailable):
                await volume.checkpointer.write()
        assert await checkpoint.newest(store) == []

        second = await volume.checkpointer.write()
        assert await checkpoint.newest(store) == [second]
