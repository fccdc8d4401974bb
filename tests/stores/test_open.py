"""URLs and options, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from megafs.errors import BadStore, Missing
from megafs.metrics import Registry
from megafs.stores.disk_cache.cached_store import DiskCached
from megafs.stores.drivers import known_options
from megafs.stores.local.driver import LocalStore
from megafs.stores.retry import Retrying
from megafs.stores.s3.driver import S3Store
from megafs.stores.stack import cached, open_driver, open_store


async def test_a_directory(tmp_path: Path) -> None:
    store = open_driver(f"file://{tmp_path}/a%20b/")
    await store.create()

    assert isinstance(store, LocalStore)
    assert (tmp_path / "a b").is_dir()


async def test_a_bucket() -> None:
    store = open_driver("s3://bucket/some/prefix", {"endpoint": "http://127.0.0.1:1"})

    assert isinstance(store, S3Store)
    await store.aclose()


async def test_memory_is_shared_by_name() -> None:
    await open_store("memory://one").put_new("keys/1", b"x")

    assert await open_store("memory://one").get("keys/1", 0, 9) == b"x"
    with pytest.raises(Missing):
        await open_store("memory://two").get("keys/1", 0, 9)


async def test_the_stack(tmp_path: Path) -> None:
    plain = open_store(f"file://{tmp_path}/store")
    store = cached(plain, tmp_path / "cache", 1 << 30, 0, Registry())

    assert isinstance(plain, Retrying)
    assert isinstance(store, DiskCached)
    assert set(store.health().details) >= {"cache", "requests", "queued"}
    await store.aclose()


def test_opening_asks_nothing_of_the_store(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/nothing")
    cached(store, tmp_path / "cache", 1 << 30, 0, Registry())

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("/srv/volume", "write file:///srv/volume"),
        ("srv/volume", "write file:///srv/volume or s3://bucket/prefix"),
        ("", "write file:///srv/volume or s3://bucket/prefix"),
        ("file://srv/volume", "file:///srv/volume"),
        ("file:/srv/volume", "two slashes"),
        ("file://", "names no directory"),
        ("file:///", "names no directory"),
        ("s3://", "s3://BUCKET"),
        ("s3:///prefix", "s3://BUCKET"),
        ("gopher://host/x", "no driver for gopher://"),
        ("https://s3.example.com/bucket", "-o endpoint=https://HOST"),
        ("s3://bucket/prefix?x=1", "-o NAME=VALUE"),
    ],
)
def test_a_wrong_url_is_told_what_to_write(url: str, hint: str) -> None:
    with pytest.raises(BadStore) as raised:
        open_store(url)

    assert hint in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_secret_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(BadStore) as raised:
        open_store("s3://key:hunter2@bucket/prefix")

    assert "hunter2" not in str(raised.value)


def test_an_option_of_another_driver_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadStore, match="endpoint= is an option of s3:// stores, not of file://"):
        open_store(f"file://{tmp_path}", {"endpoint": "http://x"})


def test_an_unknown_option_is_told_what_there_is() -> None:
    with pytest.raises(BadStore, match=r"no option colour=; they have .*endpoint"):
        open_store("s3://bucket", {"colour": "blue"})
    with pytest.raises(BadStore, match="no option secret_key="):
        open_store("s3://bucket", {"secret_key": "x"})
    with pytest.raises(BadStore, match="no options"):
        open_store("file:///x", {"colour": "blue"})


def test_the_options_of_a_url_are_known() -> None:
    assert known_options("file:///x") == set()
    assert {"endpoint", "region", "path_style"} <= known_options("s3://bucket")
