"""Mounts under a test's own directory, and nothing left of them afterwards."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.machine import Machine

_libc = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2


def mounts_below(directory: Path) -> list[str]:
    """Return the mountpoints at or below *directory*, innermost first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if point == str(directory) or point.startswith(f"{directory}/"):
            found.append(point)
    return sorted(found, reverse=True)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory below which every mount is detached at the end, whatever happened."""
    yield tmp_path
    for point in mounts_below(tmp_path):
        _libc.umount2(os.fsencode(point), _MNT_DETACH)


class Processes:
    """Programs a test started; those still running at its end are killed, by pid."""

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._started: list[subprocess.Popen[str]] = []

    def add(self, pid: int) -> None:
        """Kill *pid* at the end, too."""
        self._pids.add(pid)

    def start(self, *args: str | Path, **options: object) -> subprocess.Popen[str]:
        """Start a program; text pipes for what it prints unless told otherwise."""
        given: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            **options,
        }
        process: subprocess.Popen[str] = subprocess.Popen([str(arg) for arg in args], **given)
        self._pids.add(process.pid)
        self._started.append(process)
        return process

    def end(self) -> None:
        for pid in self._pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline and _is_running(pid):
                time.sleep(0.02)
        for process in self._started:
            # Its first thread may have ended before another one, which the kernel holds.
            process.wait(20)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


def _is_running(pid: int) -> bool:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.fixture
def processes(place: Path) -> Iterator[Processes]:
    """Programs that end with the test; before the mounts are detached."""
    started = Processes()
    yield started
    started.end()


@pytest.fixture
def machine(place: Path) -> Iterator[Machine]:
    """A machine with a new volume, not mounted yet; its mount is killed at the end if need be."""
    made = Machine(place)
    try:
        yield made
    finally:
        made.kill()


@pytest.fixture
def volume(machine: Machine) -> Machine:
    """The machine, with a volume formatted at its URL."""
    machine.format()
    return machine
