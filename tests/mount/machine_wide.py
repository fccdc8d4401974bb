"""What tests change for the whole machine: by one test at a time, whichever checkout runs it."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEVICE = Path("/dev/fuse")


@contextmanager
def alone(what: str) -> Iterator[None]:
    """Be the only test of this machine that changes *what*, during the block."""
    locks = Path("/run/lock")
    path = (locks if locks.is_dir() else Path(tempfile.gettempdir())) / f"megafs-tests-{what}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def device_for_all() -> Iterator[None]:
    """/dev/fuse as udev makes it; a machine without udev may have it closed."""
    with alone("device"):
        mode = DEVICE.stat().st_mode & 0o777
        DEVICE.chmod(0o666)
        try:
            yield
        finally:
            DEVICE.chmod(mode)
