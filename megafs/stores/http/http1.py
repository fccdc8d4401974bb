"""HTTP/1.1 on one connection: heads as text, bodies straight between the socket and a buffer.

httpx's own path gives a body away in pieces of 64 KiB through nine generators, which costs more
than decrypting it (docs/decisions/0004-transport.md).  Here a body of known length is received into
place, a small one into a buffer that the connection keeps.

Strict in what it takes (RFC 9112): a head of at most 64 KiB, without folded lines; a length that is
said once; "chunked" as the only transfer coding.  What is not understood is `Garbled`, and then, as
after any other failure or a cancellation, the connection is closed, which needs no waiting.

Knows nothing of httpx, URLs or errors of megafs: raises OSError (ssl.SSLError is one),
trio.TooSlowError and Garbled.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Sequence
from io import BytesIO

import trio
from msgspec import Struct

from megafs.buffers import aligned
from megafs.stores.http.tls import Tls
from megafs.stores.http.transport import Headers, Sink

_HEAD_LIMIT = 64 << 10
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n]*)?\Z")
# A field's name and its value, without the white space around it.
_FIELD = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[^\x00\r\n]*[^\x00\r\n \t])?)[ \t]*\Z"
)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\Z")

# How an alert and a handshake of TLS begin.
_TLS_RECORDS = (b"\x15\x03", b"\x16\x03")

# The buffer of a connection, for heads and small bodies; larger ones are received where they stay.
# malloc keeps such memory (mount/daemon.py, `harden`): in a fresh mapping page faults would cost as
# much as deciphering.
_BUFFER = 256 << 10
_DIRECT = 64 << 10
# Bytes between two turns of the event loop.
_TURN = 1 << 20

# What is handed to the socket, or to TLS, at a time.
_PIECE = 256 << 10
# Up to here a copy is cheaper than a second packet.
_TOGETHER = 32 << 10


class Garbled(Exception):
    """The answer is not HTTP as we know it, or ends too early."""


class HungUp(Garbled):
    """The connection was closed without a word."""


class AnswersInTls(Garbled):
    """A request in plain HTTP was answered with a record of TLS: an alert or a handshake."""


class Head(Struct, frozen=True):
    """The beginning of an answer.

    length: of the body in bytes; None if it is chunked, or ends with the connection (`open_ended`).
    """

    status: int
    headers: Headers
    length: int | None
    open_ended: bool
    reusable: bool


class Connection:
    """A connection to a server, over which one request at a time is made."""

    def __init__(self, sock: socket.socket, tls: Tls | None, *, read: float, write: float) -> None:
        self._sock = sock
        self._tls = tls
        self._read_timeout = read
        self._write_timeout = write
        self._buffer = aligned(64 << 10)
        self._view = memoryview(self._buffer)
        self._at = self._end = 0  # what has been received and not yet used: buffer[at:end]
        self.idle_since = 0.0
        #: Told of every byte that comes or goes.
        self.moved: Callable[[int], None] = ignore

    # The life of a connection

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        context: ssl.SSLContext | None,
        options: Sequence[tuple[int, int, int]] = (),
        *,
        connect: float,
        read: float,
        write: float,
    ) -> Connection:
        """Connect, and shake hands if there is a *context*, within *connect* seconds."""
        with trio.fail_after(connect):
            stream = await trio.open_tcp_stream(host, port)
            sock = socket.socket(fileno=stream.socket.detach())
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for option in options:
                    sock.setsockopt(*option)
                tls = Tls(context, host) if context else None
                made = cls(sock, tls, read=read, write=write)
                if tls:
                    await made._shake_hands(tls)
            except BaseException:
                sock.close()
                raise
        return made

    def close(self) -> None:
        """Close at once; may be called again."""
        self._sock.close()

    def is_quiet(self) -> bool:
        """Whether the server has neither closed nor said anything unasked."""
        if self._at != self._end:
            return False
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    # A request

    async def send(self, method: bytes, target: bytes, headers: Headers, body: memoryview) -> None:
        """Send a request.  The caller has seen to it that nothing in it breaks a line."""
        lines = [method + b" " + target + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in headers]
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        try:
            if len(body) <= _TOGETHER:
                await self._send(memoryview(head + body))
                return
            await self._send(memoryview(head))
            for at in range(0, len(body), _PIECE):
                await self._send(body[at : at + _PIECE])
        except (BrokenPipeError, ConnectionResetError):
            # A server may answer and close before it has the whole body: its answer is worth more
            # than our error, and if there is none, receiving it will say so.
            pass

    async def head(self, method: bytes) -> Head:
        """Receive the head of the answer to a request of that *method*."""
        for _ in range(10):
            head = _parse(await self._until(b"\r\n\r\n", _HEAD_LIMIT), method)
            if head.status >= 200:
                return head
        raise Garbled("only interim answers")

    async def body(self, head: Head, limit: int, skip: int = 0) -> tuple[bytes, bool]:
        """Receive a body: at most *limit* bytes after the first *skip*, and whether it goes on."""
        if head.length is None:
            if head.open_ended:
                raise Garbled("the length of the answer is not said")
            return await self._chunked(limit, skip)
        await self._drop(min(skip, head.length))
        left = max(head.length - skip, 0)
        return await self._exactly(min(left, limit)), left > limit

    async def pour(self, head: Head, sink: Sink) -> None:
        """Receive a whole body of any length, and hand it to *sink* piece by piece."""
        if head.length is not None:
            await self._pour(head.length, sink)
            return
        if head.open_ended:
            raise Garbled("the length of the answer is not said")
        while size := await self._chunk_size():
            await self._pour(size, sink)
            await self._chunk_ends()
        await self._trailers()

    async def _pour(self, left: int, sink: Sink) -> None:
        while left:
            piece = await self._exactly(min(left, _PIECE))
            left -= len(piece)
            await sink(piece)

    # Framing

    async def _until(self, mark: bytes, limit: int) -> bytes:
        """Take what comes before *mark*, and the mark away."""
        searched = 0
        while True:
            found = self._buffer.find(mark, self._at + searched, self._end)
            if found >= 0:
                taken = bytes(self._view[self._at : found])
                self._at = found + len(mark)
                return taken
            held = self._end - self._at
            searched = max(0, held - len(mark) + 1)
            if held >= limit:
                raise Garbled("a head without an end")
            await self._fill()

    async def _exactly(self, size: int) -> bytes:
        """Take *size* bytes."""
        if size > _DIRECT:
            return await self._exactly_here(size)
        held = self._end - self._at
        if held < size:
            self._make_room(size)
            while self._end < size:
                got = await self._receive(self._view[self._end :])
                if not got:
                    raise Garbled("the answer is cut short")
                self._end += got
        taken = bytes(self._view[self._at : self._at + size])
        self._at += size
        return taken

    async def _exactly_here(self, size: int) -> bytes:
        """As `_exactly`, received where the result lies."""
        # getvalue() gives the very bytes that getbuffer() let us fill.
        body = BytesIO(bytes(size))
        with body.getbuffer() as view:
            held = min(size, self._end - self._at)
            view[:held] = self._view[self._at : self._at + held]
            self._at += held
            turn = 0
            while held < size:
                got = await self._receive(view[held:])
                if not got:
                    raise Garbled("the answer is cut short")
                held += got
                turn += got
                if turn > _TURN:
                    turn = 0
                    await trio.lowlevel.checkpoint()  # a fast server must not keep the loop
        return body.getvalue()

    async def _drop(self, size: int) -> None:
        while size > 0:
            if self._at == self._end:
                await self._fill()
            dropped = min(size, self._end - self._at)
            self._at += dropped
            size -= dropped
            await trio.lowlevel.checkpoint()

    async def _chunked(self, limit: int, skip: int) -> tuple[bytes, bool]:
        parts: list[bytes] = []
        while True:
            size = await self._chunk_size()
            if not size:
                await self._trailers()
                return b"".join(parts), False
            dropped = min(skip, size)
            await self._drop(dropped)
            skip -= dropped
            part = await self._exactly(min(size - dropped, limit))
            parts.append(part)
            limit -= len(part)
            if dropped + len(part) < size:
                return b"".join(parts), True
            await self._chunk_ends()

    async def _chunk_size(self) -> int:
        line = _CHUNK.match(await self._until(b"\r\n", 4096))
        if not line:
            raise Garbled("a chunk without a length")
        return int(line[1], 16)

    async def _chunk_ends(self) -> None:
        if await self._exactly(2) != b"\r\n":
            raise Garbled("a chunk that does not end")

    async def _trailers(self) -> None:
        for _ in range(100):
            if not await self._until(b"\r\n", 4096):
                return
        raise Garbled("trailers without an end")

    async def _fill(self) -> None:
        """Receive some more behind what is held."""
        self._make_room(self._end - self._at + 1)
        got = await self._receive(self._view[self._end :])
        if not got:
            if bytes(self._view[self._at : self._end][:2]) in _TLS_RECORDS:
                raise AnswersInTls("a record of TLS in place of an answer")
            if self._end == self._at:
                raise HungUp("the connection was closed before the answer")
            raise Garbled("the answer is cut short")
        self._end += got

    def _make_room(self, size: int) -> None:
        """Move what is held to the front of a buffer that has room for *size* bytes in all."""
        held = self._end - self._at
        if size > len(self._buffer):
            larger = aligned(min(_BUFFER, max(size, 2 * len(self._buffer))))
            larger[:held] = self._view[self._at : self._end]
            self._view.release()
            self._buffer = larger
            self._view = memoryview(larger)
        elif self._at:
            self._view[:held] = self._view[self._at : self._end]
        self._at, self._end = 0, held

    # Bytes

    async def _receive(self, view: memoryview) -> int:
        if self._tls:
            return await self._receive_tls(self._tls, view)
        return await self._receive_raw(view)

    async def _receive_raw(self, view: memoryview) -> int:
        while True:
            try:
                got = self._sock.recv_into(view)
            except BlockingIOError:
                pass
            else:
                self.moved(got)
                return got
            with trio.fail_after(self._read_timeout):
                await trio.lowlevel.wait_readable(self._sock)

    async def _receive_tls(self, tls: Tls, view: memoryview) -> int:
        while True:
            got = tls.read(view)
            if got is not None:
                return got
            await self._feed(tls)

    async def _feed(self, tls: Tls) -> None:
        await self._flush(tls)
        got = await self._receive_raw(tls.scratch)
        tls.feed(got)

    async def _send(self, view: memoryview) -> None:
        if self._tls:
            self._tls.write(view)
            await self._flush(self._tls)
        else:
            await self._send_raw(view)

    async def _flush(self, tls: Tls) -> None:
        if sealed := tls.pending():
            await self._send_raw(memoryview(sealed))

    async def _send_raw(self, view: memoryview) -> None:
        while view:
            try:
                sent = self._sock.send(view)
            except BlockingIOError:
                with trio.fail_after(self._write_timeout):
                    await trio.lowlevel.wait_writable(self._sock)
            else:
                self.moved(sent)
                view = view[sent:]

    async def _shake_hands(self, tls: Tls) -> None:
        while not tls.shake_hands():
            await self._feed(tls)
        await self._flush(tls)


def ignore(size: int) -> None:
    """Whom nobody asked to count."""


def _parse(text: bytes, method: bytes) -> Head:
    first, *lines = text.split(b"\r\n")
    status_line = _STATUS.match(first)
    if not status_line:
        raise Garbled("not an answer of HTTP/1.1")
    status = int(status_line[2])
    headers: Headers = []
    length: int | None = None
    coding = b""
    reusable = status_line[1] == b"1"
    for line in lines:
        field = _FIELD.match(line)
        if not field:
            raise Garbled("a header that is none")
        name, value = field[1].lower(), field[2]
        headers.append((name, value))
        if name == b"content-length":
            if not re.fullmatch(rb"[0-9]{1,18}", value) or length not in (None, int(value)):
                raise Garbled("a length that is none")
            length = int(value)
        elif name == b"transfer-encoding":
            coding = coding + b"," + value if coding else value
        elif name == b"connection" and b"close" in value.lower():
            reusable = False
    if coding and (coding.lower() != b"chunked" or length is not None):
        raise Garbled("an unknown transfer coding")
    if method == b"HEAD" or status in (204, 304) or status < 200:
        return Head(status, headers, 0, False, reusable)
    open_ended = not coding and length is None
    return Head(status, headers, length, open_ended, reusable and not open_ended)
