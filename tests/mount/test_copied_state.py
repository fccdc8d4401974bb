"""A state directory that was copied to another machine while it held what no store had yet."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.machine import Machine, eventually


@pytest.fixture
def copied(place: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two machines with one state directory each, the second a copy of the first.

    The first was killed with ten synced files that the store does not have.
    """
    one = Machine(place)
    one.format()
    two = Machine(place, "b", url=one.url)
    try:
        one.mount("-o", "fsync=local,sync_interval=3600")
        for n in range(20):
            _write(one.mnt / f"before {n}", b"staged %d" % n)
        one.kill()
        subprocess.run(["umount", "-l", one.mnt], check=False, capture_output=True)
        shutil.copytree(one.place / "state", two.place / "state", symlinks=True)
        yield one, two
    finally:
        one.kill()
        two.kill()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def test_what_both_write_is_everywhere(copied: tuple[Machine, Machine]) -> None:
    one, two = copied
    expected = {f"before {n}": b"staged %d" % n for n in range(20)}
    one.mount()
    two.mount()
    assert one.status()["mount_id"] != two.status()["mount_id"]
    for n in range(20):
        machine = (one, two)[n % 2]
        _write(machine.mnt / f"after {n}", b"from %s %d" % (machine.place.name.encode(), n))
        expected[f"after {n}"] = (machine.mnt / f"after {n}").read_bytes()

    def seen(machine: Machine) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in machine.mnt.iterdir()}

    eventually(lambda: seen(one) == seen(two) == expected, within=30)
    said = [line["text"] for m in (one, two) for line in m.status()["conflicts"]]
    assert any("state directory" in line for line in said), said
    one.run("fsck", one.mnt)
    one.run("scrub", one.mnt)
    one.umount()
    two.umount()
    three = Machine(one.place.parent, "c", url=one.url)
    try:
        three.mount()
        assert seen(three) == expected
        three.umount()
    finally:
        three.kill()
