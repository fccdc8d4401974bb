"""No process is ever unkillable: neither the mount's nor those that use it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megafs.mount.processes import is_running, wait_for_end
from tests.fakes.proxy import Hang, Proxy, ThreadedProxy
from tests.mount.conftest import Processes
from tests.mount.machine import Machine, eventually, is_mounted

pytestmark = [pytest.mark.fuse, pytest.mark.ceph]

SYNCED = (
    "import os,sys; f=os.open(sys.argv[1],os.O_CREAT|os.O_WRONLY); os.write(f,b'x'); os.fsync(f)"
)


def _users(machine: Machine, processes: Processes) -> list[subprocess.Popen[str]]:
    """Programs that are in the middle of something for which they need the store."""
    users = [
        processes.start("cat", machine.mnt / "cold", stdout=subprocess.DEVNULL),
        processes.start(sys.executable, "-c", SYNCED, machine.mnt / "synced"),
    ]
    time.sleep(1.0)
    assert all(user.poll() is None for user in users)
    return users


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.fixture
def stuck(on_network: Callable[..., Machine], network: ThreadedProxy) -> Machine:
    """A mount that would wait for ten minutes for a store that never answers."""
    machine = on_network("a")
    machine.mount()
    (machine.mnt / "cold").write_bytes(os.urandom(1 << 20))
    (machine.mnt / "closed").write_text("safe")
    machine.umount()
    machine.run("cache", "clear", machine.url)
    machine.mount("-o", "deadline=10min")
    network.tell(Proxy.always, Hang())
    return machine


def test_a_second_signal_aborts_the_connection_and_frees_everybody(
    stuck: Machine, network: ThreadedProxy, processes: Processes
) -> None:
    users = _users(stuck, processes)
    pid = stuck.pid
    begin = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert not wait_for_end(pid, 1.5)
    os.kill(pid, signal.SIGTERM)
    for user in users:
        assert user.wait(15) != 0
    assert wait_for_end(pid, 20)
    assert time.monotonic() - begin < 30
    assert not is_mounted(stuck.mnt)
    network.tell(Proxy.heal)
    stuck.mount()
    assert (stuck.mnt / "closed").read_text() == "safe"
    assert (stuck.mnt / "synced").read_text() == "x"  # its fsync did not succeed, it was kept
    stuck.umount()


def test_kill_9_frees_everybody_and_the_next_mount_takes_over(
    stuck: Machine, network: ThreadedProxy, processes: Processes
) -> None:
    users = _users(stuck, processes)
    os.kill(stuck.pid, signal.SIGKILL)
    for user in users:
        assert user.wait(15) != 0
    network.tell(Proxy.heal)
    stuck.mount()
    assert (stuck.mnt / "closed").read_text() == "safe"
    stuck.umount()


def test_users_of_a_stopped_mount_can_be_killed_and_so_can_it(
    stuck: Machine, network: ThreadedProxy, processes: Processes
) -> None:
    users = _users(stuck, processes)
    pid = stuck.pid
    os.kill(pid, signal.SIGSTOP)
    late = processes.start("ls", stuck.mnt / "nothing-of-that-name")
    time.sleep(0.5)
    late.kill()
    late.wait(10)  # the mount has not taken its request: a signal that kills is obeyed
    # FUSE waits for the answer to a request that was taken, until the mount itself is killed.
    users[0].kill()
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(pid, 10)
    for user in users:
        assert user.wait(10) != 0
    assert _state(pid) in ("", "Z")
    network.tell(Proxy.heal)
    stuck.mount()
    assert (stuck.mnt / "closed").read_text() == "safe"
    stuck.umount()


def test_force_ends_a_mount_whose_store_hangs(
    stuck: Machine, network: ThreadedProxy, processes: Processes
) -> None:
    users = _users(stuck, processes)
    pid = stuck.pid
    begin = time.monotonic()
    stuck.umount("--force")
    assert time.monotonic() - begin < 40
    assert not is_running(pid)
    for user in users:
        assert user.wait(10) != 0
    eventually(lambda: all(_state(user.pid) != "D" for user in users))
