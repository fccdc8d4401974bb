"""The WebDAV driver keeps the contract of stores, on each server and in each way to create."""

from __future__ import annotations

import pytest

from megafs.stores.base import ObjectStore
from megafs.stores.limit import Limited
from megafs.stores.retry import Retrying
from megafs.stores.webdav.exclusive import Way
from tests.stores.conftest import ConnectDav, Servers, prepare
from tests.stores.contract import StoreContract

pytestmark = pytest.mark.webdav


class _On(StoreContract):
    kind: str
    way: Way

    @pytest.fixture
    async def store(self, dav: Servers, connect_dav: ConnectDav) -> ObjectStore:
        return await prepare(connect_dav(dav(self.kind).origin), self.way)


class TestApache(_On):
    kind, way = "apache", Way.MOVE_FOLDER


class TestLighttpd(_On):
    kind, way = "lighttpd", Way.MOVE_FOLDER


class TestNginx(_On):
    kind, way = "nginx", Way.MOVE_FOLDER


class TestRclone(_On):
    kind, way = "rclone", Way.MOVE_FOLDER


class TestWsgidav(_On):
    kind, way = "wsgidav", Way.MOVE_FOLDER


class TestMovedFilesOnLighttpd(_On):
    kind, way = "lighttpd", Way.MOVE_FILE


class TestClaimedFoldersOnNginx(_On):
    kind, way = "nginx", Way.MKCOL


class TestClaimedFoldersOnApache(_On):
    kind, way = "apache", Way.MKCOL


class TestConditionalPutOnLighttpd(_On):
    kind, way = "lighttpd", Way.PUT


class TestAsMegafsUsesIt(StoreContract):
    @pytest.fixture
    async def store(self, dav: Servers, connect_dav: ConnectDav) -> ObjectStore:
        below = await prepare(connect_dav(dav("nginx").origin, connections=12), Way.MOVE_FOLDER)
        return Retrying(Limited(below, 4, 8))
