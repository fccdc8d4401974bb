"""A mount that somebody has in use when it is to go: in our mount namespace, and in others."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megafs.mount.processes import is_running, wait_for_end
from tests.mount.conftest import Processes
from tests.mount.machine import Machine, eventually, is_mounted

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes mount namespaces"),
]

#: Says that it has started, and stays.
STAY = 'echo "$$"; exec sleep 1000'


def elsewhere(processes: Processes, *unshare: str) -> int:
    """Start a process in a mount namespace of its own, a copy of ours; return its pid."""
    process = processes.start("unshare", *unshare, "sh", "-c", STAY)
    assert process.stdout is not None
    process.stdout.readline()
    return process.pid


def away(volume: Machine) -> Path:
    """Take the store away; return where it is now."""
    store = Path(volume.url.removeprefix("file://"))
    there = store.with_name("store.away")
    store.rename(there)
    return there


def back(volume: Machine) -> None:
    store = Path(volume.url.removeprefix("file://"))
    if store.exists():
        store.rmdir()
    store.with_name("store.away").rename(store)


@pytest.mark.parametrize("unshare", ["-m", "-rm"])
def test_umount_lets_go_of_a_copy_in_another_namespace(
    volume: Machine, processes: Processes, unshare: str
) -> None:
    volume.mount()
    pid = volume.pid
    (volume.mnt / "f").write_text("kept")
    holder = elsewhere(processes, unshare)
    seen = Path(f"/proc/{holder}/root{volume.mnt}/f")
    assert seen.read_text() == "kept"
    begin = time.monotonic()
    said = volume.umount().stderr
    assert time.monotonic() - begin < 20
    assert f"another mount namespace of process {holder} (sleep) still had {volume.mnt}" in said
    assert not is_running(pid)
    with pytest.raises(OSError, match="not connected"):
        seen.read_text()
    volume.mount()
    assert (volume.mnt / "f").read_text() == "kept"
    status = volume.status()
    assert (status["staged_bytes"], status["pending_operations"]) == (0, 0)
    volume.umount()


def test_what_is_written_elsewhere_until_then_is_kept(
    volume: Machine, processes: Processes
) -> None:
    volume.mount()
    holder = elsewhere(processes, "-m")
    there = Path(f"/proc/{holder}/root{volume.mnt}")
    file = os.open(there / "open", os.O_CREAT | os.O_WRONLY)
    os.write(file, b"not closed yet")
    (there / "closed").write_text("by the other")
    volume.umount()
    with pytest.raises(OSError):
        os.close(file)
    volume.mount()
    assert (volume.mnt / "closed").read_text() == "by the other"
    assert (volume.mnt / "open").read_text() == "not closed yet"
    volume.umount()


def test_a_signal_ends_it(volume: Machine, processes: Processes) -> None:
    volume.mount()
    pid = volume.pid
    (volume.mnt / "f").write_text("kept")
    elsewhere(processes, "-m")
    os.kill(pid, signal.SIGTERM)
    assert wait_for_end(pid, 20)
    assert not is_mounted(volume.mnt)


def test_umount_8_lets_go_too(volume: Machine, processes: Processes) -> None:
    volume.mount()
    pid = volume.pid
    elsewhere(processes, "-m")
    subprocess.run(["umount", volume.mnt], check=True)
    assert wait_for_end(pid, 30)
    volume.mount()
    volume.umount()


def test_detached_it_serves_its_users_here_and_then_lets_go(
    volume: Machine, processes: Processes
) -> None:
    volume.mount()
    pid = volume.pid
    elsewhere(processes, "-m")
    with (volume.mnt / "f").open("w") as file:
        volume.umount("--lazy")
        assert not wait_for_end(pid, 8)
        file.write("written last")
    assert wait_for_end(pid, 30)
    volume.mount()
    assert (volume.mnt / "f").read_text() == "written last"
    volume.umount()


def test_a_signal_ends_a_detached_mount_that_is_in_use(volume: Machine) -> None:
    volume.mount()
    pid = volume.pid
    file = os.open(volume.mnt / "f", os.O_CREAT | os.O_WRONLY)
    volume.umount("--lazy")
    os.kill(pid, signal.SIGTERM)
    assert wait_for_end(pid, 20)
    with pytest.raises(OSError):
        os.close(file)


def test_umount_says_who_uses_it_before_it_sends_anything(
    volume: Machine, processes: Processes
) -> None:
    volume.mount()
    (volume.mnt / "f").write_text("x")
    away(volume)
    program = volume.place / "a\x1b[31m\nb"
    shutil.copy("/bin/sleep", program)
    with (volume.mnt / "f").open() as file:
        users = [
            processes.start(program, "1000", cwd=volume.mnt),
            processes.start("sleep", "1001", stdin=file),
        ]
    mapped = processes.start(
        sys.executable,
        "-c",
        "import mmap, os, sys, time; f = os.open(sys.argv[1], 0); m = mmap.mmap(f, 1, prot=1);"
        " os.close(f); print(flush=True); time.sleep(1000)",
        volume.mnt / "f",
    )
    assert mapped.stdout is not None
    mapped.stdout.readline()
    begin = time.monotonic()
    said = volume.umount(code=19).stderr
    assert time.monotonic() - begin < 10
    assert f"{volume.mnt} is in use by " in said
    assert f"process {users[0].pid} (a\\x1b[31m\\nb)" in said
    assert f"process {users[1].pid} (sleep)" in said
    assert f"process {mapped.pid} (python" in said
    assert volume.status()["state"] == "mounted"
    back(volume)


def test_umount_says_what_is_mounted_in_it_or_shows_it(volume: Machine, place: Path) -> None:
    volume.mount()
    (volume.mnt / "d").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "x", volume.mnt / "d"], check=True)
    assert f"something is mounted in it, at {volume.mnt}/d" in volume.umount(code=19).stderr
    subprocess.run(["umount", volume.mnt / "d"], check=True)
    other = place / "other"
    other.mkdir()
    subprocess.run(["mount", "--bind", volume.mnt, other], check=True)
    assert f"the same files are mounted at {other}" in volume.umount(code=19).stderr
    subprocess.run(["umount", other], check=True)
    volume.umount()


def test_looking_does_not_unmount(volume: Machine, processes: Processes) -> None:
    """The look marks what nobody uses, and a second look would unmount what is still marked."""
    volume.mount()
    away(volume)
    (volume.mnt / "f").write_text("x")
    for _ in range(3):
        leaving = processes.start(*volume.command("umount", volume.mnt), env=volume.environ)
        eventually(lambda: volume.status()["state"] == "draining", within=60)
        leaving.send_signal(signal.SIGINT)
        assert leaving.wait(60) == 130
        eventually(lambda: volume.status()["state"] == "mounted", within=60)
        assert is_mounted(volume.mnt)
    back(volume)
    volume.umount()
