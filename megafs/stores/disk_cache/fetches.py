"""Ranges that are being fetched from the store: a second reader waits for the first one's fetch."""

from __future__ import annotations

import trio

from megafs.errors import StoreError
from megafs.stores.limit import Priority


class Fetch:
    """A fetch under way; others who want the same bytes wait for it.

    stale: the object was forgotten meanwhile: the bytes are not to be cached, nor waited for.
    """

    __slots__ = ("data", "done", "end", "error", "name", "priority", "stale", "start")

    def __init__(self, name: str, start: int, length: int, level: int) -> None:
        self.name = name
        self.start = start
        self.end = start + length
        self.priority = Priority(level)
        self.done = trio.Event()
        self.data: bytes | None = None
        self.error: StoreError | None = None
        self.stale = False


class Fetches:
    """All fetches under way."""

    def __init__(self) -> None:
        self._by_name: dict[str, list[Fetch]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_name.values()))

    def find(self, name: str, start: int, length: int) -> Fetch | None:
        """Return one that brings all of this range, or None."""
        for fetch in self._by_name.get(name, ()):
            if fetch.start <= start and start + length <= fetch.end:
                return fetch
        return None

    def add(self, fetch: Fetch) -> None:
        """A fetch begins."""
        self._by_name.setdefault(fetch.name, []).append(fetch)

    def remove(self, fetch: Fetch) -> None:
        """A fetch has ended; no error if its object was forgotten."""
        if fetch.stale:
            return
        fetches = self._by_name[fetch.name]
        fetches.remove(fetch)
        if not fetches:
            del self._by_name[fetch.name]

    def forget(self, name: str) -> None:
        """Mark every fetch of this object as stale."""
        for fetch in self._by_name.pop(name, ()):
            fetch.stale = True

    def names(self) -> tuple[str, ...]:
        """The objects of which something is under way."""
        return tuple(self._by_name)
