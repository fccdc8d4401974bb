"""Whoever holds a passphrase or a key cannot be read by another process of the same user."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from megafs.volume import kdf_child
from tests.mount.conftest import Processes, machine, place, processes, volume
from tests.mount.machine import eventually, is_mounted
from tests.mount.test_user import User, device, user

__all__ = ["device", "machine", "place", "processes", "user", "volume"]

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user"),
]


def soft_core_limit(pid: int | str) -> str:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line.split()[4] for line in lines if line.startswith("Max core"))


def assert_protected(pid: int) -> None:
    """No core file, and not dumpable: then the files in /proc/PID are root's (proc(5))."""
    assert soft_core_limit(pid) == "0"
    assert Path(f"/proc/{pid}/environ").stat().st_uid == 0


COMMANDS: list[Callable[[User], list[str | Path]]] = [
    lambda user: ["format", f"{user.url}2"],
    lambda user: ["mount", user.url, user.mnt],
    lambda user: ["mount", "--foreground", user.url, user.mnt],
    lambda user: ["fsck", user.url],
    lambda user: ["scrub", user.url],
    lambda user: ["gc", user.url],
    lambda user: ["salvage", user.url, "--to", user.place / "out"],
    lambda user: ["salvage", user.url, "--mount", user.mnt],
    lambda user: ["snapshot", "list", user.url],
    lambda user: ["log", user.url],
    lambda user: ["undelete", user.url],
    lambda user: ["restore", user.url, "f", "--at", "1"],
    lambda user: ["key", "add", user.url],
    lambda user: ["key", "change", user.url],
    lambda user: ["key", "rotate", user.url, "--yes"],
]


@pytest.mark.parametrize("command", COMMANDS)
def test_before_a_passphrase_is_read(
    user: User, processes: Processes, command: Callable[[User], list[str | Path]]
) -> None:
    """A command that asks a program for the passphrase is looked at while it waits for it."""
    asked = user.place / "asked"
    args = user.command(
        *command(user),
        "--passphrase-command",
        f"echo $PPID > {asked}.new; mv {asked}.new {asked}; sleep 60",
    )
    environ = {k: v for k, v in user.environ.items() if k != "MEGAFS_PASSPHRASE"}
    started = processes.start(*args, env=environ)
    eventually(lambda: asked.exists() or started.poll() is not None, within=60)
    assert asked.exists(), started.communicate()
    pid = int(asked.read_text())
    processes.add(pid)
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        processes.add(int(child))
    assert_protected(pid)


def test_a_mount_and_a_salvage_mount(user: User, processes: Processes) -> None:
    user.mount()
    assert_protected(user.pid)
    user.umount()
    salvage = processes.start(
        *user.command("salvage", user.url, "--mount", user.mnt), env=user.environ
    )
    eventually(lambda: is_mounted(user.mnt), within=60)
    assert_protected(salvage.pid)
    salvage.terminate()
    salvage.wait(30)


def test_the_child_that_derives_keys(user: User, processes: Processes) -> None:
    """It waits for its task, protected already."""
    code = f"from {kdf_child.__name__} import main; main()"
    args = [*user.command()[:-2], "-c", code]
    child = processes.start(*args, stdin=subprocess.PIPE, env=user.environ)
    eventually(lambda: Path(f"/proc/{child.pid}/comm").read_text().startswith("python"))
    eventually(lambda: soft_core_limit(child.pid) == "0")
    eventually(lambda: Path(f"/proc/{child.pid}/environ").stat().st_uid == 0)
    assert child.poll() is None
    child.kill()
    child.communicate()
