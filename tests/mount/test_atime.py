"""Access times through the kernel, which keeps pages and asks nobody for what it has."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.mount.machine import Machine

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(150)]


def atime(path: Path) -> int:
    time.sleep(0.01)
    return path.lstat().st_atime_ns


def make(volume: Machine, options: str) -> tuple[Path, Path, Path]:
    """A file, a directory and a link, all just written."""
    volume.mount("-o", f"fsync=local,{options}")
    file, directory, link = (volume.mnt / name for name in ("file", "directory", "link"))
    file.write_text("text")
    directory.mkdir()
    (directory / "in").touch()
    link.symlink_to("file")
    return file, directory, link


def test_strictatime_counts_every_open_file_listing_and_link(volume: Machine) -> None:
    file, directory, link = make(volume, "strictatime")
    for _ in range(3):
        before = [atime(path) for path in (file, directory, link)]
        assert file.read_text() == "text"
        assert os.listdir(directory) == ["in"]
        assert os.readlink(link) == "file"
        after = [atime(path) for path in (file, directory, link)]
        assert all(b < a for b, a in zip(before, after, strict=True)), (before, after)
    before = [atime(file)]
    fd = os.open(file, os.O_RDONLY | os.O_NOATIME)
    assert os.read(fd, 10) == b"text"
    os.close(fd)
    assert [atime(file)] == before
    volume.umount()


def test_relatime_counts_the_first_read_after_a_change(volume: Machine) -> None:
    """What mail programs ask: is there something that nobody has read?"""
    file, directory, link = make(volume, "relatime")
    for _ in range(2):
        for path, read in (
            (file, lambda: file.read_text()),
            (directory, lambda: os.listdir(directory)),
            (link, lambda: os.readlink(link)),
        ):
            changed = atime(path)
            read()
            first = atime(path)
            assert first > changed, path
            read()
            assert atime(path) == first, path
        time.sleep(0.01)
        with file.open("a") as opened:  # the kernel has all its pages
            opened.write("more")
        (directory / "new").touch()
        (directory / "new").unlink()
        os.utime(link, ns=(1, 1), follow_symlinks=False)
    volume.umount()


@pytest.mark.parametrize("options", ["noatime", "ro,strictatime"])
def test_without_access_times_nothing_changes(volume: Machine, options: str) -> None:
    file, directory, link = make(volume, "strictatime")
    volume.umount()
    volume.mount("-o", options)
    before = [atime(path) for path in (file, directory, link)]
    file.read_text()
    os.listdir(directory)
    os.readlink(link)
    assert [atime(path) for path in (file, directory, link)] == before
    volume.umount()
