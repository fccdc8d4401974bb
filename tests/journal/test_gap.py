"""Commits that vanish from the store while it is mounted: no fsync is answered behind a gap."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from megafs.errors import Fault
from megafs.stores.base import Buffer
from megafs.stores.memory import MemoryStore
from tests.fakes.machine import ROOT_USER, Machine, make_volume, snapshot, write_file


def _commits(store: MemoryStore) -> list[str]:
    return sorted(name for name in store.objects if name.startswith("commits/"))


@pytest.mark.parametrize("gone", ["all", "last five", "last"])
async def test_a_commit_behind_a_gap_is_not_acknowledged(
    tmp_path: Path, autojump_clock: object, gone: str
) -> None:
    store = MemoryStore("loses")
    await make_volume(store)
    machine = Machine(tmp_path / "a", "a")
    async with machine.open(store) as volume:
        for n in range(8):
            await write_file(volume.fs, f"f{n}", b"%d" % n)
            await volume.drain()
        names = _commits(store)
        kept = dict(store.objects)
        for name in {"all": list(store.objects), "last five": names[-5:], "last": names[-1:]}[gone]:
            store.objects.pop(name)
        await write_file(volume.fs, "after", b"kept on this machine")
        with pytest.raises(Fault):
            await volume.drain()
        assert volume.writer.frozen is not None
        assert "gone from the store" in str(volume.writer.frozen)
        if gone == "last":
            assert _commits(store) == names[:-1]  # nothing stands behind the gap
    store.objects.update(kept)
    async with machine.open(store) as volume:
        await volume.drain()
        assert (await snapshot(volume.fs))["after"] == ("file", b"kept on this machine")


async def test_a_commit_that_was_written_over_is_noticed(
    tmp_path: Path, autojump_clock: object
) -> None:
    store = MemoryStore("wrong yes")
    await make_volume(store)
    async with Machine(tmp_path / "a", "a").open(store) as volume:
        await write_file(volume.fs, "one", b"1")
        await volume.drain()
        last = _commits(store)[-1]
        store.objects[last] = store.objects[last][:-1] + b"?" * 40
        store.objects[last] = store.objects[last][:5] + bytes(56) + store.objects[last][61:]
        await write_file(volume.fs, "two", b"2")
        with pytest.raises(Fault):
            await volume.drain()
        assert "written over" in str(volume.writer.frozen)


async def test_looking_for_the_commit_before_adds_no_round_trip(
    tmp_path: Path, autojump_clock: object
) -> None:
    class Distant(MemoryStore):
        async def get(self, name: str, start: int, length: int) -> bytes:
            await trio.sleep(self.seconds)
            return await super().get(name, start, length)

        async def put_new(self, name: str, data: Buffer) -> None:
            await trio.sleep(self.seconds)
            await super().put_new(name, data)

        seconds = 0.0

    store = Distant("distant")
    await make_volume(store)
    async with Machine(tmp_path / "a", "a").open(store, sync_interval=3600.0) as volume:
        await volume.drain()
        store.seconds = 1.0
        await volume.fs.mkdir(1, b"d", 0o755, ROOT_USER)
        begun = trio.current_time()
        await volume.writer.committed(volume.replica.close_batch(), 30)
        assert trio.current_time() - begun < 1.5
