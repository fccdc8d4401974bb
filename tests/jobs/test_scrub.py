"""scrub reads everything, says which bytes of which file are damaged, and goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from megafs.chunks.codec import pack_name
from megafs.jobs import registry
from megafs.stores.memory import MemoryStore
from megafs.volume.volume import Volume
from tests.fakes.machine import Machine, make_volume, mkdir, resolve, write_file


def silent(_: object) -> None:
    pass


async def scrub(volume: Volume, **args: Any) -> dict[str, Any]:
    return await registry.run(volume, "scrub", args, silent)


@pytest.fixture
async def store() -> MemoryStore:
    made = MemoryStore("scrub")
    await make_volume(made, chunk_size=16384, pack_size=65536, compression="none")
    return made


async def filled(volume: Volume) -> None:
    await mkdir(volume.fs, "d")
    for name in ("a", "b", "c"):
        await write_file(volume.fs, f"d/{name}", name.encode() * 100_000)
        await volume.flush()
    await volume.checkpointer.write()


def place(volume: Volume, path: str, number: int) -> tuple[str, Any]:
    """The pack object of a file's extent, and the extent."""
    extent = volume.replica.tree.all_extents(resolve(volume.fs, path))[number]
    return pack_name(volume.replica.tree.pack(extent.pack).name), extent


def flip(store: MemoryStore, name: str, at: int) -> None:
    data = bytearray(store.objects[name])
    data[at] ^= 1
    store.objects[name] = bytes(data)


async def test_a_sound_volume_is_clean_and_all_of_it_is_read(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    async with Machine(tmp_path).open(store) as volume:
        await filled(volume)

        result = await scrub(volume)

        assert result["exit_code"] == 0, result
        assert result["complete"]
        assert result["damaged"] == []
        assert result["unnamed"] == []
        assert result["chunks"] == 3 * 7  # 100,000 bytes in chunks of 16 KiB


async def test_every_damaged_chunk_is_told_by_path_and_range(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    async with Machine(tmp_path).open(store) as volume:
        await filled(volume)
        name, extent = place(volume, "d/a", 1)
        flip(store, name, extent.offset + 100)
        name, extent = place(volume, "d/b", 6)
        flip(store, name, extent.offset)
        missing, _ = place(volume, "d/c", 0)
        await store.delete(missing)
        lost = sum(
            1
            for x in volume.replica.tree.all_extents(resolve(volume.fs, "d/c"))
            if pack_name(volume.replica.tree.pack(x.pack).name) == missing
        )

        result = await scrub(volume)

        assert result["exit_code"] == 4
        places = {(d["path"], d["start"], d["end"]) for d in result["damaged"]}
        assert ("/d/a", 16384, 32768) in places
        assert ("/d/b", 98304, 100_000) in places
        assert len([p for p in places if p[0] == "/d/c"]) == lost > 0
        assert len(places) == 2 + lost


async def test_damaged_commits_parts_and_headers_are_named(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    async with Machine(tmp_path).open(store) as volume:
        await filled(volume)
        part = next(n for n in store.objects if "checkpoints" in n and not n.endswith("manifest"))
        flip(store, part, 50)
        flip(store, "commits/0000000000000002", 50)
        flip(store, "keys/00000001", 50)

        result = await scrub(volume)

        named = {damage["object"] for damage in result["damaged"]}
        assert named == {part, "commits/0000000000000002", "keys/00000001"}


async def test_objects_that_nobody_names_are_listed(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    async with Machine(tmp_path).open(store) as volume:
        await filled(volume)
        await store.put_new("packs/ab/" + "ab" * 16, b"x" * 99)
        await store.put_new("holiday-photos", b"y")

        result = await scrub(volume)

        assert result["exit_code"] == 0
        assert {u["object"] for u in result["unnamed"]} == {
            "packs/ab/" + "ab" * 16,
            "holiday-photos",
        }


async def test_an_interrupted_scrub_goes_on_where_it_was_and_remembers_what_it_found(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    machine = Machine(tmp_path)
    async with machine.open(store) as volume:
        for n in range(30):
            await write_file(volume.fs, f"f{n:02}", bytes([n]) * 20_000)
            await volume.flush()
        first = volume.replica.tree.one("SELECT min(pack) FROM extents WHERE pack>0")
        name = pack_name(volume.replica.tree.pack(first).name)
        flip(store, name, 10)

        result = await scrub(volume, limit=1)
        assert not result["complete"]
        state = (machine.volume_dir / "scrub").read_text()
        assert json.loads(state)["pack"] > 0

    async with machine.open(store) as volume:
        result = await scrub(volume)
        assert result["complete"]
        assert result["resumed"]
        assert result["chunks"] == 60
        assert [(d["start"], d["end"]) for d in result["damaged"]] == [(0, 16384)]
        assert not (machine.volume_dir / "scrub").exists()


async def test_no_more_than_the_rate_is_read(
    store: MemoryStore, tmp_path: Path, autojump_clock: Any
) -> None:
    async with Machine(tmp_path).open(store) as volume:
        await filled(volume)
        before = trio.current_time()

        result = await scrub(volume, rate=100_000)

        assert trio.current_time() - before >= (result["bytes"] - 100_000) / 100_000
