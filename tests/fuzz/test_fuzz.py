"""Every parser of bytes from a store or a disk, with some hundred inputs; `make fuzz` for hours."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from megafs.journal import checkpoint, heartbeat
from megafs.journal.commit import open_commit, unpack_changeset
from megafs.tree import ops
from megafs.tree.changeset import Changes
from megafs.volume import header as headers
from tests.fuzz.targets import RING, TARGETS, real_objects

CASES = 120


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_gives_a_value_or_the_error_that_it_is_for(name: str) -> None:
    target = TARGETS[name]
    cases = 0

    @settings(
        max_examples=CASES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=target.inputs)
    def run(data: object) -> None:
        nonlocal cases
        cases += 1
        target.check(data)

    run()
    assert cases >= CASES // 2


def test_the_real_objects_that_are_changed_open() -> None:
    """Else the targets would find nothing behind the first check."""
    samples = real_objects()
    commit = open_commit(RING, 7, samples["commit"])
    assert Changes.of(unpack_changeset(commit)).keys
    assert checkpoint.open_manifest(RING, 7, samples["manifest"]).tables["inodes"]
    assert heartbeat.open_heartbeat(RING, heartbeat.name_of(5), samples["heartbeat"]).host == "host"
    assert headers.parse(samples["header"], "keys/00000001").generation == 1
    assert ops.decode(samples["operations"])
