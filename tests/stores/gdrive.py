"""Stores on a server that speaks Drive's API (tests/services/gdrive)."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from megafs.stores.gdrive.driver import GDriveStore
from megafs.stores.login.tokens import FixedToken, TokenSource
from tests.services.gdrive.server import DriveServer

_folders = itertools.count(1)


class Machines:
    """Drivers on one service, closed together.

    Each is a process of its own as far as the service can tell: it shares nothing with the others.
    """

    def __init__(self, server: DriveServer) -> None:
        self._server = server
        self._opened: list[GDriveStore] = []

    def open(
        self, path: str = "", tokens: TokenSource | None = None, *, through: str = "", **more: Any
    ) -> GDriveStore:
        """A driver for *path*, a fresh one if not given.  through: another address of the API."""
        token = next(iter(self._server.tokens))
        store = GDriveStore(
            path or f"volumes/v{next(_folders)}",
            tokens or FixedToken(token),
            endpoint=through or self._server.endpoint,
            **more,
        )
        self._opened.append(store)
        return store

    async def pair(self) -> tuple[GDriveStore, GDriveStore]:
        """Two machines on one new volume."""
        one = self.open()
        await one.create()
        return one, self.open(one.url.removeprefix("gdrive:/"))

    async def close(self) -> None:
        for store in self._opened:
            await store.aclose()


@asynccontextmanager
async def machines_on(server: DriveServer) -> AsyncIterator[Machines]:
    """Machines for the block."""
    made = Machines(server)
    try:
        yield made
    finally:
        await made.close()
