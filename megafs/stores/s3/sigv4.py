"""Sign S3 requests: AWS Signature Version 4, header form.

The algorithm is Amazon's "Authenticating Requests: Using the Authorization Header (AWS Signature
Version 4)" of the S3 API reference; its example requests and botocore's signer are the test
vectors.  Why not botocore's signer: docs/decisions/0003-signing.md.

Pure: no I/O, no clock; the caller brings the time.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from urllib.parse import quote

from megafs.secret_struct import SecretStruct

#: In place of the body's hash where TLS protects the body; megafs authenticates it anyway.
UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()

# The unreserved characters of RFC 3986; letters and digits are always safe to quote().
_UNRESERVED = "-_.~"


class Credentials(SecretStruct, frozen=True):
    """The keys that prove to the store who we are.  token: of temporary credentials, else ""."""

    access_key: str
    secret_key: str
    token: str = ""

    _shown = ("access_key",)


def target(path: str, query: Mapping[str, str] | None = None) -> str:
    """Return the request target that is both signed and sent.

    path: not yet quoted, begins with "/".
    """
    quoted = quote(path, safe="/" + _UNRESERVED)
    if not query:
        return quoted
    # Sorted after quoting, as the standard has it.
    pairs = sorted(
        (quote(k, safe=_UNRESERVED), quote(v, safe=_UNRESERVED)) for k, v in query.items()
    )
    return quoted + "?" + "&".join(f"{k}={v}" for k, v in pairs)


class Signer:
    """Signs for one region; remembers the day's key, so that a request costs two hashes."""

    def __init__(self, region: str, service: str = "s3") -> None:
        self._region = region
        self._service = service
        self._day: tuple[Credentials, str] | None = None
        self._key = b""

    def sign(
        self,
        credentials: Credentials,
        method: str,
        target: str,
        headers: Mapping[str, str],
        sha256: str,
        now: float,
    ) -> dict[str, str]:
        """Return *headers* with those of the signature added.

        target: as from `target()`.
        headers: in lower case, with "host"; every one of them is signed.
        sha256: of the body in hex, or UNSIGNED.
        now: seconds since 1970, by the server's clock as far as we know it.
        """
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        day = stamp[:8]
        signed = dict(headers)
        signed["x-amz-content-sha256"] = sha256
        signed["x-amz-date"] = stamp
        if credentials.token:
            signed["x-amz-security-token"] = credentials.token

        names = sorted(signed)
        listed = ";".join(names)
        path, _, query = target.partition("?")
        request = "\n".join(
            (
                method,
                path,
                query,
                *(f"{name}:{' '.join(signed[name].split())}" for name in names),
                "",
                listed,
                sha256,
            )
        )
        scope = f"{day}/{self._region}/{self._service}/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = _mac(self._day_key(credentials, day), text).hex()
        signed["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope},"
            f"SignedHeaders={listed},Signature={signature}"
        )
        return signed

    def presign(
        self, credentials: Credentials, method: str, path: str, host: str, seconds: int, now: float
    ) -> str:
        """Return the target of a request that anybody may send from *now* on, for so many seconds.

        path: quoted, as from `target()`.  Only the Host header is signed, so that a range may be
        asked for.  It is the query form of the same signature; the body is not part of it.
        """
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        scope = f"{stamp[:8]}/{self._region}/{self._service}/aws4_request"
        query = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{credentials.access_key}/{scope}",
            "X-Amz-Date": stamp,
            "X-Amz-Expires": str(seconds),
            "X-Amz-SignedHeaders": "host",
        }
        if credentials.token:
            query["X-Amz-Security-Token"] = credentials.token
        pairs = sorted((k, quote(v, safe=_UNRESERVED)) for k, v in query.items())
        asked = "&".join(f"{k}={v}" for k, v in pairs)
        request = "\n".join((method, path, asked, f"host:{host}", "", "host", UNSIGNED))
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = _mac(self._day_key(credentials, stamp[:8]), text).hex()
        return f"{path}?{asked}&X-Amz-Signature={signature}"

    def _day_key(self, credentials: Credentials, day: str) -> bytes:
        if self._day != (credentials, day):
            key = ("AWS4" + credentials.secret_key).encode()
            for part in (day, self._region, self._service, "aws4_request"):
                key = _mac(key, part)
            self._day, self._key = (credentials, day), key
        return self._key


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
