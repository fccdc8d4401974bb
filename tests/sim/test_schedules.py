"""Thousands of schedules; see schedule.py for what each must keep.

A failure names its seed.  `python -m tests.sim.soak --only SEED` runs just that one and tells what
happened; `make soak SECONDS=600` runs fresh seeds.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from megafs import clock, concurrency
from megafs.tree import ops
from tests.sim import schedule

#: Schedules of every run of the tests: MEGAFS_SCHEDULES changes how many.
COUNT = int(os.environ.get("MEGAFS_SCHEDULES", "2000"))
BLOCK = 50


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, COUNT, BLOCK))
def test_nothing_is_lost_and_everyone_agrees(first: int, tmp_path: Path) -> None:
    broken = []
    for seed in range(first, min(first + BLOCK, COUNT)):
        try:
            schedule.run(seed, base=schedule.memory(tmp_path))
        except Exception as exc:
            broken.append(schedule.explain(seed, exc))
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("seed", [1, 7, 23, 772])
def test_one_seed_is_one_schedule(seed: int, tmp_path: Path) -> None:
    """Also in another process, where strings have other hashes."""
    first: list[str] = []
    again: list[str] = []
    one = schedule.run(seed, base=schedule.memory(tmp_path), log=first)
    two = schedule.run(seed, base=schedule.memory(tmp_path), log=again)
    assert one.digest == two.digest
    assert first == again
    other = subprocess.run(
        [sys.executable, "-m", "tests.sim.soak", "--only", str(seed), "--digest"],
        env=dict(os.environ, PYTHONHASHSEED="12345"),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert other.stdout.strip() == one.digest


@pytest.mark.parametrize("seed", [3, 5, 7, 8])
def test_how_quick_the_disk_is_changes_no_schedule(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a sync waits on the event loop depends on how long the ones before it took."""
    monkeypatch.setattr(concurrency, "TRUSTED", 1)  # the schedules have few syncs
    logs: list[list[str]] = []
    for took in (0.0, 0.1):
        readings = itertools.count(0, took)
        monkeypatch.setattr(clock, "_stopwatch", partial(next, readings))
        log: list[str] = []
        schedule.run(seed, base=schedule.memory(tmp_path), log=log)
        logs.append(log)
    assert logs[0] == logs[1]


def test_the_witness_notices_lost_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that drops what we wrote to a file that others changed is found out."""
    from megafs.tree.merge import Merge

    def careless(self: Merge, op: ops.SetContents) -> None:
        inode = self.tree.find(op.ino)
        if inode is not None and inode.version == op.base:
            self._do(op)

    monkeypatch.setattr(Merge, "_contents", careless)
    lost = 0
    for seed in range(60):
        try:
            schedule.run(seed, base=schedule.memory(tmp_path))
        except schedule.Wrong as wrong:
            lost += "lost" in str(wrong)
    assert lost
