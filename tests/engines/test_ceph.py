"""The engine starts, stalls and ends as its users rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.engines import ceph as engine
from tests.engines.ceph import Ceph

pytestmark = pytest.mark.ceph


def pids(directory: Path) -> list[int]:
    return [int(file.read_text()) for file in (directory / "run").glob("*.pid")]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_nothing_outlives_a_killed_owner(tmp_path: Path) -> None:
    where = tmp_path / "cluster"
    owner = subprocess.Popen([sys.executable, "-m", "tests.engines.ceph", "keep", str(where)])
    deadline = time.monotonic() + 60
    while not (where / "ready").exists():
        assert time.monotonic() < deadline and owner.poll() is None
        time.sleep(0.05)
    daemons = pids(where)
    assert len(daemons) == 3 and all(map(alive, daemons))

    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()

    deadline = time.monotonic() + 10
    while any(map(alive, daemons)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_directories_of_dead_owners_are_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / (engine.NAME + "left")
    (left / "run").mkdir(parents=True)
    sleeper = subprocess.Popen(["sleep", "60"], env={"CEPH_CONF": f"{left}/ceph.conf"})
    stranger = subprocess.Popen(["sleep", "60"])
    while b"CEPH_CONF" not in Path(f"/proc/{sleeper.pid}/environ").read_bytes():
        time.sleep(0.01)  # it is still being made
    try:
        (left / "run" / "rgw.pid").write_text(f"{sleeper.pid}\n")
        (left / "run" / "mon.pid").write_text(f"{stranger.pid}\n")
        (left / "owner").write_text(f"{os.getpid()} 1\n")  # our number, but another's start

        engine.clear_stale()

        assert not left.exists()
        assert sleeper.wait(5) == -signal.SIGKILL
        assert stranger.poll() is None, "a reused pid belongs to somebody else"
    finally:
        for process in (sleeper, stranger):
            process.kill()
            process.wait()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")

    with pytest.raises(engine.EngineError, match="apt-get install ceph-mon ceph-osd radosgw"):
        Ceph()
