"""Fetch ranges of what a link names: from web servers without any credentials, or from a folder.

Nothing that a server answers is believed: bodies are bounded by what was asked for, and whoever
asked verifies them.  A link may name any server; it is asked with GET only, and told nothing but
the range.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from types import TracebackType
from urllib.parse import unquote, urljoin, urlsplit

import trio

from megafs.concurrency import offload
from megafs.errors import BadStore, Denied, Missing, StoreError, Unavailable
from megafs.stores.http.content_range import holds_range
from megafs.stores.http.retry_after import retry_after
from megafs.stores.http.session import Response, Session

#: Attempts for one range, and the seconds before the second; each further pause doubles.
ATTEMPTS = 6
_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_REDIRECTS = 4
_BODY = 64 << 10
#: Connections to one server.
CONNECTIONS = 6


class Fetcher:
    """Asks for ranges.  on_wait: called with a line for people before a pause."""

    def __init__(self, on_wait: Callable[[str], None] = lambda text: None) -> None:
        self._on_wait = on_wait
        self._sessions: dict[str, Session] = {}

    async def __aenter__(self) -> Fetcher:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for session in self._sessions.values():
            await session.aclose()

    async def get(self, url: str, start: int, length: int) -> bytes:
        """The bytes [start, start+length) at *url*, fewer only where they end there.

        Raises Missing if there is nothing, Denied if it is not given to us (any more), Unavailable
        if the server does not answer after several attempts.
        """
        if urlsplit(url).scheme == "file":
            return await offload(lambda: _read_file(url, start, length), kind="disk")
        pause = _PAUSE
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._get(url, start, length)
            except Unavailable as exc:
                if attempt == ATTEMPTS:
                    raise
                wait = min(max(pause, exc.retry_after or 0.0), _LONGEST_PAUSE)
                self._on_wait(f"{exc}; trying again in {wait:.0f} s")
            await trio.sleep(wait)
            pause *= 2
        raise AssertionError  # the last attempt returns or raises

    async def allows(self, url: str, origin: str) -> bool:
        """Whether a browser gives the page at *origin* a range of *url* (CORS)."""
        parts = urlsplit(url)
        session = self._session(f"{parts.scheme}://{parts.netloc}")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        asked = {
            "origin": origin,
            "access-control-request-method": "GET",
            "access-control-request-headers": "range",
        }
        before = await session.request("OPTIONS", target, asked, limit=_BODY)
        headers = {"origin": origin, "range": "bytes=0-0"}
        reply = await session.request("GET", target, headers, limit=_BODY)
        return (
            before.status in (200, 204)
            and "range" in before.headers.get("access-control-allow-headers", "").lower()
            and reply.status in (200, 206)
            and all(
                one.headers.get("access-control-allow-origin") in ("*", origin)
                for one in (before, reply)
            )
        )

    async def _get(self, url: str, start: int, length: int) -> bytes:
        end = start + max(length, 1)
        for _ in range(_REDIRECTS):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https"):
                raise BadStore("the link leads to an address that is neither http nor https")
            session = self._session(f"{parts.scheme}://{parts.netloc}")
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            reply = await session.request(
                "GET",
                target,
                {"range": f"bytes={start}-{end - 1}"},
                limit=end - start,
                start=start,
            )
            if reply.status in (301, 302, 303, 307, 308) and reply.headers.get("location"):
                url = urljoin(url, reply.headers["location"])
                continue
            return _body(reply, session.host, start, end)[:length]
        raise BadStore(f"{urlsplit(url).netloc} leads from one address to the next without an end")

    def _session(self, origin: str) -> Session:
        if origin not in self._sessions:
            self._sessions[origin] = Session(origin, connections=CONNECTIONS)
        return self._sessions[origin]


def _body(reply: Response, server: str, start: int, end: int) -> bytes:
    status = reply.status
    if status == 206:
        if not holds_range(reply, start, end):
            raise Unavailable(f"{server} sent another range than asked for")
        return reply.body
    if status == 200:
        return reply.body
    if status == 416:
        return b""
    if status in (404, 410):
        raise Missing(f"{server} has nothing there")
    if status in (400, 401, 403):  # S3 answers 400 to some signatures that have ended
        raise Denied(f"{server} does not give it out (HTTP {status})")
    if status == 408 or status == 429 or status >= 500:
        raise Unavailable(
            f"{server} answers HTTP {status}", retry_after=retry_after(reply), busy=True
        )
    raise StoreError(f"{server} answers HTTP {status}")


def _read_file(url: str, start: int, length: int) -> bytes:
    path = unquote(urlsplit(url).path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise Missing(f"{path} does not exist") from None
    except OSError as exc:
        raise Denied(f"{path}: {exc.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BadStore(f"{path} is not a file")
        return os.pread(fd, length, start)
    except OSError as exc:
        raise Unavailable(f"{path}: {exc.strerror}") from None
    finally:
        os.close(fd)
