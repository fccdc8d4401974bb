"""The S3 driver on a real Ceph."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from megafs.errors import BadStore, Denied, Exists, Missing, NoStore
from megafs.stores.s3.credentials import Fixed
from megafs.stores.s3.driver import S3Store, open_driver
from megafs.stores.s3.sigv4 import Credentials
from megafs.stores.urls import Location
from tests.engines.ceph import Ceph

pytestmark = pytest.mark.ceph


def open_s3(bucket: str, prefix: str, options: dict[str, str]) -> S3Store:
    return open_driver(Location(bucket, f"/{prefix}"), options, 16)


Connect = Callable[..., S3Store]


@pytest.fixture(params=["", "some/where"])
async def store(ceph: Ceph, connect: Connect, request: pytest.FixtureRequest) -> S3Store:
    made = connect(ceph.fresh_name(), request.param)
    await made.create()
    return made


async def test_what_was_put_is_got(store: S3Store) -> None:
    data = os.urandom(300_000)
    await store.put_new("packs/aa/1", data)

    assert await store.get("packs/aa/1", 0, 300_000) == data
    assert await store.get("packs/aa/1", 100, 50) == data[100:150]
    assert await store.get("packs/aa/1", 299_990, 50) == data[-10:]
    assert await store.get("packs/aa/1", 0, 1 << 30) == data
    assert await store.get("packs/aa/1", 300_000, 50) == b""
    assert await store.get("packs/aa/1", 10**12, 50) == b""
    assert await store.get("packs/aa/1", 5, 0) == b""


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_any_buffer_of_any_size_can_be_put(
    store: S3Store, kind: Callable[[bytes], memoryview]
) -> None:
    for size in (0, 1, 255_999, 256 << 10, 3_000_000):
        data = os.urandom(size)
        await store.put_new(f"packs/{size}", kind(data))
        assert await store.get(f"packs/{size}", 0, size + 1) == data


async def test_put_new_never_replaces(store: S3Store) -> None:
    await store.put_new("a", b"first")

    with pytest.raises(Exists):
        await store.put_new("a", b"second")

    assert await store.get("a", 0, 100) == b"first"


async def test_put_replaces(store: S3Store) -> None:
    await store.put("mounts/1", b"old")
    await store.put("mounts/1", b"new")

    assert await store.get("mounts/1", 0, 100) == b"new"


async def test_what_is_not_there_is_missing_and_can_be_deleted(store: S3Store) -> None:
    with pytest.raises(Missing):
        await store.get("a", 0, 10)
    with pytest.raises(Missing):
        await store.get("a", 0, 0)
    await store.delete("a")
    await store.put_new("a", b"")
    await store.delete("a")
    with pytest.raises(Missing):
        await store.get("a", 0, 10)


async def test_a_listing_is_in_order_and_in_pages(store: S3Store) -> None:
    names = sorted(f"l/{i % 7}/{i:03d}" for i in range(60))
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(store.put_new, name, name.encode())
        nursery.start_soon(store.put_new, "m", b"")

    got, after = [], ""
    while True:
        page = await store.list("l/", after, 25)
        got += page.entries
        if not page.more:
            break
        assert len(page.entries) == 25
        after = page.entries[-1].name
    assert [entry.name for entry in got] == names
    assert all(entry.size == len(entry.name) for entry in got)
    assert (await store.list("l/", names[-1])).entries == []
    assert [e.name for e in (await store.list("", "l/6/9")).entries] == ["m"]
    assert [e.name for e in (await store.list("l/3/0", "", 2)).entries] == ["l/3/003", "l/3/010"]
    assert abs(got[0].modified - os.stat(f"/proc/{os.getpid()}").st_mtime) < 86_400


async def test_other_peoples_objects_are_not_listed(ceph: Ceph, connect: Connect) -> None:
    bucket = ceph.fresh_name()
    whole, part = connect(bucket), connect(bucket, "p")
    await whole.create()
    # Objects that no driver of ours would make, through a prefix that ends where names begin.
    for i in range(5):
        await connect(bucket, f"p/a.{i}").put_new("x", b"")
    await part.put_new("b", b"")
    await whole.put_new("pq", b"")

    page = await part.list("", "", 2)

    assert [entry.name for entry in page.entries] == ["b"]
    assert not page.more


async def test_without_a_bucket_there_is_no_store_until_it_is_created(
    ceph: Ceph, connect: Connect
) -> None:
    store = connect(ceph.fresh_name())
    for attempt in (
        lambda: store.get("a", 0, 1),
        lambda: store.put_new("a", b""),
        lambda: store.delete("a"),
        lambda: store.list(""),
    ):
        with pytest.raises(NoStore, match="there is no bucket"):
            await attempt()
    await store.create()
    await store.create()
    await store.put_new("a", b"")


async def test_one_of_sixteen_racing_writers_wins(store: S3Store) -> None:
    for turn in range(25):
        won: list[int] = []
        go = trio.Event()

        async def write(i: int, name: str, won: list[int], go: trio.Event) -> None:
            await go.wait()
            try:
                await store.put_new(name, bytes([i]) * 1000)
            except Exists:
                return
            won.append(i)

        async with trio.open_nursery() as nursery:
            for i in range(16):
                nursery.start_soon(write, i, f"race/{turn}", won, go)
            await trio.testing.wait_all_tasks_blocked()
            go.set()

        assert len(won) == 1
        assert await store.get(f"race/{turn}", 0, 2000) == bytes(won) * 1000


async def test_a_hash_of_the_body_is_signed_or_not_as_told(ceph: Ceph, connect: Connect) -> None:
    bucket = ceph.fresh_name()
    for sign, name in ((True, "a"), (False, "b"), (None, "c")):
        store = connect(bucket, sign_payload=sign)
        await store.create()
        await store.put_new(name, b"x" * 100_000)
        assert await store.get(name, 0, 200_000) == b"x" * 100_000


async def test_without_the_condition_put_new_looks_first(ceph: Ceph, connect: Connect) -> None:
    store = connect(ceph.fresh_name(), conditional_put=False)
    await store.create()
    await store.put_new("a", b"first")

    with pytest.raises(Exists):
        await store.put_new("a", b"second")

    assert await store.get("a", 0, 100) == b"first"


async def test_wrong_credentials_say_what_to_check(ceph: Ceph, connect: Connect) -> None:
    bucket = ceph.fresh_name()
    for keys, code in (
        (Credentials(ceph.access, "wrong-secret"), "SignatureDoesNotMatch"),
        (Credentials("nobody", "wrong-secret"), "InvalidAccessKeyId"),
    ):
        store = connect(bucket, credentials=Fixed(keys))
        with pytest.raises(Denied, match=f"{code}.*check the access key") as caught:
            await store.get("a", 0, 1)
        assert "wrong-secret" not in str(caught.value)


async def test_credentials_come_from_the_environment(
    ceph: Ceph, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ceph.environment().items():
        monkeypatch.setenv(name, value)
    store = open_s3(ceph.fresh_name(), "p", {})
    await store.create()
    await store.put_new("a", b"1")
    assert await store.get("a", 0, 10) == b"1"
    assert ceph.secret not in repr(vars(store)) + store.url
    await store.aclose()


async def test_credentials_come_from_a_profile(
    ceph: Ceph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clear(monkeypatch, tmp_path)
    (tmp_path / "credentials").write_text(
        f"[other]\naws_access_key_id = {ceph.access}\naws_secret_access_key = {ceph.secret}\n"
    )
    store = open_s3(ceph.fresh_name(), "p", {"profile": "other", "endpoint": ceph.endpoint})
    await store.create()
    await store.put_new("a", b"1")

    monkeypatch.setenv("AWS_PROFILE", "other")
    named = open_s3(ceph.fresh_name(), "", {"endpoint": ceph.endpoint})
    await named.create()

    with pytest.raises(BadStore, match="absent"):
        await open_s3("bucket", "", {"profile": "absent", "endpoint": ceph.endpoint}).create()
    await store.aclose()
    await named.aclose()


async def test_without_credentials_the_ways_to_give_them_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clear(monkeypatch, tmp_path)
    store = open_s3("bucket", "", {"endpoint": "http://127.0.0.1:1"})

    with pytest.raises(Denied, match=r"AWS_ACCESS_KEY_ID.*AWS_PROFILE.*profile="):
        await store.get("a", 0, 1)


def clear(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """An environment in which botocore finds nothing."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "config"))
    monkeypatch.setenv("BOTO_CONFIG", str(home / "boto"))
