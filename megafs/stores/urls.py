"""The URLs of stores and the names of their options, known without importing a driver.

The command line is read with these: a driver's HTTP stack takes a quarter of a second to import,
and while a passphrase's key is derived there is time for that.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from megafs.errors import BadStore

SCHEMES = ("file", "s3", "memory")

# Options that only one driver has, so that a misplaced one can be named.
_EXAMPLES = {
    "file": "file:///srv/volume",
    "s3": "s3://bucket/prefix",
}

#: What `s3.open_s3()` understands.
S3_OPTIONS = frozenset(
    {
        "endpoint",
        "region",
        "path_style",
        "profile",
        "ca",
        "sign_payload",
        "conditional_put",
        "connect_timeout",
        "read_timeout",
    }
)


def known_options(url: str) -> set[str]:
    """Return the names of the options that the driver of *url* understands."""
    scheme, _, _ = split_url(url)
    return _options_of(scheme)


def _options_of(scheme: str) -> set[str]:
    if scheme == "s3":
        return set(S3_OPTIONS)
    return set()


def misplaced(name: str, scheme: str, known: set[str]) -> str:
    """What to say of an option that the driver of *scheme* does not have."""
    owners = [other for other in SCHEMES if other != scheme and name in _options_of(other)]
    if owners:
        return f"{name}= is an option of {owners[0]}:// stores, not of {scheme}://"
    if known:
        return f"{scheme}:// stores have no option {name}=; they have {', '.join(sorted(known))}"
    return f"{scheme}:// stores have no options, so none named {name}="


def split_url(url: str) -> tuple[str, str, str]:
    """Split *url* into scheme, host (or bucket) and path, or say what is wrong with it."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        if url.startswith("/"):
            raise BadStore(f"{url!r} is not a URL; for a directory write file://{url}")
        if url.startswith(("file:", "s3:")):
            raise BadStore(f"{url!r} needs two slashes after the colon: {_examples()}")
        raise BadStore(f"{url!r} is not the URL of a store; write {_examples()}")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        if scheme in ("http", "https"):
            raise BadStore(
                f"{scheme}:// is not a kind of store; for an S3 service write"
                f" s3://BUCKET/PREFIX and -o endpoint={scheme}://HOST"
            )
        raise BadStore(f"no driver for {scheme}://; write {_examples()}")
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
    path = unquote(parts.path)
    if "\0" in path:
        raise BadStore(f"{url!r} holds a zero byte")
    if scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise BadStore(
                f"{url!r} names a host; for a directory write three slashes:"
                f" file:///{parts.netloc}{parts.path} (absolute paths only)"
            )
        if path.strip("/") == "":
            raise BadStore(f"{url!r} names no directory; write for example {_EXAMPLES['file']}")
        return scheme, "", "/" + "/".join(part for part in path.split("/") if part)
    if not parts.netloc:
        wanted = {"s3": "bucket", "memory": "name"}[scheme]
        raise BadStore(f"{url!r} names no {wanted}; write {scheme}://{wanted.upper()}")
    return scheme, parts.netloc, path


def _examples() -> str:
    return " or ".join(_EXAMPLES.values())
