"""Strict mode: what a mount did that was killed with its caller is done as it is, or not."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio

from megafs.errors import Refused, Unavailable
from megafs.stores.base import Buffer
from megafs.stores.memory import MemoryStore
from megafs.stores.wrapper import Wrapper
from tests.fakes.machine import ROOT_USER, Machine, make_volume, snapshot, write_file


class Cut(Wrapper):
    """A way to the store on which nothing is created any more."""

    away = False

    async def put_new(self, name: str, data: Buffer) -> None:
        if self.away:
            raise Unavailable("no way there")
        await self.beneath.put_new(name, data)


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("taken", [True, False])
async def test_a_killed_exclusive_create_makes_no_conflict_copy(
    tmp_path: Path, autojump_clock: object, taken: bool, damaged: bool
) -> None:
    store = MemoryStore("strict")
    await make_volume(store)
    cut = Cut(store)
    one, two = Machine(tmp_path / "one", "one"), Machine(tmp_path / "two", "two")
    async with one.open(cut, consistency="strict") as volume:
        await write_file(volume.fs, "there", b"1")
        await volume.drain()
        there = volume.fs.lookup(1, b"there").ino
        cut.away = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.fs.create, 1, b"lock", 0o644, 2, ROOT_USER)
            nursery.start_soon(volume.fs.link, there, 1, b"taken", ROOT_USER)
            await trio.sleep(3)
            killed = one.copy(tmp_path / "killed")
            nursery.cancel_scope.cancel()
        async with two.open(store, consistency="strict") as other:
            if taken:
                await write_file(other.fs, "lock", b"two")
                await write_file(other.fs, "taken", b"two")
                await other.drain()
        if damaged:
            for path in killed.volume_dir.glob("replica.db*"):
                path.unlink()
    async with killed.open(store, consistency="strict") as volume:
        await volume.drain()
        found = await snapshot(volume.fs)
        assert volume.status()["conflicts"] == []
        assert set(found) == {"there", "lock", "taken"}
        if taken:
            assert found["lock"] == found["taken"] == ("file", b"two")
            with pytest.raises(Refused) as no:
                await volume.fs.link(volume.fs.lookup(1, b"there").ino, 1, b"taken", ROOT_USER)
            assert no.value.errno == errno.EEXIST
