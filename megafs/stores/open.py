"""From a URL and options to a store, with everything that goes around it.

    file:///absolute/path
    s3://bucket/prefix          endpoint=, region=, ...: see stores/s3.py
    memory://name               for tests; lives as long as the process

The one list of drivers.  What they need is imported only when they are opened: the HTTP stack takes
a quarter of a second to load.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from megafs.config import GIB
from megafs.errors import BadStore
from megafs.metrics import Registry
from megafs.stores.base import ObjectStore
from megafs.stores.limit import Limited
from megafs.stores.retry import Retrying

SCHEMES = ("file", "s3", "memory")

# Options that only one driver has, so that a misplaced one can be named.
_EXAMPLES = {
    "file": "file:///srv/volume",
    "s3": "s3://bucket/prefix",
}


def open_store(
    url: str,
    options: Mapping[str, str] | None = None,
    *,
    patience: float = 60.0,
    uploads: int = 4,
    downloads: int = 8,
    up_rate: float | None = None,
    down_rate: float | None = None,
    cache_dir: Path | None = None,
    cache_size: int = 10 * GIB,
    cache_min_free: int = 1 * GIB,
    metrics: Registry | None = None,
) -> ObjectStore:
    """Return the store at *url*, limited, retried and (with *cache_dir*) cached.

    options: the driver's own, see `known_options()`.
    patience: seconds an operation may take in all.
    up_rate, down_rate: bytes per second, or None.
    cache_dir: a directory of its own for the cache; None for no cache.
    Nothing is asked of the store yet.  Raises BadStore if the URL or an option cannot be right.
    """
    metrics = metrics or Registry()
    store: ObjectStore = open_driver(url, options, connections=uploads + downloads)
    store = Limited(store, uploads, downloads, up_rate=up_rate, down_rate=down_rate)
    store = Retrying(store, patience, metrics=metrics)
    if cache_dir is not None:
        from megafs.stores.cache import DiskCached

        store = DiskCached(store, cache_dir, cache_size, cache_min_free, metrics=metrics)
    return store


def open_driver(
    url: str, options: Mapping[str, str] | None = None, *, connections: int = 12
) -> ObjectStore:
    """Return the bare driver for *url*: no retries, no limits, no cache."""
    scheme, host, path = _parts(url)
    options = dict(options or {})
    known = known_options(url)
    for name in sorted(options):
        if name not in known:
            raise BadStore(_misplaced(name, scheme, known))
    if scheme == "file":
        from megafs.stores.local import LocalStore

        return LocalStore(path)
    if scheme == "memory":
        from megafs.stores.memory import named

        return named(host)
    from megafs.stores.s3 import open_s3

    return open_s3(host, path.strip("/"), options, connections=connections)


def known_options(url: str) -> set[str]:
    """Return the names of the options that the driver of *url* understands."""
    scheme, _, _ = _parts(url)
    return _options_of(scheme)


def _options_of(scheme: str) -> set[str]:
    if scheme == "s3":
        return set(importlib.import_module("megafs.stores.s3").OPTIONS)
    return set()


def _misplaced(name: str, scheme: str, known: set[str]) -> str:
    owners = [other for other in SCHEMES if other != scheme and name in _options_of(other)]
    if owners:
        return f"{name}= is an option of {owners[0]}:// stores, not of {scheme}://"
    if known:
        return f"{scheme}:// stores have no option {name}=; they have {', '.join(sorted(known))}"
    return f"{scheme}:// stores have no options, so none named {name}="


def _parts(url: str) -> tuple[str, str, str]:
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
