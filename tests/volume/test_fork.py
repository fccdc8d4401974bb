"""Two holders of the lease have made a commit of one number: nothing of either is lost.

On a store that ignores conditions the fork happens for real: the first holder stands still with the
put of its commit under way, the next one takes the lease and commits, and then the put arrives.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from megafs.errors import Busy, Corrupt, Rollback, Unavailable
from megafs.jobs.fsck import fsck
from megafs.jobs.messages import FsckArgs, FsckResult
from megafs.journal import lease
from megafs.journal.commit import object_name
from megafs.volume.create import format_volume
from megafs.volume.volume import Volume
from tests.fakes.machine import KEY, Machine, mkdir, overwrite, snapshot, write_file
from tests.fakes.unconditional import Paused, Unconditional
from tests.fs.opened import SMALL
from tests.tree import invariants

BIG = bytes(range(256)) * 300  # goes into a pack


class Scene:
    """A store without conditions, and machines that use it.

    first: the holder that stands still.  second: the one that takes the lease meanwhile.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.store = Unconditional("unconditional")
        self.first = Machine(place / "first", "first", {"fsync": "local"})
        self.second = Machine(place / "second", "second", {"fsync": "local"})
        self.first_way = Paused(self.store)
        self.second_way = Paused(self.store)

    def machine(self, name: str) -> Machine:
        return Machine(self.place / name, name, {"fsync": "local"})

    @asynccontextmanager
    async def forked(self) -> AsyncIterator[tuple[Volume, Volume]]:
        """The two volumes; the second has the lease, and has committed nothing yet."""
        async with self.first.open(self.first_way) as first:
            await mkdir(first.fs, "shared")
            await write_file(first.fs, "shared/both", b"as it was" + BIG)
            await first.drain()
            self.first_way.at = lambda method, name: (
                method == "put_new" and name.startswith("commits/")
            )
            await write_file(first.fs, "first 1", b"of the first" + BIG)
            await overwrite(first.fs, "shared/both", 0, b"FIRST")
            await self.first_way.stands.wait()
            async with self.second.open(self.second_way) as second:
                await _holds(second)
                yield first, second

    async def repair(self, machine: Machine) -> FsckResult:
        async with machine.open(self.store, settle_forks=True, deadline=3600) as volume:
            await _holds(volume)
            result = await fsck(volume, FsckArgs(repair=True), lambda progress: None)
            await volume.drain()
            return result

    async def all_files(self) -> dict[str, bytes]:
        """What a machine finds that has never seen the volume; its tree and journal are sound."""
        new = self.machine(f"new {len(list(self.place.iterdir()))}")
        async with new.open(self.store, read_only=True) as volume:
            invariants.check(volume.replica.tree)
            result = await fsck(volume, FsckArgs(), lambda progress: None)
            assert result.exit_code == 0, result.problems
            found = await snapshot(volume.fs)
        return {path: node[1] for path, node in found.items() if node[0] == "file"}


async def _holds(volume: Volume) -> None:
    assert volume.lease is not None
    with trio.fail_after(lease.LEASE_DEAD * 5):
        while not volume.lease.held:
            await trio.sleep(5)
    await trio.sleep(1)


async def _writes(volume: Volume, number: int) -> None:
    await write_file(volume.fs, f"second {number}", b"of the second %d" % number + BIG)
    await volume.drain()


@pytest.fixture
async def scene(tmp_path: Path) -> Scene:
    made = Scene(tmp_path)
    found = await format_volume(made.store, KEY, SMALL, profile="low-memory")
    assert not found.create_if_absent
    return made


async def _overwritten(scene: Scene, second: Volume) -> int:
    """The put of the first arrives; returns the number of the commit that it wrote over."""
    number = second.replica.sequence
    before = dict(scene.store.objects)
    scene.first_way.after = True
    scene.first_way.resume()
    with trio.fail_after(60):
        while scene.store.objects == before:
            await trio.sleep(0.1)
    return number


async def test_a_holder_that_was_killed_puts_its_commit_back_when_it_is_mounted_again(
    scene: Scene, autojump_clock: object
) -> None:
    async with scene.forked() as (first, second):
        await _writes(second, 1)
        own = scene.store.objects[object_name(second.replica.sequence)]
        scene.second_way.dead = True  # killed, with all that it had in memory
        number = await _overwritten(scene, second)
        scene.first_way.dead = True
        assert scene.store.objects[object_name(number)] != own
    async with scene.second.open(scene.store) as second:
        assert scene.store.objects[object_name(number)] == own
        assert any("put back" in text for _, text in second.replica.conflicts())
    async with scene.first.open(scene.store) as first:
        await first.drain()
    found = await scene.all_files()
    assert found["second 1"] == b"of the second 1" + BIG
    assert found["first 1"] == b"of the first" + BIG
    assert found["shared/both"] == b"FIRST was" + BIG


async def test_both_have_told_that_theirs_is_safe(scene: Scene, autojump_clock: object) -> None:
    """The next holder ends before it can put its commit back, and the first one goes on."""
    async with scene.forked() as (first, second):
        await overwrite(second.fs, "shared/both", 0, b"SECOND")
        await _writes(second, 1)
        scene.second_way.dead = True
        number = await _overwritten(scene, second)
        await _holds(first)
        await write_file(first.fs, "first 2", b"goes on")
        await first.drain()
        assert first.replica.sequence > number
    with pytest.raises((Rollback, Corrupt)):
        async with scene.second.open(scene.store):
            pass
    result = await scene.repair(scene.second)
    assert result.exit_code == 1
    assert [problem.kind for problem in result.repaired] == ["fork"]
    found = await scene.all_files()
    assert found["second 1"] == b"of the second 1" + BIG
    assert found["first 1"] == b"of the first" + BIG
    assert found["first 2"] == b"goes on"
    both = {data for path, data in found.items() if path.startswith("shared/both")}
    assert both == {b"FIRST was" + BIG, b"SECONDwas" + BIG}
    assert (await scene.repair(scene.second)).exit_code == 0


async def test_the_tree_of_a_third_machine_stands_for_a_commit_that_nobody_has(
    scene: Scene, autojump_clock: object
) -> None:
    """The next holder's machine is lost, after it had committed twice."""
    third = scene.machine("third")
    async with scene.forked() as (first, second):
        await _writes(second, 1)
        await _writes(second, 2)
        number = second.replica.sequence - 1
        async with third.open(scene.store) as reader:
            assert reader.replica.sequence > number
        scene.second_way.dead = True
        await _overwritten(scene, second)
        scene.first_way.dead = True
    new = scene.machine("stopped")
    with pytest.raises(Unavailable, match="fsck --repair"):
        async with new.open(scene.store, read_only=True):
            pass
    result = await scene.repair(third)
    assert {problem.kind for problem in result.repaired} == {"fork"}
    found = await scene.all_files()
    assert found["second 1"] == b"of the second 1" + BIG
    assert found["second 2"] == b"of the second 2" + BIG
    assert found["first 1"] == b"of the first" + BIG  # from the store: it has not come back yet
    assert found["shared/both"] == b"FIRST was" + BIG
    async with scene.first.open(scene.store, deadline=3600) as first:
        await _holds(first)
        await first.drain()
    assert await scene.all_files() == found


async def test_of_a_side_whose_first_commit_nobody_has_the_rest_is_brought_back(
    scene: Scene, autojump_clock: object
) -> None:
    async with scene.forked() as (first, second):
        await _writes(second, 1)
        await _writes(second, 2)
        await write_file(second.fs, "second 3", b"small")
        await second.drain()
        scene.second_way.dead = True
        await _overwritten(scene, second)
        scene.first_way.dead = True
    result = await scene.repair(scene.machine("third"))
    assert {problem.kind for problem in result.repaired} == {"fork"}
    async with scene.first.open(scene.store, deadline=3600) as first:
        await _holds(first)
        await first.drain()
    found = await scene.all_files()
    assert found["second 2"] == b"of the second 2" + BIG
    assert found["second 3"] == b"small"
    assert found["first 1"] == b"of the first" + BIG


async def test_a_journal_without_a_fork_is_left_alone(scene: Scene, autojump_clock: object) -> None:
    async with scene.first.open(scene.store) as first:
        await write_file(first.fs, "a", b"a")
        await first.drain()
    before = {name: data for name, data in scene.store.objects.items() if "commits" in name}
    result = await scene.repair(scene.first)
    assert result.exit_code == 0
    after = {name: data for name, data in scene.store.objects.items() if "commits" in name}
    assert before.items() <= after.items()


async def test_a_store_that_shows_less_is_no_fork(scene: Scene, autojump_clock: object) -> None:
    async with scene.first.open(scene.store) as first:
        await write_file(first.fs, "a", b"a")
        await first.drain()
        await write_file(first.fs, "b", b"b")
        await first.drain()
        last = object_name(first.replica.sequence)
    await scene.store.delete(last)
    with pytest.raises(Rollback):
        await scene.repair(scene.first)


async def test_nothing_is_settled_while_another_mount_may_write(
    scene: Scene, autojump_clock: object
) -> None:
    async with scene.forked() as (first, second):
        await _writes(second, 1)
        scene.second_way.dead = True
        await _overwritten(scene, second)
        await _holds(first)
        await write_file(first.fs, "first 2", b"goes on")
        await first.drain()
    async with scene.first.open(scene.store):
        with pytest.raises(Busy, match="first"):
            await scene.repair(scene.second)
