"""A small S3 service in memory, for what no real server can be told to do.

    async with serving(Service(body_limit=1 << 20)) as service:
        S3Settings(endpoint=service.endpoint)

It is a fault of the proxy that answers every request itself, so faults go before it:
``service.proxy.next(Answer(503, "SlowDown"))``.  Signatures are not checked, only which key is
named; real servers check the signer (tests/stores/test_s3.py).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

import trio

from tests.fakes.proxy import Fault, Proxy, Request, Response, ThreadedProxy, proxying

_LIST = '<?xml version="1.0"?><ListBucketResult><IsTruncated>{}</IsTruncated>{}</ListBucketResult>'
_ENTRY = (
    "<Contents><Key>{}</Key><LastModified>2026-01-31T12:00:00.000Z</LastModified>"
    "<Size>{}</Size></Contents>"
)


class Service(Fault):
    """Any bucket, as if it were there.

    body_limit: of a proxy in front, as nginx says it.
    keys: access keys that are known; None for any.
    may_list: whether the policy allows to list a prefix.
    window: called between looking and writing: a server that checks and then acts.
    conditions: what becomes of If-None-Match: "kept", "ignored", or "refused" with 501.
    """

    def __init__(
        self,
        *,
        body_limit: int | None = None,
        keys: set[str] | None = None,
        may_list: Callable[[str], bool] = lambda prefix: True,
        window: Callable[[], float] | None = None,
        conditions: Literal["kept", "ignored", "refused"] = "kept",
    ) -> None:
        self.body_limit = body_limit
        self.keys = keys
        self.may_list = may_list
        self.window = window
        self.conditions = conditions
        self.objects: dict[str, bytes] = {}
        self.proxy: Proxy

    @property
    def endpoint(self) -> str:
        return self.proxy.endpoint

    async def before(self, request: Request, client: trio.SocketStream) -> Response:
        if self.body_limit is not None and len(request.body) > self.body_limit:
            body = b"<html><head><title>413 Request Entity Too Large</title></head></html>"
            return Response(413, {"content-type": "text/html"}, body)
        access = re.search("Credential=([^/]+)/", request.headers.get("authorization", ""))
        if self.keys is not None and (access is None or access[1] not in self.keys):
            return _error(403, "AccessDenied", request)
        parts = urlsplit(request.target)
        _, _, key = unquote(parts.path).lstrip("/").partition("/")
        if not key:
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            return self._bucket(request, query)
        match request.method:
            case "PUT":
                return await self._put(request, key)
            case "DELETE":
                self.objects.pop(key, None)
                return Response(204, {}, b"")
        if key not in self.objects:
            return _error(404, "NoSuchKey", request)
        data = self.objects[key]
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
        if span is None:
            return Response(200, {}, data)
        first, last = int(span[1]), min(int(span[2]), len(data) - 1)
        if first >= len(data):
            return _error(416, "InvalidRange", request)
        said = {"content-range": f"bytes {first}-{last}/{len(data)}"}
        return Response(206, said, data[first : last + 1])

    async def _put(self, request: Request, key: str) -> Response:
        asked = "if-none-match" in request.headers
        if asked and self.conditions == "refused":
            return _error(501, "NotImplemented", request)
        taken = asked and self.conditions == "kept" and key in self.objects
        if self.window is not None:
            await trio.sleep(self.window())
        if taken:
            return _error(412, "PreconditionFailed", request)
        self.objects[key] = request.body
        return Response(200, {"etag": f'"{hashlib.md5(request.body).hexdigest()}"'}, b"")

    def _bucket(self, request: Request, query: dict[str, str]) -> Response:
        if request.method == "PUT":
            return Response(200, {}, b"")
        prefix, after = query.get("prefix", ""), query.get("start-after", "")
        if not self.may_list(prefix):
            return _error(403, "AccessDenied", request)
        names = sorted(k for k in self.objects if k.startswith(prefix) and k > after)
        limit = int(query.get("max-keys", "1000"))
        entries = (_ENTRY.format(quote(name), len(self.objects[name])) for name in names[:limit])
        more = "true" if len(names) > limit else "false"
        return Response(200, {}, _LIST.format(more, "".join(entries)).encode())


def _error(status: int, code: str, request: Request) -> Response:
    body = b"" if request.method == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode()
    return Response(status, {}, body)


class _Front(Proxy):
    """A proxy whose last rule is the service, whatever rules are added later."""

    service: Service

    def _fault(self, request: Request) -> Fault | None:
        return super()._fault(request) or self.service


class ThreadedService(ThreadedProxy):
    """A service in a thread of its own, for programs: ``with ThreadedService(Service()) as s:``."""

    def __init__(self, service: Service) -> None:
        super().__init__("")
        self.service = service

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        async with serving(self.service) as service:
            yield service.proxy


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[Service]:
    """Run *service* for the block."""
    async with proxying("http://127.0.0.1:9", _Front) as front:
        assert isinstance(front, _Front)
        front.service = service
        service.proxy = front
        yield service
