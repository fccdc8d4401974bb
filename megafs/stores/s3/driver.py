"""Objects in an S3 bucket: AWS, Ceph RGW, MinIO, Cloudflare R2, MEGA S4, Backblaze B2, ...

One PUT per object (completing a multipart upload ignores the condition on several engines), with
``If-None-Match: *`` for put_new(); one ranged GET per read; ListObjectsV2 with start-after.
Rules: Amazon's S3 API reference, and what Ceph 16 was seen to do (tests/stores/test_s3.py).

Options of an s3 URL, all optional (named in urls.py, read in `open_s3()`):

    endpoint        https://HOST[:PORT][/PATH]; without it AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL,
                    and then AWS itself
    region          without it AWS_REGION, AWS_DEFAULT_REGION, what the endpoint's name says, or
                    us-east-1
    path_style      yes: https://HOST/BUCKET/KEY, no: https://BUCKET.HOST/KEY; auto: no at AWS
    profile         a profile of ~/.aws/config and ~/.aws/credentials
    ca              a file of certificates to trust instead of the system's; or AWS_CA_BUNDLE
    sign_payload    yes: sign a hash of every body; auto: only where there is no TLS, since a hash
                    of 4 MiB costs 11 ms and megafs authenticates what it stores anyway
    conditional_put no: for a store that refuses If-None-Match (Backblaze B2); put_new() then looks
                    before it writes, which two machines at once can get wrong
    connect_timeout, read_timeout
                    seconds

Secrets are not among them: see credentials.py for where they are found.

Keys are the URL's prefix, a slash, and the object's name.  Objects below the prefix whose names are
not ours are not listed.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote, urlsplit

from megafs import clock
from megafs.concurrency import offload
from megafs.errors import (
    BadStore,
    BadUsage,
    Denied,
    Exists,
    Full,
    Missing,
    NoStore,
    StoreError,
    Unavailable,
)
from megafs.stores.base import Buffer, Entry, Health, ObjectStore, Page, check_name
from megafs.stores.http.session import Reply, Session, Timeouts
from megafs.stores.s3.credentials import Chain, Source
from megafs.stores.s3.sigv4 import EMPTY_SHA256, UNSIGNED, Signer, target
from megafs.stores.urls import S3_OPTIONS as OPTIONS

# A clock is only corrected when it is off by more than an answer can be late; S3 allows 15 minutes.
_SKEW = 60.0

# From here on hashing (0.4 GB/s) is worth a hop to a thread (0.1 ms).
_HASH_IN_PLACE = 64 << 10

# An entry of a listing is 300 bytes and a quoted key of up to 3 KiB.
_ENTRY = 4 << 10

# Inside the class `list` is a method.
_Entries = list[Entry]

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}\Z")
_PREFIX = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*\Z")

# The store does not know us, or no longer: worth reading the credentials again, once.
_STALE = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
_WAIT = frozenset(
    {
        "BadDigest",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
#: Of those, the ones that say that we ask for too much.
_BUSY = frozenset(
    {"ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"}
)
_FULL = frozenset({"InsufficientStorage", "QuotaExceeded", "StorageFull", "XMinioStorageFull"})
_ELSEWHERE = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "PermanentRedirect",
        "TemporaryRedirect",
    }
)


class S3Store(ObjectStore):
    """Objects in one bucket, below one prefix; options as in the module's docstring."""

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        credentials: Source,
        endpoint: str = "",
        region: str = "us-east-1",
        path_style: bool | None = None,
        sign_payload: bool | None = None,
        conditional_put: bool = True,
        connections: int = 16,
        timeouts: Timeouts | None = None,
        ca: Path | None = None,
    ) -> None:
        if not _BUCKET.match(bucket):
            raise BadStore(f"not the name of a bucket: {bucket!r}")
        prefix = prefix.strip("/")
        if prefix and not (_PREFIX.match(prefix) and {".", ".."}.isdisjoint(prefix.split("/"))):
            raise BadStore(
                f"the prefix {prefix!r} may hold letters, digits, '-', '_', '.' and single '/' only"
            )
        self._bucket = bucket
        self._prefix = prefix + "/" if prefix else ""
        self._region = region
        self._at_aws = not endpoint or _is_aws(endpoint)
        address = endpoint or _aws_endpoint(region)
        host = urlsplit(address).hostname or ""
        if path_style is None:
            # A dot in the bucket's name is one label too many for the wildcard certificate.
            path_style = not self._at_aws or "." in bucket
        if not path_style:
            if _is_address(host):
                raise BadStore(f"path_style=no cannot work with the address {host}")
            address = address.replace("://", f"://{bucket}.", 1)
        self._session = Session(address, connections=connections, timeouts=timeouts, ca=ca)
        self._root = self._session.base_path + (f"/{bucket}" if path_style else "")
        self._credentials = credentials
        self._signer = Signer(region)
        self._hash_bodies = not self._session.secure if sign_payload is None else sign_payload
        self._conditional_put = conditional_put
        self._offset = 0.0  # the server's clock minus ours, as we sign
        self._date_lies = False
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")

    async def get(self, name: str, start: int, length: int) -> bytes:
        check_name(name)
        # A range cannot be empty: ask for one byte, which also tells if the object is there.
        end = start + max(length, 1)
        reply = await self._ask(
            "GET",
            self._prefix + name,
            headers={"range": f"bytes={start}-{end - 1}"},
            limit=end - start,
            start=start,
        )
        if reply.status == 416:
            return b""
        if reply.status == 206:
            self._check_range(name, reply, start, end)
        elif reply.status != 200:
            self._refuse(reply, f"get {name}", write=False)
        return reply.body[:length]

    async def put_new(self, name: str, data: Buffer) -> None:
        if not self._conditional_put:
            await self._look(name)
            await self.put(name, data)
            return
        reply = await self._put(name, data, {"if-none-match": "*"})
        if reply.status == 412:
            raise Exists(f"{name}: the name is taken")
        if reply.status == 501:
            raise BadStore(
                f"{self._session.host} cannot create an object only if its name is free"
                " (it answers NotImplemented to If-None-Match); with conditional_put=no megafs can"
                " use it from one machine at a time"
            )
        self._settle(reply, f"put {name}")

    async def put(self, name: str, data: Buffer) -> None:
        self._settle(await self._put(name, data, {}), f"put {name}")

    async def delete(self, name: str) -> None:
        reply = await self._ask("DELETE", self._prefix + check_name(name))
        if reply.status == 404 and (not reply.body or _error(reply)[0] == "NoSuchKey"):
            return
        if not 200 <= reply.status < 300:
            self._refuse(reply, f"delete {name}", write=True)

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        entries: list[Entry] = []
        while True:
            keys, more, last = await self._list(prefix, after, min(limit, 1000))
            entries += keys
            # A page without a name of ours would end a listing too early: look at the next one.
            if entries or not more:
                return Page(entries, more)
            after = last

    async def create(self) -> None:
        query = {"list-type": "2", "max-keys": "1"}
        reply = await self._ask("GET", "", query=query, limit=2 * _ENTRY)
        if reply.status == 200:
            return
        try:
            self._refuse(reply, "look into the bucket", write=False)
        except NoStore:
            pass
        # us-east-1 has no LocationConstraint; engines elsewhere know their own place best.
        place = self._region if self._at_aws and self._region != "us-east-1" else ""
        body = (
            '<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<LocationConstraint>{place}</LocationConstraint></CreateBucketConfiguration>"
        )
        reply = await self._ask("PUT", "", body=body.encode() if place else b"", limit=_ENTRY)
        code, _ = _error(reply)
        if code == "BucketAlreadyOwnedByYou":
            return
        if code == "BucketAlreadyExists":
            raise Denied(f"the bucket {self._bucket} belongs to somebody else; choose another name")
        self._settle(reply, f"make the bucket {self._bucket}")

    async def aclose(self) -> None:
        await self._session.aclose()

    def health(self) -> Health:
        session = self._session
        return Health(
            last_error=session.last_error,
            details={
                "endpoint": session.host,
                "requests": session.requests,
                "failures": session.failures,
                "sent_bytes": session.sent,
                "received_bytes": session.received,
                "connections": session.connections,
                "clock_skew_seconds": round(session.skew or 0.0, 1),
            },
        )

    # One request

    async def _ask(
        self,
        method: str,
        key: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Buffer = b"",
        limit: int = _ENTRY,
        start: int = 0,
    ) -> Reply:
        """Sign and send; once more if the clock or the credentials were stale."""
        if not len(body):
            sha256 = EMPTY_SHA256
        elif self._hash_bodies:
            sha256 = await _sha256(body)
        else:
            sha256 = UNSIGNED
        # A key of the bucket itself is empty: "/bucket", but "/" where the host names the bucket.
        path = f"{self._root}/{key}" if key or not self._root else self._root
        where = target(path, query)
        shifted = renewed = False
        while True:
            credentials = await self._credentials.current()
            offset = self._offset
            signed = self._signer.sign(
                credentials,
                method,
                where,
                {"host": self._session.host, **(headers or {})},
                sha256,
                clock.now() + offset,
            )
            reply = await self._session.request(
                method, where, signed, body, limit=limit, start=start
            )
            if reply.status < 400:
                self._note_clock()
                return reply
            code, _ = _error(reply)
            if code == "RequestTimeTooSkewed" and not shifted:
                shifted = True
                if self._shift_clock(reply, offset):
                    continue
            if code in _STALE and not renewed:
                renewed = True
                if await self._credentials.renewed(credentials):
                    continue
            return reply

    async def _put(self, name: str, data: Buffer, condition: Mapping[str, str]) -> Reply:
        key = self._prefix + check_name(name)
        return await self._ask("PUT", key, headers=condition, body=data)

    async def _look(self, name: str) -> None:
        reply = await self._ask("HEAD", self._prefix + check_name(name))
        if reply.status == 200:
            raise Exists(f"{name}: the name is taken")
        if reply.status != 404:
            self._refuse(reply, f"look for {name}", write=False)

    async def _list(self, prefix: str, after: str, limit: int) -> tuple[_Entries, bool, str]:
        """Return one page: our entries, whether more follow, and the last name whosever it is."""
        query = {
            "list-type": "2",
            "prefix": self._prefix + prefix,
            "max-keys": str(limit),
            "encoding-type": "url",
        }
        if after:
            query["start-after"] = self._prefix + after
        reply = await self._ask("GET", "", query=query, limit=(limit + 1) * _ENTRY)
        if reply.status != 200:
            self._refuse(reply, "list", write=False)
        if reply.more:
            raise StoreError(f"{self._session.host}: a listing is longer than it can be")
        root = _parse(reply.body)
        if root is None or _tag(root) != "ListBucketResult":
            raise Unavailable(f"{self._session.host}: this is not a listing; is it S3?")
        entries: list[Entry] = []
        last = after
        more = False
        for child in root:
            tag = _tag(child)
            if tag == "IsTruncated":
                more = (child.text or "").strip() == "true"
            if tag != "Contents":
                continue
            values = {_tag(part): part.text or "" for part in child}
            key = unquote(values.get("Key", ""))
            if not key.startswith(self._prefix):
                raise StoreError(f"{self._session.host}: a listing holds what was not asked for")
            name = key[len(self._prefix) :]
            if last and name <= last:
                raise StoreError(f"{self._session.host}: a listing is not in order")
            last = name
            try:
                size = int(values.get("Size", ""))
                entries.append(Entry(check_name(name), size, _seconds(values["LastModified"])))
            except BadUsage:
                continue  # somebody else's object
            except (ValueError, KeyError) as exc:
                raise StoreError(f"{self._session.host}: a listing cannot be read") from exc
        return entries, more and last != after, last

    # What an answer means

    def _check_range(self, name: str, reply: Reply, start: int, end: int) -> None:
        """See that the bytes are those asked for, and all of them."""
        match = re.fullmatch(
            r"bytes (\d+)-(\d+)/(\d+|\*)", reply.headers.get("content-range", "").strip()
        )
        if match:
            first, beyond = int(match[1]), int(match[2]) + 1
            total = beyond if match[3] == "*" else int(match[3])
            whole = beyond == end <= total or beyond == total < end
            if first == start and whole and len(reply.body) == beyond - start and not reply.more:
                return
        raise Unavailable(f"get {name}: {self._session.host} sent another range than asked for")

    def _settle(self, reply: Reply, what: str) -> None:
        """Accept the success of a write; raise anything else, and errors dressed as success."""
        if not 200 <= reply.status < 300 or (reply.body and _error(reply)[0]):
            self._refuse(reply, what, write=True)

    def _refuse(self, reply: Reply, what: str, *, write: bool) -> NoReturn:
        """Raise the error that *reply* is."""
        status = reply.status
        code, message = _error(reply)
        said = f"{what}: {self._session.host} answers {status} {code}".rstrip()
        if message:
            said += f" ({message})"
        exc = self._refusal(reply, said, code, write)
        self._session.last_error = str(exc)
        raise exc

    def _refusal(self, reply: Reply, said: str, code: str, write: bool) -> StoreError:
        status = reply.status
        region = reply.headers.get("x-amz-bucket-region") or _inside(reply, "Region")
        if code in _ELSEWHERE or (status in (301, 307, 308, 400) and region):
            if region and region != self._region:
                return BadStore(f"{said}; the bucket's region is {region}: give region={region}")
            return BadStore(f"{said}; check the region and the endpoint")
        if code in _FULL or status == 507:
            return Full(said)
        if code == "NoSuchBucket":
            return NoStore(f"{said}; there is no bucket {self._bucket}")
        if code == "NoSuchKey":
            return Missing(said)
        if status == 404:
            # HEAD has no body, and some engines send none.
            if not reply.body:
                return Missing(said)
            return Unavailable(f"{said}; this is not an answer of S3")
        if code in _WAIT or status in (408, 409, 429) or status >= 500:
            # Only a plain "too many" is sure to have been answered before anything was done.
            maybe_done = write and status != 429
            return Unavailable(
                said,
                retry_after=_retry_after(reply),
                maybe_done=maybe_done,
                busy=code in _BUSY or status in (429, 503),
            )
        if code == "RequestTimeTooSkewed":
            return Denied(f"{said}; is this machine's clock right?")
        if code in ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"):
            return Denied(f"{said}; the credentials have expired: get new ones")
        if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"):
            return Denied(f"{said}; check the access key, the secret key and the region")
        if status in (401, 403):
            return Denied(
                f"{said}; do the credentials allow GetObject, PutObject, DeleteObject and"
                f" ListBucket on the bucket {self._bucket}?"
            )
        if 300 <= status < 400:
            return Unavailable(f"{said}; is there a login page on the way?")
        if code in ("InvalidBucketName", "InvalidLocationConstraint", "MethodNotAllowed"):
            return BadStore(said)
        return StoreError(said)

    # Clocks

    def _note_clock(self) -> None:
        """Follow the server's clock while it accepts our signatures."""
        skew = self._session.skew
        if skew is not None and not self._date_lies and abs(skew - self._offset) > _SKEW:
            self._offset = skew if abs(skew) > _SKEW else 0.0

    def _shift_clock(self, reply: Reply, used: float) -> bool:
        """Choose another offset after one was refused; False if there is none to try."""
        if self._offset != used:
            return True  # another request has found the right one meanwhile
        stated = _inside(reply, "ServerTime")
        skew = _seconds(stated) - clock.now() if stated else self._session.skew
        if skew is not None and abs(skew - used) > _SKEW:
            self._offset = skew
            return True
        if used:
            # We signed with the time of its Date header: something on the way writes its own.
            self._date_lies = True
            self._offset = 0.0
            return True
        return False


def open_s3(
    bucket: str, prefix: str, options: Mapping[str, str], *, connections: int = 16
) -> S3Store:
    """Return the store for s3://bucket/prefix; *options* as in the module's docstring."""
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise BadStore(
            f"s3 does not know the option {unknown[0]}=; it knows {', '.join(sorted(OPTIONS))}"
        )
    environment = os.environ.get
    endpoint = (
        options.get("endpoint")
        or environment("AWS_ENDPOINT_URL_S3")
        or environment("AWS_ENDPOINT_URL")
        or ""
    )
    if endpoint and "://" not in endpoint:
        endpoint = f"https://{endpoint}"
    region = (
        options.get("region")
        or environment("AWS_REGION")
        or environment("AWS_DEFAULT_REGION")
        or _region_of(endpoint)
        or "us-east-1"
    )
    ca = options.get("ca") or environment("AWS_CA_BUNDLE")
    return S3Store(
        bucket,
        prefix,
        credentials=Chain(options.get("profile", ""), at_aws=not endpoint or _is_aws(endpoint)),
        endpoint=endpoint,
        region=region,
        path_style=_choice(options, "path_style"),
        sign_payload=_choice(options, "sign_payload"),
        conditional_put=_choice(options, "conditional_put") is not False,
        connections=connections,
        timeouts=Timeouts(
            connect=_seconds_of(options, "connect_timeout", Timeouts().connect),
            read=_seconds_of(options, "read_timeout", Timeouts().read),
        ),
        ca=Path(ca) if ca else None,
    )


def _choice(options: Mapping[str, str], name: str) -> bool | None:
    value = options.get(name, "auto").lower()
    if value in ("yes", "true", "1", "on"):
        return True
    if value in ("no", "false", "0", "off"):
        return False
    if value == "auto":
        return None
    raise BadStore(f"{name}= takes yes, no or auto, not {value!r}")


def _seconds_of(options: Mapping[str, str], name: str, default: float) -> float:
    value = options.get(name)
    if value is None:
        return default
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise BadStore(f"{name}= takes seconds, more than 0 and at most 3600, not {value!r}")
    return seconds


def _aws_endpoint(region: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]+", region):
        raise BadStore(f"not a region: {region!r}")
    tail = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"https://s3.{region}.{tail}"


def _is_aws(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _region_of(endpoint: str) -> str:
    """The region in the name of a well-known service's endpoint, or ""."""
    host = urlsplit(endpoint).hostname or ""
    if host.endswith(".r2.cloudflarestorage.com"):
        return "auto"
    # s3.eu-central-003.backblazeb2.com, s3.eu-central-1.s4.mega.io, s3.eu-west-1.amazonaws.com, ...
    match = re.match(r"s3[.-]([a-z]{2}(?:-[a-z]+)+-\d+)\.", host)
    return match.group(1) if match else ""


async def _sha256(body: Buffer) -> str:
    if len(body) < _HASH_IN_PLACE:
        return hashlib.sha256(body).hexdigest()
    return await offload(lambda: hashlib.sha256(body).hexdigest())


def _retry_after(reply: Reply) -> float | None:
    value = reply.headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value[:9])
    try:
        moment = parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
    server_now = _header_time(reply) or clock.now()
    return max(0.0, moment - server_now)


def _header_time(reply: Reply) -> float | None:
    try:
        return parsedate_to_datetime(reply.headers.get("date", "")).timestamp()
    except (ValueError, OverflowError):
        return None


def _seconds(iso: str) -> float:
    """Seconds since 1970 of a time as S3 writes it: 2026-01-31T12:00:00.000Z."""
    return datetime.fromisoformat(iso.strip()).timestamp()


# XML.  Expat expands entities, which can make gigabytes out of a line, and they can only be
# defined in a document type: none is allowed.


class _Plain(ET.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("a document type")


def _parse(body: bytes) -> ET.Element | None:
    """The root of an XML document, None if *body* is not one."""
    parser = ET.XMLParser(target=_Plain(), encoding="utf-8")
    try:
        parser.feed(body)
        root: ET.Element = parser.close()
    except (ET.ParseError, ValueError, LookupError):
        return None
    return root


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]  # engines differ in the namespace they give


def _inside(reply: Reply, tag: str) -> str:
    """The text of a child of the answer's root, or ""."""
    root = _parse(reply.body) if reply.body[:1] == b"<" else None
    if root is not None:
        for child in root:
            if _tag(child) == tag:
                return (child.text or "").strip()[:64]
    return ""


def _error(reply: Reply) -> tuple[str, str]:
    """The code and the message of an error, "" where there is none; safe to print."""
    body = reply.body.lstrip()
    root = _parse(body) if body[:1] == b"<" else None
    if root is None or _tag(root) != "Error":
        return "", ""
    values = {_tag(child): child.text or "" for child in root}
    code = re.sub(r"[^A-Za-z0-9.]", "", values.get("Code", ""))[:64]
    message = re.sub(r"[^ -~]+", " ", values.get("Message", "")).strip()[:200]
    return code, message
