"""A line to a store, as a fluid on the virtual clock: latency, connections with a speed of their
own, one total that they share, and a store that refuses when it is asked for too much."""

from __future__ import annotations

import trio

from megafs.errors import Unavailable
from megafs.stores.base import Buffer, ObjectStore, Page


class SharedLine(ObjectStore):
    """Objects of zeros, any length, behind a line whose traits may be changed at any time.

    rtt: seconds from a request to the first byte of the answer.
    each, total: bytes per second, of one connection and of all.
    harm: what every transfer beside the first takes of the total, as a part of it (two cores that
        get into each other's way).
    most: requests at once that the store takes before it says 503.
    """

    def __init__(
        self,
        *,
        rtt: float,
        total: float,
        each: float = float("inf"),
        harm: float = 0.0,
        most: int | None = None,
    ) -> None:
        self.rtt, self.each, self.total, self.harm, self.most = rtt, each, total, harm, most
        self.active = 0
        self.refused = 0
        self.moved = 0
        #: Bytes that each transfer got since the beginning: all get the same.
        self._served = 0.0
        self._served_at = 0.0
        self._flowing = 0
        self._changed = trio.Event()

    @property
    def _speed(self) -> float:
        total = self.total / (1 + self.harm * (self._flowing - 1))
        return min(self.each, total / self._flowing)

    def _turn(self, by: int) -> None:
        """A transfer begins or ends."""
        now = trio.current_time()
        if self._flowing:
            self._served += self._speed * (now - self._served_at)
        self._served_at = now
        self._flowing += by
        self._changed.set()
        self._changed = trio.Event()

    def change(self, **traits: float) -> None:
        """The line is another from now on."""
        self._turn(0)
        for name, value in traits.items():
            setattr(self, name, value)

    async def _move(self, size: int) -> None:
        self.active += 1
        try:
            too_many = self.most is not None and self.active > self.most
            await trio.sleep(self.rtt)
            if too_many:
                self.refused += 1
                raise Unavailable("503 SlowDown", busy=True)
            self._turn(+1)
            try:
                goal = self._served + size
                while (left := goal - self._served) > 1e-6 * size:
                    with trio.move_on_after(left / self._speed):
                        await self._changed.wait()
                        continue
                    self._turn(0)
            finally:
                self._turn(-1)
            self.moved += size
        finally:
            self.active -= 1

    async def get(self, name: str, start: int, length: int) -> bytes:
        await self._move(length)
        return bytes(length)

    async def put_new(self, name: str, data: Buffer) -> None:
        await self._move(len(data))

    async def put(self, name: str, data: Buffer) -> None:
        await self._move(len(data))

    async def delete(self, name: str) -> None:
        await self._move(0)

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        await self._move(0)
        return Page([], more=False)
