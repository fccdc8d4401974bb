"""A volume on MEGA S4: it never does what S4 refuses, and takes what S4 answers for what it is."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from megafs.errors import Full
from megafs.jobs.gc import collect_garbage
from megafs.jobs.messages import GcArgs
from megafs.progress import ignore
from megafs.stores.base import ObjectStore
from megafs.stores.limit import Limited
from megafs.stores.retry import Retrying
from megafs.stores.s3.credentials import Fixed
from megafs.stores.s3.driver import S3Store
from megafs.stores.s3.options import S3Settings
from megafs.stores.s3.providers import region_of
from megafs.stores.s3.sigv4 import Credentials
from tests.fakes.machine import Machine, make_volume, read_file, snapshot, write_file
from tests.fakes.proxy import Request
from tests.fakes.s3 import serving
from tests.services.s4 import S4Rules, S4Service
from tests.stores.contract import StoreContract


@pytest.fixture
async def s4() -> AsyncIterator[S4Service]:
    service = S4Service()
    async with serving(service):
        yield service


@pytest.fixture
async def store(s4: S4Service) -> AsyncIterator[ObjectStore]:
    """As megafs uses it."""
    settings = S3Settings(endpoint=s4.endpoint, region="eu-central-1")
    driver = S3Store("bucket", "v", Fixed(Credentials("key", "secret")), settings, connections=8)
    store = Retrying(Limited(driver, 4, 8), 10)
    yield store
    await store.aclose()


class TestContract(StoreContract):
    @pytest.fixture
    async def store(self, s4: S4Service, store: ObjectStore) -> AsyncIterator[ObjectStore]:
        await store.create()
        yield store
        assert s4.rules.violations == []


async def test_a_volume_never_does_what_s4_refuses(
    s4: S4Service, store: ObjectStore, tmp_path: Path
) -> None:
    await make_volume(store, pack_size=1 << 20)
    content = os.urandom(3 << 20)
    async with Machine(tmp_path / "one", "one").open(store) as one:
        await write_file(one.fs, "/big", content, sync=True)
        for i in range(30):
            await write_file(one.fs, f"/small {i}", b"%d" % i)
        await one.drain()
        async with Machine(tmp_path / "two", "two").open(store) as two:
            assert await read_file(two.fs, "/big") == content
            await write_file(two.fs, "/theirs", b"theirs", sync=True)
        await one.writer.catch_up()
        assert len(await snapshot(one.fs)) == 32
        await collect_garbage(one, GcArgs(), ignore)
    assert s4.rules.violations == []
    assert s4.rules.hosts == {s4.endpoint.removeprefix("http://")}  # one endpoint for a volume
    assert len(s4.objects) > 5


async def test_an_account_over_its_quota_is_a_full_disk(
    s4: S4Service, store: ObjectStore, tmp_path: Path
) -> None:
    await make_volume(store)
    async with Machine(tmp_path / "one").open(store, deadline=2) as one:
        await write_file(one.fs, "/before", b"before", sync=True)
        s4.rules.full = True
        with pytest.raises(Full, match="over its quota"):
            await write_file(one.fs, "/during", os.urandom(100_000), sync=True)
        assert await read_file(one.fs, "/before") == b"before"
        s4.rules.full = False
        with trio.fail_after(60):
            await one.drain()  # nothing was lost
    async with Machine(tmp_path / "two").open(store) as two:
        assert len(await read_file(two.fs, "/during")) == 100_000


async def test_a_crowded_server_is_asked_again(
    s4: S4Service, store: ObjectStore, tmp_path: Path
) -> None:
    await make_volume(store)
    s4.rules.crowded = 3
    async with Machine(tmp_path / "one").open(store) as one:
        await write_file(one.fs, "/file", b"file", sync=True)
    assert s4.rules.crowded == 0 and s4.rules.violations == []


def test_the_region_is_read_off_the_endpoint() -> None:
    for region in ("eu-central-1", "eu-central-2", "ca-central-1", "ca-west-1"):
        assert region_of(f"https://s3.{region}.s4.mega.io") == region


# The rules themselves refuse


def asked(method: str, target: str, body: bytes = b"", **headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(method, target, {"host": "h", **named}, b"", body)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (asked("GET", "/b?cors"), "NotImplemented"),
        (asked("PUT", "/b?versioning="), "NotImplemented"),
        (asked("PUT", "/b/k", b"x", x_amz_checksum_crc32="x"), "NotImplemented"),
        (asked("PUT", "/b/k", b"x", x_amz_storage_class="GLACIER"), "NotImplemented"),
        (asked("DELETE", "/b/k", if_match="x"), "NotImplemented"),
        (asked("PUT", "/b/a//b", b"x"), "InvalidArgument"),
        (asked("PUT", "/b/a/../b", b"x"), "InvalidArgument"),
        (asked("PUT", "/b/a/", b"x"), "InvalidArgument"),
        (asked("PUT", "/b/" + "k" * 1025, b"x"), "InvalidArgument"),
        (asked("PUT", "/b/a%20(b)", b"x"), "SignatureDoesNotMatch"),
    ],
)
def test_the_rules(request_: Request, code: str) -> None:
    rules = S4Rules()
    answer = rules.refusal(request_)
    assert answer is not None and code.encode() in answer.body and rules.violations


def test_a_part_is_taken_once() -> None:
    rules = S4Rules()
    part = asked("PUT", "/b/k?partNumber=1&uploadId=u", b"x")
    assert rules.refusal(part) is None
    answer = rules.refusal(part)
    assert answer is not None and b"InvalidPart" in answer.body


def test_what_megafs_asks_is_allowed() -> None:
    rules = S4Rules()
    for request in (
        asked("PUT", "/b/v/commits/0001", b"x", if_none_match="*"),
        asked("GET", "/b/v/packs/ab/1", range="bytes=0-10"),
        asked("GET", "/b?list-type=2&prefix=v%2F&max-keys=1000"),
        asked("DELETE", "/b/v/packs/ab/1"),
    ):
        assert rules.refusal(request) is None
    assert rules.violations == []
