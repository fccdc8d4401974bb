"""A module that grows past 900 lines has become two."""

from __future__ import annotations

from tests.codebase.sources import modules

MOST = 900


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    sizes = {name: len(path.read_text().splitlines()) for name, path in modules("megafs")}
    long = {name: size for name, size in sizes.items() if size > MOST}
    assert not long, f"longer than {MOST} lines, to be split: {long}"
