"""The interface of a transport: one request, one answer.

Two transports do it: `direct.DirectTransport`, our own, and `httpx_transport.HttpxTransport`, which
knows every kind of proxy.  Both raise errors of megafs only, made by errors.py, and `BadStore` or
`Unavailable` among them say all that the session passes on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from msgspec import Struct

from megafs.errors import BadStore

#: Names in lower case, and values, in the order they are sent or came in.
Headers = list[tuple[bytes, bytes]]

#: Takes the pieces of a body in order.
Sink = Callable[[bytes], Awaitable[None]]

#: Seconds after which a connection nobody used is closed; servers do so after 20 to 65.
IDLE = 20.0


class Timeouts(Struct, frozen=True):
    """Seconds for one step: a connection, the next bytes of an answer, a piece of the body.

    A Ceph that loses a disk stalls requests for 2 to 21 s without an error, so reading is patient.
    How long a whole operation may take is decided above (stores/retry.py).
    """

    connect: float = 10.0
    read: float = 30.0
    write: float = 30.0

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Timeouts:
        """Those that the options connect_timeout and read_timeout of a store give; BadStore."""
        return cls(
            connect=_seconds(options, "connect_timeout", cls().connect),
            read=_seconds(options, "read_timeout", cls().read),
        )


def _seconds(options: Mapping[str, str], name: str, default: float) -> float:
    value = options.get(name)
    if value is None:
        return default
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise BadStore(f"{name}= takes seconds, more than 0 and at most 3600, not {value!r}")
    return seconds


class Origin(Struct, frozen=True):
    """A server: all that a session's requests go to.

    host: a name or an address, without brackets.
    """

    secure: bool
    host: str
    port: int

    @property
    def scheme(self) -> str:
        return "https" if self.secure else "http"

    @property
    def authority(self) -> str:
        """The value of the Host header: the port is left out if it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


class Request(Struct, frozen=True):
    """One request as it shall be sent.

    target: path and query, quoted.  Neither it nor a header breaks its line.
    headers: all of them, with the body's length.
    """

    method: str
    server: str
    target: bytes
    headers: Headers
    body: memoryview

    @property
    def text(self) -> str:
        """The request for error texts: without headers and query, which may hold secrets."""
        return f"{self.method} {self.server}{self.target.partition(b'?')[0].decode('ascii')}"

    @property
    def may_change(self) -> bool:
        """Whether carrying it out may have changed something."""
        return self.method not in ("GET", "HEAD", "PROPFIND")


class Answer(Protocol):
    """The answer to a request, of which the head has come."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Headers: ...

    async def body(self, limit: int, skip: int) -> tuple[bytes, bool]:
        """Receive at most *limit* bytes after the first *skip*, and say if there are more; once."""

    async def pour(self, sink: Sink) -> None:
        """Receive the whole body, however long it is, and hand it to *sink*; instead of `body`."""

    async def aclose(self) -> None:
        """Give the connection back, or close it if the body was not read to its end."""


class Transport(Protocol):
    """Connections to one origin."""

    async def send(self, request: Request) -> Answer:
        """Send a request and receive the head of the answer; the answer must be closed."""

    async def aclose(self) -> None:
        """Close every connection."""
