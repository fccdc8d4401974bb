"""Which server, which address style, which region: without asking anybody."""

from __future__ import annotations

import os

import pytest

from megafs.errors import BadStore
from megafs.stores.drivers import DRIVERS
from megafs.stores.s3.driver import S3Store, open_driver
from megafs.stores.urls import Location

OPTIONS = DRIVERS["s3"].options


def open_s3(bucket: str, prefix: str, options: dict[str, str]) -> S3Store:
    return open_driver(Location(bucket, f"/{prefix}"), options, 16)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("bucket", "options", "host", "root", "region"),
    [
        ("bkt", {}, "bkt.s3.us-east-1.amazonaws.com", "", "us-east-1"),
        ("bkt", {"region": "eu-west-1"}, "bkt.s3.eu-west-1.amazonaws.com", "", "eu-west-1"),
        ("bkt", {"region": "cn-north-1"}, "bkt.s3.cn-north-1.amazonaws.com.cn", "", "cn-north-1"),
        ("b.c", {}, "s3.us-east-1.amazonaws.com", "/b.c", "us-east-1"),
        ("bkt", {"path_style": "yes"}, "s3.us-east-1.amazonaws.com", "/bkt", "us-east-1"),
        ("bkt", {"endpoint": "http://127.0.0.1:9000"}, "127.0.0.1:9000", "/bkt", "us-east-1"),
        ("bkt", {"endpoint": "http://[::1]:9000"}, "[::1]:9000", "/bkt", "us-east-1"),
        ("bkt", {"endpoint": "ceph.example.org"}, "ceph.example.org", "/bkt", "us-east-1"),
        ("bkt", {"endpoint": "https://example.org/s3/"}, "example.org", "/s3/bkt", "us-east-1"),
        ("bkt", {"endpoint": "ceph.example.org", "path_style": "no"}, "bkt.ceph.example.org", "",
         "us-east-1"),
        ("bkt", {"endpoint": "https://acc.r2.cloudflarestorage.com"},
         "acc.r2.cloudflarestorage.com", "/bkt", "auto"),
        ("bkt", {"endpoint": "s3.eu-central-1.s4.mega.io"},
         "s3.eu-central-1.s4.mega.io", "/bkt", "eu-central-1"),
        ("bkt", {"endpoint": "https://s3.eu-central-003.backblazeb2.com"},
         "s3.eu-central-003.backblazeb2.com", "/bkt", "eu-central-003"),
        ("bkt", {"endpoint": "https://s3.eu-west-1.amazonaws.com"},
         "bkt.s3.eu-west-1.amazonaws.com", "", "eu-west-1"),
    ],
)  # fmt: skip
def test_where_requests_go(
    bucket: str, options: dict[str, str], host: str, root: str, region: str
) -> None:
    store = open_s3(bucket, "some/prefix/", options)

    assert (store._session.host, store._root, store._settings.region) == (host, root, region)
    assert store._prefix == "some/prefix/"
    assert store.url == f"s3://{bucket}/some/prefix"


def test_the_environment_is_followed_where_no_option_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://general.example.org")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "r1")
    store = open_s3("bkt", "", {})
    assert (store._session.host, store._settings.region) == ("general.example.org", "r1")

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.example.org")
    monkeypatch.setenv("AWS_REGION", "r2")
    store = open_s3("bkt", "", {})
    assert (store._session.host, store._settings.region) == ("s3.example.org", "r2")

    store = open_s3("bkt", "", {"endpoint": "http://mine.example.org", "region": "r3"})
    assert (store._session.host, store._settings.region) == ("mine.example.org", "r3")


@pytest.mark.parametrize(
    ("bucket", "prefix", "options", "text"),
    [
        ("", "", {}, "not the name of a bucket"),
        ("a/b", "", {}, "not the name of a bucket"),
        ("-a", "", {}, "not the name of a bucket"),
        ("bucket", "a//b", {}, "prefix"),
        ("bucket", "a b", {}, "prefix"),
        ("bucket", "ü", {}, "prefix"),
        ("bucket", "a/../b", {}, "prefix"),
        ("bucket", "", {"path_style": "maybe"}, "path_style= takes yes, no or auto"),
        ("bucket", "", {"read_timeout": "soon"}, "read_timeout= takes seconds"),
        ("bucket", "", {"read_timeout": "0"}, "read_timeout= takes seconds"),
        ("bucket", "", {"region": "Mars!"}, "not a region"),
        ("bucket", "", {"endpoint": "http://127.0.0.1:1", "path_style": "no"}, "cannot work"),
        ("bucket", "", {"endpoint": "ftp://example.org"}, "not an http"),
        ("bucket", "", {"endpoint": "http://u:p@example.org"}, "no user"),
        ("bucket", "", {"ca": "/does/not/exist"}, "cannot read certificates"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    bucket: str, prefix: str, options: dict[str, str], text: str
) -> None:
    with pytest.raises(BadStore, match=text):
        open_s3(bucket, prefix, options)


def test_no_option_takes_a_secret() -> None:
    assert not [name for name in OPTIONS if "secret" in name or "key" in name]


def test_every_option_is_documented() -> None:
    import megafs.stores.s3.options as module

    assert module.__doc__
    assert [
        name for name in OPTIONS if f"    {name}" not in module.__doc__.replace(", ", "\n    ")
    ] == []
