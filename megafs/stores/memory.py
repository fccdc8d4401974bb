"""Objects in memory: the reference for what a store does, and the ground of the simulations.

Deterministic: no threads, no clock of its own, no randomness.  Every call passes exactly one
checkpoint and then acts in one step, so a cancelled call did nothing and a returned one is done.
Many mounts may share one `MemoryStore`, as they would share a bucket.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping

import trio

from megafs import clock
from megafs.errors import Exists, Full, Missing
from megafs.stores.base import Buffer, Entry, Health, ObjectStore, Page, check_name
from megafs.stores.urls import Location


class MemoryStore(ObjectStore):
    """A dict of objects.

    capacity: the most bytes it holds in all; beyond, puts raise Full.  None: no limit.
    """

    def __init__(self, name: str = "", capacity: int | None = None) -> None:
        self.url = f"memory://{name}"
        self.objects: dict[str, bytes] = {}
        self.capacity = capacity
        self._modified: dict[str, float] = {}
        self._names: list[str] = []  # the keys of `objects`, sorted
        self._size = 0

    async def get(self, name: str, start: int, length: int) -> bytes:
        check_name(name)
        await trio.lowlevel.checkpoint()
        try:
            data = self.objects[name]
        except KeyError:
            raise Missing(f"{self.url}: no object {name}") from None
        return data[start : start + length]

    async def put_new(self, name: str, data: Buffer) -> None:
        check_name(name)
        await trio.lowlevel.checkpoint()
        if name in self.objects:
            raise Exists(f"{self.url}: {name} is there already")
        self._place(name, bytes(data))

    async def put(self, name: str, data: Buffer) -> None:
        check_name(name)
        await trio.lowlevel.checkpoint()
        self._place(name, bytes(data))

    async def delete(self, name: str) -> None:
        check_name(name)
        await trio.lowlevel.checkpoint()
        data = self.objects.pop(name, None)
        if data is not None:
            self._size -= len(data)
            del self._modified[name]
            del self._names[bisect_left(self._names, name)]

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        await trio.lowlevel.checkpoint()
        first = max(bisect_left(self._names, prefix), bisect_right(self._names, after))
        entries: list[Entry] = []
        for i in range(first, len(self._names)):
            name = self._names[i]
            if not name.startswith(prefix):
                break
            if len(entries) == limit:
                return Page(entries, more=True)
            entries.append(Entry(name, len(self.objects[name]), self._modified[name]))
        return Page(entries, more=False)

    def health(self) -> Health:
        return Health(details={"objects": len(self.objects), "bytes": self._size})

    def _place(self, name: str, data: bytes) -> None:
        old = self.objects.get(name)
        size = self._size + len(data) - len(old or b"")
        if self.capacity is not None and size > self.capacity:
            raise Full(f"{self.url}: no room for {len(data)} more bytes")
        if old is None:
            insort(self._names, name)
        self.objects[name] = data
        self._modified[name] = clock.now()
        self._size = size


_named: dict[str, MemoryStore] = {}


def open_driver(location: Location, options: Mapping[str, str], connections: int) -> MemoryStore:
    """Open memory://name: see stores/drivers.py."""
    return named(location.name)


def named(name: str) -> MemoryStore:
    """Return the store of that name, the same one each time within a process."""
    return _named.setdefault(name, MemoryStore(name))
