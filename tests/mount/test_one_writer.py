"""Two real mounts, one writer at a time, on an S3 server that ignores conditions.

The times of the lease are a tenth and less of what they are: `_QUICK` sets them and runs the
command.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.fakes.s3 import Service, ThreadedService
from tests.mount.conftest import Processes
from tests.mount.machine import Machine, eventually

pytestmark = pytest.mark.fuse

_DEAD = 10.0
_QUICK = f"""
import sys
from megafs.journal import lease
lease.CONTEST = 0.5
lease.LEASE_INTERVAL = 1.0
lease.LEASE_DEAD = {_DEAD}
lease._FRESH = 3.0
from megafs.volume import upkeep
upkeep._LEASE_RETRY = 0.5
from megafs.__main__ import main
sys.exit(main())
"""


class QuickMachine(Machine):
    """A machine whose leases are short, at an S3 server."""

    def __init__(self, place: Path, name: str, endpoint: str) -> None:
        super().__init__(place, name, "s3://bucket/v")
        self.environ |= {
            "AWS_ACCESS_KEY_ID": "KEY",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_ENDPOINT_URL": endpoint,
            "HOME": str(self.place),
        }

    def command(self, *args: str | Path) -> list[str]:
        return [sys.executable, "-c", _QUICK, *map(str, args)]


def _fsynced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _may_write(path: Path) -> bool:
    try:
        _fsynced(path, b"")
    except OSError as exc:
        assert exc.errno in (errno.EROFS, errno.EIO), exc
        return False
    return True


@pytest.mark.slow
def test_a_stopped_holder_and_the_next_one_both_keep_what_they_synced(
    place: Path, processes: Processes
) -> None:
    with ThreadedService(Service(conditions="ignored")) as service:
        one = QuickMachine(place, "one", service.endpoint)
        two = QuickMachine(place, "two", service.endpoint)
        synced: dict[str, bytes] = {}
        try:
            one.format()
            one.mount()
            for n in range(3):
                synced[f"one {n}"] = os.urandom(3000)
                _fsynced(one.mnt / f"one {n}", synced[f"one {n}"])
            # Writes go on until it is stopped, so that it stands still anywhere in a commit.
            told = place / "told"
            told.touch()
            writer = processes.start(sys.executable, "-c", _WRITER, one.mnt, told)
            eventually(lambda: told.read_text().count("\n") > 2, within=30)
            stopped = one.pid
            processes.add(stopped)
            os.kill(stopped, signal.SIGSTOP)
            two.mount()
            eventually(lambda: _may_write(two.mnt / "two"), within=4 * _DEAD)
            for n in range(3):
                synced[f"two {n}"] = os.urandom(3000)
                _fsynced(two.mnt / f"two {n}", synced[f"two {n}"])
            os.kill(stopped, signal.SIGCONT)
            time.sleep(2)
            synced["two 3"] = os.urandom(3000)
            _fsynced(two.mnt / "two 3", synced["two 3"])
            writer.kill()
            two.umount()
            eventually(lambda: _may_write(one.mnt / "one"), within=4 * _DEAD)
            one.umount()
        finally:
            one.kill()
            two.kill()
        new = QuickMachine(place, "new", service.endpoint)
        try:
            new.mount("-o", "ro")
            found = {path.name: path.read_bytes() for path in new.mnt.iterdir() if path.is_file()}
            new.umount()
        finally:
            new.kill()
    for line in told.read_text().splitlines():
        synced[line] = line.encode() * 100
    assert len(synced) > 7, "nothing was written while the holder was stopped"
    assert {name for name in synced if found.get(name) != synced[name]} == set()


_WRITER = """
import os, sys, itertools
for n in itertools.count():
    name = f"while {n}"
    try:
        with open(os.path.join(sys.argv[1], name), "xb") as file:
            file.write(name.encode() * 100)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        continue
    with open(sys.argv[2], "a") as told:
        print(name, file=told)
"""
