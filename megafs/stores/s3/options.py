"""The options of an s3 URL, and which server, address style and region they come to.

All are optional (and named in the driver's row, stores/drivers.py):

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
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from megafs.errors import BadStore
from megafs.stores.http.session import Timeouts

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}\Z")
_PREFIX = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*\Z")


class S3Settings(Struct, frozen=True):
    """The options of an s3 URL as values; see the module's docstring.

    endpoint: "" for AWS.  path_style, sign_payload: None to decide by the endpoint.
    """

    endpoint: str = ""
    region: str = "us-east-1"
    path_style: bool | None = None
    sign_payload: bool | None = None
    conditional_put: bool = True
    timeouts: Timeouts = Timeouts()
    ca: Path | None = None

    @property
    def at_aws(self) -> bool:
        return not self.endpoint or _is_aws(self.endpoint)


def read_options(options: Mapping[str, str]) -> S3Settings:
    """Return what *options*, and the environment where they say nothing, come to."""
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
    return S3Settings(
        endpoint=endpoint,
        region=region,
        path_style=_choice(options, "path_style"),
        sign_payload=_choice(options, "sign_payload"),
        conditional_put=_choice(options, "conditional_put") is not False,
        timeouts=Timeouts(
            connect=_seconds_of(options, "connect_timeout", Timeouts().connect),
            read=_seconds_of(options, "read_timeout", Timeouts().read),
        ),
        ca=Path(ca) if ca else None,
    )


def check_bucket(bucket: str, prefix: str) -> None:
    """Raise BadStore unless these can be a bucket's name and a prefix of keys."""
    if not _BUCKET.match(bucket):
        raise BadStore(f"not the name of a bucket: {bucket!r}")
    if prefix and not (_PREFIX.match(prefix) and {".", ".."}.isdisjoint(prefix.split("/"))):
        raise BadStore(
            f"the prefix {prefix!r} may hold letters, digits, '-', '_', '.' and single '/' only"
        )


class Address(Struct, frozen=True):
    """Where a bucket's requests go.

    base: scheme, host and perhaps a path.  bucket_path: what the paths of requests have between the
    base's path and the key: "/bucket", or "" where the host names the bucket.
    """

    base: str
    bucket_path: str


def address_of(bucket: str, settings: S3Settings) -> Address:
    """Return where requests for *bucket* go: https://HOST/BUCKET/KEY or https://BUCKET.HOST/KEY."""
    base = settings.endpoint or _aws_endpoint(settings.region)
    path_style = settings.path_style
    if path_style is None:
        # A dot in the bucket's name is one label too many for the wildcard certificate.
        path_style = not settings.at_aws or "." in bucket
    if path_style:
        return Address(base, f"/{bucket}")
    host = urlsplit(base).hostname or ""
    if _is_address(host):
        raise BadStore(f"path_style=no cannot work with the address {host}")
    return Address(base.replace("://", f"://{bucket}.", 1), "")


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
