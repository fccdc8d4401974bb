"""What a process does that will hold a passphrase or a key in its memory, before it gets one.

Of every command, for nearly all read a passphrase, and it may be in the environment from the start;
of the child that derives keys; of a mount, which adds what serving a filesystem needs
(mount/daemon.py).
"""

from __future__ import annotations

import ctypes
import os
import resource

_PR_SET_DUMPABLE = 4


def protect_memory() -> None:
    """No core dumps, and no reading of our memory by other processes of this user (ptrace(2)).

    execve(2) takes the second back; a fork keeps both.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def hide_argument(text: str) -> None:
    """Take *text*, a part of one of our arguments, out of what `ps` shows of this process.

    For links that carry a key, which people paste: from here on /proc/self/cmdline has "x" there.
    """
    secret = os.fsencode(text)
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc_pid_stat(5)
    if not secret or not 0 < start < end:
        return
    shown = ctypes.string_at(start, end - start)
    at = shown.find(secret)
    while at >= 0:
        ctypes.memset(start + at, ord("x"), len(secret))
        at = shown.find(secret, at + len(secret))
