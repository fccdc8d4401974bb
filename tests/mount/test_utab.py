"""What systemd, findmnt and umount(8) find of a mount through libmount: options and source."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megafs.errors import MountFailed
from megafs.mount import source, utab
from megafs.mount.attachment import Attachment
from megafs.mount.mountpoint import Directory
from tests.mount.conftest import Processes
from tests.mount.machine import Machine
from tests.mount.namespace import Namespace

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may write utab"),
]

OTHERS = "SRC=/dev/sdb1 TARGET=/mnt/other\\040place ROOT=/ OPTS=x-gvfs-show"


def test_lines_of_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "utab"
    file.write_text(OTHERS + "\n")
    utab.note("s3%3A//b/p q#", "/mnt/a b", ["_netdev", "x-a=\\"], tmp_path)
    ours = "SRC=s3%3A//b/p\\040q\\043 TARGET=/mnt/a\\040b ROOT=/ OPTS=_netdev,x-a=\\134"
    assert file.read_text().splitlines() == [OTHERS, ours]
    assert file.stat().st_mode & 0o777 == 0o644
    utab.note("s3%3A//b/p q#", "/mnt/a b", ["_netdev"], tmp_path)
    assert len(file.read_text().splitlines()) == 2
    utab.note("s3%3A//b/p q#", "/mnt/c", ["_netdev"], tmp_path)
    utab.forget("/mnt/a b", {"s3%3A//b/p q#", "s3://b/p q#"}, tmp_path)
    kept = "SRC=s3%3A//b/p\\040q\\043 TARGET=/mnt/c ROOT=/ OPTS=_netdev"
    assert file.read_text().splitlines() == [OTHERS, kept]


def test_what_cannot_be_written_is_said_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    utab.note("a", "/b", ["_netdev"], tmp_path / "file")
    assert "could not be changed" in caplog.text


class RefusingKernel:
    """Does not mount, and notes what utab says when it should."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.seen = ""

    def open(self, path: str) -> None:
        self.seen = self._file.read_text()
        raise MountFailed("refused")


def test_the_line_is_there_before_the_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd looks at once."""
    monkeypatch.setattr(utab, "DIRECTORY", tmp_path)
    at = tmp_path / "mnt"
    at.mkdir()
    found = at.stat()
    kernel = RefusingKernel(tmp_path / "utab")
    attachment = Attachment(
        kernel,  # type: ignore[arg-type]
        str(at),
        Directory(found.st_dev, found.st_ino),
        "s3%3A//b/p",
        netdev=True,
        url="s3://b/p",
    )
    with pytest.raises(MountFailed):
        attachment.open()
    assert kernel.seen == f"SRC=s3%3A//b/p TARGET={at} ROOT=/ OPTS=_netdev\n"
    assert (tmp_path / "utab").read_text() == ""


@pytest.fixture
def namespace(volume: Machine, place: Path, processes: Processes) -> Namespace:
    return Namespace(place, processes)


def _utab(volume: Machine, namespace: Namespace) -> str:
    return namespace.run(volume.environ, "cat", "/run/mount/utab").stdout


@pytest.mark.fuse
@pytest.mark.parametrize("how", ["umount", "megafs"])
def test_netdev_is_shown_while_it_is_mounted(
    volume: Machine, namespace: Namespace, how: str
) -> None:
    options = "_netdev,noatime,fsync=local"
    namespace.run(volume.environ, "mount", "-t", "megafs", "-o", options, volume.url, volume.mnt)
    shown = namespace.run(volume.environ, "findmnt", "-mno", "OPTIONS", volume.mnt).stdout
    assert "_netdev" in shown.strip().split(",")
    listed = namespace.run(volume.environ, "findmnt", "-mno", "TARGET", "-O", "_netdev").stdout
    assert listed.split() == [str(volume.mnt)]
    umount = ["umount"] if how == "umount" else volume.command("umount")
    namespace.run(volume.environ, *umount, volume.mnt)
    assert not namespace.is_mounted(volume.mnt)
    assert _utab(volume, namespace) == ""


@pytest.mark.fuse
def test_umount_by_source(volume: Machine, namespace: Namespace) -> None:
    """umount(8) compares with what the kernel shows; megafs umount takes the URL."""
    mount = ["mount", "-t", "megafs", volume.url, str(volume.mnt)]
    namespace.run(volume.environ, *mount)
    namespace.run(volume.environ, "umount", source.of_url(volume.url))
    assert not namespace.is_mounted(volume.mnt)
    namespace.run(volume.environ, *mount)
    said = namespace.run(volume.environ, "umount", volume.url, code=32)
    assert "no mount point specified" in said.stderr
    namespace.run(volume.environ, *volume.command("umount", volume.url))
    assert not namespace.is_mounted(volume.mnt)


@pytest.mark.fuse
@pytest.mark.parametrize("options", ["fsync=local", "fsname=home"])
def test_commands_take_the_url_of_what_is_mounted(volume: Machine, options: str) -> None:
    volume.mount("-o", options)
    assert str(volume.mnt) in volume.run("status", volume.url).stdout
    assert str(volume.mnt) in volume.run("status", volume.url + "/").stdout
    said = volume.run("umount", volume.url + "-other", code=2).stderr
    assert f"no volume of the URL {volume.url}-other is mounted" in said
    volume.run("umount", volume.url)
    assert not os.path.ismount(volume.mnt)
    volume.run("umount", volume.url, code=2)


@pytest.mark.fuse
def test_a_volume_that_is_mounted_twice_is_named_by_its_mountpoint(
    volume: Machine, place: Path
) -> None:
    again = place / "again"
    again.mkdir()
    volume.mount()
    volume.run("mount", volume.url, again, "--state-dir", place / "other state")
    said = volume.run("umount", volume.url, code=2).stderr
    assert f"is mounted at {volume.mnt} and {again}: say which of them" in said
    volume.run("umount", again)
    volume.run("umount", volume.url)
