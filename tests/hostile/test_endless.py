"""Row 29: a store that answers without end, over HTTP; a mount reads what it asked for, no more."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.ceph import Ceph
from tests.fakes.proxy import Change, Proxy, Response, ThreadedProxy
from tests.mount.machine import Machine

pytestmark = [pytest.mark.fuse, pytest.mark.ceph]


def _endless(response: Response) -> None:
    response.endless = True


@pytest.fixture
def proxy(ceph: Ceph) -> Iterator[ThreadedProxy]:
    with ThreadedProxy(ceph.endpoint) as running:
        yield running


@pytest.fixture
def machine(ceph: Ceph, proxy: ThreadedProxy, place: Path) -> Iterator[Machine]:
    made = Machine(place, "a", f"s3://{ceph.fresh_name()}/volume")
    made.environ.update(ceph.environment() | {"AWS_ENDPOINT_URL_S3": proxy.endpoint})
    made.environ["HOME"] = str(made.place)
    try:
        yield made
    finally:
        made.kill()


def _peak(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def test_row_29_endless_bodies_are_bounded(machine: Machine, proxy: ThreadedProxy) -> None:
    machine.format()
    machine.mount()
    data = os.urandom(2 << 20)
    (machine.mnt / "f").write_bytes(data)
    machine.umount()
    machine.mount(
        "-o", "deadline=5s", "--state-dir", machine.place / "s2", "--cache-dir",
        machine.place / "c2",
    )  # fmt: skip
    before = _peak(machine.pid)
    proxy.tell(Proxy.always, Change(_endless), method="GET", contains="/packs/")
    begin = time.monotonic()
    try:
        # A body that is right and then goes on is cut where the chunk ends.
        assert (machine.mnt / "f").read_bytes() == data
    except OSError as exc:
        assert exc.errno == errno.EIO
    assert time.monotonic() - begin < 60
    assert _peak(machine.pid) - before < 64 << 20
    proxy.tell(Proxy.heal)
    time.sleep(1.5)  # what was just given up on is not asked for again within a second
    assert (machine.mnt / "f").read_bytes() == data
    machine.umount()

    # The journal and the keys are read to a limit, too: refused or read, and soon.
    for part in ("/commits/", "/keys/"):
        proxy.tell(Proxy.always, Change(_endless), method="GET", contains=part)
        begin = time.monotonic()
        new = machine.place / part.strip("/")
        args = ("-o", "deadline=5s", "--state-dir", new / "s", "--cache-dir", new / "c")
        done = subprocess.run(
            machine.command("mount", machine.url, machine.mnt, *args),
            env=machine.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        # An answer that is not the one asked for (14), or one that does not verify (16).
        assert done.returncode in (14, 16), done.stderr
        said = done.stderr
        assert time.monotonic() - begin < 60
        assert part.strip("/") in said
        proxy.tell(Proxy.heal)
