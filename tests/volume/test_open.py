"""How many round trips opening takes, and that it checks what it checked one by one."""

from __future__ import annotations

from pathlib import Path

import trio
from trio.testing import MockClock

from megafs.stores.base import ObjectStore
from megafs.stores.memory import MemoryStore
from tests.fakes.distant import Distant
from tests.fakes.machine import Machine, make_volume, mkdir


async def commits(store: ObjectStore, machine: Machine, count: int) -> None:
    """Make so many commits."""
    async with machine.open(store) as volume:
        for _ in range(count):
            await mkdir(volume.fs, f"d{volume.replica.sequence}-{machine.base.name}")
            await volume.drain()


async def opened(store: MemoryStore, machine: Machine) -> tuple[float, list[tuple[str, str]], int]:
    """Seconds, and so round trips, that opening takes; what was asked; the commit it stands on."""
    distant = Distant(store)
    began = trio.current_time()
    async with machine.open(distant) as volume:
        took, asked = trio.current_time() - began, list(distant.asked)
        sequence = volume.replica.sequence
    return took, asked, sequence


async def test_a_volume_seen_before_takes_one_round_trip(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    store = MemoryStore()
    await make_volume(store)
    machine = Machine(tmp_path / "one")
    await commits(store, machine, 5)

    took, asked, sequence = await opened(store, machine)

    assert took == 1
    assert sorted(asked) == [
        ("get", f"commits/{sequence:016d}"),
        ("get", f"commits/{sequence + 1:016d}"),
        ("get", "keys/00000001"),
        ("list", "commits/"),
        ("list", "keys/"),
    ]


async def test_what_others_wrote_meanwhile_takes_one_more(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    store = MemoryStore()
    await make_volume(store)
    machine, other = Machine(tmp_path / "one"), Machine(tmp_path / "two")
    await commits(store, machine, 2)
    await commits(store, other, 50)

    took, asked, sequence = await opened(store, machine)

    assert sequence >= 52
    assert took == 2
    assert len(asked) <= 50 + 8


async def test_a_new_machine_takes_few(autojump_clock: MockClock, tmp_path: Path) -> None:
    store = MemoryStore()
    await make_volume(store)
    await commits(store, Machine(tmp_path / "one"), 100)
    async with Machine(tmp_path / "one").open(store) as volume:
        assert await volume.checkpointer.write()
    await commits(store, Machine(tmp_path / "one"), 40)

    took, asked, sequence = await opened(store, Machine(tmp_path / "new"))

    assert sequence >= 140
    # Lists; manifest and header; parts and commits.
    assert took <= 4
    assert len({name for what, name in asked if what == "get" and "commits/" in name}) <= 44


async def test_a_long_journal_is_read_in_windows(autojump_clock: MockClock, tmp_path: Path) -> None:
    store = MemoryStore()
    await make_volume(store)
    await commits(store, Machine(tmp_path / "one"), 200)

    took, asked, sequence = await opened(store, Machine(tmp_path / "new"))

    assert sequence >= 200
    assert took <= 8
    names = [name for what, name in asked if what == "get" and name.startswith("commits/")]
    assert len(names) == len(set(names)) == sequence + 1
