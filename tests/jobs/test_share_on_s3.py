"""Links in an S3 bucket: signed ahead, or read by everybody; renewed, followed, ended."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from megafs import clock
from megafs.config import KIB, Parameters
from megafs.errors import BadUsage, Denied, Missing
from megafs.jobs import registry
from megafs.jobs.share import DAY, look_after_links
from megafs.links import link_text
from megafs.links.fetch import Fetcher
from megafs.links.reader import SharedFiles, open_link
from megafs.progress import ignore
from megafs.stores.base import Buffer
from megafs.stores.stack import open_store
from megafs.volume.create import format_volume
from megafs.volume.volume import Volume
from tests.fakes.machine import KEY, Machine, write_file
from tests.fakes.s3 import Service, serving
from tests.fs.opened import ROOT

URL = "s3://bucket/v"
PAGE = "https://files.example.org/"


class Moment:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._now_ns = clock.now_ns

    def now_ns(self) -> int:
        return self._now_ns() + int(self.ahead * 1e9)


@pytest.fixture
def moment() -> Iterator[Moment]:
    made = Moment()
    before = clock._now_ns
    made._now_ns = before
    with clock.replaced(now_ns=made.now_ns):
        yield made


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    async with serving(Service(public=lambda key: False)) as running:
        store = open_store(URL, {"endpoint": running.endpoint})
        await format_volume(store, KEY, Parameters(chunk_size=64 * KIB), profile="low-memory")
        await store.aclose()
        yield running


def machine(service: Service, place: Path, name: str = "m") -> Machine:
    settings = {"store_options": {"endpoint": service.endpoint}, "page": PAGE}
    return Machine(place / name, settings=settings)


async def job(volume: Volume, name: str, /, **args: Any) -> dict[str, Any]:
    return await registry.run(volume, name, args, ignore)


async def opened(link: str) -> SharedFiles:
    async with Fetcher() as fetcher:
        return await open_link(link_text.parse(link), fetcher)


async def read(link: str) -> dict[str, bytes]:
    async with Fetcher() as fetcher:
        shared = await open_link(link_text.parse(link), fetcher)
        found = {}
        for file in shared.manifest.files:
            out = bytearray(file.size)

            async def sink(at: int, data: Buffer, out: bytearray = out) -> None:
                out[at : at + len(data)] = data

            await shared.copy(file, sink)
            if not file.folder:
                found[file.path] = bytes(out)
        return found


async def test_a_private_bucket_is_read_by_signatures(service: Service, tmp_path: Path) -> None:
    data = os.urandom(500_000)
    async with machine(service, tmp_path).open(None, url=URL) as volume:
        await write_file(volume.fs, "a.bin", data)
        before = {name for name in service.objects if "/packs/" in name}
        made = await job(volume, "share", path="/a.bin")
        after = {name for name in service.objects if "/packs/" in name}
        assert not before or before <= after
        shared = [name for name in service.objects if "/share/" in name]
        assert len(shared) == 1, "the file was uploaded again"
        assert made["link"].startswith(PAGE + "#1.")
        assert made["expires"] and not made["renewable"]
        assert await read(made["link"]) == {"": data}
        with pytest.raises(BadUsage, match="7 days"):
            await job(volume, "share", path="/a.bin", expires=30 * DAY)


async def test_a_signature_ends(service: Service, tmp_path: Path, moment: Moment) -> None:
    async with machine(service, tmp_path).open(None, url=URL) as volume:
        await write_file(volume.fs, "f", b"x" * 100_000)
        made = await job(volume, "share", path="/f", expires=3600.0)
        await read(made["link"])
        moment.ahead = 3700
        with pytest.raises(Denied, match="expired"):
            await read(made["link"])
        (listed,) = (await job(volume, "share-list"))["links"]
        assert listed["state"] == "expired"
        with pytest.raises(BadUsage, match="ended"):
            await job(volume, "share-renew", which=made["id"])
        (again,) = (await job(volume, "share-renew", which=made["id"], expires=3600.0))["links"]
        assert again["link"] != made["link"], "it holds a signature itself"
        assert await read(again["link"]) == {"": b"x" * 100_000}


async def test_where_manifests_are_public_a_mount_renews_the_rest(
    service: Service, tmp_path: Path, moment: Moment
) -> None:
    service.public = lambda key: "/share/" in key
    async with machine(service, tmp_path).open(None, url=URL) as volume:
        await write_file(volume.fs, "f", b"x" * 100_000)
        made = await job(volume, "share", path="/f", expires=30 * DAY)
        assert made["renewable"] and "X-Amz" not in link_text.parse(made["link"]).address
        for day in (5, 10, 15, 29):
            moment.ahead = day * DAY
            await look_after_links(volume)
            assert await read(made["link"]) == {"": b"x" * 100_000}
        moment.ahead = 31 * DAY
        await look_after_links(volume)
        assert (await job(volume, "share-list"))["links"] == []
        with pytest.raises(Missing, match="revoked"):
            await read(made["link"])
        assert not [name for name in service.objects if "/share/" in name]


async def test_a_public_bucket_needs_no_signature(
    service: Service, tmp_path: Path, moment: Moment
) -> None:
    async with machine(service, tmp_path).open(None, url=URL) as volume:
        await write_file(volume.fs, "f", b"x" * 100_000)
        with pytest.raises(Denied, match="policy"):
            await job(volume, "share", path="/f", public=True)
        assert (await job(volume, "share-list"))["links"] == []
        assert not [name for name in service.objects if "/share/" in name]
        service.public = lambda key: True
        made = await job(volume, "share", path="/f", public=True)
        moment.ahead = 1000 * DAY
        assert await read(made["link"]) == {"": b"x" * 100_000}
        assert made["expires"] == 0 and "Signature" not in made["link"]


async def test_a_followed_folder_shows_what_comes_later(service: Service, tmp_path: Path) -> None:
    service.public = lambda key: "/share/" in key
    async with machine(service, tmp_path).open(None, url=URL) as volume:
        top = (await volume.fs.mkdir(1, b"d", 0o755, ROOT)).ino
        await write_file(volume.fs, "d/one", b"1" * 80_000)
        still = await job(volume, "share", path="/d")
        made = await job(volume, "share", path="/d", follow=True)
        await write_file(volume.fs, "d/two", b"2" * 80_000)
        await look_after_links(volume)
        assert set(await read(made["link"])) == {"one", "two"}
        assert set(await read(still["link"])) == {"one"}
        await volume.drain()
        puts = sum(request.method == "PUT" for request, _ in service.proxy.seen)
        await look_after_links(volume)  # nothing is new
        await volume.drain()
        assert sum(request.method == "PUT" for request, _ in service.proxy.seen) == puts
        await volume.fs.unlink(top, b"one", ROOT)
        await look_after_links(volume)
        assert set(await read(made["link"])) == {"two"}


async def test_what_is_sealed_for_a_followed_folder_does_not_pile_up(
    service: Service, tmp_path: Path
) -> None:
    """A file that was changed in places has chunks of the link's own, for each listing anew."""
    service.public = lambda key: "/share/" in key

    async with machine(service, tmp_path).open(None, url=URL) as volume:
        await volume.fs.mkdir(1, b"d", 0o755, ROOT)
        await write_file(volume.fs, "d/f", b"old" * 40_000)
        ino = volume.replica.tree.walk(b"/d/f")
        await volume.drain()

        async def change(data: bytes) -> None:
            handle, _ = await volume.fs.open(ino, os.O_WRONLY, ROOT)
            await volume.fs.write(handle, 1000, data)
            await volume.fs.flush(handle)
            await volume.fs.release(handle)
            await volume.drain()

        await change(b"new" * 5000)
        made = await job(volume, "share", path="/d", follow=True)

        def own() -> set[str]:
            found = {name for name in service.objects if "/share/" in name}
            return {name for name in found if not name.endswith("/manifest")}

        first = own()
        assert first
        for _ in range(3):
            await look_after_links(volume)
        assert own() == first, "nothing was changed"
        await change(b"again" * 5000)
        await look_after_links(volume)
        assert own() and not own() & first, "what the earlier listing needed is still there"
        (data,) = (await read(made["link"])).values()
        assert data[1000:26_000] == b"again" * 5000 and data[:1000] == (b"old" * 40_000)[:1000]


async def test_a_copy_is_removed_with_its_link(service: Service, tmp_path: Path) -> None:
    async with machine(service, tmp_path).open(None, url=URL) as volume:
        await write_file(volume.fs, "f", b"x" * 300_000)
        made = await job(volume, "share", path="/f", copy=True)
        own = [name for name in service.objects if "/share/" in name]
        assert len(own) == 2 and made["copy"]
        assert await read(made["link"]) == {"": b"x" * 300_000}
        (again,) = (await job(volume, "share-renew", which=made["id"]))["links"]
        assert await read(again["link"]) == {"": b"x" * 300_000}
        await job(volume, "share-revoke", which=made["id"])
        assert not [name for name in service.objects if "/share/" in name]


async def test_the_servers_see_nothing_of_the_secret(service: Service, tmp_path: Path) -> None:
    async with machine(service, tmp_path).open(None, url=URL) as volume:
        await write_file(volume.fs, "f", b"x" * 100_000)
        made = await job(volume, "share", path="/f")
    await read(made["link"])
    fragment = made["link"].partition("#1.")[2].split(".")[1]
    secret = link_text.parse(made["link"]).secret
    for request, _ in service.proxy.seen:
        sent = repr((request.target, request.headers)).encode() + request.body
        assert fragment.encode() not in sent and secret not in sent
