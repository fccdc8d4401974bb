"""HTTP/1.1 on a connection: whatever comes, in whatever pieces, is an answer or an error."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import h11
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from megafs.stores.http import http1
from megafs.stores.http.http1 import Connection, Garbled


@asynccontextmanager
async def fed(pieces: list[bytes], *, closed: bool = True) -> AsyncIterator[Connection]:
    """A connection on which *pieces* arrive, each on its own."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    other = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    connection = Connection(ours, None, read=0.5, write=0.5)

    async def feed() -> None:
        try:
            for piece in pieces:
                await other.send_all(piece)
                await trio.lowlevel.checkpoint()
            if closed:
                await other.send_eof()
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        try:
            yield connection
        finally:
            connection.close()
            nursery.cancel_scope.cancel()
            theirs.close()


async def answer(
    pieces: list[bytes], limit: int = 1 << 30, skip: int = 0, method: bytes = b"GET"
) -> tuple[int, bytes, bool]:
    garbled: Garbled
    async with fed(pieces) as connection:
        try:
            head = await connection.head(method)
            body, more = await connection.body(head, limit, skip)
            return head.status, body, more
        except Garbled as exc:
            garbled = exc  # raised below, outside the nursery that would wrap it
    raise garbled


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({c % (len(data) + 1) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(at)]


BODY = bytes(range(256)) * 9000  # 2.3 MB: larger than the buffer
cuts = st.lists(st.integers(0, 1 << 22), max_size=8)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(0, len(BODY)), cuts=cuts, limit=st.integers(0, 3 << 20),
       skip=st.integers(0, 3 << 20), chunk=st.none() | st.integers(1, 1 << 21))  # fmt: skip
def test_a_body_is_what_was_sent(
    size: int, cuts: list[int], limit: int, skip: int, chunk: int | None
) -> None:
    body = BODY[:size]
    if chunk is None:
        data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body
    else:
        chunk = max(chunk, size // 50)
        data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        for at in range(0, size, chunk):
            part = body[at : at + chunk]
            data += b"%x;ext=1\r\n%s\r\n" % (len(part), part)
        data += b"0\r\nTrailer: yes\r\n\r\n"

    status, got, more = trio.run(answer, split(data, cuts), limit, skip)

    assert (status, got) == (200, body[skip : skip + limit])
    assert more == (skip + limit < size)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300), cuts=cuts, limit=st.integers(0, 1000))
def test_any_bytes_are_an_answer_or_an_error(data: bytes, cuts: list[int], limit: int) -> None:
    for start in (
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    ):
        try:
            _, body, _ = trio.run(answer, split(start + data, cuts), limit)
        except Garbled:
            continue
        assert len(body) <= limit


names = st.from_regex(rb"[A-Za-z-]{1,12}", fullmatch=True).filter(
    lambda n: n.lower() not in (b"content-length", b"transfer-encoding", b"connection")
)
values = st.from_regex(rb"([!-~]([ -~]{0,20}[!-~])?)?", fullmatch=True)


@settings(max_examples=200, deadline=None)
@given(status=st.integers(200, 599), headers=st.lists(st.tuples(names, values), max_size=6))
def test_a_head_is_read_as_h11_reads_it(status: int, headers: list[tuple[bytes, bytes]]) -> None:
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    server.next_event()
    data = server.send(
        h11.Response(status_code=status, headers=[*headers, (b"Content-Length", b"0")])
    )
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    client.receive_data(data)
    theirs = client.next_event()

    ours = http1._parse(data.removesuffix(b"\r\n\r\n"), b"GET")

    assert isinstance(theirs, h11.Response)
    assert (ours.status, ours.headers) == (theirs.status_code, list(theirs.headers))


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: b\0c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 4\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000,
        b"",
    ],
)
async def test_what_is_not_understood_is_refused(head: bytes) -> None:
    with pytest.raises(Garbled):
        await answer([head])


async def test_the_same_length_twice_and_interim_answers_are_taken() -> None:
    twice = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello"
    assert await answer([b"HTTP/1.1 100 Continue\r\n\r\n", twice]) == (200, b"hello", False)


async def test_answers_without_a_body() -> None:
    assert await answer([b"HTTP/1.1 204 No\r\n\r\n"]) == (204, b"", False)
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
    assert await answer([head], method=b"HEAD") == (200, b"", False)


async def test_a_connection_that_said_something_unasked_is_not_quiet() -> None:
    async with fed([], closed=False) as connection:
        assert connection.is_quiet()
    async with fed([b"x"], closed=False) as connection:
        await trio.sleep(0.01)
        assert not connection.is_quiet()
    async with fed([]) as connection:
        await trio.sleep(0.01)
        assert not connection.is_quiet()


async def test_an_answer_that_came_before_the_body_was_sent_is_read() -> None:
    """A server that refuses a large body answers and closes; the answer must not get lost."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        await stream.send_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")
        await stream.aclose()  # with bytes unread: a reset

    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, refuse, listeners)
        connection = await Connection.open("127.0.0.1", port, None, connect=5, read=5, write=5)
        await connection.send(b"PUT", b"/", [(b"host", b"a")], memoryview(bytes(30 << 20)))
        assert (await connection.head(b"PUT")).status == 503
        connection.close()
        nursery.cancel_scope.cancel()


async def test_a_silent_server_is_given_up() -> None:
    async with fed([b"HTTP/1.1 200 OK\r\n"], closed=False) as connection:
        with pytest.raises(trio.TooSlowError):
            await connection.head(b"GET")
