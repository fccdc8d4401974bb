"""Listings of objects, made of the listings of folders (folder_index.py); and their news."""

from __future__ import annotations

import trio

from megafs.concurrency import offload
from megafs.stores.base import Entry, Page
from megafs.stores.dropbox import layout
from megafs.stores.dropbox.api import DropboxApi
from megafs.stores.dropbox.errors import CursorReset
from megafs.stores.dropbox.folder_index import FolderIndex, SavedFolder
from megafs.stores.dropbox.saved_listings import SavedListings

#: Seconds of one long poll, 30 to 480.  A line that went dead is found out by its end.
POLL = 240
#: Seconds that a poll waits before the next, if Dropbox says so, at most.
_MOST_BACKOFF = 600.0
# Seconds between two looks for a folder that is not there yet.
_NO_FOLDER = 30.0


class CursorListings:
    """root: the path of the store's folder.  saved: what earlier mounts have kept, if anything."""

    def __init__(self, api: DropboxApi, root: str, saved: SavedListings | None) -> None:
        self._api = api
        self._root = root
        self._saved = saved
        self._loaded: dict[str, SavedFolder] | None = None
        self._top = FolderIndex(api, root, "")
        self._folders: dict[str, FolderIndex] = {}
        #: How far the news of each folder were told.
        self._told: dict[str, int] = {}
        self._not_before = float("-inf")

    async def page(self, prefix: str, after: str, limit: int) -> Page:
        """As `ObjectStore.list`."""
        first, slash, _ = prefix.partition("/")
        if slash:
            found = await self._in_folder(layout.folder_of(first), prefix, after, limit)
        else:
            await self._top.refresh()
            found = self._top.find(prefix, after, limit + 1)
            for folder in sorted(self._top.folders):
                if (layout.prefix_of(folder) or "\0").startswith(prefix):
                    found += await self._in_folder(folder, prefix, after, limit)
            found.sort(key=lambda entry: entry.name)
        return Page(found[:limit], more=len(found) > limit)

    async def _in_folder(self, folder: str, prefix: str, after: str, limit: int) -> list[Entry]:
        begins = layout.prefix_of(folder) or ""
        if after > begins and not after.startswith(begins):
            return []  # all of it is before that
        index = await self._index(folder)
        await index.refresh()
        return index.find(prefix, after, limit + 1)

    async def _index(self, folder: str) -> FolderIndex:
        if self._loaded is None:
            loaded = await offload(self._saved.load, kind="disk") if self._saved else {}
            if self._loaded is None:
                self._loaded = loaded
        index = self._folders.get(folder)
        if index is None:
            index = self._folders[folder] = FolderIndex(self._api, self._root, folder)
            if folder in self._loaded:
                index.restore(self._loaded[folder])
        return index

    async def keep(self) -> None:
        """Keep what was listed for the next mount."""
        if self._saved is None or not any(index.is_changed for index in self._folders.values()):
            return
        folders = dict(self._loaded or {})
        for path, index in self._folders.items():
            saved = index.saved()
            if saved is not None:
                folders[path] = saved
        await offload(self._saved.keep, folders, kind="disk")

    # News

    def expect(self, name: str) -> None:
        """The object *name* will change by our own doing."""
        index = self._folders.get(_folder(name))
        if index is not None:
            index.expect(name)

    def unexpect(self, name: str) -> None:
        """It has not, or nobody knows."""
        index = self._folders.get(_folder(name))
        if index is not None:
            index.unexpect(name)

    async def wait_for_change(self, prefix: str) -> None:
        """As `Watch.wait_for_change`."""
        folder = _folder(prefix)
        index = await self._index(folder) if folder else self._top
        if not index.cursor or folder not in self._told:
            await index.refresh()
            self._told.setdefault(folder, index.news)
        while index.news == self._told[folder]:
            if not index.cursor:  # there is no such folder yet
                await trio.sleep(_NO_FOLDER)
                await index.refresh()
                continue
            await trio.sleep_until(self._not_before)
            try:
                reply = await self._api.long_poll(index.cursor, POLL)
            except CursorReset:
                reply = {"changes": True}
            backoff = reply.get("backoff")
            if isinstance(backoff, int | float) and backoff > 0:
                self._not_before = trio.current_time() + min(backoff, _MOST_BACKOFF)
            if reply.get("changes") is True:
                await index.refresh()
        self._told[folder] = index.news


def _folder(name: str) -> str:
    """The folder of an object, "" of one in none."""
    first, slash, _ = name.partition("/")
    return layout.folder_of(first) if slash else ""
