"""From a URL and options to a store, with everything that goes around a driver.

disk cache      cached(): where it lies depends on the volume, so whoever opens one adds it
retries         Retrying
limits          Limited
driver          open_driver(): the row of stores/drivers.py that the URL names
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from megafs.metrics import Registry
from megafs.stores.abilities import DiskCache
from megafs.stores.base import ObjectStore
from megafs.stores.drivers import check_options, driver_of
from megafs.stores.limit import Limited
from megafs.stores.retry import CONTACT, CONTACT_HANG, Retrying
from megafs.stores.wrapper import Wrapper


class Traffic(Struct, frozen=True):
    """How much is asked of a store, and for how long.

    patience: seconds an operation may take in all.
    uploads, downloads: the most at once.
    up_rate, down_rate: bytes per second, or None for no limit.
    contact, hang: seconds for the first connection (stores/retry.py).
    """

    patience: float = 60.0
    uploads: int = 12
    downloads: int = 24
    up_rate: float | None = None
    down_rate: float | None = None
    contact: float = CONTACT
    hang: float = CONTACT_HANG

    @property
    def connections(self) -> int:
        """The most requests at once."""
        return self.uploads + self.downloads


def open_store(
    url: str,
    options: Mapping[str, str] | None = None,
    traffic: Traffic | None = None,
    metrics: Registry | None = None,
) -> ObjectStore:
    """Return the store at *url*, limited and retried.

    options: the driver's own, see `drivers.known_options()`.
    Nothing is asked of the store yet.  Raises BadStore if the URL or an option cannot be right.
    """
    traffic = traffic or Traffic()
    store = open_driver(url, options, connections=traffic.connections)
    limited = Limited(
        store,
        traffic.uploads,
        traffic.downloads,
        up_rate=traffic.up_rate,
        down_rate=traffic.down_rate,
    )
    return Retrying(
        limited,
        traffic.patience,
        metrics=metrics,
        contact=traffic.contact,
        hang=traffic.hang,
    )


def unlimited(store: ObjectStore) -> ObjectStore:
    """Return *store* without its cache and its limits, and still asked again when it may help.

    For races (stores/probe.py), which limits would make a queue of.  Not to be closed: it shares
    the driver with *store*.
    """
    while isinstance(store, Wrapper):
        if isinstance(store, Limited):
            return Retrying(store.beneath)
        store = store.beneath
    return store


def cached(
    store: ObjectStore, directory: Path, size: int, min_free: int, metrics: Registry
) -> DiskCache:
    """Return *store* with a cache in *directory*; closing it closes both."""
    from megafs.stores.disk_cache.cached_store import DiskCached

    return DiskCached(store, directory, size, min_free, metrics=metrics)


def open_driver(
    url: str, options: Mapping[str, str] | None = None, *, connections: int = 36
) -> ObjectStore:
    """Return the bare driver for *url*: no retries, no limits, no cache."""
    driver = driver_of(url)
    location = driver.form(url, driver.example)
    check_options(driver, options or {})
    return driver.load()(location, options or {}, connections)


def preload(url: str) -> None:
    """Import what `open_store` will for *url*, so that it is done once and before a fork."""
    driver_of(url).load()
    importlib.import_module("megafs.stores.disk_cache.cached_store")
