"""The probe believes what a store does, not what it says."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from megafs.errors import Denied, Unavailable
from megafs.stores.base import Buffer
from megafs.stores.memory import MemoryStore
from megafs.stores.probe import probe_create_if_absent
from tests.fakes.faulty import Fault, Faulty


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
