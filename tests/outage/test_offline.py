"""Without network: what this machine has works, what is written arrives later."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megafs.mount.processes import is_running
from tests.fakes.proxy import Proxy, ThreadedProxy
from tests.mount.machine import Machine, eventually

pytestmark = [pytest.mark.fuse, pytest.mark.ceph]

MIB = 1 << 20


def test_mount_read_write_without_network_then_everything_arrives(
    on_network: Callable[..., Machine], network: ThreadedProxy
) -> None:
    far = on_network("far", direct=True)
    far.mount()
    for directory in ("pinned", "other"):
        (far.mnt / directory / "deep").mkdir(parents=True)
        for name in ("x", "deep/y"):
            (far.mnt / directory / name).write_bytes(_random(directory + name))
    far.umount()

    machine = on_network("laptop")
    machine.mount()
    assert (machine.mnt / "other" / "x").read_bytes() == _random("otherx")
    said = machine.run("pin", machine.mnt / "pinned").stdout
    assert "pinned" in said
    listed = machine.run("pin", "--list", machine.mnt).stdout
    assert "pinned" in listed
    machine.umount()

    network.tell(Proxy.refuse)
    begin = time.monotonic()
    said = machine.mount("-o", "deadline=3s").stderr
    assert time.monotonic() - begin < 30
    assert "the store did not answer: working with what this machine has" in said
    # What is pinned or was read is there, all names are, what is neither says so soon.
    for name in ("x", "deep/y"):
        assert (machine.mnt / "pinned" / name).read_bytes() == _random("pinned" + name)
    assert (machine.mnt / "other" / "x").read_bytes() == _random("otherx")
    assert sorted(os.listdir(machine.mnt / "other")) == ["deep", "x"]
    begin = time.monotonic()
    with pytest.raises(OSError) as failure:
        (machine.mnt / "other" / "deep" / "y").read_bytes()
    assert failure.value.errno == errno.EIO
    assert time.monotonic() - begin < 15
    # Work.
    (machine.mnt / "written").write_bytes(_random("written"))
    (machine.mnt / "pinned" / "x").rename(machine.mnt / "moved")
    (machine.mnt / "other" / "x").unlink()
    time.sleep(2.5)  # what is not followed by a close is kept within a second or so
    os.kill(machine.pid, signal.SIGKILL)
    eventually(lambda: not is_running(machine.pid))
    machine.mount("-o", "deadline=3s")
    _check_work(machine.mnt)
    assert machine.status()["offline"]
    assert machine.status()["staged_bytes"] >= MIB

    network.tell(Proxy.accept)
    eventually(lambda: machine.status()["pending_operations"] == 0, within=40)
    status = machine.status()
    assert status["staged_bytes"] == 0
    assert not status["offline"]
    assert not status["conflicts"]
    far.mount()
    _check_work(far.mnt)
    assert (far.mnt / "other" / "deep" / "y").read_bytes() == _random("otherdeep/y")
    # Unpinned, it may be evicted again, and is still read.
    machine.run("unpin", machine.mnt / "pinned")
    assert "nothing is pinned" in machine.run("pin", "--list", machine.mnt).stdout
    assert (machine.mnt / "pinned" / "deep" / "y").read_bytes() == _random("pinneddeep/y")
    far.umount()
    machine.umount()


def _check_work(mnt: Path) -> None:
    assert (mnt / "written").read_bytes() == _random("written")
    assert (mnt / "moved").read_bytes() == _random("pinnedx")
    assert not (mnt / "other" / "x").exists()
    assert os.listdir(mnt / "pinned") == ["deep"]


def _random(name: str) -> bytes:
    import random

    return random.Random(name).randbytes(MIB)


def test_beyond_the_stage_limit_writers_get_enospc_and_nothing_is_lost(
    on_network: Callable[..., Machine], network: ThreadedProxy
) -> None:
    machine = on_network("laptop")
    machine.mount("-o", "deadline=3s,stage_limit=6M,dirty_limit=2M")
    network.tell(Proxy.refuse)
    kept: list[int] = []
    failed: OSError | None = None
    begin = time.monotonic()
    for n in range(40):
        try:
            (machine.mnt / f"f{n}").write_bytes(_random(str(n)))
            kept.append(n)
        except OSError as exc:
            failed = exc
            break
    assert failed is not None
    assert failed.errno == errno.ENOSPC
    assert time.monotonic() - begin < 60
    assert 3 <= len(kept) <= 12
    for n in kept:
        assert (machine.mnt / f"f{n}").read_bytes() == _random(str(n))
    # The store's own size is not the point: df still shows the quota.
    assert os.statvfs(machine.mnt).f_bavail > 0
    assert any("stage_limit" in e["text"] for e in machine.status()["errors"])

    network.tell(Proxy.accept)
    eventually(lambda: machine.status()["staged_bytes"] == 0, within=40)
    (machine.mnt / "again").write_bytes(_random("again"))
    machine.umount()
    far = on_network("far", direct=True)
    far.mount()
    for n in kept:
        assert (far.mnt / f"f{n}").read_bytes() == _random(str(n))
    assert (far.mnt / "again").read_bytes() == _random("again")
    far.umount()
