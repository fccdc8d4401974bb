"""Processes of this machine: whether one runs, whose it is, what keeps it; waiting for its end."""

from __future__ import annotations

import os
import select
from pathlib import Path


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


def start_time(pid: int) -> int:
    """Return when process *pid* was started, in clock ticks since boot; 0 if it is not there."""
    fields = _stat(Path(f"/proc/{pid}"))
    return int(fields[19]) if fields else 0


def uid_of(pid: int) -> int | None:
    """Return the user of process *pid*, None if it is not there or runs as several."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    uids = {uid for line in lines if line.startswith("Uid:") for uid in line.split()[1:]}
    return int(uids.pop()) if len(uids) == 1 else None


def remains(pid: int) -> str:
    """Return what is left of process *pid* after it was killed, as a sentence; "" if nothing is."""
    process = Path(f"/proc/{pid}")
    main = _stat(process)
    if not main:
        return ""
    try:
        threads = sorted((process / "task").iterdir(), key=lambda path: int(path.name))
    except OSError:
        return ""
    states = {thread: _stat(thread)[:1] for thread in threads}
    waiting = [thread for thread, state in states.items() if state == ["D"]]
    if waiting:
        return f"thread {waiting[0].name} of process {pid} waits in the kernel{_where(waiting[0])}"
    if main[0] == "Z" and len([state for state in states.values() if state]) == 1:
        return (
            f"process {pid} has ended, and is a zombie until its parent, process {main[1]}, has"
            " taken note of it"
        )
    return f"process {pid} has not ended yet (state {main[0]})"


def _stat(process: Path) -> list[str]:
    """Return the fields of stat (proc(5)) from the state on; nothing if the process has gone."""
    try:
        return (process / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _where(thread: Path) -> str:
    try:
        function = (thread / "wchan").read_text()
    except OSError:
        return ""
    return f", in {function}" if function.isidentifier() else ""
