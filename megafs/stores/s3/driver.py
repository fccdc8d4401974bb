"""Objects in an S3 bucket: AWS, Ceph RGW, MinIO, Cloudflare R2, MEGA S4, Backblaze B2, ...

One PUT per object (completing a multipart upload ignores the condition on several engines), with
``If-None-Match: *`` for put_new(); one ranged GET per read; ListObjectsV2 with start-after.
Rules: Amazon's S3 API reference, and what Ceph 16 was seen to do (tests/stores/test_s3.py).

Options: options.py.  Secrets: credentials.py.

Keys are the URL's prefix, a slash, and the object's name.  Objects below the prefix whose names are
not ours are not listed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from megafs import clock
from megafs.concurrency import offload
from megafs.errors import BadStore, Denied, Exists, NoStore, StoreError, Unavailable
from megafs.stores.abilities import (
    LimitedBodies,
    PlainUrls,
    Presign,
    UnconditionalPuts,
    WebAccess,
)
from megafs.stores.base import Buffer, Health, ObjectStore, Page, check_name
from megafs.stores.http.content_range import holds_range
from megafs.stores.http.session import Response, Session
from megafs.stores.s3 import web_access
from megafs.stores.s3.answers import Listing, child_text, error_of, read_listing, seconds_of
from megafs.stores.s3.credentials import Chain, Source
from megafs.stores.s3.errors import STALE_CREDENTIALS, error_for
from megafs.stores.s3.options import S3Settings, address_of, check_bucket, read_options
from megafs.stores.s3.sigv4 import EMPTY_SHA256, UNSIGNED, Signer, target
from megafs.stores.urls import Location

# A clock is only corrected when it is off by more than an answer can be late; S3 allows 15 minutes.
_SKEW = 60.0

#: The most seconds that we sign ahead of our own clock, or behind it: a week, for which a signed
#: URL may be good anyway.  Who says that it is 2049 would have signatures that are good in 2049.
MAX_SHIFT = 7 * 86400.0

#: The most seconds for which a request can be signed ahead (Amazon's S3 API reference).
MAX_PRESIGNED = 7 * 86400
# Pages in a row without a name of ours, after which a listing is given up.
_FOREIGN_PAGES = 100

# From here on hashing (0.4 GB/s) is worth a hop to a thread (0.1 ms).
_HASH_IN_PLACE = 64 << 10

# An entry of a listing is 300 bytes and a quoted key of up to 3 KiB.
_ENTRY = 4 << 10


def open_driver(location: Location, options: Mapping[str, str], connections: int) -> S3Store:
    """Open s3://bucket/prefix: see stores/drivers.py."""
    settings = read_options(options)
    file = options.get("credentials_file")
    credentials = Chain(
        options.get("profile", ""),
        at_aws=settings.at_aws,
        region=settings.region if settings.region_given or settings.at_aws else "",
        file=Path(file).expanduser().absolute() if file else None,
    )
    return S3Store(location.name, location.path, credentials, settings, connections=connections)


class S3Store(ObjectStore, LimitedBodies, UnconditionalPuts, Presign, PlainUrls, WebAccess):
    """Objects in one bucket, below one prefix."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        credentials: Source,
        settings: S3Settings,
        *,
        connections: int = 16,
    ) -> None:
        prefix = prefix.strip("/")
        check_bucket(bucket, prefix)
        address = address_of(bucket, settings)
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = prefix + "/" if prefix else ""
        self._settings = settings
        self._conditional = settings.conditional_put
        self._session = Session(
            address.base, connections=connections, timeouts=settings.timeouts, ca=settings.ca
        )
        self._root = self._session.base_path + address.bucket_path
        self._credentials = credentials
        self._signer = Signer(settings.region)
        signs = settings.sign_payload
        self._hash_bodies = not self._session.secure if signs is None else signs
        self._clock_offset = 0.0  # the server's clock minus ours, as we sign
        self._date_lies = False

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

    def do_without_conditions(self) -> None:
        self._conditional = False

    async def put_new(self, name: str, data: Buffer) -> None:
        if not self._conditional:
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
        self._check_written(reply, f"put {name}")

    async def put(self, name: str, data: Buffer) -> None:
        self._check_written(await self._put(name, data, {}), f"put {name}")

    async def delete(self, name: str) -> None:
        reply = await self._ask("DELETE", self._prefix + check_name(name))
        if reply.status == 404 and (not reply.body or error_of(reply)[0] == "NoSuchKey"):
            return
        if not 200 <= reply.status < 300:
            self._refuse(reply, f"delete {name}", write=True)

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        for _ in range(_FOREIGN_PAGES):
            found = await self._list(prefix, after, min(limit, 1000))
            # A page without a name of ours would end a listing too early: look at the next one.
            if found.entries or not found.more:
                return Page(found.entries, found.more)
            after = found.last
        raise StoreError(
            f"{self._session.host} lists far too many objects that are not of megafs below"
            f" {self.url}/{prefix}: give megafs a prefix of its own"
        )

    async def create(self) -> None:
        if not self._settings.check_bucket:
            return
        # With the prefix: a policy may allow to list that, and nothing else of the bucket.
        query = {"list-type": "2", "prefix": self._prefix, "max-keys": "1"}
        reply = await self._ask("GET", "", query=query, limit=2 * _ENTRY)
        if reply.status == 200:
            return
        try:
            self._refuse(reply, "look into the bucket", write=False)
        except NoStore:
            pass
        # us-east-1 has no LocationConstraint; engines elsewhere know their own region best.
        region = self._settings.region
        constraint = region if self._settings.at_aws and region != "us-east-1" else ""
        body = (
            '<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<LocationConstraint>{constraint}</LocationConstraint></CreateBucketConfiguration>"
        )
        reply = await self._ask("PUT", "", body=body.encode() if constraint else b"", limit=_ENTRY)
        code, _ = error_of(reply)
        if code == "BucketAlreadyOwnedByYou":
            return
        if code == "BucketAlreadyExists":
            raise Denied(f"the bucket {self._bucket} belongs to somebody else; choose another name")
        self._check_written(reply, f"make the bucket {self._bucket}")

    async def presign_get(self, name: str, seconds: int) -> str:
        return await self._presigned("GET", name, seconds)

    async def presign_put(self, name: str, seconds: int) -> str:
        return await self._presigned("PUT", name, seconds)

    def plain_url(self, name: str) -> str:
        return self._origin + target(f"{self._root}/{self._prefix}{check_name(name)}")

    async def allow_origin(self, origin: str) -> bool:
        return await web_access.allow_origin(self._ask_bucket, origin)

    async def allow_public(self, prefix: str) -> bool:
        arn = f"arn:aws:s3:::{self._bucket}/{self._prefix}{prefix}*"
        return await web_access.allow_manifests(self._ask_bucket, arn)

    async def _ask_bucket(
        self,
        method: str,
        query: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        body: Buffer = b"",
    ) -> Response:
        return await self._ask(
            method, "", query=query, headers=headers, body=body, limit=web_access.LIMIT
        )

    @property
    def _origin(self) -> str:
        return f"{'https' if self._session.secure else 'http'}://{self._session.host}"

    async def _presigned(self, method: str, name: str, seconds: int) -> str:
        if not 0 < seconds <= MAX_PRESIGNED:
            raise BadStore(f"a signature holds for at most {MAX_PRESIGNED // 86400} days")
        credentials = await self._credentials.current()
        where = target(f"{self._root}/{self._prefix}{check_name(name)}")
        now = clock.now() + self._clock_offset
        return self._origin + self._signer.presign(
            credentials, method, where, self._session.host, seconds, now
        )

    async def aclose(self) -> None:
        await self._session.aclose()

    def health(self) -> Health:
        return Health(last_error=self._session.last_error, details=self._session.details())

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
    ) -> Response:
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
        sent = {"host": self._session.host, **(headers or {})}
        if self._settings.requester_pays:
            sent["x-amz-request-payer"] = "requester"
        while True:
            credentials = await self._credentials.current()
            offset = self._clock_offset
            signed = self._signer.sign(
                credentials,
                method,
                where,
                sent,
                sha256,
                clock.now() + offset,
            )
            reply = await self._session.request(
                method, where, signed, body, limit=limit, start=start
            )
            if reply.status < 400:
                self._note_clock()
                return reply
            code, _ = error_of(reply)
            if code == "RequestTimeTooSkewed":
                if not shifted:
                    shifted = True
                    if self._shift_clock(reply, offset):
                        continue
            # Not by the code alone: services differ in what they call a key that was taken back,
            # and an answer to HEAD has none.
            elif (reply.status in (401, 403) or code in STALE_CREDENTIALS) and not renewed:
                renewed = True
                if await self._credentials.renewed(credentials):
                    continue
            return reply

    async def _put(self, name: str, data: Buffer, condition: Mapping[str, str]) -> Response:
        key = self._prefix + check_name(name)
        headers = {**self._settings.attributes.headers(len(data)), **condition}
        return await self._ask("PUT", key, headers=headers, body=data)

    async def _look(self, name: str) -> None:
        reply = await self._ask("HEAD", self._prefix + check_name(name))
        if reply.status == 200:
            raise Exists(f"{name}: the name is taken")
        if reply.status != 404:
            self._refuse(reply, f"look for {name}", write=False)

    async def _list(self, prefix: str, after: str, limit: int) -> Listing:
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
        return read_listing(reply, self._session.host, self._prefix, after, limit)

    # What an answer means

    def _check_range(self, name: str, reply: Response, start: int, end: int) -> None:
        """See that the bytes are those asked for, and all of them."""
        if not holds_range(reply, start, end):
            raise Unavailable(f"get {name}: {self._session.host} sent another range than asked for")

    def _check_written(self, reply: Response, what: str) -> None:
        """Accept the success of a write; raise anything else, and errors dressed as success."""
        if not 200 <= reply.status < 300 or (reply.body and error_of(reply)[0]):
            self._refuse(reply, what, write=True)

    def _refuse(self, reply: Response, what: str, *, write: bool) -> NoReturn:
        """Raise the error that *reply* is."""
        exc = error_for(
            reply,
            what,
            server=self._session.host,
            bucket=self._bucket,
            region_in_use=self._settings.region,
            write=write,
        )
        self._session.last_error = str(exc)
        raise exc

    # Clocks

    def _note_clock(self) -> None:
        """Follow the server's clock while it accepts our signatures."""
        skew = self._session.skew
        if skew is None or self._date_lies or abs(skew) > MAX_SHIFT:
            return
        if abs(skew - self._clock_offset) > _SKEW:
            self._clock_offset = skew if abs(skew) > _SKEW else 0.0

    def _shift_clock(self, reply: Response, used: float) -> bool:
        """Choose another offset after one was refused; False if there is none to try."""
        if self._clock_offset != used:
            return True  # another request has found the right one meanwhile
        skew = self._session.skew
        try:
            skew = seconds_of(child_text(reply, "ServerTime")) - clock.now()
        except ValueError:  # it does not say, or no time
            pass
        if skew is not None and abs(skew - used) > _SKEW and abs(skew) <= MAX_SHIFT:
            self._clock_offset = skew
            return True
        if used:
            # We signed with the time of its Date header: something on the way writes its own.
            self._date_lies = True
            self._clock_offset = 0.0
            return True
        return False


async def _sha256(body: Buffer) -> str:
    if len(body) < _HASH_IN_PLACE:
        return hashlib.sha256(body).hexdigest()
    return await offload(lambda: hashlib.sha256(body).hexdigest())
