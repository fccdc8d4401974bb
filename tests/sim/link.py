"""One machine's way to the store that all machines of a simulation share.

What can happen to a request, told apart by what the machine sees of it:

    before    not done, an error              after     done, the reply lost
    late      an error now, done some seconds later, perhaps when the machine is long dead
    slow      done, seconds later             hang      nothing for half a minute, then an error
    short     the body broke off (get)        stale     without the newest objects (list)

While `cut` nothing gets through (a partition of this machine); after `end` nothing ever will.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from megafs import clock
from megafs.errors import Exists, Unavailable
from megafs.stores.base import Buffer, Page
from megafs.stores.memory import MemoryStore
from megafs.stores.wrapper import Wrapper

T = TypeVar("T")
#: A stale listing lacks the objects of so many last seconds.
_STALE = 10.0

CALM: dict[str, float] = {}
ROUGH = {"before": 0.04, "after": 0.04, "late": 0.02, "slow": 0.08, "short": 0.02, "stale": 0.1}
STORM = {
    "before": 0.15,
    "after": 0.15,
    "late": 0.08,
    "slow": 0.15,
    "hang": 0.02,
    "short": 0.05,
    "stale": 0.2,
}


class Link(Wrapper):
    """See above.  later: starts a task that outlives this machine."""

    def __init__(self, store: MemoryStore, rng: random.Random, later: Callable[..., None]) -> None:
        super().__init__(store)
        self.rates = CALM
        self.cut = False
        self.ended = False
        self.requests = 0
        self._rng = rng
        self._later = later

    def end(self) -> None:
        """The machine is gone: what it has not sent will never arrive."""
        self.ended = True

    async def get(self, name: str, start: int, length: int) -> bytes:
        return await self._with(
            ("slow", "hang", "before", "short"), self.beneath.get, name, start, length
        )

    async def put_new(self, name: str, data: Buffer) -> None:
        await self._with(
            ("before", "after", "late", "slow", "hang"), self.beneath.put_new, name, bytes(data)
        )

    async def put(self, name: str, data: Buffer) -> None:
        await self._with(("before", "after", "slow", "hang"), self.beneath.put, name, bytes(data))

    async def delete(self, name: str) -> None:
        await self._with(("before", "after", "slow"), self.beneath.delete, name)

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        page = await self._with(
            ("before", "slow", "short"), self.beneath.list, prefix, after, limit
        )
        if self._rng.random() < self.rates.get("stale", 0.0):
            since = clock.now() - _STALE
            return Page([entry for entry in page.entries if entry.modified < since], page.more)
        return page

    async def _with(
        self, kinds: tuple[str, ...], act: Callable[..., Awaitable[T]], *args: object
    ) -> T:
        self.requests += 1
        await trio.lowlevel.checkpoint()
        fate = self._fate(kinds)
        if fate == "hang":
            await trio.sleep(30)
            raise Unavailable("no answer for 30 s")
        if fate == "slow":
            await trio.sleep(self._rng.uniform(0, 5))
        self._check()
        if fate == "before":
            raise Unavailable("503")
        if fate == "late":
            self._later(self._arrive_late, self._rng.uniform(0, 20), act, *args)
            raise Unavailable("connection reset", maybe_done=True)
        result = await act(*args)
        if fate == "after":
            raise Unavailable("the reply is lost", maybe_done=True)
        if fate == "short":
            raise Unavailable("the body broke off")
        if self.cut or self.ended:
            raise Unavailable("the reply is lost", maybe_done=True)
        return result

    async def _arrive_late(
        self, seconds: float, act: Callable[..., Awaitable[object]], *args: object
    ) -> None:
        await trio.sleep(seconds)
        try:
            await act(*args)
        except Exists:
            pass

    def _check(self) -> None:
        if self.cut or self.ended:
            raise Unavailable("no route to the store")

    def _fate(self, kinds: tuple[str, ...]) -> str:
        draw = self._rng.random()
        for kind in kinds:
            rate = self.rates.get(kind, 0.0)
            if draw < rate:
                return kind
            draw -= rate
        return ""
