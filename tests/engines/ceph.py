"""A real Ceph on this machine for as long as somebody wants it: monitor, OSDs, S3 gateway.

    with Ceph() as ceph:                     # for tests; ready in two to four seconds
        ceph.endpoint, ceph.access, ceph.secret, ceph.region

    python -m tests.engines.ceph start DIR   # for people and scripts; prints `export` lines
    python -m tests.engines.ceph stop DIR

Everything lies under one temporary directory, listens on loopback only and needs neither root nor
systemd.  Debian's packages: ceph-mon ceph-osd radosgw ceph-common.

Nothing outlives its owner.  Each daemon runs in the foreground under `setpriv --pdeathsig KILL`,
so that the kernel ends it with the process that started it, even if that one was killed.  The
directory holds `owner` (pid and start time) and `run/*.pid`; whoever starts the next cluster clears
directories whose owner is gone.  Processes are ended by their own pid, never by name.

One OSD on memstore answers like the real thing and keeps its objects in memory.  Three OSDs on
bluestore (`Ceph(osds=3, store="bluestore")`, 15 s) are for faults: `suspend("osd.1")` makes
requests stall for seconds without an error, as a sick cluster does.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin", "setpriv")
PACKAGES = "ceph-mon ceph-osd radosgw ceph-common"
NAME = "megafs-ceph-"

CONFIG = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}/0
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
# One protocol, so half the ports; a range of our own, so that two clusters do not meet.
ms bind msgr1 = false
ms bind msgr2 = true
ms bind port min = {port_min}
ms bind port max = {port_max}
auth cluster required = none
auth service required = none
auth client required = none
# Without keys there is nothing to encrypt with, and Ceph 16 asks for it on this one connection.
ms mon client mode = crc
run dir = {dir}/run
pid file = {dir}/run/$type.$id.daemon
admin socket = {dir}/run/$type.$id.asok
log file = {dir}/log/$type.$id.log
crash dir = {dir}/log
log to stderr = false
mon cluster log file = {dir}/log/cluster.log
mon data = {dir}/mon
# The test machine's disk may be nearly full: that must not stop a cluster that lives in memory.
mon data avail warn = 2
mon data avail crit = 1
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
# Seconds of patience turned down to what one machine needs.
paxos propose interval = 0.05
mon osd min down reporters = 1
mon osd reporter subtree level = osd
mon osd down out interval = 600
osd heartbeat interval = 1
osd heartbeat grace = 5
osd data = {dir}/osd.$id
osd objectstore = {store}
osd class update on start = false
# Debian 13 builds the default path without its leading slash.
osd class dir = {classes}
osd crush chooseleaf type = 0
osd pool default size = {size}
osd pool default min size = {min_size}
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
# A fast shutdown looks like a crash to the others, which then wait for the heartbeat.
osd fast shutdown = false
osd memory target = 939524096
memstore device bytes = {bytes}
bluestore block size = {bytes}
bluestore fsck on mount = false

[client]
keyring = {dir}/none
rgw data = {dir}/rgw
rgw enable usage log = false
rgw enable ops log = false
rgw dynamic resharding = false
rgw run sync thread = false
rgw thread pool size = 64
rgw gc obj min wait = 20
rgw gc processor period = 20
rgw gc processor max time = 20
# Without nodelay every small answer waits 40 ms for the client's acknowledgement.
rgw frontends = beast endpoint=127.0.0.1:{s3_port} tcp_nodelay=1
"""


class EngineError(Exception):
    """The cluster could not be started; the text says why and where the logs are."""


class Ceph:
    """A running cluster; `with Ceph() as ceph:` starts and ends it.

    directory: where everything lies; a fresh temporary one unless given, removed at the end.
    """

    access = "megafstest"
    secret = "megafstestsecret"
    region = "us-east-1"

    def __init__(
        self,
        directory: Path | None = None,
        *,
        osds: int = 1,
        store: str = "memstore",
        size: int | None = None,
        capacity: int = 8 << 30,
    ) -> None:
        missing = [p for p in PROGRAMS if shutil.which(p) is None]
        if missing:
            raise EngineError(
                f"these tests need a real Ceph, and {', '.join(missing)} cannot be found.\n"
                f"Install it with `make setup-test` or `apt-get install {PACKAGES}`."
            )
        self._given = directory
        self._osds, self._store, self._capacity = osds, store, capacity
        self._size = size or osds
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._buckets = itertools.count(1)
        self.directory = Path()
        self.endpoint = ""

    def __enter__(self) -> Ceph:
        clear_stale()
        for attempt in itertools.count(1):  # a port may be taken between our look and their bind
            self.directory = _owned(self._given)
            try:
                self._start()
                return self
            except EngineError:
                self._end()
                if attempt == 3:
                    raise
            except BaseException:
                self._end()
                raise
        raise AssertionError

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._end()

    # What tests ask for

    def environment(self) -> dict[str, str]:
        """The variables with which any S3 program finds and may use this cluster."""
        return {
            "AWS_ACCESS_KEY_ID": self.access,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": self.region,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def fresh_name(self) -> str:
        """A bucket name nobody has used in this cluster; the bucket is not made."""
        return f"megafs-{os.getpid()}-{next(self._buckets)}"

    def stop(self, name: str) -> None:
        """Kill one daemon: "osd.0", "rgw", "mon"."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def restart(self, name: str) -> None:
        """Start a daemon that was stopped and wait until the gateway answers.

        Only from the main thread: PR_SET_PDEATHSIG ends a daemon with the thread that started it,
        and trio's worker threads end when they have been idle for ten seconds.
        """
        assert threading.current_thread() is threading.main_thread()
        self._spawn(name)
        self._wait_for_s3()

    @contextmanager
    def suspended(self, name: str) -> Iterator[None]:
        """Freeze one daemon for the block: it keeps its connections and answers nobody."""
        process = self._running[name]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    # Starting

    def _start(self) -> None:
        d = self.directory
        for part in ("run", "log", "mon", "rgw"):
            (d / part).mkdir()
        s3_port, mon_port, port_min, port_max = _ports()
        fsid = str(uuid.uuid4())
        (d / "ceph.conf").write_text(
            CONFIG.format(
                dir=d,
                fsid=fsid,
                mon_port=mon_port,
                port_min=port_min,
                port_max=port_max,
                s3_port=s3_port,
                store=self._store,
                size=self._size,
                min_size=2 if self._size > 2 else 1,
                bytes=self._capacity,
                classes=next(Path("/usr").glob("lib*/**/rados-classes"), "rados-classes"),
            )
        )
        self.endpoint = f"http://127.0.0.1:{s3_port}"
        self._mon_port, self._s3_port = mon_port, s3_port

        monmap = str(d / "monmap")
        address = f"[v2:127.0.0.1:{mon_port}]"
        self._run(
            "monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address,
            "--set-min-mon-release", _release(), monmap,
        )  # fmt: skip
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
        self._spawn("mon")
        self._wait_for_port(mon_port, "mon")

        making = []
        for i in range(self._osds):  # ids are given in order; the disks can be made side by side
            (d / f"osd.{i}").mkdir()
            name = str(uuid.uuid4())
            self._run("ceph", "--connect-timeout", "30", "osd", "new", name)
            making.append(self._popen(f"mkfs.{i}", "ceph-osd", "-i", str(i), "--mkfs",
                                      "--osd-uuid", name))  # fmt: skip
        for i, process in enumerate(making):
            if process.wait(60) != 0:
                raise self._failure(f"ceph-osd --mkfs {i}", f"mkfs.{i}")
        for i in range(self._osds):
            self._spawn(f"osd.{i}")
        self._run(
            "radosgw-admin", "-n", "client.rgw", "user", "create", "--uid=test",
            "--display-name=test", f"--access-key={self.access}", f"--secret-key={self.secret}",
        )  # fmt: skip
        self._spawn("rgw")
        self._wait_for_s3()

    def _spawn(self, name: str) -> None:
        kind, _, number = name.partition(".")
        what = {
            "mon": ("ceph-mon", "-f", "-i", "a"),
            "osd": ("ceph-osd", "-f", "-i", number),
            "rgw": ("radosgw", "-f", "-n", "client.rgw"),
        }[kind]
        process = self._popen(name, "setpriv", "--pdeathsig", "KILL", *what)
        self._running[name] = process
        (self.directory / "run" / f"{name}.pid").write_text(f"{process.pid}\n")

    def _popen(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.directory / "log" / f"{name}.out").open("ab") as out:
            return subprocess.Popen(
                command,
                env=os.environ | {"CEPH_CONF": str(self.directory / "ceph.conf")},
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def _run(self, *command: str) -> None:
        name = command[0]
        if self._popen(name, *command).wait(60) != 0:
            raise self._failure(" ".join(command[:4]), name)

    def _wait_for_port(self, port: int, name: str, patience: float = 30) -> None:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if self._running[name].poll() is not None:
                raise self._failure(f"{name} ended at once", name)
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.02)
        raise self._failure(f"{name} does not listen after {patience:.0f} s", name)

    def _wait_for_s3(self) -> None:
        # A gateway that listens has made its pools: the first request need not wait for them.
        self._wait_for_port(self._s3_port, "rgw", 60)

    def _failure(self, what: str, name: str) -> EngineError:
        said = []
        for log in (f"{name}.out", f"{name}.log"):
            path = self.directory / "log" / log
            if path.exists():
                said += path.read_text(errors="replace").splitlines()[-8:]
        return EngineError(f"Ceph did not start: {what}\n" + "\n".join(said))

    def _end(self) -> None:
        # Nothing here is worth an orderly shutdown.
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait()
        self._running.clear()
        shutil.rmtree(self.directory, ignore_errors=True)


def _release() -> str:
    """The name of this Ceph's release: a monitor refuses maps that are much older."""
    # ceph version 16.2.15 (618f44...) pacific (stable)
    said = subprocess.run(["ceph-mon", "--version"], capture_output=True, text=True, check=True)
    return said.stdout.split(")")[1].split()[0]


def _ports() -> tuple[int, int, int, int]:
    """Ports for S3 and the monitor, and a range for the OSDs, below the kernel's own range."""
    chosen: list[int] = []
    while len(chosen) < 2:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as s:
            if port not in chosen and s.connect_ex(("127.0.0.1", port)) != 0:
                chosen.append(port)
    start = random.randrange(10_000, 31_900)
    return chosen[0], chosen[1], start, start + 99


def _owned(given: Path | None) -> Path:
    if given is None:
        directory = Path(tempfile.mkdtemp(prefix=NAME))
    else:
        directory = given.resolve()
        directory.mkdir(parents=True)
    (directory / "owner").write_text(f"{os.getpid()} {_started(os.getpid())}\n")
    return directory


def _started(pid: int) -> str:
    """When the kernel started that process, "" if it is gone: tells a pid from its reuse."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def clear_stale() -> None:
    """End what dead owners left behind, and remove their directories."""
    for directory in Path(tempfile.gettempdir()).glob(NAME + "*"):
        try:
            pid, _, started = (directory / "owner").read_text().strip().partition(" ")
        except OSError:
            continue  # being made just now
        if not (pid.isdigit() and _started(int(pid)) == started):
            clear(directory)


def clear(directory: Path) -> None:
    """End the daemons whose pid files lie in *directory*, and remove it."""
    for file in (directory / "run").glob("*.pid"):
        pid = int(file.read_text())
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if f"CEPH_CONF={directory}/".encode() in environment:  # ours, not a reused number
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(directory, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """Start, keep or stop a cluster for people and scripts."""
    if len(arguments) != 2 or arguments[0] not in ("start", "keep", "stop"):
        print("usage: python -m tests.engines.ceph start|stop DIR", file=sys.stderr)
        return 2
    command, directory = arguments[0], Path(arguments[1]).resolve()
    if command == "keep":
        with Ceph(directory) as ceph:
            lines = [f"export {k}='{v}'" for k, v in ceph.environment().items()]
            (directory / "ready").write_text("\n".join(lines) + "\n")
            signal.pause()
        return 0
    if command == "stop":
        try:
            pid, _, started = (directory / "owner").read_text().strip().partition(" ")
        except OSError:
            return 0
        if _started(int(pid)) == started:
            os.kill(int(pid), signal.SIGKILL)
        clear(directory)
        return 0
    keeper = subprocess.Popen(
        [sys.executable, "-m", "tests.engines.ceph", "keep", str(directory)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    while keeper.poll() is None:
        if (directory / "ready").exists():
            print((directory / "ready").read_text(), end="")
            return 0
        time.sleep(0.05)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
