"""Background tasks go on after what nobody expected, or say that they have given up."""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import MockClock

from megafs import supervisor
from megafs.concurrency import Background
from megafs.errors import Fault
from megafs.supervisor import keep_running


class Flaky:
    """Raises *errors*, one each time it runs; then runs until it is cancelled."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.runs: list[float] = []
        self.settled = trio.Event()

    async def run(self) -> None:
        self.runs.append(trio.current_time())
        if self.errors:
            raise self.errors.pop(0)
        self.settled.set()
        await trio.sleep_forever()


@pytest.fixture(autouse=True)
def outlives(unexpected: None) -> None:
    supervisor._raised.set(False)


async def test_it_begins_again_after_a_pause_that_grows(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    flaky = Flaky(*[KeyError(n) for n in range(12)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_running, "work", flaky.run)
        await flaky.settled.wait()
        nursery.cancel_scope.cancel()
    pauses = [b - a for a, b in zip(flaky.runs, flaky.runs[1:], strict=False)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60]
    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 12
    assert "work failed: KeyError: 0" in errors[0].getMessage()


async def test_what_gives_up_says_so_and_ends(autojump_clock: MockClock) -> None:
    told: list[Fault] = []

    async def work() -> None:
        raise ExceptionGroup("odd", [ValueError("odd")])

    await supervisor.keep_running("committing", work, give_up=told.append)

    (fault,) = told
    assert "committing failed 5 times" in str(fault)
    assert "ValueError: odd" in str(fault)


async def test_failures_long_ago_do_not_count(autojump_clock: MockClock) -> None:
    told: list[Fault] = []
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 20:
            return
        await trio.sleep(supervisor.SETTLED + 1)
        raise KeyError("now and then")

    await keep_running("committing", work, give_up=told.append)
    assert (runs, told) == (20, [])


async def test_a_task_that_is_cancelled_while_it_fails_ends(autojump_clock: MockClock) -> None:
    async def child(error: bool) -> None:
        try:
            await trio.sleep_forever()
        finally:
            if error:
                raise KeyError("in the end")

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child, True)
            nursery.start_soon(child, False)

    with trio.move_on_after(5) as scope:
        await keep_running("work", work)
    assert scope.cancelled_caught


async def test_one_that_fails_in_the_background_leaves_the_others(
    autojump_clock: MockClock,
) -> None:
    background, done = Background(), trio.Event()

    async def bad() -> None:
        raise KeyError("bad")

    async def good() -> None:
        await trio.sleep(5)
        done.set()

    async with background.running():
        background.start(bad)
        background.start(good)
        await done.wait()
    assert done.is_set()


async def test_in_tests_it_is_raised(autojump_clock: MockClock) -> None:
    with supervisor.unexpected_is_raised(), pytest.raises(KeyError):
        await keep_running("work", Flaky(KeyError("odd")).run)
