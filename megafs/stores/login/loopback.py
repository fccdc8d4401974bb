"""The end of a login in the browser: a server on loopback that waits for one redirect (RFC 8252).

It listens on 127.0.0.1 alone, on a port of its own, for as long as the login lasts.  Whatever else
arrives there is answered and changes nothing: another program of this machine can neither end the
login nor put a code of its own in, since it does not know the state; a page on the web that has its
name resolved to 127.0.0.1 sends that name as Host.  Nothing of a request is logged.

The browser is opened at an address of ours that redirects once to the service's page: the command
line of a browser shows in `ps`, and the page's address has the state in it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import trio

from megafs import clock
from megafs.concurrency import one_error_nursery
from megafs.errors import BadUsage, Denied

_HEAD_LIMIT = 16 << 10
#: Seconds in which a connection must have sent its request.
_PATIENCE = 10.0
#: Connections at once: a browser opens some ahead.
_AT_ONCE = 16
#: Seconds that the browser has to get its last page.
_LAST_PAGE = 1.0
_ERROR = re.compile(r"[a-z_]{1,64}\Z")

_PAGE = (
    "<!doctype html><meta charset=utf-8><title>megafs</title>"
    "<style>body{{font:1.2em sans-serif;margin:15vh auto;max-width:30em}}</style><p>{}</p>"
)


class Redirect:
    """One login's redirect.

    redirect_uri: where the browser comes back to.  state: what it must bring.
    start: an address that leads to the service's page, once; "" before `lead_to`.
    """

    def __init__(self, port: int, state: str) -> None:
        self._port = port
        self._state = state
        self._start_path = f"/go/{clock.random_bytes(16).hex()}"
        self._page = ""
        self._code = ""
        self._error = ""
        self._came = trio.Event()
        self._shown = trio.Event()

    @property
    def redirect_uri(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    def lead_to(self, page: str) -> str:
        """Redirect to *page* whoever asks first; return the address to ask."""
        self._page = page
        return f"http://127.0.0.1:{self._port}{self._start_path}"

    async def code(self) -> str:
        """Wait for the code.  Denied if the service, or its user there, said no."""
        await self._came.wait()
        if self._error:
            raise Denied(f"the service did not allow the login ({self._error})")
        return self._code

    async def last_page(self) -> None:
        """Wait until the browser has its last page, if it was sent there."""
        if self._came.is_set():
            await self._shown.wait()

    async def _client(self, stream: trio.SocketStream) -> None:
        try:
            with trio.move_on_after(_PATIENCE):
                head = await _head(stream)
                if head is not None:
                    await stream.send_all(self._answer(head))
                    if head.startswith(b"GET /done "):
                        self._shown.set()
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass
        finally:
            with trio.move_on_after(1, shield=True):
                await stream.aclose()

    def _answer(self, head: bytes) -> bytes:
        lines = head.decode("latin-1").split("\r\n")
        method, _, rest = lines[0].partition(" ")
        target = rest.rpartition(" ")[0]
        hosts = [
            v.strip() for k, _, v in (x.partition(":") for x in lines[1:]) if k.lower() == "host"
        ]
        if hosts != [f"127.0.0.1:{self._port}"]:
            return _response("421 Misdirected Request", "This is not the address of a login.")
        if method != "GET":
            return _response("405 Method Not Allowed", "This is not how a login ends.")
        path, query = _split(target)
        if self._page and hmac.compare_digest(path.encode(), self._start_path.encode()):
            page, self._page = self._page, ""
            return _response("302 Found", "", f"Location: {page}\r\n")
        if path == "/done":
            return _response("200 OK", "You can close this page and go back to megafs.")
        state = query.get("state", [""])
        right = len(state) == 1 and hmac.compare_digest(state[0].encode(), self._state.encode())
        if path != "/" or not right or self._came.is_set():
            return _response("400 Bad Request", "This login is not the one that megafs waits for.")
        codes, errors = query.get("code", []), query.get("error", [])
        if errors:
            self._error = errors[0] if _ERROR.match(errors[0]) else "no reason given"
        elif len(codes) == 1 and codes[0]:
            self._code = codes[0]
        else:
            return _response("400 Bad Request", "The service sent no code.")
        self._came.set()
        # The code must not stay in the browser's history, nor go on as a referrer.
        return _response("303 See Other", "", "Location: /done\r\n")


@asynccontextmanager
async def listening(state: str, port: int = 0) -> AsyncIterator[Redirect]:
    """Wait for a redirect with this *state* for the block.  BadUsage if the port is taken."""
    try:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    except OSError as exc:
        raise BadUsage(
            f"port {port} of this machine, to which the service sends the browser back, cannot be"
            f" had ({exc.strerror}): end what uses it, or use --paste"
        ) from exc
    redirect = Redirect(listeners[0].socket.getsockname()[1], state)
    slots = trio.CapacityLimiter(_AT_ONCE)

    async def client(stream: trio.SocketStream) -> None:
        async with slots:
            await redirect._client(stream)

    async with one_error_nursery() as nursery:
        await nursery.start(trio.serve_listeners, client, listeners)
        yield redirect
        with trio.move_on_after(_LAST_PAGE):
            await redirect.last_page()
        nursery.cancel_scope.cancel()


async def _head(stream: trio.SocketStream) -> bytes | None:
    data = bytearray()
    while b"\r\n\r\n" not in data:
        if len(data) > _HEAD_LIMIT:
            return None
        part = await stream.receive_some(4096)
        if not part:
            return None
        data += part
    return bytes(data.partition(b"\r\n\r\n")[0])


def _split(target: str) -> tuple[str, dict[str, list[str]]]:
    try:
        parts = urlsplit(target)
        return parts.path, parse_qs(parts.query, max_num_fields=32)
    except ValueError:
        return "", {}


def _response(status: str, text: str, headers: str = "") -> bytes:
    body = _PAGE.format(text).encode() if text else b""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\nCache-Control: no-store\r\n"
        "Referrer-Policy: no-referrer\r\n"
        "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n"
        f"{headers}\r\n"
    )
    return head.encode("latin-1") + body
