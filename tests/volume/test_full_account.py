"""An account without room: fsync(2) says ENOSPC, nothing is lost, and it goes on by itself."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from trio.testing import MockClock

from megafs.config import Parameters
from megafs.errors import Fault, Full
from megafs.stores.memory import MemoryStore
from megafs.stores.retry import Retrying
from megafs.stores.stack import open_store
from megafs.volume import upkeep
from megafs.volume.create import format_volume
from megafs.volume.volume import Volume
from tests.engines.dav import Dav
from tests.fakes.faulty import Faulty
from tests.fakes.machine import (
    KEY,
    Machine,
    Recording,
    make_volume,
    read_file,
    snapshot,
    unlink,
    write_file,
)
from tests.fakes.proxy import Answer, proxying
from tests.fakes.s3 import Service, serving

DATA = os.urandom(300_000)


@pytest.mark.parametrize("small", [True, False], ids=["in-the-commit", "in-a-pack"])
async def test_fsync_says_enospc_and_all_is_there_once_there_is_room(
    small: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    store = Recording()
    await make_volume(store)
    data = DATA[:1000] if small else DATA
    async with Machine(tmp_path / "a").open(Retrying(store), deadline=20) as volume:
        await write_file(volume.fs, "before", b"there", sync=True)
        store.capacity = sum(map(len, store.objects.values()))
        begun = trio.current_time()
        with pytest.raises(Fault) as failure:
            await write_file(volume.fs, "a", data, sync=True)
        assert failure.value.errno == errno.ENOSPC
        assert trio.current_time() - begun == pytest.approx(20, abs=1)
        await write_file(volume.fs, "b", data)  # a close needs this machine only
        status = volume.status()
        assert status["store"]["state"] == "degraded"
        assert "no room" in status["store"]["last_error"]
        assert any("no room" in entry["text"] for entry in status["errors"])
        assert await read_file(volume.fs, "a") == data
        store.capacity = None
        with trio.fail_after(60):
            await volume.drain()
        status = volume.status()
        assert (status["store"]["state"], status["frozen"]) == ("ok", None)
        assert not [e for e in status["errors"] if not e["text"].startswith("fsync")]
        await write_file(volume.fs, "c", data, sync=True)
    async with Machine(tmp_path / "b").open(store) as volume:
        there = await snapshot(volume.fs)
        assert {there[name][1] for name in "abc"} == {data}


async def test_the_next_mount_takes_over_what_a_full_account_did_not_take(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    store = Recording()
    await make_volume(store)
    async with Machine(tmp_path / "a").open(store, deadline=5) as volume:
        store.capacity = sum(map(len, store.objects.values()))
        with pytest.raises(Full, match="still staged"):
            await write_file(volume.fs, "a", DATA, sync=True)
    async with Machine(tmp_path / "a").open(store, deadline=5) as volume:
        assert await read_file(volume.fs, "a") == DATA
        with pytest.raises(Full):
            await volume.fs.fsyncdir(1)
        store.capacity = None
        with trio.fail_after(60):
            await volume.drain()
    assert [name for name in store.objects if name.startswith("packs/")]


async def test_one_pack_that_passes_does_not_hide_the_others(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The answer of the pack that is waited for decides, not that of the pack that came last."""

    class Choosy(Faulty):
        async def put_new(self, name: str, data: Any) -> None:
            if name.startswith("packs/") and len(data) > 1 << 20:
                raise Full("no room for large ones")
            await super().put_new(name, data)

    store = MemoryStore()
    await make_volume(store)
    async with Machine(tmp_path / "a").open(Choosy(store), deadline=7) as volume:

        async def others() -> None:
            for n in range(100):
                await write_file(volume.fs, f"small{n}", os.urandom(100_000))
                volume.stage.cut()
                await trio.sleep(0.3)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            for n in range(3):
                with pytest.raises(Full):
                    await write_file(volume.fs, f"large{n}", os.urandom(2 << 20), sync=True)
                assert "large ones" in volume.status()["store"]["last_error"]
                assert volume.status()["store"]["state"] == "degraded"
            nursery.cancel_scope.cancel()


async def test_strict_names_say_enospc_too(autojump_clock: MockClock, tmp_path: Path) -> None:
    store = Recording()
    await make_volume(store)
    machine = Machine(tmp_path / "a")
    async with machine.open(store, consistency="strict", deadline=5) as volume:
        await write_file(volume.fs, "a", b"there", sync=True)
        store.capacity = 0
        with pytest.raises(Fault) as failure:
            await unlink(volume.fs, "a")
        assert failure.value.errno == errno.ENOSPC


class Account(NamedTuple):
    """A store of some kind.  fill: let it have no room, or room again."""

    url: str
    options: dict[str, str]
    fill: Callable[[bool], None]


@asynccontextmanager
async def s3_account() -> AsyncIterator[Account]:
    async with serving(Service()) as service:

        def fill(full: bool) -> None:
            service.proxy.heal()
            if full:
                service.proxy.always(Answer(403, "QuotaExceeded"), method="PUT")

        yield Account("s3://bucket/v", {"endpoint": service.endpoint}, fill)


@asynccontextmanager
async def webdav_account() -> AsyncIterator[Account]:
    with Dav("nginx") as server:
        async with proxying(server.origin) as proxy:

            def fill(full: bool) -> None:
                proxy.heal()
                if full:
                    for method in ("PUT", "MKCOL", "MOVE"):
                        proxy.always(Answer(507, body=b""), method=method)

            yield Account(f"webdav+{proxy.endpoint}/dav/v", {}, fill)


@pytest.mark.parametrize("kind", ["s3", pytest.param("webdav", marks=pytest.mark.webdav)])
async def test_services_that_are_full(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("MEGAFS_KDF", "low-memory")
    monkeypatch.setattr(upkeep, "_PROVE_AFTER", 1000.0)
    async with s3_account() if kind == "s3" else webdav_account() as account:
        store = open_store(account.url, account.options)
        await format_volume(store, KEY, Parameters(), profile="low-memory")
        await store.aclose()
        settings = {"store_options": account.options, "deadline": 1}
        async with Machine(tmp_path / "a", settings=settings).open(None, url=account.url) as volume:
            account.fill(True)
            await refused_for_want_of_room(volume)
            account.fill(False)
            with trio.fail_after(60):
                await volume.drain()
            assert volume.status()["store"]["state"] == "ok"
        async with Machine(tmp_path / "b", settings=settings).open(None, url=account.url) as volume:
            assert await read_file(volume.fs, "a") == DATA
            assert await read_file(volume.fs, "b") == DATA[:1000]


async def refused_for_want_of_room(volume: Volume) -> None:
    for name, data in (("a", DATA), ("b", DATA[:1000])):
        with pytest.raises(Full):
            await write_file(volume.fs, name, data, sync=True)
        assert await read_file(volume.fs, name) == data
        assert volume.status()["store"]["state"] == "degraded"
