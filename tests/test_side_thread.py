"""A thread that finds no memory to begin with keeps nobody waiting."""

from __future__ import annotations

import subprocess
import sys
import threading

from megafs.side_thread import start_thread

#: Threads are started until one finds no memory, in the process or for its own first frame.
SCRIPT = """
import resource, sys, threading, time
from megafs.side_thread import start_thread
begun = []
hold = threading.Event()
size = int(open('/proc/self/statm').read().split()[0]) * 4096
threading.stack_size(64 << 10)
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]), -1))
for _ in range(500):
    try:
        start_thread(hold.wait)
    except (RuntimeError, MemoryError):
        break
print("went on")
"""


def test_it_runs() -> None:
    done = threading.Event()
    start_thread(done.set)
    assert done.wait(10)


def test_without_memory_nobody_waits() -> None:
    for room in range(0, 2 << 20, 64 << 10):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(room)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        # Where not even the error can be made, Python ends the process: also no waiting.
        assert "went on" in done.stdout or done.returncode != 0
