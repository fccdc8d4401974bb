"""An ex-member who kept the old master key, together with the store (docs/threats.md, row 45).

The volume was rotated to lock that person out.  Nothing that the old key sealed may be taken for
what comes after the rotation, on a machine that knows the volume or on a new one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3
from msgspec.structs import replace
from trio.testing import MockClock

from megafs import clock, compression
from megafs.concurrency import in_place
from megafs.config import Settings
from megafs.crypto.volume_keys import Keyring, digest
from megafs.errors import Corrupt, Rollback, Unavailable
from megafs.jobs import registry
from megafs.jobs.rotate import rotate
from megafs.journal import checkpoint, head
from megafs.journal import commit as commit_format
from megafs.journal.commit import seal_padded
from megafs.stores.memory import MemoryStore
from megafs.volume import header as headers
from megafs.volume import header_store
from megafs.volume.header import Credential, Header
from megafs.volume.unlock import remember_keys, unlock
from megafs.volume.upkeep import write_checkpoint
from tests.fakes.machine import KEY, URL, Machine, make_volume, snapshot, store_of, write_file
from tests.threats.hostile import refused

NEW = Credential(keyfile=bytes(range(100, 164)))


@dataclass
class Rotated:
    """A volume whose key was rotated, what the ex-member has, and a machine that knows it.

    before: the store just before the rotation; objects: as it is now.  stolen: the old keys.
    old_header: the last one of the old epoch.  turn: the first commit of the new epoch.
    """

    before: dict[str, bytes]
    objects: dict[str, bytes]
    stolen: Keyring
    old_header: Header
    turn: int
    last: int
    machine: Machine
    tree: Any

    def known(self, base: Path, *, replica: bool = True) -> Machine:
        machine = self.machine.copy(base)
        if not replica:
            for path in machine.volume_dir.glob("replica.db*"):
                path.unlink()
        return machine

    def planted_header(self, generation: int) -> tuple[str, bytes]:
        """A header of the old epoch with an honest member's old slots, under a later number."""
        assert self.old_header.epoch == 0
        made = replace(self.old_header, generation=generation)
        made = replace(made, mac=headers._mac(made, self.stolen))
        return made.name, made.encode()

    def commit(self, sequence: int, prev: bytes, keyring: Keyring | None = None) -> bytes:
        made = commit_format.Commit(
            prev=prev,
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
        return commit_format.seal(keyring or self.stolen, sequence, made)

    def planted_manifest(self, sequence: int, epoch: int = 0, at: int = 0) -> tuple[str, bytes]:
        """A checkpoint of the old key for *sequence*, with the tree of an old one.

        at: the commit whose hash it names, if that is not `sequence`.
        """
        names = sorted(n for n in self.before if n.endswith("/manifest"))
        old_number = int(names[-1].split("/")[1])
        body = commit_format.open_padded(
            self.stolen, "ckpt", 1, self.before[names[-1]], "it", "manifest", old_number
        )
        old = msgspec.msgpack.decode(
            compression.decompress(body, 1 << 26), type=checkpoint.Manifest
        )
        hashes = [
            digest(self.objects[commit_format.object_name(n)])
            for n in range(1, (at or sequence) + 1)
        ]
        made = replace(
            old, sequence=sequence, head=hashes[-1], history=b"".join(hashes), epoch=epoch
        )
        packed = compression.compress(msgspec.msgpack.encode(made))
        name = checkpoint.manifest_name(sequence)
        return name, seal_padded(self.stolen, "ckpt", 1, packed, "manifest", sequence)


async def make_rotated(base: Path) -> Rotated:
    store = MemoryStore("rotated")
    await make_volume(store, chunk_size=16384, pack_size=65536)
    machine = Machine(base / "known", "known")
    async with machine.open(store) as volume:
        await write_file(volume.fs, "old", b"old", sync=True)
        await write_checkpoint(volume)
        await write_file(volume.fs, "old2", b"old2", sync=True)
    with in_place():
        unlocked = await header_store.unlock(store, KEY)
    before = {n: d for n, d in store.objects.items() if not n.startswith("mounts/")}
    await turn(store, machine)
    async with machine.open(store, credential=NEW) as volume:
        first = volume.replica.sequence
        await write_file(volume.fs, "new", b"new", sync=True)
        await write_file(volume.fs, "newer", b"newer", sync=True)
        tree = await snapshot(volume.fs)
        last = volume.replica.sequence
    objects = {n: d for n, d in store.objects.items() if not n.startswith("mounts/")}
    return Rotated(before, objects, unlocked.keyring, unlocked.header, first, last, machine, tree)


def taken(fsid: bytes, recovery: str) -> None:
    """Nobody needs the recovery key here."""


async def turn(store: MemoryStore, machine: Machine) -> header_store.Changed:
    settings = Settings(state_dir=machine.state, cache_dir=machine.base / "cache", stage_min_free=0)
    with in_place():
        return await rotate(store, URL, KEY, settings, lambda: NEW, deliver=taken)


@pytest.fixture
async def rotated(autojump_clock: MockClock, tmp_path: Path) -> Rotated:
    return await make_rotated(tmp_path / "site")


# ---- the header --------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["all", "no replica", "no head"])
async def test_a_planted_header_of_an_earlier_epoch_is_refused(
    rotated: Rotated, tmp_path: Path, state: str
) -> None:
    """The honest member's key file still opens the slot of the old header."""
    machine = rotated.known(tmp_path / "m", replica=state != "no replica")
    if state == "no head":
        (machine.volume_dir / "head").unlink()
    name, data = rotated.planted_header(99)

    failure = await refused(machine, rotated.objects | {name: data}, Rollback, "epoch")

    assert "99" in str(failure)


async def test_a_successor_of_an_earlier_epoch_is_refused_by_who_changes_keys(
    rotated: Rotated,
) -> None:
    store = store_of(rotated.objects)
    with in_place():
        unlocked = await header_store.unlock(store, NEW)
        name, data = rotated.planted_header(unlocked.header.generation + 1)
        await store.put_new(name, data)
        with pytest.raises(Rollback, match="epoch"):
            await header_store.add_passphrase(store, unlocked, KEY)


async def test_another_header_under_the_same_generation_is_refused(
    rotated: Rotated, tmp_path: Path
) -> None:
    """Rule 3 of the header section; sealed by somebody who has the key, and so genuine in form."""
    machine = rotated.known(tmp_path / "m")
    with in_place():
        unlocked = await header_store.unlock(store_of(rotated.objects), NEW)
    other = replace(unlocked.header, created_ns=unlocked.header.created_ns + 1)
    other = replace(other, mac=headers._mac(other, unlocked.keyring))

    objects = rotated.objects | {other.name: other.encode()}
    with pytest.raises(Rollback, match="not the one"):
        async with machine.open(store_of(objects), credential=NEW):
            pass
    async with machine.open(store_of(objects), credential=NEW, accept_state=True):
        pass


async def test_after_a_change_of_keys_the_copy_that_is_kept_here_is_the_new_one(
    rotated: Rotated, tmp_path: Path
) -> None:
    """Else a mount without the store would take the older copy for a rollback."""
    machine = rotated.known(tmp_path / "m")
    store = store_of(rotated.objects)
    settings = Settings(state_dir=machine.state, cache_dir=machine.base / "cache", stage_min_free=0)
    with in_place():
        found = await unlock(store, URL, NEW, settings)
        changed = await header_store.add_passphrase(store, found.unlocked, KEY)
        await remember_keys(found, changed.unlocked)

    class Away(MemoryStore):
        async def get(self, name: str, start: int, length: int) -> bytes:
            raise Unavailable("away")

        async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Any:
            raise Unavailable("away")

    async with machine.open(Away("away"), credential=NEW) as volume:
        assert volume.offline
        assert await snapshot(volume.fs) == rotated.tree


# ---- checkpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("where", ["newest", "past the end", "first of the epoch"])
async def test_a_planted_checkpoint_of_the_old_key_is_not_taken(
    rotated: Rotated, tmp_path: Path, where: str, epoch: int
) -> None:
    sequence = {"newest": rotated.last, "past the end": 5000, "first of the epoch": rotated.turn}
    n = sequence[where]
    name, data = rotated.planted_manifest(n, epoch, at=min(n, rotated.last))
    objects = rotated.objects | {name: data}

    async with Machine(tmp_path / "new").open(store_of(objects), credential=NEW) as volume:
        assert await snapshot(volume.fs) == rotated.tree
        report = await registry.run(volume, "fsck", {}, lambda _: None)
        assert report["exit_code"] != 0 or where == "past the end"


async def test_a_planted_checkpoint_from_before_the_rotation_is_not_built_upon(
    rotated: Rotated, tmp_path: Path
) -> None:
    """Its commit is of the old epoch, so its hash is right; its tree is what the thief wishes."""
    name, data = rotated.planted_manifest(rotated.turn - 1)
    ours = {n for n in rotated.objects if n.startswith("checkpoints/") and n not in rotated.before}
    objects = {n: d for n, d in rotated.objects.items() if n not in ours} | {name: data}

    async with Machine(tmp_path / "a").open(store_of(objects), credential=NEW) as volume:
        assert await snapshot(volume.fs) == rotated.tree  # the whole journal was read instead
    for n in range(1, 3):
        del objects[commit_format.object_name(n)]
    with pytest.raises(Corrupt, match="rotat"):
        async with Machine(tmp_path / "b").open(store_of(objects), credential=NEW):
            pass
    known = rotated.known(tmp_path / "k", replica=False)
    with pytest.raises(Corrupt, match="rotat"):
        async with known.open(store_of(objects), credential=NEW):
            pass


@pytest.mark.parametrize("knows", [True, False])
async def test_an_earlier_tree_is_not_built_on_a_planted_checkpoint_either(
    rotated: Rotated, tmp_path: Path, knows: bool
) -> None:
    """Its hash is right, and its tree lacks a file: the journal is read instead."""
    moment = rotated.turn - 1
    name, data = rotated.planted_manifest(moment)
    objects = rotated.objects | {name: data}
    machine = rotated.known(tmp_path / "a") if knows else Machine(tmp_path / "a")
    async with (
        machine.open(store_of(objects), credential=NEW) as volume,
        volume.history.view(moment) as tree,
    ):
        names = {entry.name for entry in tree.names(1)}
    assert names == {b"old", b"old2"}


# ---- the journal -------------------------------------------------------------------------------


def cut_and_continued(rotated: Rotated) -> dict[str, bytes]:
    """The journal as it was before the rotation, continued with the old key; the new header."""
    headers_now = {n: d for n, d in rotated.objects.items() if n.startswith("keys/")}
    old = {n: d for n, d in rotated.before.items() if not n.startswith("keys/")}
    objects = old | headers_now
    prev = digest(objects[commit_format.object_name(rotated.turn - 1)])
    for n in range(rotated.turn, rotated.turn + 3):
        data = rotated.commit(n, prev)
        objects[commit_format.object_name(n)] = data
        prev = digest(data)
    return objects


@pytest.mark.parametrize("more", [True, False])
async def test_a_journal_cut_before_the_rotation_is_refused_by_a_new_machine(
    rotated: Rotated, tmp_path: Path, more: bool
) -> None:
    objects = cut_and_continued(rotated)
    if not more:
        for n in range(rotated.turn, rotated.turn + 3):
            del objects[commit_format.object_name(n)]

    with pytest.raises(Rollback, match="epoch"):
        async with Machine(tmp_path / "new").open(store_of(objects), credential=NEW):
            pass


async def test_and_by_a_machine_that_last_saw_it_before_the_rotation(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    rotated = await make_rotated(tmp_path / "site")
    early = rotated.machine.copy(tmp_path / "early")
    for path in early.volume_dir.glob("replica.db*"):
        path.unlink()
    (early.volume_dir / "head").unlink()
    async with early.open(store_of(rotated.before)):
        pass  # it knows the volume as it was before

    objects = cut_and_continued(rotated)
    with pytest.raises(Rollback, match="epoch"):
        async with early.open(store_of(objects), credential=NEW):
            pass
    async with early.open(store_of(rotated.objects), credential=NEW) as volume:
        assert await snapshot(volume.fs) == rotated.tree


async def test_a_rotation_that_ended_after_the_header_goes_on_where_it_was_begun(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The machine that rotates may find no commit of the new epoch; another one may not."""

    class Killed(BaseException):
        pass

    def kill(_: object) -> None:
        raise Killed

    store = MemoryStore("rotated")
    await make_volume(store, chunk_size=16384, pack_size=65536)
    for name, opened_before in (("a", True), ("b", False)):
        machine = Machine(tmp_path / name, name)
        objects = dict(store.objects)
        mine = store_of(objects)
        if opened_before:
            async with machine.open(mine) as volume:
                await write_file(volume.fs, "file", b"file", sync=True)
        settings = Settings(
            state_dir=machine.state, cache_dir=machine.base / "cache", stage_min_free=0
        )
        with in_place(), pytest.raises(Killed):
            await rotate(mine, URL, KEY, settings, lambda: NEW, deliver=taken, on_new_keys=kill)
        with pytest.raises(Rollback, match="epoch"):
            async with Machine(tmp_path / f"new{name}").open(mine, credential=NEW):
                pass
        async with machine.open(mine, credential=NEW) as volume:
            await write_file(volume.fs, "after", b"after", sync=True)
        seen = head.read(machine.volume_dir)
        assert seen is not None
        assert (seen.epoch, seen.rotating) == (1, 0)
        async with Machine(tmp_path / f"later{name}").open(mine, credential=NEW):
            pass


# ---- what is remembered ------------------------------------------------------------------------


def test_a_head_file_of_an_earlier_megafs_opens(tmp_path: Path) -> None:
    """The very bytes that commit 22ba646 wrote."""
    fields = {
        "turn": 3,
        "fsid": "ab" * 16,
        "sequence": 7,
        "hash": "cd" * 32,
        "generation": 2,
        "slot": "ef" * 8,
    }
    text = json.dumps(fields).encode()
    place = (text + b" " + blake3(text).hexdigest(8).encode()).ljust(511) + b"\n"
    (tmp_path / "head").write_bytes(place + b" " * 512)

    seen = head.read(tmp_path)

    assert seen == head.RememberedHead("ab" * 16, 7, "cd" * 32, 2, "ef" * 8)
    assert seen.epoch is None
    head.write(tmp_path, replace(seen, sequence=8, epoch=1, header="12" * 32))
    again = head.read(tmp_path)
    assert again is not None
    assert (again.sequence, again.epoch, again.header) == (8, 1, "12" * 32)


async def test_a_machine_with_an_old_head_file_opens_a_rotated_volume_and_learns_the_epoch(
    rotated: Rotated, tmp_path: Path
) -> None:
    machine = rotated.known(tmp_path / "m")
    seen = head.read(machine.volume_dir)
    assert seen is not None
    fields = {
        "turn": 1,
        "fsid": seen.fsid,
        "sequence": seen.sequence,
        "hash": seen.hash,
        "generation": seen.generation,
        "slot": seen.slot,
    }
    text = json.dumps(fields).encode()
    place = (text + b" " + blake3(text).hexdigest(8).encode()).ljust(511) + b"\n"
    (machine.volume_dir / "head").write_bytes(place + b" " * 512)

    async with machine.open(store_of(rotated.objects), credential=NEW) as volume:
        assert await snapshot(volume.fs) == rotated.tree

    seen = head.read(machine.volume_dir)
    assert seen is not None
    assert seen.epoch == 1
    assert len(seen.header) == 64
