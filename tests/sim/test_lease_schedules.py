"""Volumes with one writer by lease, on a store that ignores conditions; see lease_schedule.py.

A failure names its seed.  `make soak` runs fresh ones beside the schedules of schedule.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megafs.errors import Corrupt
from megafs.journal.lease import Lease
from megafs.volume.fork import ForkSettler
from tests.sim import lease_schedule, schedule

#: Schedules of every run of the tests: MEGAFS_LEASE_SCHEDULES changes how many.
COUNT = int(os.environ.get("MEGAFS_LEASE_SCHEDULES", "40"))
BLOCK = 10


def _broken(seeds: range, tmp_path: Path, step: int = 0) -> list[str]:
    broken = []
    for seed in seeds:
        try:
            lease_schedule.run(seed, base=schedule.memory(tmp_path), step=step)
        except Exception as exc:
            broken.append(f"step {step} of {schedule.explain(seed, exc)}")
    return broken


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, COUNT, BLOCK))
def test_nothing_acknowledged_is_lost(first: int, tmp_path: Path) -> None:
    broken = _broken(range(first, min(first + BLOCK, COUNT)), tmp_path)
    assert not broken, "\n".join(broken)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_holder_is_stopped_at_any_step(tmp_path: Path) -> None:
    """Each other step of the tasks of one schedule; `make soak` stops at every one."""
    broken = [text for step in range(1, 200, 13) for text in _broken(range(1), tmp_path, step)]
    assert not broken, "\n".join(broken)


@pytest.mark.timeout(300)
def test_the_schedules_notice_a_commit_that_is_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what puts it back, and what settles it."""

    assert lease_schedule.run(0, base=schedule.memory(tmp_path), fork=True).overwritten

    async def forgets(self: Lease, sequence: int, data: bytes) -> None:
        return None

    async def finds_nothing(self: Lease) -> bool:
        return False

    async def settles_nothing(self: ForkSettler) -> None:
        return None

    monkeypatch.setattr(Lease, "_keep_first", forgets)
    monkeypatch.setattr(Lease, "mend", finds_nothing)
    monkeypatch.setattr(ForkSettler, "settle", settles_nothing)
    with pytest.raises((schedule.Wrong, Corrupt)):
        lease_schedule.run(0, base=schedule.memory(tmp_path), fork=True)
