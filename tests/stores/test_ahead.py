"""What was asked ahead is answered once, to whoever asks just that, and never twice."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from megafs.errors import Missing, Unavailable
from megafs.stores.early_requests import STALE, EarlyRequests
from megafs.stores.memory import MemoryStore
from tests.fakes.distant import Distant


async def test_what_is_asked_ahead_takes_one_round_trip(autojump_clock: MockClock) -> None:
    beneath = Distant(MemoryStore())
    await beneath.beneath.put_new("keys/1", b"one")
    ahead = EarlyRequests(beneath)

    ahead.ask("keys/1", 10)
    ahead.ask("keys/2", 10)
    listing = ahead.ask_list("keys/")
    began = trio.current_time()
    assert [entry.name for entry in (await listing.get()).entries] == ["keys/1"]
    assert await ahead.get("keys/1", 0, 10) == b"one"
    with pytest.raises(Missing):
        await ahead.get("keys/2", 0, 10)
    assert (await ahead.list("keys/")).entries
    assert trio.current_time() - began == 1
    assert len(beneath.asked) == 3


async def test_what_is_asked_again_is_read_again(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    ahead = EarlyRequests(store)
    ahead.ask("a", 10)
    with pytest.raises(Missing):
        await ahead.get("a", 0, 10)
    await store.put_new("a", b"x")
    assert await ahead.get("a", 0, 10) == b"x"


async def test_another_question_is_not_answered_by_it(autojump_clock: MockClock) -> None:
    beneath = Distant(MemoryStore())
    await beneath.beneath.put_new("a", b"abc")
    ahead = EarlyRequests(beneath)
    ahead.ask("a", 3)
    assert await ahead.get("a", 0, 2) == b"ab"
    assert await ahead.get("a", 1, 3) == b"bc"
    assert len(beneath.asked) == 3


async def test_an_old_answer_is_not_taken(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    ahead = EarlyRequests(store)
    ahead.ask("a", 10)
    await trio.sleep(STALE + 1)
    await store.put_new("a", b"x")
    assert await ahead.get("a", 0, 10) == b"x"


async def test_a_failure_is_for_whoever_asks_and_for_nobody_else(
    autojump_clock: MockClock,
) -> None:
    class Away(MemoryStore):
        async def get(self, name: str, start: int, length: int) -> bytes:
            raise Unavailable("away")

    ahead = EarlyRequests(Away())
    ahead.ask("a", 10)
    ahead.ask("b", 10)

    async def explore() -> None:
        await ahead.get("b", 0, 10)

    ahead.spawn(explore)
    await trio.sleep(1)
    with pytest.raises(Unavailable):
        await ahead.get("a", 0, 10)


async def test_nothing_goes_on_after_the_end(autojump_clock: MockClock) -> None:
    beneath = Distant(MemoryStore())
    ahead = EarlyRequests(beneath)
    ahead.ask("a", 10)
    await trio.sleep(0.5)
    ahead.drop()
    ahead.ask("b", 10)
    await trio.sleep(2)
    assert [name for _, name in beneath.asked] == ["a"]
    assert beneath.answered == 0
    with pytest.raises(Missing):
        await ahead.get("a", 0, 10)
