"""A session bounds what it reads, survives cancellation, and lets nothing foreign through."""

from __future__ import annotations

import ssl
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import trio

from megafs.errors import BadStore, StoreError, Unavailable
from megafs.stores.http import session
from megafs.stores.http.httpx_transport import HttpxTransport
from megafs.stores.http.session import ERROR_LIMIT, Session, Timeouts
from tests.fakes.authority import authority
from tests.fakes.proxy import (
    Answer,
    Change,
    Cut,
    Fault,
    Hang,
    Proxy,
    Request,
    Reset,
    Response,
    ShiftDate,
    proxying,
)

BODY = bytes(range(256)) * 400


@pytest.fixture(params=["ours", "httpx"], autouse=True)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything is promised over both transports: our own, and httpx's, used through proxies."""
    name: str = request.param
    if name == "httpx":
        monkeypatch.setattr(
            session,
            "DirectTransport",
            lambda origin, times, context: HttpxTransport(origin, 4, times, context, None),
        )
    return name


@pytest.fixture
async def server() -> AsyncIterator[Proxy]:
    """A server that has one thing to say, until told otherwise."""
    async with proxying("http://127.0.0.1:9") as running:
        yield running


@asynccontextmanager
async def session_to(address: str, **options: object) -> AsyncIterator[Session]:
    session = Session(address, **options)  # type: ignore[arg-type]
    try:
        yield session
    finally:
        await session.aclose()


class Says(Answer):
    """An answer that then goes wrong as *fault* says."""

    def __init__(self, fault: Fault, **answer: object) -> None:
        super().__init__(**answer)  # type: ignore[arg-type]
        object.__setattr__(self, "fault", fault)

    async def before(self, request: Request, client: trio.SocketStream) -> Response:
        response = await super().before(request, client)
        await self.fault.after(response, client)  # type: ignore[attr-defined]
        return response


async def test_a_body_is_read_up_to_the_limit(server: Proxy) -> None:
    server.always(Answer(200, body=BODY))
    async with session_to(server.endpoint) as session:
        whole = await session.request("GET", "/a", {}, limit=len(BODY))
        part = await session.request("GET", "/a", {}, limit=1000)
        later = await session.request("GET", "/a", {}, limit=1000, start=70_000)
        again = await session.request("GET", "/a", {}, limit=len(BODY))

    assert (whole.body, whole.more) == (BODY, False)
    assert (part.body, part.more) == (BODY[:1000], True)
    assert (later.body, later.more) == (BODY[70_000:71_000], True)
    assert again.body == BODY


@pytest.mark.parametrize("status", [200, 206, 404, 500])
async def test_an_endless_body_is_left_at_the_limit(server: Proxy, status: int) -> None:
    def endless(response: Response) -> None:
        response.endless = True

    server.always(Says(Change(endless), status=status, body=b"first"))
    async with session_to(server.endpoint) as session:
        tracemalloc.start()
        reply = await session.request("GET", "/a", {}, limit=100_000)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert reply.more
    assert len(reply.body) == (100_000 if status < 300 else ERROR_LIMIT)
    assert peak < 2_000_000


async def test_a_body_cut_short_is_unavailable(server: Proxy) -> None:
    for method in ("GET", "PUT"):
        server.next(Says(Cut(500), status=200, body=BODY))
        async with session_to(server.endpoint) as session:
            with pytest.raises(Unavailable) as caught:
                await session.request(method, "/a", {}, limit=len(BODY))
        assert caught.value.maybe_done == (method == "PUT")


async def test_an_answer_without_an_end_is_refused(server: Proxy) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def http_1_0(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhalf of it")
        await stream.aclose()

    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery, session_to(f"http://127.0.0.1:{port}") as session:
        nursery.start_soon(trio.serve_listeners, http_1_0, listeners)
        with pytest.raises(Unavailable, match="does not say where its answer ends"):
            await session.request("GET", "/a", {}, limit=100)
        nursery.cancel_scope.cancel()


async def test_what_is_compressed_on_the_way_is_refused(server: Proxy) -> None:
    server.always(Answer(200, headers=(("content-encoding", "gzip"),), body=b"\x1f\x8b"))
    async with session_to(server.endpoint) as session:
        with pytest.raises(BadStore, match=r"content-encoding 'gzip'"):
            await session.request("GET", "/a", {}, limit=100)


@pytest.mark.parametrize("fault", [Reset(), Hang(), Cut(10)])
async def test_a_lost_answer_may_have_been_carried_out(server: Proxy, fault: Fault) -> None:
    server.always(fault if not isinstance(fault, Cut) else Says(fault, status=200, body=BODY))
    times = Timeouts(read=0.2)
    async with session_to(server.endpoint, timeouts=times) as session:
        with pytest.raises(Unavailable) as caught:
            await session.request("PUT", "/a", {}, b"x" * 1_000_000, limit=len(BODY))
        assert caught.value.maybe_done
        with pytest.raises(Unavailable) as caught:
            await session.request("GET", "/a", {}, limit=len(BODY))
        assert not caught.value.maybe_done


async def test_a_refused_connection_has_carried_out_nothing(server: Proxy) -> None:
    await server.refuse()
    async with session_to(server.endpoint) as session:
        with pytest.raises(Unavailable, match=r"cannot connect: .*refused") as caught:
            await session.request("PUT", "/a", {}, b"x")
        assert not caught.value.maybe_done
        await server.accept()
        server.always(Answer(200, body=b""))
        assert (await session.request("PUT", "/a", {}, b"x")).status == 200


async def test_an_unknown_host_is_unavailable() -> None:
    async with session_to("http://does-not-exist.invalid") as session:
        with pytest.raises(Unavailable, match="cannot connect"):
            await session.request("GET", "/a", {})


async def test_no_error_text_holds_a_header_or_a_query(server: Proxy) -> None:
    server.always(Reset())
    async with session_to(server.endpoint) as session:
        headers = {"authorization": "SECRET1"}
        with pytest.raises(Unavailable) as broken:
            await session.request("GET", "/a?token=SECRET2", headers)
        with pytest.raises(BadStore) as illegal:
            await session.request("GET", "/a", {"authorization": "SECRET1\n"})
    for caught in (broken, illegal):
        seen: BaseException | None = caught.value
        while seen is not None:
            assert "SECRET" not in str(seen)
            seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


@pytest.mark.parametrize(
    "address",
    ["", "s3.example.org", "ftp://example.org", "http://", "http://u:p@example.org",
     "http://example.org/?a=b", "http://[::1", "http://exa mple.org"],
)  # fmt: skip
def test_an_address_that_cannot_be_is_refused(address: str) -> None:
    with pytest.raises(BadStore):
        Session(address)


async def test_never_more_requests_are_out_than_connections(server: Proxy) -> None:
    server.always(Answer(200, body=b"x" * 5000))
    async with (
        session_to(server.endpoint, connections=3) as session,
        trio.open_nursery() as nursery,
    ):
        for i in range(40):
            nursery.start_soon(partial(session.request, "GET", f"/{i}", {}, limit=9999))

    assert server.most_in_flight <= 4
    assert server.connections <= 4


async def test_cancelled_requests_lose_no_connection(server: Proxy) -> None:
    """Requests cancelled while queueing, connecting, sending, waiting and reading."""

    def slow(response: Response) -> None:
        response.drip = 0.001

    server.always(Says(Change(slow), status=200, body=BODY[:20_000]))
    async with session_to(server.endpoint, connections=4) as session:

        async def cancelled(seconds: float) -> None:
            with trio.move_on_after(seconds):
                await session.request("PUT", "/a", {}, b"x" * 100_000, limit=20_000)

        for turn in range(6):
            async with trio.open_nursery() as nursery:
                for i in range(30):
                    nursery.start_soon(cancelled, 0.0005 * i * (turn % 3 + 1))

        server.heal()
        server.always(Answer(200, body=b"fine"))
        bodies: list[bytes] = []

        async def whole() -> None:
            bodies.append((await session.request("GET", "/a", {}, limit=9)).body)

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(whole)
        assert bodies == [b"fine"] * 20


async def test_a_connection_that_dies_as_it_is_taken_costs_only_writes(transport: str) -> None:
    """Servers close idle connections; a read then simply goes over another one."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def once(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine")
        await stream.receive_some()  # the second request is the one too many
        await stream.aclose()

    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery, session_to(f"http://127.0.0.1:{port}") as session:
        nursery.start_soon(trio.serve_listeners, once, listeners)
        await session.request("GET", "/a", {}, limit=9)
        if transport == "ours":
            assert (await session.request("GET", "/a", {}, limit=9)).body == b"fine"
        with pytest.raises(Unavailable) as caught:
            await session.request("PUT", "/a", {}, b"x", limit=9)
        assert caught.value.maybe_done
        nursery.cancel_scope.cancel()


async def test_the_servers_clock_is_told(server: Proxy) -> None:
    server.next(Answer(200, body=b""), Says(ShiftDate(-600), **_dated()))
    async with session_to(server.endpoint) as session:
        assert session.skew is None
        await session.request("GET", "/a", {})
        assert session.skew is not None and abs(session.skew) < 5
        await session.request("GET", "/a", {})
        assert abs(session.skew + 600) < 5
        server.always(Answer(200, headers=(("date", "no date"),), body=b""))
        await session.request("GET", "/a", {})
        assert abs(session.skew + 600) < 5


def _dated() -> dict[str, object]:
    now = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    return {"status": 200, "body": b"", "headers": (("date", now),)}


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 999999 x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\n" + b"x-a: " + b"b" * 200_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_whatever_is_answered_is_an_error_of_ours(garbage: bytes) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def babble(stream: trio.SocketStream) -> None:
        try:
            await stream.receive_some()
            await stream.send_all(garbage)
            await stream.send_eof()
        except trio.BrokenResourceError:
            pass

    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery, session_to(f"http://127.0.0.1:{port}") as session:
        nursery.start_soon(trio.serve_listeners, babble, listeners)
        with pytest.raises(StoreError):
            await session.request("GET", "/a", {}, limit=100)
        nursery.cancel_scope.cancel()


# TLS and proxies


@asynccontextmanager
async def answering(said: bytes) -> AsyncIterator[str]:
    """A server that says one thing to whatever comes, and closes; its address without a scheme."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(said)
        await stream.send_eof()
        await stream.receive_some()
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_tls_that_meets_plain_http_is_named() -> None:
    async with (
        answering(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n") as address,
        session_to(f"https://{address}") as session,
    ):
        with pytest.raises(BadStore, match=r"does not speak TLS at this port: write http://"):
            await session.request("GET", "/a", {}, limit=9)


async def test_plain_http_that_meets_tls_is_named() -> None:
    async with (
        answering(b"\x15\x03\x01\x00\x02\x02\x46") as address,
        session_to(f"http://{address}") as session,
    ):
        with pytest.raises(BadStore, match="speaks TLS at this port: write https://"):
            await session.request("GET", "/a", {}, limit=9)


async def test_a_server_that_hangs_up_without_a_word_may_speak_tls() -> None:
    """So does OpenSSL 3, asked in plain HTTP."""
    async with answering(b"") as address, session_to(f"http://{address}") as session:
        with pytest.raises(Unavailable, match=r"is it https://\?"):
            await session.request("GET", "/a", {}, limit=9)


async def test_a_proxy_that_is_down_is_not_the_store(
    server: Proxy, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    await server.refuse()
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, server.endpoint.replace("http://", "http://user:SECRET@"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for scheme in ("http", "https"):
        async with session_to(f"{scheme}://store.example.org") as session:
            port = server.endpoint.rpartition(":")[2]
            with pytest.raises(
                Unavailable, match=rf"the proxy 127\.0\.0\.1:{port}, which the environment names"
            ) as caught:
                await session.request("GET", "/a", {}, limit=9)
            assert "SECRET" not in str(caught.value)


async def test_only_the_given_authority_is_trusted(tmp_path: Path) -> None:
    ours, theirs = authority(tmp_path / "ours"), authority(tmp_path / "theirs")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(ours / "server.pem")
    listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")

    async def answer(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine")
        except trio.BrokenResourceError:
            pass

    (tcp,) = (listener.transport_listener for listener in listeners)
    assert isinstance(tcp, trio.SocketListener)
    port = tcp.socket.getsockname()[1]
    address = f"https://127.0.0.1:{port}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        async with session_to(address, ca=ours / "ca.pem") as session:
            assert (await session.request("GET", "/", {}, limit=9)).body == b"fine"
        for ca in (None, theirs / "ca.pem"):
            async with session_to(address, ca=ca) as session:
                with pytest.raises(BadStore, match=r"not trusted.*option ca="):
                    await session.request("GET", "/", {}, limit=9)
        nursery.cancel_scope.cancel()

    with pytest.raises(BadStore, match="cannot read certificates"):
        Session(address, ca=tmp_path / "absent")


async def test_the_environments_proxy_is_used(
    server: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.always(Answer(200, body=b"through the proxy"))
    monkeypatch.setenv("http_proxy", server.endpoint)
    monkeypatch.setenv("no_proxy", "")
    async with session_to("http://does-not-exist.invalid") as session:
        reply = await session.request("GET", "/a", {}, limit=99)
    assert reply.body == b"through the proxy"
    assert server.seen[0][0].target == "http://does-not-exist.invalid/a"

    monkeypatch.setenv("no_proxy", ".invalid")
    async with session_to("http://does-not-exist.invalid") as session:
        with pytest.raises(Unavailable):
            await session.request("GET", "/a", {}, limit=99)

    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", "ftp://u:SECRET@example.org")
    with pytest.raises(BadStore) as caught:
        Session("http://does-not-exist.invalid")
    assert "SECRET" not in str(caught.value)
