"""A store that tells of changes: others' commits are seen at once, and the clock asks seldom."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from megafs.errors import Denied, Refused, Unavailable
from megafs.journal import follower as follower_module
from megafs.stores.abilities import Watch
from megafs.stores.base import Buffer, Page
from megafs.stores.memory import MemoryStore
from megafs.stores.wrapper import Wrapper
from megafs.volume.volume import Volume
from tests.fakes.machine import Machine, make_volume, mkdir, resolve


class Hub(MemoryStore):
    """Objects, and who waits for changes among them."""

    def __init__(self) -> None:
        super().__init__("hub")
        self.changed = trio.Event()

    async def put_new(self, name: str, data: Buffer) -> None:
        await super().put_new(name, data)
        self.changed.set()
        self.changed = trio.Event()


class Counting(Wrapper):
    """One machine's way to a hub.  requests: gets and listings that went over it."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.hub = hub
        self.requests = self.waits = 0

    async def get(self, name: str, start: int, length: int) -> bytes:
        self.requests += 1
        return await super().get(name, start, length)

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        self.requests += 1
        return await super().list(prefix, after, limit)


class Watched(Counting, Watch):
    """A way on which news travels, too.

    delay: seconds that it takes.  fails: raised by waits.  deaf: waits never return.
    hasty: waits return for nothing at once.
    """

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.delay = 0.2
        self.fails: Exception | None = None
        self.deaf = self.hasty = False

    async def wait_for_change(self, prefix: str) -> None:
        assert prefix == "commits/"
        self.waits += 1
        await trio.lowlevel.checkpoint()
        if self.fails is not None:
            raise self.fails
        if self.hasty:
            return
        if self.deaf:
            await trio.sleep_forever()
        with trio.move_on_after(60):  # a long poll ends now and then
            await self.hub.changed.wait()
        await trio.sleep(self.delay)


class Pair:
    """Two machines on one volume; only the second's store tells of changes."""

    def __init__(self, writer: Volume, reader: Volume, way: Counting) -> None:
        self.writer, self.reader, self.way = writer, reader, way

    @property
    def watched(self) -> Watched:
        assert isinstance(self.way, Watched)
        return self.way

    async def seconds_until_seen(self, name: str) -> float:
        """Make a directory on one machine; return how long until the other has it."""
        await mkdir(self.writer.fs, name)
        await self.writer.drain()
        begun = trio.current_time()
        while True:
            try:
                resolve(self.reader.fs, name)
                return trio.current_time() - begun
            except Refused:
                assert trio.current_time() - begun < 1000
                await trio.sleep(0.05)


@asynccontextmanager
async def pair(tmp_path: Path, *, watches: bool = True) -> AsyncIterator[Pair]:
    hub = Hub()
    await make_volume(hub)
    way = Watched(hub) if watches else Counting(hub)
    async with (
        Machine(tmp_path / "a", host="a").open(hub) as writer,
        Machine(tmp_path / "b", host="b").open(way) as reader,
    ):
        await trio.sleep(120)
        yield Pair(writer, reader, way)


async def test_anothers_commit_shows_within_a_second(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with pair(tmp_path) as both:
        assert both.reader.writer.follower.is_watching
        assert both.reader.status()["watching"] is True
        for n in range(5):
            assert await both.seconds_until_seen(f"d{n}") < 1.0
            await trio.sleep(100)  # idle again


@pytest.mark.parametrize("watches", [True, False])
async def test_what_an_idle_hour_costs(
    autojump_clock: MockClock, tmp_path: Path, watches: bool
) -> None:
    async with pair(tmp_path, watches=watches) as both:
        before = both.way.requests
        await trio.sleep(3600)
        asked = both.way.requests - before
        # Heartbeats, of which every mount reads the others', are the same in both.
        print(f"watch: {watches}: {asked} requests and {both.way.waits} waits in an idle hour")
        if watches:
            assert asked < 500
        else:
            assert asked > 700


@pytest.mark.parametrize("failure", [Unavailable("away"), Denied("not for this account")])
async def test_where_it_fails_the_clock_looks_as_often_as_ever(
    autojump_clock: MockClock, tmp_path: Path, failure: Exception
) -> None:
    async with pair(tmp_path) as both:
        both.watched.fails = failure
        await trio.sleep(300)
        assert not both.reader.writer.follower.is_watching
        assert await both.seconds_until_seen("d") < 10
        waits = both.watched.waits
        await trio.sleep(3600)
        assert both.watched.waits - waits < 20  # a service that says no is not asked for ever
        both.watched.fails = None
        await trio.sleep(600)
        assert both.reader.writer.follower.is_watching
        assert await both.seconds_until_seen("e") < 1


async def test_one_that_tells_nothing_is_not_relied_on(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with pair(tmp_path) as both:
        both.watched.deaf = True
        await trio.sleep(130)
        for n in range(2):
            took = await both.seconds_until_seen(f"late{n}")
            assert took < follower_module.WATCHED_INTERVAL * 1.3
            await trio.sleep(100)
        assert not both.reader.writer.follower.is_watching
        assert await both.seconds_until_seen("soon") < 10


async def test_one_that_returns_for_nothing_does_no_harm(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with pair(tmp_path) as both:
        both.watched.hasty = True
        await trio.sleep(120)
        waits, requests = both.watched.waits, both.watched.requests
        await trio.sleep(60)
        assert both.watched.waits - waits <= 121
        assert both.watched.requests - requests <= 3 * 121
        assert await both.seconds_until_seen("d") < 1
