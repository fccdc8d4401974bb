"""The interface of every store of objects.

A store is a flat set of named, immutable byte strings.  Names are ASCII ``[A-Za-z0-9/_-]``, at most
200 characters, without empty, "." or ".." parts (some S3 services mis-sign anything else).  Drivers
and wrappers (limit, retry, cache) have the same interface, so that each can be tested by the same
suite (tests/stores/contract.py) and stacked in any order that makes sense.

Nothing at this level, or below it, can open an object: `stores` may not import `crypto`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any

from msgspec import Struct, field

from megafs.errors import BadUsage, StoreError

Buffer = bytes | bytearray | memoryview

_NAME = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*\Z")


class Entry(Struct, frozen=True):
    """One object in a listing.  size: bytes.  modified: seconds since 1970 by the store's clock."""

    name: str
    size: int
    modified: float = 0.0


class Page(Struct, frozen=True):
    """Some objects in order of name; `more` says that others follow the last one."""

    entries: list[Entry]
    more: bool


class Health(Struct, frozen=True):
    """The health of a store, as `megafs status` shows it.

    state: "ok", "degraded" (some requests fail) or "down" (none has worked lately).
    details: counters and gauges by name, for people and for metrics.
    """

    state: str = "ok"
    last_error: str = ""
    details: dict[str, Any] = field(default_factory=dict)


def check_name(name: str) -> str:
    """Return *name* if it is a legal object name, or raise BadUsage."""
    if len(name) > 200 or not _NAME.match(name):
        raise BadUsage(f"not an object name: {name!r}")
    return name


class ObjectStore(ABC):
    """A flat set of named, immutable objects.

    Every method raises from the StoreError family only: Missing, Exists, Denied, Full, Unavailable,
    NoStore, BadStore.  Cancellation is safe at any await: an abandoned put either happened whole or
    not at all.
    """

    #: For people and logs; holds no secret.
    url: str = ""

    @abstractmethod
    async def get(self, name: str, start: int, length: int) -> bytes:
        """Return the bytes [start, start+length) of the object, fewer only where it ends.

        length: at most this many bytes are ever read from the network or kept, whatever the store
            sends.  A start at or beyond the end gives b"".
        Raises Missing if there is no such object.  A body cut short is Unavailable, never short
            bytes.
        """

    @abstractmethod
    async def put_new(self, name: str, data: Buffer) -> None:
        """Store *data* as *name* if and only if the name is free; durable when it returns.

        Raises Exists if the name is taken: the old object is untouched.  Of several racing callers
        exactly one succeeds, if the store can do that (`format` probes it).
        """

    @abstractmethod
    async def put(self, name: str, data: Buffer) -> None:
        """Store *data* as *name*, over an older object if there is one.  Only for mounts/*."""

    @abstractmethod
    async def delete(self, name: str) -> None:
        """Remove the object; no error if it is not there."""

    @abstractmethod
    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        """Return up to *limit* objects whose names start with *prefix* and sort after *after*.

        In ascending order of name (by ASCII).  prefix: any string, "" for all.
        """

    async def create(self) -> None:  # noqa: B027  (nothing to do for most)
        """Make the bucket or directory itself if it is not there and we may.  Idempotent."""

    async def aclose(self) -> None:  # noqa: B027
        """Give back connections, files and threads; the store is not usable afterwards."""

    def health(self) -> Health:
        """The store's health as recent requests show it; never asks it."""
        return Health()


#: The most objects of one listing: the packs of 80 TB, of 8 MiB each.
LISTED = 10_000_000
#: The most seconds that are spent waiting for the pages of one listing.
LISTING_SECONDS = 3600.0


def list_all(
    store: ObjectStore, prefix: str, after: str = "", *, most: int = LISTED
) -> AsyncIterator[Page]:
    """Every page of a listing.  Iterate it with ``async for`` to its end, or leave it.

    Raises StoreError, against a store whose listings never end, after *most* objects, or once
    LISTING_SECONDS have been waited.
    """
    return _Pages(store, prefix, after, most)


class _Pages(AsyncIterator[Page]):
    """Not an async generator: one that is left by break, return or cancellation stays suspended
    until the garbage collector finds it, and trio has to close it then."""

    def __init__(self, store: ObjectStore, prefix: str, after: str, most: int) -> None:
        self._store, self._prefix, self._after = store, prefix, after
        self._more = True
        self._left = most
        self._seconds_left = LISTING_SECONDS

    async def __anext__(self) -> Page:
        import trio  # not for `megafs status`, which imports this module to know a URL

        if not self._more:
            raise StopAsyncIteration
        begun = trio.current_time()
        page = await self._store.list(self._prefix, self._after)
        self._seconds_left -= trio.current_time() - begun
        self._left -= len(page.entries)
        if self._left < 0 or self._seconds_left < 0:
            raise StoreError(
                f"{self._store.url}: the listing of {self._prefix or 'all objects'} has no end: far"
                " more objects are there than a volume has, or it takes hours"
            )
        self._more = page.more and bool(page.entries)
        if self._more:
            self._after = page.entries[-1].name
        return page
