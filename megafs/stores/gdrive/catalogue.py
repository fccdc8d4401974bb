"""Keeps the index up to date: by a search when it is first wanted, then by the feed of changes."""

from __future__ import annotations

import trio

from megafs.errors import StoreError
from megafs.stores.gdrive.files import VOLUME, DriveFile, quoted, seconds
from megafs.stores.gdrive.index import Index, IndexedClaim, IndexedObject
from megafs.stores.gdrive.service import DriveService

# Pages of one look: a feed that never ends is not followed for ever.
_MOST_PAGES = 100_000
#: Of commits no older than this, in seconds, a search may not show the packs yet.
_RECENT = 600.0


class Catalogue:
    """The index of one volume, and how it hears of files that others make.

    volume: the id of its folder.
    """

    def __init__(self, service: DriveService, volume: str) -> None:
        self.service = service
        self.index = Index(volume)
        self._of_volume = (
            f"appProperties has {{ key={quoted(VOLUME)} and value={quoted(volume)} }}"
            " and trashed = false"
        )
        self._token = ""
        self._busy = trio.Lock()
        self._refreshed = float("-inf")  # when the last look began that has ended

    async def load(self) -> None:
        """Fill the index, if that was not done yet."""
        if not self._token:
            async with self._busy:
                if not self._token:
                    await self._load()

    async def refresh(self) -> None:
        """Hear of everything that the feed knows now."""
        asked = trio.current_time()
        async with self._busy:
            if self._refreshed > asked:
                return  # a look that began after we came has just ended
            begun = trio.current_time()
            if not self._token:
                await self._load()
            else:
                await self._follow()
            self._refreshed = begun

    async def _load(self) -> None:
        # The end of the feed first: what is made meanwhile is in one of the two.
        token = await self.service.feed_end()
        page = ""
        commits: list[DriveFile] = []
        for _ in range(_MOST_PAGES):
            found = await self.service.search(self._of_volume, page)
            for file in found.files:
                made = self.index.add(file, is_new=False)
                if isinstance(made, IndexedObject) and made.next:
                    commits.append(file)
            page = found.next_page_token
            if not page:
                break
        else:
            raise StoreError(f"{self.service.session.host}: a search finds no end")
        newest = max((seconds(file.created_time) for file in commits), default=0.0)
        for file in commits:
            if seconds(file.created_time) > newest - _RECENT:
                self.index.add(file)
        self._token = token

    async def _follow(self) -> None:
        for _ in range(_MOST_PAGES):
            found = await self.service.changes(self._token)
            if found is None:
                await self._load()
                return
            self.index.apply(found.changes)
            if found.next_page_token:
                self._token = found.next_page_token
                continue
            self._token = found.new_start_page_token or self._token
            return
        raise StoreError(f"{self.service.session.host}: the feed of changes has no end")

    async def changed(self) -> bool:
        """Whether the feed tells of a change that the index has not."""
        await self.load()
        found = await self.service.changes(self._token)
        return found is None or bool(found.changes)

    async def ask(self, file_id: str) -> IndexedObject | None:
        """Ask for a file by its id, and note what it is; None if there is no such object."""
        if not file_id:
            return None
        file = await self.service.metadata(file_id)
        made = self.index.add(file) if file is not None else None
        if made is None:
            self.index.forget(file_id)
        return made if isinstance(made, IndexedObject) else None

    async def ask_claim(self, file_id: str) -> IndexedClaim | None:
        """The same of a claim."""
        if file_id not in self.index.claims:
            file = await self.service.metadata(file_id)
            if file is not None:
                self.index.add(file)
        return self.index.claims.get(file_id)

    async def find(self, name: str) -> None:
        """Search for the files of one name, and note them."""
        query = f"name = {quoted(name)} and {self._of_volume}"
        for file in await self.service.search_all(query):
            self.index.add(file)
