"""After a rotation the old key writes nothing any more, and everything is there all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from megafs import clock
from megafs.concurrency import in_place
from megafs.config import Settings
from megafs.crypto.volume_keys import Keyring, digest
from megafs.errors import BadPassphrase, Busy, Corrupt, Unavailable
from megafs.jobs import registry, share
from megafs.jobs.rotate import rotate
from megafs.journal import commit as commit_format
from megafs.stores.base import Buffer
from megafs.stores.memory import MemoryStore
from megafs.volume import header_store
from megafs.volume.header import Credential
from tests.fakes.machine import (
    KEY,
    URL,
    Machine,
    make_volume,
    read_file,
    snapshot,
    write_file,
)
from tests.jobs.test_share import share_in_store
from tests.tree.invariants import check

NEW = Credential(keyfile=bytes(range(100, 164)))


def silent(_: object) -> None:
    pass


@pytest.fixture
async def store() -> MemoryStore:
    made = MemoryStore("rotate")
    await make_volume(made, chunk_size=16384, pack_size=65536)
    return made


def taken(fsid: bytes, recovery: str) -> None:
    """Somebody has the recovery key: the test, from what the change returns."""


async def turn(
    store: MemoryStore, machine: Machine, old: Credential = KEY, new: Credential | None = NEW
) -> header_store.Changed:
    settings = Settings(state_dir=machine.state, cache_dir=machine.base / "cache", stage_min_free=0)
    with in_place():
        return await rotate(
            store, URL, old, settings, None if new is None else lambda: new, deliver=taken
        )


async def test_everything_is_there_and_new_data_has_the_new_key(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    machine = Machine(tmp_path / "a")
    async with machine.open(store) as volume:
        await write_file(volume.fs, "before", b"b" * 40_000)
        await volume.flush()

    changed = await turn(store, machine)

    assert changed.recovery
    async with machine.open(store, credential=NEW) as volume:
        assert volume.keyring.epochs == [0, 1]
        assert volume.keyring.epoch == 1
        assert await read_file(volume.fs, "before") == b"b" * 40_000
        await write_file(volume.fs, "after", b"a" * 40_000)
        await volume.flush()
        epochs = {row[0] for row in volume.replica.db.execute("SELECT epoch FROM packs")}
        assert epochs == {0, 1}
        last = store.objects[f"commits/{volume.replica.sequence:016d}"]
        assert commit_format.epoch_of(last) == 1
        everything = await snapshot(volume.fs)
    for credential in (NEW, Credential(recovery=changed.recovery)):
        where = Machine(tmp_path / credential.kind)
        async with where.open(store, credential=credential) as volume:
            assert await snapshot(volume.fs) == everything
    with pytest.raises(BadPassphrase):
        async with Machine(tmp_path / "old").open(store):
            pass


async def test_the_same_passphrase_may_go_on_and_other_slots_are_named(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    with in_place():
        unlocked = await header_store.unlock(store, KEY)
        added = await header_store.add_passphrase(store, unlocked, NEW, label="the office")

    changed = await turn(store, Machine(tmp_path / "a"), KEY, None)

    assert "the office" in changed.text
    assert added.slot_id is not None
    assert added.slot_id.hex() in changed.text
    with in_place():
        await header_store.unlock(store, KEY)
        with pytest.raises(BadPassphrase):
            await header_store.unlock(store, NEW)


async def test_a_running_mount_stops_says_why_and_keeps_what_it_has(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    running = Machine(tmp_path / "running", "running")
    async with running.open(store) as volume:
        await write_file(volume.fs, "seen", b"seen")
        await volume.flush()
        await turn(store, Machine(tmp_path / "other"))
        await write_file(volume.fs, "staged", b"s" * 30_000)
        with pytest.raises(Corrupt, match="rotated"):
            await volume.flush()
        assert "rotated" in str(volume.writer.frozen)
        assert await read_file(volume.fs, "seen") == b"seen"
    async with running.open(store, credential=NEW) as volume:
        await volume.flush()
        assert await read_file(volume.fs, "staged") == b"s" * 30_000
        check(volume.replica.tree)


async def test_nobody_writes_with_the_old_key_not_even_with_the_stores_help(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    with in_place():
        stolen: Keyring = (await header_store.unlock(store, KEY)).keyring
    machine = Machine(tmp_path / "a")
    await turn(store, machine)
    last = max(n for n in store.objects if n.startswith("commits/"))
    number = int(last[-16:])
    genuine = commit_format.Commit(
        prev=digest(store.objects[last]),
        mount=1,
        host="thief",
        commit_id=bytes(16),
        first_batch=1,
        last_batch=1,
        time_ns=clock.now_ns(),
        generation=1,
        operations=0,
        changeset=commit_format.pack_changeset(b""),
    )
    forged = commit_format.seal(stolen, number + 1, genuine)
    await store.put_new(commit_format.object_name(number + 1), forged)

    for where in (machine, Machine(tmp_path / "new")):
        with pytest.raises(Corrupt, match="earlier epoch"):
            async with where.open(store, credential=NEW):
                pass


async def test_the_keyring_in_the_header_is_authenticated(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    await turn(store, Machine(tmp_path / "a"))
    (name,) = [n for n in store.objects if n.startswith("keys/")]
    data = store.objects[name]
    at = data.index(b'"keyring":"') + 20
    digit = b"0" if data[at : at + 1] != b"0" else b"1"
    store.objects[name] = data[:at] + digit + data[at + 1 :]
    with in_place(), pytest.raises(Corrupt, match="authentication code"):
        await header_store.unlock(store, NEW)


async def test_two_rotations_keep_all_epochs_readable(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    machine = Machine(tmp_path / "a")
    async with machine.open(store) as volume:
        await write_file(volume.fs, "zero", b"0" * 30_000)
        await volume.flush()
    await turn(store, machine, KEY, NEW)
    async with machine.open(store, credential=NEW) as volume:
        await write_file(volume.fs, "one", b"1" * 30_000)
        await volume.flush()
    await turn(store, machine, NEW, KEY)
    async with Machine(tmp_path / "b").open(store) as volume:
        assert volume.keyring.epochs == [0, 1, 2]
        assert await read_file(volume.fs, "zero") == b"0" * 30_000
        assert await read_file(volume.fs, "one") == b"1" * 30_000


async def test_a_volume_that_is_open_here_is_not_rotated(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    machine = Machine(tmp_path / "a")
    async with machine.open(store):
        with pytest.raises(Busy):
            await turn(store, machine)
    with in_place():
        assert (await header_store.unlock(store, KEY)).header.epoch == 0


class GoesAway(MemoryStore):
    """A store that takes a new key header and then nothing more, nor gives anything."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.away = False

    async def get(self, name: str, start: int, length: int) -> bytes:
        if self.away:
            raise Unavailable("gone away")
        return await super().get(name, start, length)

    async def put_new(self, name: str, data: Buffer) -> None:
        if self.away:
            raise Unavailable("gone away")
        await super().put_new(name, data)

    async def delete(self, name: str) -> None:
        await super().delete(name)
        if name.startswith("keys/"):
            self.away = True  # the old generation has just gone


async def test_the_recovery_key_is_told_before_anything_else_can_fail(
    tmp_path: Path, autojump_clock: Any
) -> None:
    store = GoesAway("rotate")
    await make_volume(store, chunk_size=16384, pack_size=65536)
    told: list[header_store.Changed] = []
    machine = Machine(tmp_path / "a")
    settings = Settings(state_dir=machine.state, cache_dir=machine.base / "cache", stage_min_free=0)
    with in_place(), pytest.raises(Unavailable):
        await rotate(store, URL, KEY, settings, lambda: NEW, deliver=taken, on_new_keys=told.append)
    assert told[0].recovery
    store.away = False
    async with machine.open(store, credential=Credential(recovery=told[0].recovery)) as volume:
        assert volume.keyring.epoch == 1
        await write_file(volume.fs, "after", b"a")
        await volume.flush()
        last = store.objects[f"commits/{volume.replica.sequence:016d}"]
        assert commit_format.epoch_of(last) == 1


@pytest.fixture
def month_later() -> Iterator[Any]:
    ahead = [0]
    start = clock.now_ns()
    with clock.replaced(now_ns=lambda: start + ahead[0]):
        yield lambda days: ahead.__setitem__(0, ahead[0] + int(days * 86400e9))


async def test_a_link_outlives_rotation_and_reencryption(
    month_later: Any, tmp_path: Path, autojump_clock: Any
) -> None:
    """Its chunks stay where they are, with the keys that the link has."""
    store = MemoryStore("links")
    await make_volume(store, chunk_size=16384, pack_size=65536, compression="none")
    machine = Machine(tmp_path / "a")
    async with machine.open(store) as volume:
        await write_file(volume.fs, "f", bytes(range(250)) * 240)
        await write_file(volume.fs, "other", b"x" * 60_000)
        await volume.flush()
        record = await share_in_store(volume, "/f")
        made = await share._manifest_of(volume, record)
    await turn(store, machine)
    async with machine.open(store, credential=NEW) as volume:
        done = await registry.run(volume, "reencrypt", {}, silent)
        assert done["exit_code"] == 0 and "links" in done["notes"][-1]
        for _ in range(2):
            month_later(32)
            await registry.run(volume, "gc", {}, silent)
        (kept,) = (await registry.run(volume, "share-list", {}, silent))["links"]
        assert kept["id"] == record.id
        assert (await registry.run(volume, "fsck", {}, silent))["exit_code"] == 0
    old = {item.url for item in made.objects}
    assert old and old <= set(store.objects)


async def test_reencrypting_goes_on_after_an_interruption_and_gc_takes_the_old(
    month_later: Any, tmp_path: Path, autojump_clock: Any
) -> None:
    store = MemoryStore("reencrypt")
    await make_volume(store, chunk_size=16384, pack_size=65536, compression="none")
    machine = Machine(tmp_path / "a")
    async with machine.open(store) as volume:
        for n in range(6):
            await write_file(volume.fs, f"f{n}", bytes([n]) * 60_000)
            await volume.flush()
        everything = await snapshot(volume.fs)
    old = {n for n in store.objects if n.startswith("packs/")}
    await turn(store, machine)
    async with machine.open(store, credential=NEW) as volume:
        first = await registry.run(volume, "reencrypt", {"limit": 1}, silent)
        assert first["exit_code"] == 3
        assert first["left"] == 5
    async with machine.open(store, credential=NEW) as volume:
        rest = await registry.run(volume, "reencrypt", {}, silent)
        assert (rest["exit_code"], rest["packs"], rest["left"]) == (0, 5, 0)
        assert await snapshot(volume.fs) == everything
        month_later(1)
        await registry.run(volume, "gc", {}, silent)
        month_later(32)
        result = await registry.run(volume, "gc", {}, silent)
        assert result["exit_code"] == 0
        assert old.isdisjoint(store.objects)
        volume.chunks.clear()
        assert await snapshot(volume.fs) == everything
        assert (await registry.run(volume, "fsck", {}, silent))["exit_code"] == 0
        assert (await registry.run(volume, "scrub", {}, silent))["exit_code"] == 0
    async with Machine(tmp_path / "b").open(store, credential=NEW) as volume:
        assert await snapshot(volume.fs) == everything
    await trio.lowlevel.checkpoint()
