"""Links on a real Ceph: its signatures, its CORS and policies, and a browser if there is one."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from megafs.config import KIB, Parameters
from megafs.errors import Denied, Missing
from megafs.jobs import registry
from megafs.links import link_text
from megafs.links.fetch import Fetcher
from megafs.links.reader import open_link
from megafs.page import write_page
from megafs.progress import ignore
from megafs.stores.base import Buffer
from megafs.stores.stack import open_store
from megafs.volume.create import format_volume
from megafs.volume.volume import Volume
from tests.engines.ceph import Ceph
from tests.fakes.machine import KEY, Machine, write_file
from tests.page.browser import serving_folder

pytestmark = pytest.mark.ceph
CHROMIUM = shutil.which("chromium")


@pytest.fixture
async def volume(
    ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Volume]:
    for name, value in ceph.environment().items():
        monkeypatch.setenv(name, value)
    url = f"s3://links-{os.urandom(4).hex()}/v"
    options = {"endpoint": ceph.endpoint, "region": ceph.region}
    store = open_store(url, options)
    await store.create()
    await format_volume(store, KEY, Parameters(chunk_size=64 * KIB), profile="low-memory")
    await store.aclose()
    machine = Machine(tmp_path / "m", settings={"store_options": options})
    async with machine.open(None, url=url) as made:
        yield made


async def job(volume: Volume, name: str, /, **args: Any) -> dict[str, Any]:
    return await registry.run(volume, name, args, ignore)


async def read(link: str) -> bytes:
    async with Fetcher() as fetcher:
        shared = await open_link(link_text.parse(link), fetcher)
        (file,) = shared.manifest.files
        out = bytearray(file.size)

        async def sink(at: int, data: Buffer) -> None:
            out[at : at + len(data)] = data

        await shared.copy(file, sink)
        return bytes(out)


async def test_signed_links_and_public_manifests(volume: Volume) -> None:
    data = os.urandom(700_000)
    await write_file(volume.fs, "a b.bin", data)
    made = await job(volume, "share", path="/a b.bin", expires=600.0)
    assert await read(made["link"]) == data
    # A signature is for one object.
    link = link_text.parse(made["link"])
    other = link.address.replace(made["id"], "A" * 22)
    async with Fetcher() as fetcher:
        with pytest.raises((Denied, Missing)):
            await fetcher.get(other, 0, 1)
        with pytest.raises(Denied):
            await fetcher.get(link.address.partition("?")[0], 0, 1)
    done = await job(volume, "share-setup", page="http://127.0.0.1:1/", manifests=True)
    assert (done["browsers"], done["manifests"]) == (True, True), done["lines"]
    again = await job(volume, "share-setup", page="http://127.0.0.1:1/", manifests=True)
    assert again["exit_code"] == 0
    long = await job(volume, "share", path="/a b.bin", expires=40 * 86400.0)
    assert long["renewable"] and len(long["link"]) < 250
    assert await read(long["link"]) == data
    await job(volume, "share-revoke", which=long["id"])
    with pytest.raises((Denied, Missing)):
        await read(long["link"])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
async def test_a_browser_opens_it_from_the_store(volume: Volume, tmp_path: Path) -> None:
    """The page from one server, the bytes from Ceph, with the rules that `share setup` makes."""
    pytest.importorskip("playwright")
    data = os.urandom(2_000_000)
    await write_file(volume.fs, "from ceph.bin", data)
    folder = tmp_path / "www"
    write_page(folder)
    with serving_folder(folder) as server:
        done = await job(volume, "share-setup", page=server.url)
        assert done["exit_code"] == 0, done["lines"]
        made = await job(volume, "share", path="/from ceph.bin", page=server.url)
        name, got = await trio.to_thread.run_sync(_saved, made["link"])
    assert (name, got) == ("from ceph.bin", data)


def _saved(link: str) -> tuple[str, bytes]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(link)
        with page.expect_download() as download:
            page.get_by_role("button", name="Download").click()
        found = download.value.suggested_filename, Path(download.value.path()).read_bytes()
        browser.close()
        return found
