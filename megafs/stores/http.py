"""Ask an HTTP server.

A `Session` talks to one origin.  It has a pool of connections, and lets no more requests out than
the pool has room for: httpcore loses the connections of requests that are cancelled while they
queue for it, so nobody ever queues there.  Nothing foreign leaves this module: whatever httpx, TLS
or the network raise becomes an error of megafs.errors, and no text holds a header or a query.

Every body is bounded by the caller, whatever the server sends, and read as it is on the wire: we
ask for no content encoding and refuse one that comes anyway.  A body cut short is Unavailable.

Requests go to a `Transport`: our own (over stores/wire.py), or where a proxy is between, httpx's
(stores/proxied.py, docs/decisions/0004-transport.md).  Proxies come from the environment
(https_proxy, http_proxy, all_proxy, no_proxy).
"""

from __future__ import annotations

import importlib
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import trio
from msgspec import Struct

from megafs import __version__, clock
from megafs.errors import BadStore, StoreError, Unavailable
from megafs.lean import lean
from megafs.stores import limit as limits
from megafs.stores import wire
from megafs.stores.base import Buffer

E = TypeVar("E", bound=BaseException)

#: Of an answer that is not a success, no more than this is read.
ERROR_LIMIT = 64 << 10

# A name or an address of either kind.
_HOST = re.compile(r"([A-Za-z0-9._-]+|[0-9A-Fa-f:.]+)\Z")

# Seconds after which a connection nobody used is closed; servers do so after 20 to 65.
IDLE = 20.0

_TARGET = re.compile(rb"[!-~]+\Z")
_DATE = re.compile(
    r"[A-Z][a-z]{2}, (\d\d) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT\Z", re.ASCII
)
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_BREAK = re.compile(rb"[\x00\r\n]")

# What comes as it is, by experience, where it should have been `Failed`.
_FOREIGN = (OSError, EOFError, trio.BrokenResourceError, trio.ClosedResourceError)

# A laptop that wakes in another network has connections nobody answers on: the kernel finds out
# after 10 + 3*5 s of silence instead of two hours, and gives up on unacknowledged data after 30.
SOCKET_OPTIONS = [
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


class Origin(Struct, frozen=True):
    """Where requests go.  path: in front of every target, unquoted, without a slash at its end."""

    secure: bool
    host: str
    port: int | None  # if it is not the usual one
    path: str

    @property
    def netloc(self) -> str:
        """As it is written in a URL and in the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def scheme(self) -> str:
        return "https" if self.secure else "http"


class Failed(Exception):
    """There is no answer, or not all of it.  Its text is the reason, for people.

    sent: whether the server may have seen the request.  lost: it is the network or the server,
    and not that we lost patience.
    """

    def __init__(self, reason: str, *, sent: bool = True, lost: bool = False) -> None:
        super().__init__(reason)
        self.sent = sent
        self.lost = lost


class Unsendable(Exception):
    """A header or a target that breaks its line."""


class Answer(Protocol):
    """What a transport received.  To be closed."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> wire.Headers: ...

    async def read(self, limit: int, skip: int) -> tuple[bytes, bool]:
        """At most *limit* bytes of the body after the first *skip*, and whether there are more;
        once."""

    async def aclose(self) -> None:
        """Give the connection back, or close it if the body was not read to its end."""


class Transport(Protocol):
    """Carries requests to one origin; raises Failed, Unsendable or OSError."""

    async def ask(
        self, method: str, target: bytes, headers: wire.Headers, body: memoryview
    ) -> Answer: ...

    async def aclose(self) -> None: ...


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
    transport: takes the place of our own.
    """

    def __init__(
        self,
        base: str,
        *,
        connections: int = 16,
        timeouts: Timeouts | None = None,
        ca: Path | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._origin = _origin(base)
        self.secure = self._origin.secure
        #: The value of the Host header, and what error texts call the server.
        self.host = self._origin.netloc
        self.connections = connections
        self._slots = trio.CapacityLimiter(connections)
        times = timeouts or Timeouts()
        self._transport = transport or _transport(self._origin, connections, times, ca)
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
        return self._origin.path

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
        if len(body) or method in ("PUT", "POST"):
            lines["content-length"] = str(len(body))
        try:
            encoded = [(name.encode("ascii"), line.encode("ascii")) for name, line in lines.items()]
            wanted = target.encode("ascii")
        except UnicodeEncodeError:
            raise Unsendable from None
        if not _TARGET.match(wanted) or any(_BREAK.search(line) for _, line in encoded):
            raise Unsendable
        view = memoryview(body).cast("B")
        answer = await self._transport.ask(method, wanted, encoded, view)
        self._trusted = True
        self.sent += len(body)
        try:
            return await self._read(method, answer, limit, start)
        finally:
            # httpcore shields its own closing; a lost network must not hold us either.
            with trio.move_on_after(5, shield=True):
                await answer.aclose()

    async def _read(self, method: str, answer: Answer, limit: int, start: int) -> Reply:
        status = answer.status
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in answer.headers}
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
        body, more = await answer.read(limit, skip)
        self.received += len(body)
        return Reply(status, headers, body, more)

    def _note_date(self, date: str) -> None:
        if date != self._date:  # it changes once a second, and reading it takes 20 microseconds
            moment = seconds_of(date)
            if moment is None:
                return
            self._server_time = moment
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
        except Unsendable:
            # What it was may be the signature: not even as a cause.
            what = _what(method, self.host, target)
            raise BadStore(f"{what}: cannot be put into a request") from None
        except (Failed, *_FOREIGN) as exc:
            if not self._trusted and (untrusted := _find(exc, ssl.SSLCertVerificationError)):
                raise BadStore(
                    f"{self.host} is not trusted: {untrusted.verify_message}; for a private"
                    " certificate authority give its file with the option ca="
                ) from exc
            sent = exc.sent if isinstance(exc, Failed) else True
            raise Unavailable(
                f"{_what(method, self.host, target)}: {reason(exc)}",
                maybe_done=sent and method not in ("GET", "HEAD"),
            ) from exc


def seconds_of(date: str) -> float | None:
    """Seconds since 1970 of a date as HTTP writes it (RFC 9110, 5.6.7); None if it is none."""
    if not date:
        return None
    try:
        if (match := _DATE.match(date)) is not None:
            day, year, hour, minute, second = map(int, match.group(1, 3, 4, 5, 6))
            month = _MONTHS.index(match[2]) + 1
            return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
        # An obsolete form, which nobody sends.  email takes 5 ms to import.
        from email.utils import parsedate_to_datetime

        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


def _what(method: str, host: str, target: str) -> str:
    return f"{method} {host}{target.partition('?')[0]}"


def reason(exc: Exception) -> str:
    """What *exc* says, in a few words, for people."""
    if isinstance(exc, Failed):
        return str(exc)
    return (_system_error(exc) or str(exc) or type(exc).__name__)[:200]


class _Direct:
    """Connections of our own to one origin; as many as there are requests at once."""

    def __init__(self, origin: Origin, times: Timeouts, context: ssl.SSLContext | None) -> None:
        self._host = origin.host
        self._port = origin.port or (443 if origin.secure else 80)
        self._times = times
        self._context = context
        self._idle: list[wire.Connection] = []
        self._closed = False

    async def ask(
        self, method: str, target: bytes, headers: wire.Headers, body: memoryview
    ) -> Answer:
        verb = method.encode("ascii")
        times = self._times
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
                with _failing(f"nothing accepted for {times.write:g} s"):
                    await connection.send(verb, target, headers, body)
                with _failing(f"nothing received for {times.read:g} s"):
                    head = await connection.head(verb)
            except Failed as exc:
                connection.close()
                # The server may have closed an idle connection as we took it: then nobody has
                # seen the request.  Only reading may be done twice without a thought.
                if fresh or not exc.lost or method not in ("GET", "HEAD"):
                    raise
            except BaseException:
                connection.close()
                raise
            else:
                return _Received(self, connection, head, times)

    async def aclose(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def give_back(self, connection: wire.Connection) -> None:
        """Take a connection that may be used again."""
        if self._closed:
            connection.close()
            return
        connection.moved = wire.untold
        now = connection.idle_since = trio.current_time()
        self._idle.append(connection)
        while now - self._idle[0].idle_since > IDLE:
            self._idle.pop(0).close()

    def _take(self) -> wire.Connection | None:
        now = trio.current_time()
        while self._idle:
            connection = self._idle.pop()  # the newest: the others may grow old and go
            if now - connection.idle_since <= IDLE and connection.is_quiet():
                return connection
            connection.close()
        return None

    async def _open(self) -> wire.Connection:
        times = self._times
        late = f"no connection within {times.connect:g} s"
        with _failing(late, "cannot connect: ", sent=False):
            return await wire.Connection.open(
                self._host,
                self._port,
                self._context,
                SOCKET_OPTIONS,
                connect=times.connect,
                read=times.read,
                write=times.write,
            )


class _Received:
    """An answer, its body still on its connection."""

    def __init__(
        self, pool: _Direct, connection: wire.Connection, head: wire.Head, times: Timeouts
    ) -> None:
        self.status = head.status
        self.headers = head.headers
        self._pool = pool
        self._connection = connection
        self._head = head
        self._late = f"nothing received for {times.read:g} s"
        self._at_end = head.length == 0

    async def read(self, limit: int, skip: int) -> tuple[bytes, bool]:
        with _failing(self._late):
            body, more = await self._connection.body(self._head, limit, skip)
        self._at_end = not more
        return body, more

    async def aclose(self) -> None:
        if self._at_end and self._head.reusable:
            self._pool.give_back(self._connection)
        else:
            self._connection.close()


@contextmanager
def _failing(late: str, what: str = "", *, sent: bool = True) -> Iterator[None]:
    """Turn what wire raises into Failed.  late: its text if it took too long."""
    try:
        yield
    except trio.TooSlowError as exc:
        raise Failed(late, sent=sent) from exc
    except (wire.Garbled, OSError) as exc:
        raise Failed(what + reason(exc), sent=sent, lost=True) from exc


def preload() -> None:
    """Import what a session will need: httpx, if there is a proxy."""
    if _has_proxies():
        with lean():
            importlib.import_module("megafs.stores.proxied")


def _origin(base: str) -> Origin:
    try:
        if not base.isprintable():  # urlsplit leaves out what is not
            raise ValueError
        parts = urlsplit(base)
        host, port = parts.hostname or "", parts.port
    except ValueError as exc:
        raise BadStore(f"not a URL: {base!r}") from exc
    if parts.scheme not in ("http", "https") or not _HOST.match(host):
        raise BadStore(f"not an http:// or https:// URL: {base!r}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise BadStore("a store's address has no user, query or fragment in it")
    secure = parts.scheme == "https"
    usual = port in (None, 443 if secure else 80)
    return Origin(secure, host, None if usual else port, unquote(parts.path).rstrip("/"))


def _transport(origin: Origin, connections: int, times: Timeouts, ca: Path | None) -> Transport:
    context = _tls(ca) if origin.secure else None
    if _has_proxies():
        with lean():
            from megafs.stores import proxied

        if (proxy := proxied.proxy_for(origin)) is not None:
            return proxied.Proxied(origin, connections, times, context, proxy)
    return _direct(origin, times, context)


def _direct(origin: Origin, times: Timeouts, context: ssl.SSLContext | None) -> Transport:
    return _Direct(origin, times, context)


def _has_proxies() -> bool:
    """Whether the environment names any, for whatever."""
    return any(value and name.lower().endswith("_proxy") for name, value in os.environ.items())


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
    if system:  # what its administrator trusts
        return ssl.create_default_context()
    import certifi  # a bare container has none

    return ssl.create_default_context(cafile=certifi.where())


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
