"""While nothing is mounted, nothing is written into a guarded mountpoint by accident."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from megafs.mount import guard, mountpoint
from megafs.mount.mountpoint import Directory
from tests.mount.machine import Machine, is_mounted


@pytest.fixture
def unguarded(place: Path) -> Iterator[None]:
    """What a test has made immutable can be removed after it."""
    yield
    for path in (place / "a" / "mnt", place / "dir"):
        if path.is_dir():
            subprocess.run(["chattr", "-i", path], capture_output=True, check=False)
            path.chmod(0o755)


def is_immutable(path: Path) -> bool:
    done = subprocess.run(["lsattr", "-d", path], capture_output=True, text=True, check=False)
    return done.returncode == 0 and "i" in done.stdout.split()[0]


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize("how", [["--guard"], ["-o", "guard"]])
def test_a_guarded_mountpoint_takes_nothing_while_unmounted_and_mounts_again(
    volume: Machine, how: list[str]
) -> None:
    volume.mount(*how)
    (volume.mnt / "file").write_bytes(b"in the volume")
    volume.umount()

    if is_immutable(volume.mnt):
        with pytest.raises(PermissionError):
            (volume.mnt / "file").write_bytes(b"beside it")
    else:
        assert stat.S_IMODE(volume.mnt.stat().st_mode) == 0
    assert not list(volume.mnt.iterdir())

    for again in ([], how):
        volume.mount(*again)
        assert (volume.mnt / "file").read_bytes() == b"in the volume"
        volume.umount()
        assert not is_mounted(volume.mnt)
        assert is_immutable(volume.mnt) or stat.S_IMODE(volume.mnt.stat().st_mode) == 0


@pytest.mark.usefixtures("unguarded")
def test_where_the_flag_cannot_be_set_the_mode_is_000_and_the_log_says_what_that_stops(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = place / "dir"
    directory.mkdir()
    monkeypatch.setattr(guard, "_SETFLAGS", 0)  # which no filesystem knows
    found = directory.stat()
    with guard.guarding(str(directory), Directory(found.st_dev, found.st_ino)):
        pass
    assert stat.S_IMODE(directory.stat().st_mode) == 0
    assert "root can write into it all the same" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_users_directory_of_mode_000_is_lifted_for_the_mount_and_locked_after_it(
    place: Path,
) -> None:
    directory = place / "dir"
    directory.mkdir(mode=0o700)
    os.chown(directory, 4711, 4711)
    directory.chmod(0)
    for path in (place, *place.parents):
        if path != Path("/") and path.stat().st_uid == 0 and str(path).startswith("/tmp/"):
            path.chmod(path.stat().st_mode | 0o055)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgid(4711)
            os.setuid(4711)
            os.umask(0o022)
            with guard.lifted(str(directory)):
                mountpoint.check(str(directory), nonempty=False)
            code = 0 if stat.S_IMODE(os.stat(directory).st_mode) == 0 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert stat.S_IMODE(directory.stat().st_mode) == 0
