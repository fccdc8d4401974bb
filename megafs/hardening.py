"""What a process does that will hold a passphrase or a key in its memory, before it gets one.

Of every command, for nearly all read a passphrase, and it may be in the environment from the start;
of the child that derives keys; of a mount, which adds what serving a filesystem needs
(mount/daemon.py).
"""

from __future__ import annotations

import ctypes
import resource

_PR_SET_DUMPABLE = 4


def protect_memory() -> None:
    """No core dumps, and no reading of our memory by other processes of this user (ptrace(2)).

    execve(2) takes the second back; a fork keeps both.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
