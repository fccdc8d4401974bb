"""Every batch of every mount is in the journal once, in one order that all agree on."""

from __future__ import annotations

import itertools
import logging
import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from megafs.crypto.volume_keys import digest
from megafs.errors import Corrupt, Unavailable
from megafs.fs.requests import Invalidation
from megafs.journal import commit as commit_format
from megafs.journal import head
from megafs.journal.commit import VerifiedCommit, object_name, open_commit
from megafs.stores.memory import MemoryStore
from megafs.volume.volume import Volume
from tests.fakes.faulty import Fault, Faulty
from tests.fakes.machine import (
    ROOT_USER,
    Machine,
    Recording,
    make_volume,
    mkdir,
    overwrite,
    read_file,
    resolve,
    snapshot,
    store_of,
    write_file,
)


def machine(base: Path, name: str) -> Machine:
    return Machine(base / name, host=name)


def journal(volume: Volume, store: MemoryStore) -> list[commit_format.Commit]:
    """Every commit in the store, with the chain checked from its beginning."""
    prev = commit_format.genesis(volume.fsid)
    found: list[commit_format.Commit] = []
    while (data := store.objects.get(object_name(len(found) + 1))) is not None:
        commit = open_commit(volume.keyring, len(found) + 1, data)
        assert commit.prev == prev
        prev = digest(data)
        found.append(commit)
    assert len([n for n in store.objects if n.startswith("commits/")]) == len(found)
    return found


def batches(commits: list[commit_format.Commit], mount: int) -> list[tuple[int, int]]:
    return [(c.first_batch, c.last_batch) for c in commits if c.mount == mount]


async def test_two_writers_racing_lose_nothing_and_agree(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    store = Recording(latency=lambda: 0.05)
    await make_volume(store)
    async with (
        machine(tmp_path, "a").open(store, sync_interval=0.1) as a,
        machine(tmp_path, "b").open(store, sync_interval=0.1) as b,
    ):

        async def work(volume: Volume, label: str) -> None:
            await mkdir(volume.fs, f"dir-{label}")
            for n in range(25):
                await write_file(volume.fs, f"dir-{label}/{n}", f"{label}{n}".encode())
                if n % 5 == 0:
                    await volume.drain()
                else:
                    await trio.sleep(0.03)
            await volume.drain()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, a, "a")
            nursery.start_soon(work, b, "b")
        await trio.sleep(20)

        assert a.writer.races_lost + b.writer.races_lost > 0
        assert await snapshot(a.fs) == await snapshot(b.fs)
        assert a.replica.head == b.replica.head
        commits = journal(a, store)
        for volume, label in ((a, "a"), (b, "b")):
            runs = batches(commits, volume.replica.mount)
            assert len(runs) == volume.writer.commits
            assert all(first <= last for first, last in runs)
            assert all(x[1] < y[0] for x, y in itertools.pairwise(runs)), "twice"
            tree = await snapshot(volume.fs)
            for n in range(25):
                assert tree[f"dir-{label}/{n}"] == ("file", f"{label}{n}".encode())
            assert volume.status()["conflicts"] == []


async def test_both_change_one_file_and_neither_loses_a_byte(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    store = Recording()
    await make_volume(store)
    async with machine(tmp_path, "a").open(store) as a, machine(tmp_path, "b").open(store) as b:
        await write_file(a.fs, "x", b"common", sync=True)
        await trio.sleep(10)
        assert await read_file(b.fs, "x") == b"common"
        await overwrite(a.fs, "x", 0, b"from a")
        await overwrite(b.fs, "x", 0, b"from b")
        await a.drain()
        await b.drain()
        await trio.sleep(20)

        tree = await snapshot(a.fs)
        assert tree == await snapshot(b.fs)
        assert sorted(node[1] for node in tree.values()) == [b"from a", b"from b"]


async def test_a_lost_reply_is_one_commit(autojump_clock: MockClock, tmp_path: Path) -> None:
    store = Recording()
    await make_volume(store)
    faulty = Faulty(store)
    async with machine(tmp_path, "a").open(faulty) as volume:
        faulty.script = [Fault("after", op="put_new")]
        await write_file(volume.fs, "x", b"small", sync=True)
        await write_file(volume.fs, "y", b"small", sync=True)

        assert faulty.hit == ["after"]
        commits = journal(volume, store)
        runs = batches(commits, volume.replica.mount)
        assert len({first for first, _ in runs}) == len(runs)
        assert volume.status()["conflicts"] == []
        assert volume.writer.frozen is None


async def test_followers_apply_in_order_and_hear_what_changed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    store = Recording()
    await make_volume(store)
    async with machine(tmp_path, "a").open(store) as a, machine(tmp_path, "b").open(store) as b:
        seen: list[int] = []
        follow = b.replica.follow

        def noted(commits: list[VerifiedCommit]) -> object:
            seen.extend(verified.sequence for verified in commits)
            return follow(commits)

        b.replica.follow = noted  # type: ignore[assignment, method-assign]
        told: list[Invalidation] = []
        b.fs.attach_kernel(told.extend)
        b.fs.remember(1)
        first = a.replica.sequence + 1
        for n in range(40):
            await write_file(a.fs, f"f{n}", b"%d" % n, sync=True)
        await trio.sleep(15)

        assert seen == list(range(first, first + 40))
        assert {t.name for t in told if t.kind == "entry"} == {b"f%d" % n for n in range(40)}
        assert await read_file(b.fs, "f39") == b"39"


async def test_far_behind_is_fetched_side_by_side_and_a_gap_is_found(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    store = Recording()
    await make_volume(store)
    async with machine(tmp_path, "a").open(store) as a:
        for n in range(50):
            await write_file(a.fs, f"f{n}", b"x", sync=True)
        await a.drain()
        tree = await snapshot(a.fs)
    for gone in (3, 20, 49):
        objects = {n: d for n, d in store.objects.items() if n != object_name(gone)}
        with pytest.raises(Corrupt, match=f"{gone} .*although"):
            async with machine(tmp_path, f"b{gone}").open(store_of(objects)):
                pass
    async with machine(tmp_path, "c").open(store) as c:
        assert await snapshot(c.fs) == tree


async def test_a_store_that_fails_now_and_then_only_delays(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Recording()
    await make_volume(store)
    faulty = Faulty(store, seed=3, rates={"before": 0.3, "after": 0.1, "slow": 0.1})
    async with machine(tmp_path, "b").open(store) as b:
        a = machine(tmp_path, "a")
        while True:
            try:
                async with a.open(faulty) as volume:
                    for n in range(20):
                        await write_file(volume.fs, f"f{n}", b"%d" % n)
                        await trio.sleep(0.7)
                    await volume.drain()
                break
            except Unavailable:  # while opening
                continue
        await trio.sleep(10)
        tree = await snapshot(b.fs)
        assert tree == {f"f{n}": ("file", b"%d" % n) for n in range(20)}
        assert batches(journal(b, store), b.replica.mount) == []


async def test_a_store_that_is_away_is_asked_less_and_less(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Recording()
    await make_volume(store)
    faulty = Faulty(store)
    async with machine(tmp_path, "a").open(faulty, fsync="local") as volume:
        await write_file(volume.fs, "x", b"1")
        await volume.drain()
        faulty.partitioned = True
        faulty.calls.clear()
        caplog.set_level(logging.INFO)
        await write_file(volume.fs, "y", b"2", sync=True)
        await trio.sleep(600)
        # Once in 4 s; a real store has stores/retry.py in front, which lets through still less.
        assert faulty.count("put_new") < 180
        assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
        assert volume.progress().error
        faulty.partitioned = False
        with trio.fail_after(60):
            await volume.drain()
        assert volume.progress().done
        assert volume.progress().error == ""


async def test_a_commit_nobody_could_read_is_never_written(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Recording()
    await make_volume(store)
    async with machine(tmp_path, "a").open(store, deadline=5.0) as volume:
        monkeypatch.setattr(commit_format, "MAX_OBJECT", 2000)
        before = len(store.objects)
        fs = volume.fs
        await write_file(fs, "x", b"")
        value = os.urandom(5000)
        await fs.setxattr(resolve(fs, "x"), b"user.big", value, 0, ROOT_USER)
        with pytest.raises(Unavailable, match="too large"):
            await fs.fsyncdir(fs.opendir(1))
        assert len([n for n in store.objects if n.startswith("commits/")]) == 1
        assert len(store.objects) <= before + 1
        monkeypatch.undo()
        await volume.drain()
    async with machine(tmp_path, "b").open(store) as other:
        assert other.fs.getxattr(resolve(other.fs, "x"), b"user.big") == value


async def test_the_head_is_on_disk_before_an_fsync_returns(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    store = Recording()
    await make_volume(store)
    a = machine(tmp_path, "a")
    async with a.open(store) as volume:
        for n in range(5):
            await write_file(volume.fs, f"f{n}", b"x", sync=True)
            seen = head.read(a.volume_dir)
            assert seen is not None
            assert (seen.sequence, seen.hash) == (
                volume.replica.sequence,
                volume.replica.head.hex(),
            )
            assert object_name(seen.sequence) in store.objects
