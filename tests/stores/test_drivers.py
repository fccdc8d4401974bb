"""The table of drivers: what a new kind of store needs, and how its URLs are read."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Iterator, Mapping

import pytest

from megafs.cli import volume_path
from megafs.errors import BadStore
from megafs.mount import options as mount_options
from megafs.stores import drivers
from megafs.stores.abilities import Ability, DiskCache, LineAdvice, RangeCache, SpaceLeft
from megafs.stores.base import ObjectStore
from megafs.stores.drivers import DRIVERS, Driver, Opener, is_url, known_options, location_of
from megafs.stores.memory import MemoryStore
from megafs.stores.stack import open_driver, open_store, preload
from megafs.stores.urls import Location, StoreOption, named, path_only


class Box(MemoryStore, SpaceLeft):
    """A service whose accounts have one root: no bucket, no host."""

    def __init__(self, location: Location, options: Mapping[str, str], connections: int) -> None:
        super().__init__()
        self.opened_with = (location, dict(options), connections)
        self.url = f"box:{location.path}"

    async def space_left(self) -> int | None:
        return None


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """A driver that is one module and one row."""
    module = types.ModuleType("box_driver")
    module.open_driver = Box  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "box_driver", module)
    row = Driver(
        scheme="box",
        module="box_driver",
        form=path_only,
        example="box:/path",
        described=(StoreOption("drawer", "1", "A drawer."),),
        abilities=(SpaceLeft,),
    )
    monkeypatch.setitem(DRIVERS, "box", row)
    yield row


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("box:", ""),
        ("box:/a/b%20c", "/a/b c"),
        ("box:a", "a"),
        ("BOX:/a", "/a"),
        ("box:/a@b", "/a@b"),
    ],
)
def test_a_url_of_the_form_name_rest_is_opened(box: Driver, url: str, path: str) -> None:
    store = open_driver(url, {"drawer": "me"}, connections=7)
    assert isinstance(store, Box)
    assert store.opened_with == (Location("", path), {"drawer": "me"}, 7)
    preload(url)


async def test_everything_that_is_made_of_the_table_knows_it(box: Driver) -> None:
    assert known_options("box:/a") == {"drawer"}
    assert is_url("box:/a") and is_url("box:")
    assert volume_path.of("box:/a", "x/y") == volume_path.VolumePath("box:/a", "/x/y")
    asked = mount_options.parse("box:/a", ["drawer=me"], config={}, environ={})
    assert asked.settings.store_options == {"drawer": "me"}
    store = open_store("box:/a")
    assert SpaceLeft.of(store) is not None
    await store.aclose()


@pytest.mark.parametrize(
    ("url", "options", "hint"),
    [
        ("box://me/a", {}, "two slashes too many after the colon; write box:/path"),
        ("box://me:hunter2@host/a", {}, "credentials do not belong"),
        ("box:/a?b=c", {}, "-o NAME=VALUE"),
        ("box:/a%00", {}, "zero byte"),
        ("box:/a", {"endpoint": "x"}, "endpoint= is an option of s3:// stores, not of box:"),
        ("box:/a", {"colour": "x"}, "box: stores have no option colour=; they have drawer"),
        ("s3://b", {"drawer": "x"}, "drawer= is an option of box: stores, not of s3://"),
        (
            "cube:/a",
            {},
            "write file:///srv/volume or s3://bucket/prefix or webdav+https://host/path or",
        ),
        ("cube:/a", {}, " or dropbox:/path"),
        ("cube:/a", {}, " or box:/path"),
    ],
)
def test_what_is_wrong_with_one_is_said(
    box: Driver, url: str, options: dict[str, str], hint: str
) -> None:
    with pytest.raises(BadStore) as raised:
        open_driver(url, options)
    assert hint in str(raised.value)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("text", ["/a/b", "a:b", "a", "", ":", "./s3:b", "memory:x", "/a/box:b"])
def test_a_path_is_not_taken_for_a_url(box: Driver, text: str) -> None:
    assert not is_url(text)


@pytest.mark.parametrize("url", ["file:///x", "s3://b", "s3://", "gopher://x", "box:", "Box:/x"])
def test_a_url_is_one_even_if_it_is_wrong(box: Driver, url: str) -> None:
    assert is_url(url)


@pytest.mark.parametrize("scheme", DRIVERS)
def test_every_row_is_true(scheme: str) -> None:
    """Its module opens its example, and the store can do what the row says and no more."""
    driver = DRIVERS[scheme]
    opener = importlib.import_module(driver.module).open_driver
    assert (
        list(inspect.signature(opener).parameters)
        == list(inspect.signature(Opener.__call__).parameters)[1:]
    )
    location = location_of(driver.example)
    if not driver.holds_volumes:
        with pytest.raises(BadStore, match="no volume can be kept"):
            opener(location, {}, 4)
        return
    store = opener(location, {}, 4)
    assert isinstance(store, ObjectStore)
    optional = set(Ability.__subclasses__()) - {RangeCache, DiskCache, LineAdvice}
    assert {kind for kind in optional if isinstance(store, kind)} == set(driver.abilities)
    assert driver.example.startswith(driver.prefix)


def test_a_row_that_is_missing_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        DRIVERS, "gone", Driver("gone", "megafs.stores.gone", named("drawer"), "gone://account")
    )
    assert location_of("gone://me/x") == Location("me", "/x")
    with pytest.raises(ModuleNotFoundError):
        open_driver("gone://me/x")
    assert drivers.known_options("gone://me/x") == frozenset()
