"""A byte that nothing vouches for says "a later format": it is damage like any other (row 3)."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from megafs.errors import MegafsError, TooNew
from megafs.jobs import registry
from megafs.journal import checkpoint, heartbeat
from megafs.journal.commit import object_name
from megafs.volume.upkeep import write_checkpoint
from tests.fakes.machine import (
    Machine,
    make_volume,
    read_file,
    snapshot,
    store_of,
    write_file,
)
from tests.journal.test_heartbeat import CheckThenAct
from tests.threats.hostile import Site

PLANTED = checkpoint.manifest_name(10**16 - 1)


def later(data: bytes) -> bytes:
    """The object with the format byte of a megafs to come."""
    return bytes([data[0] + 6]) + data[1:]


@pytest.mark.parametrize("what", ["newest", "planted", "planted noise", "parts"])
async def test_a_new_machine_takes_the_checkpoint_before(
    autojump_clock: MockClock,
    site: Site,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    newest = f"checkpoints/{site.checkpoints[1]:016d}/"
    manifest = newest + "manifest"
    spoilt = {
        "newest": {manifest: later(site.objects[manifest])},
        "planted": {PLANTED: later(site.objects[manifest])},
        "planted noise": {PLANTED: b"\xff" * 500},
        "parts": {
            n: later(d) for n, d in site.objects.items() if n.startswith(newest) and n != manifest
        },
    }[what]

    async with Machine(tmp_path / "new").open(store_of(site.objects | spoilt)) as volume:
        assert await snapshot(volume.fs) == site.tree
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert any("trying the one before" in r.getMessage() for r in warnings)
    assert not any("install" in r.getMessage() for r in caplog.records)


async def test_a_machine_that_was_away_finds_its_place_all_the_same(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    """Its commit was folded; the newest checkpoint has a flipped byte."""
    objects = dict(site.objects)
    machine = Machine(tmp_path / "away", "away")
    async with machine.open(store_of(site.at(site.checkpoints[0]))):
        pass
    for n in range(1, site.checkpoints[0] + 1):
        objects.pop(object_name(n))

    async with machine.open(store_of(objects | {PLANTED: b"\x07" * 100})) as volume:
        assert await snapshot(volume.fs) == site.tree


async def test_no_message_asks_for_a_newer_megafs_on_the_word_of_one_byte(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    """It says both: damaged, or written by a newer one."""
    commit = object_name(site.head)
    (header,) = [n for n in site.objects if n.startswith("keys/")]
    for number, (name, data) in enumerate(
        (
            (commit, later(site.objects[commit])),
            (header, site.objects[header].replace(b'"format":1', b'"format":7')),
        )
    ):
        with pytest.raises(TooNew, match="damaged") as failure:
            async with Machine(tmp_path / f"{number}").open(store_of(site.objects | {name: data})):
                pass
        assert name in str(failure.value)


async def test_a_planted_name_does_not_end_the_writing_of_checkpoints(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    store = store_of(site.objects | {PLANTED: b"\x01" * 100})
    async with Machine(tmp_path / "new").open(store) as volume:
        await write_file(volume.fs, "one more", b"one", sync=True)
        assert await write_checkpoint(volume) == volume.replica.sequence
        assert checkpoint.manifest_name(volume.replica.sequence) in store.objects


@pytest.mark.parametrize("job", ["fsck", "gc", "scrub"])
async def test_the_jobs_name_such_a_checkpoint_and_go_on(
    autojump_clock: MockClock, site: Site, tmp_path: Path, job: str
) -> None:
    manifest = checkpoint.manifest_name(site.checkpoints[1])
    store = store_of(site.objects | {manifest: later(site.objects[manifest])})
    async with Machine(tmp_path / "new").open(store) as volume:
        result = await registry.run(volume, job, {}, lambda _: None)
        assert job == "gc" or str(site.checkpoints[1]) in str(result)
        view = await volume.history.have(site.checkpoints[1] + 1)
        assert view is not None


@pytest.mark.parametrize("name", [heartbeat.name_of(7), heartbeat.LEASE])
async def test_a_heartbeat_or_lease_of_a_later_format_ends_no_mount(
    autojump_clock: MockClock, tmp_path: Path, name: str
) -> None:
    store = CheckThenAct("beats")
    await make_volume(store)
    await store.put(name, b"\x07" * 300)
    async with Machine(tmp_path / "a").open(store) as volume:
        await trio.sleep(120)
        assert volume.lease is not None
        if name != heartbeat.LEASE:  # else somebody seems to have the right to write
            await write_file(volume.fs, "f", b"f")
            assert await read_file(volume.fs, "f") == b"f"
        with pytest.raises(MegafsError):
            heartbeat.open_heartbeat(volume.keyring, name, b"\x07" * 300)
