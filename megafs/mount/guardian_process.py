"""The guardian's own program: wait until the mount's process dies, then abort its connection.

A child of the mount's process, started by guardian.py, which says why it is needed.  Its standard
input is what `connection.open_abort` returns.  It is to be small, 4 MiB of memory of its own, and
so imports little.

A pidfd is no use here: it is readable once every thread has ended, and the thread that hangs in the
kernel is what the guardian is for.  What the kernel does at the end of the main thread is to send
the signal of PR_SET_PDEATHSIG, and to show the process as a zombie in /proc.
"""

from __future__ import annotations

import ctypes
import os
import signal

from megafs.mount import connection

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
#: Seconds between two looks at the mount's process where no signal comes.
LOOK_EVERY = 30.0


def main(pid: int, device: str) -> None:
    """Return once process *pid*, our parent, has died and the connection has been aborted.

    All signals are blocked when this starts: the one that we wait for, and those that end all the
    processes of a terminal or a service.  They end the mount, too, which may take its time to bring
    everything to the store, and has to be watched until then.

    device: of the mount, if our standard input does not end its connection; else "".
    """
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGUSR1), 0, 0, 0)
    libc.prctl(_PR_SET_NAME, b"megafs-guardian", 0, 0, 0)
    while not has_died(pid):
        signal.sigtimedwait({signal.SIGUSR1}, LOOK_EVERY)
    if device:
        at = mountpoint_of(device)
        if at is not None:
            connection.force(at)
    else:
        os.write(0, b"1")  # does nothing if the connection has ended


def has_died(pid: int) -> bool:
    """Whether the main thread of process *pid*, our parent, has ended."""
    if os.getppid() != pid:
        return True  # all its threads have
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
    except OSError:
        return os.getppid() != pid
    return state in (b"Z", b"X")


def mountpoint_of(device: str) -> bytes | None:
    """Return where the filesystem on *device* ("major:minor") is mounted, if nothing hides it."""
    found: dict[bytes, bytes] = {}
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split(b" ")
            found[fields[4]] = fields[2]  # the topmost of several comes last
    for path, its in found.items():
        if its == device.encode():
            for char in b" \t\n\\#":
                path = path.replace(b"\\%03o" % char, b"\0%c" % char)
            return path.replace(b"\0", b"")
    return None
