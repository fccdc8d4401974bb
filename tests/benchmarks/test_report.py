"""What `make bench` says about its measurements: docs/performance.md quotes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import behind, load, not_far_ahead, plot, rivals, table

Result = dict[str, Any]


def setting(peer: str, *, store: str = "s3", encrypts: bool = True) -> Result:
    return {"peer": peer, "note": f"as {peer} is", "store": store, "encrypts": encrypts}


def measured(row: str, peer: str, *seconds: float, line: str = "20ms", **more: Any) -> list[Result]:
    place = {"line": line, "row": row, "peer": peer, "group": "small", **more}
    return [{**place, "round": n + 1, "seconds": s} for n, s in enumerate(seconds)]


def failed(row: str, peer: str) -> Result:
    return {"line": "20ms", "row": row, "peer": peer, "group": "small", "failed": "it said no"}


PEERS = [
    setting("megafs"),
    setting("rclone crypt"),
    setting("s3fs", encrypts=False),
    setting("gocryptfs", store="local"),
]


def test_rivals_encrypt_and_have_a_store() -> None:
    assert rivals(PEERS) == ["rclone crypt"]


def test_a_cell_is_the_median_of_the_rounds_and_its_ratio() -> None:
    results = [
        *PEERS,
        *measured("find", "megafs", 0.1, 9.0, 0.2),
        *measured("find", "s3fs", 3.0, 1.0, 2.0),
    ]

    assert "| find | 200.0 ms | 2.00 s (10x) |" in table(results)


def test_a_failure_is_a_cell_and_has_its_reason() -> None:
    results = [*PEERS, *measured("cp -a", "megafs", 1.5), failed("cp -a", "s3fs")]

    said = table(results)

    assert "| cp -a | 1.50 s | failed |" in said
    assert "- 20ms, s3fs, cp -a: it said no" in said


def test_behind_names_only_rivals_that_took_less() -> None:
    results = [
        *PEERS,
        *measured("read", "megafs", 2.0),
        *measured("read", "rclone crypt", 1.0),
        *measured("read", "s3fs", 0.1),
        *measured("find", "megafs", 1.0),
        *measured("find", "rclone crypt", 1.0),
    ]

    assert behind(results) == ["- 20ms, read: 2.00 s; rclone crypt 1.00 s (0.5x)"]


def test_behind_is_also_what_only_a_rival_can_do() -> None:
    results = [*PEERS, failed("clone", "megafs"), *measured("clone", "rclone crypt", 4.0)]

    assert behind(results) == ["- 20ms, clone: failed; rclone crypt did it"]


def test_ten_times_ahead_is_asked_of_small_files_far_away() -> None:
    mount = "mount to first listing"
    results = [
        *PEERS,
        *measured("create", "megafs", 1.0),
        *measured("create", "rclone crypt", 9.0),
        *measured("find", "megafs", 0.1),
        *measured("find", "rclone crypt", 1.5),
        *measured("near", "megafs", 1.0, line="loopback"),
        *measured("near", "rclone crypt", 2.0, line="loopback"),
        *measured("read", "megafs", 1.0, group="big"),
        *measured("read", "rclone crypt", 2.0, group="big"),
        *measured(mount, "megafs", 1.0),
        *measured(mount, "rclone crypt", 2.0),
    ]

    assert not_far_ahead(results) == ["- create: 1.00 s; rclone crypt 9.00 s (9x)"]


@pytest.mark.parametrize("nowhere", ["rclone crypt", "s3fs"])
def test_the_table_says_so_when_megafs_is_behind_nowhere(nowhere: str) -> None:
    results = [*PEERS, *measured("find", "megafs", 0.1), *measured("find", nowhere, 50.0)]

    assert table(results).count("- nowhere") == 2


def test_before_is_a_column_of_its_own() -> None:
    before = [
        {"facts": {"scale": "small"}},
        *measured("find", "megafs", 3.0),
        *measured("find", "s3fs", 7.0),
    ]
    results = [
        *PEERS,
        *measured("find", "megafs", 2.0),
        *measured("find", "s3fs", 4.0),
    ]

    said = table(results, before)

    assert "| | megafs | megafs before | s3fs |" in said
    assert "| find | 2.00 s | 3.00 s (1.5x) | 4.00 s (2x) |" in said
    assert "megafs before: scale: small" in said


def test_several_runs_count_together(tmp_path: Path) -> None:
    for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 6.0)):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "results.jsonl").open("w") as file:
            for result in [*PEERS, *measured("find", "megafs", seconds)]:
                file.write(json.dumps(result) + "\n")

    results = load([tmp_path / name for name in "abc"])

    assert "| find | 2.00 s |" in table(results)
    assert table(results).count("as megafs is") == 1


def test_the_plot_has_a_dot_for_each_peer_of_a_row() -> None:
    results = [
        *PEERS,
        *measured("find", "megafs", 1.0),
        *measured("find", "rclone crypt", 3.0),
        *measured("find", "gocryptfs", 0.25),
    ]

    said = plot(results)

    assert "<title>rclone crypt: 3.00</title>" in said
    assert "<title>gocryptfs: 0.25</title>" in said
    assert "s3fs" not in said  # it has no measurement
