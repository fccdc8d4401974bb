"""A holder of the lease that is paused at any point of a commit, on a store without conditions."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio

from megafs.errors import Fault, Refused
from megafs.journal import heartbeat, lease
from megafs.volume.create import format_volume
from megafs.volume.volume import Volume
from tests.fakes.machine import KEY, ROOT_USER, Machine, snapshot
from tests.fakes.unconditional import Paused, Unconditional
from tests.fs.opened import SMALL


async def _write(volume: Volume, name: bytes, data: bytes, *, fsync: bool = False) -> None:
    fs = volume.fs
    fh, _ = await fs.create(1, name, 0o644, 2, ROOT_USER)
    try:
        await fs.write(fh, 0, data)
        await fs.flush(fh)
        if fsync:
            await fs.fsync(fh, False)
    finally:
        with trio.CancelScope(shield=True):
            await fs.release(fh)


async def _weak() -> Unconditional:
    store = Unconditional("unconditional")
    made = await format_volume(store, KEY, SMALL, profile="low-memory")
    assert not made.create_if_absent
    return store


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("point", range(1, 9))
async def test_a_paused_holder_takes_nothing_from_the_next(
    tmp_path: Path, autojump_clock: object, point: int, after: bool
) -> None:
    store = await _weak()
    way = Paused(store)
    one, two, new = (Machine(tmp_path / name, name) for name in ("one", "two", "new"))
    acknowledged: dict[str, bytes] = {}

    async def last_write(volume: Volume) -> None:
        try:
            await _write(volume, b"one 1", b"written by one, then paused", fsync=True)
            acknowledged["one 1"] = b"written by one, then paused"
        except (Fault, Refused):
            pass

    async with one.open(way, deadline=3600) as first:
        await _write(first, b"one 0", b"committed", fsync=True)
        acknowledged["one 0"] = b"committed"
        await trio.sleep(lease.LEASE_INTERVAL * 1.5)
        way.left, way.after = point, after
        async with trio.open_nursery() as nursery:
            nursery.start_soon(last_write, first)
            await way.stands.wait()
            async with two.open(store, deadline=3600) as second:
                assert second.lease is not None
                with trio.fail_after(lease.LEASE_DEAD * 4):
                    while not second.lease.held:
                        await trio.sleep(5)
                await trio.sleep(2)
                for n in (0, 1):
                    await _write(second, b"two %d" % n, b"the next holder", fsync=True)
                    acknowledged[f"two {n}"] = b"the next holder"
                way.resume()
                await trio.sleep(lease.LEASE_INTERVAL * 4)
                try:  # the first may have the lease again: it was about to write it
                    await _write(second, b"two 2", b"the next holder", fsync=True)
                    acknowledged["two 2"] = b"the next holder"
                except Refused as no:
                    assert no.errno == errno.EROFS
            with trio.fail_after(lease.LEASE_DEAD * 6):
                while first.replica.pending or not (first.lease and first.lease.held):
                    await trio.sleep(5)
    async with new.open(store, read_only=True) as fresh:
        found = {name: node[1] for name, node in (await snapshot(fresh.fs)).items()}
    assert acknowledged.items() <= found.items()
    assert found["one 1"] == b"written by one, then paused"


async def test_an_outage_stages_what_is_written(tmp_path: Path, autojump_clock: object) -> None:
    store = await _weak()
    way = Paused(store)
    machine = Machine(tmp_path / "a", "a", {"fsync": "local"})
    async with machine.open(way) as volume:
        way.left = 1
        await trio.sleep(lease.LEASE_DEAD * 4)
        await _write(volume, b"during", b"an outage")
        assert not volume.status()["read_only"]
        way.resume()
        with trio.fail_after(lease.LEASE_DEAD):
            await volume.drain()
    async with Machine(tmp_path / "b", "b").open(store, read_only=True) as fresh:
        assert await snapshot(fresh.fs) == {"during": ("file", b"an outage")}


async def test_the_next_process_takes_the_lease_of_a_killed_one_at_once(
    tmp_path: Path, autojump_clock: object
) -> None:
    store = await _weak()
    machine = Machine(tmp_path / "a", "a")
    way = Paused(store)
    async with machine.open(way) as volume:
        assert volume.lease is not None and volume.lease.held
        kept = store.objects[heartbeat.LEASE]
    store._place(heartbeat.LEASE, kept)  # killed: it could not give it back
    async with machine.open(store) as volume:
        assert volume.lease is not None and volume.lease.held
