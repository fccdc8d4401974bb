"""Objects on a WebDAV server (RFC 4918).

Every object is uploaded under a temporary name and moved to its own, so that half of it is never
seen, whatever the server does with half a PUT.  How a contested name gets one winner differs from
server to server: exclusive.py.  Where objects lie: layout.py.  Options: options.py; logging in:
login.py.  ETags are not used: servers leave them out, weaken them, or change them at will.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

import trio

from megafs.errors import BadStore, BadUsage, Exists, Missing, StoreError
from megafs.stores.abilities import LimitedBodies, SpaceLeft
from megafs.stores.base import Buffer, Health, ObjectStore, Page, check_name
from megafs.stores.urls import Location
from megafs.stores.webdav import exclusive, layout
from megafs.stores.webdav.exclusive import Way
from megafs.stores.webdav.kept_login import KeptLogin
from megafs.stores.webdav.listing import Listings
from megafs.stores.webdav.login import Kept
from megafs.stores.webdav.options import WebDavSettings, read_options
from megafs.stores.webdav.server import Server

# Seconds after which a heartbeat that is missing is asked for again: Apache deletes the old file
# before it moves the new one to its name.
_REPLACING = 0.1


def open_driver(location: Location, options: Mapping[str, str], connections: int) -> WebDavStore:
    """Open webdav+https://host/path: see stores/drivers.py."""
    settings = read_options(options)
    kept = KeptLogin(location, f"webdav+{location.name}{quote(location.path)}")
    return WebDavStore(location.name, location.path, settings, connections=connections, kept=kept)


class WebDavStore(ObjectStore, SpaceLeft, LimitedBodies):
    """Objects in one folder of a server.

    address: "https://host:port".  kept: the logins that `megafs login` has made.
    """

    def __init__(
        self,
        address: str,
        path: str,
        settings: WebDavSettings,
        *,
        connections: int = 16,
        kept: Kept | None = None,
    ) -> None:
        if {".", ".."} & set(path.split("/")):
            raise BadStore(f"the path {path!r} may not hold '.' or '..'")
        self.url = f"webdav+{address}/{path.strip('/')}".rstrip("/")
        self._server = Server(address, path, settings, connections, kept)
        self._known_way: Way | None = None
        self._listings = Listings(self._server, self.url)

    async def get(self, name: str, start: int, length: int) -> bytes:
        paths = await self._paths(check_name(name))
        for path in paths:
            try:
                return await self._server.read(path, start, length)
            except Missing:
                pass
        if name.startswith("mounts/"):
            await trio.sleep(_REPLACING)
            return await self._server.read(paths[0], start, length)
        raise Missing(f"{name} is not there")

    async def put_new(self, name: str, data: Buffer) -> None:
        if not layout.is_contested(check_name(name)):
            path = exclusive.path_of(Way.MOVE_FILE, name)
            await self._server.place(data, path, replace=False)
            return
        way = await self._way()
        if way is None:
            raise BadStore(
                f"{self.url} lacks the file {layout.RECORD}, which says how objects are created:"
                " restore it from a copy of the folder"
            )
        await exclusive.create(self._server, way, name, data)

    async def put(self, name: str, data: Buffer) -> None:
        if layout.is_contested(check_name(name)):
            raise BadUsage(f"{name}: only what one writer has may be replaced, as mounts/*")
        path = exclusive.path_of(Way.MOVE_FILE, name)
        await self._server.place(data, path, replace=True)

    async def delete(self, name: str) -> None:
        self._listings.forget(check_name(name))
        if not layout.is_contested(name):
            await exclusive.remove(self._server, Way.MOVE_FILE, name)
            return
        way = await self._way()
        for each in (way,) if way is not None else (Way.MOVE_FILE, Way.MOVE_FOLDER):
            await exclusive.remove(self._server, each, name)

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        return await self._listings.page(prefix, after, limit)

    async def create(self) -> None:
        await self._server.make_root()
        if await self._way() is not None:
            return
        way = await exclusive.choose(self._server)
        try:
            await self._server.place(way.value.encode() + b"\n", layout.RECORD, replace=False)
        except Exists:  # another machine formats at the same time; its choice is as good
            pass
        if await self._way() is None:
            raise StoreError(f"{self.url}: the file {layout.RECORD} was stored and is not there")

    async def space_left(self) -> int | None:
        return await self._server.room()

    async def aclose(self) -> None:
        await self._server.session.aclose()

    def health(self) -> Health:
        session = self._server.session
        way = self._known_way
        return Health(
            last_error=session.last_error,
            details={
                **session.details(),
                "exclusive_create": way.value if way is not None else "not known yet",
            },
        )

    # How contested names are created here

    async def _way(self) -> Way | None:
        """What `format` chose for this store; None if nothing is chosen yet."""
        if self._known_way is None:
            try:
                word = await self._server.read(layout.RECORD, 0, 64)
            except Missing:
                return None
            try:
                self._known_way = Way(word.decode("ascii").strip())
            except (ValueError, UnicodeDecodeError):
                known = ", ".join(way.value for way in Way)
                raise BadStore(
                    f"{self.url}: {layout.RECORD} says what this megafs does not know;"
                    f" it knows {known}"
                ) from None
        return self._known_way

    async def _paths(self, name: str) -> tuple[str, ...]:
        """Where the object may be."""
        if not layout.is_contested(name):
            return (exclusive.path_of(Way.MOVE_FILE, name),)
        way = await self._way()
        ways = (way,) if way is not None else (Way.MOVE_FILE, Way.MOVE_FOLDER)
        return tuple(exclusive.path_of(each, name) for each in ways)
