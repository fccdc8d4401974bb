"""Memory mapped files: shared writers and readers, also after close and beside write(2)."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs.conftest import Disk

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(150)]

#: Nothing of it depends on the store.
STORES = ["file"]


def test_a_shared_mapping_is_written_and_synced(here: Path) -> None:
    size = 3 << 20
    with (here / "f").open("w+b") as file:
        file.truncate(size)
        with mmap.mmap(file.fileno(), size) as shared:
            for n in range(0, size, 4096):
                shared[n : n + 8] = n.to_bytes(8, "big")
            shared.flush()
            file.seek(4096 * 100)
            assert file.read(8) == (4096 * 100).to_bytes(8, "big")
            shared[10:15] = b"after"
    data = (here / "f").read_bytes()
    assert data[10:15] == b"after"
    assert all(data[n : n + 8] == n.to_bytes(8, "big") for n in range(4096, size, 4096))


def test_a_mapping_written_after_the_file_was_closed(here: Path) -> None:
    fd = os.open(here / "f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 1 << 20)
    shared = mmap.mmap(fd, 1 << 20)
    os.close(fd)
    shared[5000:5004] = b"late"
    shared.flush()
    shared[500_000:500_006] = b"later!"
    shared.close()
    data = (here / "f").read_bytes()
    assert data[5000:5004] == b"late"
    assert data[500_000:500_006] == b"later!"


def test_two_processes_share_a_mapping(here: Path) -> None:
    (here / "f").write_bytes(bytes(8192))
    script = """
import mmap, sys, time
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 8192) as shared:
    deadline = time.monotonic() + 30
    while shared[0] != 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    shared[4096] = shared[0] + 1
"""
    other = subprocess.Popen([sys.executable, "-c", script, here / "f"])
    with (here / "f").open("r+b") as file, mmap.mmap(file.fileno(), 8192) as shared:
        shared[0] = 1
        assert other.wait(60) == 0
        assert shared[4096] == 2


def test_write_and_a_mapping_see_each_other(here: Path) -> None:
    with (here / "f").open("w+b", buffering=0) as file:
        file.write(b"a" * 10_000)
        with mmap.mmap(file.fileno(), 10_000) as shared:
            os.pwrite(file.fileno(), b"by write", 5000)
            assert shared[5000:5008] == b"by write"
            shared[6000:6007] = b"by mmap"
            assert os.pread(file.fileno(), 7, 6000) == b"by mmap"


def test_a_private_mapping_changes_nothing(here: Path) -> None:
    (here / "f").write_bytes(b"x" * 5000)
    with (
        (here / "f").open("r+b") as file,
        mmap.mmap(file.fileno(), 5000, flags=mmap.MAP_PRIVATE) as private,
    ):
        private[0:3] = b"new"
    assert (here / "f").read_bytes() == b"x" * 5000


def test_a_program_runs_from_the_mount(here: Path) -> None:
    import shutil

    shutil.copy(shutil.which("sha256sum") or "/usr/bin/sha256sum", here / "sum")
    (here / "f").write_bytes(b"")
    done = subprocess.run([here / "sum", here / "f"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("e3b0c44298fc1c14")


def test_what_a_mapping_wrote_is_in_the_store_after_umount(own_disk: Disk) -> None:
    own_disk.mount()
    path = own_disk.mnt / "f"
    with path.open("w+b") as file:
        file.truncate(2 << 20)
        shared = mmap.mmap(file.fileno(), 2 << 20)
    shared[1_000_000:1_000_007] = b"mapping"
    shared.close()
    own_disk.move()
    data = (own_disk.mnt / "f").read_bytes()
    assert len(data) == 2 << 20
    assert data.strip(b"\0") == b"mapping"
