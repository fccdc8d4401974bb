"""fsck finds what is wrong, repairs what it can, and leaves the rest to be read about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megafs.chunks.codec import pack_name
from megafs.jobs import registry
from megafs.jobs.committing import commit_all
from megafs.stores.memory import MemoryStore as Store
from megafs.tree.inode import ROOT
from megafs.volume.volume import Volume
from tests.fakes.machine import (
    Machine,
    make_volume,
    mkdir,
    read_file,
    resolve,
    snapshot,
    symlink,
    unlink,
    write_file,
)
from tests.tree.invariants import check


def silent(_: object) -> None:
    pass


async def fsck(volume: Volume, **args: Any) -> dict[str, Any]:
    return await registry.run(volume, "fsck", args, silent)


async def filled(volume: Volume) -> None:
    fs = volume.fs
    await mkdir(fs, "d")
    await mkdir(fs, "d/e")
    await write_file(fs, "d/big", bytes(range(256)) * 4000)
    await write_file(fs, "d/small", b"small")
    await symlink(fs, "d/link", "big")
    await volume.flush()


@pytest.fixture
async def store() -> Store:
    made = Store("fsck")
    await make_volume(made, chunk_size=16384, pack_size=65536)
    return made


async def test_a_sound_volume_is_clean(store: Store, tmp_path: Path, autojump_clock: Any) -> None:
    async with Machine(tmp_path).open(store) as volume:
        await filled(volume)
        await volume.checkpointer.write()
        await write_file(volume.fs, "later", b"x" * 100_000)
        await volume.flush()

        result = await fsck(volume)

        assert result["exit_code"] == 0, result
        assert result["problems"] == []
        assert "1 checkpoints are whole" in result["notes"]


BREAKAGES = {
    "link-count": "UPDATE inodes SET nlink=7 WHERE ino={small}",
    "blocks": "UPDATE inodes SET blocks=blocks+5 WHERE ino={big}",
    "name-of-nothing": "INSERT INTO dirents VALUES(1, x'67686f7374', 99, 99)",
    "name-in-nothing": "UPDATE dirents SET parent=99 WHERE ino={small}",
    "lost": "DELETE FROM dirents WHERE ino={big}",
    "directory": "UPDATE inodes SET nlink=9 WHERE ino={d}",
    "two-names": "INSERT INTO dirents VALUES(1, x'32', {e}, 99)",
    "circle": "UPDATE dirents SET parent={e} WHERE ino={d}",
    "orphan": "INSERT INTO orphans VALUES({big}, 5)",
    "xattr-of-nothing": "INSERT INTO xattrs VALUES(77, x'61', x'62')",
    "extent-of-nothing": "INSERT INTO extents VALUES(77, 0, 1, 0, 0, 0, 1, 0, NULL, x'00')",
    "beyond-end": "UPDATE inodes SET size=20000 WHERE ino={big}",
    "overlap": "UPDATE extents SET start=start-7 WHERE ino={big} AND start=16384",
    "mark": "INSERT INTO garbage VALUES(77, 1)",
}


@pytest.mark.parametrize("kind", BREAKAGES)
async def test_what_is_broken_is_found_repaired_and_stays_repaired_everywhere(
    kind: str, store: Store, tmp_path: Path, autojump_clock: Any
) -> None:
    async with Machine(tmp_path / "a", "a").open(store) as volume:
        await filled(volume)
        numbers = {
            "d": resolve(volume.fs, "d"),
            "e": resolve(volume.fs, "d/e"),
            "big": resolve(volume.fs, "d/big"),
            "small": resolve(volume.fs, "d/small"),
        }
        bytes_before = await read_file(volume.fs, "d/small")
        # The session records this: it is in the journal, as a bug of ours would be.
        volume.replica.db.execute(BREAKAGES[kind].format(**numbers))
        volume.replica._collected.operations.append(_nothing(volume))
        await commit_all(volume)

        seen = await fsck(volume)
        assert seen["exit_code"] == 4
        assert kind in {problem["kind"] for problem in seen["problems"]}

        repaired = await fsck(volume, repair=True)
        assert repaired["exit_code"] == 1, repaired
        assert (await fsck(volume))["exit_code"] == 0
        check(volume.replica.tree)
        everything = await snapshot(volume.fs)

    async with Machine(tmp_path / "b", "b").open(store) as other:
        check(other.replica.tree)
        assert await snapshot(other.fs) == everything
        contents = [node[1] for node in everything.values() if node[0] == "file"]
        assert bytes_before in contents


def _nothing(volume: Volume) -> Any:
    from megafs.tree.ops import SetAttributes

    return SetAttributes(ROOT, {})


async def test_a_missing_pack_is_told_by_path_and_range(
    store: Store, tmp_path: Path, autojump_clock: Any
) -> None:
    async with Machine(tmp_path).open(store) as volume:
        await filled(volume)
        first = volume.replica.tree.all_extents(resolve(volume.fs, "d/big"))[0]
        name = pack_name(volume.replica.tree.pack(first.pack).name)
        whole = store.objects[name]
        await store.delete(name)

        result = await fsck(volume, repair=True)

        assert result["exit_code"] == 4
        problem = result["problems"][0]
        assert problem["kind"] == "missing-pack"
        assert (problem["path"], problem["start"], problem["end"]) == ("/d/big", 0, 16384)

        await store.put_new(name, whole[:100])
        result = await fsck(volume)
        assert {p["kind"] for p in result["problems"]} == {"short-pack"}


async def test_damaged_commits_and_checkpoints_are_named(
    store: Store, tmp_path: Path, autojump_clock: Any
) -> None:
    async with Machine(tmp_path).open(store) as volume:
        await filled(volume)
        await volume.checkpointer.write()
        await write_file(volume.fs, "more", b"more")
        await volume.flush()
        last = f"commits/{volume.replica.sequence:016d}"
        store.objects[last] = store.objects[last][:-1] + b"?"
        part = next(n for n in store.objects if "checkpoints" in n and not n.endswith("manifest"))
        await store.delete(part)

        result = await fsck(volume)

        assert result["exit_code"] == 4
        assert {p["kind"] for p in result["problems"]} == {"commit", "checkpoint"}


async def test_unlinked_files_of_mounts_that_are_long_gone_are_given_up(
    store: Store, tmp_path: Path, autojump_clock: Any
) -> None:
    import os

    from megafs import clock
    from tests.fakes.machine import ROOT_USER

    async with Machine(tmp_path / "a", "a").open(store) as a:
        await filled(a)
        fh, _ = await a.fs.open(resolve(a.fs, "d/big"), os.O_RDONLY, ROOT_USER)
        assert fh
        await unlink(a.fs, "d/big")
        await a.flush()
    for name in [n for n in store.objects if n.startswith("mounts/")]:
        await store.delete(name)

    async with Machine(tmp_path / "b", "b").open(store) as b:
        assert (await fsck(b))["exit_code"] == 0
        now = clock.now_ns()
        with clock.replaced(now_ns=lambda: now + 40 * 86400 * 10**9):
            seen = await fsck(b, repair=True)
        assert [p["kind"] for p in seen["repaired"]] == ["old-orphan"]
        check(b.replica.tree)
