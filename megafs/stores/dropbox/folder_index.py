"""The objects of one folder, as Dropbox lists them: all of it once, then what has changed.

`list_folder` gives a cursor, with which `list_folder/continue` tells later what has changed since.
So a folder is listed whole only at the first visit; afterwards a listing is one request, whatever
the number of objects (the cursors are kept from one mount to the next: saved_listings.py).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from datetime import UTC, datetime
from typing import Any

import trio
from msgspec import Struct

from megafs.errors import Missing, StoreError, Unavailable
from megafs.stores.base import Entry
from megafs.stores.dropbox import layout
from megafs.stores.dropbox.api import DropboxApi, Json
from megafs.stores.dropbox.errors import CursorReset

#: Entries of a page; the most that Dropbox gives.
PAGE = 2000
#: Names that this process has written, whose return in a listing is no news.
_MOST_OWN = 10_000
_LARGEST = (1 << 63) - 1


class SavedFolder(Struct, frozen=True):
    """What is kept of a folder: (name, bytes, seconds since 1970) of each object."""

    cursor: str
    objects: list[tuple[str, int, float]]


class FolderIndex:
    """One folder.

    root: the path of the store's folder.  path: this one's below it, "" for the store's own folder,
    of which only the objects and folders directly in it are listed.
    """

    def __init__(self, api: DropboxApi, root: str, path: str) -> None:
        self._api = api
        self._root = root
        self._path = path
        self._depth = root.count("/")
        self._cursor = ""
        self._objects: dict[str, Entry] = {}
        self._names: list[str] | None = None
        self._turn = trio.Lock()
        self._begun = 0
        self._own: set[str] = set()
        #: The paths of the folders directly in the store's own folder.
        self.folders: set[str] = set()
        #: Counts what was changed by others.
        self.news = 0
        #: Whether what is here differs from what was restored.
        self.is_changed = False

    @property
    def cursor(self) -> str:
        """Where the next look goes on; "" before the first."""
        return self._cursor

    async def refresh(self) -> None:
        """See what has changed since the last look, or list the folder for the first time.

        Nothing is asked if another look began after this call.
        """
        begun = self._begun
        async with self._turn:
            if self._begun > begun:
                return
            self._begun += 1
            if self._cursor:
                try:
                    await self._go_on({"cursor": self._cursor}, "files/list_folder/continue")
                    return
                except (CursorReset, Missing):
                    self._clear()
                except Unavailable:
                    raise
                except StoreError:  # 400: no cursor of this account
                    self._clear()
            arg: Json = {"path": self._root + self._path, "recursive": bool(self._path)}
            try:
                await self._go_on({**arg, "limit": PAGE}, "files/list_folder")
            except Missing:
                self._clear()

    def find(self, prefix: str, after: str, most: int) -> list[Entry]:
        """The objects whose names begin with *prefix* and sort after *after*, in order."""
        if self._names is None:
            self._names = sorted(self._objects)
        names = self._names
        found: list[Entry] = []
        for i in range(max(bisect_right(names, after), bisect_left(names, prefix)), len(names)):
            if len(found) == most or not names[i].startswith(prefix):
                break
            found.append(self._objects[names[i]])
        return found

    # What this process does itself

    def expect(self, name: str) -> None:
        """The object will come, or go, by our own doing: no news."""
        if self._cursor and len(self._own) < _MOST_OWN:
            self._own.add(name)

    def unexpect(self, name: str) -> None:
        """It was not our doing after all, or nobody knows."""
        self._own.discard(name)
        self.news += 1

    # What is kept for the next mount

    def saved(self) -> SavedFolder | None:
        """What to keep, None if there is nothing yet."""
        if not self._cursor:
            return None
        objects = [(e.name, e.size, e.modified) for e in self._objects.values()]
        return SavedFolder(self._cursor, objects)

    def restore(self, saved: SavedFolder) -> None:
        """Go on from what an earlier mount has kept."""
        self._cursor = saved.cursor
        self._objects = {name: Entry(name, size, time) for name, size, time in saved.objects}
        self._names = None

    # Pages

    def _clear(self) -> None:
        self.news += 1
        self.is_changed = True
        self._cursor = ""
        self._objects, self._names = {}, None
        self.folders = set()

    async def _go_on(self, arg: Json, route: str) -> None:
        while True:
            page = await self._api.rpc(route, arg, write=False)
            entries, cursor = page.get("entries"), page.get("cursor")
            if not isinstance(entries, list) or not isinstance(cursor, str) or not cursor:
                raise Unavailable(f"{route}: the answer is no listing")
            # First all of it: a page that was half understood must not move the cursor.
            changes = [self._read(entry) for entry in entries]
            for entry, path in zip(entries, changes, strict=True):
                if path:
                    self._apply(entry, path)
            self.is_changed = self.is_changed or bool(entries)
            self._cursor = cursor
            if not page.get("has_more"):
                return
            arg, route = {"cursor": cursor}, "files/list_folder/continue"

    def _read(self, entry: Any) -> str:
        """The path below the store's folder, "" for that itself."""
        path = entry.get("path_lower") if isinstance(entry, dict) else None
        if not isinstance(path, str):
            raise Unavailable("list: an entry has no path")
        # By the number of parts: Dropbox may write the folder in other letters than we do.
        parts = path.split("/")[1 + self._depth :]
        return "".join(f"/{part}" for part in parts)

    def _apply(self, entry: Json, path: str) -> None:
        kind = entry.get(".tag")
        name = layout.name_of(path)
        if kind == "folder":
            self.folders.add(path)
        elif kind == "deleted":
            self.folders.discard(path)
            if name is not None:
                self._changed(name, None)
            prefix = layout.prefix_of(path)
            if prefix is not None:  # a folder goes with all that is in it
                for each in [n for n in self._objects if n.startswith(prefix)]:
                    self._changed(each, None)
        elif kind == "file" and name is not None:
            size = entry.get("size")
            if not isinstance(size, int) or not 0 <= size <= _LARGEST:
                raise Unavailable("list: an entry has no size")
            self._changed(name, Entry(name, size, _seconds(entry.get("server_modified"))))

    def _changed(self, name: str, entry: Entry | None) -> None:
        if name in self._own:
            self._own.discard(name)
        else:
            self.news += 1
        if entry is not None:
            if name not in self._objects:
                self._names = None
            self._objects[name] = entry
        elif self._objects.pop(name, None) is not None:
            self._names = None


def _seconds(time: object) -> float:
    if not isinstance(time, str):
        return 0.0
    try:
        return datetime.strptime(time, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
