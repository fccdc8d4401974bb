"""Let browsers, and people without credentials, read what links lead to: CORS, and a bucket policy.

Rules and statements of others are kept; ours are told by their ID.  The forms are Amazon's (S3 API
reference: PutBucketCors, PutBucketPolicy).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final, Protocol
from xml.etree import ElementTree as Xml

from megafs.errors import BadStore, StoreError
from megafs.stores.base import Buffer
from megafs.stores.http.session import Response
from megafs.stores.s3.answers import error_of, parse, tag_of

_SPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
_OURS: Final = "megafs-share"
#: The most bytes of rules or of a policy (Amazon takes 64 KiB and 20 KiB).
LIMIT: Final = 256 << 10
#: How long a browser may remember what it was allowed, in seconds.
_REMEMBER: Final = 3600


class BucketRequests(Protocol):
    """Sends a signed request about the bucket itself."""

    async def __call__(
        self,
        method: str,
        query: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        body: Buffer = b"",
    ) -> Response: ...


async def allow_origin(ask: BucketRequests, origin: str) -> bool:
    """Let the page at *origin* read; False if the service has no such thing."""
    reply = await ask("GET", {"cors": ""})
    code, _ = error_of(reply)
    rules: list[Xml.Element] = []
    if reply.status == 200:
        found = parse(reply.body)
        if found is None:
            raise StoreError("the bucket's CORS rules cannot be read")
        rules = [rule for rule in found if _child(rule, "ID") != _OURS]
    elif code not in ("NoSuchCORSConfiguration", "NoSuchKey"):
        return False
    document = Xml.Element("CORSConfiguration", xmlns=_SPACE)
    for rule in rules:
        document.append(_plain(rule))
    ours = Xml.SubElement(document, "CORSRule")
    for name, value in (
        ("ID", _OURS),
        ("AllowedOrigin", origin),
        ("AllowedMethod", "GET"),
        ("AllowedMethod", "HEAD"),
        ("AllowedHeader", "range"),
        ("ExposeHeader", "content-range"),
        ("ExposeHeader", "content-length"),
        ("ExposeHeader", "retry-after"),
        ("MaxAgeSeconds", str(_REMEMBER)),
    ):
        Xml.SubElement(ours, name).text = value
    body = Xml.tostring(document, encoding="utf-8")
    reply = await ask("PUT", {"cors": ""}, _with_sum(body), body)
    return 200 <= reply.status < 300


async def allow_manifests(ask: BucketRequests, resource: str) -> bool:
    """Let everybody get what lies below *resource*, an ARN that ends in "*"; False if refused."""
    reply = await ask("GET", {"policy": ""})
    policy: dict[str, Any] = {"Version": "2012-10-17", "Statement": []}
    if reply.status == 200:
        try:
            policy = json.loads(reply.body)
            statements = policy["Statement"]
            if isinstance(statements, dict):
                statements = [statements]
            policy["Statement"] = [one for one in statements if one.get("Sid") != _OURS]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadStore(
                "the bucket's policy cannot be read, so nothing is added to it"
            ) from None
    elif error_of(reply)[0] not in ("NoSuchBucketPolicy", "NoSuchKey"):
        return False
    policy["Statement"].append(
        {
            "Sid": _OURS,
            "Effect": "Allow",
            "Principal": "*",
            "Action": ["s3:GetObject"],
            "Resource": [resource],
        }
    )
    body = json.dumps(policy).encode()
    reply = await ask("PUT", {"policy": ""}, _with_sum(body), body)
    return 200 <= reply.status < 300


def _with_sum(body: bytes) -> dict[str, str]:
    digest = hashlib.md5(body, usedforsecurity=False).digest()
    return {"content-md5": base64.b64encode(digest).decode("ascii")}


def _child(rule: Xml.Element, name: str) -> str:
    for child in rule:
        if tag_of(child) == name:
            return child.text or ""
    return ""


def _plain(element: Xml.Element) -> Xml.Element:
    """The element without namespaces: the document has one for all."""
    made = Xml.Element(tag_of(element))
    made.text = element.text
    made.extend(_plain(child) for child in element)
    return made
