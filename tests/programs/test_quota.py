"""A full volume: df shows it, writers hear of it, nothing that was accepted is lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.programs.conftest import Disk, run

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(150)]

#: Nothing of it depends on the store.
STORES = ["file"]

MIB = 1 << 20


def df(path: Path) -> tuple[int, int, int]:
    """Size, used and available, in bytes."""
    line = run("df", "-B1", "--output=size,used,avail", path).splitlines()[1]
    size, used, available = map(int, line.split())
    return size, used, available


def fill(path: Path) -> int:
    """Write until it is refused; return how many bytes were taken."""
    taken = 0
    piece = os.urandom(MIB)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            try:
                taken += os.write(fd, piece)
            except OSError as exc:
                assert exc.errno in (errno.ENOSPC, errno.EDQUOT)
                return taken
    finally:
        os.close(fd)


def test_df_shows_the_quota(own_disk: Disk) -> None:
    own_disk.mount()
    assert df(own_disk.mnt)[0] == 50 * 10**9 // 4096 * 4096
    (own_disk.mnt / "f").write_bytes(bytes(10 * MIB))
    size, used, available = df(own_disk.mnt)
    assert 10 * MIB <= used < 11 * MIB
    assert size - used == available
    os.unlink(own_disk.mnt / "f")
    assert df(own_disk.mnt)[1] < MIB


def test_a_full_volume_refuses_and_loses_nothing(own_disk: Disk) -> None:
    own_disk.machine.url += "-small"
    own_disk._url = own_disk.machine.url
    own_disk.format("--quota", "20MiB")
    own_disk.mount()
    mnt = own_disk.mnt
    (mnt / "before").write_bytes(b"x" * MIB)
    taken = fill(mnt / "full")
    assert 18 * MIB <= taken <= 19 * MIB
    assert (mnt / "full").stat().st_size == taken
    with pytest.raises(OSError, match="No space"):
        (mnt / "more").write_bytes(bytes(2 * MIB))
    # Overwriting needs no room; removing makes some.
    with (mnt / "before").open("r+b") as file:
        file.write(b"y" * MIB)
    assert (mnt / "before").read_bytes() == b"y" * MIB
    (mnt / "more").unlink(missing_ok=True)
    own_disk.compared_elsewhere()
    mnt = own_disk.mnt
    assert (mnt / "full").stat().st_size == taken
    assert df(mnt)[2] < 2 * MIB
    (mnt / "full").unlink()
    (mnt / "again").write_bytes(bytes(10 * MIB))
    own_disk.umount()


def test_cp_and_tar_say_that_it_is_full(own_disk: Disk, tmp_path: Path) -> None:
    own_disk.machine.url += "-small"
    own_disk._url = own_disk.machine.url
    own_disk.format("--quota", "5MiB")
    own_disk.mount()
    for n in range(10):
        (tmp_path / f"f{n}").write_bytes(os.urandom(MIB))
    run("cp", "-r", tmp_path, own_disk.mnt / "t", code=1)
    whole = [
        path.name
        for path in (own_disk.mnt / "t").iterdir()
        if path.read_bytes() == (tmp_path / path.name).read_bytes()
    ]
    assert len(whole) >= 4
    run("rm", "-r", own_disk.mnt / "t")
    run("cp", tmp_path / "f1", own_disk.mnt)
    own_disk.umount()
