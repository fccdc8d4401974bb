"""overlayfs with its upper layer on a mount: what containers and live systems do."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs.conftest import Disk, run, sh

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.timeout(150),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts"),
]

#: Nothing of it depends on the store.
STORES = ["file"]

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


def renameat2(old: Path, new: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def is_whiteout(path: Path) -> bool:
    seen = path.lstat()
    return stat.S_ISCHR(seen.st_mode) and seen.st_rdev == 0


def test_a_rename_can_leave_a_whiteout(here: Path) -> None:
    (here / "a").write_text("a")
    renameat2(here / "a", here / "b", WHITEOUT)
    assert (here / "b").read_text() == "a"
    assert is_whiteout(here / "a")
    (here / "c").write_text("c")
    renameat2(here / "c", here / "b", WHITEOUT)
    assert (here / "b").read_text() == "c"
    assert is_whiteout(here / "c")
    (here / "d").mkdir()
    (here / "sub").mkdir()
    renameat2(here / "d", here / "sub" / "d", WHITEOUT | NOREPLACE)
    assert is_whiteout(here / "d")
    assert (here / "sub" / "d").is_dir()
    assert here.stat().st_nlink == 3
    for flags, number in (
        (WHITEOUT | NOREPLACE, errno.EEXIST),
        (WHITEOUT | EXCHANGE, errno.EINVAL),
    ):
        with pytest.raises(OSError) as caught:
            renameat2(here / "b", here / "a", flags)
        assert caught.value.errno == number
    assert sorted(os.listdir(here)) == ["a", "b", "c", "d", "sub"]


class Overlay:
    """An overlay whose upper and work directory lie on the disk, its lower on this machine."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.lower = disk.place / "lower"
        self.merged = disk.place / "merged"
        for path in (self.lower, self.merged):
            path.mkdir()

    @property
    def upper(self) -> Path:
        return self._disk.mnt / "upper"

    def mount(self, *options: str) -> None:
        for name in ("upper", "work"):
            (self._disk.mnt / name).mkdir(exist_ok=True)
        said = ",".join(
            (f"lowerdir={self.lower}", f"upperdir={self.upper}",
             f"workdir={self._disk.mnt / 'work'}", *options)
        )  # fmt: skip
        run("mount", "-t", "overlay", "overlay", "-o", said, self.merged)

    def umount(self) -> None:
        run("umount", self.merged)


@pytest.fixture
def overlay(own_disk: Disk) -> Iterator[Overlay]:
    own_disk.mount("-o", "allow_other")
    made = Overlay(own_disk)
    if (
        "overlay" not in Path("/proc/filesystems").read_text()
        and subprocess.run(["modprobe", "overlay"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this kernel has no overlayfs")
    probe = own_disk.place / "probe"
    for name in ("l", "u", "w", "m"):
        (probe / name).mkdir(parents=True)
    script = (
        "mount -t tmpfs t u && mkdir u/u u/w &&"
        " mount -t overlay o -o lowerdir=l,upperdir=u/u,workdir=u/w m"
    )
    tried = subprocess.run(["sh", "-c", script], cwd=probe, capture_output=True, check=False)
    subprocess.run(["umount", "m"], cwd=probe, capture_output=True, check=False)
    subprocess.run(["umount", "u"], cwd=probe, capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("overlays cannot be mounted here")
    yield made
    subprocess.run(["umount", "-l", made.merged], capture_output=True, check=False)


def test_an_overlay_with_its_upper_layer_here(own_disk: Disk, overlay: Overlay) -> None:
    lower, merged = overlay.lower, overlay.merged
    sh(
        "echo kept > kept; echo gone > gone; echo changed > changed; echo moved > moved;"
        " mkdir -p d/sub gone.d again.d move.d; echo 1 > d/sub/f; echo 2 > gone.d/f;"
        " echo 3 > again.d/old; echo 4 > move.d/f; ln -s kept link",
        cwd=lower,
    )
    overlay.mount("redirect_dir=on")
    sh(
        "echo more >> changed; echo new > new; rm gone; rm -r gone.d; mv moved elsewhere;"
        " rm -r again.d; mkdir again.d; echo 5 > again.d/new; mv move.d moved.d;"
        " mv d/sub/f d/f; chmod 600 kept; ln new hard; mkfifo pipe; rm link",
        cwd=merged,
    )

    def check() -> None:
        found = sh("find . -printf '%P %y\\n' | sort", cwd=merged)
        assert found.split("\n") == [
            " d", "again.d d", "again.d/new f", "changed f", "d d", "d/f f", "d/sub d",
            "elsewhere f", "hard f", "kept f", "moved.d d", "moved.d/f f", "new f", "pipe p", "",
        ]  # fmt: skip
        assert (merged / "changed").read_text() == "changed\nmore\n"
        assert (merged / "elsewhere").read_text() == "moved\n"
        assert (merged / "moved.d" / "f").read_text() == "4\n"
        assert (merged / "kept").stat().st_mode & 0o777 == 0o600
        assert (merged / "hard").read_text() == "new\n"

    check()
    for name in ("gone", "gone.d", "moved", "move.d", "link"):
        assert is_whiteout(overlay.upper / name), name
    assert os.getxattr(overlay.upper / "again.d", "trusted.overlay.opaque") == b"y"
    assert os.getxattr(overlay.upper / "moved.d", "trusted.overlay.redirect") == b"move.d"
    overlay.umount()
    overlay.mount("redirect_dir=on")
    check()
    overlay.umount()
    # Another machine has the same layer.
    own_disk.move("-o", "allow_other")
    overlay.mount("redirect_dir=on")
    check()
    (merged / "gone").write_text("back\n")
    assert (merged / "gone").read_text() == "back\n"
    overlay.umount()


def test_a_whiteout_and_its_rename_survive_together(own_disk: Disk) -> None:
    """The two operations are one batch: kill -9 and a new machine see both."""
    own_disk.mount("-o", "fsync=local")
    mnt = own_disk.mnt
    for n in range(200):
        (mnt / f"{n}").write_text("x")
    for n in range(200):
        renameat2(mnt / f"{n}", mnt / f"new{n}", WHITEOUT)
    os.sync()
    own_disk.crash()
    own_disk.machine.umount("--force")
    own_disk.mount("-o", "fsync=local")
    names = set(os.listdir(mnt))
    for n in range(200):
        assert (f"new{n}" in names) == is_whiteout(mnt / f"{n}")
    own_disk.umount()
