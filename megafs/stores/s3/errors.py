"""Which of our errors an answer of S3 is, and what to tell people to do.

Codes: Amazon's S3 API reference, and what the engines say that speak it.
"""

from __future__ import annotations

import re

from megafs.errors import (
    BadStore,
    Denied,
    Full,
    Missing,
    NoStore,
    StoreError,
    TooLarge,
    Unavailable,
)
from megafs.stores.http.retry_after import retry_after
from megafs.stores.http.session import Response
from megafs.stores.s3.answers import child_text, error_of

#: The store knows us no longer, said with another status than 401 or 403 (both mean that anyway):
#: worth reading the credentials again, once.
STALE_CREDENTIALS = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestExpired",
        "TokenRefreshRequired",
    }
)
# Worth asking again.
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
# Of those, the ones that say that we ask for too much.
_BUSY = frozenset(
    {"ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"}
)
_FULL = frozenset(
    {
        "AccountProblem",  # MEGA S4: over quota; AWS: a bill that is not paid
        "InsufficientStorage",
        "QuotaExceeded",
        "StorageFull",
        "XMinioAdminBucketQuotaExceeded",
        "XMinioStorageFull",
    }
)
# Backblaze and Garage say it with AccessDenied.
_FULL_TEXT = re.compile(r"\bquota\b|\bcap exceeded\b", re.IGNORECASE)
_TOO_LARGE = frozenset({"EntityTooLarge", "MaxMessageLengthExceeded"})
# Go, nginx and Apache, asked in plain HTTP at a port that speaks TLS.
_SPEAKS_TLS = re.compile(
    rb"HTTP request to an HTTPS server|plain HTTP request was sent to HTTPS|"
    rb"speaking plain HTTP to an SSL-enabled",
    re.IGNORECASE,
)
_ELSEWHERE = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "PermanentRedirect",
        "TemporaryRedirect",
    }
)


def error_for(
    reply: Response, what: str, *, server: str, bucket: str, region_in_use: str, write: bool
) -> StoreError:
    """Return the error that *reply* is.

    what: the operation, for the text.  write: whether it may have changed something.
    """
    code, message = error_of(reply)
    said = f"{what}: {server} answers {reply.status} {code}".rstrip()
    if message:
        said += f" ({message})"
    status = reply.status
    region = reply.headers.get("x-amz-bucket-region") or child_text(reply, "Region")
    region = re.sub(r"[^A-Za-z0-9-]", "", region)[:64]
    if code in _ELSEWHERE or (status in (301, 307, 308, 400) and region):
        if region and region != region_in_use:
            return BadStore(f"{said}; the bucket's region is {region}: give region={region}")
        return BadStore(f"{said}; check the region and the endpoint")
    if code in _FULL or status == 507 or (status == 403 and _FULL_TEXT.search(message)):
        return Full(f"{said}; is the account full, over its quota, or unpaid?")
    if code in _TOO_LARGE or status == 413:
        return TooLarge(
            f"{said}; the server, or a proxy in front of it, takes no body of that size (nginx:"
            " client_max_body_size)"
        )
    if code == "NoSuchBucket":
        return NoStore(f"{said}; there is no bucket {bucket}")
    if code == "NoSuchKey":
        return Missing(said)
    if status == 400 and _SPEAKS_TLS.search(reply.body[:1024]):
        return BadStore(f"{said}; {server} speaks TLS at this port: write https:// in endpoint=")
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
            retry_after=retry_after(reply),
            maybe_done=maybe_done,
            busy=code in _BUSY or status in (429, 503),
        )
    if code == "RequestTimeTooSkewed":
        return Denied(
            f"{said}; is this machine's clock right? A difference of up to a week is made up for"
        )
    if code in ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"):
        return Denied(f"{said}; the credentials have expired: get new ones")
    if code == "SignatureDoesNotMatch":
        return Denied(
            f"{said}; check the access key, the secret key and the region; a proxy in front of the"
            f" server that rewrites the Host header ({server}) or the path causes this, too"
        )
    if code in ("InvalidAccessKeyId", "InvalidToken"):
        return Denied(f"{said}; check the access key, the secret key and the region")
    if status == 407:
        return Denied(f"{said}; the proxy wants a login: http_proxy=http://NAME:PASSWORD@HOST:PORT")
    if status in (401, 403):
        return Denied(
            f"{said}; do the credentials allow GetObject, PutObject, DeleteObject and"
            f" ListBucket on the bucket {bucket}?"
        )
    if 300 <= status < 400:
        return Unavailable(f"{said}; is there a login page on the way?")
    if code in ("InvalidBucketName", "InvalidLocationConstraint", "MethodNotAllowed"):
        return BadStore(said)
    return StoreError(said)
