"""The disk is asked how much is free once per so many staged bytes, not at every write."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megafs.errors import Full
from tests.chunks.test_store import parts

MIB = 1 << 20


class Disk:
    """A disk with so many bytes free; what the stage puts there takes of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.free = free
        self.asked = 0
        monkeypatch.setattr(os, "statvfs", self.statvfs)

    def statvfs(self, _path: Any) -> Any:
        self.asked += 1
        return SimpleNamespace(f_bavail=self.free, f_frsize=1)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch, 1 << 40)


async def test_small_writes_ask_the_disk_once_per_many_bytes(tmp_path: Path, disk: Disk) -> None:
    async with parts(tmp_path) as p:
        page = os.urandom(4096)
        for written in range(0, 32 * MIB, MIB):
            for waiting in range(4096, MIB + 1, 4096):
                p.stage.check_room(waiting)
            await p.stage.put([page] * (MIB // 4096))
            assert disk.asked <= 1 + written // (4 * MIB) + 1
        assert disk.asked >= 3


async def test_a_disk_that_fills_up_is_noticed_before_min_free_is_gone(
    tmp_path: Path, disk: Disk
) -> None:
    disk.free = 6 * MIB
    async with parts(tmp_path, min_free=4 * MIB) as p:
        put = 0
        with pytest.raises(Full, match="stage_min_free"):
            while True:
                p.stage.check_room(64 << 10)
                await p.stage.put([os.urandom(64 << 10)])
                disk.free -= 64 << 10
                put += 64 << 10
        assert put == 2 * MIB
        disk.free += MIB  # asked again at once: a writer waits for it
        p.stage.check_room(64 << 10)


async def test_what_waits_for_the_store_stays_below_the_limit(tmp_path: Path, disk: Disk) -> None:
    async with parts(tmp_path, staged=2 * MIB, compress=False, pack_size=64 * MIB) as p:
        with pytest.raises(Full, match="stage_limit"):
            while True:
                p.stage.check_room(64 << 10)
                await p.stage.put([os.urandom(64 << 10)])
        assert 2 * MIB - (129 << 10) < p.stage.staged_bytes <= 2 * MIB
        with pytest.raises(Full, match="stage_limit"):
            p.stage.check_room(3 * MIB)


async def test_a_write_larger_than_what_is_left_is_refused(tmp_path: Path, disk: Disk) -> None:
    disk.free = 6 * MIB
    async with parts(tmp_path, min_free=4 * MIB) as p:
        p.stage.check_room(4096)
        with pytest.raises(Full, match="stage_min_free"):
            p.stage.check_room(3 * MIB)
        p.stage.check_room(4096)
