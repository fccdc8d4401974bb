"""mount.megafs: mount(8), umount(8) and fstab options."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megafs.mount.processes import is_running
from tests.mount.machine import Machine, is_mounted

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="mount(8) is for root"),
]

ROOT = Path(__file__).parents[2]
SBIN = Path("/sbin")


def script(path: Path) -> Path:
    """Make what an installation makes of the entry point, as a program called *path*."""
    path.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from megafs.cli.mount_helper import main\n"
        "main()\n"
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def helpers(tmp_path: Path) -> Iterator[None]:
    """mount.megafs and umount.fuse.megafs where mount(8) and umount(8) look, during the test."""
    made = []
    for name in ("mount.megafs", "umount.fuse.megafs"):
        link = SBIN / name
        if link.exists():
            continue
        link.symlink_to(script(tmp_path / name))
        made.append(link)
    yield
    for link in made:
        link.unlink()


def mount(machine: Machine, *args: str, code: int = 0) -> str:
    """Run mount(8) and return what it says."""
    done = subprocess.run(
        ["mount", *args],
        env=machine.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        start_new_session=True,
    )
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.mark.usefixtures("helpers")
def test_mount_and_umount(volume: Machine) -> None:
    options = "rw,_netdev,nofail,x-systemd.automount,noatime,fsync=local"
    mount(volume, "-t", "megafs", "-o", options, volume.url, str(volume.mnt))
    assert is_mounted(volume.mnt)
    pid = volume.pid
    (volume.mnt / "f").write_bytes(os.urandom(1 << 20))
    subprocess.run(["umount", volume.mnt], env=volume.environ, check=True)
    # The helper has waited for the store.
    assert not is_running(pid)
    assert not is_mounted(volume.mnt)


@pytest.mark.usefixtures("helpers")
def test_fstab(volume: Machine, place: Path) -> None:
    passphrase = place / "pass"
    passphrase.write_text(volume.environ.pop("MEGAFS_PASSPHRASE") + "\n")
    passphrase.chmod(0o600)
    fstab = place / "fstab"
    fstab.write_text(
        f"{volume.url} {volume.mnt} megafs"
        f" noauto,_netdev,nofail,ro,allow_other,passphrase_file={passphrase} 0 0\n"
    )
    mount(volume, "-T", str(fstab), str(volume.mnt))
    assert is_mounted(volume.mnt)
    with pytest.raises(OSError, match="Read-only"):
        (volume.mnt / "f").touch()
    volume.umount()


@pytest.mark.usefixtures("helpers")
def test_all_of_fstab(volume: Machine, place: Path) -> None:
    fstab = place / "fstab"
    fstab.write_text(f"{volume.url} {volume.mnt} megafs defaults,_netdev 0 0\n")
    mount(volume, "-a", "-T", str(fstab))
    assert is_mounted(volume.mnt)
    mount(volume, "-a", "-T", str(fstab))  # again, and nothing happens
    volume.umount()


@pytest.mark.usefixtures("helpers")
@pytest.mark.parametrize(
    ("options", "environ", "code", "sentence"),
    [
        ("nonsense", {}, 1, "unknown option 'nonsense'"),
        ("remount", {}, 1, "cannot be changed while it runs"),
        ("rw", {"MEGAFS_PASSPHRASE": "wrong"}, 32, "passphrase is wrong"),
    ],
)
def test_refused(
    volume: Machine, options: str, environ: dict[str, str], code: int, sentence: str
) -> None:
    volume.environ.update(environ)
    said = mount(volume, "-t", "megafs", "-o", options, volume.url, str(volume.mnt), code=code)
    assert sentence in said
    assert not is_mounted(volume.mnt)


@pytest.mark.usefixtures("helpers")
def test_it_never_asks_without_a_terminal(volume: Machine) -> None:
    del volume.environ["MEGAFS_PASSPHRASE"]
    said = mount(volume, "-t", "megafs", volume.url, str(volume.mnt), code=1)
    assert "no terminal to ask" in said


@pytest.mark.usefixtures("helpers")
def test_sloppy_and_fake(volume: Machine) -> None:
    said = mount(volume, "-s", "-t", "megafs", "-o", "nonsense", volume.url, str(volume.mnt))
    assert "warning: unknown option 'nonsense'" in said
    volume.umount()
    mount(volume, "-f", "-t", "megafs", volume.url, str(volume.mnt))
    assert not is_mounted(volume.mnt)
