"""Objects in a folder of a Dropbox account (API v2).

Where an object lies: layout.py.  Writing, which Dropbox lets only one do at a time: uploads.py.
Listing, by cursors: folder_index.py, listing.py.  Calls, tokens, limits: api.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import trio
from msgspec.structs import replace

from megafs.config import cache_home
from megafs.errors import BadStore, Denied, Exists, Missing, NoStore, StoreError, Unavailable
from megafs.stores.abilities import LimitedBodies, SpaceLeft, Watch
from megafs.stores.base import Buffer, Health, ObjectStore, Page, check_name
from megafs.stores.dropbox import layout
from megafs.stores.dropbox.api import DropboxApi, Json
from megafs.stores.dropbox.content_hash import hash_of
from megafs.stores.dropbox.listing import CursorListings
from megafs.stores.dropbox.option_table import dropbox_login
from megafs.stores.dropbox.options import DropboxSettings, read_options
from megafs.stores.dropbox.saved_listings import SavedListings
from megafs.stores.dropbox.uploads import Namespace, Naming
from megafs.stores.login.tokens import OAuthTokens, TokenSource
from megafs.stores.urls import Location

#: Objects that only one writer ever makes, under a name drawn at random: the same bytes there are
#: ours, from a request whose answer was lost.
_ONE_WRITER = ("packs/",)
#: Seconds for which the store's folder counts as there, once it was seen.
_FOLDER_SEEN = 600.0


def open_driver(location: Location, options: Mapping[str, str], connections: int) -> DropboxStore:
    """Open dropbox:/path: see stores/drivers.py."""
    settings = replace(read_options(options), listings=cache_home() / "dropbox")
    login = dropbox_login(location, options)
    path = folder_path(location.path)
    tokens = OAuthTokens(login, f"dropbox:{path}", timeouts=settings.timeouts)
    return DropboxStore(path, settings, tokens, account=login.key.account, connections=connections)


def folder_path(path: str) -> str:
    """Return *path* as Dropbox has it: "" or beginning with "/"; BadStore if it cannot be one."""
    parts = [part for part in path.split("/") if part]
    for part in parts:
        if part in (".", "..") or part.endswith((" ", ".")) or "\\" in part or len(part) > 255:
            raise BadStore(f"the path {path!r} holds a part that Dropbox does not take: {part!r}")
    return "".join(f"/{part}" for part in parts)


class DropboxStore(ObjectStore, Watch, SpaceLeft, LimitedBodies):
    """Objects in the folder *path*.

    account: which login it is, for what is kept of listings.
    """

    def __init__(
        self,
        path: str,
        settings: DropboxSettings,
        tokens: TokenSource,
        *,
        account: str = "",
        connections: int = 16,
    ) -> None:
        self.url = f"dropbox:{path or '/'}"
        self._root = path
        self._api = DropboxApi(settings, tokens, connections)
        self._namespace = Namespace(self._api)
        saved = None
        if settings.listings is not None:
            store = "\n".join((settings.api, account, path))
            saved = SavedListings(settings.listings, store)
        self._listings = CursorListings(self._api, path, saved)
        self._folder_seen = float("-inf")

    async def get(self, name: str, start: int, length: int) -> bytes:
        path = self._path(name)
        try:
            data, about = await self._api.download(path, start, length)
        except Missing:
            about = None
        if about is None:
            await self._confirm()
            raise Missing(f"{name} is not there")
        if start == 0 and about.get("size") == len(data) > 0:
            await self._check(path, data, about)
        return data

    async def put_new(self, name: str, data: Buffer) -> None:
        exclusive = not name.startswith(_ONE_WRITER)
        naming = Naming(self._path(name), "add", exclusive)
        with self._our_doing(name):
            try:
                await self._namespace.store(naming, data)
                return
            except Unavailable as exc:
                if not exclusive or not exc.maybe_done:
                    raise
                lost = exc
            # Nobody answered whether it was created.  Our bytes hold a random salt, so where the
            # same are there, they are ours.
            found = await self._hash_there(naming.path)
            if found is None:
                raise lost
            if found != await hash_of(data):
                raise Exists(f"{name}: the name is taken")

    async def put(self, name: str, data: Buffer) -> None:
        with self._our_doing(name):
            await self._namespace.store(Naming(self._path(name), "overwrite"), data)

    async def delete(self, name: str) -> None:
        with self._our_doing(name):
            await self._namespace.delete(self._path(name))

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        page = await self._listings.page(prefix, after, limit)
        if not page.entries:
            await self._confirm()
        return page

    async def create(self) -> None:
        if not self._root:  # the app's own folder, which Dropbox makes
            await self._confirm()
            return
        try:
            await self._api.rpc("files/create_folder_v2", {"path": self._root}, write=True)
        except Exists:
            pass
        self._folder_seen = float("-inf")
        await self._confirm()

    async def aclose(self) -> None:
        with trio.move_on_after(5, shield=True):
            await self._listings.keep()
        await self._api.aclose()

    def health(self) -> Health:
        details: dict[str, Any] = {
            **self._api.details(),
            "batched": self._namespace.batched,
            "contended": self._namespace.contended,
        }
        return Health(last_error=self._api.last_error, details=details)

    # Abilities

    async def wait_for_change(self, prefix: str) -> None:
        await self._listings.wait_for_change(prefix)

    async def space_left(self) -> int | None:
        try:
            usage = await self._api.rpc("users/get_space_usage", None, write=False)
        except Denied:  # the app need not have the permission
            return None
        return room_in(usage)

    # Details

    def _path(self, name: str) -> str:
        return self._root + layout.path_of(check_name(name))

    @contextmanager
    def _our_doing(self, name: str) -> Iterator[None]:
        """The block changes an object: its return in a listing is no news."""
        self._listings.expect(name)
        try:
            yield
        except BaseException:
            self._listings.unexpect(name)
            raise

    async def _hash_there(self, path: str) -> str | None:
        """The content hash of what is there; None if nothing is (yet), or if that is not known."""
        try:
            found = await self._api.rpc("files/get_metadata", {"path": path}, write=False)
        except StoreError:
            return None
        digest = found.get("content_hash")
        return digest if isinstance(digest, str) else None

    async def _check(self, path: str, data: bytes, about: Json) -> None:
        """See that a whole file is what Dropbox has."""
        wanted = about.get("content_hash")
        if isinstance(wanted, str) and wanted != await hash_of(data):
            raise Unavailable(f"get {path}: the bytes were changed on the way")

    async def _confirm(self) -> None:
        """See that the store's folder is there: "not there" then counts."""
        now = trio.current_time()
        if now - self._folder_seen < _FOLDER_SEEN:
            return
        try:
            if self._root:
                found = await self._api.rpc("files/get_metadata", {"path": self._root}, write=False)
                is_folder = found.get(".tag") == "folder"
            else:
                await self._api.rpc("files/list_folder", {"path": "", "limit": 1}, write=False)
                is_folder = True
        except Missing:
            is_folder = False
        if not is_folder:
            raise NoStore(f"Dropbox has no folder {self._root}; megafs format makes it")
        self._folder_seen = now


def room_in(usage: Json) -> int | None:
    """Return the bytes that an answer of users/get_space_usage leaves; None if it does not say."""
    allocation = usage.get("allocation")
    if not isinstance(allocation, dict):
        return None

    def left(allocated: str, used: object) -> int | None:
        most = allocation.get(allocated)
        if not isinstance(most, int) or not isinstance(used, int) or most <= 0:
            return None
        return max(0, most - used)

    if allocation.get(".tag") == "individual":
        return left("allocated", usage.get("used"))
    # In a team's space: what the team has left, and what of it this member may use (0: all).
    rooms = (
        left("allocated", allocation.get("used")),
        left(
            "user_within_team_space_allocated",
            allocation.get("user_within_team_space_used_cached"),
        ),
    )
    return min((room for room in rooms if room is not None), default=None)
