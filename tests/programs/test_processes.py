"""Processes that meet in files: locks, pipes, sockets, appenders, parallel readers."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.conftest import Processes
from tests.programs.conftest import Disk, run

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(150)]

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
if sys.argv[2] == "flock":
    fcntl.flock(file, fcntl.LOCK_EX)
else:
    fcntl.lockf(file, fcntl.LOCK_EX, 10, 5)
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("kind", ["flock", "fcntl"])
def test_locks_between_processes(here: Path, programs: Processes, kind: str) -> None:
    (here / "f").write_bytes(b"x" * 100)
    holder = programs.start(sys.executable, "-c", HOLDER, here / "f", kind, stdin=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    nonblocking = fcntl.LOCK_EX | fcntl.LOCK_NB
    with (here / "f").open("r+b") as file:
        with pytest.raises(BlockingIOError):
            if kind == "flock":
                fcntl.flock(file, nonblocking)
            else:
                fcntl.lockf(file, nonblocking, 3, 12)
        if kind == "fcntl":
            fcntl.lockf(file, nonblocking, 5, 0)
        holder.stdin.close()
        assert holder.wait(30) == 0
        if kind == "flock":
            fcntl.flock(file, nonblocking)
        else:
            fcntl.lockf(file, nonblocking, 3, 12)


def test_flock_program(here: Path) -> None:
    run("flock", "-n", here / "lock", "true")
    with (here / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        run("flock", "-n", here / "lock", "true", code=1)


def test_a_fifo_between_processes(here: Path) -> None:
    fifo = here / "fifo"
    os.mkfifo(fifo, 0o600)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE) as reader:
        with fifo.open("wb") as writer:
            writer.write(b"through the pipe")
        assert reader.stdout is not None
        assert reader.stdout.read() == b"through the pipe"


def test_a_socket_between_processes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)  # a socket's path has room for 107 bytes
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("s")
        server.listen()
        assert stat.S_ISSOCK(os.stat("s").st_mode)
        client.connect("s")
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"hello")
            assert client.recv(5) == b"hello"


APPENDER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for n in range(300):
    os.write(fd, b"%s%05d\\n" % (sys.argv[2].encode() * 20, n))
"""


def test_appenders_lose_nothing_of_each_other(here: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", APPENDER, here / "log", who]) for who in "abc"
    ]
    for writer in writers:
        assert writer.wait(60) == 0
    lines = (here / "log").read_bytes().splitlines()
    assert len(lines) == 900
    for who in b"abc":
        mine = [line for line in lines if line[0] == who]
        assert mine == [bytes([who]) * 20 + b"%05d" % n for n in range(300)]


def test_parallel_readers_of_large_files(here: Path) -> None:
    sums = {}
    for name in "ab":
        data = os.urandom(24 << 20)
        sums[name] = hashlib.sha256(data).digest()
        (here / name).write_bytes(data)
    _forget(here)

    def read(name: str) -> bytes:
        return hashlib.sha256((here / name).read_bytes()).digest()

    with ThreadPoolExecutor(6) as pool:
        for name, seen in zip("ababab", pool.map(read, "ababab"), strict=True):
            assert seen == sums[name]


def _forget(path: Path) -> None:
    """Have the kernel drop the pages of the files below."""
    for file in path.iterdir():
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def test_readers_on_a_machine_that_has_nothing_yet(own_disk: Disk) -> None:
    """Backwards, strided, random, sequential: read ahead or not, the bytes are right."""
    own_disk.mount()
    data = os.urandom(20 << 20)
    (own_disk.mnt / "f").write_bytes(data)
    small = {f"s{n}": os.urandom(n * 37) for n in range(300)}
    for name, content in small.items():
        (own_disk.mnt / name).write_bytes(content)
    own_disk.move()
    path = own_disk.mnt / "f"
    wrong: list[tuple[int | str, int]] = []

    def read(step: int, start: int) -> None:
        fd = os.open(path, os.O_RDONLY)
        places = range(start, len(data), step) if step > 0 else range(start, 0, step)
        wrong.extend((step, at) for at in places if os.pread(fd, 5000, at) != data[at : at + 5000])
        os.close(fd)

    def read_small() -> None:
        for name, content in small.items():
            if (own_disk.mnt / name).read_bytes() != content:
                wrong.append((name, 0))

    threads = [
        threading.Thread(target=read, args=args)
        for args in ((4096 * 7, 0), (-100_003, len(data) - 1), (1 << 20, 77), (65_536, 1))
    ]
    threads.append(threading.Thread(target=read_small))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    own_disk.umount()


def test_what_the_kernel_answers_for_what_fuse_here_does_not_have(here: Path) -> None:
    """Documented in docs/semantics.md."""
    with (here / "f").open("w+b") as file:
        file.write(b"data")
        file.flush()
        # The whole file counts as data.
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 4
    run("fallocate", "-l", "1M", here / "g", code=1)
    with (here / "g").open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 100_000)  # glibc writes zeros where need be
    assert (here / "g").read_bytes() == bytes(100_000)
    with pytest.raises(OSError) as caught:
        os.close(os.open(here, os.O_TMPFILE | os.O_RDWR))
    assert caught.value.errno in (errno.EOPNOTSUPP, errno.EISDIR)
    with (here / "f").open("rb") as source, (here / "h").open("wb") as to:
        assert os.copy_file_range(source.fileno(), to.fileno(), 4) == 4
    assert (here / "h").read_bytes() == b"data"
