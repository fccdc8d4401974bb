"""Whenever a client dies, what it left in the store mounts, and holds all that was promised."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.crash.workload import History, run_steps
from tests.fakes.machine import (
    Change,
    Machine,
    Recording,
    make_volume,
    replay,
    snapshot,
    store_of,
)

SMALL = {"chunk_size": 16384, "pack_size": 65536}


async def worked(base: Path, seed: int, steps: int, latency: bool) -> tuple[Recording, History]:
    """A volume on which *steps* changes were made, and what it went through."""
    rng = random.Random(seed)
    store = Recording(latency=(lambda: rng.uniform(0, 0.4)) if latency else None)
    history = History()
    await make_volume(store, **SMALL)
    async with Machine(base / "writer").open(store) as volume:
        await run_steps(volume, history, lambda: len(store.moments), steps=steps, seed=seed)
    return store, history


async def check(
    base: Path, store: Recording, history: History, moment: int, changes: Iterable[Change]
) -> int:
    """What a new machine finds in a store with these changes."""
    objects = replay(list(changes))
    async with Machine(base).open(store_of(objects)) as volume:
        return history.find(await snapshot(volume.fs), moment)


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_prefix_of_the_changes_of_a_store_mounts(
    tmp_path: Path, autojump_clock: MockClock, seed: int
) -> None:
    store, history = await worked(tmp_path, seed, steps=40, latency=False)

    found = []
    # Before its first commit there is no volume to open yet.
    first = next(n for n, c in enumerate(store.changes) if c.name.startswith("commits/"))
    assert len(store.changes) > first + 20
    for moment in range(len(store.moments) + 1):
        done, _ = store.certain(moment)
        if len(done) > first:
            found.append(await check(tmp_path / str(moment), store, history, moment, done))

    assert found == sorted(found), "the tree went back although the store went on"
    assert found[-1] >= history.owed(len(store.moments))


def test_any_subset_of_what_was_under_way_mounts(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.mktemp("subsets")
    made: dict[int, tuple[Recording, History]] = {}
    for seed in (3, 4):

        async def make(seed: int = seed) -> None:
            made[seed] = await worked(base / str(seed), seed, steps=60, latency=True)

        trio.run(make, clock=MockClock(autojump_threshold=0))

    count = 0

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(made)), st.data())
    def mounts(seed: int, data: st.DataObject) -> None:
        nonlocal count
        count += 1
        store, history = made[seed]
        first = store.moments.index(("end", 0)) + 1
        while not any(c.name.startswith("commits/") for c in store.certain(first)[0]):
            first += 1
        moment = data.draw(st.integers(first, len(store.moments)))
        done, under_way = store.certain(moment)
        lucky = data.draw(st.sets(st.sampled_from(under_way))) if under_way else set()

        async def look() -> None:
            await check(base / f"m{count}", store, history, moment, [*done, *lucky])

        trio.run(look, clock=MockClock(autojump_threshold=0))

    mounts()
