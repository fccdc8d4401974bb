"""Logging in at real servers: each way, over TLS, and with a certificate of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from megafs.errors import BadStore, Denied, Unavailable
from megafs.stores.stack import open_driver
from megafs.stores.webdav.exclusive import Way
from megafs.stores.webdav.login import VARIABLE
from tests.engines.dav import PASSWORD, USER, Dav
from tests.fakes.authority import authority
from tests.fakes.proxy import Fault, Request, Response, proxying
from tests.stores.conftest import ConnectDav, Servers, prepare

pytestmark = pytest.mark.webdav


@pytest.fixture
def password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(VARIABLE, raising=False)
    path = tmp_path / "password"
    path.write_text(PASSWORD)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("kind", "auth"),
    [
        ("apache", "basic"),
        ("apache", "digest"),
        ("lighttpd", "basic"),
        ("lighttpd", "digest"),
        ("nginx", "basic"),
    ],
)
async def test_who_may_come_in(
    kind: str, auth: str, password: Path, connect_dav: ConnectDav
) -> None:
    with Dav(kind, auth=auth) as server:
        known: dict[str, Any] = {"user": USER, "password_file": password}
        store = await prepare(connect_dav(server.origin, **known), Way.MOVE_FOLDER)

        async def one(i: int) -> None:
            await store.put_new(f"packs/ab/{i}", bytes(100_000))
            assert await store.get(f"packs/ab/{i}", 0, 10**6) == bytes(100_000)

        async with trio.open_nursery() as nursery:  # nonces are counted in any order
            for i in range(20):
                nursery.start_soon(one, i)
        await store.put_new("commits/0000000000000001", b"1")
        path = store.url.split(server.origin, 1)[1]
        with pytest.raises(Denied, match="give user= and password_file="):
            await connect_dav(server.origin, path=path).get("packs/ab/0", 0, 1)
        wrong = password.with_name("wrong")
        wrong.write_text("guess")
        wrong.chmod(0o600)
        guessing = connect_dav(server.origin, path=path, user=USER, password_file=wrong)
        with pytest.raises(Denied, match="app password") as refused:
            await guessing.get("packs/ab/0", 0, 1)
        assert "guess" not in str(refused.value)
        before = guessing._server.session.requests
        with pytest.raises(Denied):
            await guessing.get("packs/ab/0", 0, 1)
        assert guessing._server.session.requests - before <= 2  # or accounts are locked
        # The right password comes back: no new mount is needed.
        wrong.write_text(PASSWORD)
        assert await guessing.get("packs/ab/0", 0, 1) == b"\0"


async def test_a_netrc_file_lets_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connect_dav: ConnectDav
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    netrc = tmp_path / "netrc"
    netrc.write_text(f'machine 127.0.0.1 login {USER} password "{PASSWORD}"\n')
    netrc.chmod(0o600)
    with Dav("nginx", auth="basic") as server:
        store = await prepare(connect_dav(server.origin, netrc=netrc), Way.MOVE_FOLDER)
        await store.put_new("packs/ab/one", b"1")
        assert await store.get("packs/ab/one", 0, 9) == b"1"


async def test_a_token_goes_with_every_request(
    dav: Servers, connect_dav: ConnectDav, password: Path
) -> None:
    wanted = "t0ken"

    class Guard(Fault):
        async def before(self, request: Request, client: trio.SocketStream) -> Response | None:
            if request.headers.get("authorization") == f"Bearer {wanted}":
                return None
            return Response(401, {"www-authenticate": 'Bearer realm="x"'}, b"")

    password.write_text("t0ken\n")
    async with proxying(dav("nginx").origin) as proxy:
        proxy.always(Guard())
        store = connect_dav(proxy.endpoint, password_file=password, auth="bearer")
        await prepare(store, Way.MOVE_FILE)
        await store.put_new("packs/ab/one", b"1")
        assert await store.get("packs/ab/one", 0, 9) == b"1"
        wanted = "n3w"  # the token has ended
        for _ in range(2):
            with pytest.raises(Denied):
                await store.get("packs/ab/one", 0, 9)
        password.write_text("n3w\n")
        assert await store.get("packs/ab/one", 0, 9) == b"1"


async def test_tls_with_a_private_authority_and_our_own_certificate(
    tmp_path: Path, password: Path, connect_dav: ConnectDav
) -> None:
    ours = authority(tmp_path / "ours")
    with Dav("apache", authority=ours, client_certificates=True) as server:
        trusting: dict[str, Any] = {"ca": ours / "ca.pem", "client_cert": ours / "server.pem"}
        store = await prepare(connect_dav(server.origin, **trusting), Way.MOVE_FOLDER)
        await store.put_new("commits/0000000000000001", b"1")
        assert await store.get("commits/0000000000000001", 0, 9) == b"1"
        path = store.url.split(server.origin, 1)[1]
        with pytest.raises(Unavailable):  # the server ends the handshake
            await connect_dav(server.origin, path=path, ca=ours / "ca.pem").list("")
        with pytest.raises(BadStore, match="give its file with the option ca="):
            await connect_dav(server.origin, path=path).list("")
    for wrong in (tmp_path / "none", password):
        with pytest.raises(BadStore, match="cannot use the certificate"):
            open_driver("webdav+https://127.0.0.1/x", {"client_cert": str(wrong)})
