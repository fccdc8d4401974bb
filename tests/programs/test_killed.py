"""The mount's process is killed while programs write; then it is mounted again, there or elsewhere.

What was closed is there.  Of what was still being written there is a prefix, never other bytes.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megafs.mount.processes import wait_for_end
from tests.mount.conftest import Processes
from tests.mount.machine import is_mounted
from tests.programs.conftest import Disk, run

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(200)]

WRITER = """
import hashlib, os, sys
# Every file says what it should hold, so that whoever finds it can tell.
base, who = sys.argv[1:]
for n in range(10**6):
    data = (f"{who} {n} ".encode() * (n * 97 % 30_000))[: n * 1009 % 200_000]
    path = f"{base}/{who}-{n}"
    fd = os.open(path + ".part", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    for at in range(0, len(data), 8192):
        os.write(fd, data[at : at + 8192])
    os.close(fd)
    os.rename(path + ".part", path)
    if n % 3 == 2:
        os.unlink(f"{base}/{who}-{n - 1}")
    print(n, flush=True)
"""


def content(who: str, n: int) -> bytes:
    """What the writer's file number *n* holds."""
    return (f"{who} {n} ".encode() * (n * 97 % 30_000))[: n * 1009 % 200_000]


def test_everything_closed_is_there(own_disk: Disk, programs: Processes) -> None:
    for number in range(2):
        own_disk.mount()
        base = own_disk.mnt / f"round{number}"
        base.mkdir()
        writers = {
            who: programs.start(sys.executable, "-c", WRITER, base, who) for who in ("a", "b")
        }
        time.sleep(0.7 + 0.6 * number)
        own_disk.crash()
        last = {}
        for who, writer in writers.items():
            out, _ = writer.communicate(timeout=30)
            last[who] = int(out.split()[-1])
        own_disk.mount()
        for who, done in last.items():
            _check(base, who, done)
        own_disk.umount()
    own_disk.mount()
    own_disk.compared_elsewhere()


def _check(base: Path, who: str, done: int) -> None:
    """Files up to *done* are as they should be; at most one more was begun."""
    for n in range(done + 1):
        path = base / f"{who}-{n}"
        if n % 3 == 1 and n < done:  # removed; kept as such by the close after it
            if n + 2 <= done:
                assert not path.exists(), path
                continue
            if not path.exists():
                continue
        # A rename that was answered is kept as whatever was closed is kept: here or as .part.
        where = path if path.exists() else Path(f"{path}.part")
        if n == done and n % 3 == 1 and not where.exists():
            continue
        assert where.read_bytes() == content(who, n), where
    for path in base.glob(f"{who}-*"):
        match = re.fullmatch(rf"{who}-(\d+)(\.part)?", path.name)
        assert match is not None
        n = int(match[1])
        assert n <= done + 1
        if n > done:
            assert content(who, n).startswith(path.read_bytes())


def test_what_was_synced_is_on_another_machine_at_once(own_disk: Disk) -> None:
    """fsync=store: the machine may burn down."""
    own_disk.mount()
    fd = os.open(own_disk.mnt / "synced", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"x" * 3_000_000)
    os.fsync(fd)
    own_disk.crash()
    with pytest.raises(OSError, match="not connected"):
        os.fsync(fd)
    with contextlib.suppress(OSError):
        os.close(fd)
    dead = own_disk.mnt
    own_disk.machine = own_disk._new_machine()
    own_disk.mount()
    assert (own_disk.mnt / "synced").read_bytes() == b"x" * 3_000_000
    own_disk.umount()
    run("umount", "-l", dead)


def test_a_dead_mountpoint_is_cleaned_by_the_next_mount(own_disk: Disk) -> None:
    own_disk.mount()
    (own_disk.mnt / "f").write_text("kept")
    own_disk.crash()
    with pytest.raises(OSError, match="not connected"):
        os.listdir(own_disk.mnt)
    own_disk.mount()
    assert (own_disk.mnt / "f").read_text() == "kept"
    points = Path("/proc/self/mountinfo").read_text()
    assert points.count(f" {own_disk.mnt} ") == 1
    own_disk.umount()
    assert not is_mounted(own_disk.mnt)


def test_sigterm_drains(own_disk: Disk) -> None:
    own_disk.mount()
    data = os.urandom(12 << 20)
    (own_disk.mnt / "f").write_bytes(data)
    for n in range(100):
        (own_disk.mnt / f"s{n}").write_bytes(data[n * 100 : n * 200])
    pid = own_disk.machine.pid
    os.kill(pid, signal.SIGTERM)
    assert wait_for_end(pid, 60)
    assert not is_mounted(own_disk.mnt)
    own_disk.machine = own_disk._new_machine()
    own_disk.mount()
    assert (own_disk.mnt / "f").read_bytes() == data
    for n in range(100):
        assert (own_disk.mnt / f"s{n}").read_bytes() == data[n * 100 : n * 200]
    own_disk.umount()


def test_mount_megafs_as_mount_8_calls_it(own_disk: Disk) -> None:
    machine = own_disk.machine
    code = "from megafs.cli.mount_helper import main; main()"
    command = [sys.executable, "-c", code, machine.url, str(machine.mnt)]
    helper = subprocess.run(
        [*command, "-o", "rw,noatime,_netdev,nofail"],
        env=machine.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert helper.returncode == 0, helper.stderr
    (machine.mnt / "f").write_text("x")
    pid = machine.pid
    run("umount", machine.mnt)
    assert wait_for_end(pid, 30)
    own_disk.mount()
    assert (own_disk.mnt / "f").read_text() == "x"
    own_disk.umount()
