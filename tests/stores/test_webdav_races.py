"""Who wins on each WebDAV server: `make dav-races` races longer (DAV_ROUNDS, 100)."""

from __future__ import annotations

import os

import pytest

from megafs.stores.webdav import exclusive
from megafs.stores.webdav.exclusive import Way
from tests.engines.dav import KINDS
from tests.stores.conftest import ConnectDav, Servers

pytestmark = pytest.mark.webdav

ROUNDS = int(os.environ.get("DAV_ROUNDS", "10"))


@pytest.mark.parametrize("kind", KINDS)
async def test_one_winner_in_the_way_that_format_chooses(
    kind: str, dav: Servers, connect_dav: ConnectDav
) -> None:
    store = connect_dav(dav(kind).origin)
    await store.create()
    assert store.health().details["exclusive_create"] == "move-folder"
    assert await exclusive.holds(store._server, Way.MOVE_FOLDER, rounds=ROUNDS)


@pytest.mark.parametrize("kind", ["apache", "lighttpd", "nginx", "wsgidav"])
async def test_one_winner_by_a_folder_as_claim(
    kind: str, dav: Servers, connect_dav: ConnectDav
) -> None:
    store = connect_dav(dav(kind).origin)
    await store._server.make_root()
    assert await exclusive.holds(store._server, Way.MKCOL, rounds=ROUNDS)


@pytest.mark.parametrize(("kind", "way"), [("nginx", Way.PUT), ("apache", Way.MOVE_FILE)])
async def test_the_race_finds_two_winners_where_there_are(
    kind: str, way: Way, dav: Servers, connect_dav: ConnectDav
) -> None:
    store = connect_dav(dav(kind).origin)
    await store._server.make_root()
    assert not await exclusive.holds(store._server, way, rounds=100)
