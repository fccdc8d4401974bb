"""A store around another one."""

from __future__ import annotations

from megafs.stores.base import Buffer, Health, ObjectStore, Page


class Wrapper(ObjectStore):
    """A store that hands every call to the one beneath it.

    Limits, retries and the disk cache derive from it, and override what they change.  Abilities
    that not every store has (stores/abilities.py) are no methods of a wrapper: whoever wants one
    asks the ability's class, which looks beneath the wrappers.
    """

    def __init__(self, beneath: ObjectStore) -> None:
        self.url = beneath.url
        self.beneath = beneath

    async def get(self, name: str, start: int, length: int) -> bytes:
        return await self.beneath.get(name, start, length)

    async def put_new(self, name: str, data: Buffer) -> None:
        await self.beneath.put_new(name, data)

    async def put(self, name: str, data: Buffer) -> None:
        await self.beneath.put(name, data)

    async def delete(self, name: str) -> None:
        await self.beneath.delete(name)

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        return await self.beneath.list(prefix, after, limit)

    async def create(self) -> None:
        await self.beneath.create()

    async def aclose(self) -> None:
        await self.beneath.aclose()

    def health(self) -> Health:
        return self.beneath.health()
