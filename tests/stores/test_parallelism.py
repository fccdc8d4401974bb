"""How many transfers at once: as many as the line has use for.  Virtual time, a line as a fluid."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from megafs.errors import Unavailable
from megafs.stores.base import ObjectStore
from megafs.stores.limit import Limited, background
from megafs.stores.parallelism import START_DOWN, Parallelism
from megafs.stores.retry import Retrying
from tests.fakes.line import SharedLine

MB = 1_000_000
OBJECT = 2 * MB


@asynccontextmanager
async def reading(store: ObjectStore, size: int = OBJECT) -> AsyncIterator[None]:
    """As much read-ahead as the store takes, for the block."""

    async def fetch() -> None:
        with background():
            while True:
                try:
                    await store.get("packs/x", 0, size)
                except Unavailable:
                    await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        for _ in range(80):
            nursery.start_soon(fetch)
        yield
        nursery.cancel_scope.cancel()


async def rate(line: SharedLine, seconds: float) -> float:
    """Bytes per second over the next so many."""
    before = line.moved
    await trio.sleep(seconds)
    return (line.moved - before) / seconds


class Constant(Parallelism):
    """What there was before."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.bulk = most - 1

    def answered(self, *args: Any) -> None:
        pass

    def overloaded(self, *args: Any) -> None:
        pass


def fixed(store: SharedLine, slots: int) -> Limited:
    """As it would be with a constant."""
    limited = Limited(store, 1, slots)
    limited._down.parallelism = Constant(slots)
    return limited


async def best_constant(traits: dict[str, Any], most: int) -> float:
    """What the best constant number brings."""
    rates = []
    for slots in (2, 4, 8, 12, 16, 24, most):
        line = SharedLine(**traits)
        async with reading(fixed(line, slots)):
            await trio.sleep(5)
            rates.append(await rate(line, 20))
    return max(rates)


LONG: dict[str, Any] = {"rtt": 0.1, "each": 4 * MB, "total": 80 * MB}
NARROW: dict[str, Any] = {"rtt": 0.02, "total": 12.5 * MB}


async def test_a_long_fat_line_is_filled(autojump_clock: MockClock) -> None:
    line = SharedLine(**LONG)
    store = Limited(line, 1, 32)

    async with reading(store):
        await trio.sleep(10)
        reached = await rate(line, 20)

    assert reached >= 0.8 * await best_constant(LONG, 32)


async def test_it_is_filled_soon(autojump_clock: MockClock) -> None:
    line = SharedLine(**LONG)

    async with reading(Limited(line, 1, 32)):
        await trio.sleep(5)

    slow = SharedLine(**LONG)
    async with reading(fixed(slow, 8)):
        await trio.sleep(5)
    assert line.moved > 1.3 * slow.moved


async def test_uploads_have_a_number_of_their_own(autojump_clock: MockClock) -> None:
    line = SharedLine(**LONG)
    store = Limited(line, 32, 32)

    async def send(n: int) -> None:
        while True:
            await store.put_new(f"packs/{n}", bytes(OBJECT))

    async with trio.open_nursery() as nursery:
        for n in range(40):
            nursery.start_soon(send, n)
        await trio.sleep(20)
        assert await rate(line, 20) > 0.8 * 80 * MB
        nursery.cancel_scope.cancel()
    assert store.useful_uploads() >= 16
    assert store.useful_downloads() == START_DOWN


async def test_a_narrow_line_is_not_crowded(autojump_clock: MockClock) -> None:
    """The line itself is the queue then: who is urgent must not find sixteen others in it."""

    async def urgent(make: Callable[..., Any]) -> tuple[float, float]:
        line = SharedLine(**NARROW)
        store = make(line)
        took = []
        async with reading(store):
            await trio.sleep(30)
            before = line.moved
            for _ in range(50):
                begin = trio.current_time()
                await store.get("commits/1", 0, 100_000)
                took.append(trio.current_time() - begin)
                await trio.sleep(0.5)
            reached = (line.moved - before) / (sum(took) + 25)
        return sum(took) / len(took), reached

    waited, reached = await urgent(lambda line: Limited(line, 1, 16))
    crowded, constant = await urgent(lambda line: fixed(line, 16))

    assert waited < crowded / 2
    assert reached > 0.95 * constant


async def test_where_more_at_once_only_get_in_each_others_way_there_are_few(
    autojump_clock: MockClock,
) -> None:
    traits: dict[str, Any] = {"rtt": 0.001, "total": 200 * MB, "harm": 0.05}
    line = SharedLine(**traits)
    store = Limited(line, 1, 32)

    async with reading(store):
        await trio.sleep(20)
        assert store.useful_downloads() <= 4
        reached = await rate(line, 10)

    assert reached > 0.9 * await best_constant(traits, 32)


async def test_an_overloaded_store_is_asked_for_what_it_takes(autojump_clock: MockClock) -> None:
    line = SharedLine(**LONG, most=6)
    store = Limited(line, 1, 32)

    async with reading(store):
        await trio.sleep(20)
        refused, moved, begin = line.refused, line.moved, trio.current_time()
        numbers = []
        for _ in range(400):
            await trio.sleep(0.1)
            numbers.append(line.active)
        answered = (line.moved - moved) / OBJECT
        # What six of them bring, less what is lost in feeling for more.
        most = 6 * (trio.current_time() - begin) / (0.1 + OBJECT / (4 * MB))
        assert answered > 0.7 * most
        assert line.refused - refused < answered / 4
        assert 3 <= sum(numbers) / len(numbers) <= 7

        line.most = None
        await trio.sleep(40)
        assert await rate(line, 20) > 0.8 * await best_constant(LONG, 32)


async def test_retries_and_the_number_do_not_fight(autojump_clock: MockClock) -> None:
    line = SharedLine(**LONG, most=4)
    store = Retrying(Limited(line, 1, 32), 600)

    async with reading(store):
        await trio.sleep(60)
        reached = await rate(line, 60)

    assert reached > 0.5 * 4 * OBJECT / (0.1 + OBJECT / (4 * MB))
    assert store.health().details["gave_up"] == 0


async def test_urgent_requests_respect_an_overloaded_store_too(autojump_clock: MockClock) -> None:
    line = SharedLine(rtt=0.1, total=80 * MB, most=5)
    store = Limited(line, 1, 32)

    async def ask() -> None:
        while True:
            try:
                await store.get("commits/1", 0, 1000)
            except Unavailable:
                await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(ask)
        await trio.sleep(20)
        refused, moved = line.refused, line.moved
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert line.refused - refused < (line.moved - moved) / 1000 / 3


async def test_a_line_that_becomes_another_is_noticed(autojump_clock: MockClock) -> None:
    line = SharedLine(**LONG)
    store = Limited(line, 1, 32)

    async with reading(store):
        await trio.sleep(20)
        assert store.useful_downloads() >= 16

        line.change(rtt=0.02, each=float("inf"), total=12.5 * MB)
        await trio.sleep(60)
        assert store.useful_downloads() <= 4

        line.change(**LONG)
        await trio.sleep(40)
        assert await rate(line, 20) > 0.8 * await best_constant(LONG, 32)


@pytest.mark.parametrize("most", [1, 2, 3, 8])
async def test_never_more_than_the_setting_and_one_kept_for_urgent_ones(
    autojump_clock: MockClock, most: int
) -> None:
    line = SharedLine(**LONG)
    store = Limited(line, 1, most)
    seen = set()

    async with reading(store):
        for _ in range(300):
            await trio.sleep(0.1)
            seen.add(line.active)
        begin = trio.current_time()
        await store.get("commits/1", 0, 1000)
        waited = trio.current_time() - begin
    assert max(seen) == max(1, most - 1)
    if most > 1:
        assert waited < 0.11


async def test_an_attempt_without_an_answer_counts_as_overload(autojump_clock: MockClock) -> None:
    line = SharedLine(rtt=1000.0, total=MB)
    limited = Limited(line, 1, 32)
    store = Retrying(limited, 50, attempt=10)

    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with background(), pytest.raises(Unavailable):
                await store.get("packs/x", 0, 1000)

        for _ in range(8):
            nursery.start_soon(ask)
    assert limited.useful_downloads() < START_DOWN


async def test_who_loses_patience_with_a_read_says_nothing_of_the_store(
    autojump_clock: MockClock,
) -> None:
    line = SharedLine(rtt=1000.0, total=MB)
    store = Limited(line, 1, 32)

    with trio.move_on_after(30):
        await store.get("packs/x", 0, 1000)

    assert store.useful_downloads() == START_DOWN


async def test_what_is_not_full_is_not_judged(autojump_clock: MockClock) -> None:
    """A reader that asks for little at a time does not move the number."""
    line = SharedLine(**LONG)
    store = Limited(line, 1, 32)

    for _ in range(100):
        with background():
            await store.get("packs/x", 0, OBJECT)

    assert store.useful_downloads() == START_DOWN


async def test_a_line_that_is_wider_now_is_noticed_though_nothing_became_faster(
    autojump_clock: MockClock,
) -> None:
    """The transfers there are fill their connections, and the rest of the line stays empty."""
    line = SharedLine(rtt=0.1, each=4 * MB, total=20 * MB)
    store = Limited(line, 1, 32)

    async with reading(store):
        await trio.sleep(60)
        assert store.useful_downloads() <= 9
        line.change(total=80 * MB)
        await trio.sleep(40)
        assert store.useful_downloads() >= 16


async def test_readers_who_wait_do_not_stop_readahead_but_keep_a_slot_free(
    autojump_clock: MockClock,
) -> None:
    line = SharedLine(**LONG)
    store = Limited(line, 1, 6)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(store.get, "packs/wanted", 0, 100 * MB)
        await trio.sleep(0.01)
        async with reading(store, 100 * MB):
            await trio.sleep(0.01)
            assert line.active == 5
            with trio.move_on_after(0.01):
                await store.get("commits/1", 0, 1)
                raise AssertionError("not so fast")
        nursery.cancel_scope.cancel()


async def test_a_broken_network_says_nothing_of_how_many_at_once(autojump_clock: MockClock) -> None:
    class Broken(SharedLine):
        async def get(self, name: str, start: int, length: int) -> bytes:
            await trio.sleep(0.1)
            raise Unavailable("connection reset")

    store = Limited(Broken(**LONG), 1, 32)
    for _ in range(10):
        with pytest.raises(Unavailable):
            await store.get("packs/x", 0, OBJECT)

    details = store.health().details
    assert (details["downloads_at_once"], details["requests_at_once"]) == (START_DOWN, 1 + 32)


def test_all_that_was_under_way_when_the_store_refused_counts_once() -> None:
    width = Parallelism(32)
    for _ in range(20):
        width.overloaded(0, 20)
    assert width.slots == 14
    width.overloaded(width.era, 14)
    assert width.slots == 9


def test_what_a_few_at_a_time_are_answered_says_nothing_of_more() -> None:
    width = Parallelism(32)
    width.overloaded(0, 10)
    for _ in range(100):
        width.answered(width.era, 0.1, 1000, 2)
    assert width.slots == 7
    for _ in range(7):
        width.answered(width.era, 0.1, 1000, 7)
    assert width.slots == 7
    for _ in range(2):
        width.answered(width.era, 0.1, 1000, 7)
    assert width.slots == 8


def test_on_a_line_that_stays_as_it_is_experiments_become_rare_but_do_not_end() -> None:
    width = Parallelism(32)

    def numbers_on(line: int, transfers: int) -> list[int]:
        """What was tried on a line that so many fill."""
        numbers = []
        for _ in range(transfers):
            numbers.append(width.bulk)
            width.answered(width.era, max(1.0, width.bulk / line), OBJECT, width.bulk)
        return numbers

    numbers = numbers_on(10, 2000)
    settled = max(set(numbers), key=numbers.count)
    assert 8 <= settled <= 14
    assert numbers[1000:].count(settled) > 750
    assert max(numbers_on(30, 600)) >= 24


async def test_many_who_wait_do_not_take_the_place_of_readahead(autojump_clock: MockClock) -> None:
    line = SharedLine(**LONG)
    store = Limited(line, 1, 32)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(store.get, "packs/wanted", 0, 100 * MB)
        await trio.sleep(0.01)
        async with reading(store, 100 * MB):
            await trio.sleep(0.01)
            assert line.active == 20 + START_DOWN
        nursery.cancel_scope.cancel()


def test_a_number_that_nobody_has_use_for_is_taken_back() -> None:
    width = Parallelism(32)
    while width.bulk <= 4:
        width.answered(width.era, 1.0, OBJECT, 4)
    for _ in range(width.bulk):
        width.answered(width.era, 1.0, OBJECT, 4)
    assert width.bulk == 4


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["done", "small", "failed"]),
        st.floats(0.001, 10),
        st.integers(1 << 18, 1 << 24),
        st.floats(0, 64),
    ),
    max_size=300,
)


@given(st.integers(1, 64), EVENTS)
def test_whatever_happens_it_stays_between_one_and_the_setting(
    most: int, events: list[Any]
) -> None:
    width = Parallelism(most)
    eras = [0]
    for what, seconds, size, active in events:
        era = eras[int(active) % len(eras)]
        if what == "failed":
            width.overloaded(era, int(active))
        else:
            width.answered(era, seconds, size if what == "done" else 0, active)
        eras.append(width.era)
        spare = 1 if most > 1 else 0
        assert 1 <= width.bulk <= width.slots - spare
        assert width.slots <= most
