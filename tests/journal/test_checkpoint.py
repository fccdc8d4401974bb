"""A checkpoint is the tree at one commit, costs what changed, and gives way when it is damaged."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from megafs.errors import Corrupt, Exists, TooLarge
from megafs.journal import checkpoint
from megafs.journal.replica import Replica
from megafs.stores.base import Buffer
from megafs.stores.memory import MemoryStore
from megafs.tree.schema import REPLICATED
from megafs.volume.volume import Volume
from tests.fakes.machine import (
    Machine,
    Recording,
    make_volume,
    mkdir,
    overwrite,
    read_file,
    rename,
    snapshot,
    store_of,
    truncate,
    unlink,
    write_file,
)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PART_ROWS", 16)


def machine(base: Path, name: str) -> Machine:
    return Machine(base / name, host=name)


def rows(replica: Replica) -> dict[str, list[Any]]:
    return {
        table.name: list(
            replica.db.execute(
                f"SELECT {', '.join(table.columns)} FROM {table.name}"
                f" ORDER BY {', '.join(table.columns[: table.key])}"
            )
        )
        for table in REPLICATED
    }


async def filled(volume: Volume, count: int = 60) -> None:
    await mkdir(volume.fs, "dir")
    for n in range(count):
        await write_file(volume.fs, f"dir/f{n:03d}", b"%d" % n * 700)
    await volume.drain()


async def only_by_checkpoint(base: Path, store: Recording, sequence: int) -> dict[str, list[Any]]:
    """The rows that a new machine has which gets no commit after the checkpoint."""
    objects = {
        name: data
        for name, data in store.objects.items()
        if not name.startswith("commits/") or int(name[8:]) == sequence
    }
    async with machine(base, "new").open(store_of(objects), read_only=True) as volume:
        assert volume.replica.sequence == sequence
        assert volume.replica.checkpoint == sequence
        return rows(volume.replica)


async def test_what_is_loaded_is_what_was_there(autojump_clock: MockClock, tmp_path: Path) -> None:
    store = Recording()
    await make_volume(store)
    async with machine(tmp_path, "a").open(store) as volume:
        await filled(volume)
        await volume.checkpointer.write()
        there = rows(volume.replica)
        used, files = volume.replica.tree.used, volume.replica.tree.files
        sequence = volume.replica.sequence

        assert await only_by_checkpoint(tmp_path, store, sequence) == there
    async with machine(tmp_path, "c").open(store) as other:
        assert (other.replica.tree.used, other.replica.tree.files) == (used, files)


async def test_little_change_costs_little(autojump_clock: MockClock, tmp_path: Path) -> None:
    store = Recording()
    await make_volume(store)
    async with machine(tmp_path, "a").open(store) as volume:
        await filled(volume, 300)
        before = len(store.changes)
        await volume.checkpointer.write()
        first = len(store.changes) - before
        await overwrite(volume.fs, "dir/f007", 0, b"changed", sync=True)
        before = len(store.changes)
        await volume.checkpointer.write()
        second = [c.name for c in store.changes[before:] if c.op == "put_new"]

        assert first > 60
        # One part each of inodes, extents, writers and ranges, and the manifest; packs at most.
        assert len(second) <= 7
        sequence = volume.replica.sequence
        assert await only_by_checkpoint(tmp_path, store, sequence) == rows(volume.replica)


async def test_incremental_checkpoints_stay_true(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Rows come, go and move between parts, over many checkpoints."""
    store = Recording()
    await make_volume(store)
    a = machine(tmp_path, "a")
    names = [f"dir/f{n:03d}" for n in range(60)]
    async with a.open(store) as volume:
        await filled(volume)
    for step in range(8):
        async with a.open(store) as volume:  # the marks survive a restart
            fs = volume.fs
            match step % 4:
                case 0:
                    for name in names[step * 5 : step * 5 + 30]:
                        await rename(fs, name, name.replace("dir/f", f"dir/r{step}"))
                    names = sorted(p for p, n in (await snapshot(fs)).items() if n[0] == "file")
                case 1:
                    for name in names[::2]:
                        await unlink(fs, name)
                    names = names[1::2]
                case 2:
                    for n in range(40):
                        await write_file(fs, f"dir/n{step}{n:03d}", b"new" * n * 100)
                    names = sorted(p for p, n in (await snapshot(fs)).items() if n[0] == "file")
                case 3:
                    for name in names[:3]:
                        await truncate(fs, name, 0)
            await volume.drain()
            await volume.checkpointer.write()
            there, sequence = rows(volume.replica), volume.replica.sequence
        assert await only_by_checkpoint(tmp_path / str(step), store, sequence) == there


async def test_writes_go_on_and_are_not_half_in_it(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    store = Recording(latency=lambda: 0.2)
    await make_volume(store)
    async with machine(tmp_path, "a").open(store, sync_interval=0.1) as volume:
        await filled(volume)
        trees = {volume.replica.sequence: await snapshot(volume.fs)}

        async def work() -> None:
            for n in range(15):
                await write_file(volume.fs, f"more{n}", b"x" * 2000)
                await rename(volume.fs, f"more{n}", f"dir/more{n}")
                await volume.drain()
                trees[volume.replica.sequence] = await snapshot(volume.fs)

        done: list[int] = []

        async def checkpoints() -> None:
            for _ in range(3):
                done.append(await volume.checkpointer.write())
                await trio.sleep(0.5)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            nursery.start_soon(checkpoints)
        await volume.drain()
        final = await snapshot(volume.fs)
        last = await volume.checkpointer.write()
        there = rows(volume.replica)

    assert done[0] < done[-1] <= last
    assert await only_by_checkpoint(tmp_path / "last", store, last) == there
    for number, sequence in enumerate(done):
        others = {f"checkpoints/{s:016d}/manifest" for s in [*done, last] if s != sequence}
        objects = {n: d for n, d in store.objects.items() if n not in others}
        async with machine(tmp_path, f"m{number}").open(store_of(objects)) as other:
            assert other.replica.checkpoint == sequence
            assert await snapshot(other.fs) == final


async def test_pending_operations_are_not_in_it(autojump_clock: MockClock, tmp_path: Path) -> None:
    store = Recording()
    await make_volume(store)
    async with machine(tmp_path, "a").open(store, sync_interval=1000.0) as volume:
        await write_file(volume.fs, "committed", b"1", sync=True)
        sequence = volume.replica.sequence
        before = rows(volume.replica)
        await write_file(volume.fs, "pending", b"2")
        await mkdir(volume.fs, "unsealed")
        assert await volume.checkpointer.write() == sequence
        assert set(await snapshot(volume.fs)) == {"committed", "pending", "unsealed"}

        assert await only_by_checkpoint(tmp_path, store, sequence) == before
        await volume.drain()
    async with machine(tmp_path, "b").open(store) as other:
        assert set(await snapshot(other.fs)) == {"committed", "pending", "unsealed"}


async def test_a_crash_at_any_put_leaves_the_older_checkpoint(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    store = Recording()
    await make_volume(store)
    a = machine(tmp_path, "a")
    async with a.open(store) as volume:
        await filled(volume)
        first = await volume.checkpointer.write()
        await write_file(volume.fs, "then", b"x", sync=True)
        tree = await snapshot(volume.fs)
        before = dict(store.objects)
        start = len(store.changes)
        second = await volume.checkpointer.write()
        puts = [c for c in store.changes[start:] if c.op == "put_new"]
    for count in range(len(puts) + 1):
        objects = before | {c.name: c.data for c in puts[:count]}
        async with machine(tmp_path, f"m{count}").open(store_of(objects)) as other:
            assert await snapshot(other.fs) == tree
            assert other.replica.checkpoint == (second if count == len(puts) else first)
    # The machine itself, killed in the middle: the marks are still there, the next one is true.
    crashed = a.copy(tmp_path / "crashed")
    async with crashed.open(store_of(before)) as volume:
        await write_file(volume.fs, "more", b"x", sync=True)
        await volume.checkpointer.write()


async def test_a_failed_checkpoint_does_not_forget_what_changed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    store = Recording()
    await make_volume(store)
    async with machine(tmp_path, "a").open(store) as volume:
        await filled(volume)
        await volume.checkpointer.write()
        await write_file(volume.fs, "then", b"x" * 3000, sync=True)
        put_new = store.put_new

        async def fails(name: str, data: bytes) -> None:
            if name.endswith("manifest"):
                raise Exists("taken")
            await put_new(name, data)

        store.put_new = fails  # type: ignore[assignment, method-assign]
        with pytest.raises((Exists, Corrupt, Exception)):
            await volume.checkpointer.write()
        store.put_new = put_new  # type: ignore[method-assign]
        sequence = await volume.checkpointer.write()

        assert await only_by_checkpoint(tmp_path, store, sequence) == rows(volume.replica)


async def test_a_mount_killed_while_it_reads_a_checkpoint_reads_it_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    store = Recording()
    await make_volume(store)
    async with machine(tmp_path, "a").open(store) as volume:
        await filled(volume)
        await volume.checkpointer.write()
        tree = await snapshot(volume.fs)
    b = machine(tmp_path, "b")
    gets = 0
    get = store.get

    async def dies(name: str, start: int, length: int) -> bytes:
        nonlocal gets
        gets += name.startswith("checkpoints/")
        if gets > 8:
            raise KeyboardInterrupt
        return await get(name, start, length)

    store.get = dies  # type: ignore[method-assign]
    with pytest.raises(BaseException) as death:
        async with b.open(store):
            pass
    assert (
        death.group_contains(KeyboardInterrupt)
        if isinstance(death.value, BaseExceptionGroup)
        else isinstance(death.value, KeyboardInterrupt)
    )
    store.get = get  # type: ignore[method-assign]

    async with b.open(store) as volume:
        assert await snapshot(volume.fs) == tree


async def test_staged_work_is_kept_when_the_replica_is_rebuilt_from_a_checkpoint(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    store = Recording()
    await make_volume(store)
    a = machine(tmp_path, "a")
    async with a.open(store) as volume:
        await filled(volume)
        await volume.checkpointer.write()
    async with a.open(store, sync_interval=1000.0) as volume:
        await write_file(volume.fs, "staged", b"s" * 5000)
        await overwrite(volume.fs, "dir/f001", 0, b"staged too")
        tree = await snapshot(volume.fs)
    for path in a.volume_dir.glob("replica.db*"):
        path.unlink()
    said: list[str] = []

    async with a.open(store, say=said.append) as volume:
        assert await snapshot(volume.fs) == tree
        assert any("not committed" in text for text in said)
        await volume.drain()
    async with machine(tmp_path, "b").open(store) as other:
        assert await snapshot(other.fs) == tree
        assert await read_file(other.fs, "staged") == b"s" * 5000


async def test_a_damaged_part_found_late_still_gives_way(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Recording()
    await make_volume(store)
    async with machine(tmp_path, "a").open(store) as volume:
        await filled(volume)
        first = await volume.checkpointer.write()
        await overwrite(volume.fs, "dir/f001", 0, b"x", sync=True)
        second = await volume.checkpointer.write()
        tree = await snapshot(volume.fs)
    parts = [n for n in store.objects if n.startswith(f"checkpoints/{second:016d}/")]
    for number, name in enumerate(n for n in parts if "manifest" not in n):
        data = store.objects[name]
        objects = store.objects | {name: data[:-1] + bytes([data[-1] ^ 1])}
        async with machine(tmp_path, f"m{number}").open(store_of(objects)) as other:
            assert other.replica.checkpoint == first
            assert await snapshot(other.fs) == tree
    assert [r for r in caplog.records if r.levelno == logging.WARNING]


class Narrow(MemoryStore):
    """A store that takes no object of more than *limit* bytes, once there is a limit."""

    limit: int | None = None

    async def put_new(self, name: str, data: Buffer) -> None:
        if self.limit is not None and len(data) > self.limit:
            raise TooLarge(f"{name}: {len(data)} bytes are too many")
        await super().put_new(name, data)


@pytest.mark.parametrize("limit", [1 << 20, 64 << 10])
async def test_a_checkpoint_gets_through_where_no_large_objects_do(
    limit: int, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """65,536 hashes of 32 bytes, which do not compress, are a manifest of 2 MiB."""
    store = Narrow()
    await make_volume(store)
    async with Machine(tmp_path / "one").open(store) as volume:
        for n in range(300):
            await write_file(volume.fs, f"{n}", os.urandom(1000))
        await volume.drain()
        sequence = volume.replica.sequence
        volume.replica.db.executemany(
            "INSERT OR IGNORE INTO history VALUES(?,?,1,'',0,0)",
            ((sequence - n, os.urandom(32)) for n in range(1, checkpoint.HASH_TAIL)),
        )
        expected = await snapshot(volume.fs)
        store.limit = limit
        made = await volume.checkpointer.write()
        assert made == sequence
        size = len(store.objects[checkpoint.manifest_name(made)])
        assert limit // 4 < size <= limit, "as many hashes as there is room for"
        await write_file(volume.fs, "more", b"x", sync=True)
        assert await volume.checkpointer.write()
    commits = [name for name in store.objects if name.startswith("commits/")]
    for name in commits[:-1]:
        await store.delete(name)
    async with Machine(tmp_path / "two").open(store) as volume:
        assert {**expected, "more": ("file", b"x")} == await snapshot(volume.fs)
