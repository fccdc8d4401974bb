"""Ask an HTTP server: what the drivers of stores with an HTTP interface use.

A `Session` talks to one origin.  It lets no more requests out than it may have connections, counts
them, follows the server's clock and bounds every body, whatever the server sends.  The requests go
over a transport (transport.py): our own, or httpx's where the environment names a proxy.

Nothing foreign leaves it: whatever a library, TLS or the network raise becomes an error of
megafs.errors (errors.py), and no text holds a header or a query.  Bodies are read as they are on
the wire: we ask for no content encoding and refuse one that comes anyway.  A body cut short is
Unavailable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import trio
from msgspec import Struct

from megafs import __version__, clock
from megafs.errors import BadStore, StoreError, Unavailable
from megafs.stores.base import Buffer
from megafs.stores.http.direct import DirectTransport
from megafs.stores.http.errors import unsendable
from megafs.stores.http.proxy import proxy_for
from megafs.stores.http.tls import ClientCertificate, client_context
from megafs.stores.http.transport import Answer, Origin, Request, Sink, Timeouts, Transport

__all__ = ["ERROR_LIMIT", "Response", "Session", "Timeouts"]

#: Of an answer that is not a success, no more than this is read.
ERROR_LIMIT = 64 << 10

# A name or an address of either kind.
_HOST = re.compile(r"([A-Za-z0-9._-]+|[0-9A-Fa-f:.]+)\Z")

_TARGET = re.compile(rb"[!-~]+\Z")
_BREAK = re.compile(rb"[\x00\r\n]")

_AGENT = f"megafs/{__version__}".encode("ascii")


class Response(Struct, frozen=True):
    """The answer of a server, read.

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
    client: a certificate of our own, for servers that ask for one.
    """

    def __init__(
        self,
        base: str,
        *,
        connections: int = 16,
        timeouts: Timeouts | None = None,
        ca: Path | None = None,
        client: ClientCertificate | None = None,
    ) -> None:
        origin, path = _origin_of(base)
        self.secure = origin.secure
        #: The value of the Host header, and what error texts call the server.
        self.host = origin.authority
        #: The path in front of every target, without a slash at its end.
        self.base_path = path.rstrip("/")
        self.connections = connections
        self._slots = trio.CapacityLimiter(connections)
        self._transport = open_transport(origin, connections, timeouts or Timeouts(), ca, client)
        self._date = ""
        self._server_time = 0.0
        #: Server's clock minus ours in seconds, from its last Date; None before the first.
        self.skew: float | None = None
        #: Counters for `status`.
        self.requests = self.failures = self.sent = self.received = 0
        self.last_error = ""

    async def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Buffer = b"",
        *,
        limit: int = 0,
        start: int = 0,
    ) -> Response:
        """Send one request and return the answer, whatever its status.

        target: path and query, quoted; begins with `base_path`.
        headers: as they shall be sent; length, agent and encoding are added.
        limit: the most bytes of a successful answer's body to read.
        start: the first byte asked for with a Range header.  A server that ignores the header
            answers 200, and then that many bytes are read and dropped.

        Raises Unavailable for anything but an answer; BadStore if the server cannot be trusted or
        its answer cannot be used.
        """
        return await self._exchange(method, target, headers, body, limit, start, None)

    async def stream(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Buffer,
        sink: Sink,
    ) -> Response:
        """As `request`, for a body too long to be kept: a successful answer's goes to *sink*.

        The answer that is returned has no body then.  If the body is cut short, *sink* has had a
        part of it when this raises Unavailable.
        """
        return await self._exchange(method, target, headers, body, 0, 0, sink)

    async def _exchange(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Buffer,
        limit: int,
        start: int,
        sink: Sink | None,
    ) -> Response:
        async with self._slots:
            self.requests += 1
            try:
                request = self._request(method, target, headers, body)
                answer = await self._transport.send(request)
                self.sent += len(body)
                try:
                    return await self._read(request, answer, limit, start, sink)
                finally:
                    # httpcore shields its own closing; a lost network must not hold us either.
                    with trio.move_on_after(5, shield=True):
                        await answer.aclose()
            except StoreError as exc:
                self.failures += 1
                self.last_error = str(exc)
                raise

    def details(self) -> dict[str, Any]:
        """What `status` says of it, for `Health.details`."""
        return {
            "endpoint": self.host,
            "requests": self.requests,
            "failures": self.failures,
            "sent_bytes": self.sent,
            "received_bytes": self.received,
            "connections": self.connections,
            "clock_skew_seconds": round(self.skew or 0.0, 1),
        }

    async def aclose(self) -> None:
        """Close every connection."""
        with trio.move_on_after(5, shield=True):
            await self._transport.aclose()

    def _request(
        self, method: str, target: str, headers: Mapping[str, str], body: Buffer
    ) -> Request:
        lines = [(b"host", self.host.encode("ascii"))]
        try:
            quoted = target.encode("ascii")
            for name, value in headers.items():
                if name != "host":
                    lines.append((name.encode("ascii"), value.encode("ascii")))
        except UnicodeEncodeError:
            raise unsendable(f"{method} {self.host}") from None
        lines.append((b"user-agent", _AGENT))
        lines.append((b"accept-encoding", b"identity"))
        if len(body) or method in ("PUT", "POST"):
            lines.append((b"content-length", b"%d" % len(body)))
        if not _TARGET.match(quoted) or any(_BREAK.search(value) for _, value in lines):
            raise unsendable(f"{method} {self.host}")
        return Request(method, self.host, quoted, lines, memoryview(body).cast("B"))

    async def _read(
        self, request: Request, answer: Answer, limit: int, start: int, sink: Sink | None
    ) -> Response:
        status = answer.status
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in answer.headers}
        if status == 401:  # one line for each way to log in, or one for all
            asked = [v for k, v in answer.headers if k == b"www-authenticate"]
            headers["www-authenticate"] = b", ".join(asked).decode("latin-1")
        self._note_date(headers.get("date", ""))
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise BadStore(
                f"{self.host} answers with content-encoding {headers['content-encoding'][:40]!r}"
                " although none was asked for; is a proxy compressing?"
            )
        if request.method == "HEAD" or status in (204, 304):
            return Response(status, headers, b"")
        if "content-length" not in headers and "transfer-encoding" not in headers:
            raise Unavailable(
                f"{self.host} does not say where its answer ends", maybe_done=request.may_change
            )
        if sink is not None and 200 <= status < 300:

            async def counted(piece: bytes) -> None:
                self.received += len(piece)
                await sink(piece)

            await answer.pour(counted)
            return Response(status, headers, b"")
        skip = start if status == 200 else 0
        if not 200 <= status < 300:
            limit = ERROR_LIMIT
        body, more = await answer.body(limit, skip)
        self.received += len(body)
        return Response(status, headers, body, more)

    def _note_date(self, date: str) -> None:
        if date != self._date:  # it changes once a second, and reading it takes 20 microseconds
            try:
                self._server_time = parsedate_to_datetime(date).timestamp()
            except (ValueError, OverflowError):
                return
            self._date = date
        self.skew = self._server_time - clock.now()


def open_transport(
    origin: Origin,
    connections: int,
    timeouts: Timeouts,
    ca: Path | None,
    client: ClientCertificate | None = None,
) -> Transport:
    """Return the transport for *origin*: our own, unless the environment names a proxy."""
    context = client_context(ca, client) if origin.secure else None
    proxy = proxy_for(origin)
    if proxy is None:
        return DirectTransport(origin, timeouts, context)
    # Only here: it takes a tenth of a second to import.
    from megafs.stores.http.httpx_transport import HttpxTransport

    return HttpxTransport(origin, connections, timeouts, context, proxy)


def _origin_of(base: str) -> tuple[Origin, str]:
    """Return the server that *base* names, and its path; BadStore if it cannot be one."""
    try:
        parts = urlsplit(base)
        host, port = parts.hostname or "", parts.port
    except ValueError as exc:
        raise BadStore(f"not a URL: {base!r}") from exc
    if parts.username is not None or parts.query or parts.fragment:
        raise BadStore("a store's address has no user, query or fragment in it")
    if parts.scheme not in ("http", "https") or not _HOST.match(host):
        raise BadStore(f"not an http:// or https:// URL: {base!r}")
    secure = parts.scheme == "https"
    return Origin(secure, host, port or (443 if secure else 80)), unquote(parts.path)
