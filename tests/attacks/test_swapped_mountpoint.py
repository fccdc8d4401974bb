"""Who may write to a directory above a mountpoint cannot have root mount over something else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from megafs.errors import MountFailed
from megafs.mount import mountpoint
from megafs.mount.fuse import KernelMount, Presentation
from tests.fakes.memfs import MemoryFS
from tests.mount.conftest import Processes, machine, mounts_below, place, processes, volume
from tests.mount.machine import PASSPHRASE, Machine, eventually

__all__ = ["machine", "place", "processes", "volume"]

pytestmark = [pytest.mark.fuse, pytest.mark.skipif(os.geteuid() != 0, reason="mounts as root")]


def _link(at: Path, decoy: Path) -> None:
    at.rename(at.with_name("moved"))
    at.symlink_to(decoy)


def _other(at: Path, decoy: Path) -> None:
    at.rename(at.with_name("moved"))
    at.mkdir()


def _decoy(at: Path, decoy: Path) -> None:
    at.rename(at.with_name("moved"))
    decoy.rename(at)


SWAPS = [_link, _other, _decoy]


@pytest.mark.parametrize("swap", SWAPS)
def test_while_the_passphrase_is_typed(
    volume: Machine, place: Path, processes: Processes, swap: Callable[[Path, Path], None]
) -> None:
    decoy = place / "decoy"
    decoy.mkdir()
    asked, answer = place / "asked", place / "answer"
    typing = f"touch {asked}; while ! [ -e {answer} ]; do sleep 0.05; done; echo {PASSPHRASE}"
    environ = {k: v for k, v in volume.environ.items() if k != "MEGAFS_PASSPHRASE"}
    mounting = processes.start(
        *volume.command("mount", volume.url, volume.mnt, "--passphrase-command", typing),
        env=environ,
    )
    eventually(asked.exists, within=30)
    swap(volume.mnt, decoy)
    answer.touch()
    _, said = mounting.communicate(timeout=60)
    assert mounting.returncode == 32, said
    assert f"{volume.mnt} was replaced while the mount was being made" in said
    assert mounts_below(place) == []
    assert volume.records() == []


@pytest.mark.parametrize("by_name", [False, True], ids=["by descriptor", "by name"])
@pytest.mark.parametrize("swap", SWAPS)
async def test_in_the_moment_of_the_mount(
    place: Path, swap: Callable[[Path, Path], None], by_name: bool
) -> None:
    """by name: as fusermount3 does it."""
    at, decoy = place / "mnt", place / "decoy"
    at.mkdir()
    decoy.mkdir()
    seen = mountpoint.check(str(at), nonempty=False)
    options = ("subtype=megafs", "fsname=megafs-test")
    kernel = KernelMount(MemoryFS(), str(at), Presentation(), options)  # type: ignore[arg-type]
    with (
        pytest.raises(MountFailed, match="was replaced"),
        mountpoint.pinned(str(at), seen, "megafs-test") as path,
    ):
        swap(at, decoy)
        kernel.open(str(at) if by_name else path)
        assert mounts_below(place) != []
    kernel.close(unmount=False)
    assert mounts_below(place) == []


def test_a_mountpoint_that_stays_is_mounted_on(volume: Machine) -> None:
    volume.mount()
    assert subprocess.run(["mountpoint", "-q", volume.mnt], check=False).returncode == 0
    volume.umount()
    assert mounts_below(volume.mnt) == []
