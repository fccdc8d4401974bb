"""The table of drivers: a new kind of store is one module and one row here.

A driver's module has a function

    def open_driver(location: Location, options: Mapping[str, str], connections: int) -> ObjectStore

that asks nothing of the store yet, and raises BadStore for what cannot be right.  It is imported
only when a store of its scheme is opened: the HTTP stack takes a quarter of a second to load, and
the command line is read with this table alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from megafs import garbage
from megafs.errors import BadStore
from megafs.stores.abilities import Ability, LimitedBodies, SpaceLeft, UnconditionalPuts, Watch
from megafs.stores.base import ObjectStore
from megafs.stores.dropbox.option_table import DROPBOX_OPTIONS, dropbox_login
from megafs.stores.gdrive.login_kind import gdrive_login
from megafs.stores.gdrive.option_table import GDRIVE_OPTIONS
from megafs.stores.login.kinds import LoginOf
from megafs.stores.mega.login_kind import mega_login
from megafs.stores.mega.option_table import MEGA_OPTIONS
from megafs.stores.s3.option_table import S3_OPTIONS
from megafs.stores.urls import (
    Form,
    Location,
    StoreOption,
    directory,
    has_slashes,
    named,
    path_only,
    web,
)
from megafs.stores.webdav.login_kind import webdav_login
from megafs.stores.webdav.option_table import WEBDAV_OPTIONS

__all__ = ["DRIVERS", "Driver", "Location", "Opener", "directory", "named", "path_only", "web"]


class Opener(Protocol):
    """The function `open_driver` of a driver's module.

    options: the driver's own, all of them known.  connections: requests at once that may come.
    """

    def __call__(
        self, location: Location, options: Mapping[str, str], connections: int
    ) -> ObjectStore: ...


class Driver(Struct, frozen=True):
    """One kind of store.

    scheme: what its URLs begin with, before the colon.
    module: imported when a store of the kind is opened; see above.
    form: how its URLs are read (stores/urls.py).
    example: a URL, for people.
    described: its own -o options.
    abilities: what it can do beyond the interface of every store (stores/abilities.py).
    login: how `megafs login` logs in to it; None if its credentials come from elsewhere.
    holds_volumes: False for what is only read, as files of its own kind (megafs/mega).
    for_tests: left out of help and error texts.
    """

    scheme: str
    module: str
    form: Form
    example: str
    described: tuple[StoreOption, ...] = ()
    abilities: tuple[type[Ability], ...] = ()
    login: LoginOf | None = None
    holds_volumes: bool = True
    for_tests: bool = False

    @property
    def options(self) -> frozenset[str]:
        """The names of its own -o options."""
        return frozenset(option.name for option in self.described)

    @property
    def prefix(self) -> str:
        """The beginning of its URLs: "s3://" or "dropbox:"."""
        return f"{self.scheme}://" if has_slashes(self.form) else f"{self.scheme}:"

    def load(self) -> Opener:
        """Import the module."""
        with garbage.paused():
            opener: Opener = importlib.import_module(self.module).open_driver
        return opener


DRIVERS: dict[str, Driver] = {
    driver.scheme: driver
    for driver in (
        Driver(
            scheme="file",
            module="megafs.stores.local.driver",
            form=directory,
            example="file:///srv/volume",
        ),
        Driver(
            scheme="s3",
            module="megafs.stores.s3.driver",
            form=named("bucket"),
            example="s3://bucket/prefix",
            described=S3_OPTIONS,
            abilities=(LimitedBodies, UnconditionalPuts),
        ),
        Driver(
            scheme="webdav+https",
            module="megafs.stores.webdav.driver",
            form=web("https"),
            example="webdav+https://host/path",
            described=WEBDAV_OPTIONS,
            abilities=(LimitedBodies, SpaceLeft),
            login=webdav_login,
        ),
        Driver(
            scheme="webdav+http",
            module="megafs.stores.webdav.driver",
            form=web("http"),
            example="webdav+http://127.0.0.1:8080/path",
            described=WEBDAV_OPTIONS,
            abilities=(LimitedBodies, SpaceLeft),
            login=webdav_login,
        ),
        Driver(
            scheme="dropbox",
            module="megafs.stores.dropbox.driver",
            form=path_only,
            example="dropbox:/path",
            described=DROPBOX_OPTIONS,
            abilities=(LimitedBodies, SpaceLeft, Watch),
            login=dropbox_login,
        ),
        Driver(
            scheme="gdrive",
            module="megafs.stores.gdrive.driver",
            form=path_only,
            example="gdrive:/folder",
            described=GDRIVE_OPTIONS,
            abilities=(SpaceLeft, Watch),
            login=gdrive_login,
        ),
        Driver(
            scheme="mega",
            module="megafs.stores.mega.driver",
            form=path_only,
            example="mega:/Folder",
            described=MEGA_OPTIONS,
            login=mega_login,
            holds_volumes=False,
        ),
        Driver(
            scheme="memory",
            module="megafs.stores.memory",
            form=named("name"),
            example="memory://name",
            for_tests=True,
        ),
    )
}


def is_url(text: str) -> bool:
    """Whether *text* is meant as the URL of a store, right or wrong, rather than as a path."""
    scheme, colon, _ = text.partition(":")
    driver = DRIVERS.get(scheme.lower()) if colon else None
    return "://" in text or (driver is not None and not has_slashes(driver.form))


def driver_of(url: str) -> Driver:
    """Return the driver that *url* names, or say what is wrong with it (BadStore)."""
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower()
    driver = DRIVERS.get(scheme) if colon else None
    if driver is not None:
        if has_slashes(driver.form) and not rest.startswith("//"):
            raise BadStore(f"{url!r} needs two slashes after the colon: {_examples()}")
        return driver
    if not rest.startswith("//"):
        if url.startswith("/"):
            raise BadStore(f"{url!r} is not a URL; for a directory write file://{url}")
        raise BadStore(f"{url!r} is not the URL of a store; write {_examples()}")
    if scheme in ("http", "https"):
        raise BadStore(
            f"{scheme}:// is not a kind of store; for an S3 service write"
            f" s3://BUCKET/PREFIX and -o endpoint={scheme}://HOST, for WebDAV"
            f" webdav+{scheme}://HOST/PATH"
        )
    raise BadStore(f"no driver for {scheme}://; write {_examples()}")


def location_of(url: str) -> Location:
    """Return what *url* says besides its scheme, or say what is wrong with it (BadStore)."""
    driver = driver_of(url)
    return driver.form(url, driver.example)


def known_options(url: str) -> frozenset[str]:
    """Return the names of the options that the driver of *url* understands."""
    location_of(url)  # so that a wrong URL is reported before a wrong option
    return driver_of(url).options


def owner_of(option: str) -> Driver | None:
    """Return a driver that has this option, or None."""
    return next((driver for driver in DRIVERS.values() if option in driver.options), None)


def check_options(driver: Driver, options: Mapping[str, str]) -> None:
    """Raise BadStore if the driver does not know one of the options."""
    for name in sorted(set(options) - driver.options):
        owner = owner_of(name)
        if owner is not None:
            raise BadStore(f"{name}= is an option of {owner.prefix} stores, not of {driver.prefix}")
        if driver.options:
            has = ", ".join(sorted(driver.options))
            raise BadStore(f"{driver.prefix} stores have no option {name}=; they have {has}")
        raise BadStore(f"{driver.prefix} stores have no options, so none named {name}=")


def _examples() -> str:
    return " or ".join(
        driver.example
        for driver in DRIVERS.values()
        if driver.holds_volumes and not driver.for_tests
    )
