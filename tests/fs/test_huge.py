"""A file with very many extents goes in steps, so that no commit is too large to read."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from megafs.tree import tree as tree_module
from tests.fs.opened import CHUNK, ROOT, contents, new_store_here, opened, put_file
from tests.tree.invariants import check


async def test_removing_a_huge_file_takes_several_small_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_module, "STEP", 4)
    store = await new_store_here()
    async with opened(tmp_path / "a", store) as volume:
        fs = volume.fs
        ino = await put_file(fs, 1, b"huge", b"x" * (CHUNK * 30))
        await volume.drain()
        before = volume.replica.batch
        await fs.unlink(1, b"huge", ROOT)
        with trio.fail_after(20):
            while volume.replica.tree.find(ino) is not None:
                await trio.sleep(0.01)
        assert volume.replica.close_batch() - before >= 6
        check(volume.replica.tree)
        assert volume.replica.tree.used == 0
        await volume.drain()
    async with opened(tmp_path / "b", store) as other:
        assert other.replica.tree.find(ino) is None


async def test_a_huge_file_that_was_being_removed_is_gone_after_the_next_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_module, "STEP", 4)
    store = await new_store_here()
    async with opened(tmp_path / "a", store) as volume:
        ino = await put_file(volume.fs, 1, b"huge", b"x" * (CHUNK * 30))
        await volume.fs.unlink(1, b"huge", ROOT)  # ends before the steps are done
    async with opened(tmp_path / "a", store) as volume:
        assert volume.replica.tree.find(ino) is None
        check(volume.replica.tree)


async def test_truncating_a_huge_file_keeps_what_is_before_the_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_module, "STEP", 4)
    from megafs.tree.inode import SetAttr

    async with opened(tmp_path / "a") as volume:
        fs = volume.fs
        data = bytes(range(256)) * (CHUNK * 30 // 256)
        ino = await put_file(fs, 1, b"huge", data)
        await fs.setattr(ino, SetAttr(size=CHUNK + 5), ROOT)
        assert await contents(fs, ino) == data[: CHUNK + 5]
        check(volume.replica.tree)
