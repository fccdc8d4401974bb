"""A mount's life through the command line: it starts, serves, drains, ends, in every way it can."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from megafs.mount import mount_record
from megafs.mount.processes import is_running, wait_for_end
from tests.mount.conftest import Processes
from tests.mount.machine import PASSPHRASE, Machine, at_terminal, eventually, is_mounted

pytestmark = pytest.mark.fuse


def test_written_unmounted_mounted_read(volume: Machine) -> None:
    volume.mount()
    (volume.mnt / "a").write_text("kept")
    volume.umount()
    assert not is_mounted(volume.mnt)
    assert list(volume.mnt.iterdir()) == []

    volume.mount()
    assert (volume.mnt / "a").read_text() == "kept"
    volume.umount()


def test_another_machine_sees_it_after_umount(volume: Machine, place: Path) -> None:
    volume.mount()
    (volume.mnt / "d").mkdir()
    (volume.mnt / "d" / "f").write_bytes(os.urandom(1 << 20))
    data = (volume.mnt / "d" / "f").read_bytes()
    volume.umount()
    other = Machine(place, "b", volume.url)
    try:
        other.mount()
        assert (other.mnt / "d" / "f").read_bytes() == data
        other.umount()
    finally:
        other.kill()


def test_the_directory_is_usable_when_mount_returns(volume: Machine) -> None:
    for _ in range(3):
        volume.mount()
        (volume.mnt / "x").write_text("at once")
        volume.umount()


def test_umount_returns_when_the_process_has_ended(volume: Machine) -> None:
    volume.mount()
    pid = volume.pid
    volume.umount()
    assert not is_running(pid)
    assert list((volume.place / "run").iterdir()) == []


def test_status_tells_what_programs_ask_for(volume: Machine) -> None:
    volume.mount()
    status = volume.status()
    assert status["pid"] == volume.pid
    assert status["sequence"] == 1
    assert re.fullmatch("[0-9a-f]{64}", status["head"])
    assert status["state"] == "mounted"
    for name in ("staged_bytes", "cache_bytes", "mounts", "errors", "conflicts", "store"):
        assert name in status
    (listed,) = json.loads(volume.run("status", "--json").stdout)
    assert listed["mountpoint"] == str(volume.mnt)
    text = volume.run("status").stdout
    assert "everything is in the store" in text
    metrics = volume.run("status", volume.mnt, "--metrics").stdout
    assert "# TYPE megafs_sequence gauge\nmegafs_sequence 1" in metrics
    assert 'megafs_fuse_requests_total{op="statfs"}' in metrics
    volume.umount()


def test_umount_refuses_while_in_use_and_lazy_leaves_a_process_that_finishes(
    volume: Machine,
) -> None:
    volume.mount()
    with (volume.mnt / "open").open("w") as file:
        done = volume.umount(code=19)
        assert f"{volume.mnt} is in use" in done.stderr
        assert is_mounted(volume.mnt)
        assert volume.status()["state"] == "mounted"

        pid = volume.pid
        volume.umount("--lazy")
        assert not is_mounted(volume.mnt)
        file.write("after the directory had gone")
    assert wait_for_end(pid, 30)
    volume.mount()
    assert (volume.mnt / "open").read_text() == "after the directory had gone"
    volume.umount()


def test_umounted_by_others_it_drains_and_ends(volume: Machine) -> None:
    for command in (["umount"], ["fusermount3", "-u"]):
        volume.mount()
        pid = volume.pid
        (volume.mnt / command[0]).write_bytes(os.urandom(3 << 20))
        subprocess.run([*command, volume.mnt], check=True)
        assert wait_for_end(pid, 30)
    volume.mount()
    assert (volume.mnt / "umount").stat().st_size == 3 << 20
    assert volume.status()["staged_bytes"] == 0
    volume.umount()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_unmounts(volume: Machine, number: signal.Signals) -> None:
    volume.mount()
    pid = volume.pid
    (volume.mnt / "f").write_bytes(os.urandom(2 << 20))
    os.kill(pid, number)
    assert wait_for_end(pid, 30)
    assert not is_mounted(volume.mnt)
    volume.mount()
    status = volume.status()
    assert (status["staged_bytes"], status["pending_operations"]) == (0, 0)
    volume.umount()


def test_a_signal_ends_a_mount_that_is_in_use(volume: Machine) -> None:
    volume.mount()
    pid = volume.pid
    with (volume.mnt / "f").open("w") as file:
        file.write("x")
        file.flush()
        os.kill(pid, signal.SIGTERM)
        assert wait_for_end(pid, 30)
        with pytest.raises(OSError):
            os.fstat(file.fileno())
        with pytest.raises(OSError):
            file.close()
    assert not is_mounted(volume.mnt)


def test_killed_then_mounted_again_cleans_up_and_has_what_was_closed(volume: Machine) -> None:
    volume.mount("-o", "fsync=local,sync_interval=1h")
    (volume.mnt / "closed").write_text("safe")
    os.kill(volume.pid, signal.SIGKILL)
    wait_for_end(volume.pid, 10)
    with pytest.raises(OSError, match="not connected"):
        os.listdir(volume.mnt)
    assert "is dead" in volume.run("status", volume.mnt, code=2).stderr
    assert "dead" in volume.run("status").stdout

    volume.mount()
    assert (volume.mnt / "closed").read_text() == "safe"
    volume.umount()


def test_umount_cleans_up_after_a_killed_mount(volume: Machine) -> None:
    volume.mount()
    os.kill(volume.pid, signal.SIGKILL)
    wait_for_end(volume.pid, 10)
    assert "cleaned up" in volume.umount().stderr
    assert not is_mounted(volume.mnt)
    assert list((volume.place / "run").iterdir()) == []


def test_force_ends_at_once_and_keeps_what_is_staged(volume: Machine) -> None:
    volume.mount()
    store = Path(volume.url.removeprefix("file://"))
    pid = volume.pid
    _away(store)
    (volume.mnt / "f").write_text("not in the store yet")
    user = (volume.mnt / "open").open("w")
    begin = time.monotonic()
    said = volume.umount("--force").stderr
    assert time.monotonic() - begin < 20
    assert re.search(r"warning: .* operations are not in the store yet: they stay in", said)
    with pytest.raises(OSError):
        user.close()
    assert not is_running(pid)
    _back(store)
    volume.mount()
    assert (volume.mnt / "f").read_text() == "not in the store yet"
    volume.umount()


def _away(store: Path) -> None:
    store.rename(store.with_name("store.away"))


def _back(store: Path) -> None:
    if store.exists():
        store.rmdir()
    store.with_name("store.away").rename(store)


def test_the_second_signal_ends_a_mount_whose_store_is_away(volume: Machine) -> None:
    volume.mount()
    store = Path(volume.url.removeprefix("file://"))
    pid = volume.pid
    _away(store)
    (volume.mnt / "f").write_text("kept here")
    os.kill(pid, signal.SIGTERM)
    assert not wait_for_end(pid, 2)
    os.kill(pid, signal.SIGTERM)
    assert wait_for_end(pid, 15)
    assert not is_mounted(volume.mnt)
    _back(store)
    volume.mount()
    assert (volume.mnt / "f").read_text() == "kept here"
    volume.umount()


def test_a_process_that_hangs_is_ended_by_force(volume: Machine) -> None:
    volume.mount()
    pid = volume.pid
    os.kill(pid, signal.SIGSTOP)

    def look() -> None:
        with contextlib.suppress(OSError):
            volume.mnt.joinpath("x").exists()

    waiting = threading.Thread(target=look, daemon=True)
    waiting.start()
    begin = time.monotonic()
    volume.umount("--force")
    assert time.monotonic() - begin < 60
    assert not is_running(pid)
    assert not is_mounted(volume.mnt)
    waiting.join(10)
    assert not waiting.is_alive()


def test_the_passphrase_is_nowhere_in_the_process(volume: Machine) -> None:
    volume.mount()
    needle = PASSPHRASE.encode()
    for name in ("environ", "cmdline"):
        assert needle not in Path(f"/proc/{volume.pid}/{name}").read_bytes()
    limits = Path(f"/proc/{volume.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert os.readlink(f"/proc/{volume.pid}/cwd") == "/"
    volume.umount()


def test_nothing_is_inherited_that_others_wait_for(volume: Machine) -> None:
    heard, told = os.pipe()
    os.set_inheritable(told, True)
    volume.run("mount", volume.url, volume.mnt, close_fds=False)
    os.close(told)
    assert os.read(heard, 1) == b""
    os.close(heard)
    volume.umount()


def test_progress_is_told_while_the_store_is_slow(volume: Machine, processes: Processes) -> None:
    volume.mount()
    store = Path(volume.url.removeprefix("file://"))
    _away(store)
    (volume.mnt / "f").write_bytes(os.urandom(1 << 20))
    leaving = processes.start(*volume.command("umount", volume.mnt), env=volume.environ)
    time.sleep(3)
    assert leaving.poll() is None
    assert is_mounted(volume.mnt)
    _back(store)
    _, said = leaving.communicate(timeout=60)
    assert leaving.returncode == 0, said
    assert "sending to the store: 1.05 MB, " in said


def test_a_bar_moves_at_a_terminal(volume: Machine) -> None:
    volume.mount()
    store = Path(volume.url.removeprefix("file://"))
    _away(store)
    (volume.mnt / "f").write_bytes(os.urandom(1 << 20))
    threading.Timer(3, _back, [store]).start()
    said = at_terminal(volume, ["umount", str(volume.mnt)], [])
    assert "sending to the store" in said
    assert "\x1b[" in said
    assert not is_mounted(volume.mnt)


def test_umount_given_up_leaves_it_mounted(volume: Machine, processes: Processes) -> None:
    volume.mount()
    store = Path(volume.url.removeprefix("file://"))
    _away(store)
    (volume.mnt / "f").write_text("x")
    leaving = processes.start(*volume.command("umount", volume.mnt), env=volume.environ)
    time.sleep(1.5)
    leaving.send_signal(signal.SIGINT)
    assert leaving.wait(10) == 130
    _back(store)
    assert (volume.mnt / "f").read_text() == "x"
    eventually(lambda: volume.status()["staged_bytes"] == 0, within=60)
    volume.umount()


def test_foreground_stays_and_ends_with_a_signal(volume: Machine, processes: Processes) -> None:
    serving = processes.start(
        *volume.command("mount", volume.url, volume.mnt, "--foreground"), env=volume.environ
    )
    eventually(lambda: is_mounted(volume.mnt))
    eventually(lambda: mount_record.records(volume.place / "run"))
    (volume.mnt / "f").write_text("x")
    serving.send_signal(signal.SIGTERM)
    out, said = serving.communicate(timeout=30)
    assert serving.returncode == 0, said
    assert "mounted" in said
    assert out == ""


def test_two_volumes_at_once(place: Path) -> None:
    machines = [Machine(place, name, f"file://{place}/store-{name}") for name in "ab"]
    try:
        for machine in machines:
            machine.format()
            machine.mount()
            (machine.mnt / "who").write_text(machine.place.name)
        assert [(m.mnt / "who").read_text() for m in machines] == ["a", "b"]
        for machine in machines:
            machine.umount()
    finally:
        for machine in machines:
            machine.kill()


def test_memory_of_an_idle_mount_is_small(volume: Machine) -> None:
    volume.mount()
    status = Path(f"/proc/{volume.pid}/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]
    volume.umount()
    assert peak < 200 << 10
