"""Whether a process of this machine still runs, and waiting until it has ended (pidfd_open(2))."""

from __future__ import annotations

import os
import select


def is_running(pid: int) -> bool:
    """Whether process *pid* exists and has not ended (a zombie has)."""
    return not wait_for_end(pid, 0)


def wait_for_end(pid: int, patience: float) -> bool:
    """Wait at most *patience* seconds until process *pid* has ended; return whether it has."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    try:
        return has_ended(fd, patience)
    finally:
        os.close(fd)


def has_ended(pidfd: int, patience: float) -> bool:
    """Wait at most *patience* seconds until the process of *pidfd* has ended; return whether it
    has.
    """
    waiter = select.poll()  # select() takes no descriptor above 1023
    waiter.register(pidfd, select.POLLIN)
    return bool(waiter.poll(patience * 1000))
