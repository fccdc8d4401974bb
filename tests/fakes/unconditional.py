"""A store that cannot keep two writers apart, and machines that stand still on their way to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from megafs.errors import Unavailable
from megafs.stores.base import Buffer, Page
from megafs.stores.memory import MemoryStore
from megafs.stores.wrapper import Wrapper

T = TypeVar("T")


class Unconditional(MemoryStore):
    """A store that ignores If-None-Match: it writes over what is there."""

    async def put_new(self, name: str, data: Buffer) -> None:
        await self.put(name, data)


class Paused(Wrapper):
    """One machine's way to the store: from a request on it stands still, as with SIGSTOP.

    left: so many requests are answered before that; None for no pause.
    at: instead: the request at which it stands still, as (method, name).
    after: the request that is under way is answered by the store before the machine stands still.
    dead: nothing that this machine sends arrives any more, and no answer.
    """

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.left: int | None = None
        self.at: Callable[[str, str], bool] | None = None
        self.after = False
        self.dead = False
        self.resumed = trio.Event()
        self.stands = trio.Event()

    def resume(self) -> None:
        """Go on with what was under way."""
        self.left = self.at = None
        self.resumed.set()

    async def _with(
        self, method: str, act: Callable[..., Awaitable[T]], name: str, *args: object
    ) -> T:
        if self.dead:
            raise Unavailable("no route to the store")
        stop = self.stands.is_set() and not self.resumed.is_set()
        if self.left is not None:
            self.left -= 1
            stop = self.left <= 0
        if self.at is not None and self.at(method, name):
            stop = True
        if stop and not self.after:
            await self._stand_still()
        result = await act(name, *args)
        if stop and self.after:
            await self._stand_still()
        return result

    async def _stand_still(self) -> None:
        self.stands.set()
        await self.resumed.wait()

    async def get(self, name: str, start: int, length: int) -> bytes:
        return await self._with("get", self.beneath.get, name, start, length)

    async def put_new(self, name: str, data: Buffer) -> None:
        await self._with("put_new", self.beneath.put_new, name, bytes(data))

    async def put(self, name: str, data: Buffer) -> None:
        await self._with("put", self.beneath.put, name, bytes(data))

    async def delete(self, name: str) -> None:
        await self._with("delete", self.beneath.delete, name)

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        return await self._with("list", self.beneath.list, prefix, after, limit)
