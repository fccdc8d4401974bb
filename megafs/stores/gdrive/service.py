"""Requests to Drive's API v3: files by their ids, searches, the feed of changes, fresh ids.

What is asked by id is answered from what is there now.  A search is answered from an index that
lags behind by seconds, now and then minutes; so is the feed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from urllib.parse import urlencode

import trio
from msgspec import Struct, field

from megafs.errors import Denied, Exists, Full, NoStore, StoreError, Unavailable
from megafs.stores.base import Buffer
from megafs.stores.gdrive.errors import error_for, reason_of
from megafs.stores.gdrive.files import (
    FIELDS,
    DriveFile,
    FeedPage,
    NewFile,
    SearchPage,
    read,
)
from megafs.stores.http.content_range import holds_range
from megafs.stores.http.session import Response, Session
from megafs.stores.login.tokens import TokenSource

FILES = "/drive/v3/files"

# A page of 1,000 files, of some 700 bytes each and up to 3.7 KB of properties.
_PAGE_LIMIT = 8 << 20
_PAGE = 1000
_SMALL = 64 << 10
# Ids fetched at once; a mount that makes few files wastes some, of which there is no end.
_IDS = 200
# Seconds for which a limit is shown after it was met.
_LIMIT_SHOWN = 60.0


class _Ids(Struct):
    ids: list[str] = field(default_factory=list)


class _Token(Struct, rename="camel"):
    start_page_token: str = ""


class _Quota(Struct, rename="camel"):
    usage: int = 0
    limit: int | None = None


class _About(Struct, rename="camel"):
    storage_quota: _Quota = field(default_factory=_Quota)


class DriveService:
    """The API as an account that has logged in sees it."""

    def __init__(self, session: Session, tokens: TokenSource, login: str) -> None:
        self.session = session
        self.tokens = tokens
        #: The command that logs in, for error texts.
        self.login = login
        self._ids: deque[str] = deque()
        self._fetching = trio.Lock()
        self._limited = ""
        self._limited_until = float("-inf")

    # One request

    async def ask(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Buffer = b"",
        limit: int = _SMALL,
        start: int = 0,
    ) -> Response:
        """Send a request with a token; once more if the service refuses the token."""
        for again in (False, True):
            token = await self.tokens.token()
            sent = {**(headers or {}), "authorization": f"Bearer {token}"}
            reply = await self.session.request(method, target, sent, body, limit=limit, start=start)
            if reply.status != 401 or again:
                break
            try:
                await self.tokens.refused(token)
            except Denied as exc:
                self.session.last_error = str(exc)
                raise
        return reply

    def error(self, reply: Response, what: str, *, write: bool) -> StoreError:
        """Return the error that *reply* is."""
        exc = error_for(reply, what, server=self.session.host, login=self.login, write=write)
        self.session.last_error = str(exc)
        if isinstance(exc, Full) or (isinstance(exc, Unavailable) and exc.busy):
            asked = exc.retry_after if isinstance(exc, Unavailable) else None
            self._limited = str(exc)
            self._limited_until = trio.current_time() + max(_LIMIT_SHOWN, asked or 0.0)
        return exc

    @property
    def limit(self) -> str:
        """The limit of the service that was met lately, "" if none was."""
        return self._limited if trio.current_time() < self._limited_until else ""

    # Files by id

    async def metadata(self, file_id: str) -> DriveFile | None:
        """Return what a file is; None if there is none of that id."""
        reply = await self.ask("GET", f"{FILES}/{file_id}?{urlencode({'fields': FIELDS})}")
        if reply.status == 404 and reason_of(reply):
            return None
        if reply.status != 200:
            raise self.error(reply, "look at a file", write=False)
        return self._checked(reply, file_id)

    async def read(self, file_id: str, name: str, start: int, length: int) -> bytes:
        """Return bytes of a file as `ObjectStore.get` does; Missing if there is none.

        name: for error texts.
        """
        # A range cannot be empty: ask for one byte, which also tells if the file is there.
        end = start + max(length, 1)
        acknowledged = ""
        while True:
            reply = await self.ask(
                "GET",
                f"{FILES}/{file_id}?alt=media{acknowledged}",
                headers={"range": f"bytes={start}-{end - 1}"},
                limit=end - start,
                start=start,
            )
            # What looks like malware to Drive: sealed bytes do by chance, if ever.
            if acknowledged or reason_of_refusal(reply) != "cannotDownloadAbusiveFile":
                break
            acknowledged = "&acknowledgeAbuse=true"
        if reply.status == 416:
            return b""
        if reply.status == 206:
            if not holds_range(reply, start, end):
                raise Unavailable(
                    f"get {name}: {self.session.host} sent another range than asked for"
                )
        elif reply.status != 200:
            raise self.error(reply, f"get {name}", write=False)
        elif reply.headers.get("content-type", "").startswith("text/html"):
            raise Unavailable(f"get {name}: {self.session.host} sent a web page")
        return reply.body[:length]

    async def create_empty(self, file: NewFile, body: bytes) -> DriveFile:
        """Make a file without content, or a folder.  Exists if its id is taken."""
        target = f"{FILES}?{urlencode({'fields': FIELDS})}"
        reply = await self.ask(
            "POST", target, headers={"content-type": "application/json; charset=UTF-8"}, body=body
        )
        return self.created(reply, file)

    def created(self, reply: Response, file: NewFile) -> DriveFile:
        """Return the file that a create has made, of which *reply* tells."""
        if reply.status in (200, 201):
            return self._checked(reply, file.id)
        if reply.status == 409 and reason_of(reply):
            raise Exists(f"{file.name}: the name is taken")
        if reply.status == 404 and reason_of(reply):
            raise NoStore(f"the volume's folder is not in {self.session.host} any more")
        raise self.error(reply, f"store {file.name}", write=True)

    async def delete(self, file_id: str, name: str) -> None:
        """Remove a file for good, past the trash; no error if there is none."""
        reply = await self.ask("DELETE", f"{FILES}/{file_id}")
        if reply.status in (200, 204) or (reply.status in (404, 410) and reason_of(reply)):
            return
        raise self.error(reply, f"delete {name}", write=True)

    def _checked(self, reply: Response, file_id: str) -> DriveFile:
        made = read(reply, DriveFile, self.session.host)
        if made.id != file_id:
            # Its id, not ours, is what others would look for in vain.
            raise StoreError(f"{self.session.host} answers with another file than was asked for")
        return made

    # Searches and the feed

    async def search(self, query: str, page: str = "") -> SearchPage:
        """Return a page of the files that match."""
        values = {
            "q": query,
            "pageSize": str(_PAGE),
            "fields": f"nextPageToken,files({FIELDS})",
            **({"pageToken": page} if page else {}),
        }
        reply = await self.ask("GET", f"{FILES}?{urlencode(values)}", limit=_PAGE_LIMIT)
        if reply.status != 200 or reply.more:
            raise self.error(reply, "search", write=False)
        return read(reply, SearchPage, self.session.host)

    async def search_all(self, query: str) -> list[DriveFile]:
        """Return all files that match: of searches that find few."""
        found: list[DriveFile] = []
        page = ""
        for _ in range(_PAGE):
            one = await self.search(query, page)
            found += one.files
            page = one.next_page_token
            if not page:
                return found
        raise StoreError(f"{self.session.host}: a search finds no end")

    async def feed_end(self) -> str:
        """Return where the feed of changes goes on from now."""
        reply = await self.ask("GET", "/drive/v3/changes/startPageToken")
        if reply.status != 200:
            raise self.error(reply, "ask for changes", write=False)
        token = read(reply, _Token, self.session.host).start_page_token
        if not token:
            raise Unavailable(f"{self.session.host} does not say where its changes begin")
        return token

    async def changes(self, token: str) -> FeedPage | None:
        """Return a page of what has changed since *token*; None if that is too long ago."""
        fields = f"nextPageToken,newStartPageToken,changes(fileId,removed,file({FIELDS}))"
        values = {"pageToken": token, "pageSize": str(_PAGE), "fields": fields}
        reply = await self.ask("GET", f"/drive/v3/changes?{urlencode(values)}", limit=_PAGE_LIMIT)
        if reply.status in (400, 404, 410) and reason_of(reply):
            return None
        if reply.status != 200 or reply.more:
            raise self.error(reply, "ask for changes", write=False)
        return read(reply, FeedPage, self.session.host)

    # Ids and room

    async def fresh_id(self) -> str:
        """Return an id that no file has and nobody else gets."""
        while not self._ids:
            async with self._fetching:
                if not self._ids:
                    self._ids.extend(await self._more_ids())
        return self._ids.popleft()

    async def _more_ids(self) -> list[str]:
        target = f"{FILES}/generateIds?count={_IDS}&space=drive"
        reply = await self.ask("GET", target)
        if reply.status != 200:
            raise self.error(reply, "ask for ids", write=False)
        ids = read(reply, _Ids, self.session.host).ids
        if not ids or not all(0 < len(each) <= 100 and is_id(each) for each in ids):
            raise Unavailable(f"{self.session.host} gives no ids that can be used")
        return ids

    async def room(self) -> int | None:
        """Return the bytes left in the account; None if it has no limit."""
        reply = await self.ask("GET", "/drive/v3/about?fields=storageQuota")
        if reply.status != 200:
            raise self.error(reply, "ask for the room left", write=False)
        quota = read(reply, _About, self.session.host).storage_quota
        return None if quota.limit is None else max(0, quota.limit - quota.usage)


def is_id(text: str) -> bool:
    """Whether *text* may stand in a URL as an id."""
    return bool(text) and all(c.isascii() and (c.isalnum() or c in "-_") for c in text)


def reason_of_refusal(reply: Response) -> str:
    """The reason of a 403, "" for any other answer."""
    return reason_of(reply) if reply.status == 403 else ""
