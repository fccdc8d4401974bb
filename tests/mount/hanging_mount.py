"""A mount that, killed, hangs in the kernel: run as a program by test_guardian.py.

    python -m tests.mount.hanging_mount MOUNTPOINT [no-fusectl]

It answers no mkdir, and as soon as a program waits for one, a thread tells the kernel of a name in
the same directory: it waits for the directory's lock, which the program holds.  Then the pids of
the guardian and of the program are printed.
"""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import trio

from megafs.fs.requests import Invalidation
from megafs.mount import connection, mountpoint
from megafs.mount.fuse import KernelMount, Presentation
from megafs.mount.guardian import Guardian
from tests.fakes.memfs import MemoryFS


def is_telling() -> bool:
    """Whether a thread of ours waits in the kernel, which only the telling one does."""
    tasks = Path("/proc/self/task").iterdir()
    return "D" in ((task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks)


def no_fusectl(number: int) -> int:
    raise PermissionError(errno.EPERM, "not permitted")


async def main(path: str) -> None:
    fs = MemoryFS()
    mount = KernelMount(fs, path, Presentation())  # type: ignore[arg-type]
    mount.open()
    at = mountpoint.find(path)
    assert at is not None
    guardian = Guardian(at)
    fs.hold["mkdir"] = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.serve)
        await mount.started.wait()
        user = subprocess.Popen(["mkdir", f"{path}/x"], stderr=subprocess.DEVNULL)
        while not fs.calls["mkdir"]:
            await trio.sleep(0.01)
        fs.invalidate([Invalidation("entry", fs.root_ino, b"y")])
        while not is_telling():
            await trio.sleep(0.01)
        print(guardian.pid, user.pid, flush=True)


if __name__ == "__main__":
    if "no-fusectl" in sys.argv:
        connection.open_abort = no_fusectl
    trio.run(main, sys.argv[1])
