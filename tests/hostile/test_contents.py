"""What happens to file contents in the store: the files that need them say EIO, all others read.

Rows of docs/threats.md, through the kernel.  One mount on a machine with an empty cache; each file
was tampered with in another way before.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.site import SIZE, Place, Site, flip, rng_bytes
from tests.mount.machine import Machine

pytestmark = pytest.mark.fuse

CHUNK = 256 << 10


@pytest.fixture(scope="module")
def damaged(
    site: Site, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Place, Machine]]:
    """a: a bit flipped in its second chunk.  b: pack deleted.  c: pack cut short.  d: the bytes of
    another pack.  e: whole."""
    place = Place(site, tmp_path_factory.mktemp("damaged"))
    flip(place.pack("a"), 8 * 400_000)
    place.pack("b").unlink()
    os.truncate(place.pack("c"), 16384)
    place.pack("d").write_bytes(place.pack("e").read_bytes())
    machine = place.machine()
    try:
        machine.mount("-o", f"log={machine.place / 'log'}")
        yield place, machine
        machine.umount()
    finally:
        machine.kill()


def _cat(path: Path) -> tuple[bytes, str]:
    done = subprocess.run(["cat", path], capture_output=True, timeout=60, check=False)
    return done.stdout, done.stderr.decode()


def _log(machine: Machine, name: str) -> list[str]:
    lines = (machine.place / "log").read_text().splitlines()
    return [line for line in lines if re.search(rf"(^|\W){name}\W", line) and "bytes" in line]


@pytest.mark.parametrize(
    ("name", "row"),
    [("a", "flipped bit"), ("b", "deleted"), ("c", "cut short"), ("d", "another's bytes")],
)
def test_rows_01_05_07_08_30_reads_that_need_it_say_eio_never_zeros_never_short(
    damaged: tuple[Place, Machine], name: str, row: str
) -> None:
    _, machine = damaged
    got, said = _cat(machine.mnt / name)
    assert "Input/output error" in said
    assert rng_bytes(name).startswith(got), "what came before the error must be right"
    assert len(got) < SIZE
    assert (machine.mnt / name).stat().st_size == SIZE, "the file itself is still there, whole"
    lines = _log(machine, name)
    assert lines, (machine.place / "log").read_text()
    assert len(lines) <= 8, lines


def test_row_01_what_the_damage_does_not_touch_reads_on(damaged: tuple[Place, Machine]) -> None:
    _, machine = damaged
    assert _cat(machine.mnt / "e") == (rng_bytes("e"), "")
    assert (machine.mnt / "later0").read_text() == "later 0"
    # The chunk with the flipped bit is lost, the others of the same file are not.
    bad = []
    fd = os.open(machine.mnt / "a", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for at in range(0, SIZE, CHUNK):
        try:
            assert os.pread(fd, 4096, at) == rng_bytes("a")[at : at + 4096]
        except OSError:
            bad.append(at)
    os.close(fd)
    assert len(bad) == 1
    assert sorted(os.listdir(machine.mnt)) == [*"abcde", "later0", "later1", "later2"]


def test_row_01_status_and_log_name_the_file_and_the_range(damaged: tuple[Place, Machine]) -> None:
    place, machine = damaged
    _cat(machine.mnt / "a")
    line = _log(machine, "a")[-1]
    found = re.search(r"/a, bytes (\d+) to (\d+): ", line)
    assert found is not None, line
    first, last = int(found[1]), int(found[2])
    assert last - first < 2 << 20, "what was read, not more"
    assert str(place.pack("a").relative_to(place.store)) in line
    assert any("/a, bytes" in e["text"] for e in machine.status()["errors"])


def test_row_01_a_damaged_file_can_be_written_and_removed(damaged: tuple[Place, Machine]) -> None:
    _, machine = damaged
    (machine.mnt / "b").write_bytes(rng_bytes("new"))
    assert _cat(machine.mnt / "b") == (rng_bytes("new"), "")
    (machine.mnt / "c").unlink()
    (machine.mnt / "fresh").write_text("the volume is as usable as before")
    fd = os.open(machine.mnt / "fresh", os.O_RDWR)
    os.fsync(fd)
    os.close(fd)
    assert not machine.status()["frozen"]


def test_row_08_a_pack_deleted_under_a_mount(attacked: Place) -> None:
    machine = attacked.machine()
    machine.mount()
    (machine.mnt / "a").open("rb").close()
    attacked.pack("a").unlink()
    with (machine.mnt / "a").open("rb") as file, pytest.raises(OSError) as failure:
        file.read()
    assert failure.value.errno == errno.EIO
    assert (machine.mnt / "e").read_bytes() == rng_bytes("e")
    machine.umount()
