"""An HTTP proxy that misbehaves as it is told, between a client and a real server.

    async with proxying(ceph.endpoint) as proxy:
        proxy.next(Answer(503, "SlowDown"), Reset(after_done=True), method="PUT")
        ...                                  # two PUTs go wrong, in that order; all else passes
        proxy.always(Delay(5))               # every request, until heal()
        await proxy.refuse()                 # nobody listens any more, until accept()

It works on the bytes of HTTP/1.1: the request reaches the server exactly as it was signed.  Faults
come in a fixed order or from a seeded source (`proxy.weather`), so that a failure can be repeated.
`ThreadedProxy` is the same for programs outside trio.
"""

from __future__ import annotations

import random
import re
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import trio


@dataclass
class Request:
    """One request as the client sent it.  headers: names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    head: bytes = field(repr=False)
    body: bytes = field(repr=False)


@dataclass
class Response:
    """What goes back to the client; faults may change any of it.

    cut: after so many bytes of the body the connection breaks.
    drip: seconds between pieces of 1 KiB, 0 for all at once.
    endless: the body (not an empty one) is followed by zeros for ever.
    """

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)
    cut: int | None = None
    drip: float = 0.0
    endless: bool = False


class Fault:
    """What goes wrong with one request.  `before` may answer in the server's place."""

    async def before(self, request: Request, client: trio.SocketStream) -> Response | None:
        return None

    async def after(self, response: Response, client: trio.SocketStream) -> None:
        """Change the server's response."""


class _Dropped(Exception):
    """The connection to the client is to be reset."""


@dataclass(frozen=True)
class Answer(Fault):
    """An error of S3 in place of the server's answer; the server never sees the request."""

    status: int
    code: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None

    async def before(self, request: Request, client: trio.SocketStream) -> Response:
        body = self.body
        if body is None:
            body = f"<Error><Code>{self.code}</Code><Message>injected</Message></Error>".encode()
        return Response(self.status, dict(self.headers), body)


@dataclass(frozen=True)
class Reset(Fault):
    """The connection breaks; with `after_done`, when the server has done what was asked."""

    after_done: bool = False

    async def before(self, request: Request, client: trio.SocketStream) -> Response | None:
        if not self.after_done:
            raise _Dropped
        return None

    async def after(self, response: Response, client: trio.SocketStream) -> None:
        raise _Dropped


@dataclass(frozen=True)
class Hang(Fault):
    """No answer until the client gives up; with `after_done`, the server has done it."""

    after_done: bool = False

    async def before(self, request: Request, client: trio.SocketStream) -> Response | None:
        if not self.after_done:
            await _until_closed(client)
        return None

    async def after(self, response: Response, client: trio.SocketStream) -> None:
        await _until_closed(client)


@dataclass(frozen=True)
class Delay(Fault):
    """The answer is *seconds* late."""

    seconds: float

    async def before(self, request: Request, client: trio.SocketStream) -> Response | None:
        await trio.sleep(self.seconds)
        return None


@dataclass(frozen=True)
class Cut(Fault):
    """The connection breaks *at* bytes into the body."""

    at: int

    async def after(self, response: Response, client: trio.SocketStream) -> None:
        response.cut = self.at


@dataclass(frozen=True)
class ShiftDate(Fault):
    """The server's Date is off by *seconds*."""

    seconds: float

    async def after(self, response: Response, client: trio.SocketStream) -> None:
        date = parsedate_to_datetime(response.headers["date"]) + timedelta(seconds=self.seconds)
        response.headers["date"] = format_datetime(date, usegmt=True)


@dataclass(frozen=True)
class Change(Fault):
    """Whatever *how* does to the response."""

    how: Callable[[Response], None]

    async def after(self, response: Response, client: trio.SocketStream) -> None:
        self.how(response)


def slow_down(retry_after: int | None = None) -> Answer:
    """503 as S3 says it under load."""
    headers = () if retry_after is None else (("retry-after", str(retry_after)),)
    return Answer(503, "SlowDown", headers)


def expired() -> Answer:
    """The credentials have run out."""
    return Answer(400, "ExpiredToken")


@dataclass
class _Rule:
    faults: list[Fault]
    method: str
    contains: str
    forever: bool

    def matches(self, request: Request) -> bool:
        return self.method in ("", request.method) and self.contains in request.target


class Proxy:
    """Passes requests on to *upstream*, an http:// URL; made by `proxying()`."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname and parts.port
        self._upstream = (parts.hostname, parts.port)
        self._rules: list[_Rule] = []
        self._random = random.Random(0)
        self._weather: Sequence[tuple[float, Fault]] = ()
        self._port = 0
        self._serving: trio.CancelScope | None = None
        self._nursery: trio.Nursery | None = None
        #: Every request that arrived, with what happened to it: None is "passed on".
        self.seen: list[tuple[Request, Fault | None]] = []
        self.in_flight = self.most_in_flight = 0
        self.connections = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    # What goes wrong

    def next(self, *faults: Fault, method: str = "", contains: str = "") -> None:
        """Let the next matching requests fail, one fault each, in this order."""
        self._rules.append(_Rule(list(faults), method, contains, False))

    def always(self, fault: Fault, *, method: str = "", contains: str = "") -> None:
        """Let every matching request fail until `heal()`."""
        self._rules.append(_Rule([fault], method, contains, True))

    def weather(self, seed: int, faults: Sequence[tuple[float, Fault]]) -> None:
        """Let each request fail by chance: (probability, fault) pairs, until `heal()`."""
        self._random = random.Random(seed)
        self._weather = faults

    def heal(self) -> None:
        """Pass everything on again."""
        self._rules.clear()
        self._weather = ()

    async def refuse(self) -> None:
        """Stop listening and break every connection, as a server that is down."""
        assert self._serving is not None
        self._serving.cancel()
        while self._serving is not None:
            await trio.sleep(0.001)

    async def accept(self) -> None:
        """Listen again, on the same port."""
        assert self._nursery is not None and self._serving is None
        await self._nursery.start(self._serve)

    def _fault(self, request: Request) -> Fault | None:
        for rule in self._rules:
            if rule.faults and rule.matches(request):
                return rule.faults[0] if rule.forever else rule.faults.pop(0)
        drawn = self._random.random() if self._weather else 1.0
        for probability, fault in self._weather:
            if drawn < probability:
                return fault
            drawn -= probability
        return None

    # Passing on

    async def _serve(self, task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
        listeners = await trio.open_tcp_listeners(self._port, host="127.0.0.1")
        self._port = listeners[0].socket.getsockname()[1]
        try:
            with trio.CancelScope() as scope:
                self._serving = scope
                await trio.serve_listeners(self._client, listeners, task_status=task_status)
        finally:
            self._serving = None

    async def _client(self, client: trio.SocketStream) -> None:
        self.connections += 1
        upstream: _Wire | None = None
        try:
            wire = _Wire(client)
            while (request := await wire.request()) is not None:
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    fault = self._fault(request)
                    self.seen.append((request, fault))
                    response = await fault.before(request, client) if fault else None
                    if response is None:
                        if upstream is None:
                            upstream = _Wire(await trio.open_tcp_stream(*self._upstream))
                        response = await upstream.ask(request)
                        if fault:
                            await fault.after(response, client)
                    await _send(client, request, response)
                finally:
                    self.in_flight -= 1
        except (_Dropped, OSError, trio.BrokenResourceError, trio.Cancelled) as exc:
            # A reset, not an orderly end: the client must not take it for one.
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if isinstance(exc, trio.Cancelled):
                raise
        finally:
            client.socket.close()
            if upstream is not None:
                upstream.close()


class _Wire:
    """Messages of HTTP/1.1 on a stream."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    def close(self) -> None:
        self._stream.socket.close()

    async def request(self) -> Request | None:
        head = await self._head()
        if head is None:
            return None
        if head[:1] == b"\x16":  # a handshake of TLS
            await self._stream.send_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            return None
        first, headers = _parse(head)
        if headers.get("transfer-encoding") == "chunked":
            body = await self._chunks()
        else:
            body = await self._exactly(int(headers.get("content-length", "0")))
        method, target, _ = first.split(" ", 2)
        return Request(method, target, headers, head, body)

    async def ask(self, request: Request) -> Response:
        body = request.body
        if request.headers.get("transfer-encoding") == "chunked":
            body = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
        await self._stream.send_all(request.head + body)
        head = await self._head()
        if head is None:
            raise OSError("the server closed the connection")
        first, headers = _parse(head)
        status = int(first.split(" ")[1])
        if request.method == "HEAD" or status in (204, 304):
            return Response(status, headers, b"")
        if headers.pop("transfer-encoding", "") == "chunked":
            body = await self._chunks()
        else:
            body = await self._exactly(int(headers.get("content-length", "0")))
        headers.pop("content-length", None)
        return Response(status, headers, body)

    async def _more(self) -> bool:
        data = await self._stream.receive_some(1 << 16)
        self._buffer += data
        return bool(data)

    async def _head(self) -> bytes | None:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0 and self._buffer[:1] != b"\x16":
            if not await self._more():
                return None
        return self._take(end + 4)

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if not await self._more():
                raise OSError("the connection ended early")
        return self._take(size)

    async def _chunks(self) -> bytes:
        body = b""
        while True:
            while (end := self._buffer.find(b"\r\n")) < 0:
                if not await self._more():
                    raise OSError("the connection ended early")
            size = int(self._take(end + 2).split(b";")[0], 16)
            body += (await self._exactly(size + 2))[:-2]
            if not size:
                return body

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    pairs = (re.split(r":\s*", line, maxsplit=1) for line in lines)
    return first, {k.lower(): v for k, v in pairs}


async def _send(client: trio.SocketStream, request: Request, response: Response) -> None:
    headers = dict(response.headers)
    headers.setdefault("date", format_datetime(datetime.now(UTC), usegmt=True))
    if response.endless:
        headers["transfer-encoding"] = "chunked"
    elif request.method != "HEAD" and response.status not in (204, 304):
        headers.setdefault("content-length", str(len(response.body)))
    lines = [f"HTTP/1.1 {response.status} -", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
    await client.send_all("\r\n".join(lines).encode("latin-1"))
    body = response.body if response.cut is None else response.body[: response.cut]
    if request.method == "HEAD":
        body = b""
    if response.drip:
        for at in range(0, len(body), 1024):
            await client.send_all(body[at : at + 1024])
            await trio.sleep(response.drip)
    elif response.endless:
        while True:
            await client.send_all(b"%x\r\n%s\r\n" % (len(body), body))
            body = bytes(1 << 16)
    else:
        await client.send_all(body)
    if response.cut is not None:
        # Orderly, so that what was sent arrives; only the length tells that something is missing.
        await client.send_eof()
        await _until_closed(client)


async def _until_closed(client: trio.SocketStream) -> None:
    while await client.receive_some(1 << 16):
        pass
    raise _Dropped


@asynccontextmanager
async def proxying(upstream: str, kind: type[Proxy] = Proxy) -> AsyncIterator[Proxy]:
    """Run a proxy to *upstream* for the block."""
    proxy = kind(upstream)
    async with trio.open_nursery() as nursery:
        proxy._nursery = nursery
        await nursery.start(proxy._serve)
        yield proxy
        nursery.cancel_scope.cancel()


class ThreadedProxy:
    """A proxy in a thread of its own: ``with ThreadedProxy(url) as p: p.tell(Proxy.heal)``."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,), daemon=True)
        self._token: trio.lowlevel.TrioToken
        self._stop: trio.Event
        self.proxy: Proxy

    @property
    def endpoint(self) -> str:
        return self.proxy.endpoint

    def tell(self, what: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a method of Proxy in the proxy's thread: ``tell(Proxy.next, Reset())``."""

        async def call() -> Any:
            result = what(self.proxy, *args, **options)
            return await result if hasattr(result, "__await__") else result

        return trio.from_thread.run(call, trio_token=self._token)

    def __enter__(self) -> ThreadedProxy:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
        self._thread.join(10)

    def running(self) -> AbstractAsyncContextManager[Proxy]:
        """What runs in the thread."""
        return proxying(self._upstream)

    async def _run(self) -> None:
        async with self.running() as self.proxy:
            self._token = trio.lowlevel.current_trio_token()
            self._stop = trio.Event()
            self._ready.set()
            await self._stop.wait()
