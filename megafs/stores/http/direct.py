"""Requests over connections of our own (http1.py), without a proxy."""

from __future__ import annotations

import socket
import ssl

import trio

from megafs.stores import limit as limits
from megafs.stores.http import http1
from megafs.stores.http.errors import RequestStep, failure
from megafs.stores.http.transport import IDLE, Headers, Origin, Request, Sink, Timeouts

# A laptop that wakes in another network has connections nobody answers on: the kernel finds out
# after 10 + 3*5 s of silence instead of two hours, and gives up on unacknowledged data after 30.
SOCKET_OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
]

# What http1 raises (ssl.SSLError is an OSError), and trio when a socket is closed under a task.
_FOREIGN = (OSError, http1.Garbled, trio.TooSlowError, trio.ClosedResourceError)


class DirectTransport:
    """As many connections to *origin* as there are requests at once.

    context: for TLS; None for none.
    """

    def __init__(self, origin: Origin, timeouts: Timeouts, context: ssl.SSLContext | None) -> None:
        self._origin = origin
        self._timeouts = timeouts
        self._context = context
        self._idle: list[http1.Connection] = []
        self._closed = False
        self._trusted = False

    async def send(self, request: Request) -> DirectAnswer:
        """Send a request and receive the head of the answer.

        A server may close an idle connection just as it is taken: then it has not seen the request.
        Only a request that changes nothing is sent once more.
        """
        timing = limits.attempt.get()
        if timing is not None:
            timing.count()
        method = request.method.encode("ascii")
        while True:
            step = RequestStep.CONNECTING
            connection = self._take()
            fresh = connection is None
            try:
                if connection is None:
                    connection = await self._open()
                if timing is not None:
                    connection.moved = timing.moved
                step = RequestStep.SENDING
                await connection.send(method, request.target, request.headers, request.body)
                step = RequestStep.RECEIVING
                head = await connection.head(method)
            except _FOREIGN as exc:
                if connection is not None:
                    connection.close()
                late = isinstance(exc, trio.TooSlowError)
                if fresh or late or request.may_change:
                    raise self.failure(request, step, exc) from exc
            except BaseException:
                if connection is not None:
                    connection.close()
                raise
            else:
                self._trusted = True
                return DirectAnswer(self, request, connection, head)

    async def aclose(self) -> None:
        """Close every connection."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def failure(self, request: Request, step: RequestStep, exc: Exception) -> Exception:
        """Return the error of megafs that *exc* is."""
        late = isinstance(exc, trio.TooSlowError)
        return failure(
            request,
            step,
            exc,
            self._timeouts,
            late=late,
            trusted=self._trusted,
            secure=self._context is not None,
        )

    def give_back(self, connection: http1.Connection) -> None:
        """Take a connection that may be used again."""
        if self._closed:
            connection.close()
            return
        connection.moved = http1.ignore
        now = connection.idle_since = trio.current_time()
        self._idle.append(connection)
        while now - self._idle[0].idle_since > IDLE:
            self._idle.pop(0).close()

    def _take(self) -> http1.Connection | None:
        now = trio.current_time()
        while self._idle:
            connection = self._idle.pop()  # the newest: the others may grow old and go
            if now - connection.idle_since <= IDLE and connection.is_quiet():
                return connection
            connection.close()
        return None

    async def _open(self) -> http1.Connection:
        return await http1.Connection.open(
            self._origin.host,
            self._origin.port,
            self._context,
            SOCKET_OPTIONS,
            connect=self._timeouts.connect,
            read=self._timeouts.read,
            write=self._timeouts.write,
        )


class DirectAnswer:
    """An answer whose body is still on its connection."""

    __slots__ = ("_at_end", "_connection", "_head", "_request", "_transport", "headers", "status")

    def __init__(
        self,
        transport: DirectTransport,
        request: Request,
        connection: http1.Connection,
        head: http1.Head,
    ) -> None:
        self.status: int = head.status
        self.headers: Headers = head.headers
        self._transport = transport
        self._request = request
        self._connection = connection
        self._head = head
        self._at_end = head.length == 0

    async def body(self, limit: int, skip: int) -> tuple[bytes, bool]:
        """Receive at most *limit* bytes after the first *skip*, and say if there are more."""
        try:
            body, more = await self._connection.body(self._head, limit, skip)
        except _FOREIGN as exc:
            raise self._transport.failure(self._request, RequestStep.RECEIVING, exc) from exc
        self._at_end = not more
        return body, more

    async def pour(self, sink: Sink) -> None:
        """Receive the whole body and hand it to *sink*."""
        try:
            await self._connection.pour(self._head, sink)
        except _FOREIGN as exc:
            raise self._transport.failure(self._request, RequestStep.RECEIVING, exc) from exc
        self._at_end = True

    async def aclose(self) -> None:
        """Give the connection back, or close it if the body was not read to its end."""
        if self._at_end and self._head.reusable:
            self._transport.give_back(self._connection)
        else:
            self._connection.close()
