"""What a store, or a proxy in front of it, does not take is found before it is needed."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from megafs.chunks.pack_size import PackSize, fitting, group_of, largest_object
from megafs.config import KIB, MIB, Parameters
from megafs.crypto.aead import padme
from megafs.errors import BadUsage, TooLarge
from megafs.stores.base import Buffer
from megafs.stores.memory import MemoryStore
from megafs.stores.probe import RACES
from megafs.stores.stack import open_store
from megafs.volume import upkeep
from megafs.volume.create import format_volume
from megafs.volume.volume import Volume
from tests.fakes.machine import KEY, Machine, make_volume, read_file, snapshot, write_file
from tests.fakes.s3 import Service, serving

URL = "s3://bucket/v"


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("MEGAFS_KDF", "low-memory")
    monkeypatch.setattr(upkeep, "_PROVE_AFTER", 0.01)
    monkeypatch.setattr(upkeep, "_REST_FACTOR", 0.0)
    monkeypatch.setattr(upkeep, "_REST_LEAST", 0.0)
    async with serving(Service()) as running:
        yield running


async def formatted(service: Service, chunk_size: int = 256 * KIB) -> None:
    store = open_store(URL, {"endpoint": service.endpoint})
    await format_volume(store, KEY, Parameters(chunk_size=chunk_size), profile="low-memory")
    await store.aclose()


def machine(service: Service, place: Path) -> Machine:
    return Machine(place, settings={"store_options": {"endpoint": service.endpoint}})


async def proved(volume: Volume) -> None:
    """Wait until this machine knows what the store takes."""
    with trio.fail_after(30):
        limits = volume_directory(volume) / "store-limits"
        while not limits.exists() or not json.loads(limits.read_bytes())["raced"]:  # noqa: ASYNC110
            await trio.sleep(0.01)


def volume_directory(volume: Volume) -> Path:
    return volume.settings.state_dir / "volumes" / volume.fsid.hex()


def sizes(service: Service) -> list[int]:
    return [len(data) for name, data in service.objects.items() if "/packs/" in name]


async def test_format_behind_a_proxy_of_1_mib_makes_packs_that_pass(
    service: Service, tmp_path: Path
) -> None:
    service.body_limit = 1 << 20
    await formatted(service)
    data = os.urandom(6 << 20)
    async with machine(service, tmp_path / "one").open(None, url=URL) as volume:
        assert volume.params.pack_size < 1 << 20
        await write_file(volume.fs, "a", data)
        with trio.fail_after(60):
            await volume.drain()
        assert volume.status()["store"]["state"] == "ok"
        assert await read_file(volume.fs, "a") == data
    assert max(sizes(service)) <= 1 << 20
    assert len(sizes(service)) < 6 << 20 >> 18, "not a pack for each chunk"


async def test_commits_and_checkpoints_pass_as_well(service: Service, tmp_path: Path) -> None:
    service.body_limit = 128 << 10
    await formatted(service, chunk_size=16 << 10)
    there = machine(service, tmp_path / "one")
    async with there.open(None, url=URL, sync_interval=30.0) as volume:
        for i in range(600):  # small files travel in the commit: 600 KiB
            await write_file(volume.fs, f"{i:04d}", os.urandom(1000))
        with trio.fail_after(60):
            await volume.drain()
        assert await volume.checkpointer.write()
        assert volume.status()["store"]["state"] == "ok"
    assert max(map(len, service.objects.values())) <= 128 << 10
    assert len([name for name in service.objects if "/checkpoints/" in name]) > 6
    async with machine(service, tmp_path / "new").open(None, url=URL) as volume:
        assert len(await snapshot(volume.fs)) == 600


async def test_the_first_mount_on_a_machine_finds_the_proxy_on_its_way(
    service: Service, tmp_path: Path
) -> None:
    await formatted(service)
    service.body_limit = 1 << 20
    data = os.urandom(6 << 20)
    there = machine(service, tmp_path / "one")
    async with there.open(None, url=URL) as volume:
        await write_file(volume.fs, "early", data)  # before anything is known
        await proved(volume)
        await write_file(volume.fs, "a", data)
        with trio.fail_after(60):
            await volume.drain()
    assert max(sizes(service)) <= 1 << 20
    service.proxy.seen.clear()
    async with there.open(None, url=URL) as volume:
        await write_file(volume.fs, "b", data)
        with trio.fail_after(60):
            await volume.drain()
    assert not [r for r, _ in service.proxy.seen if "/probe/" in r.target], "it is remembered"
    assert max(sizes(service)) <= 1 << 20


async def test_a_proxy_that_comes_later_is_named_and_new_packs_are_smaller(
    service: Service, tmp_path: Path
) -> None:
    await formatted(service)
    async with machine(service, tmp_path / "one").open(None, url=URL) as volume:
        await proved(volume)
        service.body_limit = 1 << 20
        await write_file(volume.fs, "a", os.urandom(20 << 20))
        with trio.fail_after(30):
            while volume.stage.last_error is None:  # noqa: ASYNC110
                await trio.sleep(0.05)
        status = volume.status()
        assert status["store"]["state"] == "degraded"
        assert "client_max_body_size" in status["store"]["last_error"]
        # What was sealed into large packs waits for the proxy to be mended.
        service.body_limit = None
        with trio.fail_after(60):
            await volume.drain()
        assert volume.status()["store"]["state"] == "ok"
        service.body_limit = 1 << 20
        before = set(service.objects)
        await write_file(volume.fs, "b", os.urandom(6 << 20))
        with trio.fail_after(60):
            await volume.drain()
        assert max(len(service.objects[n]) for n in set(service.objects) - before) <= 1 << 20


async def test_a_wrong_yes_at_format_ends_in_a_clear_stop(service: Service, tmp_path: Path) -> None:
    await formatted(service)
    service.window = lambda: 0.002  # from now on it checks and then acts
    async with machine(service, tmp_path / "one").open(None, url=URL) as volume:
        await write_file(volume.fs, "a", b"staged here")
        with trio.fail_after(30):
            while volume.writer.barred is None:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert "does not create an object only if its name is free" in str(
            volume.status()["frozen"]
        )
        assert await read_file(volume.fs, "a") == b"staged here"
    async with machine(service, tmp_path / "one").open(None, url=URL) as volume:
        with trio.fail_after(30):
            while volume.writer.barred is None:  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_chunks_that_cannot_pass_are_refused_at_format(service: Service) -> None:
    service.body_limit = 256 << 10
    with pytest.raises(TooLarge, match="--chunk-size"):
        await formatted(service)
    assert not [name for name in service.objects if "/keys/" in name]
    await formatted(service, chunk_size=16 << 10)


@pytest.mark.parametrize("limit", [128 * KIB, 512 * KIB, 1 * MIB, 2 * MIB, 4 * MIB, 8 * MIB])
@pytest.mark.parametrize("chunk", [16 * KIB, 64 * KIB, 256 * KIB, 1 * MIB])
def test_no_pack_is_larger_than_what_fits(limit: int, chunk: int) -> None:
    try:
        size = fitting(8 * MIB, chunk, limit)
    except TooLarge:
        assert limit < 2.2 * chunk
        return
    assert chunk <= size <= 8 * MIB
    assert padme(size + group_of(size, chunk)) <= limit
    assert size > limit * 0.55 or chunk > limit / 4


async def test_the_size_of_packs_can_be_chosen(tmp_path: Path) -> None:
    store = MemoryStore()
    await make_volume(store)
    data = os.urandom(6 << 20)
    async with Machine(tmp_path / "one").open(store, pack_size=1 << 20) as volume:
        await write_file(volume.fs, "a", data)
        await volume.drain()
    packs = [len(data) for name, data in store.objects.items() if name.startswith("packs/")]
    assert len(packs) >= 4 and max(packs) <= largest_object(1 << 20)
    for wrong in (1, 65 << 20):
        with pytest.raises(BadUsage, match="pack_size="):
            async with Machine(tmp_path / "two").open(store, pack_size=wrong):
                pass


def test_what_was_found_survives_a_damaged_note(tmp_path: Path) -> None:
    note = tmp_path / "note"
    made = PackSize(8 * MIB, 256 * KIB, note)
    assert not made.known
    made.found(1 * MIB)
    again = PackSize(8 * MIB, 256 * KIB, note)
    assert again.known and again.size == made.size < 1 * MIB
    for damaged in (b"", b"{}", b"[]", b'{"largest_object": "x"}', b"\xff"):
        note.write_bytes(damaged)
        assert not PackSize(8 * MIB, 256 * KIB, note).known


class _Timed(MemoryStore):
    """Notes when objects are made, and how many requests there are at once; each takes 20 ms."""

    def __init__(self) -> None:
        super().__init__("timed")
        self.begun: list[tuple[float, str]] = []
        self.busy = self.most = 0

    async def put_new(self, name: str, data: Buffer) -> None:
        if name.startswith("probe/"):
            self.begun.append((trio.current_time(), name))
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            await trio.sleep(0.02)
            await super().put_new(name, data)
        finally:
            self.busy -= 1


async def test_races_leave_the_machine_to_others(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    store = _Timed()
    await make_volume(store)
    store.begun.clear()
    found = PackSize(8 * MIB, 256 * KIB, tmp_path / "limits")
    async with Machine(tmp_path / "a").open(store) as volume:
        store.most = 0
        await upkeep.prove_store(volume, found)
    races: dict[str, list[float]] = {}
    for at, name in store.begun:
        races.setdefault(name, []).append(at)
    assert len(races) == len(RACES)
    assert store.most <= 12 + 1  # and whatever the mount itself does
    starts = [min(times) for times in races.values()]
    ends = [max(times) for times in races.values()]
    rests = [start - end for start, end in zip(starts[1:], ends, strict=False)]
    assert min(rests) >= 1
    assert PackSize(8 * MIB, 256 * KIB, tmp_path / "limits").proved, "it happens once"


async def test_a_machine_that_knows_the_size_still_races(tmp_path: Path) -> None:
    found = PackSize(8 * MIB, 256 * KIB, tmp_path / "limits")
    found.found(16 * MIB)
    again = PackSize(8 * MIB, 256 * KIB, tmp_path / "limits")
    assert again.known and not again.proved
    (tmp_path / "limits").write_text('{"largest_object": 16777216}')
    (tmp_path / "limits").chmod(0o600)
    assert PackSize(8 * MIB, 256 * KIB, tmp_path / "limits").proved, "as older releases wrote it"
