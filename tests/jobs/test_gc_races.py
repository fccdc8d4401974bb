"""gc on several mounts at once, while they write, go away, come back and crash: nothing is lost.

Seeded.  Each machine has files of its own, whose contents come from a small pool, so that with
deduplication packs are shared, abandoned and named again all the time.  What each file must hold is
known; at the end every machine has to read it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from megafs import clock
from megafs.concurrency import in_place
from megafs.errors import Unavailable
from megafs.jobs import registry
from megafs.stores.base import Buffer, Page
from megafs.stores.memory import MemoryStore
from megafs.stores.wrapper import Wrapper
from megafs.volume.volume import Volume
from tests.fakes.machine import (
    Machine,
    make_volume,
    overwrite,
    read_file,
    snapshot,
    truncate,
    unlink,
    write_file,
)
from tests.tree.invariants import check

DAY = 86400.0
SEEDS = int(os.environ.get("MEGAFS_GC_SEEDS", "3"))


class Line(Wrapper):
    """One machine's way to the store: slow, and sometimes cut."""

    def __init__(self, store: MemoryStore, rng: random.Random) -> None:
        super().__init__(store)
        self.up = True
        self._rng = rng

    async def _pass(self) -> None:
        await trio.sleep(self._rng.uniform(0, 0.3))
        if not self.up:
            raise Unavailable("the line is cut")

    async def get(self, name: str, start: int, length: int) -> bytes:
        await self._pass()
        return await self.beneath.get(name, start, length)

    async def put_new(self, name: str, data: Buffer) -> None:
        await self._pass()
        await self.beneath.put_new(name, data)

    async def put(self, name: str, data: Buffer) -> None:
        await self._pass()
        await self.beneath.put(name, data)

    async def delete(self, name: str) -> None:
        await self._pass()
        await self.beneath.delete(name)

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        await self._pass()
        return await self.beneath.list(prefix, after, limit)


class Calendar:
    """The wall clock: the days that were let go by, and trio's seconds."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._base = clock.now_ns()

    def now_ns(self) -> int:
        return self._base + int((self.ahead + trio.current_time()) * 1e9)


@pytest.fixture
def calendar() -> Iterator[Calendar]:
    made = Calendar()
    with clock.replaced(now_ns=made.now_ns):
        yield made


def silent(_: object) -> None:
    pass


class Player:
    """One machine that writes, and what its files must hold."""

    def __init__(
        self, number: int, base: Path, store: MemoryStore, seed: int, nursery: trio.Nursery
    ) -> None:
        rng = random.Random(f"{seed}-{number}")
        self.rng = rng
        self.line = Line(store, rng)
        self.machine = Machine(base / f"m{number}", f"m{number}", {"deadline": 5.0})
        self.name = f"m{number}"
        self.files: dict[str, bytes] = {}
        self.volume: Volume | None = None
        self.nursery = nursery

    async def open(self) -> None:
        """Open the volume, in a task of its own: players come and go in any order."""
        self.line.up = True
        self._stop, self._ended = trio.Event(), trio.Event()
        await self.nursery.start(self._hold)

    async def _hold(self, task_status: trio.TaskStatus[None]) -> None:
        async with self.machine.open(self.line) as self.volume:
            task_status.started()
            await self._stop.wait()
        self._ended.set()

    async def close(self) -> None:
        """Close it without a drain: what is not in the store stays on the machine."""
        self.volume = None
        self._stop.set()
        await self._ended.wait()

    async def step(self) -> None:
        """One random change."""
        assert self.volume is not None
        fs, rng = self.volume.fs, self.rng
        path = f"{self.name}-{rng.randrange(4)}"
        old = self.files.get(path)
        choice = rng.random()
        if old is None:
            data = b"".join(bytes([rng.randrange(5)]) * 16384 for _ in range(rng.randrange(1, 6)))
            await write_file(fs, path, data)
            self.files[path] = data
        elif choice < 0.45:
            await unlink(fs, path)
            del self.files[path]
        elif choice < 0.8:
            at = 16384 * rng.randrange(len(old) // 16384 + 1)
            data = bytes([rng.randrange(5)]) * 16384
            await overwrite(fs, path, at, data)
            self.files[path] = old[:at] + data + old[at + len(data) :]
        else:
            size = rng.randrange(len(old) + 1)
            await truncate(fs, path, size)
            self.files[path] = old[:size]


async def collect(player: Player, rng: random.Random) -> None:
    assert player.volume is not None
    try:
        with trio.move_on_after(rng.choice([1, 5, 1000])):  # interrupted anywhere
            await registry.run(
                player.volume,
                "gc",
                {"threshold": rng.choice([0.3, 0.9]), "retention": rng.choice([20, 30]) * DAY},
                silent,
            )
    except Unavailable:
        pass
    except BaseExceptionGroup as group:
        if group.split(Unavailable)[1] is not None:
            raise


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("deduplication", [False, True])
async def test_nothing_is_lost_whoever_collects_and_whenever(
    seed: int, deduplication: bool, tmp_path: Path, calendar: Calendar, autojump_clock: Any
) -> None:
    rng = random.Random(seed)
    store = MemoryStore("races")
    await make_volume(
        store,
        chunk_size=16384,
        pack_size=16384,
        deduplication=deduplication,
        compression="none",
    )
    with in_place():
        async with trio.open_nursery() as nursery:
            players = [Player(n, tmp_path, store, seed, nursery) for n in range(3)]
            await play(players, rng, calendar)
            wanted = await verify(players)
            for player in players:
                await player.close()
        async with Machine(tmp_path / "new", "new").open(store) as fresh:
            assert set(await snapshot(fresh.fs)) == set(wanted)


async def play(players: list[Player], rng: random.Random, calendar: Calendar) -> None:
    for player in players:
        await player.open()
    for _ in range(70):
        player = rng.choice(players)
        choice = rng.random()
        if player.volume is None:
            if choice < 0.7:
                await player.open()
            continue
        if choice < 0.4:
            await player.step()
        elif choice < 0.7:
            async with trio.open_nursery() as at_once:
                for other in players:
                    if other.volume is not None and rng.random() < 0.5:
                        at_once.start_soon(collect, other, rng)
                    elif other.volume is not None:
                        at_once.start_soon(other.step)
        elif choice < 0.74:
            await player.close()  # without a drain: a crash of the machine
        elif choice < 0.8:
            player.line.up = not player.line.up or rng.random() < 0.5
        else:
            # Nobody stays away for as long as a month with something uncommitted.
            if all(p.volume is not None and p.line.up for p in players):
                calendar.ahead += rng.choice([0.2, 3, 40]) * DAY
            else:
                calendar.ahead += rng.choice([0.02, 0.2]) * DAY
        await trio.sleep(rng.uniform(0, 60))


async def verify(players: list[Player]) -> dict[str, bytes]:
    """All lines are up, everything is flushed: every machine reads every file as it must be."""
    for player in players:
        if player.volume is None:
            await player.open()
        player.line.up = True
    for player in players:
        assert player.volume is not None
        await player.volume.flush()
    await trio.sleep(120)
    wanted = {path: data for player in players for path, data in player.files.items()}
    for player in players:
        assert player.volume is not None
        await player.volume.writer.catch_up()
        player.volume.chunks.clear()
        found = await snapshot(player.volume.fs)
        for path, data in wanted.items():
            assert await read_file(player.volume.fs, path) == data, path
        assert set(found) == set(wanted)
        check(player.volume.replica.tree)
    first = players[0].volume
    assert first is not None
    assert (await registry.run(first, "fsck", {}, silent))["exit_code"] == 0
    assert (await registry.run(first, "scrub", {}, silent))["exit_code"] == 0
    return wanted
