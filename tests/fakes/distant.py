"""A store that is far away: every request takes a round trip of one second."""

from __future__ import annotations

import trio

from megafs.stores.base import Buffer, ObjectStore, Page
from megafs.stores.wrapper import Wrapper


class Distant(Wrapper):
    """*store*, a second away.  asked: (operation, name or prefix) of every request."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self.asked: list[tuple[str, str]] = []
        self.answered = 0

    async def _travel(self, what: str, name: str) -> None:
        self.asked.append((what, name))
        await trio.sleep(1)
        self.answered += 1

    async def get(self, name: str, start: int, length: int) -> bytes:
        await self._travel("get", name)
        return await self.beneath.get(name, start, length)

    async def put_new(self, name: str, data: Buffer) -> None:
        await self._travel("put_new", name)
        await self.beneath.put_new(name, data)

    async def put(self, name: str, data: Buffer) -> None:
        await self._travel("put", name)
        await self.beneath.put(name, data)

    async def delete(self, name: str) -> None:
        await self._travel("delete", name)
        await self.beneath.delete(name)

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        await self._travel("list", prefix)
        return await self.beneath.list(prefix, after, limit)
