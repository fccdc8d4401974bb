"""MEGA's API: commands over HTTP, one request at a time, each tried until it is answered.

Only the question where a file's bytes are (`g`) does not wait for its turn, as in MEGA's SDK: the
answer to `f`, a whole tree, may take minutes.

A request has a number, and MEGA carries out none twice: whatever becomes of an answer, the same
request with the same number is sent again (`ApiChannel._exchange`).  What it meets:

    -3, -18, -19   congestion: again soon, and then after twice as long
    -4             too many requests: again after seconds, and then after twice as long
    HTTP 500, 503  servers are busy: again after a second, and then after twice as long
    HTTP 402       proof of work: it is done (hashcash.py), and the request sent again
    others         an error of errors.py at once

The feed of changes is two other addresses: `feed` asks what happened, `wait` blocks until something
does.
"""

from __future__ import annotations

import ipaddress
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol
from urllib.parse import urlencode, urlsplit

import trio

from megafs import clock
from megafs.errors import BadUsage, Unavailable
from megafs.mega.errors import error_for
from megafs.mega.hashcash import WorkChallenge, solve
from megafs.stores.http.session import Session, Timeouts

log = logging.getLogger(__name__)

#: The address of MEGA's API.
HOST: Final = "https://g.api.mega.co.nz"
#: The longest answer that is kept whole; the tree's is streamed.
_ANSWER: Final = 8 << 20
#: Seconds without a byte of an answer; the SDK's own limit, and that of its long poll.
_READ: Final = 120.0
_WAIT: Final = 60.0
#: Rounds of proof of work for one request.
_ROUNDS: Final = 3
#: Seconds before the second try, by what the first one met, and the most between two.
_FIRST: Final = {-3: 0.2, -18: 1.0, -19: 1.0, -4: 2.0}
_BUSY: Final = 1.0
_MOST: Final = 60.0

_HEADERS: Final = {"content-type": "application/json"}


def check_host(address: str) -> str:
    """Return *address*, of another API than MEGA's; BadUsage unless it is on this machine.

    It would be given the proof of the password, and could answer what it likes.
    """
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local or parts.scheme not in ("http", "https"):
        raise BadUsage("api= is for tests, and takes only http://127.0.0.1:PORT on this machine")
    return address.rstrip("/")


class Receiver(Protocol):
    """Takes an answer that is too long to be kept."""

    async def take(self, piece: bytes) -> None:
        """Take the next bytes of it."""

    async def ended(self) -> None:
        """It has ended; raises what a number in its place means."""


class ApiChannel:
    """See the module.

    query: what says who asks: sid of a session, n of a folder's link, or nothing.
    patience: seconds for which a request is tried.
    """

    def __init__(
        self,
        host: str = HOST,
        query: Mapping[str, str] | None = None,
        *,
        patience: float = 60.0,
        say: Callable[[str], None] = log.info,
    ) -> None:
        """say: called when the user should know what is waited for."""
        self.host = host
        self._session = Session(host, connections=4, timeouts=Timeouts(read=_READ))
        self._query = dict(query or {})
        self._patience = patience
        self._say = say
        self._number = int.from_bytes(clock.random_bytes(4), "big")
        self._turn = trio.Lock()
        #: The last trouble, for `status`; "" after an answer.
        self.trouble = ""

    @property
    def is_local(self) -> bool:
        """Whether it is a server on this machine, which tests run."""
        return self.host != HOST

    @property
    def requests(self) -> int:
        return self._session.requests

    def set_query(self, query: Mapping[str, str]) -> None:
        """Ask as somebody else from now on: after a login."""
        self._query = dict(query)

    async def call(self, command: Mapping[str, Any], *, in_turn: bool = True) -> Any:
        """Have one command carried out and return its result; raises what a number means.

        in_turn: False for those that need not wait for another one's answer.
        """
        if in_turn:
            async with self._turn:
                answer = await self._exchange(command, None)
        else:
            answer = await self._exchange(command, None)
        assert answer is not None
        try:
            found = json.loads(answer)
        except (ValueError, RecursionError):
            raise Unavailable("what answers in MEGA's place does not speak its protocol") from None
        if isinstance(found, list) and found:
            found = found[0]
        if isinstance(found, dict) and isinstance(found.get("err"), int) and found["err"] < 0:
            found = found["err"]
        if isinstance(found, int) and not isinstance(found, bool) and found < 0:
            raise error_for(found)
        return found

    async def stream(self, command: Mapping[str, Any], begin: Callable[[], Receiver]) -> None:
        """Have one command carried out, whose answer is received piece by piece.

        begin: makes a new receiver for each try, as the answer then begins anew.
        """
        async with self._turn:
            await self._exchange(command, begin)

    async def _exchange(
        self, command: Mapping[str, Any], begin: Callable[[], Receiver] | None
    ) -> bytes | None:
        self._number = (self._number + 1) & 0xFFFFFFFF
        query = urlencode({"id": str(self._number), **self._query})
        target = f"{self._session.base_path}/cs?{query}"
        body = json.dumps([command], separators=(",", ":")).encode()
        return await self._until_answered(target, body, begin)

    async def _until_answered(
        self, target: str, body: bytes, begin: Callable[[], Receiver] | None
    ) -> bytes | None:
        deadline = trio.current_time() + self._patience
        headers = dict(_HEADERS)
        rounds = 0
        wait = 0.0
        while True:
            first = _BUSY
            try:
                receiver = None if begin is None else begin()
                if receiver is None:
                    reply = await self._session.request(
                        "POST", target, headers, body, limit=_ANSWER
                    )
                else:
                    reply = await self._session.stream("POST", target, headers, body, receiver.take)
                if reply.status == 402:
                    rounds += 1
                    if rounds > _ROUNDS:
                        raise Unavailable("MEGA asks for proof of work again and again")
                    headers["x-hashcash"] = await self._work(reply.headers.get("x-hashcash", ""))
                    deadline = trio.current_time() + self._patience
                    continue
                if reply.status != 200:
                    raise Unavailable(
                        f"MEGA's servers are busy (HTTP {reply.status})", busy=reply.status >= 500
                    )
                code = _number_in(reply.body)
                if code in _FIRST:
                    first = _FIRST[code]
                    raise error_for(code)
                if reply.more:
                    raise Unavailable("an answer of MEGA is longer than any should be")
                if receiver is not None:
                    await receiver.ended()
            except Unavailable as exc:
                self.trouble = str(exc)
                wait = min(max(first, 2 * wait), _MOST)
                pause = wait + clock.uniform(0, wait / 2)
                if trio.current_time() + pause > deadline:
                    raise
                if pause >= 5:
                    self._say(f"{exc}; trying again in {pause:.0f} s")
                await trio.sleep(pause)
                continue
            self.trouble = ""
            return None if begin is not None else reply.body

    async def _work(self, header: str) -> str:
        challenge = WorkChallenge.parse(header)
        self._say("MEGA asks for proof of work before it answers: computing (Ctrl-C ends it)")
        return await solve(challenge)

    # The feed

    async def feed(self, since: str) -> Any:
        """What happened after *since*: {"a": packets, "sn": ...}, or {"w": where to wait}."""
        query = urlencode({"sn": since, **self._query})
        target = f"{self._session.base_path}/wsc?{query}"
        reply = await self._session.request("POST", target, _HEADERS, limit=_ANSWER)
        if reply.status != 200:
            raise Unavailable(f"MEGA's feed of changes answers {reply.status}")
        try:
            found = json.loads(reply.body)
        except (ValueError, RecursionError):
            raise Unavailable("MEGA's feed of changes is not understood") from None
        if isinstance(found, int):
            raise error_for(found)
        if not isinstance(found, dict):
            raise Unavailable("MEGA's feed of changes is not understood")
        return found

    async def wait(self, address: str) -> None:
        """Block until something happens, or the server has had enough of waiting."""
        base, target = origin_and_target(address, local=self.is_local)
        session = Session(base, connections=1, timeouts=Timeouts(read=_WAIT))
        begin = trio.current_time()
        try:
            await session.request("GET", target, {}, limit=4096)
        except Unavailable:
            if trio.current_time() < begin + _WAIT - 1:
                raise  # else nothing happened for as long as we wait
        finally:
            await session.aclose()

    async def aclose(self) -> None:
        await self._session.aclose()


def origin_and_target(address: str, *, local: bool) -> tuple[str, str]:
    """Take an address that the API gave apart: scheme and server, path and query.

    local: the API is on this machine, and only then may addresses be without TLS: on the way,
    what is read could be changed unnoticed (there is no MAC for a part of a file).
    """
    try:
        parts = urlsplit(address)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in (("http", "https") if local else ("https",)) or not parts.netloc:
        raise Unavailable("MEGA named an address that is none, or one without TLS")
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}", f"{parts.path or '/'}{query}"


def _number_in(body: bytes) -> int:
    """The error that the start of an answer is; 0 if it is none."""
    text = body[:16].strip(b"[] \r\n")
    try:
        return min(int(text), 0)
    except ValueError:
        return 0
