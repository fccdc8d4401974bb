"""A directory that is in use here, as a working directory or under a mount, renamed elsewhere."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.machine import Machine, eventually

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.timeout(150),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts"),
]


@pytest.fixture
def both(volume: Machine, place: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two machines with one volume, both mounted."""
    other = Machine(place, "other", volume.url)
    for machine in (volume, other):
        machine.mount("-o", "fsync=local,sync_interval=200ms")
    yield volume, other
    other.kill()


def test_a_working_directory_goes_along(both: tuple[Machine, Machine]) -> None:
    one, other = both
    (one.mnt / "d" / "sub").mkdir(parents=True)
    (one.mnt / "d" / "sub" / "f").write_text("text")
    eventually((other.mnt / "d" / "sub" / "f").exists)
    at, pipe = other.mnt / "d" / "sub", subprocess.PIPE
    shell = subprocess.Popen(["sh"], cwd=at, stdin=pipe, stdout=pipe, text=True)
    assert shell.stdin is not None
    assert shell.stdout is not None

    def says(command: str) -> str:
        assert shell.stdin is not None
        assert shell.stdout is not None
        print(command, file=shell.stdin, flush=True)
        return shell.stdout.readline().rstrip("\n")

    assert says("cat f; echo") == "text"
    (one.mnt / "d").rename(one.mnt / "renamed")
    eventually(lambda: not (other.mnt / "d").exists())
    # What is named from it is found, and made, where it is now.
    assert says("cat f; echo") == "text"
    assert says("echo more > new && cat new") == "more"
    eventually((one.mnt / "renamed" / "sub" / "new").exists)
    # The kernel learns its new name when somebody looks it up.
    assert os.listdir(other.mnt / "renamed") == ["sub"]
    assert says("/bin/pwd") == str(other.mnt / "renamed" / "sub")
    assert says("ls ..") == "sub"
    shell.stdin.close()
    shell.stdout.close()
    assert shell.wait(20) == 0
    for machine in (one, other):
        machine.umount()


def test_a_mount_below_goes_along_or_is_taken_away(both: tuple[Machine, Machine]) -> None:
    """Whichever name is looked up first decides, as on NFS; nothing else is harmed."""
    one, other = both
    (one.mnt / "d" / "point").mkdir(parents=True)
    eventually((other.mnt / "d" / "point").is_dir)
    subprocess.run(["mount", "-t", "tmpfs", "below", other.mnt / "d" / "point"], check=True)
    (other.mnt / "d" / "point" / "inside").write_text("in the tmpfs")
    (one.mnt / "d").rename(one.mnt / "renamed")
    there = other.mnt / "renamed" / "point"
    eventually(there.is_dir)
    found = os.listdir(there)
    assert found in (["inside"], [])
    assert os.listdir(one.mnt / "renamed" / "point") == []
    if found:
        assert f" {there} " in Path("/proc/self/mountinfo").read_text()
        subprocess.run(["umount", there], check=True)
    (there / "written").write_text("here")
    eventually((one.mnt / "renamed" / "point" / "written").exists)
    for machine in (one, other):
        machine.umount()
