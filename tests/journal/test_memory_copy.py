"""A machine that was copied with its memory: two processes that go on as one and the same mount."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from megafs.concurrency import in_place
from megafs.journal.heartbeat import INTERVAL
from megafs.volume import state_directory
from megafs.volume.volume import Volume
from tests.fs.opened import contents, new_store_here, opened, put_file

DATA = {name: name * 50_000 for name in (b"before", b"first", b"second")}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with in_place():
        yield


@pytest.fixture
async def copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Volume, Volume]]:
    """Two processes with one number, and one state each that has the file b"before"."""
    store = await new_store_here()
    async with opened(tmp_path / "one", store, host="one") as one:
        await put_file(one.fs, 1, b"before", DATA[b"before"])
        await one.drain()
        shutil.copytree(tmp_path / "one", tmp_path / "two", symlinks=True)
        number = one.replica.mount
        monkeypatch.setattr(state_directory, "fresh_number", lambda state: number)
        async with opened(tmp_path / "two", store, host="two") as two:
            assert two.replica.mount == number
            monkeypatch.undo()
            yield one, two


async def _seen(volume: Volume) -> dict[bytes, bytes]:
    found = volume.replica.tree.entries(1, 0, 100)
    return {name: await contents(volume.fs, inode.ino) for name, inode, _ in found}


async def test_both_notice_by_the_heartbeat(
    copies: tuple[Volume, Volume], autojump_clock: object
) -> None:
    await trio.sleep(3 * INTERVAL)
    for volume, other in zip(copies, ("two", "one"), strict=True):
        (said,) = [text for _, text in volume.replica.conflicts() if "its memory" in text]
        assert f"on {other}: this machine was copied" in said


async def test_a_mount_alone_notices_nothing(tmp_path: Path, autojump_clock: object) -> None:
    async with opened(tmp_path, await new_store_here()) as volume:
        await trio.sleep(10 * INTERVAL)
        assert volume.replica.conflicts() == []


async def test_who_meets_the_other_s_commit_stops_and_goes_on_as_another_mount(
    copies: tuple[Volume, Volume], tmp_path: Path, autojump_clock: object
) -> None:
    one, two = copies
    await put_file(one.fs, 1, b"first", DATA[b"first"])
    await put_file(two.fs, 1, b"second", DATA[b"second"])
    await one.drain()
    await trio.sleep(10)
    assert one.status()["frozen"] is None
    assert "copied, or set back, with its memory" in two.status()["frozen"]
    # What it had staged is done again by the next process there, which has another number.
    shutil.copytree(tmp_path / "two", tmp_path / "three", symlinks=True)
    async with opened(tmp_path / "three", one.store, host="two") as again:
        assert again.replica.mount != one.replica.mount
        await again.drain()
        await trio.sleep(10)
        assert await _seen(again) == await _seen(one) == DATA
