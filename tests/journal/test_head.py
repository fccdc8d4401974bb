"""What a machine remembers of a volume survives a power cut at any moment of its writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from megafs.errors import Corrupt
from megafs.journal import head


def seen(sequence: int) -> head.RememberedHead:
    return head.RememberedHead("ab" * 16, sequence, f"{sequence:064x}", 3, "cd" * 8)


def test_the_last_one_written_counts(tmp_path: Path) -> None:
    assert head.read(tmp_path) is None
    for sequence in (1, 2, 3, 2, 10**15, 4):  # also one that goes back, as --accept-state does
        head.write(tmp_path, seen(sequence))
        assert head.read(tmp_path) == seen(sequence)
    assert (tmp_path / "head").stat().st_size == 1024
    assert (tmp_path / "head").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("writes", range(1, 6))
def test_a_write_that_is_cut_anywhere_leaves_the_one_before(tmp_path: Path, writes: int) -> None:
    for sequence in range(1, writes + 1):
        head.write(tmp_path, seen(sequence))
    before = (tmp_path / "head").read_bytes()
    head.write(tmp_path, seen(100))
    after = (tmp_path / "head").read_bytes()
    for cut in range(0, 1025, 41):
        for torn in (after[:cut] + before[cut:], before[:cut] + after[cut:]):
            (tmp_path / "head").write_bytes(torn)
            assert head.read(tmp_path) in (seen(writes), seen(100))
            head.write(tmp_path, seen(200))
            assert head.read(tmp_path) == seen(200)


def test_a_file_of_which_nothing_is_whole_is_an_error_and_not_a_new_machine(
    tmp_path: Path,
) -> None:
    for damaged in (b"", b"{}", b" " * 1024, b"x" * 1024, b'{"turn": 1}'.ljust(1024)):
        (tmp_path / "head").write_bytes(damaged)
        with pytest.raises(Corrupt, match="remove the file"):
            head.read(tmp_path)
        head.write(tmp_path, seen(7))
        assert head.read(tmp_path) == seen(7)
