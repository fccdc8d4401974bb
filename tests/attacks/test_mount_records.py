"""What others wrote into a runtime directory ends no process and passes for no mount."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from megafs.errors import BadUsage, MountFailed
from megafs.mount import control_client, mount_record
from megafs.mount.processes import is_running, start_time
from tests.mount.conftest import Processes, machine, mounts_below, place, processes, volume
from tests.mount.machine import Machine, is_mounted
from tests.mount.test_user import GID, UID, User, device

__all__ = ["device", "machine", "place", "processes", "volume"]

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user"),
]


@pytest.fixture
def user(device: None) -> Iterator[User]:
    """A user of this machine without XDG_RUNTIME_DIR."""
    place = Path(tempfile.mkdtemp(prefix="megafs-user-"))  # others may not enter pytest's
    made = User(place)
    runtime = mount_record.runtime_dir(uid=UID)
    if runtime.exists():
        pytest.skip(f"{runtime} is there already")
    del made.environ["MEGAFS_RUNTIME_DIR"]
    made.environ.pop("XDG_RUNTIME_DIR", None)
    made.environ["HOME"] = str(made.place)
    for path in (place, made.place, made.mnt):
        os.chown(path, UID, GID)
    made.format()
    yield made
    for record in mount_record.records(runtime, UID) if runtime.exists() else []:
        if is_running(record.pid):
            os.kill(record.pid, signal.SIGKILL)
    for point in mounts_below(place):
        subprocess.run(["umount", "-l", point], check=False)
    shutil.rmtree(runtime, ignore_errors=True)
    shutil.rmtree(place)


def edit(record: mount_record.MountRecord, pid: int) -> None:
    """Have *record* name process *pid*, as its user could."""
    path = Path(record.directory) / f"{record.name}.json"
    fields = json.loads(path.read_text())
    fields["pid"], fields["started"] = pid, start_time(pid)
    path.write_text(json.dumps(fields))


def test_root_kills_what_listens_not_what_the_record_names(
    user: User, processes: Processes
) -> None:
    user.mount()
    record = mount_record.record_of(str(user.mnt), UID)
    assert record is not None
    victim = processes.start("sleep", "1000")
    edit(record, victim.pid)
    os.kill(record.pid, signal.SIGSTOP)
    root = Machine(user.place, "root", user.url)
    root.run("umount", "--force", user.mnt)
    assert not is_running(record.pid)
    assert victim.poll() is None
    assert not is_mounted(user.mnt)


def test_without_a_socket_nothing_of_another_user_is_killed(
    user: User, processes: Processes
) -> None:
    user.mount()
    record = mount_record.record_of(str(user.mnt), UID)
    assert record is not None
    victim = processes.start("sleep", "1000")
    edit(record, victim.pid)
    record.socket_path.unlink()
    root = Machine(user.place, "root", user.url)
    said = root.run("umount", "--force", user.mnt, code=32).stderr
    assert f"nothing shows that process {victim.pid} is the mount" in said
    assert victim.poll() is None
    assert not is_mounted(user.mnt)  # the connection is the kernel's to name, not the record's
    os.kill(record.pid, signal.SIGKILL)


def test_a_socket_that_another_user_listens_on(volume: Machine) -> None:
    volume.mount()
    (record,) = volume.records()
    stranger = msgspec.structs.replace(record, uid=UID)
    with pytest.raises(BadUsage, match="not the mount's"):
        control_client.process_of(stranger)
    pid, pidfd = control_client.process_of(record)
    os.close(pidfd)
    assert pid == record.pid
    volume.umount()


def test_a_runtime_directory_of_somebody_else_is_not_believed(
    volume: Machine, processes: Processes
) -> None:
    victim = processes.start("sleep", "1000")
    run = volume.place / "run"
    run.mkdir(mode=0o700)
    record = mount_record.MountRecord(
        str(volume.mnt),
        volume.url,
        victim.pid,
        mount_record.file_name(str(volume.mnt)),
        str(run),
        start_time(victim.pid),
    )
    mount_record.write_record(record)
    os.chown(run, UID, GID)
    commands: list[list[str | Path]] = [
        ["status"],
        ["status", volume.mnt],
        ["umount", "--force", volume.mnt],
    ]
    for command in commands:
        done = subprocess.run(
            volume.command(*command), env=volume.environ, capture_output=True, text=True
        )
        assert done.returncode in (2, 32)
        assert "is not user 0's alone" in done.stderr
        assert "bug" not in done.stderr
    assert victim.poll() is None
    os.chown(run, 0, 0)
    run.chmod(0o777)
    assert "is not user 0's alone" in volume.run("status", code=32).stderr
    run.chmod(0o700)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def _stranger(path: Path) -> None:
    path.write_text("{}")
    os.chown(path, UID, GID)


def _text(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(text)

    return write


def _fields(**changed: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        fields = {"mountpoint": str(path.parents[1] / "mnt"), "url": "file:///x", "pid": 1}
        path.write_text(json.dumps(fields | changed))

    return write


@pytest.mark.parametrize(
    "make",
    [
        _fifo,
        _link,
        _stranger,
        Path.mkdir,
        _text(""),
        _text("[]"),
        _text("{}"),
        _text("[" * 10_000),
        _text("x" * (1 << 20)),
        _fields(pid="1"),
        _fields(pid=-1),
        _fields(pid=0),
        _fields(pid=10**30),
        _fields(pid=1.5),
        _fields(mountpoint="/elsewhere"),
        _fields(url=None),
    ],
)
def test_a_record_that_is_none(
    machine: Machine, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = machine.place / "run"
    run.mkdir(mode=0o700)
    monkeypatch.setenv("MEGAFS_RUNTIME_DIR", str(run))
    path = run / f"{mount_record.file_name(str(machine.mnt))}.json"
    make(path)
    assert mount_record.records(run) == []
    with pytest.raises(MountFailed) as caught:
        mount_record.record_of(str(machine.mnt))
    assert str(path) in str(caught.value)
    assert stat.S_IMODE(run.stat().st_mode) == 0o700


def test_commands_say_one_line_about_it(machine: Machine) -> None:
    run = machine.place / "run"
    run.mkdir(mode=0o700)
    _text("[1")(run / f"{mount_record.file_name(str(machine.mnt))}.json")
    for command in ("status", "umount"):
        said = machine.run(command, machine.mnt, code=2).stderr.splitlines()
        assert len(said) == 2
        assert "is not the record of a mount" in said[0]
    machine.run("status")


def test_another_process_has_the_pid_by_now(machine: Machine, processes: Processes) -> None:
    other = processes.start("sleep", "1000")
    run = machine.place / "run"
    run.mkdir(mode=0o700)
    record = mount_record.MountRecord(
        str(machine.mnt),
        machine.url,
        other.pid,
        mount_record.file_name(str(machine.mnt)),
        str(run),
        start_time(other.pid) - 1,
        os.geteuid(),
    )
    mount_record.write_record(record)
    assert not mount_record.is_alive(record)
    assert "nothing is mounted" in machine.run("umount", "--force", machine.mnt, code=2).stderr
    assert other.poll() is None
    assert mount_record.records(run) == []
