"""Requests through a proxy: the one importer of httpx, which knows every kind of proxy.

Only imported where the environment names one: httpx and what it imports take 25 ms of CPU, a tenth
of what a mount takes to start.  Of httpx only the transport is used: its client has cookies,
redirects, decoders and a login from ~/.netrc, none of which is wanted here.
"""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpx

from megafs.errors import BadStore
from megafs.stores import wire
from megafs.stores.http import (
    IDLE,
    SOCKET_OPTIONS,
    Answer,
    Failed,
    Origin,
    Timeouts,
    Unsendable,
    reason,
)

# The body goes out in pieces, because the write timeout is per piece: 256 KiB in 30 s allows an
# uplink of 9 KB/s, a whole pack at once would need half a megabyte per second.
_PIECE = 256 << 10

# Raised before a single byte of the request was sent.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError,
             httpx.UnsupportedProtocol)  # fmt: skip


def proxy_for(origin: Origin) -> httpx.Proxy | None:
    """The proxy the environment names for this origin; the rules are urllib's and curl's."""
    if urllib.request.proxy_bypass(origin.host):
        return None
    known = urllib.request.getproxies()
    url = known.get(origin.scheme) or known.get("all")
    if not url:
        return None
    try:
        return httpx.Proxy(url if "://" in url else f"http://{url}")
    except (httpx.InvalidURL, ValueError):
        # Its text would quote the URL, which may hold a password.
        raise BadStore(f"the proxy in {origin.scheme}_proxy or all_proxy is not a URL") from None


class Proxied:
    """httpx's own transport.  proxy: None for none, in tests."""

    def __init__(
        self,
        origin: Origin,
        connections: int,
        times: Timeouts,
        context: ssl.SSLContext | None,
        proxy: httpx.Proxy | None,
    ) -> None:
        self._base = httpx.URL(f"{origin.scheme}://{origin.netloc}")
        self._times = times
        self._timeout = httpx.Timeout(
            connect=times.connect, read=times.read, write=times.write, pool=times.connect
        ).as_dict()
        try:
            self._transport = httpx.AsyncHTTPTransport(
                verify=context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
                trust_env=False,
                limits=httpx.Limits(
                    max_connections=connections,
                    max_keepalive_connections=connections,
                    keepalive_expiry=IDLE,
                ),
                proxy=proxy,
                socket_options=SOCKET_OPTIONS,
            )
        except ImportError as exc:
            raise BadStore("for a SOCKS proxy: pip install 'httpx[socks]'") from exc

    async def ask(
        self, method: str, target: bytes, headers: wire.Headers, body: memoryview
    ) -> Answer:
        with _failing(self._times):
            request = httpx.Request(
                method,
                self._base.copy_with(raw_path=target),
                headers=headers,
                stream=_Pieces(body),
                extensions={"timeout": self._timeout},
            )
            response = await self._transport.handle_async_request(request)
        return _Answer(response, self._times)

    async def aclose(self) -> None:
        await self._transport.aclose()


class _Pieces(httpx.AsyncByteStream):
    """A request's body, sent without a copy of the whole."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._at = 0
        return self

    async def __anext__(self) -> bytes:
        piece = self._view[self._at : self._at + _PIECE]
        if not piece:
            raise StopAsyncIteration
        self._at += len(piece)
        return piece  # type: ignore[return-value]  # h11 takes any buffer


class _Answer:
    def __init__(self, response: httpx.Response, times: Timeouts) -> None:
        self.status = response.status_code
        self.headers = response.headers.raw
        self._response = response
        self._times = times

    async def read(self, limit: int, skip: int) -> tuple[bytes, bool]:
        stream = self._response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        parts: list[bytes] = []
        with _failing(self._times):
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

    async def aclose(self) -> None:
        await self._response.aclose()


@contextmanager
def _failing(times: Timeouts) -> Iterator[None]:
    """Turn what httpx raises into errors of stores/http.py."""
    try:
        yield
    except (httpx.LocalProtocolError, httpx.InvalidURL):
        # Its text quotes the header, which may be the signature: not even as a cause.
        raise Unsendable from None
    except (httpx.HTTPError, httpx.StreamError) as exc:
        sent = not isinstance(exc, _NOT_SENT)
        raise Failed(_reason(exc, times), sent=sent) from exc


def _reason(exc: Exception, times: Timeouts) -> str:
    if isinstance(exc, httpx.ConnectTimeout):
        return f"no connection within {times.connect:g} s"
    if isinstance(exc, httpx.ReadTimeout):
        return f"nothing received for {times.read:g} s"
    if isinstance(exc, httpx.WriteTimeout):
        return f"nothing accepted for {times.write:g} s"
    if isinstance(exc, httpx.ProxyError):
        return f"the proxy answers {str(exc)[:200]}"
    if isinstance(exc, httpx.ConnectError):
        return f"cannot connect: {reason(exc)}"
    return reason(exc)
