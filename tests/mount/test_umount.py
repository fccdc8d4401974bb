"""What umount says, and does, where it cannot simply unmount."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megafs.cli import mount_helper
from megafs.mount.processes import is_running, remains, start_time, uid_of, wait_for_end
from tests.mount.conftest import Processes
from tests.mount.machine import Machine, eventually, is_mounted
from tests.mount.test_held import away, back

pytestmark = pytest.mark.fuse


def test_with_the_store_away_it_says_what_is_safe_and_what_can_be_done(
    volume: Machine, processes: Processes
) -> None:
    volume.mount()
    away(volume)
    (volume.mnt / "f").write_bytes(os.urandom(1 << 20))
    leaving = processes.start(*volume.command("umount", volume.mnt), env=volume.environ)
    assert leaving.stderr is not None
    said = ""
    while "umount --force" not in said:  # the last of it
        line = leaving.stderr.readline()
        assert line, said
        said += line
    leaving.send_signal(signal.SIGINT)
    said += leaving.communicate(timeout=60)[1]
    assert leaving.returncode == 130
    assert "the store takes nothing: " in said
    assert f"are safe in {volume.place}/state" in said
    assert "Ctrl-C leaves it mounted" in said
    assert f"megafs umount --lazy {volume.mnt}" in said
    assert f"megafs umount --force {volume.mnt}" in said
    assert said.count("takes nothing") == 1
    eventually(lambda: volume.status()["state"] == "mounted")
    back(volume)
    volume.umount()


def test_a_lost_socket(volume: Machine) -> None:
    """As where something clears /tmp, or a session's end removes XDG_RUNTIME_DIR."""
    volume.mount()
    (volume.mnt / "f").write_text("kept")
    (record,) = volume.records()
    record.socket_path.unlink()
    with (volume.mnt / "f").open():
        assert "in use by process" in volume.umount(code=19).stderr
    said = volume.umount().stderr
    assert f"{record.socket_path} is gone" in said
    assert not is_running(record.pid)
    assert not is_mounted(volume.mnt)
    volume.mount()
    assert (volume.mnt / "f").read_text() == "kept"
    volume.umount()


def test_a_lost_record(volume: Machine) -> None:
    volume.mount()
    (volume.mnt / "f").write_text("kept")
    pid = volume.pid
    for path in (volume.place / "run").iterdir():
        path.unlink()
    said = volume.umount().stderr
    assert "cannot be waited for" in said
    assert not is_mounted(volume.mnt)
    assert wait_for_end(pid, 30)


def test_by_force_without_a_record(volume: Machine) -> None:
    volume.mount()
    pid = volume.pid
    for path in (volume.place / "run").iterdir():
        path.unlink()
    os.kill(pid, signal.SIGSTOP)
    said = volume.umount(code=19).stderr
    assert "does not answer" in said
    assert f"megafs umount --force {volume.mnt} aborts its connection" in said
    volume.umount("--force")
    assert not is_mounted(volume.mnt)
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(pid, 10)


def test_the_socket_of_a_later_mount_at_the_same_place_stays(volume: Machine, place: Path) -> None:
    volume.mount()
    pid = volume.pid
    file = (volume.mnt / "f").open("w")
    volume.umount("--lazy")
    other = f"file://{place}/other"
    volume.run("format", other)
    volume.run("mount", other, volume.mnt)
    file.close()
    assert wait_for_end(pid, 30)
    assert volume.status()["state"] == "mounted"
    volume.umount()


def test_what_remains_of_a_process(processes: Processes) -> None:
    sleeping = processes.start("sleep", "1000")
    assert "has not ended yet" in remains(sleeping.pid)
    assert uid_of(sleeping.pid) == os.geteuid()
    assert 0 < start_time(os.getpid()) <= start_time(sleeping.pid)
    sleeping.kill()
    eventually(lambda: "zombie" in remains(sleeping.pid))
    assert f"process {os.getpid()}, has taken note" in remains(sleeping.pid)
    sleeping.wait()
    assert remains(sleeping.pid) == ""
    assert (uid_of(sleeping.pid), start_time(sleeping.pid)) == (None, 0)


def test_a_zombie_is_not_called_ended(volume: Machine, processes: Processes) -> None:
    """Where nobody takes note of a process's end, as in a container without an init."""
    keeping = processes.start(
        sys.executable,
        "-c",
        "import ctypes, subprocess, sys, time; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0);"
        " subprocess.run(sys.argv[1:], check=True); print(flush=True); time.sleep(1000)",
        *volume.command("mount", volume.url, volume.mnt),
        env=volume.environ,
        stderr=subprocess.DEVNULL,
    )
    assert keeping.stdout is not None
    keeping.stdout.readline()
    pid = volume.pid
    os.kill(pid, signal.SIGSTOP)
    said = volume.umount("--force").stderr
    assert Path(f"/proc/{pid}").exists()
    assert f"process {pid} has ended, and is a zombie until its parent" in said
    assert "was ended" not in said


def test_at_shutdown_it_does_not_wait_for_a_store_that_takes_nothing(volume: Machine) -> None:
    volume.mount("-o", "fsync=local")
    pid = volume.pid
    away(volume)
    data = os.urandom(1 << 20)
    (volume.mnt / "f").write_bytes(data)
    script = "import sys; from megafs.cli.umount import umount; umount(sys.argv[1], 'wait', 3.0)"
    done = subprocess.run(
        [sys.executable, "-c", script, volume.mnt],
        env=volume.environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "the store took nothing for 3 s" in done.stderr
    assert f"stay in {volume.place}/state" in done.stderr
    assert not is_running(pid)
    assert not is_mounted(volume.mnt)
    back(volume)
    volume.mount()
    assert (volume.mnt / "f").read_bytes() == data
    volume.umount()


@pytest.mark.parametrize(
    ("state", "stops"), [("stopping", True), ("running", False), ("degraded", False)]
)
def test_whether_the_system_shuts_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, stops: bool
) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f'#!/bin/sh\n[ "$*" = is-system-running ] && echo {state}; exit 1\n')
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(mount_helper, "SYSTEMD", tmp_path / "booted")
    assert not mount_helper.is_shutting_down()  # without systemd nobody is asked
    (tmp_path / "booted").mkdir()
    assert mount_helper.is_shutting_down() is stops
