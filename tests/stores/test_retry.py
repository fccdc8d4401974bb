"""Retries: how long they wait, when they stop, and what a lost reply means.  Virtual time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from megafs import clock, concurrency
from megafs.errors import Denied, Exists, Full, Missing, Unavailable
from megafs.stores import limit, retry
from megafs.stores.base import Buffer, ObjectStore
from megafs.stores.limit import Limited
from megafs.stores.local.driver import LocalStore
from megafs.stores.memory import MemoryStore
from megafs.stores.retry import Budget, Retrying
from tests.fakes.faulty import Fault, Faulty, before, hang, lost_reply, slow
from tests.stores.contract import StoreContract


@pytest.fixture(autouse=True)
def no_jitter() -> Iterator[None]:
    """Every draw is the highest, so that times are exact."""
    with clock.replaced(uniform=lambda low, high: high), concurrency.in_place():
        yield


async def with_object(*script: Fault | None, data: bytes = b"bytes", **options: Any) -> Faulty:
    memory = MemoryStore()
    await memory.put_new("packs/ab/one", data)
    return Faulty(memory, script, **options)


async def test_waits_longer_each_time(autojump_clock: MockClock) -> None:
    store = await with_object(*[before()] * 4)

    assert await Retrying(store).get("packs/ab/one", 0, 10) == b"bytes"

    assert store.times == [0, 0.25, 0.75, 1.75, 3.75]


async def test_no_wait_is_longer_than_the_cap(autojump_clock: MockClock) -> None:
    store = await with_object(*[before()] * 10)

    await Retrying(store, patience=1000).get("packs/ab/one", 0, 10)

    waits = [b - a for a, b in zip(store.times, store.times[1:], strict=False)]
    assert waits == [0.25, 0.5, 1, 2, 4, 8, 16, 20, 20, 20]


async def test_jitter_draws_from_zero_up(autojump_clock: MockClock) -> None:
    store = await with_object(*[before()] * 3)
    draws: list[tuple[float, float]] = []

    def lowest(low: float, high: float) -> float:
        draws.append((low, high))
        return low

    with clock.replaced(uniform=lowest):
        await Retrying(store).get("packs/ab/one", 0, 10)

    assert draws == [(0, 0.25), (0, 0.5), (0, 1)]
    assert trio.current_time() == 0


async def test_waits_as_long_as_the_store_asks(autojump_clock: MockClock) -> None:
    store = await with_object(before(retry_after=7))

    await Retrying(store).get("packs/ab/one", 0, 10)

    assert trio.current_time() == 7


async def test_does_not_wait_for_an_hour_because_the_store_asks(autojump_clock: MockClock) -> None:
    store = await with_object(before(retry_after=3600))

    with pytest.raises(Unavailable) as raised:
        await Retrying(store, patience=10_000).get("packs/ab/one", 0, 10)

    assert trio.current_time() == 0
    assert raised.value.retry_after == 3600


async def test_patience_ends_the_operation(autojump_clock: MockClock) -> None:
    store = await with_object()
    store.partitioned = True

    with pytest.raises(Unavailable, match="gave up after 7 tries"):
        await Retrying(store, patience=20).get("packs/ab/one", 0, 10)

    assert trio.current_time() == 15.75  # the next wait, of 16 s, would have gone past 20


async def test_an_answer_is_not_retried(autojump_clock: MockClock) -> None:
    store = await with_object(None, Fault("denied"))
    retrying = Retrying(store)

    with pytest.raises(Missing):
        await retrying.get("packs/ab/two", 0, 10)
    with pytest.raises(Denied):
        await retrying.get("packs/ab/one", 0, 10)
    with pytest.raises(Exists):
        await retrying.put_new("packs/ab/one", b"other")

    assert len(store.calls) == 3


async def test_a_lost_reply_is_not_a_conflict(autojump_clock: MockClock) -> None:
    store = Retrying(Faulty(MemoryStore(), [lost_reply()]))

    await store.put_new("commits/1", b"ours")  # first try stored it, second finds it there

    with pytest.raises(Exists):
        await store.put_new("commits/1", b"theirs")


async def test_a_real_conflict_after_a_failure_is_one(autojump_clock: MockClock) -> None:
    memory = MemoryStore()
    store = Retrying(Faulty(memory, [before()]))

    async def other() -> None:
        await trio.sleep(0.1)
        await memory.put_new("commits/1", b"theirs")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        with pytest.raises(Exists):
            await store.put_new("commits/1", b"ours")


async def test_an_object_that_only_begins_like_ours_is_not_ours(autojump_clock: MockClock) -> None:
    memory = MemoryStore()
    await memory.put_new("commits/1", b"ours and more")
    store = Retrying(Faulty(memory, [before()]))

    with pytest.raises(Exists):
        await store.put_new("commits/1", b"ours")


async def test_a_put_that_hung_after_it_was_done_is_won(autojump_clock: MockClock) -> None:
    memory = MemoryStore()
    store = Retrying(Faulty(memory, [Fault("late")]), attempt=5)

    await store.put_new("commits/1", b"ours")

    assert memory.objects == {"commits/1": b"ours"}
    assert 5 < trio.current_time() < 6


async def test_the_reading_back_is_retried_too(autojump_clock: MockClock) -> None:
    memory = MemoryStore()
    store = Faulty(memory, [lost_reply(), None, before(), None, None])

    await Retrying(store).put_new("commits/1", b"ours")

    assert [op for op, _ in store.calls] == ["put_new", "put_new", "get", "put_new", "get"]


async def test_giving_up_says_whether_it_may_have_been_done(autojump_clock: MockClock) -> None:
    store = Faulty(MemoryStore(), [lost_reply()] + [before()] * 50)

    with pytest.raises(Unavailable) as raised:
        await Retrying(store).put_new("commits/1", b"ours")

    assert raised.value.maybe_done


async def test_giving_up_on_what_was_never_sent_says_so(autojump_clock: MockClock) -> None:
    store = Faulty(MemoryStore(), [before()] * 50)

    with pytest.raises(Unavailable) as raised:
        await Retrying(store).put_new("commits/1", b"ours")

    assert not raised.value.maybe_done


async def test_a_hung_transfer_is_begun_again(autojump_clock: MockClock) -> None:
    store = await with_object(hang())

    assert await Retrying(store, attempt=10).get("packs/ab/one", 0, 10) == b"bytes"

    assert trio.current_time() == pytest.approx(10.25, abs=0.01)


async def test_a_large_transfer_may_take_its_time(autojump_clock: MockClock) -> None:
    data = bytes(1 << 20)
    store = await with_object(slow(60), data=data)

    got = await Retrying(store, patience=5, attempt=5, min_speed=16 << 10).get(
        "packs/ab/one", 0, 1 << 20
    )

    assert got == data
    assert trio.current_time() == 60  # of the 64 that 1 MiB may take at 16 KiB/s


async def test_waiting_for_a_slot_is_not_hanging(autojump_clock: MockClock) -> None:
    store = await with_object(slow(20), slow(20), slow(20))
    retrying = Retrying(Limited(store, 1, 1), patience=100, attempt=25)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(retrying.get, "packs/ab/one", 0, 10)

    assert trio.current_time() == 60
    assert retrying.health().details["failures"] == 0


async def test_patience_ends_in_the_queue_too_and_does_not_blame_the_store(
    autojump_clock: MockClock,
) -> None:
    limited = Limited(await with_object(slow(50)), 1, 1)
    retrying = Retrying(limited, patience=30)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(limited.get, "packs/ab/one", 0, 10)
        await trio.sleep(1)
        with pytest.raises(Unavailable, match="too much is waiting"):
            await retrying.get("packs/ab/one", 0, 10)

        assert trio.current_time() == pytest.approx(31, abs=0.1)
        assert retrying.health().details["failures"] == 0
        assert retrying.state == "ok"


async def test_an_attempt_that_patience_cuts_short_is_not_a_failure_of_the_store(
    autojump_clock: MockClock,
) -> None:
    limited = Limited(await with_object(slow(28), slow(28)), 1, 1)
    retrying = Retrying(limited, patience=30)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(limited.get, "packs/ab/one", 0, 10)
        await trio.sleep(0.01)  # it has the slot
        with pytest.raises(Unavailable, match="no answer in time"):
            await retrying.get("packs/ab/one", 0, 10)

    assert retrying.state == "ok"


async def test_an_outage_costs_one_request_each_once_the_budget_is_spent(
    autojump_clock: MockClock,
) -> None:
    store = await with_object()
    store.partitioned = True
    retrying = Retrying(store, budget=50)  # ten retries

    async def read() -> None:
        with pytest.raises(Unavailable):
            await retrying.get("packs/ab/one", 0, 10)

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(read)

    assert len(store.calls) == 40 + 10
    assert trio.current_time() < 20


async def test_the_budget_is_back_soon_after_an_outage(autojump_clock: MockClock) -> None:
    budget = Budget(100)
    while budget.take(5):
        budget.failed()
    await trio.sleep(1000)
    assert not budget.take(5)  # nothing fills it while nothing works

    budget.succeeded(0)
    await trio.sleep(5)

    assert budget.tokens == pytest.approx(51)
    await trio.sleep(10)
    assert budget.tokens == 100


async def test_a_store_that_is_down_answers_at_once(autojump_clock: MockClock) -> None:
    store = await with_object()
    store.partitioned = True
    retrying = Retrying(store, patience=60)
    with pytest.raises(Unavailable):
        await retrying.get("packs/ab/one", 0, 10)
    assert retrying.health().state == "down"
    calls, then = len(store.calls), trio.current_time()

    async def read() -> None:
        with pytest.raises(Unavailable):
            await retrying.get("packs/ab/one", 0, 10)

    for second in range(3):
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(read)
        assert trio.current_time() == then + second
        await trio.sleep(1)

    # One of each hundred went through, to see whether the store is back.
    assert len(store.calls) <= calls + 3


async def test_a_store_that_came_back_is_ok_within_seconds(autojump_clock: MockClock) -> None:
    store = await with_object()
    store.partitioned = True
    retrying = Retrying(store, patience=20)
    with pytest.raises(Unavailable):
        await retrying.get("packs/ab/one", 0, 10)
    assert retrying.state == "down"

    store.partitioned = False
    await trio.sleep(1)

    assert await retrying.get("packs/ab/one", 0, 10) == b"bytes"
    assert retrying.state == "degraded"  # it failed a moment ago
    await trio.sleep(retry.DEGRADED_FOR)
    assert retrying.state == "ok"


async def test_operations_under_way_survive_an_outage_shorter_than_patience(
    autojump_clock: MockClock,
) -> None:
    store = await with_object()
    store.partitioned = True
    retrying = Retrying(store, patience=60)
    results = []

    async def read() -> None:
        results.append(await retrying.get("packs/ab/one", 0, 10))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(read)
        await trio.sleep(30)
        store.partitioned = False

    assert results == [b"bytes"] * 5


async def test_one_failure_is_no_outage(autojump_clock: MockClock) -> None:
    store = await with_object(before())
    retrying = Retrying(store)

    await retrying.get("packs/ab/one", 0, 10)

    assert retrying.health().state == "degraded"
    assert retrying.health().last_error == "503 for a test"


async def test_an_outage_is_one_line_in_the_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="megafs.stores.retry")
    store = await with_object()
    store.partitioned = True
    retrying = Retrying(store, patience=30)

    async def read() -> None:
        with pytest.raises(Unavailable):
            await retrying.get("packs/ab/one", 0, 10)

    for _ in range(3):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(read)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no route to the store" in caplog.text

    store.partitioned = False
    await trio.sleep(2)
    await retrying.get("packs/ab/one", 0, 10)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_retries_that_help_are_not_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="megafs.stores.retry")
    store = await with_object(before(), before())

    await Retrying(store).get("packs/ab/one", 0, 10)

    assert caplog.records == []


async def test_status_has_its_numbers(autojump_clock: MockClock) -> None:
    store = await with_object(before())
    with clock.replaced(now_ns=lambda: 1_700_000_000 * 10**9, uniform=lambda low, high: high):
        retrying = Retrying(store)
        await retrying.get("packs/ab/one", 0, 10)
        await retrying.put_new("packs/ab/two", bytes(100))

    details = retrying.health().details
    assert details["requests"] == 3
    assert details["failures"] == 1
    assert details["retries"] == 1
    assert details["gave_up"] == 0
    assert details["bytes_down"] == 5
    assert details["bytes_up"] == 100
    assert details["last_success"] == 1_700_000_000
    assert details["last_error"] == "503 for a test"


async def test_cancelling_a_retry_leaves_it_usable(autojump_clock: MockClock) -> None:
    store = await with_object(hang())
    retrying = Retrying(Limited(store, 1, 1))

    with trio.move_on_after(1):
        await retrying.get("packs/ab/one", 0, 10)

    assert await retrying.get("packs/ab/one", 0, 10) == b"bytes"
    assert retrying.health().details["downloading"] == 0


@pytest.mark.parametrize("seed", range(5))
async def test_of_racers_over_a_bad_line_exactly_one_wins(
    autojump_clock: MockClock, seed: int
) -> None:
    """Lost replies, errors and hangs: still one winner for each name, and it knows."""
    memory = MemoryStore()
    rates = {"before": 0.2, "after": 0.2, "hang": 0.05, "late": 0.05, "slow": 0.2}
    won: dict[str, list[bytes]] = {}

    async def mount(number: int) -> None:
        faulty = Faulty(memory, seed=seed * 100 + number, rates=rates)
        store = Retrying(faulty, patience=1e6, attempt=10, budget=1e9)
        for i in range(10):
            name, mine = f"commits/{i}", b"%d by %d" % (i, number)
            try:
                await store.put_new(name, mine)
            except Exists:
                continue
            won.setdefault(name, []).append(mine)

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(mount, number)

    assert {name: [data] for name, data in memory.objects.items()} == won


class TestRetryingOverABadLine(StoreContract):
    """The whole contract, although every fourth request fails one way or another."""

    @pytest.fixture(autouse=True)
    def no_waits(self) -> Iterator[None]:
        # In real time: pytest-trio does not see a clock that a fixture asks for.
        with clock.replaced(uniform=lambda low, high: low):
            yield

    @pytest.fixture
    async def store(self) -> ObjectStore:
        faulty = Faulty(MemoryStore(), seed=1, rates={"before": 0.1, "after": 0.1})
        return Retrying(faulty, budget=1e9)

    async def test_health_never_asks_the_store(self, store: ObjectStore) -> None:
        assert isinstance(store, Retrying)
        faulty = store.beneath
        assert isinstance(faulty, Faulty)
        calls = len(faulty.calls)
        store.health()
        assert len(faulty.calls) == calls

    # A put that is retried after a lost reply finds its own object: it cannot then tell an
    # earlier, equal one of its own from it.
    test_put_new_never_replaces = None  # type: ignore[assignment]


async def test_a_directory_works_the_same(autojump_clock: MockClock, tmp_path: Path) -> None:
    store = Retrying(Faulty(LocalStore(tmp_path), [lost_reply(), None, None, before()]))

    await store.put_new("commits/1", b"ours")
    assert await store.get("commits/1", 0, 10) == b"ours"


# ---- the first contact, and refusals ------------------------------------------------------------


class Unreached(MemoryStore):
    """Nobody is there until *since*; then a store.  hang: seconds that either takes."""

    def __init__(self, since: float = float("inf"), hang: float = 0.0) -> None:
        super().__init__()
        self.since, self.hang = since, hang
        self.attempts = 0

    async def get(self, name: str, start: int, length: int) -> bytes:
        self.attempts += 1
        timing = limit.attempt.get()
        assert timing is not None
        timing.count()
        if trio.current_time() < self.since:
            await trio.sleep(self.hang)
            raise Unavailable("cannot connect", unreached=True)
        timing.moved(1)
        await trio.sleep(self.hang)
        return b"bytes"


async def test_an_address_where_nobody_is_is_given_up_soon(autojump_clock: MockClock) -> None:
    store = Retrying(Unreached())
    with pytest.raises(Unavailable, match="no connection has come about yet"):
        await store.get("a", 0, 1)
    assert trio.current_time() <= retry.CONTACT

    # Whoever goes on all the same is as patient as ever: the network may come up.
    await trio.sleep(10)
    began = trio.current_time()
    with pytest.raises(Unavailable, match="gave up after"):
        await store.get("a", 0, 1)
    assert trio.current_time() - began > 30


async def test_a_store_that_comes_up_meanwhile_is_used(autojump_clock: MockClock) -> None:
    assert await Retrying(Unreached(since=1)).get("a", 0, 1) == b"bytes"


async def test_a_store_that_has_answered_once_is_waited_for(autojump_clock: MockClock) -> None:
    there = Unreached(since=0)
    store = Retrying(there)
    await store.get("a", 0, 1)
    there.since = trio.current_time() + 20
    assert await store.get("a", 0, 1) == b"bytes"


@pytest.mark.parametrize("at_once", [8, 80])
async def test_where_nobody_listens_there_is_one_try_a_second(
    autojump_clock: MockClock, at_once: int
) -> None:
    """However many operations are under way, and begin: from the first second on."""
    there = Unreached(since=0)
    store = Retrying(there, patience=6)
    await store.get("a", 0, 1)
    begun = trio.current_time()
    there.since, there.attempts = begun + 9, 0
    gave_up = []

    async def reader() -> None:
        while trio.current_time() < begun + 20:
            try:
                assert await store.get("a", 0, 1) == b"bytes"
                return
            except Unavailable as exc:
                gave_up.append(exc)
                assert trio.current_time() - begun < 12
                await trio.sleep(0.3)  # a program that asks again

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(reader)
        await trio.sleep(9)
        # Those that were on their way when it began, and the probes.
        assert there.attempts <= at_once + 9
        assert len(gave_up) >= at_once - 9  # by their patience
        assert not any(exc.maybe_done for exc in gave_up)
        there.attempts = 0

    # Somebody finds that it is back within a second, and all others hear of it.
    assert trio.current_time() - begun <= 9 + retry.PROBE_EVERY + retry.RECOVERED
    assert there.attempts <= at_once


async def test_what_begins_while_nobody_listens_waits_for_its_turn(
    autojump_clock: MockClock,
) -> None:
    there = Unreached(since=0)
    store = Retrying(there, patience=3)
    await store.get("a", 0, 1)
    there.since, there.attempts = trio.current_time() + 5, 0
    errors = []

    async def read() -> None:
        began = trio.current_time()
        try:
            await store.get("a", 0, 1)
        except Unavailable as exc:
            errors.append(str(exc))
        assert trio.current_time() - began < 3.01

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(read)
            await trio.sleep(0.1)
        # The first ones found out; then one a second.
        assert there.attempts <= retry.UNREACHED + 6
    assert errors
    assert all("cannot connect" in text for text in errors)
    assert store.state == "degraded"  # and not down: it was away for five seconds


async def test_a_connection_that_hangs_is_no_connection(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    with pytest.raises(Unavailable, match="no connection"):
        await Retrying(Unreached(hang=9), contact=1.0, hang=1.0).get("a", 0, 1)
    assert trio.current_time() - began == 1.0

    began = trio.current_time()
    with pytest.raises(Unavailable, match="no connection"):
        await Retrying(Unreached(hang=9)).get("a", 0, 1)
    assert trio.current_time() - began == retry.CONTACT_HANG

    # A slow answer is no missing connection.
    slow_one = Unreached(since=0, hang=20)
    assert await Retrying(slow_one, contact=1.0, hang=1.0).get("a", 0, 1) == b"bytes"
    assert slow_one.attempts == 1


async def test_a_store_that_refuses_every_put_is_not_ok(autojump_clock: MockClock) -> None:
    faults = [Fault("full", op="put_new"), Fault("denied", op="put_new")]
    store = Retrying(Faulty(MemoryStore(), faults))
    assert store.health().state == "ok"
    for error in (Full, Denied):
        with pytest.raises(error):
            await store.put_new("a", b"1")
        await store.list("")  # reads are answered
        await trio.sleep(100)
        assert store.health().state == "degraded"
        assert store.health().last_error
    await store.put_new("a", b"1")
    assert store.health().state == "ok"
    with pytest.raises(Exists):
        await store.put_new("a", b"2")
    assert store.health().state == "ok"


async def test_the_limit_that_holds_now_is_told(autojump_clock: MockClock) -> None:
    """`megafs status` says why it is slow, or why nothing is taken, as long as that is so."""

    class Account(Faulty):
        is_full = False

        async def put_new(self, name: str, data: Buffer) -> None:
            if self.is_full:
                raise Full("the account is full")
            await super().put_new(name, data)

    memory = MemoryStore()
    await memory.put_new("packs/ab/one", b"bytes")
    account = Account(memory, (before(retry_after=7),))
    store = Retrying(account)

    def limit_now() -> str:
        return str(store.health().details["limit"])

    assert limit_now() == ""
    await store.get("packs/ab/one", 0, 10)
    assert "it asks to wait 7 s" in limit_now()
    await trio.sleep(retry.LIMITED_FOR)
    assert limit_now() == ""
    account.is_full = True
    with pytest.raises(Full):
        await store.put_new("packs/ab/two", b"2")
    await trio.sleep(3600)
    await store.get("packs/ab/one", 0, 10)
    assert limit_now() == "the account is full"
    account.is_full = False
    await store.put_new("packs/ab/two", b"2")
    assert limit_now() == ""
