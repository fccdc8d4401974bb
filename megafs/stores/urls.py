"""How the URLs of stores are read: one function for each form there is.

    file:///srv/volume          a directory         `directory`
    s3://bucket/prefix          a name and a path   `named("bucket")`
    dropbox:/path, mega:        a path or nothing   `path_only`
    webdav+https://host/path    a server and a path `web("https")`

A driver names its form in its row of stores/drivers.py.  Everything here is text: nothing is asked
of a store, and no driver is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import SplitResult, unquote, urlsplit

from msgspec import Struct

from megafs.errors import BadStore


class Location(Struct, frozen=True):
    """The parts of a URL besides its scheme.

    name: the bucket or the like, the server's address in the form `web`, "" in forms without one.
    path: what follows, without percent-encoding; "" or beginning with "/" where `name` is given.
    """

    name: str
    path: str


class StoreOption(Struct, frozen=True):
    """An option of a driver.  example: a value.  text: for docs and help."""

    name: str
    example: str
    text: str


#: Reads a URL of its form; gets the driver's example for its error texts.  Raises BadStore.
Form = Callable[[str, str], Location]


def directory(url: str, example: str) -> Location:
    """SCHEME:///absolute/path; the path is returned without needless slashes."""
    parts = _split(url)
    if parts.netloc not in ("", "localhost"):
        raise BadStore(
            f"{url!r} names a host; for a directory write three slashes:"
            f" {parts.scheme}:///{parts.netloc}{parts.path} (absolute paths only)"
        )
    path = _path(url, parts)
    if path.strip("/") == "":
        raise BadStore(f"{url!r} names no directory; write for example {example}")
    return Location("", "/" + "/".join(part for part in path.split("/") if part))


def named(what: str) -> Form:
    """SCHEME://NAME/path.  what: what the name is of, for error texts."""

    def read(url: str, example: str) -> Location:
        parts = _split(url)
        if not parts.netloc:
            raise BadStore(f"{url!r} names no {what}; write {parts.scheme}://{what.upper()}")
        return Location(parts.netloc, _path(url, parts))

    return read


def path_only(url: str, example: str) -> Location:
    """SCHEME:path, where the path may be empty: an account has one root."""
    parts = _split(url)
    if parts.netloc:
        raise BadStore(f"{url!r} has two slashes too many after the colon; write {example}")
    return Location("", _path(url, parts))


def web(protocol: str) -> Form:
    """SCHEME://HOST[:PORT]/path; the name is the server's address: "https://host:8443".

    protocol: "http" or "https".
    """

    def read(url: str, example: str) -> Location:
        parts = _split(url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError as exc:
            raise BadStore(f"{url!r} is not a URL: {exc}") from exc
        if not host:
            raise BadStore(f"{url!r} names no server; write for example {example}")
        host = f"[{host}]" if ":" in host else host
        return Location(
            f"{protocol}://{host}" + (f":{port}" if port is not None else ""), _path(url, parts)
        )

    return read


def has_slashes(form: Form) -> bool:
    """Whether URLs of this form have two slashes after the colon."""
    return form is not path_only


def _split(url: str) -> SplitResult:
    scheme = url.partition(":")[0].lower()
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise BadStore(f"{url!r} is not a URL: {exc}") from exc
    if "@" in parts.netloc:
        # The text must not repeat what may be a password.
        raise BadStore(
            f"credentials do not belong into the URL ({scheme}://...@...): it shows in ps and fstab"
        )
    if parts.query or parts.fragment:
        raise BadStore(f"{url!r}: write options with -o NAME=VALUE, and ? and # as %3F and %23")
    return parts


def _path(url: str, parts: SplitResult) -> str:
    path = unquote(parts.path)
    if "\0" in path:
        raise BadStore(f"{url!r} holds a zero byte")
    return path
