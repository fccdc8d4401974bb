"""Requests to a WebDAV server: files, folders and moves, on paths below the store's own folder.

Paths are relative, without slashes at either end; "" is the store's folder.  Folders are always
named with a slash at the end (nginx and Apache refuse or redirect otherwise), destinations of moves
by their whole URL.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

import trio

from megafs import clock
from megafs.concurrency import offload
from megafs.errors import Exists, Missing, NoStore, StoreError, Unavailable
from megafs.stores.base import Buffer
from megafs.stores.http.content_range import holds_range
from megafs.stores.http.session import Response, Session
from megafs.stores.http.tls import ClientCertificate
from megafs.stores.webdav.answers import LIMIT, PROPFIND, PROPFIND_ROOM, Member, read_multistatus
from megafs.stores.webdav.errors import error_for
from megafs.stores.webdav.layout import TEMPORARY, parent_of
from megafs.stores.webdav.login import Kept, Login
from megafs.stores.webdav.options import WebDavSettings

#: Statuses of a write that can mean that the folder to write in is not there (RFC 4918 says 409).
NO_PARENT = (403, 404, 405, 409, 500)

# From here on reading a listing (30 MB/s) is worth a hop to a thread.
_READ_IN_PLACE = 64 << 10
# Logging in, a nonce that ended, and a password that was changed meanwhile.
_LOGINS = 3
# How often what is locked is tried again, and after how many seconds at most.
_LOCK_TRIES = 10
_LOCK_WAIT = 0.2
# An answer without objects in it.
_SMALL = 64 << 10

#: Seconds after which an upload that never got its name is deleted, by the server's clock.
STALE = 86400.0
_SWEEP_EVERY = 3600.0
_SWEPT_AT_ONCE = 100


class Vanished(Unavailable):
    """The server says that it has moved something, and it is not there."""


class Server:
    """A server and the folder on it that holds a store.

    address: "https://host:port".  path: of the folder, without percent-encoding.
    kept: the logins that `megafs login` has made; None to look for none.
    """

    def __init__(
        self,
        address: str,
        path: str,
        settings: WebDavSettings,
        connections: int,
        kept: Kept | None = None,
    ) -> None:
        client = settings.client_cert and ClientCertificate(
            settings.client_cert, settings.client_key
        )
        self.session = Session(
            address,
            connections=connections,
            timeouts=settings.timeouts,
            ca=settings.ca,
            client=client or None,
        )
        parts = [part for part in path.split("/") if part]
        self._root = "".join("/" + quote(part, safe="-_.~") for part in parts)
        self._parts = len(parts)
        self._address = address
        host = self.session.host.rpartition(":")[0] or self.session.host
        self._login = Login(settings, host.strip("[]"), secure=self.session.secure, kept=kept)
        self._folders: set[str] = set()
        self._next_sweep = float("-inf")

    @property
    def now(self) -> float:
        """The time by the server's clock."""
        return clock.now() + (self.session.skew or 0.0)

    # One request

    async def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Buffer = b"",
        limit: int = _SMALL,
        start: int = 0,
    ) -> Response:
        """Send a request; again if the server wants another login.  path: "/" at a folder's end."""
        return await self._send(method, f"{self._root}/{path}", headers or {}, body, limit, start)

    async def _send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Buffer = b"",
        limit: int = _SMALL,
        start: int = 0,
    ) -> Response:
        await self._login.prepare()
        refused = 0
        while True:
            proof = self._login.header(method, target)
            sent = headers if proof is None else {**headers, "authorization": proof}
            reply = await self.session.request(method, target, sent, body, limit=limit, start=start)
            asked = reply.headers.get("www-authenticate", "")
            if (
                reply.status != 401
                or refused > _LOGINS
                or not await self._login.refused(asked, proof, again=refused > 0)
            ):
                return reply
            refused += proof is not None

    def error(self, reply: Response, what: str, *, write: bool) -> StoreError:
        """Return the error that *reply* is."""
        exc = error_for(
            reply, what, server=self.session.host, advice=self._login.advice(), write=write
        )
        self.session.last_error = str(exc)
        return exc

    # Files

    async def read(self, path: str, start: int, length: int) -> bytes:
        """Return bytes of a file as `ObjectStore.get` does; Missing if there is none."""
        # A range cannot be empty: ask for one byte, which also tells if the file is there.
        end = start + max(length, 1)
        reply = await self.ask(
            "GET",
            path,
            headers={"range": f"bytes={start}-{end - 1}"},
            limit=end - start,
            start=start,
        )
        status = reply.status
        if status == 416:
            return b""
        if status == 206:
            if not holds_range(reply, start, end):
                raise Unavailable(
                    f"get {path}: {self.session.host} sent another range than asked for"
                )
        elif status != 200:
            if status in (404, 410) or (status == 500 and await self._is_below_nothing(path)):
                await self.confirm()
                raise Missing(f"{path} is not there")
            raise self.error(reply, f"get {path}", write=False)
        return reply.body[:length]

    async def upload(self, data: Buffer, *, in_folder: str = "") -> str:
        """Store *data* under a fresh temporary name and return its path.

        in_folder: make a folder with a file of that name in it, and return the folder's path.
        """
        await self._sweep()
        path = f"{TEMPORARY}/{int(self.now)}-{clock.random_bytes(16).hex()}"
        for again in (False, True):
            await self.ensure(TEMPORARY, again=again)
            if in_folder:
                await self.ensure(path)
                self._folders.discard(path)  # soon it is elsewhere
            file = f"{path}/{in_folder}" if in_folder else path
            reply = await self.ask("PUT", file, body=data)
            if reply.status in (200, 201, 204):
                break
            if again or reply.status not in NO_PARENT:
                raise self.error(reply, "upload", write=False)
        return path

    async def remove(self, path: str, *, folder: bool = False) -> None:
        """Delete a file, or a folder and what is in it; no error if it is not there."""
        reply = await self.ask("DELETE", f"{path}/" if folder else path)
        if reply.status in (404, 410) or (
            reply.status in (409, 500) and await self._is_below_nothing(path)
        ):
            return
        if not 200 <= reply.status < 300 or reply.status == 207:
            raise self.error(reply, f"delete {path}", write=True)

    async def discard(self, path: str, *, folder: bool = False) -> None:
        """Delete an upload that came to nothing; if that fails, it is swept some day."""
        try:
            await self.remove(path, folder=folder)
        except StoreError:
            pass

    async def move(
        self, source: str, destination: str, *, replace: bool, folder: bool = False
    ) -> Response:
        """Give a file, or a folder, another name.  The folder of that name must be there."""
        slash = "/" if folder else ""
        headers = {
            "destination": f"{self._address}{self._root}/{destination}{slash}",
            "overwrite": "T" if replace else "F",
        }
        return await self._unlocked("MOVE", source + slash, headers)

    async def claim(self, path: str) -> Response:
        """Ask for a new folder *path*."""
        return await self._unlocked("MKCOL", f"{path}/", {})

    async def _unlocked(self, method: str, path: str, headers: Mapping[str, str]) -> Response:
        """Ask, again while another request has the resource locked, which takes milliseconds."""
        reply = await self.ask(method, path, headers=headers)
        for _ in range(_LOCK_TRIES):
            if reply.status != 423:
                break
            await trio.sleep(clock.uniform(0, _LOCK_WAIT))
            reply = await self.ask(method, path, headers=headers)
        return reply

    async def place(self, data: Buffer, path: str, *, replace: bool) -> None:
        """Store *data* as the file *path*, whole or not at all; its folders are made.

        Raises Exists if there is one and *replace* is not set; on some servers only if there was
        one when the request came (see exclusive.py).
        """
        await self.name(await self.upload(data), path, data, replace=replace)

    async def name(
        self, temporary: str, path: str, data: Buffer, *, replace: bool, in_folder: bool = False
    ) -> None:
        """Give the upload of *data* its name, as `place` does.

        in_folder: it is a folder, and becomes the one in which the file *path* lies.
        """
        refused: StoreError | None = None
        try:
            if not await self._name(temporary, path, data, replace, in_folder):
                return
        except StoreError as exc:
            if isinstance(exc, Unavailable) and exc.maybe_done:
                raise  # nobody knows what was moved; the sweep finds it, a day later
            refused = exc
        await self.discard(temporary, folder=in_folder)
        if refused is not None:
            raise refused

    async def _name(
        self, temporary: str, path: str, data: Buffer, replace: bool, in_folder: bool
    ) -> bool:
        """Move it, and say whether something may be left of it."""
        target, slash = (parent_of(path), "/") if in_folder else (path, "")
        for again in (False, True):
            await self.ensure(parent_of(target), again=again)
            reply = await self.move(temporary, target, replace=replace, folder=in_folder)
            if reply.status in (200, 201, 204):
                if in_folder:
                    await self._check_moved(path, data)
                return False
            if await self.settle(reply, path, data, temporary + slash, replace=replace):
                return True
            if again or reply.status not in NO_PARENT:
                break
        raise self.error(reply, f"store {path}", write=True)

    async def _check_moved(self, path: str, data: Buffer) -> None:
        """See that the folder became *path*'s, and was not moved into another's (exclusive.py)."""
        try:
            found = await self.read(path, 0, len(data) + 1)
        except Missing as exc:
            raise Vanished(f"store {path}: moved, and not there", maybe_done=True) from exc
        if found != data:
            raise Exists(f"{path}: the name is taken")

    async def settle(
        self, reply: Response, path: str, data: Buffer, temporary: str, *, replace: bool = False
    ) -> bool:
        """Find out what a refused write came to: True if it was carried out, False if not.

        temporary: where *data* was before; "" if nowhere.
        Raises Exists if another's data is there.  Losers of a race get 412, but 207, 403, 405, 409,
        423 and 500 as well, and so may a winner whose success the server could not tell.
        """
        if reply.status in (401, 413, 429, 503, 507):
            return False
        if reply.status == 412 and not replace:
            raise Exists(f"{path}: the name is taken")
        try:
            found = await self.read(path, 0, len(data) + 1)
        except Missing:
            return False
        if found == data and not (temporary and await self.exists(temporary)):
            return True
        if replace:
            return False
        raise Exists(f"{path}: the name is taken")

    # Folders

    async def ensure(self, path: str, *, again: bool = False) -> None:
        """Make the folder *path* and those above it; remembered, so asked only once.

        again: what is remembered was found wrong.
        """
        parts = path.split("/") if path else []
        for i in range(1, len(parts) + 1):
            folder = "/".join(parts[:i])
            if again or folder not in self._folders:
                await self._make(folder)
                self._folders.add(folder)

    async def _make(self, path: str) -> None:
        reply = await self.ask("MKCOL", f"{path}/")
        # 405 says that it is there; some say 201 of an old one as well, others 409 or 301.
        if reply.status in (200, 201, 204, 405) or await self.exists(f"{path}/"):
            return
        if reply.status in (404, 409):
            await self.confirm()
        raise self.error(reply, f"make the folder {path}", write=True)

    async def exists(self, path: str) -> bool:
        """Whether there is a file or folder *path*; a folder's ends with a slash."""
        reply = await self.ask("PROPFIND", path, headers=_depth(0), body=PROPFIND)
        return reply.status == 207

    async def make_root(self) -> None:
        """Make the store's own folder and those above it, as far as they are missing."""
        if await self.exists(""):
            return
        parts = self._root.split("/")[1:]
        for i in range(len(parts), -1, -1):  # upwards to the first that is there
            target = "/" + "".join(part + "/" for part in parts[:i])
            reply = await self._send("PROPFIND", target, _depth(0), PROPFIND)
            if reply.status == 207:
                break
            if reply.status not in (404, 409, 403, 405, 500):
                raise self.error(reply, "look for the folder", write=False)
        for j in range(max(i, 0) + 1, len(parts) + 1):
            target = "/" + "".join(part + "/" for part in parts[:j])
            reply = await self._send("MKCOL", target, {})
            if not 200 <= reply.status < 300 and reply.status != 405:
                raise self.error(reply, f"make the folder {target}", write=True)
        if not await self.exists(""):
            raise self.error(reply, "make the store's folder", write=True)

    async def confirm(self) -> None:
        """See that the store's folder is there and that WebDAV answers: "not there" then counts."""
        reply = await self.ask("PROPFIND", "", headers=_depth(0), body=PROPFIND)
        if reply.status in (404, 409):
            raise NoStore(
                f"{self.session.host} has no folder {self._root or '/'}; is it the right address?"
            )
        if reply.status != 207:
            raise self.error(reply, "look at the store's folder", write=False)

    async def members(self, path: str) -> dict[str, Member] | None:
        """Return what lies in a folder, by name; None if there is no such folder."""
        reply = await self.ask(
            "PROPFIND",
            f"{path}/" if path else "",
            headers=_depth(1),
            body=PROPFIND,
            limit=LIMIT,
        )
        if reply.status != 207:
            if reply.status in (404, 409, 410) or (
                reply.status == 500 and path and await self._is_below_nothing(path)
            ):
                await self.confirm()
                return None
            raise self.error(reply, f"list {path or 'the store'}", write=False)
        if reply.more:
            raise StoreError(
                f"{self.session.host}: the folder {path or '/'} holds far more than a volume has"
            )
        return await self._read_members(reply, path)

    async def room(self) -> int | None:
        """Return the bytes left in the account; None if the server does not say."""
        reply = await self.ask("PROPFIND", "", headers=_depth(0), body=PROPFIND_ROOM)
        if reply.status != 207:
            raise self.error(reply, "ask for the room left", write=False)
        found = await self._read(reply)
        return next((member.room for member in found if member.room is not None), None)

    async def _read_members(self, reply: Response, path: str) -> dict[str, Member]:
        found = await self._read(reply)
        if not found:
            return {}
        # The folder itself is among them, under the name that the server has for it: a proxy on
        # the way may know it by another.
        own = min((member.path.rstrip("/") for member in found), key=len) + "/"
        members = {}
        for member in found:
            name = member.path[len(own) :].strip("/")
            if name and "/" not in name and member.path.startswith(own):
                members[name] = member
        return members

    async def _read(self, reply: Response) -> list[Member]:
        try:
            if len(reply.body) < _READ_IN_PLACE:
                return read_multistatus(reply.body)
            return await offload(read_multistatus, reply.body)
        except ValueError as exc:
            raise Unavailable(
                f"{self.session.host} answers with what cannot be read: {exc}; is it WebDAV?"
            ) from exc

    async def _is_below_nothing(self, path: str) -> bool:
        """Whether a folder above *path*, or it itself, is missing.

        For servers that answer 500 where others say 404.
        """
        parts = path.split("/")
        for i in range(len(parts)):
            folder = "/".join(parts[:i])
            reply = await self.ask(
                "PROPFIND",
                f"{folder}/" if folder else "",
                headers=_depth(1),
                body=PROPFIND,
                limit=LIMIT,
            )
            if reply.status != 207 or reply.more:
                return False
            if parts[i] not in await self._read_members(reply, folder):
                return True
        return False

    # Uploads that came to nothing

    async def _sweep(self) -> None:
        """Delete old temporary files, a few an hour."""
        if trio.current_time() < self._next_sweep:
            return
        self._next_sweep = trio.current_time() + _SWEEP_EVERY
        try:
            members = await self.members(TEMPORARY)
        except StoreError:
            return  # the next hour will do
        stale = [
            (name, member)
            for name, member in (members or {}).items()
            if 0 < member.modified < self.now - STALE
        ]
        for name, member in stale[:_SWEPT_AT_ONCE]:
            await self.discard(f"{TEMPORARY}/{name}", folder=member.is_folder)


def _depth(depth: int) -> dict[str, str]:
    return {"depth": str(depth), "content-type": "application/xml; charset=utf-8"}
