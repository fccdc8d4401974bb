"""salvage gets out everything that still verifies, and says exactly what it could not get."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from megafs.chunks.codec import pack_name
from megafs.concurrency import in_place
from megafs.config import Settings
from megafs.errors import AlreadyThere, BadPassphrase, Corrupt
from megafs.jobs.messages import as_message
from megafs.jobs.salvage import SalvageReport, salvage
from megafs.jobs.salvage_view import salvaged
from megafs.stores.memory import MemoryStore
from megafs.tree.inode import SetAttr
from megafs.volume.header import Credential
from megafs.volume.volume import Volume
from tests.fakes.machine import (
    KEY,
    ROOT_USER,
    URL,
    Machine,
    make_volume,
    mkdir,
    resolve,
    symlink,
    truncate,
    unlink,
    write_file,
)

BIG = b"".join(bytes([n]) * 16384 for n in range(12))


@pytest.fixture
async def store() -> MemoryStore:
    made = MemoryStore("salvage")
    await make_volume(made, chunk_size=16384, pack_size=65536, compression="none")
    return made


async def filled(volume: Volume) -> None:
    fs = volume.fs
    await mkdir(fs, "d")
    await mkdir(fs, "d/e")
    await write_file(fs, "d/big", BIG)
    await write_file(fs, "d/e/small", b"small")
    await symlink(fs, "d/link", "e/small")
    await fs.link(resolve(fs, "d/e/small"), resolve(fs, "d"), b"again", ROOT_USER)
    await write_file(fs, "sparse", b"x")
    await truncate(fs, "sparse", 1 << 30)
    ino = resolve(fs, "d/e/small")
    await fs.setxattr(ino, b"user.note", b"kept", 0, ROOT_USER)
    await fs.setattr(ino, SetAttr(mode=0o640, mtime_ns=12345 * 10**9), ROOT_USER)
    await volume.flush()


async def run(store: MemoryStore, tmp_path: Path, **more: Any) -> tuple[dict[str, Any], Path]:
    to = tmp_path / "rescue" / "out"
    settings = Settings(state_dir=tmp_path / "other", cache_dir=tmp_path / "cache")
    with in_place():
        result = as_message(await salvage(store, URL, KEY, settings, to, **more))
    assert json.loads((tmp_path / "rescue" / "salvage-report.json").read_text())["text"]
    return result, to


def flip(store: MemoryStore, name: str, at: int = 40) -> None:
    data = bytearray(store.objects[name])
    data[at] ^= 1
    store.objects[name] = bytes(data)


def objects(store: MemoryStore, prefix: str) -> list[str]:
    return sorted(name for name in store.objects if name.startswith(prefix))


async def test_a_sound_volume_comes_out_whole(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    async with Machine(tmp_path / "a").open(store) as volume:
        await filled(volume)
        await volume.checkpointer.write()
        await write_file(volume.fs, "later", b"later")
        await volume.flush()
    before = dict(store.objects)

    result, to = await run(store, tmp_path)

    assert result["exit_code"] == 0, result
    assert result["checkpoint"] > 0
    assert (to / "d/big").read_bytes() == BIG
    assert (to / "later").read_bytes() == b"later"
    assert os.readlink(to / "d/link") == "e/small"
    small = (to / "d/e/small").stat()
    assert (small.st_mode & 0o7777, small.st_mtime_ns) == (0o640, 12345 * 10**9)
    assert (to / "d/again").stat().st_ino == small.st_ino
    assert (to / "sparse").stat().st_size == 1 << 30
    assert (to / "sparse").stat().st_blocks < 100
    if "user.note" in os.listxattr(to / "d/e/small"):  # not every tmpfs has them
        assert os.getxattr(to / "d/e/small", "user.note") == b"kept"
    assert store.objects == before


async def test_what_is_damaged_is_a_hole_and_named(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    async with Machine(tmp_path / "a").open(store) as volume:
        await filled(volume)
        extent = volume.replica.tree.all_extents(resolve(volume.fs, "d/big"))[2]
        flip(store, pack_name(volume.replica.tree.pack(extent.pack).name), extent.offset + 9)

    result, to = await run(store, tmp_path)

    assert result["exit_code"] == 4
    assert [(d["path"], d["start"], d["end"]) for d in result["damaged"]] == [
        ("/d/big", 32768, 49152)
    ]
    expected = BIG[:32768] + bytes(16384) + BIG[49152:]
    assert (to / "d/big").read_bytes() == expected
    assert (to / "d/e/small").read_bytes() == b"small"


async def test_a_damaged_commit_ends_the_journal_there(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    async with Machine(tmp_path / "a").open(store) as volume:
        await filled(volume)
        at = volume.replica.sequence
        await write_file(volume.fs, "lost", b"lost")
        await volume.flush()
        await write_file(volume.fs, "lost too", b"lost")
        await volume.flush()
    flip(store, f"commits/{at + 1:016d}")

    result, to = await run(store, tmp_path)

    assert result["exit_code"] == 4
    assert result["sequence"] == at
    assert result["stopped"]
    assert sorted(p.name for p in to.iterdir()) == ["d", "sparse"]


@pytest.mark.parametrize("how", ["manifest", "part"])
async def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    how: str, store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    async with Machine(tmp_path / "a").open(store) as volume:
        await filled(volume)
        older = await volume.checkpointer.write()
        await write_file(volume.fs, "later", b"later")
        await volume.flush()
        newer = await volume.checkpointer.write()
    names = objects(store, f"checkpoints/{newer:016d}/")
    flip(store, next(n for n in names if n.endswith("manifest") == (how == "manifest")))

    result, to = await run(store, tmp_path)

    assert result["checkpoint"] == older
    assert result["exit_code"] == 4  # all is there, but the store is not sound
    assert not result["damaged"]
    assert (to / "later").read_bytes() == b"later"
    assert (to / "d/big").read_bytes() == BIG


async def test_without_journal_what_is_left_of_a_checkpoint_is_used(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    async with Machine(tmp_path / "a").open(store) as volume:
        await filled(volume)
        number = await volume.checkpointer.write()
        dirents = volume.replica.parts.of("dirents")[0].object
    for name in objects(store, "commits/"):
        await store.delete(name)
    flip(store, dirents)

    result, to = await run(store, tmp_path)

    assert result["partial"]
    assert result["sequence"] == number
    found = {p.read_bytes()[:5] for p in (to / "lost+found").iterdir() if p.is_file()}
    assert b"small" in found
    assert BIG[:5] in found
    assert result["lost"]


async def test_an_earlier_moment_can_be_asked_for(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    async with Machine(tmp_path / "a").open(store) as volume:
        await filled(volume)
        at = volume.replica.sequence
        await unlink(volume.fs, "d/big")
        await volume.flush()

    result, to = await run(store, tmp_path, at=at)

    assert result["exit_code"] == 0
    assert (to / "d/big").read_bytes() == BIG


async def test_a_damaged_key_header_is_replaced_by_the_copy_kept_here(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    machine = Machine(tmp_path / "a")
    async with machine.open(store) as volume:
        await filled(volume)
    flip(store, objects(store, "keys/")[0])
    settings = Settings(state_dir=machine.state, cache_dir=tmp_path / "cache")

    with in_place():
        with pytest.raises(Corrupt):
            await run(store, tmp_path)
        result = as_message(await salvage(store, URL, KEY, settings, tmp_path / "out"))

    assert (tmp_path / "out/d/big").read_bytes() == BIG
    assert str(machine.volume_dir / "header") == result["header"]


async def test_a_rescue_mount_answers_reads_of_parts_of_chunks(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    """Small reads of chunks that have left the memory cache open a part of the chunk."""
    async with Machine(tmp_path / "a").open(store) as volume:
        await filled(volume)
    settings = Settings(
        state_dir=tmp_path / "other", cache_dir=tmp_path / "cache", memory_cache=16384
    )
    report = SalvageReport()
    with in_place():
        async with salvaged(store, URL, KEY, settings, report) as fs:
            ino = resolve(fs, "d/big")
            handle, _ = await fs.open(ino, os.O_RDONLY, ROOT_USER)
            chance = random.Random(9)
            for _ in range(300):
                offset = chance.randrange(len(BIG))
                assert bytes(await fs.read(handle, offset, 4096)) == BIG[offset : offset + 4096]
            await fs.flush(handle)
            await fs.fsync(handle, False)
            await fs.release(handle)
    assert report.problems == []


async def test_a_wrong_key_and_a_full_directory_are_refused(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    settings = Settings(state_dir=tmp_path / "s", cache_dir=tmp_path / "c")
    with in_place():
        with pytest.raises(BadPassphrase):
            await salvage(
                store, URL, Credential(keyfile=bytes(range(64, 128))), settings, tmp_path / "o"
            )
        (tmp_path / "full").mkdir()
        (tmp_path / "full/file").write_text("mine")
        with pytest.raises(AlreadyThere):
            await salvage(store, URL, KEY, settings, tmp_path / "full")
