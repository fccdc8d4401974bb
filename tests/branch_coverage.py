"""A pytest plugin: which branches of megafs the tests took, as a table by package at the end.

`make test` loads it; `make test COVERAGE=` goes without it.  There is no threshold: the table is
there to be read, and a package that falls behind is worth a look.

It sees what runs in the tests' own process.  The mounts of tests/mount, tests/cli, tests/hostile,
tests/programs, tests/outage and tests/ceph are processes of their own, most of them ended by kill:
what only they run counts as not taken here.  Tracing them too would slow down each start by 0.15 s
and everything that tests with deadlines measure.

Tests marked `slow` run untraced, too: the simulation's 2,000 schedules take 2.6 times the processor
time under coverage 7.17's C tracer (CPython 3.11 has no sys.monitoring yet), 8 minutes more of 24.
The others take 1.7 times theirs, 2 minutes more.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coverage
import pytest

PACKAGE = "megafs"

_running: coverage.Coverage | None = None


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Begin before the first conftest.py imports megafs."""
    global _running
    _running = coverage.Coverage(data_file=None, branch=True, source=[PACKAGE])
    _running.start()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if _running is None or item.get_closest_marker("slow") is None:
        return (yield)
    _running.stop()
    try:
        return (yield)
    finally:
        _running.start()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, before pytest's own last lines."""
    if _running is None:
        return
    _running.stop()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "report.json"
        _running.json_report(outfile=str(path))
        files: dict[str, dict[str, Any]] = json.loads(path.read_text())["files"]
    terminalreporter.section("branches of megafs taken in this process, slow tests left out")
    for line in table((name, Counts.of(found["summary"])) for name, found in files.items()):
        terminalreporter.line(line)


@dataclass
class Counts:
    """Of one file or package: how much there is, and how much of it ran.

    least: the file of the package with the most branches that were not taken.
    """

    lines: int = 0
    lines_run: int = 0
    branches: int = 0
    branches_taken: int = 0
    least: tuple[int, str] = field(default=(0, ""))

    @classmethod
    def of(cls, summary: dict[str, int]) -> Counts:
        """From `summary` of coverage's JSON report."""
        return cls(
            summary["num_statements"],
            summary["covered_lines"],
            summary["num_branches"],
            summary["covered_branches"],
        )

    def add(self, other: Counts, name: str) -> None:
        self.lines += other.lines
        self.lines_run += other.lines_run
        self.branches += other.branches
        self.branches_taken += other.branches_taken
        self.least = max(self.least, (other.branches - other.branches_taken, name))


def table(files: Iterable[tuple[str, Counts]]) -> list[str]:
    """One line for each package of megafs, then one for all."""
    packages: defaultdict[str, Counts] = defaultdict(Counts)
    total = Counts()
    for name, counts in files:
        parts = Path(name).parts
        parts = parts[parts.index(PACKAGE) :]
        packages["/".join(parts[:-1])].add(counts, parts[-1])
        total.add(counts, "/".join(parts[1:]))
    width = max(len(name) for name in (*packages, "all"))
    rows = [f"{'':{width}}  lines   run  branches  taken  most not taken in"]
    for name, counts in (*sorted(packages.items()), ("all", total)):
        missed, worst = counts.least
        rows.append(
            f"{name:{width}} {counts.lines:6} {_percent(counts.lines_run, counts.lines)}"
            f" {counts.branches:9}  {_percent(counts.branches_taken, counts.branches)}"
            f"  {f'{worst} ({missed})' if missed else ''}".rstrip()
        )
    return rows


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole if whole else 100:4.0f}%"
