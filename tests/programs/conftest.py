"""Real programs on real mounts, made with the command line, on a directory and on Ceph.

One mount serves all tests that need nothing special, each in a directory of its own (`here`).  When
the last of them is through, what they left is copied away, the volume unmounted and mounted by
another machine, with empty state and cache, and compared with the copy: contents, names, kinds,
owners, modes, times, links, extended attributes and ACLs.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megafs.mount.processes import wait_for_end
from tests.engines.ceph import Ceph
from tests.mount.conftest import Processes, mounts_below
from tests.mount.machine import Machine

#: A test that takes longer hangs in the mount: killing that sets it free.
PATIENCE = 100.0


def run(*command: str | Path, cwd: Path | None = None, code: int = 0, **more: Any) -> str:
    """Run a program, which must end with *code*; return what it printed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=90,
        env={**os.environ, "LC_ALL": "C", "GIT_CONFIG_GLOBAL": "/dev/null"} | more.pop("env", {}),
        check=False,
        **more,
    )
    said: str = done.stdout.decode(errors="surrogateescape")
    wrong: str = done.stderr.decode(errors="surrogateescape")
    assert done.returncode == code, f"{command}: {done.returncode}\n{said[-3000:]}{wrong[-3000:]}"
    return said


def sh(script: str, *args: str | Path, cwd: Path, **more: Any) -> str:
    """Run a shell script that ends at the first error."""
    return run("sh", "-euc", script, "sh", *args, cwd=cwd, **more)


def _why(differ: str, left: Path, right: Path) -> str:
    """What is different about the first file of a list by rsync: it does not say when it cannot
    read one."""
    for line in differ.splitlines():
        kind, _, name = line.partition(" ")
        if not kind.startswith(">fc"):
            continue
        try:
            one, two = (left / name).read_bytes(), (right / name).read_bytes()
        except OSError as exc:
            return f"{name}: {exc}"
        at = next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), None)
        if at is None:
            return f"{name}: equal when read again"
        return (
            f"{name}: {len(one)} and {len(two)} bytes, "
            f"from {at}: {one[at : at + 40]!r} {two[at : at + 40]!r}"
        )
    return ""


def same(left: Path, right: Path) -> None:
    """Assert that two trees are equal as diff and rsync see them."""
    differ = run("rsync", "-nacHAX", "--delete", "-i", f"{left}/", f"{right}/")
    assert not differ, f"rsync would change\n{differ[:3000]}\n{_why(differ, left, right)}"
    # Of fifos and sockets diff says that they are; rsync has looked at their kind.
    done = subprocess.run(
        ["diff", "-rq", "--no-dereference", left, right],
        capture_output=True,
        check=False,
        timeout=90,
        env={**os.environ, "LC_ALL": "C"},
    )
    special = re.compile(rb"File .* is a (fifo|socket|.* special file) while file .* is a \1")
    lines = [x for x in done.stdout.splitlines() if not special.fullmatch(x)]
    assert not lines, lines[:50]
    assert not done.stderr, done.stderr


class Disk:
    """A mounted volume and the machine that has it."""

    def __init__(self, place: Path, url: str | None, environ: dict[str, str]) -> None:
        self.place = place
        self._url = url
        self._environ = environ
        self._machines = 0
        self.machine = self._new_machine()

    def _new_machine(self) -> Machine:
        self._machines += 1
        machine = Machine(self.place, f"machine{self._machines}", self._url)
        machine.environ.update(self._environ)
        machine.mnt.chmod(0o755)
        return machine

    @property
    def mnt(self) -> Path:
        return self.machine.mnt

    def format(self, *args: str) -> None:
        self.machine.format(*args)

    def mount(self, *args: str) -> None:
        self.machine.mount(*args)

    def umount(self) -> None:
        self.machine.umount()

    def move(self, *args: str) -> None:
        """Unmount; mount on a machine that has never seen the volume."""
        self.machine.umount()
        self.machine = self._new_machine()
        self.machine.mount(*args)

    def compared_elsewhere(self, *args: str) -> None:
        """Another machine, with nothing but the store, sees what this one sees now."""
        copy = self.place / f"copy{self._machines}"
        copy.mkdir()
        run("rsync", "-aHAX", f"{self.mnt}/", f"{copy}/")
        same(copy, self.mnt)
        self.move(*args)
        same(copy, self.mnt)

    def crash(self) -> None:
        """kill -9 of the mount's process; the dead mountpoint stays."""
        pid = self.machine.pid
        os.kill(pid, signal.SIGKILL)
        assert wait_for_end(pid, 20)

    def end(self) -> None:
        self.machine.kill()
        for point in mounts_below(self.place):
            subprocess.run(["umount", "-l", point], check=False)
        shutil.rmtree(self.place, ignore_errors=True)


def _disk(where: str, request: pytest.FixtureRequest) -> Disk:
    environ: dict[str, str] = {}
    url = None
    if where == "ceph":
        ceph: Ceph = request.getfixturevalue("ceph")
        environ = ceph.environment()
        url = f"s3://{ceph.fresh_name()}/volume"
    # Not below pytest's directories: they are closed to the users that some tests become.
    place = Path(tempfile.mkdtemp(prefix="megafs-programs-"))
    place.chmod(0o755)
    disk = Disk(place, url, environ)
    disk.machine.place.chmod(0o755)
    return disk


BOTH = ["file", pytest.param("ceph", marks=pytest.mark.ceph)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run on a directory and on Ceph, or, where the store has no part in it, on STORES only."""
    if "store" in metafunc.fixturenames:
        stores = getattr(metafunc.module, "STORES", BOTH)
        metafunc.parametrize("store", stores, scope="session")


@pytest.fixture(scope="session")
def shared(store: str, request: pytest.FixtureRequest) -> Iterator[Disk]:
    """A disk for all tests that do not unmount it."""
    disk = _disk(store, request)
    try:
        disk.format()
        disk.mount("-o", "allow_other")
        yield disk
        disk.compared_elsewhere("-o", "allow_other")
        disk.umount()
    finally:
        disk.end()


@pytest.fixture
def own_disk(store: str, request: pytest.FixtureRequest) -> Iterator[Disk]:
    """A formatted volume of the test's own, not mounted yet."""
    disk = _disk(store, request)
    disk.format()
    with Watched(disk):
        try:
            yield disk
        finally:
            disk.end()


@pytest.fixture
def here(shared: Disk, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of the test's own on the shared disk."""
    path = shared.mnt / re.sub(r"\W+", "_", request.node.name)
    path.mkdir()
    with Watched(shared):
        yield path


class Watched:
    """Kill the disk's mount if a test takes too long: what hangs in the kernel is let go."""

    def __init__(self, disk: Disk) -> None:
        self._timer = threading.Timer(PATIENCE, disk.machine.kill)
        self._disk = disk

    def __enter__(self) -> None:
        self._timer.daemon = True
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


@pytest.fixture
def programs() -> Iterator[Processes]:
    """Programs that end with the test."""
    started = Processes()
    yield started
    started.end()
