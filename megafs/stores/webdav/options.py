"""What the options of a WebDAV URL (option_table.py) come to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from megafs.errors import BadStore
from megafs.stores.http.session import Timeouts

#: The ways to log in.
AUTH = ("auto", "basic", "digest", "bearer")


class WebDavSettings(Struct, frozen=True):
    """The options of a WebDAV URL as values.

    user: "" for nobody.  auth: one of AUTH.
    """

    user: str = ""
    password_file: Path | None = None
    netrc: Path | None = None
    auth: str = "auto"
    timeouts: Timeouts = Timeouts()
    ca: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None


def read_options(options: Mapping[str, str]) -> WebDavSettings:
    """Return what *options* come to, or say what is wrong with them (BadStore)."""
    auth = options.get("auth", "auto").lower()
    if auth not in AUTH:
        raise BadStore(f"auth= takes {', '.join(AUTH)}, not {auth!r}")
    user = options.get("user", "")
    if ":" in user or not user.isprintable():
        raise BadStore("user= takes a name without a colon; the password goes into a file")
    settings = WebDavSettings(
        user=user,
        password_file=_path(options, "password_file"),
        netrc=_path(options, "netrc"),
        auth=auth,
        timeouts=Timeouts.of(options),
        ca=_path(options, "ca"),
        client_cert=_path(options, "client_cert"),
        client_key=_path(options, "client_key"),
    )
    if settings.client_key is not None and settings.client_cert is None:
        raise BadStore("client_key= needs client_cert= beside it")
    return settings


def _path(options: Mapping[str, str], name: str) -> Path | None:
    value = options.get(name)
    return Path(value) if value else None
