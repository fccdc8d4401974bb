"""Calls of Dropbox's API v2 (github.com/dropbox/dropbox-api-spec): three hosts, one token.

A call is a POST.  Of an "rpc" route argument and answer are JSON bodies; of an upload the argument
is the header Dropbox-API-Arg, since the body is the file; of a download the answer is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from megafs.errors import Denied, Exists, Missing, StoreError, Unavailable
from megafs.stores.base import Buffer
from megafs.stores.dropbox.errors import REFUSED_TOKEN, error_for, read_json, tags_of
from megafs.stores.dropbox.options import DropboxSettings
from megafs.stores.dropbox.pace import RequestPace
from megafs.stores.http.content_range import holds_range
from megafs.stores.http.session import Response, Session, Timeouts
from megafs.stores.login.tokens import TokenSource

#: The argument or the answer of a call.
Json = dict[str, Any]

_HOSTS = {
    "api": "https://api.dropboxapi.com",
    "content": "https://content.dropboxapi.com",
    "notify": "https://notify.dropboxapi.com",
}
# Answers with JSON: of 2,000 entries of a listing, 500 bytes each, and of 1,000 files' metadata.
_LIMIT = 8 << 20
# Dropbox adds up to 90 seconds to a long poll, and the answer has to travel.
_JITTER = 90.0 + 20.0
#: Seconds to wait where a refusal does not say how long.
_DEFAULT_WAIT = 2.0


class DropboxApi:
    """The calls, with the tokens of one login."""

    def __init__(self, settings: DropboxSettings, tokens: TokenSource, connections: int) -> None:
        def session(host: str, most: int, timeouts: Timeouts) -> Session:
            return Session(settings.api or _HOSTS[host], connections=most, timeouts=timeouts)

        timeouts = settings.timeouts
        self._api = session("api", connections, timeouts)
        self._content = session("content", connections, timeouts)
        self._timeouts = timeouts
        self._poll: Session | None = None
        self._polls_at = settings.api or _HOSTS["notify"]
        self._tokens = tokens
        self.pace = RequestPace(settings.requests)
        self.last_error = ""

    async def aclose(self) -> None:
        for session in (self._api, self._content, self._poll):
            if session is not None:
                await session.aclose()
        await self._tokens.aclose()

    def details(self) -> dict[str, Any]:
        """Numbers for `Health.details`."""
        made = self._content.details()
        for session in (self._api, self._poll):
            if session is not None:
                for name in ("requests", "failures", "sent_bytes", "received_bytes"):
                    made[name] += session.details()[name]
        return {
            **made,
            "refused_for_now": self.pace.refusals,
            "limit": self.pace.why,
            "login": self._tokens.advice(),
        }

    # Calls

    async def rpc(self, route: str, arg: Json | None, *, write: bool) -> Json:
        """Call a route.  write: whether it may change something."""
        body = b"null" if arg is None else json.dumps(arg).encode("ascii")
        reply = await self._send(
            self._api, "POST", route, {"content-type": "application/json"}, body, _LIMIT
        )
        return self._result(reply, route, write=write)

    async def upload(self, route: str, arg: Json, data: Buffer) -> Json:
        """Call a route with a file, or a piece of one."""
        headers = {"content-type": "application/octet-stream", "dropbox-api-arg": _ascii(arg)}
        reply = await self._send(self._content, "POST", route, headers, data, _LIMIT)
        return self._result(reply, route, write=True)

    async def download(self, path: str, start: int, length: int) -> tuple[bytes, Json]:
        """Return bytes of a file, as `ObjectStore.get` does, and its metadata ({} of no bytes)."""
        # A range cannot be empty: ask for one byte, which also tells if the file is there.
        end = start + max(length, 1)
        headers = {"dropbox-api-arg": _ascii({"path": path}), "range": f"bytes={start}-{end - 1}"}
        # GET, which the download routes take too: it can be sent again without a thought.
        reply = await self._send(
            self._content, "GET", "files/download", headers, b"", end - start, start
        )
        if reply.status == 416:
            return b"", {}
        if reply.status == 206:
            if not holds_range(reply, start, end):
                raise Unavailable(f"get {path}: Dropbox sent another range than asked for")
        elif reply.status != 200:
            raise self._error(reply, f"get {path}", write=False)
        about = read_json(reply.headers.get("dropbox-api-result", "").encode("latin-1"))
        if not isinstance(about, dict):
            raise Unavailable(f"get {path}: the answer does not come from Dropbox")
        return reply.body[:length], about

    async def long_poll(self, cursor: str, seconds: int) -> Json:
        """Wait for changes after *cursor*, for about so long."""
        if self._poll is None:
            patient = Timeouts(
                connect=self._timeouts.connect, read=seconds + _JITTER, write=self._timeouts.write
            )
            self._poll = Session(self._polls_at, connections=4, timeouts=patient)
        body = json.dumps({"cursor": cursor, "timeout": seconds}).encode("ascii")
        # Without a token: the cursor is one.
        route = "files/list_folder/longpoll"
        reply = await self._poll.request(
            "POST", f"/2/{route}", {"content-type": "application/json"}, body, limit=_LIMIT
        )
        return self._result(reply, route, write=False)

    async def _send(
        self,
        session: Session,
        method: str,
        route: str,
        headers: Mapping[str, str],
        body: Buffer,
        limit: int,
        start: int = 0,
    ) -> Response:
        """Send a request; once more if its token has ended."""
        for again in (False, True):
            await self.pace.turn()
            token = await self._tokens.token()
            reply = await session.request(
                method,
                f"/2/{route}",
                {**headers, "authorization": f"Bearer {token}"},
                body,
                limit=limit,
                start=start,
            )
            if reply.status != 401 or not REFUSED_TOKEN & set(tags_of(_error_in(reply))):
                break
            if again:
                raise Denied(f"{route}: Dropbox refuses a token that it gave a moment ago")
            await self._tokens.refused(token)
        if reply.status == 429:
            tags = tags_of(_error_in(reply))
            if "too_many_write_operations" not in tags:  # that one is of the namespace's lock
                error = error_for(reply, route, advice="", write=False)
                wait = error.retry_after if isinstance(error, Unavailable) else None
                self.pace.hold(
                    _DEFAULT_WAIT if wait is None else wait, "/".join(tags) or "too many requests"
                )
        return reply

    def _result(self, reply: Response, route: str, *, write: bool) -> Json:
        if reply.status != 200:
            raise self._error(reply, route, write=write)
        if reply.body == b"null":
            return {}
        result = read_json(reply.body)
        if not isinstance(result, dict) or reply.more:
            # A login page, or a proxy's own: it says 200 to everything.
            raise Unavailable(f"{route}: the answer does not come from Dropbox", maybe_done=write)
        return result

    def _error(self, reply: Response, what: str, *, write: bool) -> StoreError:
        advice = self._tokens.advice() or "log in again with megafs login"
        exc = error_for(reply, what, advice=advice, write=write)
        if not isinstance(exc, Exists | Missing):  # they are answers
            self.last_error = str(exc)
        return exc


def _error_in(reply: Response) -> Any:
    body = read_json(reply.body)
    return body.get("error") if isinstance(body, dict) else None


def _ascii(arg: Json) -> str:
    """JSON for a header: DEL may not stand in one either."""
    return json.dumps(arg).replace("\x7f", "\\u007f")
