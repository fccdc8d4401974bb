"""A Dropbox of our own (tests/services/dropbox), and stores on it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megafs.stores.dropbox.driver import DropboxStore
from megafs.stores.dropbox.options import DropboxSettings
from megafs.stores.login.tokens import FixedToken
from tests.fakes.proxy import Proxy, proxying
from tests.services.dropbox.server import DropboxService

ConnectDropbox = Callable[..., DropboxStore]

_folders = itertools.count(1)


@pytest.fixture
def dropbox() -> Iterator[DropboxService]:
    with DropboxService() as service:
        yield service


@pytest.fixture
async def proxy(dropbox: DropboxService) -> AsyncIterator[Proxy]:
    """A proxy in front of it that breaks requests as it is told."""
    async with proxying(dropbox.url) as running:
        yield running


@pytest.fixture
async def connect_dropbox(dropbox: DropboxService) -> AsyncIterator[ConnectDropbox]:
    """connect_dropbox(path=fresh, connections=, tokens=, fields of DropboxSettings): a store.

    Its folder is not made yet.  Closed after the test.
    """
    opened: list[DropboxStore] = []

    def make(path: str = "", **options: Any) -> DropboxStore:
        connections = options.pop("connections", 16)
        tokens = options.pop("tokens", None) or FixedToken(dropbox.token())
        given: dict[str, Any] = {"api": dropbox.url, "requests": 10_000.0} | options
        settings = DropboxSettings(**given)
        path = "" if path == "/" else path or f"/Apps/T{next(_folders)}"
        opened.append(DropboxStore(path, settings, tokens, connections=connections))
        return opened[-1]

    yield make
    for store in opened:
        await store.aclose()


@pytest.fixture
def listings(tmp_path: Path) -> Path:
    """Where listings are kept."""
    directory = tmp_path / "listings"
    directory.mkdir(mode=0o700)
    return directory
