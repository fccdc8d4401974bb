"""Who may ask the store, how many at once, and who goes first.  Virtual time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from megafs.errors import Unavailable
from megafs.stores import limit
from megafs.stores.base import Buffer, ObjectStore, Page
from megafs.stores.limit import BACKGROUND, Limited, LineEstimate, Priority, at_priority, background


class Slow(ObjectStore):
    """Takes a second for everything, and notes what it does when."""

    def __init__(self) -> None:
        self.log: list[tuple[float, str]] = []
        self.active = 0
        self.most = 0

    async def _take(self, what: str) -> None:
        self.log.append((trio.current_time(), what))
        self.active += 1
        self.most = max(self.most, self.active)
        try:
            await trio.sleep(1)
        finally:
            self.active -= 1

    async def get(self, name: str, start: int, length: int) -> bytes:
        await self._take(f"get {name}")
        return bytes(length)

    async def put_new(self, name: str, data: Buffer) -> None:
        await self._take(f"put {name}")

    async def put(self, name: str, data: Buffer) -> None:
        await self._take(f"put {name}")

    async def delete(self, name: str) -> None:
        await self._take(f"delete {name}")

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        await self._take(f"list {prefix}")
        return Page([], more=False)

    @property
    def order(self) -> Sequence[str]:
        return [what for _, what in self.log]


@pytest.fixture
def slow() -> Slow:
    return Slow()


async def start(nursery: trio.Nursery, fn: Callable[..., Awaitable[object]], *args: Any) -> None:
    """Start a task and let it come as far as it can, so that the order of arrival is known."""
    nursery.start_soon(fn, *args)
    await trio.sleep(0.001)


async def test_never_more_at_once_than_allowed(autojump_clock: MockClock, slow: Slow) -> None:
    store = Limited(slow, 2, 3)

    async with trio.open_nursery() as nursery:
        for i in range(12):
            nursery.start_soon(store.get, f"packs/{i}", 0, 1)
            nursery.start_soon(store.put_new, f"packs/{i}", b"")
            nursery.start_soon(store.list, "")
            nursery.start_soon(store.delete, f"packs/{i}")

    assert slow.most <= 5
    assert len(slow.log) == 48


async def test_in_order_of_arrival(autojump_clock: MockClock, slow: Slow) -> None:
    store = Limited(slow, 1, 1)

    async with trio.open_nursery() as nursery:
        for i in range(5):
            await start(nursery, store.get, f"packs/{i}", 0, 1)

    assert slow.order == [f"get packs/{i}" for i in range(5)]


async def test_readers_go_before_readahead(autojump_clock: MockClock, slow: Slow) -> None:
    store = Limited(slow, 1, 1)

    async def ahead(name: str) -> None:
        with background():
            await store.get(name, 0, 1)

    async with trio.open_nursery() as nursery:
        for i in range(3):
            await start(nursery, ahead, f"packs/ahead{i}")
        await start(nursery, store.get, "packs/wanted", 0, 1)

    assert slow.order[:2] == ["get packs/ahead0", "get packs/wanted"]


async def test_a_reader_need_not_wait_for_any_readahead(
    autojump_clock: MockClock, slow: Slow
) -> None:
    store = Limited(slow, 2, 4)

    async def ahead(i: int) -> None:
        with background():
            await store.get(f"packs/{i}", 0, 1)

    async with trio.open_nursery() as nursery:
        for i in range(20):
            await start(nursery, ahead, i)
        assert slow.active == 3
        await store.get("packs/wanted", 0, 1)
        assert slow.order.index("get packs/wanted") == 3


async def test_a_commit_need_not_wait_for_any_pack(autojump_clock: MockClock, slow: Slow) -> None:
    store = Limited(slow, 4, 4)

    async with trio.open_nursery() as nursery:
        for i in range(20):
            await start(nursery, store.put_new, f"packs/{i}", b"")
        assert slow.active == 3
        await start(nursery, store.put_new, "commits/1", b"")
        assert slow.order[3] == "put commits/1"


async def test_what_somebody_comes_to_wait_for_is_raised(
    autojump_clock: MockClock, slow: Slow
) -> None:
    store = Limited(slow, 1, 1)
    priority = Priority(BACKGROUND)

    async def ahead(i: int) -> None:
        with background():
            await store.get(f"packs/{i}", 0, 1)

    async def raised() -> None:
        with at_priority(priority):
            await store.get("packs/raised", 0, 1)

    async with trio.open_nursery() as nursery:
        for i in range(3):
            await start(nursery, ahead, i)
        await start(nursery, raised)
        priority.raise_to_urgent()

    assert slow.order == ["get packs/0", "get packs/raised", "get packs/1", "get packs/2"]


async def test_a_raised_request_takes_the_spare_slot_at_once(
    autojump_clock: MockClock, slow: Slow
) -> None:
    store = Limited(slow, 1, 2)
    priority = Priority(BACKGROUND)

    async def ahead() -> None:
        with background():
            await store.get("packs/ahead", 0, 1)

    async def raised() -> None:
        with at_priority(priority):
            await store.get("packs/raised", 0, 1)

    async with trio.open_nursery() as nursery:
        await start(nursery, ahead)
        await start(nursery, raised)
        assert slow.active == 1
        priority.raise_to_urgent()
        await trio.sleep(0.001)
        assert slow.active == 2


async def test_cancelled_in_the_queue_or_in_flight_gives_the_slot_back(
    autojump_clock: MockClock, slow: Slow
) -> None:
    store = Limited(slow, 1, 1)

    for patience in (0, 0.5, 1.0, 1.5, 2.0):
        async with trio.open_nursery() as nursery:
            await start(nursery, store.get, "packs/first", 0, 1)
            with trio.move_on_after(patience):
                await store.get("packs/second", 0, 1)
    with trio.move_on_after(0):
        await store.get("packs/third", 0, 1)

    before = trio.current_time()
    await store.get("packs/last", 0, 1)
    assert trio.current_time() == before + 1
    details = store.health().details
    assert (details["uploading"], details["downloading"], details["queued"]) == (0, 0, 0)


async def test_a_failed_request_gives_the_slot_back(autojump_clock: MockClock) -> None:
    class Failing(Slow):
        async def get(self, name: str, start: int, length: int) -> bytes:
            raise Unavailable("no")

    store = Limited(Failing(), 1, 1)
    for _ in range(3):
        with pytest.raises(Unavailable):
            await store.get("packs/x", 0, 1)
    assert store.health().details["downloading"] == 0


async def test_bandwidth_is_shared_out(autojump_clock: MockClock, slow: Slow) -> None:
    store = Limited(slow, 4, 8, up_rate=1000, down_rate=100)

    async with trio.open_nursery() as nursery:
        for i in range(8):
            nursery.start_soon(store.get, f"packs/{i}", 0, 200)
    # Eight of 2 s each: the last may start when the seven before it are paid for.
    assert trio.current_time() == 14 + 1

    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        for i in range(4):
            nursery.start_soon(store.put_new, f"commits/{i}", bytes(5000))
    assert trio.current_time() == begun + 15 + 1


async def test_a_reader_does_not_wait_for_the_bandwidth_of_readahead(
    autojump_clock: MockClock, slow: Slow
) -> None:
    store = Limited(slow, 1, 8, down_rate=100)

    async def ahead(i: int) -> None:
        with background():
            await store.get(f"packs/{i}", 0, 1000)

    async with trio.open_nursery() as nursery:
        for i in range(5):
            await start(nursery, ahead, i)
        await store.get("packs/wanted", 0, 100)
        # The first of them was paid for, and the second waits to pay: one of 10 s each.
        assert slow.order.index("get packs/wanted") <= 2
        assert trio.current_time() < 25
        nursery.cancel_scope.cancel()


async def test_bytes_that_did_not_come_are_not_paid_for(autojump_clock: MockClock) -> None:
    class Short(Slow):
        async def get(self, name: str, start: int, length: int) -> bytes:
            await super().get(name, start, length)
            return b"short"

    store = Limited(Short(), 1, 1, down_rate=10)

    await store.get("packs/x", 0, 10**6)
    await store.get("packs/x", 0, 10**6)

    assert trio.current_time() < 10


async def test_background_is_inherited_by_tasks_started_inside() -> None:
    levels = []

    async def look() -> None:
        levels.append(limit.current_level())

    with background():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
    await look()

    assert levels == [BACKGROUND, limit.URGENT]


@pytest.mark.parametrize(
    ("latency", "rate"), [(0.02, 100e6), (0.1, 12.5e6), (0.002, 200e6), (0.02, 12.5e6)]
)
def test_the_line_is_told_from_gets_of_several_sizes(latency: float, rate: float) -> None:
    line = LineEstimate()
    chance = random.Random(1)
    for _ in range(40):
        size = chance.choice((4 << 10, 256 << 10, 1 << 20, 2 << 20))
        line.note(size, (latency + size / rate) * chance.uniform(0.9, 1.1))
    assert line.latency_bytes() == pytest.approx(latency * rate, rel=0.5)


def test_a_line_of_which_little_is_known_is_not_guessed_at() -> None:
    line = LineEstimate()
    assert line.latency_bytes() == 0
    for _ in range(7):
        line.note(1 << 20, 0.1)
    assert line.latency_bytes() == 0
    for _ in range(40):
        line.note(256 << 10, 0.1)  # of one size
    for _ in range(40):
        line.note(256 << 10, 0.2)
    assert line.latency_bytes() == 0
