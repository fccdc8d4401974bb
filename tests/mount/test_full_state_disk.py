"""A mount that is killed while its state disk is full to the last byte comes back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.machine import Machine

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="mounts a tmpfs")


@pytest.fixture
def small(place: Path) -> Iterator[Machine]:
    """A machine whose state directory is a disk of its own, of 8 MiB."""
    machine = Machine(place)
    state = machine.place / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", state], check=True)
    try:
        machine.format()
        yield machine
    finally:
        machine.kill()
        subprocess.run(["umount", "-l", machine.mnt], check=False, capture_output=True)
        subprocess.run(["umount", "-l", state], check=False)


def _fill(directory: Path) -> Path:
    """Write a file until not one more byte fits."""
    path = directory / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    return path


def test_it_mounts_and_gives_what_was_written(small: Machine) -> None:
    small.mount("-o", "fsync=local,sync_interval=3600,stage_min_free=0")
    (small.mnt / "kept").write_bytes(b"written and closed")
    filler = _fill(small.place / "state")
    small.kill()
    subprocess.run(["umount", "-l", small.mnt], check=False, capture_output=True)

    small.mount("-o", "fsync=local,stage_min_free=0")
    assert (small.mnt / "kept").read_bytes() == b"written and closed"
    filler.unlink()
    (small.mnt / "later").write_bytes(b"there is room again")
    small.umount()
    small.mount()
    assert (small.mnt / "kept").read_bytes() == b"written and closed"
    assert (small.mnt / "later").read_bytes() == b"there is room again"
    small.umount()
