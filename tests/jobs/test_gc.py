"""gc takes what nobody needs, and nothing else, whatever other mounts do meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megafs import clock
from megafs.chunks.codec import pack_name
from megafs.errors import BadUsage, Corrupt, Missing
from megafs.jobs import registry
from megafs.journal import heartbeat
from megafs.journal.heartbeat import Heartbeat
from megafs.stores.memory import MemoryStore
from megafs.tree.ops import Snapshot
from megafs.volume.volume import Volume
from tests.fakes.machine import (
    Machine,
    make_volume,
    overwrite,
    read_file,
    resolve,
    snapshot,
    truncate,
    unlink,
    write_file,
)
from tests.tree.invariants import check

DAY = 86400.0


class Calendar:
    """The wall clock of a test: it stands still but for the days that are let go by."""

    def __init__(self) -> None:
        self._now = clock.now_ns()

    def later(self, seconds: float) -> None:
        self._now += int(seconds * 1e9)

    def now_ns(self) -> int:
        return self._now


@pytest.fixture
def calendar() -> Iterator[Calendar]:
    made = Calendar()
    with clock.replaced(now_ns=made.now_ns):
        yield made


@pytest.fixture
async def store(calendar: Calendar) -> MemoryStore:
    made = MemoryStore("gc")
    await make_volume(made, chunk_size=16384, pack_size=65536, compression="none")
    return made


def silent(_: object) -> None:
    pass


async def gc(volume: Volume, **args: Any) -> dict[str, Any]:
    return await registry.run(volume, "gc", args, silent)


def packs_of(volume: Volume, path: str) -> set[str]:
    tree = volume.replica.tree
    extents = tree.all_extents(resolve(volume.fs, path))
    return {pack_name(tree.pack(x.pack).name) for x in extents if x.pack}


async def sound(volume: Volume) -> None:
    """Everything in the tree can be read."""
    check(volume.replica.tree)
    volume.chunks.clear()
    await snapshot(volume.fs)
    assert (await registry.run(volume, "fsck", {}, silent))["exit_code"] == 0


async def test_a_removed_file_goes_after_the_retention_and_nothing_else_does(
    store: MemoryStore, tmp_path: Path, calendar: Calendar, autojump_clock: Any
) -> None:
    async with Machine(tmp_path).open(store) as volume:
        await write_file(volume.fs, "old", b"o" * 100_000)
        await volume.flush()
        await write_file(volume.fs, "kept", b"k" * 100_000)
        await volume.flush()
        doomed = packs_of(volume, "old")
        await unlink(volume.fs, "old")
        await volume.flush()
        calendar.later(2 * 3600)

        first = await gc(volume)
        assert first["marked"] == len(doomed)
        assert doomed <= store.objects.keys()

        calendar.later(29 * DAY)
        assert (await gc(volume))["dropped"] == 0
        assert doomed <= store.objects.keys()

        calendar.later(2 * DAY)
        last = await gc(volume)
        assert last["exit_code"] == 0
        assert last["dropped"] == last["deleted"] == len(doomed)
        assert doomed.isdisjoint(store.objects)
        assert await read_file(volume.fs, "kept") == b"k" * 100_000
        await sound(volume)


async def test_a_dry_run_changes_nothing(
    store: MemoryStore, tmp_path: Path, calendar: Calendar, autojump_clock: Any
) -> None:
    async with Machine(tmp_path).open(store) as volume:
        await write_file(volume.fs, "old", b"o" * 100_000)
        await volume.flush()
        await unlink(volume.fs, "old")
        await volume.flush()
        calendar.later(2 * 3600)
        before = {n: d for n, d in store.objects.items() if not n.startswith("mounts/")}

        result = await gc(volume, dry_run=True)

        assert result["marked"] > 0
        assert {n: d for n, d in store.objects.items() if not n.startswith("mounts/")} == before


async def test_what_is_named_again_is_no_garbage(
    tmp_path: Path, calendar: Calendar, autojump_clock: Any
) -> None:
    store = MemoryStore("dedup")
    await make_volume(store, chunk_size=16384, pack_size=65536, deduplication=True)
    async with Machine(tmp_path).open(store) as volume:
        data = b"".join(bytes([n]) * 16384 for n in range(4))
        await write_file(volume.fs, "one", data)
        await volume.flush()
        pack = packs_of(volume, "one")
        extents = volume.replica.tree.all_extents(resolve(volume.fs, "one"))
        await unlink(volume.fs, "one")
        await volume.flush()
        calendar.later(2 * 3600)
        await gc(volume)

        # A marked pack is not used for deduplication any more ...
        await write_file(volume.fs, "two", data)
        await volume.flush()
        assert packs_of(volume, "two").isdisjoint(pack)
        # ... and whatever else names it takes the mark away.
        await write_file(volume.fs, "three", b"")
        inode = volume.replica.tree.inode(resolve(volume.fs, "three"))
        from megafs.tree.ops import SetContents

        volume.replica.record(
            SetContents(
                inode.ino, 0, volume.replica.number(), None, len(data), 1, 1, tuple(extents)
            )
        )
        calendar.later(40 * DAY)
        assert (await gc(volume))["deleted"] == 0
        assert await read_file(volume.fs, "three") == data
        await sound(volume)


async def test_snapshots_keep_what_they_need(
    store: MemoryStore, tmp_path: Path, calendar: Calendar, autojump_clock: Any
) -> None:
    async with Machine(tmp_path).open(store) as volume:
        await write_file(volume.fs, "old", b"o" * 100_000)
        await volume.flush()
        doomed = packs_of(volume, "old")
        sequence = volume.replica.sequence
        volume.replica.record(Snapshot("before", sequence, clock.now_ns()))
        await volume.flush()
        await unlink(volume.fs, "old")
        await volume.flush()
        for _ in range(3):
            calendar.later(40 * DAY)
            await gc(volume)
        assert doomed <= store.objects.keys()

        volume.replica.record(Snapshot("before", 0, clock.now_ns()))
        await volume.flush()
        await gc(volume)
        calendar.later(40 * DAY)
        await gc(volume)
        assert doomed.isdisjoint(store.objects)


async def test_objects_that_no_commit_ever_named_go_after_a_week(
    store: MemoryStore, tmp_path: Path, calendar: Calendar, autojump_clock: Any
) -> None:
    stray = "packs/ab/" + "ab" * 16
    foreign = "packs/readme"
    await store.put_new(stray, b"x")
    await store.put_new(foreign, b"x")
    async with Machine(tmp_path).open(store) as volume:
        calendar.later(6 * DAY)
        await gc(volume)
        assert stray in store.objects
        calendar.later(2 * DAY)
        await gc(volume)
        assert stray not in store.objects
        assert foreign in store.objects


async def test_a_live_mount_that_is_behind_is_waited_for(
    store: MemoryStore, tmp_path: Path, calendar: Calendar, autojump_clock: Any
) -> None:
    async with Machine(tmp_path).open(store) as volume:
        await write_file(volume.fs, "old", b"o" * 100_000)
        await volume.flush()
        doomed = packs_of(volume, "old")
        behind = volume.replica.sequence
        await unlink(volume.fs, "old")
        await volume.flush()
        calendar.later(2 * 3600)
        await gc(volume)
        calendar.later(31 * DAY)
        name = heartbeat.name_of(77)

        async def beat(sequence: int, holds: tuple[bytes, ...] = ()) -> None:
            made = Heartbeat(77, "slow", sequence, clock.now_ns(), 1, False, holds=holds)
            await store.put(name, heartbeat.seal(volume.keyring, name, made))

        await beat(behind)
        waiting = await gc(volume)
        assert waiting["exit_code"] == 3
        assert waiting["waiting"] == len(doomed)
        assert "slow" in waiting["notes"][-1] or any("slow" in n for n in waiting["notes"])
        assert doomed <= store.objects.keys()

        held = sorted(doomed)[0]
        await beat(10**6, (bytes.fromhex(held.rpartition("/")[2]),))
        assert (await gc(volume))["waiting"] == 1
        assert doomed & store.objects.keys() == {held}

        await beat(behind, (bytes.fromhex(held.rpartition("/")[2]),))
        calendar.later(2 * DAY)  # not heard of again: it is not waited for, but keeps what it holds
        assert (await gc(volume))["waiting"] == 1
        assert held in store.objects
        calendar.later(200 * DAY)
        await gc(volume)
        assert name not in store.objects
        assert (await gc(volume))["exit_code"] == 0
        assert doomed.isdisjoint(store.objects)


async def test_a_pending_operation_brings_back_a_pack_that_was_dropped_elsewhere(
    tmp_path: Path, calendar: Calendar, autojump_clock: Any
) -> None:
    store = MemoryStore("pending")
    await make_volume(store, chunk_size=16384, pack_size=65536)
    async with (
        Machine(tmp_path / "a", "a").open(store) as a,
        Machine(tmp_path / "b", "b").open(store, sync_interval=10**9) as b,
    ):
        await write_file(a.fs, "shared", b"s" * 60_000)
        await a.flush()
        await b.writer.catch_up()
        # b changes a corner of the file, and does not come to commit it.
        await overwrite(b.fs, "shared", 5, b"mine")
        pack = packs_of(a, "shared")
        await unlink(a.fs, "shared")
        await a.flush()
        calendar.later(2 * 3600)
        await gc(a)
        calendar.later(31 * DAY)
        await b.heartbeats.write()
        result = await gc(a)
        assert result["dropped"] == len(pack)
        assert result["waiting"] > 0  # b is alive and stands before it
        await b.flush()
        await a.writer.catch_up()
        calendar.later(40 * DAY)
        await b.heartbeats.write()
        await gc(a)

        for volume in (a, b):
            data = await read_file(volume.fs, "shared")
            assert data == b"sssssmine" + b"s" * (60_000 - 9)
            await sound(volume)


async def test_packs_that_are_mostly_dead_are_copied_and_go(
    store: MemoryStore, tmp_path: Path, calendar: Calendar, autojump_clock: Any
) -> None:
    async with (
        Machine(tmp_path / "a", "a").open(store) as a,
        Machine(tmp_path / "b", "b").open(store) as b,
    ):
        await write_file(a.fs, "small", b"s" * 20_000)
        await write_file(a.fs, "big", b"b" * 70_000)
        await a.flush()
        await overwrite(a.fs, "small", 100, b"x" * 50)
        await a.flush()
        before = packs_of(a, "small")
        await truncate(a.fs, "big", 0)
        await a.flush()
        calendar.later(2 * 3600)

        result = await gc(a, threshold=0.9)

        assert result["compacted_packs"] > 0
        assert packs_of(a, "small").isdisjoint(before)
        await b.writer.catch_up()
        expected = b"s" * 100 + b"x" * 50 + b"s" * 19_850
        calendar.later(2 * 3600)
        await gc(a)
        calendar.later(31 * DAY)
        await b.heartbeats.write()
        await gc(a)
        assert before.isdisjoint(store.objects)
        for volume in (a, b):
            volume.chunks.clear()
            assert await read_file(volume.fs, "small") == expected
            await sound(volume)


async def history(volume: Volume, calendar: Calendar, rounds: int) -> None:
    for n in range(rounds):
        await write_file(volume.fs, f"f{n}", bytes([n]) * 20_000)
        await volume.flush()
        await volume.checkpointer.write()
        calendar.later(20 * DAY)


def commits(store: MemoryStore) -> list[int]:
    return sorted(int(n[-16:]) for n in store.objects if n.startswith("commits/"))


async def test_the_journal_is_folded_behind_two_checkpoints_and_every_machine_still_mounts(
    store: MemoryStore, tmp_path: Path, calendar: Calendar, autojump_clock: Any
) -> None:
    away = Machine(tmp_path / "away", "away")
    async with away.open(store) as volume:
        await write_file(volume.fs, "mine", b"m" * 30_000)
        await volume.flush()
    async with Machine(tmp_path / "a", "a").open(store) as a:
        await history(a, calendar, 6)
        whole = commits(store)
        result = await gc(a)
        assert result["folded_commits"] > 0
        assert result["removed_checkpoints"] > 0
        left = commits(store)
        assert left == whole[-len(left) :]
        everything = await snapshot(a.fs)
        await sound(a)

    async with Machine(tmp_path / "new", "new").open(store) as fresh:
        assert await snapshot(fresh.fs) == everything
    async with away.open(store) as back:
        assert await snapshot(back.fs) == everything
        await write_file(back.fs, "again", b"!")
        await back.flush()


async def test_a_machine_that_was_away_keeps_what_it_had_not_committed(
    store: MemoryStore, tmp_path: Path, calendar: Calendar, autojump_clock: Any
) -> None:
    away = Machine(tmp_path / "away", "away")
    async with away.open(store, sync_interval=10**9) as volume:
        await write_file(volume.fs, "staged", b"z" * 50_000)
    async with Machine(tmp_path / "a", "a").open(store) as a:
        await history(a, calendar, 6)
        assert (await gc(a))["folded_commits"] > 0
    async with away.open(store) as back:
        await back.flush()
        assert await read_file(back.fs, "staged") == b"z" * 50_000
    async with Machine(tmp_path / "b", "b").open(store) as b:
        assert await read_file(b.fs, "staged") == b"z" * 50_000
        await sound(b)


async def test_a_mount_that_slept_does_not_commit_into_the_past(
    store: MemoryStore, tmp_path: Path, calendar: Calendar, autojump_clock: Any
) -> None:
    asleep = Machine(tmp_path / "asleep", "asleep")
    async with asleep.open(store, sync_interval=10**9) as sleeper:
        at = sleeper.replica.sequence
        async with Machine(tmp_path / "a", "a").open(store) as a:
            await history(a, calendar, 6)
            assert (await gc(a))["folded_commits"] > 0
            assert at + 1 not in commits(store)
        await write_file(sleeper.fs, "late", b"late" * 5000)
        with pytest.raises(Corrupt, match="away for longer"):
            await sleeper.flush()
        assert at + 1 not in commits(store)
    async with asleep.open(store) as awake:
        await awake.flush()
        assert await read_file(awake.fs, "late") == b"late" * 5000
        assert await read_file(awake.fs, "f3") == bytes([3]) * 20_000
        await sound(awake)


async def test_the_past_of_a_snapshot_can_be_read_after_folding(
    store: MemoryStore, tmp_path: Path, calendar: Calendar, autojump_clock: Any
) -> None:
    async with Machine(tmp_path / "a", "a").open(store) as a:
        await write_file(a.fs, "old", b"o" * 40_000)
        await a.flush()
        sequence = a.replica.sequence
        a.replica.record(Snapshot("keep", sequence, clock.now_ns()))
        await unlink(a.fs, "old")
        await a.flush()
        await history(a, calendar, 6)
        result = await gc(a)
        assert result["folded_commits"] > 0
        assert sequence in commits(store)
        # A second run finds the same to be needed.
        assert (await gc(a))["folded_commits"] == 0
        from megafs.concurrency import Background
        from megafs.history.earlier_trees import History

        background = Background()
        async with background.running():
            past = History(
                store,
                a.keyring,
                a.replica,
                tmp_path / "views",
                16384,
                background,
            )
            async with past.view(sequence) as tree:
                extents = tree.all_extents(tree.walk(b"/old"))
            data = b"".join(bytes(part) for part in await a.chunks.read(extents))
            assert data == b"o" * 40_000


async def test_a_grace_that_is_not_safe_is_refused(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    async with Machine(tmp_path).open(store) as volume:
        with pytest.raises(BadUsage):
            await gc(volume, grace=60)


async def test_damaged_chunks_stay_where_they_are(
    store: MemoryStore, tmp_path: Path, calendar: Calendar, autojump_clock: Any
) -> None:
    async with Machine(tmp_path).open(store) as volume:
        await write_file(volume.fs, "x", b"x" * 40_000)
        await volume.flush()
        (name,) = packs_of(volume, "x")
        data = bytearray(store.objects[name])
        data[20_000] ^= 1
        store.objects[name] = bytes(data)
        calendar.later(2 * 3600)

        result = await gc(volume, threshold=1)

        assert any("not the bytes" in note for note in result["notes"])
        volume.chunks.clear()
        with pytest.raises((Corrupt, Missing)):
            await read_file(volume.fs, "x")
        assert name in packs_of(volume, "x")
