"""docs/threats.md is a list of tests: those that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent.parent
TABLE = TESTS.parent / "docs" / "threats.md"

_ROW = re.compile(r"^\| (\d+) \|(?P<store>[^|]+)\|(?P<megafs>[^|]+)\|(?P<tests>[^|]*)\|$")
_FILE = re.compile(r"`([^`]+)`([^`;]*)")


def rows() -> dict[int, str]:
    matches = (_ROW.match(line) for line in TABLE.read_text("utf-8").splitlines())
    return {int(m[1]): m["tests"] for m in matches if m}


def test_every_row_is_there() -> None:
    assert sorted(rows()) == list(range(1, 50))


def test_every_named_test_exists() -> None:
    for number, cell in rows().items():
        for name, words in _FILE.findall(cell):
            if name.startswith("vectors/"):
                assert (TESTS / f"{name}.golden").exists(), f"row {number}: {name}"
                continue
            text = (TESTS / name).read_text("utf-8")
            for word in re.findall(r"[a-z0-9_]{4,}", re.sub(r"\(.*?\)", "", words)):
                assert re.search(rf"def test_\w*{word}", text), f"row {number}: {name} {word}"
