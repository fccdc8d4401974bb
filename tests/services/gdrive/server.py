"""Google Drive's API v3 over HTTP on loopback, from its public specification.

    async with serving(DriveServer()) as service:
        service.endpoint                      # http://127.0.0.1:PORT, all there is on one origin
        service.drive.list_lag = 2.0          # state.py: documented misbehaviour
        service.front.next(refusal(403, "userRateLimitExceeded"), method="POST")

Faults of the connection and made-up answers come from tests/fakes/proxy.py and go before the
service.  https://developers.google.com/workspace/drive/api/reference/rest/v3
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trio

from tests.fakes.proxy import (
    Answer,
    Fault,
    Proxy,
    Request,
    Reset,
    Response,
    ThreadedProxy,
    proxying,
)
from tests.services.gdrive.query import BadQuery, parse, pick
from tests.services.gdrive.state import Drive, FileRecord, Refusal

UNIT = 256 << 10
#: Larger bodies must be resumable, and metadata is small.
MULTIPART_LIMIT = 5 << 20

_FILE = re.compile(r"/drive/v3/files/([A-Za-z0-9_-]+)\Z")
_UPLOAD = re.compile(r"(?:/resumable)?/upload/drive/v3/files(?:/([A-Za-z0-9_-]+))?\Z")
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]+)-([0-9]+)|\*)/([0-9]+|\*)\Z")
_DEFAULT = "kind,id,name,mimeType"


@dataclass
class UploadSession:
    """A resumable upload.  target: the file to replace, "" for a new one."""

    target: str
    values: dict[str, Any]
    mime: str
    received: bytes = b""
    made: FileRecord | None = None


class DriveServer(Fault):
    """The service.

    tokens: what opens it.  refresh: what the token endpoint takes.  lasts: seconds of a token.
    keeps: of the next resumable PUT, only so many bytes arrive (in units of 256 KiB) before the
        connection breaks; None for all.
    """

    def __init__(self, drive: Drive | None = None) -> None:
        self.drive = drive or Drive()
        self.tokens = {"token-0"}
        self.refresh = "1//refresh"
        self.lasts = 3600
        self.keeps: int | None = None
        self.sessions: dict[str, UploadSession] = {}
        self.front: Proxy

    @property
    def endpoint(self) -> str:
        return self.front.endpoint

    def counts(self) -> dict[str, int]:
        """How many requests came so far, by method and kind."""
        found: dict[str, int] = {}
        for request, _ in self.front.seen:
            path = urlsplit(request.target).path
            kind = re.sub(r"(?<=files/)[A-Za-z0-9_-]{20,}", "ID", path)
            if "alt=media" in request.target:
                kind += "?alt=media"
            found[f"{request.method} {kind}"] = found.get(f"{request.method} {kind}", 0) + 1
        return found

    async def before(self, request: Request, client: trio.SocketStream) -> Response:
        if self.keeps is not None and request.method == "PUT":
            kept, self.keeps = self.keeps // UNIT * UNIT, None
            session = self._session(request)
            if session is not None:
                session.received += request.body[:kept]
            await Reset().before(request, client)
        try:
            return self._answer(request)
        except Refusal as exc:
            return refused(exc.status, exc.reason, exc.message)
        except BadQuery as exc:
            return refused(400, "invalid", f"Invalid Value: {exc}")

    def _answer(self, request: Request) -> Response:
        parts = urlsplit(request.target)
        query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        path, method = parts.path, request.method
        if (method, path) == ("POST", "/token"):
            return self._token(request)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or token not in self.tokens:
            raise Refusal(401, "authError", "Invalid Credentials")
        fields = query.get("fields", _DEFAULT)
        match method, path:
            case "GET", "/drive/v3/files/generateIds":
                count = int(query.get("count", "10"))
                if not 1 <= count <= 1000:
                    raise Refusal(400, "invalidParameter")
                ids = [self.drive.new_id() for _ in range(count)]
                return _json({"kind": "drive#generatedIds", "space": "drive", "ids": ids})
            case "GET", "/drive/v3/files":
                return self._list(query)
            case "POST", "/drive/v3/files":
                return _json(pick(self.drive.create(_object(request.body), b"").resource(), fields))
            case "GET", "/drive/v3/changes/startPageToken":
                token = str(self.drive.feed_end)
                return _json({"kind": "drive#startPageToken", "startPageToken": token})
            case "GET", "/drive/v3/changes":
                return self._changes(query)
            case "GET", "/drive/v3/about":
                if "fields" not in query:
                    raise Refusal(400, "required", "The 'fields' parameter is required.")
                return _json(pick(self._about(), fields))
        if found := _FILE.match(path):
            return self._file(method, found[1], query, fields, request)
        if found := _UPLOAD.match(path):
            return self._upload(method, found[1] or "", query, fields, request)
        return Response(404, {"content-type": "text/html"}, b"<html>Error 404 (Not Found)</html>")

    # Files

    def _file(
        self, method: str, file_id: str, query: dict[str, str], fields: str, request: Request
    ) -> Response:
        drive = self.drive
        if method == "GET" and query.get("alt") == "media":
            return _media(drive.get(file_id).content, request.headers.get("range", ""))
        if method == "GET":
            return _json(pick(drive.get(file_id).resource(), fields))
        if method == "DELETE":
            drive.delete(file_id)
            return Response(204, {}, b"")
        if method == "PATCH":
            if "addParents" in query or "removeParents" in query:
                drive.move(file_id, query.get("addParents", ""), query.get("removeParents", ""))
            values = _object(request.body)
            return _json(pick(drive.update(file_id, values, None).resource(), fields))
        raise Refusal(404, "notFound")

    def _list(self, query: dict[str, str]) -> Response:
        matches = parse(query["q"]) if query.get("q") else lambda file: True
        most = min(int(query.get("pageSize", "100")), 1000)
        found = [file for file in self.drive.listed() if matches(file)]
        # `'root' in parents` names the folder by its alias.
        if "'root'" in query.get("q", ""):
            matches = parse(query["q"].replace("'root'", f"'{self.drive.root}'"))
            found = [file for file in self.drive.listed() if matches(file)]
        order = query.get("orderBy", "").split(",")[0].split()
        if order and order[0] in ("name", "createdTime", "modifiedTime"):
            found.sort(key=lambda f: f.resource()[order[0]], reverse=order[1:] == ["desc"])
        start = int(query.get("pageToken", "0"))
        values: dict[str, Any] = {
            "kind": "drive#fileList",
            "incompleteSearch": False,
            "files": [file.resource() for file in found[start : start + most]],
        }
        if start + most < len(found):
            values["nextPageToken"] = str(start + most)
        default = f"kind,incompleteSearch,nextPageToken,files({_DEFAULT})"
        return _json(pick(values, query.get("fields", default)))

    def _changes(self, query: dict[str, str]) -> Response:
        try:
            position = int(query["pageToken"])
        except (KeyError, ValueError):
            raise Refusal(400, "invalid", "Invalid Value") from None
        most = min(int(query.get("pageSize", "100")), 1000)
        found, position, more = self.drive.feed(position, most)
        token = "nextPageToken" if more else "newStartPageToken"
        values = {"kind": "drive#changeList", "changes": found, token: str(position)}
        return _json(pick(values, query.get("fields", "*")))

    def _about(self) -> dict[str, Any]:
        quota = {"usage": str(self.drive.usage), "usageInDrive": str(self.drive.usage)}
        if self.drive.limit is not None:
            quota["limit"] = str(self.drive.limit)
        user = {"displayName": "Alice", "emailAddress": "alice@example.org", "permissionId": "1"}
        return {"kind": "drive#about", "storageQuota": quota, "user": user}

    # Uploads

    def _upload(
        self, method: str, target: str, query: dict[str, str], fields: str, request: Request
    ) -> Response:
        kind = query.get("uploadType", "")
        if method == "PUT" or "upload_id" in query:
            session = self._session(request)
            if session is None:
                raise Refusal(404, "notFound", "No upload session.")
            return self._resume(session, request, fields)
        if method != ("PATCH" if target else "POST"):
            raise Refusal(404, "notFound")
        mime = request.headers.get("content-type", "")
        if kind == "media":
            return _json(pick(self._store(target, {}, request.body, mime).resource(), fields))
        if kind == "multipart":
            if len(request.body) > MULTIPART_LIMIT + (64 << 10):
                raise Refusal(413, "uploadTooLarge")
            values, mime, content = _related(mime, request.body)
            return _json(pick(self._store(target, values, content, mime).resource(), fields))
        if kind != "resumable":
            raise Refusal(400, "badRequest", "uploadType?")
        values = _object(request.body)
        if target:
            self.drive.get(target)
        else:
            self.drive.check_new(values)
        upload = secrets.token_urlsafe(24)
        self.sessions[upload] = UploadSession(
            target, values, request.headers.get("x-upload-content-type", "")
        )
        host = request.headers["host"]
        scheme = "http" if host.startswith("127.") else "https"
        query_text = urlsplit(request.target).query
        location = f"{scheme}://{host}{urlsplit(request.target).path}?{query_text}"
        return Response(200, {"location": f"{location}&upload_id={upload}"}, b"")

    def _session(self, request: Request) -> UploadSession | None:
        query = parse_qs(urlsplit(request.target).query)
        return self.sessions.get(query.get("upload_id", [""])[0])

    def _resume(self, session: UploadSession, request: Request, fields: str) -> Response:
        if session.made is not None:
            return _json(pick(session.made.resource(), fields))
        said = request.headers.get("content-range", "")
        if said:
            found = _CONTENT_RANGE.match(said)
            if not found:
                raise Refusal(400, "invalid", "Content-Range?")
            first, last, total = found.groups()
            if first is not None:
                if int(first) != len(session.received):
                    raise Refusal(400, "invalid", "Another range was expected.")
                if int(last) - int(first) + 1 != len(request.body):
                    raise Refusal(400, "invalid", "The body has another length.")
                session.received += request.body
            done = total != "*" and len(session.received) == int(total)
            if not done:
                if first is not None and len(request.body) % UNIT:
                    raise Refusal(400, "invalid", "Pieces are multiples of 256 KiB.")
                headers = {}
                if session.received:
                    headers["range"] = f"bytes=0-{len(session.received) - 1}"
                return Response(308, headers, b"")
        else:
            session.received = request.body
        session.made = self._store(session.target, session.values, session.received, session.mime)
        return _json(pick(session.made.resource(), fields))

    def _store(self, target: str, values: dict[str, Any], content: bytes, mime: str) -> FileRecord:
        if target:
            return self.drive.update(target, values, content)
        return self.drive.create(values, content, mime)

    # Tokens

    def new_token(self) -> str:
        """Every token ends now, and one is good from now on."""
        self.tokens = {f"token-{secrets.token_hex(8)}"}
        return next(iter(self.tokens))

    def _token(self, request: Request) -> Response:
        form = {k: v[0] for k, v in parse_qs(request.body.decode("latin-1")).items()}
        if form.get("grant_type") != "refresh_token" or form.get("refresh_token") != self.refresh:
            body = {"error": "invalid_grant", "error_description": "Token has been revoked."}
            return Response(400, _JSON, json.dumps(body).encode())
        values = {"access_token": self.new_token(), "token_type": "Bearer"}
        return _json({**values, "expires_in": self.lasts, "scope": "drive.file"})


_JSON = {"content-type": "application/json; charset=UTF-8"}


def refused(status: int, reason: str, message: str = "") -> Response:
    """An error as Drive words it."""
    error = {"domain": "usageLimits", "reason": reason, "message": message or reason}
    body = {"error": {"errors": [error], "code": status, "message": message or reason}}
    return Response(status, dict(_JSON), json.dumps(body, indent=1).encode())


def refusal(status: int, reason: str, **headers: str) -> Answer:
    """The same as a fault, with further headers: retry_after="7"."""
    more = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    body = refused(status, reason).body
    return Answer(status, "", (("content-type", _JSON["content-type"]), *more), body)


def _json(values: dict[str, Any]) -> Response:
    return Response(200, dict(_JSON), json.dumps(values, indent=1).encode())


def _object(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body or b"{}")
    except ValueError:
        raise Refusal(400, "parseError", "Parse Error") from None
    if not isinstance(values, dict):
        raise Refusal(400, "parseError", "Parse Error")
    return values


def _media(content: bytes, asked: str) -> Response:
    headers = {"content-type": "application/octet-stream"}
    found = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", asked)
    if not found:
        return Response(200, headers, content)
    first = int(found[1])
    last = min(int(found[2] or len(content)), len(content) - 1)
    if first >= len(content):
        status = refused(416, "requestedRangeNotSatisfiable")
        status.headers["content-range"] = f"bytes */{len(content)}"
        return status
    headers["content-range"] = f"bytes {first}-{last}/{len(content)}"
    return Response(206, headers, content[first : last + 1])


def _related(mime: str, body: bytes) -> tuple[dict[str, Any], str, bytes]:
    """The metadata, type and content of a multipart/related body (RFC 2387)."""
    found = re.search(r'boundary="?([^";]+)"?', mime)
    if not mime.startswith("multipart/related") or not found:
        raise Refusal(400, "badContent", "multipart/related?")
    mark = b"--" + found[1].encode()
    if not body.startswith(mark) or (b"\n" + mark + b"--") not in body:
        raise Refusal(400, "badContent", "Malformed multipart body.")
    body = body[: body.rindex(b"\n" + mark + b"--")]
    first_end = body.index(b"\n" + mark, len(mark))
    parts = []
    for part in (body[len(mark) : first_end], body[first_end + 1 + len(mark) :]):
        head, separator, content = re.split(rb"(\r?\n\r?\n)", part, maxsplit=1)
        assert separator
        parts.append((head.decode("latin-1"), content))
    (_, metadata), (head, content) = parts
    if body[first_end - 1 : first_end] == b"\r":
        metadata = metadata.removesuffix(b"\r")
    content = content.removesuffix(b"\r")
    kind = re.search(r"content-type:\s*(\S+)", head, re.IGNORECASE)
    return _object(metadata), kind[1] if kind else "", content


@dataclass(frozen=True)
class _Before(Fault):
    """What goes wrong with a request that the service answers, unless the fault does."""

    fault: Fault
    service: DriveServer

    async def before(self, request: Request, client: trio.SocketStream) -> Response:
        response = await self.fault.before(request, client)
        if response is None:
            response = await self.service.before(request, client)
            await self.fault.after(response, client)
        return response


class _Front(Proxy):
    """A proxy whose last rule is the service."""

    service: DriveServer

    def _fault(self, request: Request) -> Fault | None:
        fault = super()._fault(request)
        return _Before(fault, self.service) if fault else self.service


@asynccontextmanager
async def serving(service: DriveServer) -> AsyncIterator[DriveServer]:
    """Run *service* for the block."""
    async with proxying("http://127.0.0.1:9", _Front) as front:
        assert isinstance(front, _Front)
        front.service = service
        service.front = front
        yield service


class ThreadedDrive(ThreadedProxy):
    """A service in a thread of its own, for programs: ``with ThreadedDrive(service) as front``."""

    def __init__(self, service: DriveServer) -> None:
        super().__init__("")
        self.service = service

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        async with serving(self.service) as service:
            yield service.front
