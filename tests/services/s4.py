"""MEGA S4's rules, in front of an S3 service: what its specification refuses is refused here.

    async with serving(S4Service()) as service: ...       the tests' S3 in memory, with the rules
    proxy.always(S4Rules())                               the rules before a real server

From github.com/meganz/s4-specs (January 2026), MEGA's help pages and a bug report on keys; none of
it seen on the live service.  `violations` lists what a client did that S4 would not have.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlsplit

import trio

from tests.fakes.proxy import Fault, Request, Response
from tests.fakes.s3 import Service

#: Parts of the S3 API that S4 does not have, as they stand in a query.
_ABSENT = frozenset(
    {"accelerate", "acl", "analytics", "cors", "encryption", "inventory", "legal-hold"}
    | {"lifecycle", "logging", "metrics", "notification", "object-lock", "replication"}
    | {"requestPayment", "restore", "retention", "select", "tagging", "versionId"}
    | {"versioning", "versions", "website"}
)
_ABSENT_HEADERS = (
    "x-amz-acl",
    "x-amz-checksum-",
    "x-amz-grant-",
    "x-amz-object-lock-",
    "x-amz-sdk-checksum-algorithm",
    "x-amz-server-side-encryption",
    "x-amz-storage-class",
    "x-amz-tagging",
)
#: A client's keys beyond these were answered with SignatureDoesNotMatch.
_SAFE_KEY = re.compile(r"[A-Za-z0-9/_-]*\Z")
_PART_LEAST = 5 << 20


class S4Rules(Fault):
    """full: the account is over its quota.  crowded: so many uploads are told to come again."""

    def __init__(self) -> None:
        self.full = False
        self.crowded = 0
        self.violations: list[str] = []
        self.hosts: set[str] = set()
        self._parts: dict[str, dict[int, int]] = {}  # upload: number, size

    async def before(self, request: Request, client: trio.SocketStream) -> Response | None:
        return self.refusal(request)

    def refusal(self, request: Request) -> Response | None:
        """What S4 answers in place of carrying *request* out; None if it would."""
        self.hosts.add(request.headers.get("host", ""))
        parts = urlsplit(request.target)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        _, _, key = unquote(parts.path).lstrip("/").partition("/")
        writes = request.method in ("PUT", "POST")
        for name in query.keys() & _ABSENT:
            return self._no(501, "NotImplemented", f"{request.method} ?{name}")
        for name in request.headers:
            if name.startswith(_ABSENT_HEADERS):
                return self._no(501, "NotImplemented", name)
        if request.method == "DELETE" and request.headers.keys() & {"if-match", "if-none-match"}:
            return self._no(501, "NotImplemented", "a conditional delete")
        if key:
            trouble = self._key_trouble(key, request)
            if trouble is not None:
                return trouble
        if "uploadId" in query or "uploads" in query:
            return self._multipart(request, query)
        if writes and key and self.full:
            return _error(403, "AccountProblem")
        if writes and key and self.crowded > 0:
            self.crowded -= 1
            return _error(503, "ServiceUnavailable")
        return None

    def _key_trouble(self, key: str, request: Request) -> Response | None:
        inside = f"/{key}/"
        if len(key) > 1024 or key == ".." or "//" in key or "/./" in inside or "/../" in inside:
            return self._no(400, "InvalidArgument", f"the key {key!r}")
        if key.endswith("/") and request.body:
            return self._no(400, "InvalidArgument", f"bytes under the key {key!r}")
        if not _SAFE_KEY.match(key):
            return self._no(403, "SignatureDoesNotMatch", f"the key {key!r}")
        return None

    def _multipart(self, request: Request, query: dict[str, str]) -> Response | None:
        """Parts of one size, each sent once: a retry after a lost reply ends the upload."""
        upload = query.get("uploadId", "")
        number = int(query.get("partNumber", "0"))
        if number:
            known = self._parts.setdefault(upload, {})
            sizes = {size for at, size in known.items() if at < max(known)}
            if number in known or (sizes and len(request.body) > min(sizes)):
                del self._parts[upload]
                return self._no(400, "InvalidPart", f"part {number} once more, or of another size")
            known[number] = len(request.body)
            if number > 1 and known.get(1, _PART_LEAST) < _PART_LEAST:
                return self._no(400, "EntityTooSmall", "a part below 5 MiB")
        return None

    def _no(self, status: int, code: str, what: str) -> Response:
        self.violations.append(f"{code}: {what}")
        return _error(status, code)


class S4Service(Service):
    """An S4 in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.rules = S4Rules()

    async def before(self, request: Request, client: trio.SocketStream) -> Response:
        return self.rules.refusal(request) or await super().before(request, client)


def _error(status: int, code: str) -> Response:
    return Response(status, {}, f"<Error><Code>{code}</Code></Error>".encode())
