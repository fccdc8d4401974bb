"""The probe believes what a store does, not what it says."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from megafs.errors import Denied, TooLarge, Unavailable
from megafs.stores.base import Buffer
from megafs.stores.limit import Limited
from megafs.stores.memory import MemoryStore
from megafs.stores.probe import RACES, probe_create_if_absent, probe_largest
from megafs.stores.retry import Retrying
from megafs.stores.s3.credentials import Fixed
from megafs.stores.s3.driver import S3Store
from megafs.stores.s3.options import S3Settings
from megafs.stores.s3.sigv4 import Credentials
from megafs.stores.stack import unlimited
from tests.fakes.faulty import Fault, Faulty
from tests.fakes.s3 import Service, serving


class IgnoresTheCondition(MemoryStore):
    async def put_new(self, name: str, data: Buffer) -> None:
        await self.put(name, data)


class ChecksThenActs(MemoryStore):
    async def put_new(self, name: str, data: Buffer) -> None:
        taken = name in self.objects
        await trio.sleep(0.001)
        if taken:
            await super().put_new(name, data)
        else:
            await self.put(name, data)


class LastWriterWins(MemoryStore):
    """One is told that it won, and another's bytes are kept."""

    async def put_new(self, name: str, data: Buffer) -> None:
        try:
            await super().put_new(name, data)
        except Exception:
            await self.put(name, data)
            raise


async def test_a_store_that_can_do_it_passes() -> None:
    store = MemoryStore()

    assert await probe_create_if_absent(store)
    assert store.objects == {}


@pytest.mark.parametrize("kind", [IgnoresTheCondition, ChecksThenActs, LastWriterWins])
async def test_a_store_that_cannot_does_not(kind: type[MemoryStore]) -> None:
    store = kind()

    assert not await probe_create_if_absent(store)
    assert store.objects == {}


class Hasty(MemoryStore):
    """Checks and then acts, with so small a window that a race of eight misses 4 of 10 times."""

    def __init__(self, seed: int, missed: float) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._missed = missed
        self._racing: dict[str, bool] = {}

    async def put_new(self, name: str, data: Buffer) -> None:
        race = self._racing.get(name)
        if race is None:
            race = self._racing[name] = self._random.random() >= self._missed
        if race and name not in self.objects:
            await trio.lowlevel.checkpoint()
            await self.put(name, data)
        else:
            await super().put_new(name, data)


async def test_the_odds_that_are_written_down() -> None:
    """With 6 races some pass, as was seen; with all of them none of so many does."""
    old = [
        await probe_create_if_absent(Hasty(1000 + i, 0.4), races=[(8, 4096)] * 6)
        for i in range(420)
    ]
    assert 0 < sum(old) < 10
    new = [await probe_create_if_absent(Hasty(1000 + i, 0.4)) for i in range(420)]
    assert sum(new) == 0
    assert len(RACES) == 24 and 0.4 ** len(RACES) < 1 / (3 * 10**9)
    assert 0.6 ** len(RACES) < 1 / 200_000
    assert max(racers for racers, _ in RACES) * 3 <= 36


@pytest.mark.parametrize("window", [0.0, 0.0003, 0.005])
async def test_a_server_that_checks_and_then_acts_over_real_connections(window: float) -> None:
    async with serving(Service(window=lambda: random.uniform(0, window))) as service:
        store = S3Store(
            "bucket",
            "v",
            Fixed(Credentials("A", "s")),
            S3Settings(endpoint=service.endpoint),
            connections=36,
        )
        assert not await probe_create_if_absent(Retrying(store))
        assert not service.objects
        await store.aclose()


async def test_limits_do_not_make_a_queue_of_a_race() -> None:
    """`Limited` begins with four uploads at once: a race of eight would be two of four."""
    most = 0
    running = 0

    class Counting(MemoryStore):
        async def put_new(self, name: str, data: Buffer) -> None:
            nonlocal most, running
            running += 1
            most = max(most, running)
            await trio.sleep(0.01)
            running -= 1
            await super().put_new(name, data)

    store = Retrying(Limited(Counting(), 4, 8))
    assert await probe_create_if_absent(store)
    assert most == 4
    assert await probe_create_if_absent(unlimited(store))
    assert most == sum(sorted((racers for racers, _ in RACES[:3])))


@pytest.mark.parametrize(
    ("limit", "found"),
    [(None, 10 << 20), (10 << 20, 10 << 20), (9 << 20, 8 << 20), (1 << 20, 1 << 20),
     (1_000_000, 512 << 10), (128 << 10, 128 << 10)],
)  # fmt: skip
async def test_the_largest_object(limit: int | None, found: int) -> None:
    async with serving(Service(body_limit=limit)) as service:
        store = S3Store(
            "bucket", "v", Fixed(Credentials("A", "s")), S3Settings(endpoint=service.endpoint)
        )
        assert await probe_largest(store, 10 << 20) == found
        assert not service.objects
        await store.aclose()


async def test_where_nothing_fits_that_is_said() -> None:
    async with serving(Service(body_limit=100_000)) as service:
        store = S3Store(
            "bucket", "v", Fixed(Credentials("A", "s")), S3Settings(endpoint=service.endpoint)
        )
        with pytest.raises(TooLarge, match="client_max_body_size"):
            await probe_largest(store, 10 << 20)
        await store.aclose()


async def test_an_error_is_not_an_answer() -> None:
    with pytest.raises(Denied):
        await probe_create_if_absent(Faulty(MemoryStore(), [None, Fault("denied")]))
    with pytest.raises(Unavailable):
        await probe_create_if_absent(Faulty(MemoryStore(), rates={"before": 1}))


async def test_it_cleans_up_when_cancelled(autojump_clock: MockClock) -> None:
    store = MemoryStore()

    with trio.move_on_after(1):
        await probe_create_if_absent(Faulty(store, [*[None] * 12, Fault("hang", op="get")]))

    assert store.objects == {}
