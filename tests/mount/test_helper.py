"""mount.megafs: mount(8), umount(8) and fstab options."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from megafs.mount.processes import is_running, wait_for_end
from tests.mount.machine import Machine, is_mounted
from tests.mount.machine_wide import alone

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
    with alone("mount-helpers"):
        for name in ("mount.megafs", "mount.fuse.megafs", "umount.fuse.megafs"):
            link = SBIN / name
            if link.exists():
                continue
            link.unlink(missing_ok=True)  # of tests that were killed
            link.symlink_to(script(tmp_path / name))
            made.append(link)
        try:
            yield
        finally:
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


def said_by(*command: str | Path) -> str:
    """What a program prints that must end well and complain of nothing."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.usefixtures("helpers")
def test_no_program_takes_the_mount_for_a_remote_one(volume: Machine) -> None:
    """du and df look for a colon in the source."""
    volume.mount()
    for number in range(3):
        (volume.mnt / f"{number}" / "deep").mkdir(parents=True)
        (volume.mnt / f"{number}" / "file").write_bytes(bytes(5000))
    source = said_by("findmnt", "-no", "SOURCE", volume.mnt).strip()
    assert ":" not in source
    assert urllib.parse.unquote(source) == volume.url
    assert source in said_by("df", "-l", "--output=source").split()
    assert said_by("du", "-a", volume.mnt).count("file") == 3
    said_by("du", "-x", "--apparent-size", volume.mnt, volume.mnt / "0")
    assert volume.status()["url"] == volume.url
    assert volume.url in volume.mount(code=18).stderr
    volume.umount()


@pytest.mark.usefixtures("helpers")
def test_what_is_mounted_already_is_not_an_error_to_mount(volume: Machine) -> None:
    mount(volume, "-t", "megafs", volume.url, str(volume.mnt))
    pid = volume.pid
    assert mount(volume, "-t", "megafs", volume.url, str(volume.mnt)) == ""
    said = mount(volume, "-v", "-t", "megafs", volume.url, str(volume.mnt))
    assert "is mounted at" in said
    assert volume.pid == pid
    assert Path("/proc/self/mountinfo").read_text().count(f" {volume.mnt} ") == 1
    # Another volume is one.
    said = mount(volume, "-t", "megafs", volume.url + "-other", str(volume.mnt), code=32)
    assert "is mounted already" in said
    volume.umount()
    assert wait_for_end(pid, 20)


@pytest.mark.usefixtures("helpers")
@pytest.mark.parametrize("options", ["defaults,noatime", "_netdev,nofail", "fsname=home"])
def test_mounting_all_again_changes_nothing(volume: Machine, place: Path, options: str) -> None:
    fstab = place / "fstab"
    fstab.write_text(f"{volume.url} {volume.mnt} megafs {options} 0 0\n")
    mount(volume, "-a", "-T", str(fstab))
    pid = volume.pid
    assert mount(volume, "-a", "-T", str(fstab)) == ""
    assert volume.pid == pid
    assert Path("/proc/self/mountinfo").read_text().count(f" {volume.mnt} ") == 1
    volume.umount()


@pytest.mark.usefixtures("helpers")
def test_remount(volume: Machine) -> None:
    volume.mount()
    (volume.mnt / "f").write_text("written")
    mount(volume, "-o", "remount,ro", str(volume.mnt))
    with pytest.raises(OSError, match="Read-only"):
        (volume.mnt / "g").touch()
    with pytest.raises(OSError, match="Read-only"):
        (volume.mnt / "f").write_text("again")
    options = said_by("findmnt", "-no", "OPTIONS", volume.mnt).strip().split(",")
    assert {"ro", "nosuid", "nodev"} <= set(options)
    assert (volume.mnt / "f").read_text() == "written"
    mount(volume, "-o", "remount,rw,noexec", str(volume.mnt))
    (volume.mnt / "g").write_text("now")
    options = said_by("findmnt", "-no", "OPTIONS", volume.mnt).strip().split(",")
    assert {"rw", "nosuid", "nodev", "noexec"} <= set(options)
    with (volume.mnt / "g").open("a"):
        said = mount(volume, "-o", "remount,ro", str(volume.mnt), code=32)
        assert "open for writing" in said
    said = mount(volume, "-o", "remount,rw,cache_size=1G", str(volume.mnt))
    assert "as it was mounted: cache_size" in said
    volume.umount()


@pytest.mark.usefixtures("helpers")
def test_what_was_mounted_read_only_stays_so(volume: Machine) -> None:
    volume.mount("-o", "ro")
    said = mount(volume, "-o", "remount,rw", str(volume.mnt), code=1)
    assert "was mounted with -o ro" in said
    with pytest.raises(OSError, match="Read-only"):
        (volume.mnt / "f").touch()
    mount(volume, "-o", "remount,ro", str(volume.mnt))
    volume.umount()


@pytest.mark.usefixtures("helpers")
def test_the_whole_name_of_the_type(volume: Machine) -> None:
    mount(volume, "-t", "fuse.megafs", "-o", "fsync=local", volume.url, str(volume.mnt))
    assert is_mounted(volume.mnt)
    assert said_by("findmnt", "-no", "FSTYPE", volume.mnt).strip() == "fuse.megafs"
    pid = volume.pid
    # Both at once: ended, and taken away.
    with pytest.raises(OSError, match="not connected"), (volume.mnt / "held").open("w"):
        subprocess.run(["umount", "-l", "-f", volume.mnt], env=volume.environ, check=True)
        assert not is_mounted(volume.mnt)
    assert wait_for_end(pid, 20)


@pytest.mark.parametrize("order", [("--lazy", "--force"), ("--force", "--lazy")])
def test_force_is_the_stronger_of_lazy_and_force(volume: Machine, order: tuple[str, str]) -> None:
    volume.mount("-o", "fsync=local")
    pid = volume.pid
    with pytest.raises(OSError, match="not connected"), (volume.mnt / "held").open("w"):
        volume.umount(*order)
        assert not is_mounted(volume.mnt)
        assert wait_for_end(pid, 20)
