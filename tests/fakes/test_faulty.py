"""The faults are those that were ordered, and the same each time."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from megafs.errors import Denied, Full, Missing, StoreError, Unavailable
from megafs.stores.memory import MemoryStore
from tests.fakes.faulty import Fault, Faulty, before, hang, lost_reply, slow


async def test_a_script_is_followed(autojump_clock: MockClock) -> None:
    memory = MemoryStore()
    store = Faulty(memory, [before(9), lost_reply(), slow(3), hang()])

    with pytest.raises(Unavailable) as raised:
        await store.put_new("a", b"x")
    assert raised.value.retry_after == 9
    assert memory.objects == {}
    with pytest.raises(Unavailable) as raised:
        await store.put_new("a", b"x")
    assert raised.value.maybe_done
    assert memory.objects == {"a": b"x"}
    assert await store.get("a", 0, 9) == b"x"
    assert trio.current_time() == 3
    with trio.move_on_after(1000) as scope:
        await store.get("a", 0, 9)
    assert scope.cancelled_caught
    assert await store.get("a", 0, 9) == b"x"


async def test_a_late_one_was_done(autojump_clock: MockClock) -> None:
    memory = MemoryStore()
    store = Faulty(memory, [Fault("late")])
    with trio.move_on_after(1000):
        await store.put_new("a", b"x")

    assert memory.objects == {"a": b"x"}


@pytest.mark.parametrize(("kind", "error"), [("denied", Denied), ("full", Full)])
async def test_refusals(kind: str, error: type[StoreError]) -> None:
    with pytest.raises(error):
        await Faulty(MemoryStore(), [Fault(kind)]).put_new("a", b"x")


async def test_a_partition_lasts_until_it_ends() -> None:
    store = Faulty(MemoryStore())
    await store.put_new("a", b"x")
    store.partitioned = True
    for _ in range(3):
        with pytest.raises(Unavailable):
            await store.get("a", 0, 9)
    store.partitioned = False

    assert await store.get("a", 0, 9) == b"x"


@pytest.mark.parametrize("kind", ["flip", "truncate", "zero", "extend", "swap"])
async def test_bytes_can_be_spoilt(kind: str) -> None:
    memory = MemoryStore()
    store = Faulty(memory, seed=1, rates={kind: 1})
    for name in ("packs/a", "packs/b"):
        await store.put_new(name, name.encode() * 10)
    good = memory.objects["packs/a"]

    data = await store.get("packs/a", 0, 1000)

    assert data != good
    match kind:
        case "flip":
            assert sum(bin(a ^ b).count("1") for a, b in zip(data, good, strict=True)) == 1
        case "truncate":
            assert good.startswith(data)
        case "zero":
            assert data == bytes(len(good))
        case "extend":
            assert data == good + bytes(10)
            assert await store.get("packs/a", 0, 5) == good[:5]  # never more than asked for
        case "swap":
            assert data == memory.objects["packs/b"]


async def test_a_stale_listing_lacks_what_was_put_last() -> None:
    store = Faulty(MemoryStore(), rates={"stale": 1}, only=["list"])
    for i in range(5):
        await store.put_new(f"commits/{i}", b"x")

    page = await store.list("commits/")

    assert [entry.name for entry in page.entries] == ["commits/0", "commits/1"]


async def test_a_fault_may_be_for_one_operation_only() -> None:
    store = Faulty(MemoryStore(), [Fault("before", op="get")])
    await store.put_new("a", b"x")
    with pytest.raises(Unavailable):
        await store.get("a", 0, 1)
    with pytest.raises(Missing):
        await store.get("b", 0, 1)


async def test_the_same_seed_is_the_same_schedule(autojump_clock: MockClock) -> None:
    async def run(seed: int) -> list[str]:
        store = Faulty(MemoryStore(), seed=seed, rates={"before": 0.3, "after": 0.2, "slow": 0.2})
        for i in range(100):
            try:
                await store.put(f"a/{i}", b"x")
            except Unavailable:
                pass
        return store.hit

    first, second, other = await run(5), await run(5), await run(6)
    assert first == second != other
