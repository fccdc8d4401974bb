"""fsck, scrub, gc, salvage and key rotate, on a mount and on a volume that is not mounted."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import Processes
from tests.mount.machine import Machine, eventually, is_mounted

pytestmark = pytest.mark.fuse

BIG = os.urandom(1 << 20)


def asked(machine: Machine, *args: str | Path, code: int = 0) -> Any:
    return json.loads(machine.run(*args, "--json", code=code).stdout)


def damage(machine: Machine) -> None:
    """Flip a bit in the middle of every pack."""
    for path in Path(machine.url.removeprefix("file://")).glob("packs/*/*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.chmod(0o600)
        path.write_bytes(data)


def test_on_a_mount_and_on_its_volume(volume: Machine) -> None:
    volume.mount()
    (volume.mnt / "big").write_bytes(BIG)
    os.sync()
    volume.run("umount", volume.mnt)
    volume.mount()

    for where in (volume.mnt, volume.url):
        assert asked(volume, "fsck", where)["problems"] == []
        scrubbed = asked(volume, "scrub", where)
        assert scrubbed["bytes"] >= len(BIG)
        assert scrubbed["damaged"] == []
        assert asked(volume, "gc", where, "--dry-run")["deleted"] == 0
    volume.run("fsck", volume.mnt, "--repair", code=2)  # not without --yes
    assert "clean" in volume.run("fsck", volume.mnt, "--repair", "--yes").stdout
    volume.run("gc", volume.mnt, "--grace", "1s", code=2)
    volume.run("scrub", volume.place / "nothing", code=2)

    damage(volume)
    told = volume.run("scrub", volume.mnt, code=4).stdout
    assert "/big: bytes " in told
    (found,) = asked(volume, "scrub", volume.mnt, code=4)["damaged"]
    assert found["path"] == "/big"
    for path in Path(volume.url.removeprefix("file://")).glob("packs/*/*"):
        path.unlink()
    assert asked(volume, "fsck", volume.mnt, code=4)["problem_count"] == len(BIG) >> 18
    volume.umount()
    assert "is not in the store" in volume.run("fsck", volume.url, code=4).stdout


def test_salvage(volume: Machine) -> None:
    volume.mount()
    (volume.mnt / "d").mkdir()
    (volume.mnt / "d/big").write_bytes(BIG)
    (volume.mnt / "d/small").write_text("small")
    volume.umount()
    fresh = Machine(volume.place.parent, "fresh", volume.url)
    out = fresh.place / "out"
    said = asked(fresh, "salvage", volume.url, "--to", out)
    assert (out / "d/big").read_bytes() == BIG
    assert said["files"] == 2

    damage(volume)
    fresh.run("salvage", volume.url, "--to", out, code=18)
    other = fresh.place / "other"
    told = fresh.run("salvage", volume.url, "--to", other, code=4).stdout
    assert "/d/big: bytes " in told
    report = json.loads((fresh.place / "salvage-report.json").read_text())
    (hole,) = report["damaged"]
    got = (other / "d/big").read_bytes()
    assert got[: hole["start"]] + got[hole["end"] :] == BIG[: hole["start"]] + BIG[hole["end"] :]
    assert got[hole["start"] : hole["end"]] == bytes(hole["end"] - hole["start"])


def test_rotate_stops_a_mount_elsewhere_which_then_goes_on(volume: Machine) -> None:
    other = Machine(volume.place.parent, "other", volume.url)
    other.mount("-o", "sync_interval=0.2")
    (other.mnt / "before").write_bytes(BIG)
    os.sync()
    volume.run("key", "rotate", volume.url, code=2)  # not without --yes
    volume.mount()
    volume.run("key", "rotate", volume.url, "--yes", code=19)  # it is in use here
    volume.umount()

    told = asked(volume, "key", "rotate", volume.url, "--yes")
    assert told["recovery_key"]
    eventually(lambda: other.status()["frozen"], within=30)
    assert "rotated" in other.status()["frozen"]
    with pytest.raises(OSError, match="Read-only"):
        (other.mnt / "new").write_text("x")
    other.run("umount", "--force", other.mnt)
    other.mount()
    assert (other.mnt / "before").read_bytes() == BIG
    (other.mnt / "after").write_text("after")

    done = asked(other, "key", "reencrypt", other.mnt)
    assert done["left"] == 0
    assert asked(other, "scrub", other.mnt)["damaged"] == []
    other.umount()
    volume.mount()
    assert (volume.mnt / "after").read_text() == "after"
    assert (volume.mnt / "before").read_bytes() == BIG


def test_a_rescue_mount_shows_what_is_left_and_changes_nothing(
    volume: Machine, processes: Processes
) -> None:
    volume.mount()
    (volume.mnt / "d").mkdir()
    (volume.mnt / "d/big").write_bytes(BIG)
    (volume.mnt / "d/small").write_text("small")
    volume.umount()
    damage(volume)
    store = Path(volume.url.removeprefix("file://"))
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    fresh = Machine(volume.place.parent, "fresh", volume.url)
    rescue = processes.start(
        *fresh.command("salvage", volume.url, "--mount", fresh.mnt), env=fresh.environ
    )
    eventually(lambda: is_mounted(fresh.mnt), within=30)
    assert sorted(os.listdir(fresh.mnt / "d")) == ["big", "small"]
    assert (fresh.mnt / "d/small").read_text() == "small"
    with pytest.raises(OSError) as failure:
        (fresh.mnt / "d/big").read_bytes()
    assert failure.value.errno == errno.EIO
    with pytest.raises(OSError) as failure:
        (fresh.mnt / "new").write_text("x")
    assert failure.value.errno == errno.EROFS
    rescue.send_signal(signal.SIGINT)
    assert rescue.wait(30) == 0
    assert not is_mounted(fresh.mnt)
    assert before == {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    fresh.run("salvage", volume.url, code=2)


def test_a_rescue_mount_answers_small_reads_all_over_a_large_file(
    volume: Machine, processes: Processes
) -> None:
    """What is read has left the small memory cache by the time it is read again."""
    data = random.Random(9).randbytes(20 << 20)
    volume.mount()
    (volume.mnt / "large").write_bytes(data)
    volume.umount()
    fresh = Machine(volume.place.parent, "fresh", volume.url)
    rescue = processes.start(
        *fresh.command("salvage", volume.url, "--mount", fresh.mnt, "-o", "memory_cache=1M"),
        env=fresh.environ,
    )
    eventually(lambda: is_mounted(fresh.mnt), within=30)
    chance = random.Random(10)
    fd = os.open(fresh.mnt / "large", os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(300):
            offset = chance.randrange(len(data))
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(fd, 4096, offset) == data[offset : offset + 4096]
    finally:
        os.close(fd)
    rescue.send_signal(signal.SIGINT)
    assert rescue.wait(30) == 0
