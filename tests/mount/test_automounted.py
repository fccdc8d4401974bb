"""Below autofs, as x-systemd.automount and automount(8) have it: whoever looks into the mountpoint
waits for the mount, and only the process group of whoever mounts does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.conftest import Processes
from tests.mount.machine import Machine
from tests.mount.namespace import Namespace

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts autofs"),
    pytest.mark.skipif(
        "autofs" not in Path("/proc/filesystems").read_text(), reason="this kernel has no autofs"
    ),
]

DAEMON = Path(__file__).with_name("autofs_daemon.py")


def automounted(volume: Machine, namespace: Namespace, *how: str | Path) -> str:
    """Put a file into the volume; mount it below autofs as *how* says, look, and unmount it."""
    volume.mount()
    (volume.mnt / "here").touch()
    volume.umount()
    umount = subprocess.list2cmdline(volume.command("umount", volume.mnt))
    # In one process that outlives the automounter, whose autofs ends with it.
    script = f'"$@"; {umount}'
    daemon = [sys.executable, str(DAEMON)]
    done = namespace.run(volume.environ, "sh", "-c", script, "sh", *daemon, *how, timeout=150)
    assert not namespace.is_mounted(volume.mnt)
    return done.stdout + done.stderr


def test_whoever_looks_waits_for_the_mount(
    volume: Machine, place: Path, processes: Processes
) -> None:
    namespace = Namespace(place, processes)
    mount = ["mount", "-t", "megafs", volume.url, str(volume.mnt)]
    assert "code 0\nseen here\n" in automounted(volume, namespace, volume.mnt, *mount)


@pytest.mark.parametrize("options", ["defaults", "_netdev,x-systemd.automount"])
def test_all_of_fstab(volume: Machine, place: Path, processes: Processes, options: str) -> None:
    """By whoever is asked for the mount."""
    fstab = f"{volume.url} {volume.mnt} megafs {options} 0 0\n"
    namespace = Namespace(place, processes, fstab=fstab)
    assert "code 0\nseen here\n" in automounted(volume, namespace, volume.mnt, "mount", "-a")


def test_all_of_fstab_by_hand(volume: Machine, place: Path, processes: Processes) -> None:
    """By root at a shell: it asks nothing of the mountpoint before the mount lies there."""
    fstab = f"{volume.url} {volume.mnt} megafs defaults 0 0\n"
    namespace = Namespace(place, processes, fstab=fstab)
    said = automounted(volume, namespace, "--by-hand", volume.mnt, "mount", "-a")
    assert said.startswith("code 0\nseen here\n"), said
