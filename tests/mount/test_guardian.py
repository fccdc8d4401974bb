"""Killed, a mount ends, whatever its threads wait for in the kernel; and so do its users."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megafs.mount import connection
from tests.mount.conftest import Processes, mounts_below
from tests.mount.machine import Machine, eventually, is_mounted
from tests.mount.machine_wide import device_for_all

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="aborts what hangs, and becomes another user"),
]


class Hanging:
    """A mount one of whose threads waits in the kernel for what a program holds that waits for it.

    mount, guardian, user: the process, its guardian's, the program's.
    """

    def __init__(self, path: Path, processes: Processes, *command: str | Path) -> None:
        self.path = path
        process = processes.start(*command, stderr=None)
        self.mount = process.pid
        assert process.stdout is not None
        self.guardian, self.user = map(int, process.stdout.readline().split())
        for pid in (self.guardian, self.user):
            processes.add(pid)
        self.connection = os.minor(_device(self.mount, path))

    def kill(self) -> None:
        os.kill(self.mount, signal.SIGKILL)

    def close(self) -> None:
        """End it, whatever the test has shown: nothing that cannot be killed is left."""
        self.kill()
        with contextlib.suppress(FileNotFoundError):  # the connection has ended
            abort = connection.open_abort(self.connection)
            os.write(abort, b"1")
            os.close(abort)

    def ends(self, within: float) -> bool:
        """Whether every thread of the mount, and its user, have ended in time."""
        deadline = time.monotonic() + within
        while not (has_ended(self.mount) and has_ended(self.user)):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def _device(pid: int, path: Path) -> int:
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(path):
            major, minor = fields[2].split(":")
            return os.makedev(int(major), int(minor))
    raise AssertionError(f"nothing is mounted at {path}")


def states(pid: int) -> str:
    """The state of each thread of process *pid*, as proc(5) has it."""
    try:
        return "".join(
            (task / "stat").read_text().rpartition(")")[2].split()[0]
            for task in Path(f"/proc/{pid}/task").iterdir()
        )
    except (FileNotFoundError, ProcessLookupError):
        return ""


def has_ended(pid: int) -> bool:
    """Whether all threads of process *pid* have; who started it may not have heard of it yet."""
    return states(pid) in ("", "Z")


@pytest.fixture
def hang(processes: Processes) -> Iterator[Callable[..., Hanging]]:
    """hang(path, *command): a mount at *path*, made by *command*."""
    made: list[Hanging] = []

    def start(path: Path, *command: str | Path) -> Hanging:
        made.append(Hanging(path, processes, *command))
        return made[-1]

    yield start
    for hanging in made:
        hanging.close()


HANGING = [sys.executable, "-m", "tests.mount.hanging_mount"]


@pytest.fixture
def hanging(place: Path, hang: Callable[..., Hanging]) -> Hanging:
    return hang(place, *HANGING, place)


def test_kill_9_of_a_mount_that_tells_the_kernel_news(hanging: Hanging) -> None:
    hanging.kill()
    assert hanging.ends(within=10)
    eventually(lambda: has_ended(hanging.guardian))
    # What programs write now must not land in the directory below.
    assert is_mounted(hanging.path)
    with pytest.raises(OSError, match="not connected"):
        os.listdir(hanging.path)


def test_without_fusectl(place: Path, hang: Callable[..., Hanging]) -> None:
    hanging = hang(place, *HANGING, place, "no-fusectl")
    hanging.kill()
    assert hanging.ends(within=10)
    eventually(lambda: has_ended(hanging.guardian))
    assert is_mounted(hanging.path)


def test_without_its_guardian_it_hangs_until_somebody_aborts(hanging: Hanging) -> None:
    os.kill(hanging.guardian, signal.SIGKILL)
    hanging.kill()
    if hanging.ends(within=3):
        pytest.skip("this kernel tells news of names without the lock of their directory")
    assert "D" in states(hanging.mount)
    assert connection.force(str(hanging.path))
    assert hanging.ends(within=10)
    assert is_mounted(hanging.path)


def test_a_users_mount_where_fusectl_is_mounted(hang: Callable[..., Hanging]) -> None:
    nobody = pwd.getpwnam("nobody")
    place = Path(tempfile.mkdtemp(prefix="megafs-user-"))
    os.chown(place, nobody.pw_uid, nobody.pw_gid)
    become = (
        f"setpriv --reuid={nobody.pw_uid} --regid={nobody.pw_gid} --clear-groups"
        # The interpreter may lie where only root looks.
        " --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search"
    )
    script = f'mount -t fusectl x {connection.FUSECTL} && exec {become} "$@"'
    try:
        with device_for_all():
            hanging = hang(place, "unshare", "-m", "sh", "-c", script, "sh", *HANGING, place)
        assert os.stat(f"/proc/{hanging.user}").st_uid == nobody.pw_uid
        hanging.kill()
        assert hanging.ends(within=10)
        eventually(lambda: has_ended(hanging.guardian))
    finally:
        assert not mounts_below(place)  # it was another mount namespace
        shutil.rmtree(place)


def test_what_the_guardian_is(hanging: Hanging) -> None:
    """Small, without secrets, without a hand on the mount; no signal but SIGKILL ends it."""
    proc = Path(f"/proc/{hanging.guardian}")
    targets = [os.readlink(fd) for fd in (proc / "fd").iterdir()]
    assert sorted(targets) == [f"/{hanging.connection}/abort", "/dev/null", "/dev/null"]
    assert (proc / "environ").read_bytes() == b""
    assert os.readlink(proc / "cwd") == "/"
    own = re.search(r"Anonymous: +(\d+) kB", (proc / "smaps_rollup").read_text())
    assert own is not None
    assert int(own[1]) < 6 << 10
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        os.kill(hanging.guardian, number)
    time.sleep(0.5)
    assert not has_ended(hanging.guardian)
    assert states(hanging.mount) != "Z"


def guardian_of(pid: int) -> int | None:
    """The pid of the guardian of the mount whose process is *pid*."""
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            fields = (process / "stat").read_text().rpartition(")")
            if fields[0].endswith("(megafs-guardian") and int(fields[2].split()[1]) == pid:
                return int(process.name)
    return None


def test_every_mount_has_one_and_it_goes_with_it(volume: Machine) -> None:
    for end in (volume.umount, lambda: os.kill(volume.pid, signal.SIGKILL)):
        volume.mount()
        pid = volume.pid
        eventually(lambda pid=pid: guardian_of(pid) is not None)
        guardian = guardian_of(pid)
        assert guardian is not None
        end()
        eventually(lambda guardian=guardian: has_ended(guardian))
    volume.umount()


WORK = """
import errno, os, random, sys
while True:
    for call in (os.mkdir, os.rmdir):
        try:
            call(f"{sys.argv[1]}/{random.randrange(200)}")
        except OSError as exc:
            if exc.errno in (errno.ENOTCONN, errno.ECONNABORTED):
                sys.exit()
"""


def test_two_mounts_killed_at_work_in_one_directory(
    volume: Machine, place: Path, processes: Processes
) -> None:
    """Without guardians two of five such pairs hung (Linux 6.18)."""
    other = Machine(place, "b", volume.url)
    for _ in range(2):
        volume.mount("-o", "sync_interval=0.1s")
        (volume.mnt / "d").mkdir(exist_ok=True)
        other.mount("-o", "sync_interval=0.1s")
        eventually((other.mnt / "d").exists, within=30)
        users = [
            processes.start(sys.executable, "-c", WORK, machine.mnt / "d")
            for machine in (volume, other)
            for _ in range(3)
        ]
        time.sleep(3)
        pids = [volume.pid, other.pid]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            eventually(lambda pid=pid: has_ended(pid))
        for user in users:
            assert user.wait(10) == 0
        volume.umount()
        other.umount()
