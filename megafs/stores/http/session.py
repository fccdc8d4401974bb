"""Ask an HTTP server: the one importer of httpx.

A `Session` talks to one origin.  It has a pool of connections, and lets no more requests out than
the pool has room for: httpcore loses the connections of requests that are cancelled while they
queue for it, so nobody ever queues there.  Nothing foreign leaves this module: whatever httpx, TLS
or the network raise becomes an error of megafs.errors, and no text holds a header or a query.

Every body is bounded by the caller, whatever the server sends, and read as it is on the wire: we
ask for no content encoding and refuse one that comes anyway.  A body cut short is Unavailable.

httpx's client layer is left out (cookies, redirects, decoders, a login from ~/.netrc: none is
wanted here); requests go to an httpx transport.  It is one of our own (over http1.py), since
httpx's takes three times the CPU for a body (docs/decisions/0004-transport.md), but where a proxy
is between: proxies come from the environment (https_proxy, http_proxy, all_proxy, no_proxy).
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import certifi
import httpx
import trio
from msgspec import Struct

from megafs import __version__, clock
from megafs.errors import BadStore, StoreError, Unavailable
from megafs.stores import limit as limits
from megafs.stores.base import Buffer
from megafs.stores.http import http1

E = TypeVar("E", bound=BaseException)

#: Of an answer that is not a success, no more than this is read.
ERROR_LIMIT = 64 << 10

# A name or an address of either kind; httpx would quote anything else.
_HOST = re.compile(r"([A-Za-z0-9._-]+|[0-9A-Fa-f:.]+)\Z")

# The body goes out in pieces, because the write timeout is per piece: 256 KiB in 30 s allows an
# uplink of 9 KB/s, a whole pack at once would need half a megabyte per second.
_PIECE = 256 << 10

# Seconds after which a connection nobody used is closed; servers do so after 20 to 65.
_IDLE = 20.0

_TARGET = re.compile(rb"[!-~]+\Z")
_BREAK = re.compile(rb"[\x00\r\n]")

# What else httpx lets through, by experience: its own misuse errors are ours to see, these are not.
_FOREIGN = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, EOFError,
            trio.BrokenResourceError, trio.ClosedResourceError)  # fmt: skip

# Raised before a single byte of the request was sent.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError,
             httpx.UnsupportedProtocol, httpx.LocalProtocolError)  # fmt: skip

# A laptop that wakes in another network has connections nobody answers on: the kernel finds out
# after 10 + 3*5 s of silence instead of two hours, and gives up on unacknowledged data after 30.
_SOCKET_OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
]


class Timeouts(Struct, frozen=True):
    """Seconds for one step: a connection, the next bytes of an answer, a piece of the body.

    A Ceph that loses a disk stalls requests for 2 to 21 s without an error, so reading is patient.
    How long a whole operation may take is decided above (stores/retry.py).
    """

    connect: float = 10.0
    read: float = 30.0
    write: float = 30.0


class Reply(Struct, frozen=True):
    """What the server answered.

    headers: names in lower case.
    body: at most as much as was asked for.
    more: the body went on beyond that.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    more: bool = False


class Session:
    """Requests to one origin over at most *connections* connections.

    base: scheme, host and port, perhaps a path that every target begins with.
    ca: a file of certificates to trust instead of the system's.
    transport: takes the place of httpx's own.
    """

    def __init__(
        self,
        base: str,
        *,
        connections: int = 16,
        timeouts: Timeouts | None = None,
        ca: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        try:
            self._base = httpx.URL(base)
        except (httpx.InvalidURL, ValueError) as exc:
            raise BadStore(f"not a URL: {base!r}") from exc
        if self._base.scheme not in ("http", "https") or not _HOST.match(self._base.host):
            raise BadStore(f"not an http:// or https:// URL: {base!r}")
        if self._base.userinfo or self._base.query or self._base.fragment:
            raise BadStore("a store's address has no user, query or fragment in it")
        self.secure = self._base.scheme == "https"
        #: The value of the Host header, and what error texts call the server.
        self.host = self._base.netloc.decode("ascii")
        self.connections = connections
        self._slots = trio.CapacityLimiter(connections)
        times = timeouts or Timeouts()
        self._timeout = httpx.Timeout(
            connect=times.connect, read=times.read, write=times.write, pool=times.connect
        ).as_dict()
        self._transport = transport or _transport(self._base, connections, times, ca)
        self._agent = f"megafs/{__version__}"
        self._trusted = False
        self._date = ""
        self._server_time = 0.0
        #: Server's clock minus ours in seconds, from its last Date; None before the first.
        self.skew: float | None = None
        #: Counters for `status`.
        self.requests = self.failures = self.sent = self.received = 0
        self.last_error = ""

    @property
    def base_path(self) -> str:
        """The path in front of every target, without a slash at its end."""
        return self._base.path.rstrip("/")

    async def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Buffer = b"",
        *,
        limit: int = 0,
        start: int = 0,
    ) -> Reply:
        """Send one request and return the answer, whatever its status.

        target: path and query, quoted; begins with `base_path`.
        headers: as they shall be sent; length, agent and encoding are added.
        limit: the most bytes of a successful answer's body to read.
        start: the first byte asked for with a Range header.  A server that ignores the header
            answers 200, and then that many bytes are read and dropped.

        Raises Unavailable for anything but an answer; BadStore if the server cannot be trusted or
        its answer cannot be used.
        """
        async with self._slots:
            self.requests += 1
            try:
                with self._edge(method, target):
                    return await self._exchange(method, target, headers, body, limit, start)
            except StoreError as exc:
                self.failures += 1
                self.last_error = str(exc)
                raise

    async def aclose(self) -> None:
        """Close every connection."""
        with trio.move_on_after(5, shield=True):
            await self._transport.aclose()

    async def _exchange(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Buffer,
        limit: int,
        start: int,
    ) -> Reply:
        lines = {"host": self.host, **headers}
        lines["user-agent"] = self._agent
        lines["accept-encoding"] = "identity"
        stream: httpx.AsyncByteStream | None = None
        if len(body) or method in ("PUT", "POST"):
            lines["content-length"] = str(len(body))
            stream = _Pieces(body)
        extensions: dict[str, Any] = {"timeout": self._timeout}
        url = self._base
        if isinstance(self._transport, _Direct):
            # Making a URL takes httpx 75 microseconds; this extension takes the target as it is.
            extensions["target"] = target.encode("ascii")
        else:  # a proxy needs the whole of it
            url = self._base.copy_with(raw_path=target.encode("ascii"))
        request = httpx.Request(
            method,
            url,
            headers=lines,
            stream=stream or _Pieces(b""),
            extensions=extensions,
        )
        response = await self._transport.handle_async_request(request)
        self._trusted = True
        self.sent += len(body)
        try:
            return await self._read(method, response, limit, start)
        finally:
            # Gives the connection back to the pool, or closes it if the body was not read to its
            # end.  httpcore shields its own closing; a lost network must not hold us either.
            with trio.move_on_after(5, shield=True):
                await response.aclose()

    async def _read(self, method: str, response: httpx.Response, limit: int, start: int) -> Reply:
        status = response.status_code
        headers = {
            k.decode("latin-1").lower(): v.decode("latin-1") for k, v in response.headers.raw
        }
        self._note_date(headers.get("date", ""))
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise BadStore(
                f"{self.host} answers with content-encoding {headers['content-encoding'][:40]!r}"
                " although none was asked for; is a proxy compressing?"
            )
        if method == "HEAD" or status in (204, 304):
            return Reply(status, headers, b"")
        if "content-length" not in headers and "transfer-encoding" not in headers:
            raise Unavailable(f"{self.host} does not say where its answer ends")
        skip = start if status == 200 else 0
        if not 200 <= status < 300:
            limit = ERROR_LIMIT
        body, more = await _bounded(response, limit, skip)
        self.received += len(body)
        return Reply(status, headers, body, more)

    def _note_date(self, date: str) -> None:
        if date != self._date:  # it changes once a second, and reading it takes 20 microseconds
            try:
                self._server_time = parsedate_to_datetime(date).timestamp()
            except (ValueError, OverflowError):
                return
            self._date = date
        self.skew = self._server_time - clock.now()

    @contextmanager
    def _edge(self, method: str, target: str) -> Iterator[None]:
        """Turn foreign errors into ours."""
        try:
            yield
        except Unavailable as exc:  # from _read(): the request itself arrived
            exc.maybe_done = exc.maybe_done or method not in ("GET", "HEAD")
            raise
        except _FOREIGN as exc:
            what = f"{method} {self.host}{target.partition('?')[0]}"
            if isinstance(exc, httpx.LocalProtocolError | httpx.InvalidURL):
                # Its text quotes the header, which may be the signature: not even as a cause.
                raise BadStore(f"{what}: cannot be put into a request") from None
            if not self._trusted and (untrusted := _find(exc, ssl.SSLCertVerificationError)):
                raise BadStore(
                    f"{self.host} is not trusted: {untrusted.verify_message}; for a private"
                    " certificate authority give its file with the option ca="
                ) from exc
            sent = not isinstance(exc, _NOT_SENT)
            raise Unavailable(
                f"{what}: {self._reason(exc)}", maybe_done=sent and method not in ("GET", "HEAD")
            ) from exc

    def _reason(self, exc: Exception) -> str:
        if isinstance(exc, httpx.ConnectTimeout):
            return f"no connection within {self._timeout['connect']:g} s"
        if isinstance(exc, httpx.ReadTimeout):
            return f"nothing received for {self._timeout['read']:g} s"
        if isinstance(exc, httpx.WriteTimeout):
            return f"nothing accepted for {self._timeout['write']:g} s"
        if isinstance(exc, httpx.ProxyError):
            return f"the proxy answers {str(exc)[:200]}"
        said = _system_error(exc) or str(exc) or type(exc).__name__
        if isinstance(exc, httpx.ConnectError):
            return f"cannot connect: {said[:200]}"
        return said[:200]


async def _bounded(response: httpx.Response, limit: int, skip: int) -> tuple[bytes, bool]:
    """At most *limit* bytes of a body after the first *skip*, and whether there are more."""
    stream = response.stream
    if isinstance(stream, _Received):
        return await stream.read(limit, skip)
    assert isinstance(stream, httpx.AsyncByteStream)
    parts: list[bytes] = []
    async for part in stream:
        dropped = min(skip, len(part))
        skip -= dropped
        part = part[dropped:]
        if len(part) > limit:
            parts.append(part[:limit])
            return b"".join(parts), True
        parts.append(part)
        limit -= len(part)
    return b"".join(parts), False


class _Pieces(httpx.AsyncByteStream):
    """A request's body, sent without a copy of the whole."""

    def __init__(self, body: Buffer) -> None:
        self.view = memoryview(body).cast("B")
        self._at = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._at = 0
        return self

    async def __anext__(self) -> bytes:
        piece = self.view[self._at : self._at + _PIECE]
        if not piece:
            raise StopAsyncIteration
        self._at += len(piece)
        return piece  # type: ignore[return-value]  # h11 takes any buffer


class _Direct(httpx.AsyncBaseTransport):
    """Connections of our own to one origin; as many as there are requests at once."""

    def __init__(self, base: httpx.URL, times: Timeouts, context: ssl.SSLContext | None) -> None:
        self._host = base.host
        self._port = base.port or (443 if context else 80)
        self._times = times
        self._context = context
        self._idle: list[http1.Connection] = []
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        method = request.method.encode("ascii")
        target = request.extensions.get("target", request.url.raw_path)
        headers = request.headers.raw
        if not _TARGET.match(target) or any(_BREAK.search(value) for _, value in headers):
            raise httpx.LocalProtocolError("a header or a target that breaks its line")
        body = request.stream.view if isinstance(request.stream, _Pieces) else memoryview(b"")
        timing = limits.attempt.get()
        if timing is not None:
            timing.count()
        while True:
            connection = self._take()
            fresh = connection is None
            if connection is None:
                connection = await self._open()
            if timing is not None:
                connection.moved = timing.moved
            try:
                with _as_httpx(httpx.WriteError, httpx.WriteTimeout):
                    await connection.send(method, target, headers, body)
                with _as_httpx(httpx.ReadError, httpx.ReadTimeout):
                    head = await connection.head(method)
            except (httpx.NetworkError, httpx.RemoteProtocolError):
                connection.close()
                # The server may have closed an idle connection as we took it: then nobody has
                # seen the request.  Only reading may be done twice without a thought.
                if fresh or request.method not in ("GET", "HEAD"):
                    raise
            except BaseException:
                connection.close()
                raise
            else:
                stream = _Received(self, connection, head)
                return httpx.Response(head.status, headers=head.headers, stream=stream)

    async def aclose(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def give_back(self, connection: http1.Connection) -> None:
        """Take a connection that may be used again."""
        if self._closed:
            connection.close()
            return
        connection.moved = http1.untold
        now = connection.idle_since = trio.current_time()
        self._idle.append(connection)
        while now - self._idle[0].idle_since > _IDLE:
            self._idle.pop(0).close()

    def _take(self) -> http1.Connection | None:
        now = trio.current_time()
        while self._idle:
            connection = self._idle.pop()  # the newest: the others may grow old and go
            if now - connection.idle_since <= _IDLE and connection.is_quiet():
                return connection
            connection.close()
        return None

    async def _open(self) -> http1.Connection:
        times = self._times
        with _as_httpx(httpx.ConnectError, httpx.ConnectTimeout):
            return await http1.Connection.open(
                self._host,
                self._port,
                self._context,
                _SOCKET_OPTIONS,
                connect=times.connect,
                read=times.read,
                write=times.write,
            )


class _Received(httpx.AsyncByteStream):
    """The body of an answer, still on its connection."""

    def __init__(self, pool: _Direct, connection: http1.Connection, head: http1.Head) -> None:
        self._pool = pool
        self._connection = connection
        self._head = head
        self._at_end = head.length == 0

    async def read(self, limit: int, skip: int = 0) -> tuple[bytes, bool]:
        """At most *limit* bytes after the first *skip*, and whether there are more; once."""
        with _as_httpx(httpx.ReadError, httpx.ReadTimeout):
            body, more = await self._connection.body(self._head, limit, skip)
        self._at_end = not more
        return body, more

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body, _ = await self.read(1 << 62)
        yield body

    async def aclose(self) -> None:
        if self._at_end and self._head.reusable:
            self._pool.give_back(self._connection)
        else:
            self._connection.close()


@contextmanager
def _as_httpx(
    error: type[httpx.TransportError], late: type[httpx.TransportError]
) -> Iterator[None]:
    try:
        yield
    except trio.TooSlowError as exc:
        raise late(str(exc)) from exc
    except http1.Garbled as exc:
        raise httpx.RemoteProtocolError(str(exc)) from exc
    except OSError as exc:
        raise error(str(exc)) from exc


def _transport(
    base: httpx.URL, connections: int, times: Timeouts, ca: Path | None
) -> httpx.AsyncBaseTransport:
    context = _tls(ca) if base.scheme == "https" else None
    proxy = _proxy(base)
    if proxy is None:
        return _direct(base, times, context)
    return _pooled(connections, context, proxy)


def _direct(
    base: httpx.URL, times: Timeouts, context: ssl.SSLContext | None
) -> httpx.AsyncBaseTransport:
    return _Direct(base, times, context)


def _pooled(
    connections: int, context: ssl.SSLContext | None, proxy: httpx.Proxy | None
) -> httpx.AsyncBaseTransport:
    """httpx's own transport, which knows every kind of proxy."""
    try:
        return httpx.AsyncHTTPTransport(
            verify=context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            trust_env=False,
            limits=httpx.Limits(
                max_connections=connections,
                max_keepalive_connections=connections,
                keepalive_expiry=_IDLE,
            ),
            proxy=proxy,
            socket_options=_SOCKET_OPTIONS,
        )
    except ImportError as exc:
        raise BadStore("for a SOCKS proxy: pip install 'httpx[socks]'") from exc


def _proxy(base: httpx.URL) -> httpx.Proxy | None:
    """The proxy the environment names for this origin; the rules are urllib's and curl's."""
    if urllib.request.proxy_bypass(base.host):
        return None
    known = urllib.request.getproxies()
    url = known.get(base.scheme) or known.get("all")
    if not url:
        return None
    try:
        return httpx.Proxy(url if "://" in url else f"http://{url}")
    except (httpx.InvalidURL, ValueError):
        # Its text would quote the URL, which may hold a password.
        raise BadStore(f"the proxy in {base.scheme}_proxy or all_proxy is not a URL") from None


def _tls(ca: Path | None) -> ssl.SSLContext:
    if ca is not None:
        try:
            context = ssl.create_default_context(cafile=str(ca))
        except (OSError, ssl.SSLError) as exc:
            raise BadStore(f"cannot read certificates from {ca}: {exc}") from exc
        # Python 3.13 wants extensions that hand-made authorities lack; no other program does.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context
    paths = ssl.get_default_verify_paths()
    system = paths.cafile or (
        paths.capath and os.path.isdir(paths.capath) and os.listdir(paths.capath)
    )
    # The system's certificates are what its administrator trusts; a bare container has none.
    return ssl.create_default_context(cafile=None if system else certifi.where())


def _system_error(exc: BaseException | None) -> str:
    """What the operating system said, the innermost cause first; "" if it said nothing."""
    if exc is None:
        return ""
    if isinstance(exc, BaseExceptionGroup):  # of the addresses of one name, any failure will do
        return next(filter(None, map(_system_error, exc.exceptions)), "")
    inner = _system_error(exc.__cause__ or exc.__context__)
    if inner or not isinstance(exc, OSError):
        return inner
    if exc.errno and not isinstance(exc, socket.gaierror | ssl.SSLError):
        return os.strerror(exc.errno)  # trio's own text repeats the address
    return exc.strerror or ""


def _find(exc: BaseException | None, kind: type[E]) -> E | None:
    """The first error of *kind* among *exc* and what caused it."""
    while exc is not None:
        if isinstance(exc, kind):
            return exc
        exc = exc.__cause__ or exc.__context__
    return None
