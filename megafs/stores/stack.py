"""From a URL and options to a store, with everything that goes around it.

    file:///absolute/path
    s3://bucket/prefix          endpoint=, region=, ...: see stores/s3/driver.py
    memory://name               for tests; lives as long as the process

The one list of drivers.  What they need is imported only when they are opened: the HTTP stack takes
a quarter of a second to load.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from megafs.config import GIB
from megafs.errors import BadStore
from megafs.lean import lean
from megafs.metrics import Registry
from megafs.stores.base import ObjectStore
from megafs.stores.limit import Limited
from megafs.stores.retry import Retrying
from megafs.stores.urls import known_options, misplaced, split_url


def open_store(
    url: str,
    options: Mapping[str, str] | None = None,
    *,
    patience: float = 60.0,
    uploads: int = 12,
    downloads: int = 24,
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
    uploads, downloads: the most at once.
    up_rate, down_rate: bytes per second, or None.
    cache_dir: a directory of its own for the cache; None for no cache.
    Nothing is asked of the store yet.  Raises BadStore if the URL or an option cannot be right.
    """
    metrics = metrics or Registry()
    store: ObjectStore = open_driver(url, options, connections=uploads + downloads)
    store = Limited(store, uploads, downloads, up_rate=up_rate, down_rate=down_rate)
    store = Retrying(store, patience, metrics=metrics)
    if cache_dir is not None:
        store = cached(store, cache_dir, cache_size, cache_min_free, metrics)
    return store


def cached(
    store: ObjectStore, directory: Path, size: int, min_free: int, metrics: Registry
) -> ObjectStore:
    """Return *store* with a cache in *directory*; closing it closes both."""
    from megafs.stores.disk_cache.cached_store import DiskCached

    return DiskCached(store, directory, size, min_free, metrics=metrics)


def open_driver(
    url: str, options: Mapping[str, str] | None = None, *, connections: int = 36
) -> ObjectStore:
    """Return the bare driver for *url*: no retries, no limits, no cache."""
    scheme, host, path = split_url(url)
    options = dict(options or {})
    known = known_options(url)
    for name in sorted(options):
        if name not in known:
            raise BadStore(misplaced(name, scheme, known))
    if scheme == "file":
        from megafs.stores.local.driver import LocalStore

        return LocalStore(path)
    if scheme == "memory":
        from megafs.stores.memory import named

        return named(host)
    _import_s3()
    from megafs.stores.s3.driver import open_s3

    return open_s3(host, path.strip("/"), options, connections=connections)


def preload(url: str) -> None:
    """Import what `open_store` will for *url*, so that it is done once and before a fork."""
    scheme, _, _ = split_url(url)
    if scheme == "s3":
        _import_s3()
    elif scheme == "file":
        importlib.import_module("megafs.stores.local.driver")
    importlib.import_module("megafs.stores.disk_cache.cached_store")


def _import_s3() -> None:
    with lean():
        importlib.import_module("megafs.stores.s3.driver")
