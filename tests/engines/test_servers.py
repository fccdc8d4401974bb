"""The S3 driver on servers that are not Ceph: the contract of stores, races, and a volume."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from megafs.config import Parameters
from megafs.errors import Denied, NoStore, Refused
from megafs.stores.base import ObjectStore
from megafs.stores.limit import Limited
from megafs.stores.probe import probe_create_if_absent, probe_largest
from megafs.stores.retry import Retrying
from megafs.stores.s3.credentials import Fixed
from megafs.stores.s3.driver import S3Store
from megafs.stores.s3.options import S3Settings
from megafs.stores.s3.sigv4 import Credentials
from megafs.volume.create import format_volume
from tests.engines.servers import EXCLUSIVE, SERVERS, Server, missing
from tests.fakes.machine import KEY, Machine, mkdir, read_file, snapshot, write_file
from tests.stores.contract import StoreContract

pytestmark = pytest.mark.engines


PRESENT = [name for name in SERVERS if not missing(name)]
if not PRESENT:
    pytest.skip("; ".join(map(missing, SERVERS)), allow_module_level=True)


@pytest.fixture(scope="module", params=PRESENT)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server.start(request.param) as running:
        yield running


def connect(server: Server, bucket: str, *, secret: str = "") -> S3Store:
    return S3Store(
        bucket,
        "a/prefix",
        Fixed(Credentials(server.access, secret or server.secret)),
        S3Settings(endpoint=server.endpoint, region=server.region),
        connections=36,
    )


@pytest.mark.parametrize("name", SERVERS)
def test_the_server_is_here(name: str) -> None:
    if why := missing(name):
        pytest.skip(why)
    with Server.start(name) as server:
        assert server.endpoint.startswith("http://127.0.0.1:")


class TestContract(StoreContract):
    @pytest.fixture
    async def store(self, server: Server) -> AsyncIterator[ObjectStore]:
        if server.name not in EXCLUSIVE:
            pytest.skip("s3rver is no full S3: it sorts names by another order, for example")
        driver = connect(server, server.fresh_name())
        store = Retrying(Limited(driver, 12, 24))
        await store.create()
        yield store
        await driver.aclose()


async def test_exactly_one_of_all_racers_wins_where_the_server_looks(server: Server) -> None:
    driver = connect(server, server.fresh_name())
    await driver.create()
    store = Retrying(driver)
    for _ in range(3):
        assert await probe_create_if_absent(store) == (server.name in EXCLUSIVE)
    assert await probe_largest(store, 10 << 20) == 10 << 20
    assert not (await driver.list("")).entries
    await driver.aclose()


async def test_refusals(server: Server) -> None:
    if server.name not in EXCLUSIVE:
        pytest.skip("s3rver takes any secret key")
    bucket = server.fresh_name()
    wrong = connect(server, bucket, secret="another one")
    with pytest.raises(Denied, match="check the access key"):
        await wrong.create()
    store = connect(server, bucket)
    with pytest.raises(NoStore, match=f"no bucket {bucket}"):
        await store.put_new("a", b"")
    await store.aclose()
    await wrong.aclose()


async def test_two_mounts_of_one_volume(server: Server, tmp_path: Path) -> None:
    if server.name not in EXCLUSIVE:
        pytest.skip("one writing mount at a time: see below")
    driver = connect(server, server.fresh_name())
    store = Retrying(driver)
    await format_volume(store, KEY, Parameters(), profile="low-memory")
    one, two = Machine(tmp_path / "one", host="one"), Machine(tmp_path / "two", host="two")
    data = {f"{host}{i}": os.urandom(5000) for host in "ab" for i in range(20)}
    async with one.open(store) as left, two.open(store) as right:

        async def write(host: str) -> None:
            at = {"a": left, "b": right}[host]
            for name, content in data.items():
                if name.startswith(host):
                    await write_file(at.fs, name, content)
                    await at.drain()

        await mkdir(left.fs, "d")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, "a")
            nursery.start_soon(write, "b")
    async with Machine(tmp_path / "new").open(store) as volume:
        assert volume.header.create_if_absent
        for name, content in data.items():
            assert await read_file(volume.fs, name) == content
        assert len(await snapshot(volume.fs)) >= len(data)
    await driver.aclose()


async def test_one_mount_after_the_other_where_the_server_does_not_look(
    server: Server, tmp_path: Path
) -> None:
    if server.name in EXCLUSIVE:
        pytest.skip("two may write at once: see above")
    driver = connect(server, server.fresh_name())
    store = Retrying(driver)
    made = await format_volume(store, KEY, Parameters(), profile="low-memory")
    assert not made.create_if_absent
    one, two = Machine(tmp_path / "one", host="one"), Machine(tmp_path / "two", host="two")
    data = os.urandom(300_000)
    async with one.open(store) as left:
        await write_file(left.fs, "a", data, sync=True)
        async with two.open(store) as right:
            assert right.writer.barred is not None
            assert await read_file(right.fs, "a") == data
            with pytest.raises(Refused):
                await write_file(right.fs, "no", data)
            await write_file(left.fs, "b", data[:100], sync=True)
    async with two.open(store) as right:
        with trio.fail_after(60):
            while right.writer.barred is not None:  # noqa: ASYNC110
                await trio.sleep(0.1)
        await write_file(right.fs, "c", data[:1000], sync=True)
    async with Machine(tmp_path / "new").open(store, read_only=True) as volume:
        found = await snapshot(volume.fs)
        assert {name: node[1] for name, node in found.items()} == {
            "a": data,
            "b": data[:100],
            "c": data[:1000],
        }
    await driver.aclose()
