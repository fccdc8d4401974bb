"""The work, as a program would do it: each step is a function on a mounted directory.

The benchmark runs a step as `python -m benchmarks.workloads STEP JSON` in a process of its own, so
that a mount that hangs only costs that step.  The step prints one line of JSON the moment its work
is done: {"seconds": ..., "amount": ...}.  Nothing here knows which filesystem it runs on.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

MIB = 1 << 20
PAGE = 4096

Measured = tuple[float, float]
Step = Callable[..., Measured]
STEPS: dict[str, Step] = {}


def step(function: Step) -> Step:
    STEPS[function.__name__] = function
    return function


class Clock:
    """The time that a block takes."""

    def __enter__(self) -> Clock:
        self.begin = time.perf_counter()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.seconds = time.perf_counter() - self.begin


def sync(path: str, *, directory: bool = False) -> None:
    """fsync, as far as the filesystem has it (rclone and s3fs have none for directories)."""
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECTORY if directory else 0))
    try:
        os.fsync(fd)
    except OSError:
        if not directory:
            raise
    finally:
        os.close(fd)


def forget_pages(path: str) -> None:
    """Have the kernel drop its pages of the file, so that the filesystem is asked again."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


# -- big files


@step
def write(path: str, mib: int) -> Measured:
    """Incompressible bytes, 1 MiB at a time, with fsync."""
    data = random.Random(path).randbytes(MIB + mib)
    view = memoryview(data)
    with Clock() as clock:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for n in range(mib):  # pieces that differ, without the cost of making them
            os.write(fd, view[n : n + MIB])
        os.fsync(fd)
        os.close(fd)
    return clock.seconds, mib


@step
def first_byte(path: str) -> Measured:
    with Clock() as clock:
        fd = os.open(path, os.O_RDONLY)
        assert len(os.pread(fd, 1, 0)) == 1
        os.close(fd)
    return clock.seconds, 1


@step
def read(path: str, drop: bool = False) -> Measured:
    """From the beginning to the end; drop: not from the kernel's page cache."""
    if drop:
        forget_pages(path)
    buffer = bytearray(MIB)
    total = 0
    with Clock() as clock:
        fd = os.open(path, os.O_RDONLY)
        while n := os.readv(fd, [buffer]):
            total += n
        os.close(fd)
    assert total == os.stat(path).st_size
    return clock.seconds, total / MIB


def side_by_side(work: Callable[[int], None], count: int) -> None:
    """Do ``work(0)`` to ``work(count - 1)`` in threads; raise the first of their errors."""
    failures: list[Exception] = []

    def run(number: int) -> None:
        try:
            work(number)
        except Exception as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@step
def random_reads(path: str, count: int, readers: int, seed: int) -> Measured:
    """4 KiB at random offsets, by *readers* at once; the page cache is dropped before."""
    forget_pages(path)
    pages = os.stat(path).st_size // PAGE

    def run(number: int) -> None:
        pick = random.Random(seed * 100 + number)
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(count // readers):
            assert len(os.pread(fd, PAGE, pick.randrange(pages) * PAGE)) == PAGE
        os.close(fd)

    with Clock() as clock:
        side_by_side(run, readers)
    return clock.seconds, count


@step
def overwrite(path: str, count: int, seed: int) -> Measured:
    """4 KiB in place at random offsets of a big file, then fsync."""
    pick = random.Random(seed)
    pages = os.stat(path).st_size // PAGE
    data = pick.randbytes(PAGE)
    with Clock() as clock:
        fd = os.open(path, os.O_RDWR)
        for _ in range(count):
            os.pwrite(fd, data, pick.randrange(pages) * PAGE)
        os.fsync(fd)
        os.close(fd)
    return clock.seconds, count


# -- many files


@step
def create(path: str, count: int) -> Measured:
    """Small files, a hundred to a directory; no fsync of each, one of the directory at the end."""
    pick = random.Random(path)
    contents = [pick.randbytes(pick.choice((300, 2000, 9000))) for _ in range(count)]
    with Clock() as clock:
        os.mkdir(path)
        for n, data in enumerate(contents):
            directory = f"{path}/{n // 100:03d}"
            if n % 100 == 0:
                os.mkdir(directory)
            with open(f"{directory}/file-{n:06d}", "wb") as file:
                file.write(data)
        sync(path, directory=True)
    return clock.seconds, count


@step
def create_synced(path: str, count: int) -> Measured:
    """Small files, each with its own fsync, as a mail server does it."""
    data = random.Random(path).randbytes(3000)
    os.mkdir(path)
    with Clock() as clock:
        for n in range(count):
            with open(f"{path}/{n}", "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
    return clock.seconds, count


@step
def read_back(path: str) -> Measured:
    count = 0
    with Clock() as clock:
        for base, _, names in os.walk(path):
            for name in sorted(names):
                with open(f"{base}/{name}", "rb") as file:
                    file.read()
                count += 1
    assert count
    return clock.seconds, count


@step
def names(path: str, count: int) -> Measured:
    """A directory of many empty files."""
    os.mkdir(path)
    with Clock() as clock:
        for n in range(count):
            os.close(os.open(f"{path}/entry-{n:07d}", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        sync(path, directory=True)
    return clock.seconds, count


@step
def listing(path: str) -> Measured:
    with Clock() as clock:
        found = len(os.listdir(path))
    assert found
    return clock.seconds, found


@step
def find(path: str) -> Measured:
    with Clock() as clock:
        said = subprocess.run(["find", path, "-ls"], check=True, capture_output=True).stdout
    return clock.seconds, said.count(b"\n")


# -- programs


def _run(*command: str, then_sync: str = "") -> float:
    with Clock() as clock:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if then_sync and not done.returncode:
            sync(then_sync, directory=True)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1][:150])
    return clock.seconds


@step
def untar(path: str, archive: str) -> Measured:
    os.mkdir(path)
    return _run("tar", "-xf", archive, "-C", path, then_sync=path), 1


@step
def copy(path: str, to: str) -> Measured:
    return _run("cp", "-a", path, to, then_sync=to), 1


@step
def remove(path: str) -> Measured:
    return _run("rm", "-rf", path, then_sync=str(Path(path).parent)), 1


@step
def clone(path: str, repository: str) -> Measured:
    return _run("git", "clone", "-q", "--no-hardlinks", repository, path, then_sync=path), 1


@step
def git_status(path: str) -> Measured:
    return _run("git", "-C", path, "status", "--porcelain"), 1


def main(name: str, given: str) -> None:
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: end with the benchmark
    seconds, amount = STEPS[name](**json.loads(given))
    print(json.dumps({"seconds": seconds, "amount": amount}), flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as exc:
        print(json.dumps({"failed": f"{type(exc).__name__}: {exc}"[:160]}), flush=True)
        # Not by the interpreter's own end: it would wait for threads and files on the mount.
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)
