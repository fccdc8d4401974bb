"""What a profile of the AWS files says of the server: its address, region and certificates.

~/.aws/config (AWS_CONFIG_FILE) and ~/.aws/credentials (AWS_SHARED_CREDENTIALS_FILE), as botocore
reads them, without its import (0.15 s and 25 MiB):

    [profile work]
    region = garage
    endpoint_url = https://s3.example.org
    ca_bundle = /etc/ssl/example.pem
    s3 =
        addressing_style = path
    services = mine

    [services mine]
    s3 =
        endpoint_url = https://s3.example.org

The keys of a profile are found by credentials.py.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from megafs.errors import BadStore


class Profile(Struct, frozen=True):
    """What a profile says; "" where it says nothing.

    addressing_style: "path", "virtual" or "auto".  dualstack, fips: "true" or "false".
    """

    endpoint: str = ""
    region: str = ""
    ca: str = ""
    addressing_style: str = ""
    dualstack: str = ""
    fips: str = ""


def read_profile(name: str) -> Profile:
    """Return what the profile *name* says; of "", AWS_PROFILE or the one called default.

    A profile that is nowhere says nothing: credentials.py reports it.  Raises BadStore for a file
    that cannot be read as one of AWS.
    """
    name = name or os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or ""
    name = name or "default"
    config = _sections("AWS_CONFIG_FILE", "~/.aws/config")
    values = dict(config.get(f"profile {name}") or config.get(f'profile "{name}"') or {})
    if name == "default":
        values = {**config.get("default", {}), **values}
    values |= _sections("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials").get(name, {})
    of_s3 = _nested(values.get("s3", ""))
    services = _nested(config.get(f"services {values.get('services', '')}", {}).get("s3", ""))
    ignored = os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS") or values.get(
        "ignore_configured_endpoint_urls", ""
    )
    endpoint = services.get("endpoint_url") or values.get("endpoint_url", "")
    return Profile(
        endpoint="" if ignored.lower() == "true" else endpoint,
        region=values.get("region", ""),
        ca=values.get("ca_bundle", ""),
        addressing_style=of_s3.get("addressing_style", "").lower(),
        dualstack=(
            of_s3.get("use_dualstack_endpoint") or values.get("use_dualstack_endpoint", "")
        ).lower(),
        fips=values.get("use_fips_endpoint", "").lower(),
    )


def _sections(variable: str, usual: str) -> Mapping[str, Mapping[str, str]]:
    """The sections of the file that *variable* names, none if there is no such file."""
    path = os.path.expanduser(os.environ.get(variable) or usual)
    try:
        text = Path(path).read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}  # botocore does not mind either
    except (OSError, UnicodeDecodeError, ValueError) as exc:
        raise BadStore(f"{path} cannot be read: {_line(exc)}") from exc
    return read_sections(text, path)


def read_sections(text: str, path: str) -> Mapping[str, Mapping[str, str]]:
    """The sections of an AWS file; BadStore, without a word of what it holds, if it is none."""
    parser = configparser.RawConfigParser(strict=False, default_section="\0")
    try:
        parser.read_string(text)
    except configparser.Error:
        # Its text quotes the line, which may be a key.
        raise BadStore(f"{path} is not a file of the AWS form ([profile], NAME = VALUE)") from None
    return {" ".join(name.split()): dict(parser.items(name)) for name in parser.sections()}


def _nested(text: str) -> Mapping[str, str]:
    """The NAME = VALUE lines that are indented below a name without a value."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _line(exc: Exception) -> str:
    return exc.strerror or "" if isinstance(exc, OSError) else "it is not text in UTF-8"
