"""The launch day (benchmarks/launchday.py), shorter: every bad weather in 40 seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.launchday import Day
from tests.engines.ceph import Ceph

pytestmark = [pytest.mark.fuse, pytest.mark.ceph, pytest.mark.slow]


@pytest.mark.timeout(300)
def test_nothing_hangs_nothing_is_lost_no_wrong_byte_and_back_within_seconds(
    ceph: Ceph, place: Path
) -> None:
    said: list[str] = []
    day = Day(seconds=40, deadline=6, mounts=3, seed=1, say=said.append)
    day.run(ceph, place)
    assert not day.failures, "\n".join([*said, *day.failures])
