"""How much memory a mount takes, and that it gives it back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.machine import Machine

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(150)]

MIB = 1 << 20
#: The bound for a mount with the default limits (memory_cache and dirty_limit, 48 MiB each).
LIMIT = 200 * MIB


def memory(pid: int, field: str) -> int:
    """VmRSS or VmHWM of a process, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(field)


def test_an_image_of_zeros_stays_out_of_memory(volume: Machine) -> None:
    """300 MiB of zeros are a few KiB in a pack; opened at once they were 300 MiB again."""
    volume.mount("-o", "fsync=local")
    image = volume.mnt / "image"
    with image.open("wb") as file:
        for _ in range(300):
            file.write(bytes(MIB))
    written = memory(volume.pid, "VmHWM")
    assert written < LIMIT
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True, stdin=subprocess.DEVNULL)
    with image.open("rb") as file:
        for place in (0, 150 * MIB, 299 * MIB):
            file.seek(place)
            file.read(4096)
    assert memory(volume.pid, "VmHWM") < LIMIT
    volume.umount()


_BURST = """
import ctypes, trio
from megafs import memory
from megafs.mount import daemon
daemon.harden()

async def main():
    blocks, small = [], []
    for _ in range(2000):
        blocks.append(bytearray(100_000))
        small.append(b"%d" % len(small) * 200)  # keeps the heap from ending
    held = memory.resident()
    del blocks
    before = memory.resident()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.give_back, lambda: 0)
        with trio.move_on_after(20):
            while memory.resident() > before // 2:
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    print(held, before, memory.resident())

trio.run(main)
"""


def test_what_a_burst_took_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BURST], capture_output=True, text=True, check=True, timeout=60
    )
    held, before, after = map(int, done.stdout.split())
    assert held > 200_000_000
    assert before > 150_000_000, "it fell by itself: this test shows nothing"
    assert after < 100_000_000
