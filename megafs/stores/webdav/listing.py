"""Listings in order of name, out of folders that are read one at a time (PROPFIND of depth 1)."""

from __future__ import annotations

import heapq

import trio
from msgspec import Struct

from megafs.concurrency import one_error_nursery
from megafs.errors import StoreError
from megafs.stores.base import Entry, Page
from megafs.stores.webdav.answers import Member
from megafs.stores.webdav.layout import INSIDE, Listed, is_wanted, understand
from megafs.stores.webdav.server import Server

# Folders that one page of a listing looks into.
_FOLDERS = 20_000
# Looks at once into folders that hold one object.
_AT_ONCE = 8
# Objects in folders of their own whose size is remembered; they never change.
_SIZES = 100_000
# Seconds for which the folder in which a page of packs ended is good for the next page.
_HELD = 60.0


class _Held(Struct):
    """The folder in which a page ended."""

    path: str
    last: str
    until: float
    members: dict[str, Member]


class Listings:
    """The pages of one store's listings.  url: of the store, for error texts."""

    def __init__(self, server: Server, url: str) -> None:
        self._server = server
        self._url = url
        self._sizes: dict[str, Entry] = {}
        self._held: _Held | None = None

    async def page(self, prefix: str, after: str, limit: int) -> Page:
        """Return a page as `ObjectStore.list` does."""
        while True:
            found, more = await self._walk(prefix, after, limit)
            entries = await self._entries(found)
            if entries or not more:
                return Page(entries, more)
            after = found[-1].name  # names that are claimed, and have no object yet

    def forget(self, name: str) -> None:
        """An object was deleted: another may get its name."""
        self._sizes.pop(name, None)

    async def _walk(self, prefix: str, after: str, limit: int) -> tuple[list[Listed | Entry], bool]:
        """Return the first *limit* objects, with or without their sizes, and if there are more.

        Folders are read as their turn comes, by the least name that they can lead to.
        """
        names = prefix[: prefix.rfind("/") + 1]
        # By key; the number keeps those of one key apart.
        heap: list[tuple[str, int, Listed | Entry]] = []
        heapq.heappush(heap, ("", 0, Listed("", names, names.rstrip("/"), "folder")))
        number = looked = 0
        objects: list[Listed | Entry] = []
        path = ""
        members: dict[str, Member] = {}
        while heap:
            _, _, item = heapq.heappop(heap)
            if isinstance(item, Entry) or item.kind == "in folder":
                if objects and objects[-1].name == item.name:
                    continue
                if len(objects) == limit:
                    self._hold(path, objects[-1].name if objects else after, members)
                    return objects, True
                objects.append(item)
                continue
            looked += 1
            if looked > _FOLDERS:
                raise StoreError(f"{self._url}: there are far more folders than a volume has")
            path, members = item.path, await self._members(item.path, after)
            for found, entry in self._below(item, members):
                if is_wanted(found, prefix, after):
                    number += 1
                    heapq.heappush(heap, (found.key, number, entry or found))
        return objects, False

    def _below(
        self, folder: Listed, members: dict[str, Member]
    ) -> list[tuple[Listed, Entry | None]]:
        """What the members of a folder stand for, objects with what a listing says of them."""
        # The names of a shard's objects go on behind the last slash.
        begin = folder.name[: folder.name.rfind("/") + 1]
        below: list[tuple[Listed, Entry | None]] = []
        for name, member in members.items():
            found = understand(begin, folder.path, name, member.is_folder)
            if found is None or not found.name.startswith(folder.name):
                continue
            if found.kind == "file":
                if member.size is None:
                    raise StoreError(f"{self._url}: the server does not tell the sizes of files")
                below.append((found, Entry(found.name, member.size, member.modified)))
            else:
                below.append((found, self._sizes.get(found.name)))
        return below

    async def _members(self, path: str, after: str) -> dict[str, Member]:
        held = self._held
        if (
            held is not None
            and (held.path, held.last) == (path, after)
            and trio.current_time() < held.until
        ):
            return held.members
        return await self._server.members(path) or {}

    def _hold(self, path: str, last: str, members: dict[str, Member]) -> None:
        # Of packs only: who asks for commits or mounts wants to know what is new.
        if path.startswith("packs/"):
            self._held = _Held(path, last, trio.current_time() + _HELD, members)

    async def _entries(self, objects: list[Listed | Entry]) -> list[Entry]:
        """Look up the sizes that are missing; leave out names without an object."""
        unknown = [found for found in objects if isinstance(found, Listed)]
        looked: dict[str, Entry] = {}
        if unknown:
            at_once = trio.CapacityLimiter(_AT_ONCE)
            async with one_error_nursery() as nursery:
                for found in unknown:
                    nursery.start_soon(self._look_into, found, at_once, looked)
        for name, entry in looked.items():
            while len(self._sizes) >= _SIZES:
                del self._sizes[next(iter(self._sizes))]
            self._sizes[name] = entry
        entries = (
            found if isinstance(found, Entry) else looked.get(found.name) for found in objects
        )
        return [entry for entry in entries if entry is not None]

    async def _look_into(
        self, found: Listed, at_once: trio.CapacityLimiter, looked: dict[str, Entry]
    ) -> None:
        async with at_once:
            members = await self._server.members(found.path)
        inside = (members or {}).get(INSIDE)
        if inside is not None and inside.size is not None:
            looked[found.name] = Entry(found.name, inside.size, inside.modified)
