"""`megafs umount`: bring everything to the store, then unmount."""

from __future__ import annotations

import os
import signal
from typing import Literal

import click
from msgspec import to_builtins

from megafs.cli import arguments, output
from megafs.errors import BadUsage, MountFailed
from megafs.mount import control_client, mountpoint
from megafs.mount.control_client import NotAnswering
from megafs.mount.control_messages import DrainProgress, UmountMode, UmountRequest, UmountResult
from megafs.mount.mount_record import MountRecord, record_of, remove_record, runtime_dir
from megafs.mount.processes import has_ended, is_running, wait_for_end

#: Seconds until the process has given back its files and locks after its last word.
END_WITHIN = 60.0
#: Seconds that a mount which is to be ended by force gets for each step.
FORCE_STEP = 8.0


@click.command(name="umount", short_help="Bring everything to the store, then unmount.")
@click.argument("mountpoint")
@click.option(
    "--lazy",
    "how",
    flag_value="lazy",
    help="Take the directory away now; the mount finishes in the background.",
)
@click.option(
    "--force",
    "how",
    flag_value="force",
    help="End now. Programs that use it get errors; what is not in the store yet stays on this"
    " machine and goes there with the next mount.",
)
@arguments.json_option
def command(mountpoint: str, how: Literal["lazy", "force"] | None, as_json: bool) -> None:
    """Unmount MOUNTPOINT, when everything is in the store.

    Ctrl-C leaves it mounted.  While a program uses the directory this refuses.
    """
    ended = umount(mountpoint, how or "wait")
    if as_json:
        output.show_json(to_builtins(ended))


def umount(path: str, how: UmountMode) -> UmountResult:
    """Unmount *path*, and return what the mount said last."""
    at = mountpoint.canonical(path)
    record = find_record(at)
    if record is None or not is_running(record.pid):
        return _clean_up(at, record)
    try:
        ended = _ask(record, how)
    except NotAnswering:
        if how != "force":
            raise
        ended = _kill(record, at)
    except MountFailed:
        # Between our look and our question it ended, or its socket was taken away.
        if mountpoint.find(at) is not None and how == "force":
            return _kill(record, at)
        if not is_running(record.pid):
            return _clean_up(at, record)
        raise
    if ended.left and how != "lazy":
        output.warn(str(ended.left).lstrip("; "))
    return ended


def find_record(at: str) -> MountRecord | None:
    """Return the record of the mount at *at*; for root also another user's."""
    record = record_of(at)
    if record is None and os.geteuid() == 0:
        there = mountpoint.find(at)
        if there is not None and there.uid:
            record = record_of(at, there.uid)
    return record


def _ask(record: MountRecord, how: UmountMode) -> UmountResult:
    with output.progress("sending to the store") as step:

        def show(now: DrainProgress) -> None:
            operations = now.pending_operations
            beside = f"{operations} operations" if operations else ""
            if now.error:
                beside += f"; {now.error}"
            step(now.staged_bytes, beside)

        ended = control_client.ask(
            record,
            UmountRequest(how=how),
            UmountResult,
            patience=FORCE_STEP if how == "force" else 30.0,
            progress=control_client.listener(DrainProgress, show),
        )
    if how != "lazy" and not wait_for_end(record.pid, END_WITHIN):
        output.warn(f"process {record.pid} has not ended yet")
    return ended


def _clean_up(at: str, record: MountRecord | None) -> UmountResult:
    """Remove what a dead mount left behind."""
    if record is not None:
        remove_record(record)
    there = mountpoint.find(at)
    if there is None:
        raise BadUsage(f"nothing is mounted at {at}")
    if there.fstype != mountpoint.FSTYPE:
        raise BadUsage(f"what is mounted at {at} is not megafs but {there.fstype}: umount {at}")
    if record is None and mountpoint.responds(at, 5.0):
        raise BadUsage(
            f"the mount at {at} has no control socket in {runtime_dir()}: is it another user's?"
            f" umount {at} works all the same"
        )
    mountpoint.detach(at)
    output.note(f"{at}: the mount's process was gone; cleaned up")
    return UmountResult(pid=None, staged_bytes=None)


def _kill(record: MountRecord, at: str) -> UmountResult:
    """End a mount that does not answer, so that nobody has to wait for it."""
    there = mountpoint.find(at)
    try:
        process = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return _clean_up(at, record)
    try:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(process, number)
            if number is signal.SIGTERM and there is not None:
                mountpoint.abort(there)
                mountpoint.detach_in_time(at, FORCE_STEP)
                there = None
                continue
            if has_ended(process, FORCE_STEP):
                break
    finally:
        os.close(process)
    remove_record(record)
    if mountpoint.find(at) is not None:
        mountpoint.detach_in_time(at, FORCE_STEP)
    output.note(f"process {record.pid} did not answer and was ended")
    return UmountResult(pid=record.pid, staged_bytes=None)
