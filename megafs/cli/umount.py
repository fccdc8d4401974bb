"""`megafs umount`: bring everything to the store, then unmount."""

from __future__ import annotations

import math
import os
import signal
import time

import click
from msgspec import to_builtins

from megafs.cli import arguments, output
from megafs.cli.volume_path import mountpoint_of
from megafs.errors import BadUsage, Busy, MegafsError, MountFailed
from megafs.mount import control_client, holders, mountpoint
from megafs.mount.control_client import NobodyListens, NotAnswering
from megafs.mount.control_messages import (
    DrainProgress,
    MountStatus,
    StatusRequest,
    UmountMode,
    UmountRequest,
    UmountResult,
)
from megafs.mount.mount_record import MountRecord, is_alive, record_of, remove_record, runtime_dir
from megafs.mount.mountpoint import Mounted
from megafs.mount.processes import has_ended, remains, uid_of, wait_for_end

#: Seconds until the process has given back its files and locks after its last word.
END_WITHIN = 60.0
#: Seconds without anything sent, after which it is said what can be done.
STUCK_AFTER = 5.0
#: Seconds without anything sent, after which a system that shuts down waits no longer.
SHUTDOWN_PATIENCE = 60.0
#: Seconds that a mount which is to be ended by force gets for each step.
FORCE_STEP = 8.0


@click.command(name="umount", short_help="Bring everything to the store, then unmount.")
@click.argument("mountpoint")
@click.option(
    "--lazy",
    is_flag=True,
    help="Take the directory away now; the mount finishes in the background.",
)
@click.option(
    "--force",
    is_flag=True,
    help="End now. Programs that use it get errors; what is not in the store yet stays on this"
    " machine and goes there with the next mount.",
)
@arguments.json_option
def command(mountpoint: str, lazy: bool, force: bool, as_json: bool) -> None:
    """Unmount MOUNTPOINT, when everything is in the store.

    MOUNTPOINT may also be the URL of a volume that is mounted once.  Ctrl-C leaves it mounted.
    While a program uses the directory this refuses.  With both --lazy and --force it is ended by
    force, which takes the directory away, too.
    """
    ended = umount(mountpoint, "force" if force else "lazy" if lazy else "wait")
    if as_json:
        output.show_json(to_builtins(ended))


class _StoreTakesNothing(Exception):
    """Nothing was sent for as long as the caller is patient."""


def umount(path: str, how: UmountMode, patience: float = math.inf) -> UmountResult:
    """Unmount *path*, a mountpoint or URL, and return what the mount said last.

    patience: seconds without anything sent, after which it is ended by force: what is staged goes
        to the store with the next mount.
    """
    at = mountpoint_of(path)
    record = find_record(at)
    if record is None or not is_alive(record):
        return _without_record(at, how) if record is None else _clean_up(at, record)
    try:
        ended = _ask(record, how, patience)
    except _StoreTakesNothing:
        output.warn(f"the store took nothing for {patience:.0f} s")
        ended = _ask(record, "force", math.inf)
    except NotAnswering:
        if how != "force":
            raise
        ended = _kill(record, at)
    except NobodyListens:
        # Between our look and our question it ended, or its socket was taken away.
        if not is_alive(record):
            return _clean_up(at, record)
        ended = _kill(record, at) if how == "force" else _without_socket(record, at, how)
    if ended.left and how != "lazy":
        output.warn(str(ended.left).lstrip("; "))
    if ended.held:
        output.warn(str(ended.held))
    return ended


def find_record(at: str) -> MountRecord | None:
    """Return the record of the mount at *at*; for root also another user's."""
    there = mountpoint.find(at)
    users: list[int | None] = [None]
    if there is not None and there.uid and os.geteuid() == 0:
        users.append(there.uid)
    for uid in users:
        try:
            record = record_of(at, uid)
        except MountFailed as exc:
            output.warn(str(exc))
            continue
        if record is not None:
            return record
    return None


def _ask(record: MountRecord, how: UmountMode, patience: float) -> UmountResult:
    with output.progress("sending to the store") as step:
        waiting = _Waiting(record, patience)

        def show(now: DrainProgress) -> None:
            operations = now.pending_operations
            beside = f"{operations} operations" if operations else ""
            if now.error:
                beside += f"; {now.error}"
            step(now.staged_bytes, beside)
            waiting.look(now)

        ended = control_client.ask(
            record,
            UmountRequest(how=how),
            UmountResult,
            patience=FORCE_STEP if how == "force" else 30.0,
            progress=control_client.listener(DrainProgress, show),
        )
    if how == "force" and not wait_for_end(record.pid, FORCE_STEP):
        return _kill(record, record.mountpoint)
    if how == "wait" and not wait_for_end(record.pid, END_WITHIN):
        output.warn(remains(record.pid) or f"process {record.pid} has only just ended")
    return ended


class _Waiting:
    """Says once, when the store takes nothing for a while, what is safe and what can be done."""

    def __init__(self, record: MountRecord, patience: float) -> None:
        self._record = record
        self._patience = patience
        self._left = (-1, -1)
        self._since = self._moved = time.monotonic()
        self._said = False

    def look(self, now: DrainProgress) -> None:
        """Look at a report of progress; raises _StoreTakesNothing when patience is over."""
        left = (now.staged_bytes, now.pending_operations)
        if left != self._left:
            self._moved = time.monotonic()
        elif time.monotonic() - self._moved >= self._patience:
            raise _StoreTakesNothing
        if left != self._left or not now.error:
            self._left, self._since = left, time.monotonic()
        elif not self._said and time.monotonic() - self._since >= STUCK_AFTER:
            self._said = True
            self._say(now)

    def _say(self, now: DrainProgress) -> None:
        at = self._record.mountpoint
        try:
            status = control_client.ask(self._record, StatusRequest(), MountStatus, patience=5.0)
        except MegafsError:
            return
        output.note(
            f"the store takes nothing: {now.error}",
            f"{output.size(now.staged_bytes)} and {now.pending_operations} operations are safe in"
            f" {status.state_dir} on this machine, and go to the store when it takes them",
            "this waits for the store; Ctrl-C leaves it mounted",
            f"megafs umount --lazy {at} takes the directory away and goes on sending",
            f"megafs umount --force {at} ends the mount; the next mount sends what is left",
        )


def _clean_up(at: str, record: MountRecord) -> UmountResult:
    """Remove what a dead mount left behind."""
    remove_record(record)
    _check_ours(at)
    return _detach_dead(at)


def _check_ours(at: str) -> Mounted:
    there = mountpoint.find(at)
    if there is None:
        raise BadUsage(f"nothing is mounted at {at}")
    if there.fstype != mountpoint.FSTYPE:
        raise BadUsage(f"what is mounted at {at} is not megafs but {there.fstype}: umount {at}")
    return there


def _detach_dead(at: str) -> UmountResult:
    mountpoint.detach(at)
    output.note(f"{at}: the mount's process was gone; cleaned up")
    return UmountResult(pid=None, staged_bytes=None)


def _without_record(at: str, how: UmountMode) -> UmountResult:
    """Unmount what has no record here: it was removed, or the mount has another runtime directory
    or, for root, another user's.
    """
    there = _check_ours(at)
    if os.geteuid() not in (0, there.uid):
        raise BadUsage(f"the mount at {at} is user {there.uid}'s: only they and root unmount it")
    dead = mountpoint.is_dead(at)
    if dead is not False:
        if dead is None and how != "force":
            raise NotAnswering(
                f"the mount at {at} does not answer, and has no record in {runtime_dir()} that"
                f" names its process: megafs umount --force {at} aborts its connection"
            )
        mountpoint.abort(there)
        return _detach_dead(at)
    _unmount(there, how)
    output.note(
        f"unmounted {at}; it has no record in {runtime_dir()}, so its process, which sends what is"
        " left to the store and then ends, cannot be waited for"
    )
    return UmountResult(pid=None, staged_bytes=None)


def _without_socket(record: MountRecord, at: str, how: UmountMode) -> UmountResult:
    """Unmount as umount(8) would, and wait until the mount's process has sent all and ended."""
    output.warn(f"{record.socket_path} is gone, so the mount cannot be asked how far it is")
    _unmount(_check_ours(at), how)
    if how == "wait":
        output.note(
            f"unmounted; process {record.pid} sends what is left to the store and then ends"
            " (Ctrl-C: do not wait for it)"
        )
        while not wait_for_end(record.pid, END_WITHIN):
            pass
    return UmountResult(pid=record.pid, staged_bytes=None)


def _unmount(there: Mounted, how: UmountMode) -> None:
    at = there.mountpoint
    if how == "wait":
        holders.check_unused(there)
        mountpoint.unmount(at)
    else:
        if how == "force":
            mountpoint.abort(there)
        mountpoint.detach(at)


def _kill(record: MountRecord, at: str) -> UmountResult:
    """End a mount that does not answer, so that nobody has to wait for it."""
    there = mountpoint.find(at)
    found: tuple[int, int] | MountFailed
    try:
        found = _process_of(record)
    except MountFailed as exc:
        found = exc
    aborted = False
    if there is not None and there.fstype == mountpoint.FSTYPE:
        aborted = mountpoint.abort(there)
        mountpoint.detach_in_time(at, FORCE_STEP)
    if isinstance(found, MountFailed):
        raise found
    pid, pidfd = found
    try:
        ended = _end(pidfd)
    finally:
        os.close(pidfd)
    left = _remains(pid)
    if not ended:
        raise Busy(
            f"{left or f'process {pid} has not ended yet'}, although it was killed"
            + ("" if aborted else "; its connection could not be aborted, which root can do")
        )
    remove_record(record)
    if mountpoint.find(at) is not None:
        mountpoint.detach_in_time(at, FORCE_STEP)
    what = f"killed: {left}" if left else "ended"
    output.note(f"process {pid} did not answer and was {what}")
    return UmountResult(pid=pid, staged_bytes=None)


def _end(pidfd: int) -> bool:
    """End a process; return whether all its threads have ended."""
    # The first SIGTERM asks a mount to bring everything to the store first, the second does not.
    for number, patience in (
        (signal.SIGTERM, 0.5),
        (signal.SIGTERM, FORCE_STEP),
        (signal.SIGKILL, FORCE_STEP),
    ):
        if has_ended(pidfd, 0):
            break
        signal.pidfd_send_signal(pidfd, number)
        has_ended(pidfd, patience)
    return has_ended(pidfd, 0)


def _remains(pid: int) -> str:
    """As `processes.remains`, but a moment later: its parent needs one to take note of its end."""
    for _ in range(20):
        if not (left := remains(pid)):
            break
        time.sleep(0.05)
    return left


def _process_of(record: MountRecord) -> tuple[int, int]:
    """Return pid and pidfd of the mount's process: of the one that listens on its socket, or, if
    none does, of the one that the record names if that is still the same and its user's.
    """
    try:
        return control_client.process_of(record)
    except OSError:
        pass
    try:
        pidfd = os.pidfd_open(record.pid)
    except OSError as exc:
        raise MountFailed(f"process {record.pid} cannot be ended: {exc.strerror}") from None
    if record.started and is_alive(record) and uid_of(record.pid) == record.uid:
        return record.pid, pidfd
    os.close(pidfd)
    raise MountFailed(
        f"{record.socket_path} is gone, and nothing shows that process {record.pid} is the mount at"
        f" {record.mountpoint}: end it yourself if it is"
    )
