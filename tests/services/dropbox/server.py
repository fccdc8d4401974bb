"""Dropbox's hosts on loopback: HTTP, tokens, and what the service does when it is not well.

Plain HTTP, for our driver; with *authority* TLS on the same port as well, for the SDK, which speaks
nothing else, and CONNECT, so that a program that takes a proxy (rclone) reaches this server under
the names of Dropbox's own hosts.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import socket
import ssl
import threading
import time
from base64 import urlsafe_b64encode
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from tests.services.dropbox.account import Account, ApiError, BadInput, Json, TooMany, tag
from tests.services.dropbox.routes import ROUTES

CLIENT_ID = "5ad3kq1lchqmzs5"
#: What an access token lasts, in seconds.
LASTS = 14400
SCOPES = frozenset(
    {"files.content.write", "files.content.read", "files.metadata.read", "account_info.read"}
)


class Reply(NamedTuple):
    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class DropboxService:
    """The service with one account; `with DropboxService() as service:` starts and ends it.

    authority: a directory of tests/fakes/authority.py, for TLS.
    requests: how many calls of each route came.  tokens: access tokens, and when each ends.
    Knobs: rate, how many requests are taken in a second before 429, and retry_after, what that says
    (seconds or a date); scopes, what tokens are good for; backoff, what a long poll asks the client
    to wait.
    """

    def __init__(self, authority: Path | None = None) -> None:
        self.account = Account()
        self.requests: Counter[str] = Counter()
        self.tokens: dict[str, float] = {}
        self.refresh_tokens: set[str] = set()
        self.codes: dict[str, str] = {}
        self.scopes = SCOPES
        self.rate: float | None = None
        self.retry_after = "1"
        self.backoff: int | None = None
        self.polls = 0
        self.most_at_once: Counter[str] = Counter()
        self.refused = 0
        self._recent: list[float] = []
        self._running: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._ended = False
        self._context: ssl.SSLContext | None = None
        if authority is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(authority / "server.pem")
        self._server = _Server(self)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def host(self) -> str:
        """Address and port, for the SDK."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> DropboxService:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._ended = True
        with self.account.changed:
            self.account.changed.notify_all()
        self._server.shutdown()
        self._server.break_connections()
        self._server.server_close()

    # Tokens

    def token(self, lasts: float = LASTS) -> str:
        """A new access token."""
        made = "sl." + secrets.token_urlsafe(24)
        self.tokens[made] = time.monotonic() + lasts
        return made

    def refresh_token(self) -> str:
        made = secrets.token_urlsafe(24)
        self.refresh_tokens.add(made)
        return made

    def code(self, challenge: str) -> str:
        """What a user who agreed pastes, for a client that sent this S256 challenge."""
        made = secrets.token_urlsafe(16)
        self.codes[made] = challenge
        return made

    def expire(self) -> None:
        """Every access token has ended."""
        self.tokens = dict.fromkeys(self.tokens, 0.0)

    def revoke(self) -> None:
        """The user has disconnected the app."""
        self.tokens.clear()
        self.refresh_tokens.clear()

    def refusal(self, authorization: str, scope: str) -> Reply | None:
        ends = self.tokens.get(authorization.removeprefix("Bearer "))
        if ends is None:
            return _error(401, tag("invalid_access_token"))
        if ends < time.monotonic():
            return _error(401, tag("expired_access_token"))
        if scope not in self.scopes:
            return _error(401, tag("missing_scope", required_scope=scope))
        return None

    def oauth(self, form: dict[str, str]) -> Reply:
        def bad(error: str) -> Reply:
            return _json(400, {"error": error, "error_description": error.replace("_", " ")})

        if form.get("client_id") != CLIENT_ID:
            return bad("invalid_client: Invalid client_id or client_secret")
        answer: Json = {"token_type": "bearer", "expires_in": LASTS}
        if form.get("grant_type") == "refresh_token":
            if form.get("refresh_token") not in self.refresh_tokens:
                return bad("invalid_grant")
        elif form.get("grant_type") == "authorization_code":
            challenge = self.codes.pop(form.get("code", ""), None)
            verifier = form.get("code_verifier", "").encode()
            made = urlsafe_b64encode(hashlib.sha256(verifier).digest()).rstrip(b"=").decode()
            if challenge is None or made != challenge:
                return bad("invalid_grant")
            answer |= {"refresh_token": self.refresh_token(), "scope": " ".join(self.scopes)}
        else:
            return bad("unsupported_grant_type")
        return _json(200, {**answer, "access_token": self.token()})

    # Calls

    def too_many(self) -> Reply | None:
        """429, if more calls come than the knob allows.  Those that are refused count, too."""
        with self._lock:
            now = time.monotonic()
            self._recent = [at for at in self._recent if at > now - 1] + [now]
            if self.rate is None or len(self._recent) <= self.rate:
                return None
            self.refused += 1
        return self.limited("too_many_requests")

    def limited(self, reason: str) -> Reply:
        seconds = int(self.retry_after) if self.retry_after.isdecimal() else 1
        error = {"reason": {".tag": reason}, "retry_after": seconds}
        body = {"error_summary": f"{reason}/..", "error": error}
        return _json(429, body, ("Retry-After", self.retry_after))

    def call(self, name: str, headers: Any, body: bytes) -> Reply:
        """Answer a call of a route."""
        self.requests[name] += 1
        if name == "files/list_folder/longpoll":
            return self._longpoll(json.loads(body))
        route = ROUTES.get(name)
        if route is None:
            return Reply(404, b"Unknown API function", (("Content-Type", "text/plain"),))
        refused = self.too_many() or self.refusal(headers.get("Authorization", ""), route.scope)
        if refused is not None:
            return refused
        if route.style == "rpc":
            text = body.decode() or "null"
        else:
            text = headers.get("Dropbox-API-Arg", "")
            kind = headers.get("Content-Type", "")
            if route.style == "upload" and kind != "application/octet-stream":
                return _bad(f'Bad HTTP "Content-Type" header: {kind!r}.')
        if not text.isascii() and route.style != "rpc":
            return _bad('HTTP header "Dropbox-API-Arg": not ASCII')
        try:
            arg = json.loads(text) or {}
            if unknown := set(arg) - route.fields:
                raise BadInput(f"unknown field {sorted(unknown)}")
            if missing := route.required - set(arg):
                raise BadInput(f"missing required field {sorted(missing)}")
            with self._lock:
                self._running[route.scope] += 1
                self.most_at_once[route.scope] = max(
                    self.most_at_once[route.scope], self._running[route.scope]
                )
            try:
                made = route.call(self.account, arg, body)
            finally:
                with self._lock:
                    self._running[route.scope] -= 1
        except (BadInput, ValueError, KeyError, TypeError, AttributeError) as exc:
            return _bad(f'Error in call to API function "{name}": {exc}')
        except ApiError as exc:
            return _error(409, exc.error)
        except TooMany:
            return self.limited("too_many_write_operations")
        if route.style == "download":
            assert made is not None
            return self._file(made, headers.get("Range"))
        return _json(200, made)

    def _file(self, made: Json, wanted: str | None) -> Reply:
        data = self.account.nodes[made["path_lower"]].data
        if data is None or made["size"] != len(data):
            return Reply(503, b"try again")
        headers = [
            ("Dropbox-API-Result", json.dumps(made)),
            ("Content-Type", "application/octet-stream"),
            ("ETag", f'W/"{made["rev"]}"'),
            ("Accept-Ranges", "bytes"),
        ]
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        if match is None:
            return Reply(200, data, tuple(headers))
        start, end = int(match[1]), int(match[2] or len(data) - 1) + 1
        if start >= len(data):
            return Reply(416, b"", (*headers, ("Content-Range", f"bytes */{len(data)}")))
        end = min(end, len(data))
        headers.append(("Content-Range", f"bytes {start}-{end - 1}/{len(data)}"))
        return Reply(206, data[start:end], tuple(headers))

    def _longpoll(self, arg: Json) -> Reply:
        timeout = arg.get("timeout", 30)
        if set(arg) - {"cursor", "timeout"} or not 30 <= timeout <= 480:
            return _bad("timeout: not within 30 and 480")
        ends = time.monotonic() + timeout
        self.polls += 1
        more = {} if self.backoff is None else {"backoff": self.backoff}
        try:
            with self.account.changed:
                while not (news := self.account.has_news(arg["cursor"])):
                    left = ends - time.monotonic()
                    if left <= 0 or self._ended:
                        break
                    self.account.changed.wait(left)
        except ApiError as exc:
            return _error(409, exc.error)
        except BadInput as exc:
            return _bad(str(exc))
        return _json(200, {"changes": news, **more})


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 256

    def __init__(self, service: DropboxService) -> None:
        self.service = service
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def break_connections(self) -> None:
        """Wake every thread that reads from a client."""
        for connection in list(self.open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.open.add(self.request)
        context = self.server.service._context
        if context is not None and self.request.recv(1, socket.MSG_PEEK) == b"\x16":
            self._wrap(context)
        super().setup()

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.rfile.close()
            self.server.open.discard(self.request)
            self.request.close()

    def _wrap(self, context: ssl.SSLContext) -> None:
        self.server.open.discard(self.request)
        self.request = context.wrap_socket(self.request, server_side=True)
        self.connection = self.request
        self.server.open.add(self.request)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_CONNECT(self) -> None:
        context = self.server.service._context
        if context is None:
            self._send(Reply(405, b"no TLS here"))
            return
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self._wrap(context)
        self.rfile = self.connection.makefile("rb", -1)
        self.wfile = self.connection.makefile("wb", -1)
        self.close_connection = False

    def do_POST(self) -> None:
        body = self._body()
        path = urlsplit(self.path).path
        service = self.server.service
        if path == "/oauth2/token":
            service.requests["oauth2/token"] += 1
            form = {k: v[0] for k, v in parse_qs(body.decode()).items()}
            self._send(service.oauth(form))
        else:
            self._send(service.call(path.removeprefix("/2/"), self.headers, body))

    def do_GET(self) -> None:
        """The download routes take GET as well, the argument in the header or in the query."""
        parts = urlsplit(self.path)
        name = parts.path.removeprefix("/2/")
        if name not in ROUTES or ROUTES[name].style != "download":
            self._send(Reply(404, b"nothing here"))
            return
        query = parse_qs(parts.query)
        if "arg" in query and "Dropbox-API-Arg" not in self.headers:
            self.headers["Dropbox-API-Arg"] = query["arg"][0]
        self._send(self.server.service.call(name, self.headers, b""))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # half a request is none
            self.close_connection = True
            raise ConnectionError
        return body

    def _send(self, reply: Reply) -> None:
        lines = [
            f"HTTP/1.1 {reply.status} -",
            f"Date: {formatdate(usegmt=True)}",
            f"Content-Length: {len(reply.body)}",
            f"X-Dropbox-Request-Id: {secrets.token_hex(8)}",
            *(f"{name}: {value}" for name, value in reply.headers),
        ]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1") + reply.body)


def _json(status: int, body: Any, *headers: tuple[str, str]) -> Reply:
    data = json.dumps(body).encode()
    return Reply(status, data, (("Content-Type", "application/json"), *headers))


def _error(status: int, error: Json) -> Reply:
    return _json(status, {"error_summary": str(ApiError(error)), "error": error})


def _bad(text: str) -> Reply:
    return Reply(400, text.encode(), (("Content-Type", "text/plain; charset=utf-8"),))
