"""The options of an s3 URL, and which server, address style and region they come to.

All are optional; option_table.py says what each is for.  Secrets are not among them: see
credentials.py for where they are found.

A profile that the options name goes before the environment, with all that it says, since its keys
are for its own server.  One that AWS_PROFILE names, or the default one, comes after the other
variables, as in every AWS tool.
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
from megafs.stores.s3.profile import Profile, read_profile
from megafs.stores.s3.providers import is_aws, region_of, wants_virtual_host

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}\Z")
_PREFIX = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*\Z")

#: From so many bytes on an object gets the storage class: what the cheaper classes bill at least.
CLASS_FROM = 128 << 10

_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_KEY_ID = re.compile(r"[A-Za-z0-9:/_-]{1,2048}\Z")
_SSE = ("AES256", "aws:kms", "aws:kms:dsse")
# What is stored in these cannot be read for minutes to hours.
_ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE"})


class ObjectAttributes(Struct, frozen=True):
    """What the server is told about each object that it is given; "" for its own choice."""

    storage_class: str = ""
    sse: str = ""
    sse_kms_key_id: str = ""
    acl: str = ""

    def headers(self, size: int) -> dict[str, str]:
        """The headers of a PUT of *size* bytes."""
        named = {
            "x-amz-storage-class": self.storage_class if size >= CLASS_FROM else "",
            "x-amz-server-side-encryption": self.sse,
            "x-amz-server-side-encryption-aws-kms-key-id": self.sse_kms_key_id,
            "x-amz-acl": self.acl,
        }
        return {name: value for name, value in named.items() if value}


class S3Settings(Struct, frozen=True):
    """The options of an s3 URL as values; see the module's docstring.

    endpoint: "" for AWS.  path_style, sign_payload: None to decide by the endpoint.
    region_given: whether the region was said, and not guessed.
    """

    endpoint: str = ""
    region: str = "us-east-1"
    path_style: bool | None = None
    sign_payload: bool | None = None
    conditional_put: bool = True
    timeouts: Timeouts = Timeouts()
    ca: Path | None = None
    region_given: bool = False
    dualstack: bool = False
    fips: bool = False
    check_bucket: bool = True
    requester_pays: bool = False
    attributes: ObjectAttributes = ObjectAttributes()

    @property
    def at_aws(self) -> bool:
        return not self.endpoint or is_aws(self.endpoint)


def read_options(options: Mapping[str, str]) -> S3Settings:
    """Return what *options* come to, with the environment and the profile where they are silent."""
    environment = os.environ.get
    profile = read_profile(options.get("profile", ""))
    named = bool(options.get("profile"))

    def first(option: str, of_profile: str, *variables: str) -> str:
        if options.get(option):
            return options[option]
        of_environment = next((v for v in map(environment, variables) if v), "")
        return (of_profile or of_environment) if named else (of_environment or of_profile)

    endpoint = first("endpoint", profile.endpoint, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    if endpoint and "://" not in endpoint:
        endpoint = f"https://{endpoint}"
    region = first("region", profile.region, "AWS_REGION", "AWS_DEFAULT_REGION")
    ca = first("ca", profile.ca, "AWS_CA_BUNDLE")
    dualstack = first("dualstack", profile.dualstack, "AWS_USE_DUALSTACK_ENDPOINT")
    fips = first("fips", profile.fips, "AWS_USE_FIPS_ENDPOINT")
    return S3Settings(
        endpoint=endpoint,
        region=region or region_of(endpoint) or "us-east-1",
        region_given=bool(region),
        path_style=_path_style(options, profile),
        sign_payload=_choice(options, "sign_payload"),
        conditional_put=_choice(options, "conditional_put") is not False,
        timeouts=Timeouts.of(options),
        ca=Path(ca).expanduser() if ca else None,
        dualstack=_choice({"dualstack": dualstack or "no"}, "dualstack") is True,
        fips=_choice({"fips": fips or "no"}, "fips") is True,
        check_bucket=_choice(options, "check_bucket") is not False,
        requester_pays=_choice(options, "requester_pays") is True,
        attributes=_object_attributes(options),
    )


def _path_style(options: Mapping[str, str], profile: Profile) -> bool | None:
    chosen = _choice(options, "path_style")
    if chosen is None:
        return {"path": True, "virtual": False}.get(profile.addressing_style)
    return chosen


def _object_attributes(options: Mapping[str, str]) -> ObjectAttributes:
    attributes = ObjectAttributes(
        storage_class=options.get("storage_class", "").upper(),
        sse=options.get("sse", ""),
        sse_kms_key_id=options.get("sse_kms_key_id", ""),
        acl=options.get("acl", "").lower(),
    )
    for name, value in (("storage_class", attributes.storage_class), ("acl", attributes.acl)):
        if value and not _WORD.match(value):
            raise BadStore(f"{name}= takes one word, not {options[name]!r}")
    if attributes.storage_class in _ARCHIVES:
        raise BadStore(
            f"storage_class={attributes.storage_class}: what lies in an archive cannot be read at"
            " once; take STANDARD_IA, ONEZONE_IA, GLACIER_IR or INTELLIGENT_TIERING"
        )
    if attributes.sse and attributes.sse not in _SSE:
        raise BadStore(f"sse= takes {', '.join(_SSE)}, not {attributes.sse!r}")
    if attributes.sse_kms_key_id and not attributes.sse.startswith("aws:kms"):
        raise BadStore("sse_kms_key_id= names a key for sse=aws:kms: give that, too")
    if attributes.sse_kms_key_id and not _KEY_ID.match(attributes.sse_kms_key_id):
        raise BadStore("sse_kms_key_id= takes the id, the ARN or the alias of a key")
    return attributes


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
    base = settings.endpoint or _aws_endpoint(settings)
    if settings.endpoint and (settings.dualstack or settings.fips):
        raise BadStore("dualstack= and fips= choose among AWS's endpoints: leave endpoint= out")
    path_style = settings.path_style
    if path_style is None and wants_virtual_host(base):
        path_style = False
    if path_style is None:
        # A dot in the bucket's name is one label too many for the wildcard certificate.
        path_style = not settings.at_aws or "." in bucket
    if path_style:
        return Address(base, f"/{bucket}")
    try:
        host = urlsplit(base).hostname or ""
    except ValueError as exc:
        raise BadStore(f"endpoint= is not a URL: {base!r}") from exc
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


def _aws_endpoint(settings: S3Settings) -> str:
    region = settings.region
    if not re.fullmatch(r"[a-z0-9-]+", region):
        raise BadStore(f"not a region: {region!r}")
    tail = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    service = "s3-fips" if settings.fips else "s3"
    if settings.dualstack:
        service += ".dualstack"
    return f"https://{service}.{region}.{tail}"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
