"""Requests over httpx's transport, which knows every kind of proxy: the one importer of httpx.

httpx's client layer is left out (cookies, redirects, decoders, a login from ~/.netrc: none is
wanted here).  A body takes three times the CPU of our own transport, in pieces of 64 KiB through
nine generators (docs/decisions/0004-transport.md), so this is used only where a proxy is between.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
import trio

from megafs.errors import BadStore, StoreError
from megafs.stores.http.direct import SOCKET_OPTIONS
from megafs.stores.http.errors import RequestStep, failure, unavailable, unsendable
from megafs.stores.http.http1 import AnswersInTls, HungUp
from megafs.stores.http.transport import IDLE, Headers, Origin, Request, Sink, Timeouts

# The body goes out in pieces, because the write timeout is per piece: 256 KiB in 30 s allows an
# uplink of 9 KB/s, a whole pack at once would need half a megabyte per second.
_PIECE = 256 << 10

# What httpx lets through, by experience, besides its own errors.
_FOREIGN = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, EOFError,
            trio.BrokenResourceError, trio.ClosedResourceError)  # fmt: skip

# Raised before a single byte of the request was sent.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError,
             httpx.UnsupportedProtocol)  # fmt: skip


class HttpxTransport:
    """At most *connections* connections to *origin*.

    context: for TLS; None for none.
    proxy: a proxy's URL, which may hold a password; None for no proxy.

    Whoever uses it lets no more requests out than there are connections: httpcore loses the
    connections of requests that are cancelled while they queue for it.
    """

    def __init__(
        self,
        origin: Origin,
        connections: int,
        timeouts: Timeouts,
        context: ssl.SSLContext | None,
        proxy: str | None,
    ) -> None:
        self._proxy = _shown(proxy) if proxy else ""
        self._base = httpx.URL(scheme=origin.scheme, host=origin.host, port=origin.port)
        self._timeouts = timeouts
        self._trusted = False
        self._extensions = {
            "timeout": httpx.Timeout(
                connect=timeouts.connect,
                read=timeouts.read,
                write=timeouts.write,
                pool=timeouts.connect,
            ).as_dict()
        }
        try:
            self._httpx = httpx.AsyncHTTPTransport(
                verify=context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
                trust_env=False,
                limits=httpx.Limits(
                    max_connections=connections,
                    max_keepalive_connections=connections,
                    keepalive_expiry=IDLE,
                ),
                proxy=None if proxy is None else _proxy(proxy, origin.scheme),
                socket_options=SOCKET_OPTIONS,
            )
        except ImportError as exc:
            raise BadStore("for a SOCKS proxy: pip install 'httpx[socks]'") from exc

    async def send(self, request: Request) -> HttpxAnswer:
        """Send a request and receive the head of the answer."""
        try:
            response = await self._httpx.handle_async_request(
                httpx.Request(
                    request.method,
                    self._base.copy_with(raw_path=request.target),
                    headers=request.headers,
                    stream=_Pieces(request.body),
                    extensions=self._extensions,
                )
            )
        except (httpx.LocalProtocolError, httpx.InvalidURL):
            # Its text quotes the header, which may be the signature: not even as a cause.
            raise unsendable(f"{request.method} {request.server}") from None
        except _FOREIGN as exc:
            raise self.failure(request, exc) from exc
        self._trusted = True
        return HttpxAnswer(self, request, response)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._httpx.aclose()

    def failure(self, request: Request, exc: Exception) -> StoreError:
        """Return the error of megafs that *exc* is."""
        step = RequestStep.RECEIVING
        if isinstance(exc, _NOT_SENT):
            step = RequestStep.CONNECTING
        elif isinstance(exc, httpx.WriteError | httpx.WriteTimeout):
            step = RequestStep.SENDING
        no_connection = isinstance(exc, httpx.ConnectError | httpx.ConnectTimeout)
        if self._proxy and no_connection and not _about_tls(exc):
            reason = f"the proxy {self._proxy}, which the environment names, does not answer"
            return unavailable(request, step, f"{reason} ({str(exc)[:200]})")
        if isinstance(exc, httpx.ProxyError):
            return unavailable(request, step, f"the proxy answers {str(exc)[:200]}")
        late = isinstance(exc, httpx.TimeoutException)
        return failure(
            request,
            step,
            _as_ours(exc),
            self._timeouts,
            late=late,
            trusted=self._trusted,
            secure=self._base.scheme == "https",
        )


class HttpxAnswer:
    """An answer whose body httpx will give away in pieces."""

    def __init__(
        self, transport: HttpxTransport, request: Request, response: httpx.Response
    ) -> None:
        self.status: int = response.status_code
        self.headers: Headers = [(name.lower(), value) for name, value in response.headers.raw]
        self._transport = transport
        self._request = request
        self._response = response

    async def body(self, limit: int, skip: int) -> tuple[bytes, bool]:
        """Receive at most *limit* bytes after the first *skip*, and say if there are more."""
        parts: list[bytes] = []
        stream = self._response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        try:
            async for part in stream:
                dropped = min(skip, len(part))
                skip -= dropped
                part = part[dropped:]
                if len(part) > limit:
                    parts.append(part[:limit])
                    return b"".join(parts), True
                parts.append(part)
                limit -= len(part)
        except _FOREIGN as exc:
            raise self._transport.failure(self._request, exc) from exc
        return b"".join(parts), False

    async def pour(self, sink: Sink) -> None:
        """Receive the whole body and hand it to *sink*."""
        stream = self._response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        try:
            async for part in stream:
                await sink(part)
        except _FOREIGN as exc:
            raise self._transport.failure(self._request, exc) from exc

    async def aclose(self) -> None:
        """Give the connection back, or close it if the body was not read to its end."""
        await self._response.aclose()


class _Pieces(httpx.AsyncByteStream):
    """A request's body, sent without a copy of the whole."""

    # An iterator rather than a generator, which would be left unfinished by a cancelled request.

    def __init__(self, body: memoryview) -> None:
        self._body = body
        self._at = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._at = 0
        return self

    async def __anext__(self) -> bytes:
        piece = self._body[self._at : self._at + _PIECE]
        if not piece:
            raise StopAsyncIteration
        self._at += len(piece)
        return piece  # type: ignore[return-value]  # h11 takes any buffer


def _shown(proxy: str) -> str:
    """A proxy's URL without name and password."""
    try:
        parts = urlsplit(proxy)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.hostname}{port}"
    except ValueError:
        return "of the environment"


def _as_ours(exc: Exception) -> Exception:
    """The error that our own transport would raise, where httpx says it in words only."""
    if isinstance(exc, httpx.RemoteProtocolError):
        said = str(exc)
        if "without sending a response" in said:
            return HungUp(said)
        if said == "illegal request line":  # h11 of a first byte that no answer in HTTP has
            return AnswersInTls("a record of TLS in place of an answer")
    return exc


def _about_tls(exc: BaseException | None) -> bool:
    while exc is not None:
        if isinstance(exc, ssl.SSLError):
            return True
        exc = exc.__cause__ or exc.__context__
    return False


def _proxy(url: str, scheme: str) -> httpx.Proxy:
    try:
        return httpx.Proxy(url)
    except (httpx.InvalidURL, ValueError):
        # Its text would quote the URL, which may hold a password.
        raise BadStore(f"the proxy in {scheme}_proxy or all_proxy is not a URL") from None
