"""`megafs umount`: bring everything to the store, then unmount."""

from __future__ import annotations

import os
import signal
from typing import Any

import click

from megafs.cli import arguments, output
from megafs.errors import BadUsage, MountFailed
from megafs.mount import control_client, mountpoint
from megafs.mount.control_client import MountRecord, NotAnswering

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
def command(mountpoint: str, how: str | None, as_json: bool) -> None:
    """Unmount MOUNTPOINT, when everything is in the store.

    Ctrl-C leaves it mounted.  While a program uses the directory this refuses.
    """
    facts = umount(mountpoint, how or "wait")
    if as_json:
        output.show_json(facts)


def umount(path: str, how: str) -> dict[str, Any]:
    """Unmount *path*: how is "wait", "lazy" or "force".  Return what the mount said last."""
    at = mountpoint.canonical(path)
    card = find_card(at)
    if card is None or not control_client.is_running(card.pid):
        return _clean(at, card)
    try:
        facts = _ask(card, how)
    except NotAnswering:
        if how != "force":
            raise
        facts = _end(card, at)
    except MountFailed:
        # Between our look and our question it ended, or its socket was taken away.
        if mountpoint.find(at) is not None and how == "force":
            return _end(card, at)
        if not control_client.is_running(card.pid):
            return _clean(at, card)
        raise
    if facts.get("left") and how != "lazy":
        output.warn(str(facts["left"]).lstrip("; "))
    return facts


def find_card(at: str) -> MountRecord | None:
    """Return the card of the mount at *at*; for root also another user's."""
    card = control_client.card_of(at)
    if card is None and os.geteuid() == 0:
        there = mountpoint.find(at)
        if there is not None and there.uid:
            card = control_client.card_of(at, there.uid)
    return card


def _ask(card: MountRecord, how: str) -> dict[str, Any]:
    with output.progress("sending to the store") as step:

        def told(progress: dict[str, Any]) -> None:
            operations = progress["pending_operations"]
            beside = f"{operations} operations" if operations else ""
            if progress.get("error"):
                beside += f"; {progress['error']}"
            step(progress["staged_bytes"], beside)

        patience = FORCE_STEP if how == "force" else 30.0
        facts = control_client.call(card, "umount", how=how, patience=patience, progress=told)
    if how != "lazy" and not control_client.wait_for_end(card.pid, END_WITHIN):
        output.warn(f"process {card.pid} has not ended yet")
    return facts


def _clean(at: str, card: MountRecord | None) -> dict[str, Any]:
    """Take away what a dead mount left behind."""
    if card is not None:
        control_client.remove_card(card)
    there = mountpoint.find(at)
    if there is None:
        raise BadUsage(f"nothing is mounted at {at}")
    if there.fstype != mountpoint.FSTYPE:
        raise BadUsage(f"what is mounted at {at} is not megafs but {there.fstype}: umount {at}")
    if card is None and mountpoint.responds(at, 5.0):
        raise BadUsage(
            f"the mount at {at} has no control socket in"
            f" {control_client.runtime_dir()}: is it another user's? umount {at} works all the same"
        )
    mountpoint.detach(at)
    output.note(f"{at}: the mount's process was gone; cleaned up")
    return {"pid": None, "staged_bytes": None}


def _end(card: MountRecord, at: str) -> dict[str, Any]:
    """End a mount that does not answer, so that nobody has to wait for it."""
    there = mountpoint.find(at)
    try:
        process = os.pidfd_open(card.pid)
    except ProcessLookupError:
        return _clean(at, card)
    try:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(process, number)
            if number is signal.SIGTERM and there is not None:
                mountpoint.abort(there)
                mountpoint.detach_in_time(at, FORCE_STEP)
                there = None
                continue
            if control_client.has_ended(process, FORCE_STEP):
                break
    finally:
        os.close(process)
    control_client.remove_card(card)
    if mountpoint.find(at) is not None:
        mountpoint.detach_in_time(at, FORCE_STEP)
    output.note(f"process {card.pid} did not answer and was ended")
    return {"pid": card.pid, "staged_bytes": None}
