"""A state directory in which somebody else has put what does not belong there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import trio

from megafs.concurrency import offload
from megafs.durable import replace_file


def test_a_file_is_replaced_whatever_lies_in_the_way_of_its_successor(tmp_path: Path) -> None:
    """The name of the file that is written first is known, so somebody may have taken it."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"dear to somebody")
    for name in ("link", "dangling", "hard"):
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / "link.new").symlink_to(victim)
    (tmp_path / "dangling.new").symlink_to(tmp_path / "nowhere")
    os.link(victim, tmp_path / "hard.new")

    for name in ("link", "dangling", "hard"):
        replace_file(tmp_path / name, b"new")
        assert (tmp_path / name).read_bytes() == b"new"
        assert stat.S_ISREG((tmp_path / name).lstat().st_mode)
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert victim.read_bytes() == b"dear to somebody"
    assert not (tmp_path / "nowhere").exists()
    assert not list(tmp_path.glob("*.new"))


async def test_nobody_waits_for_a_fifo(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    os.mkfifo(tmp_path / "file.new")
    with trio.fail_after(10):
        await offload(replace_file, tmp_path / "file", b"new", kind="disk", abandon=True)
    assert (tmp_path / "file").read_bytes() == b"new"


def test_what_a_crash_left_half_written_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "file.new").write_bytes(b"half of something longer")
    replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
