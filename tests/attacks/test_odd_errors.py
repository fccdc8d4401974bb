"""A mount outlives whatever its store raises: it never vanishes by itself."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megafs.mount.processes import is_running
from tests.attacks.odd_mount import ERRORS, METHODS
from tests.mount.conftest import Processes
from tests.mount.machine import Machine, eventually, is_mounted


class OddMachine(Machine):
    """Its megafs has a store that raises what `odd` says."""

    @property
    def odd(self) -> Path:
        return self.place / "odd"

    def command(self, *args: str | Path) -> list[str]:
        return [sys.executable, "-m", "tests.attacks.odd_mount", *map(str, args)]


@pytest.fixture
def odd(place: Path) -> Iterator[OddMachine]:
    machine = OddMachine(place)
    machine.environ["ODD"] = str(machine.odd)
    machine.odd.write_text("")
    machine.format("--no-recovery-key")
    yield machine
    machine.odd.write_text("")
    machine.kill()


def log_of(machine: OddMachine) -> str:
    return "".join(path.read_text() for path in machine.place.rglob("*.log"))


@pytest.mark.parametrize("level", ["driver", "store"])
def test_a_mount_outlives_every_method_that_raises_every_error(odd: OddMachine, level: str) -> None:
    odd.mount("-o", "sync_interval=0.2,deadline=3")
    pid = odd.pid
    (odd.mnt / "before").write_bytes(b"before" * 30_000)
    number = 0
    for turn, method in enumerate(METHODS):
        for error in list(ERRORS)[turn % 2 :: 2]:
            odd.odd.write_text(f"{level} {method} {error}\n")
            number += 1
            (odd.mnt / f"file{number}").write_bytes(os.urandom(20_000))
            os.listdir(odd.mnt)
            time.sleep(0.3)
            assert is_running(pid)
            assert is_mounted(odd.mnt)
    odd.odd.write_text("".join(f"{level} {method} KeyError\n" for method in METHODS))
    time.sleep(1)
    assert (odd.mnt / "before").read_bytes() == b"before" * 30_000
    odd.odd.write_text("")

    status = odd.status()
    assert status["pid"] == pid
    assert "\x1b" not in log_of(odd)
    if status["frozen"] is None:
        eventually(lambda: odd.status()["pending_operations"] == 0, within=90)
        odd.umount()
    else:
        # What changes the tree gives up after a few times; what was written is kept here.
        assert level == "store"
        assert "this is a bug" in status["frozen"]
        odd.umount("--force")
    odd.mount()
    for n in range(1, number + 1):
        assert (odd.mnt / f"file{n}").stat().st_size == 20_000
    odd.umount()


@pytest.mark.parametrize("what", ["keep", "serve"])
def test_a_mount_outlives_a_disk_cache_with_a_fault(odd: OddMachine, what: str) -> None:
    odd.mount("-o", "sync_interval=0.2,deadline=3")
    pid = odd.pid
    for error in ("KeyError", "Unheard", "group"):
        odd.odd.write_text(f"cache {what} {error}\n")
        for n in range(3):
            (odd.mnt / f"{error}{n}").write_bytes(os.urandom(200_000))
            time.sleep(0.3)
        assert is_running(pid)
        assert is_mounted(odd.mnt)
    odd.odd.write_text("")
    eventually(lambda: odd.status()["pending_operations"] == 0, within=60)
    odd.umount()


def test_a_salvage_mount_outlives_them_as_well(odd: OddMachine, processes: Processes) -> None:
    odd.mount()
    (odd.mnt / "large").write_bytes(b"large" * 60_000)
    (odd.mnt / "small").write_bytes(b"small")
    odd.umount()
    salvage = processes.start(
        *odd.command("salvage", odd.url, "--mount", odd.mnt, "-o", "memory_cache=64K"),
        env=odd.environ,
    )
    eventually(lambda: is_mounted(odd.mnt), within=60)
    for error in ERRORS:
        odd.odd.write_text(f"driver get {error}\n")
        with pytest.raises(OSError, match="Input/output"):
            (odd.mnt / "large").read_bytes()
        assert (odd.mnt / "small").read_bytes() == b"small"
    odd.odd.write_text("kernel stop KeyError\n")
    salvage.terminate()
    time.sleep(1)
    assert salvage.poll() is None
    assert os.listdir(odd.mnt)
    odd.odd.write_text("")
    assert (odd.mnt / "large").read_bytes() == b"large" * 60_000
    salvage.terminate()
    assert salvage.wait(30) == 0
    assert not is_mounted(odd.mnt)


def test_a_commit_that_fails_again_and_again_makes_the_mount_read_only(odd: OddMachine) -> None:
    odd.mount("-o", "sync_interval=0.2,deadline=3")
    (odd.mnt / "kept").write_bytes(b"kept")
    odd.odd.write_text("store put_new Unheard\n")
    (odd.mnt / "staged").write_bytes(b"staged" * 10)

    eventually(lambda: odd.status()["frozen"] is not None, within=60)

    assert (odd.mnt / "kept").read_bytes() == b"kept"
    with pytest.raises(OSError, match="Read-only"):
        (odd.mnt / "no").write_bytes(b"no")
    assert "committing failed 5 times" in odd.status()["frozen"]
    odd.odd.write_text("")
    odd.umount("--force")
    odd.mount()
    assert (odd.mnt / "staged").read_bytes() == b"staged" * 10
    odd.umount()
