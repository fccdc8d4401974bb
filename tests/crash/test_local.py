"""This machine dies: what was closed is there again, the rest is a prefix, nothing happens twice.

"Copies" below are copies of the state directory, taken after every step of a workload while it is
in use, as a kill -9 or a power cut would leave it.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from megafs.errors import Unavailable
from tests.crash.workload import History, run_steps
from tests.fakes.faulty import Faulty
from tests.fakes.machine import (
    ROOT_USER,
    Machine,
    Recording,
    Snapshot,
    make_volume,
    read_file,
    rename,
    snapshot,
    store_of,
    write_file,
)

SMALL = {"chunk_size": 16384, "pack_size": 65536}
#: Packs that take 64 KiB in one go also where the store limits objects (pack_size.py): from there
#: on the log of operations does not hold what goes into them (stage.py).
ROOMY = {"chunk_size": 16384, "pack_size": 262_144}
#: A file that leaves such a pack open, and one whose last bytes fill it: it is cut, and sent.
OPEN = 70_000
FULL = 262_144
STEPS = 45


@dataclass(frozen=True)
class Copy:
    """What lay on the disk, and in the store, after a step.

    owed: the first state that was promised then.  synced: how many bytes of each file of the state
    directory a power cut cannot take; named: the files whose names it cannot.
    """

    machine: Machine
    objects: dict[str, bytes]
    owed: int
    synced: dict[str, int]
    named: set[str]

    def taken(self, base: Path) -> Machine:
        return self.machine.copy(base)


@dataclass(frozen=True)
class Life:
    """A machine's whole life: its copies, what the tree went through, what the store holds."""

    copies: list[Copy]
    history: History
    objects: dict[str, bytes]

    def some(self, seed: int) -> list[tuple[int, Copy]]:
        """Some of the copies with their numbers: opening one takes some twentieth of a second."""
        count = int(os.environ.get("MEGAFS_CRASH_COPIES", "8"))
        chosen = random.Random(seed).sample(range(len(self.copies)), min(count, len(self.copies)))
        return [(n, self.copies[n]) for n in sorted(chosen)]


Sync = Callable[[Any], None]


class Disk:
    """Remembers what of a state directory was synced, by what was asked of the kernel."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._real = (os.fsync, os.fdatasync)
        self.synced: dict[str, int] = {}
        self.named: set[str] = set()

    def __enter__(self) -> None:
        os.fsync, os.fdatasync = (self._noting(sync) for sync in self._real)  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        os.fsync, os.fdatasync = self._real

    def _noting(self, sync: Sync) -> Sync:
        def noting(fd: int) -> None:
            sync(fd)
            path = Path(os.readlink(f"/proc/self/fd/{fd}"))
            if not path.is_relative_to(self._machine.volume_dir):
                return
            if path.is_dir():
                for entry in path.iterdir():
                    self.named.add(str(entry.relative_to(self._machine.volume_dir)))
            else:
                name = str(path.relative_to(self._machine.volume_dir))
                self.synced[name] = os.fstat(fd).st_size

        return noting


@pytest.fixture(scope="module", params=[11, 12])
def life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Life:
    seed: int = request.param
    base = tmp_path_factory.mktemp(f"life{seed}")
    rng = random.Random(seed)
    store = Recording(latency=lambda: rng.uniform(0, 0.3))
    history = History()
    copies: list[Copy] = []
    machine = Machine(base / "it")
    disk = Disk(machine)

    def moment() -> int:  # called at every promise
        return len(copies)

    async def after_step() -> None:
        copies.append(
            Copy(
                machine.copy(base / f"copy{len(copies)}"),
                dict(store.objects),
                history.owed(len(copies)),
                dict(disk.synced),
                set(disk.named),
            )
        )

    async def live() -> None:
        await make_volume(store, **SMALL)
        async with machine.open(store) as volume:
            await run_steps(
                volume,
                history,
                moment,
                steps=STEPS,
                seed=seed,
                promise_close=True,
                after_step=after_step,
            )
            await volume.drain()

    with disk:
        trio.run(live, clock=MockClock(autojump_threshold=0))
    return Life(copies, history, dict(store.objects))


async def survives(life: Life, copy: Copy, machine: Machine, base: Path) -> None:
    """Opened again the tree is as promised; what another machine then sees is the same."""
    store = store_of(copy.objects)
    async with machine.open(store) as volume:
        tree = await snapshot(volume.fs)
        found = [n for n, state in enumerate(life.history.states) if state == tree]
        assert found, "a tree that never was"
        assert found[-1] >= copy.owed
        await write_file(volume.fs, "after the crash", b"works")
        with trio.fail_after(100):
            await volume.drain()
    async with Machine(base / "other").open(store) as volume:
        assert await snapshot(volume.fs) == tree | {"after the crash": ("file", b"works")}
    async with machine.open(store) as volume:  # and once more, from what is left now
        assert await snapshot(volume.fs) == tree | {"after the crash": ("file", b"works")}


def remove_replica(machine: Machine) -> None:
    for path in machine.volume_dir.glob("replica.db*"):
        path.unlink()


def cut(machine: Machine, copy: Copy, rng: random.Random, what: Callable[[Path], bool]) -> None:
    """A power cut: files keep what was synced and any part of what was not."""
    for path in machine.volume_dir.rglob("*"):
        if path.is_file() and what(path):
            name = str(path.relative_to(machine.volume_dir))
            if name not in copy.named and rng.random() < 0.5:
                path.unlink()  # the new name was not synced either
                continue
            size = path.stat().st_size
            os.truncate(path, rng.randint(min(copy.synced.get(name, 0), size), size))
    (machine.volume_dir / "boot").write_text("another boot")


async def test_a_process_killed_at_any_moment(
    autojump_clock: MockClock, life: Life, tmp_path: Path
) -> None:
    for n, copy in life.some(2):
        await survives(life, copy, copy.taken(tmp_path / f"{n}"), tmp_path / f"{n}x")


async def test_a_power_cut_takes_any_of_what_was_not_synced(
    autojump_clock: MockClock, life: Life, tmp_path: Path
) -> None:
    rng = random.Random(1)
    for n, copy in life.some(3):
        machine = copy.taken(tmp_path / f"{n}")
        if n % 2:
            remove_replica(machine)
        cut(
            machine,
            copy,
            rng,
            lambda path: path.name.startswith("ops-") or path.parent.name == "packs",
        )
        await survives(life, copy, machine, tmp_path / f"{n}x")


@dataclass(frozen=True)
class CutOff:
    """A machine whose store went away after "first", and that then closed some more files.

    pack: where their chunks are.  synced: its size after the first of them.  sent: whether it was
    cut, and the mount tried to send it.
    """

    machine: Machine
    objects: dict[str, bytes]
    pack: Path
    synced: int
    sent: bool


async def cut_off(base: Path, files: dict[str, bytes], *, sealed: bool = False) -> CutOff:
    store = Recording()
    await make_volume(store, **ROOMY)
    machine = Machine(base / "a")
    async with machine.open(store) as volume:
        await write_file(volume.fs, "first", b"1" * 5000, sync=True)
    away = Faulty(store)
    synced = 0
    async with machine.open(away) as volume:
        away.partitioned = True
        for name, data in files.items():
            await write_file(volume.fs, name, data)
            (pack,) = machine.volume_dir.glob("packs/*")
            synced = synced or pack.stat().st_size
        await wait_all_tasks_blocked()  # what was cut is on its way
        assert len(volume.replica.pending) == 0
        if sealed:
            await trio.sleep(5)  # the writer tries to commit it
            assert len(volume.replica.pending) == 1
        sent = any(op == "put_new" and name.startswith("packs/") for op, name in away.calls)
        copy = machine.copy(base / "cut off")
        objects = dict(store.objects)
        away.partitioned = False
    return CutOff(copy, objects, copy.volume_dir / "packs" / pack.name, synced, sent)


def reboot(machine: Machine, boot: str = "another boot") -> None:
    (machine.volume_dir / "boot").write_text(boot)


async def test_a_pack_whose_very_name_a_power_cut_took(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The log that names it was synced first; a commit of it would name what nobody has."""
    it = await cut_off(tmp_path, {"second": b"2" * 5000})
    it.pack.unlink()
    reboot(it.machine)
    async with it.machine.open(store_of(it.objects)) as volume:
        assert set(await snapshot(volume.fs)) == {"first"}
        await write_file(volume.fs, "third", b"3" * 5000, sync=True)


@pytest.mark.parametrize("size", [5000, OPEN, FULL])
@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("replica_lost", [False, True])
async def test_a_power_cut_inside_a_batch_of_several_closes(
    autojump_clock: MockClock, tmp_path: Path, sealed: bool, replica_lost: bool, size: int
) -> None:
    """The first close was synced; the pack was not when the log was that names the second one's
    bytes."""
    files = {"second": b"2" * 5000, "third": os.urandom(size), "fourth": b"4" * 10}
    it = await cut_off(tmp_path, files, sealed=sealed)
    assert it.sent == (sealed or size == FULL)
    # Of a small file the log holds the bytes, too; and then nothing of the pack is needed.
    small = size < 65536
    os.truncate(it.pack, 0 if small else it.synced)
    if replica_lost:
        remove_replica(it.machine)
    reboot(it.machine)
    store = store_of(it.objects)
    kept = files if small else {"second": files["second"]}
    expected = {name: ("file", data) for name, data in {"first": b"1" * 5000, **kept}.items()}
    async with it.machine.open(store) as volume:
        assert await snapshot(volume.fs) == expected
        await write_file(volume.fs, "fifth", b"5" * 5000)
        with trio.fail_after(100):
            await volume.drain()
    async with Machine(tmp_path / "b").open(store) as volume:
        assert await snapshot(volume.fs) == expected | {"fifth": ("file", b"5" * 5000)}


@pytest.mark.parametrize("size", [OPEN, FULL])
async def test_a_second_power_cut_after_the_first_one_was_recovered(
    autojump_clock: MockClock, tmp_path: Path, size: int
) -> None:
    """What was dropped took the log with it that held small chunks: their packs are synced now."""
    it = await cut_off(tmp_path, {"second": b"2" * 5000, "third": os.urandom(size)})
    assert it.sent == (size == FULL)
    os.truncate(it.pack, it.synced // 2)
    reboot(it.machine)
    expected = {"first": ("file", b"1" * 5000), "second": ("file", b"2" * 5000)}
    away = Faulty(store_of(it.objects))
    disk = Disk(it.machine)
    with disk:
        async with it.machine.open(away) as volume:
            away.partitioned = True
            assert await snapshot(volume.fs) == expected
            twice = it.machine.copy(tmp_path / "twice")
            safe = dict(disk.synced)
            away.partitioned = False
    for path in twice.volume_dir.glob("packs/*"):
        os.truncate(path, min(path.stat().st_size, safe.get(f"packs/{path.name}", 0)))
    reboot(twice, "a third boot")
    async with twice.open(store_of(it.objects)) as volume:
        assert await snapshot(volume.fs) == expected


async def test_a_process_killed_inside_a_batch_of_several_closes(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """SQLite's open transaction is gone with the process; what was closed is not."""
    store = Recording()
    await make_volume(store, **SMALL)
    machine = Machine(tmp_path / "a")
    copies: list[tuple[Machine, dict[str, bytes], Snapshot]] = []
    async with machine.open(store) as volume:
        for n in range(6):
            await write_file(volume.fs, f"f{n}", b"%d" % n * 3000)
            if n > 2:
                await rename(volume.fs, f"f{n - 2}", f"g{n}")
                await write_file(volume.fs, f"h{n}", b"and %d" % n)
            assert volume.replica.pending == {}
            tree = await snapshot(volume.fs)
            copies.append((machine.copy(tmp_path / f"copy{n}"), dict(store.objects), tree))
    for n, (copy, objects, tree) in enumerate(copies):
        crashed = store_of(objects)
        async with copy.open(crashed) as volume:
            assert await snapshot(volume.fs) == tree
            with trio.fail_after(100):
                await volume.drain()
        async with Machine(tmp_path / f"{n}x").open(crashed) as volume:
            assert await snapshot(volume.fs) == tree


async def test_a_replica_that_is_gone_is_made_again(
    autojump_clock: MockClock, life: Life, tmp_path: Path
) -> None:
    for n, copy in life.some(4):
        machine = copy.taken(tmp_path / f"{n}")
        remove_replica(machine)
        await survives(life, copy, machine, tmp_path / f"{n}x")


async def test_a_replica_damaged_anywhere_is_made_again(
    autojump_clock: MockClock, life: Life, tmp_path: Path
) -> None:
    rng = random.Random(2)
    for n, copy in life.some(5):
        machine = copy.taken(tmp_path / f"{n}")
        for name in ("replica.db", "replica.db-wal"):
            path = machine.volume_dir / name
            if not path.exists():
                continue
            data = bytearray(path.read_bytes())
            for _ in range(rng.choice([1, 1, 10])):
                at = rng.randrange(len(data)) if data else 0
                data[at : at + 32] = rng.randbytes(min(32, len(data) - at))
            path.write_bytes(data)
        (machine.volume_dir / "boot").write_text("another boot")
        await survives(life, copy, machine, tmp_path / f"{n}x")


async def test_a_replica_that_is_an_older_one(
    autojump_clock: MockClock, life: Life, tmp_path: Path
) -> None:
    """A power cut takes the newest transactions of SQLite, but not what was synced beside it."""
    rng = random.Random(3)
    for n, copy in life.some(1):
        machine = copy.taken(tmp_path / f"{n}")
        older = life.copies[rng.randrange(n + 1)].machine
        remove_replica(machine)
        for path in older.volume_dir.glob("replica.db*"):
            shutil.copy(path, machine.volume_dir / path.name)
        await survives(life, copy, machine, tmp_path / f"{n}x")


async def test_a_state_directory_from_a_backup_does_nothing_twice(
    autojump_clock: MockClock, life: Life, tmp_path: Path
) -> None:
    """All of the state is old, and the journal holds what this machine did since."""
    async with Machine(tmp_path / "new").open(store_of(life.objects)) as volume:
        final = await snapshot(volume.fs)
    assert final == life.history.states[-1]
    for n, copy in life.some(6):
        store = store_of(life.objects)
        machine = copy.taken(tmp_path / f"{n}")
        async with machine.open(store) as volume:
            assert await snapshot(volume.fs) == final
            await write_file(volume.fs, "then", b"x", sync=True)
        async with Machine(tmp_path / f"{n}x").open(store) as volume:
            assert await snapshot(volume.fs) == final | {"then": ("file", b"x")}


async def test_an_old_state_used_without_the_store_loses_nothing_when_it_is_back(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A power cut took batches that are in the journal; new ones are made before it is seen."""
    store = Recording()
    await make_volume(store, **SMALL)
    machine = Machine(tmp_path / "a")
    async with machine.open(store) as volume:
        await write_file(volume.fs, "first", b"1", sync=True)
    old = machine.copy(tmp_path / "old")
    async with machine.open(store) as volume:
        for n in range(3):
            await write_file(volume.fs, f"second{n}", b"2", sync=True)
    for path in old.volume_dir.iterdir():  # all but the head, which is always synced
        if path.is_file() and path.name != "head":
            shutil.copy(path, machine.volume_dir / path.name)
    away = Faulty(store)
    away.partitioned = True
    async with machine.open(away) as volume:
        assert volume.offline
        for n in range(3):
            await write_file(volume.fs, f"third{n}", b"3")
        away.partitioned = False
        with trio.fail_after(120):
            await volume.drain()
    async with Machine(tmp_path / "b").open(store) as volume:
        names = set(await snapshot(volume.fs))
    assert names == {"first"} | {f"{w}{n}" for w in ("second", "third") for n in range(3)}


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
async def test_lost_replies_do_nothing_twice(
    autojump_clock: MockClock, tmp_path: Path, seed: int
) -> None:
    store = Recording()
    await make_volume(store, **SMALL)
    faulty = Faulty(store, seed=seed, rates={"after": 0.4, "before": 0.1}, only={"put_new"})
    history = History()
    async with Machine(tmp_path / "a").open(faulty) as volume:
        await run_steps(volume, history, lambda: 0, steps=60, seed=seed, checkpoints=False)
        with trio.fail_after(600):
            await volume.drain()
        tree = await snapshot(volume.fs)
    assert "after" in faulty.hit
    assert tree == history.states[-1]
    async with Machine(tmp_path / "b").open(store) as volume:
        assert await snapshot(volume.fs) == tree
        assert volume.status()["conflicts"] == []


@pytest.mark.parametrize("landed", [True, False])
async def test_a_process_that_dies_before_it_hears_of_its_commit(
    autojump_clock: MockClock, tmp_path: Path, landed: bool
) -> None:
    store = Recording()
    await make_volume(store, **SMALL)
    machine = Machine(tmp_path / "a")
    async with machine.open(store) as volume:
        await write_file(volume.fs, "x", b"1", sync=True)
    faulty = Faulty(store, only={"put_new"}, rates={"after" if landed else "before": 1.0})
    async with machine.open(faulty) as volume:
        await write_file(volume.fs, "y", b"2")
        await rename(volume.fs, "x", "z")
        with pytest.raises(Unavailable):
            with trio.move_on_after(5):
                await volume.writer.commit_all()
        crashed = machine.copy(tmp_path / "crashed")
    assert any(c.op == "put_new" for c in store.changes[-2:]) or not landed

    expected: Snapshot = {"z": ("file", b"1"), "y": ("file", b"2")}
    async with crashed.open(store) as volume:
        assert await snapshot(volume.fs) == expected
        await volume.drain()
        assert volume.status()["conflicts"] == []
    async with Machine(tmp_path / "b").open(store) as volume:
        assert await snapshot(volume.fs) == expected
        assert await read_file(volume.fs, "z") == b"1"


async def test_fsync_with_nothing_new_after_a_rebuild_returns(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    store = Recording()
    await make_volume(store, **SMALL)
    machine = Machine(tmp_path / "a")
    async with machine.open(store) as volume:
        await write_file(volume.fs, "x", b"1", sync=True)
    remove_replica(machine)
    async with machine.open(store) as volume:
        fh, _ = await volume.fs.open(volume.fs.lookup(1, b"x").ino, os.O_RDWR, ROOT_USER)
        with trio.fail_after(5):
            await volume.fs.fsync(fh, False)
        await volume.fs.release(fh)
        assert volume.replica.pending == {}
        assert await read_file(volume.fs, "x") == b"1"
