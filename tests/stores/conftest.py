"""WebDAV servers, each started when first asked for, one of Drive's API, and stores on them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from megafs.stores.gdrive import chain, volume_folder
from megafs.stores.gdrive import driver as gdrive_driver
from megafs.stores.webdav import layout
from megafs.stores.webdav.driver import WebDavStore
from megafs.stores.webdav.exclusive import Way
from megafs.stores.webdav.options import WebDavSettings
from tests.engines.dav import Dav
from tests.services.gdrive.server import DriveServer, serving
from tests.stores.gdrive import Machines, machines_on

Servers = Callable[[str], Dav]
ConnectDav = Callable[..., WebDavStore]


@pytest.fixture(scope="session")
def dav() -> Iterator[Servers]:
    """dav(kind): a running server, one of each kind for the whole run."""
    running: dict[str, Dav] = {}
    with ExitStack() as stack:

        def get(kind: str) -> Dav:
            if kind not in running:
                running[kind] = stack.enter_context(Dav(kind))
            return running[kind]

        yield get


_folders = itertools.count(1)


@pytest.fixture
async def connect_dav() -> AsyncIterator[ConnectDav]:
    """connect_dav(origin, path=fresh, connections=, fields of WebDavSettings): a store, closed
    after the test.
    """
    opened: list[WebDavStore] = []

    def make(origin: str, path: str = "", **options: Any) -> WebDavStore:
        connections = options.pop("connections", 16)
        path = path or f"/dav/t{next(_folders)}"
        opened.append(WebDavStore(origin, path, WebDavSettings(**options), connections=connections))
        return opened[-1]

    yield make
    for store in opened:
        await store.aclose()


async def prepare(store: WebDavStore, way: Way) -> WebDavStore:
    """Make the store's folder, with *way* as if `format` had chosen it."""
    await store._server.make_root()
    await store._server.place(way.value.encode(), layout.RECORD, replace=False)
    return store


@pytest.fixture
async def drive(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DriveServer]:
    """A server of Google Drive's API; what waits for a service that lags waits little."""
    monkeypatch.setattr(gdrive_driver, "LAG", (0.01,))
    monkeypatch.setattr(chain, "AGAIN", (0.01,))
    monkeypatch.setattr(volume_folder, "SETTLE", 0.01)
    async with serving(DriveServer()) as server:
        yield server


@pytest.fixture
async def machines(drive: DriveServer) -> AsyncIterator[Machines]:
    """Drivers on that server."""
    async with machines_on(drive) as made:
        yield made
