"""What only some stores can do is found beneath whatever is wrapped around them."""

from __future__ import annotations

from pathlib import Path

import trio

from megafs.chunks.store import ChunkStore
from megafs.stores.abilities import (
    DiskCache,
    LineAdvice,
    Presign,
    PublicLink,
    RangeCache,
    SpaceLeft,
    Watch,
    uncached,
)
from megafs.stores.base import ObjectStore
from megafs.stores.disk_cache.cached_store import DiskCached
from megafs.stores.early_requests import EarlyRequests
from megafs.stores.limit import Limited
from megafs.stores.memory import MemoryStore
from megafs.stores.retry import Retrying
from megafs.stores.wrapper import Wrapper
from tests.fakes.faulty import Faulty


class Account(MemoryStore, Watch, SpaceLeft):
    """A service that tells of changes and of its room."""

    def __init__(self) -> None:
        super().__init__("account", capacity=1000)
        self.changed = trio.Event()

    async def wait_for_change(self, prefix: str) -> None:
        await self.changed.wait()

    async def space_left(self) -> int | None:
        return 1000 - sum(map(len, self.objects.values()))


def wrapped(store: ObjectStore, place: Path) -> EarlyRequests:
    """Everything that goes around a driver."""
    limited = Limited(Faulty(store), 2, 2)
    return EarlyRequests(DiskCached(Retrying(limited), place / "cache", 1 << 20))


async def test_a_drivers_ability_is_found_beneath_every_wrapper(tmp_path: Path) -> None:
    account = Account()
    store = wrapped(account, tmp_path)
    await store.put_new("packs/a", bytes(300))
    room = SpaceLeft.of(store)
    assert room is not None
    assert await room.space_left() == 700
    watch = Watch.of(store)
    assert watch is account
    account.changed.set()
    await watch.wait_for_change("journal/")
    assert PublicLink.of(store) is None
    assert Presign.of(store) is None
    await store.aclose()


async def test_the_outermost_that_has_it_is_asked(tmp_path: Path) -> None:
    store = wrapped(MemoryStore(), tmp_path)
    cache = DiskCache.of(store)
    assert isinstance(cache, DiskCached)
    assert RangeCache.of(store) is cache
    advice = LineAdvice.of(store)
    assert isinstance(advice, Limited)
    assert DiskCache.of(cache.beneath) is None
    assert uncached(store) is cache.beneath
    assert uncached(advice) is advice
    await store.aclose()


async def test_a_wrapper_hands_every_call_of_the_interface_on() -> None:
    class Noting(MemoryStore):
        def __init__(self) -> None:
            super().__init__("noting")
            self.closed = self.made = False

        async def create(self) -> None:
            self.made = True

        async def aclose(self) -> None:
            self.closed = True

    assert ObjectStore.__dict__.keys() & Wrapper.__dict__.keys() >= {
        name for name in ObjectStore.__dict__ if callable(ObjectStore.__dict__[name])
    }, "a call that the interface has and the wrapper does not hand on"
    beneath = Noting()
    store = Wrapper(beneath)
    assert store.url == beneath.url
    await store.create()
    await store.put_new("a", b"one")
    await store.put("b", b"two")
    await store.delete("a")
    assert await store.get("b", 1, 5) == b"wo"
    assert [entry.name for entry in (await store.list("")).entries] == ["b"]
    assert store.health() == beneath.health()
    await store.aclose()
    assert beneath.made
    assert beneath.closed


def test_chunks_do_without_a_cache_and_without_advice() -> None:
    plain = ChunkStore(MemoryStore(), None, None, None, 0)  # type: ignore[arg-type]
    assert plain.worth == 0
    assert plain.at_once == 0
