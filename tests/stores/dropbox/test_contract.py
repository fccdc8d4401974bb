"""The Dropbox driver keeps the contract of stores."""

from __future__ import annotations

import pytest

from megafs.stores.base import ObjectStore
from megafs.stores.limit import Limited
from megafs.stores.retry import Retrying
from tests.services.dropbox.server import DropboxService
from tests.stores.contract import StoreContract
from tests.stores.dropbox.conftest import ConnectDropbox


class TestAlone(StoreContract):
    @pytest.fixture
    async def store(self, connect_dropbox: ConnectDropbox) -> ObjectStore:
        store = connect_dropbox()
        await store.create()
        return store


class TestAsMegafsUsesIt(StoreContract):
    @pytest.fixture
    async def store(self, connect_dropbox: ConnectDropbox) -> ObjectStore:
        below = connect_dropbox(connections=12)
        store = Retrying(Limited(below, 4, 8))
        await store.create()
        return store


class TestInTheAppsOwnFolder(StoreContract):
    @pytest.fixture
    async def store(self, connect_dropbox: ConnectDropbox) -> ObjectStore:
        store = connect_dropbox("/")
        await store.create()
        return store


class TestWhileOtherMachinesWrite(StoreContract):
    """Every write may find the namespace's lock taken."""

    @pytest.fixture
    async def store(self, connect_dropbox: ConnectDropbox, dropbox: DropboxService) -> ObjectStore:
        dropbox.account.write_seconds, dropbox.account.most_waiting = 0.001, 0
        dropbox.retry_after = "0"
        store = Retrying(connect_dropbox())
        await store.create()
        return store
