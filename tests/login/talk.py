"""Somebody at a terminal, with a browser or without."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import trio

from megafs.stores.http.session import Response, Session

Answerer = Callable[[list[str]], Awaitable[str]]


async def get(url: str, *, host: str = "", method: str = "GET") -> Response:
    """Ask for a page, as a browser that follows nothing."""
    parts = urlsplit(url)
    session = Session(f"{parts.scheme}://{parts.netloc}", connections=1)
    if host:
        session.host = host
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return await session.request(method, target, {}, limit=1 << 16)
    finally:
        await session.aclose()


async def browse(url: str) -> tuple[str, Response]:
    """Follow redirects to the end; return the last address and its page."""
    for _ in range(6):
        reply = await get(url)
        if reply.status not in (302, 303):
            return url, reply
        parts, to = urlsplit(url), reply.headers["location"]
        url = f"{parts.scheme}://{parts.netloc}{to}" if to.startswith("/") else to
    raise AssertionError("too many redirects")


class Person:
    """answers: what is typed, one after the other; or a function of what was said so far.

    browser: whether there is one: it opens what it is given and follows redirects.
    """

    def __init__(
        self,
        *answers: str | Answerer,
        browser: bool = False,
        nursery: trio.Nursery | None = None,
    ) -> None:
        self._answers = list(answers)
        self._browser = browser
        self._nursery = nursery
        self.said: list[str] = []
        self.opened: list[str] = []
        self.pages: list[tuple[str, Response]] = []

    def say(self, *lines: str) -> None:
        self.said.extend(lines)

    async def ask(self, question: str, *, secret: bool = False) -> str:
        answer = self._answers.pop(0)
        return answer if isinstance(answer, str) else await answer(self.said)

    async def open_browser(self, address: str) -> bool:
        self.opened.append(address)
        if self._browser:
            assert self._nursery is not None
            self._nursery.start_soon(self._open, address)
        return self._browser

    async def _open(self, address: str) -> None:
        self.pages.append(await browse(address))
