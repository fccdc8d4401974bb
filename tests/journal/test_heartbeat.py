"""Heartbeats, and the lease: where the store cannot keep two writers apart, one mount writes."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from megafs.concurrency import in_place
from megafs.config import Settings
from megafs.crypto.volume_keys import Keyring
from megafs.errors import Refused
from megafs.journal import heartbeat, lease
from megafs.stores.base import Buffer
from megafs.stores.memory import MemoryStore
from megafs.stores.probe import probe_create_if_absent
from megafs.volume.create import format_volume
from megafs.volume.open import open_volume
from megafs.volume.volume import Volume
from tests.fs.opened import CREDENTIAL, ROOT, SMALL

KEYS = Keyring(bytes(16), {0: bytes(range(32))}, 0)


class CheckThenAct(MemoryStore):
    """A store without an atomic create-if-absent: it looks, and writes a moment later."""

    async def put_new(self, name: str, data: Buffer) -> None:
        kept = bytes(data)
        try:
            await self.get(name, 0, 1)
        except Exception:
            await trio.sleep(0.01)
            await self.put(name, kept)
            return
        await super().put_new(name, kept)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with in_place():
        yield


def _settings(place: Path, name: str) -> Settings:
    return Settings(
        state_dir=place / name / "state",
        cache_dir=place / name / "cache",
        stage_min_free=0,
        fsync="local",
    )


async def _weak_volume() -> CheckThenAct:
    store = CheckThenAct()
    made = await format_volume(store, CREDENTIAL, SMALL, profile="low-memory")
    assert not made.create_if_absent
    return store


async def _makes(volume: Volume, name: bytes) -> None:
    await volume.fs.mkdir(1, name, 0o755, ROOT)


async def test_a_store_that_looks_before_it_writes_is_found_out(autojump_clock: object) -> None:
    assert not await probe_create_if_absent(CheckThenAct())
    assert await probe_create_if_absent(MemoryStore())


async def test_the_first_mount_writes_the_second_reads_and_says_why(
    tmp_path: Path, autojump_clock: object
) -> None:
    store = await _weak_volume()
    async with open_volume("memory://x", CREDENTIAL, _settings(tmp_path, "a"), store=store) as a:
        assert a.lease is not None and a.lease.held
        await _makes(a, b"made")
        await a.drain()
        async with open_volume(
            "memory://x", CREDENTIAL, _settings(tmp_path, "b"), store=store, host="second"
        ) as b:
            assert b.lease is not None and not b.lease.held
            with pytest.raises(Refused) as refused:
                await _makes(b, b"not")
            assert refused.value.errno == errno.EROFS
            assert "right to write" in b.status()["frozen"]
            assert b.fs.lookup(1, b"made").is_dir
            await _makes(a, b"later")
            await a.drain()
            await trio.sleep(10)  # it follows all the same
            assert b.fs.lookup(1, b"later").is_dir


async def test_the_right_to_write_passes_on_when_its_holder_leaves_or_dies(
    tmp_path: Path, autojump_clock: object
) -> None:
    store = await _weak_volume()
    async with open_volume("memory://x", CREDENTIAL, _settings(tmp_path, "b"), store=store) as b:
        assert b.lease is not None and b.lease.held
        # Another machine took it, and died with it.
        dead = heartbeat.Heartbeat(7, "dead", 1, 1, 1, False, b"t" * 16)
        await store.put(heartbeat.LEASE, heartbeat.seal(b.keyring, heartbeat.LEASE, dead))
        await trio.sleep(lease.LEASE_INTERVAL * 1.5)
        assert not b.lease.held
        with pytest.raises(Refused):
            await _makes(b, b"x")
        lost = trio.current_time()
        with trio.fail_after(lease.LEASE_DEAD * 3):
            while not b.lease.held:
                await trio.sleep(5)
        assert trio.current_time() - lost > lease.LEASE_DEAD - lease.LEASE_INTERVAL
        await trio.sleep(1)
        await _makes(b, b"y")
        await b.drain()
    names = [entry.name for entry in (await store.list("mounts/")).entries]
    assert names == []  # neither a lease nor a heartbeat stays behind


async def test_two_who_take_the_lease_at_once_do_not_both_have_it(
    tmp_path: Path, autojump_clock: object
) -> None:
    store = await _weak_volume()
    held: list[bool] = []

    async def one(name: str) -> None:
        async with open_volume(
            "memory://x", CREDENTIAL, _settings(tmp_path, name), store=store, host=name
        ) as volume:
            assert volume.lease is not None
            held.append(volume.lease.held)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, "a")
        nursery.start_soon(one, "b")
    assert sorted(held) == [False, True]


async def test_mounts_know_of_each_other_and_how_far_they_are(
    tmp_path: Path, autojump_clock: object
) -> None:
    store = MemoryStore()
    await format_volume(store, CREDENTIAL, SMALL, profile="low-memory")
    async with open_volume(
        "memory://x", CREDENTIAL, _settings(tmp_path, "a"), store=store, host="anna"
    ) as a:
        async with open_volume(
            "memory://x", CREDENTIAL, _settings(tmp_path, "b"), store=store, host="berta"
        ) as b:
            await _makes(a, b"made")
            await a.drain()
            await trio.sleep(100)
            for volume in (a, b):
                rows = {row["host"]: row for row in volume.status()["mounts"]}
                assert rows.keys() == {"anna", "berta"}
                assert all(row["alive"] for row in rows.values())
                assert {row["sequence"] for row in rows.values()} == {a.replica.sequence}
        await trio.sleep(100)
        assert [row["host"] for row in a.status()["mounts"]] == ["anna"]
        # One that vanished without a word is shown, and shown as dead, after a while.
        name = heartbeat.name_of(99)
        beat = heartbeat.Heartbeat(99, "gone", 1, 1, 1, False)
        await store.put(name, heartbeat.seal(a.keyring, name, beat))
        await trio.sleep(heartbeat.DEAD + 100)
        rows = {row["host"]: row for row in a.status()["mounts"]}
        assert not rows["gone"]["alive"]


async def test_a_heartbeat_that_does_not_open_freezes_nothing(
    tmp_path: Path, autojump_clock: object
) -> None:
    store = MemoryStore()
    await format_volume(store, CREDENTIAL, SMALL, profile="low-memory")
    name = heartbeat.name_of(5)
    forged = heartbeat.seal(KEYS, name, heartbeat.Heartbeat(5, "evil", 10**9, 1, 1, False))
    await store.put(name, forged)
    async with open_volume("memory://x", CREDENTIAL, _settings(tmp_path, "a"), store=store) as a:
        await trio.sleep(50)
        assert [row["this"] for row in a.status()["mounts"]] == [True]
        assert a.writer.frozen is None
