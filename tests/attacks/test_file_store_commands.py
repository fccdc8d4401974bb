"""The commands on a directory in which somebody has put links to other people's directories."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.attacks.test_file_store import OURS, contents, nest, unnest
from tests.mount.machine import Machine, eventually, is_mounted

pytestmark = pytest.mark.fuse


@pytest.fixture
def victim(place: Path) -> Path:
    """Somebody's directory outside the store."""
    made = place / "victim"
    made.mkdir()
    for name in ("notes.txt", OURS):
        (made / name).write_bytes(b"dear to somebody")
    return made


def one_line(text: str) -> str:
    lines = [line for line in text.splitlines() if "symbolic link" in line]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


@pytest.mark.parametrize("name", [".tmp", "packs", "mounts"])
def test_format_where_a_link_lies(machine: Machine, place: Path, victim: Path, name: str) -> None:
    store = place / "store"
    store.mkdir()
    (store / name).symlink_to(victim)
    before = contents(victim)

    done = machine.run("format", machine.url, code=14)

    assert f"{name} is a symbolic link" in one_line(done.stderr)
    assert contents(victim) == before
    assert [path.name for path in store.iterdir()] == [name]


@pytest.mark.parametrize("options", [(), ("-o", "ro")])
def test_mounting_a_store_whose_temporary_directory_is_a_link(
    volume: Machine, place: Path, victim: Path, options: tuple[str, ...]
) -> None:
    store = place / "store"
    volume.mount()
    (volume.mnt / "file").write_bytes(b"contents")
    volume.umount()
    for path in (store / ".tmp").iterdir():
        path.unlink()
    (store / ".tmp").rmdir()
    (store / ".tmp").symlink_to(victim)
    (store / "mounts").rename(place / "aside")
    (store / "mounts").symlink_to(victim)
    before = contents(victim)

    volume.mount(*options)
    assert (volume.mnt / "file").read_bytes() == b"contents"
    if not options:
        (volume.mnt / "staged").write_bytes(b"more")
        eventually(lambda: "symbolic link" in str(volume.status()["errors"]))
    (store / ".tmp").unlink()
    (store / "mounts").unlink()
    (place / "aside").rename(store / "mounts")
    volume.umount()

    assert contents(victim) == before
    volume.mount()
    assert options or (volume.mnt / "staged").read_bytes() == b"more"
    volume.umount()


def test_gc_where_the_packs_are_another_volumes(volume: Machine, place: Path) -> None:
    other = Machine(place, "other", f"file://{place}/others")
    other.format()
    other.mount()
    (other.mnt / "file").write_bytes(os.urandom(300_000))
    other.umount()
    packs = place / "others/packs"
    # Old enough for gc to take them for forgotten ones.
    for path in packs.rglob("*"):
        os.utime(path, (time.time() - 90 * 86400,) * 2)
    volume.mount()
    (volume.mnt / "file").write_bytes(os.urandom(300_000))
    volume.umount()
    (place / "store/packs").rename(place / "aside")
    (place / "store/packs").symlink_to(packs)
    before = contents(place / "others")

    done = volume.run("gc", volume.url, code=14)

    assert "packs is a symbolic link" in one_line(done.stderr)
    assert contents(place / "others") == before


def test_a_mount_lives_on_whatever_lies_in_the_store(volume: Machine, place: Path) -> None:
    store = place / "store"
    volume.mount()
    pid = volume.pid
    try:
        for name in ("mounts", "commits", "packs", "keys", "checkpoints"):
            (store / name).mkdir(exist_ok=True)
            nest(store / name, 1600)
            (store / name / "loop").symlink_to(".")
            os.mkfifo(store / name / "fifo")
        for i in range(5):
            (volume.mnt / f"file{i}").write_bytes(b"contents")
            fd = os.open(volume.mnt / f"file{i}", os.O_RDWR)
            os.fsync(fd)
            os.close(fd)
        volume.run("fsck", volume.url)
        assert is_mounted(volume.mnt)
        assert volume.pid == pid
        volume.umount()
    finally:
        for name in ("mounts", "commits", "packs", "keys", "checkpoints"):
            unnest(store / name)
