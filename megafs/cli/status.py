"""`megafs status`: how the mounts are."""

from __future__ import annotations

import os
from typing import Any

import click

from megafs.cli import arguments, output
from megafs.errors import BadUsage, MegafsError
from megafs.mount import control_client, mountpoint
from megafs.mount.control_client import Message, MountRecord

PATIENCE = 5.0


@click.command(name="status", short_help="Show how the mounts are.")
@click.argument("mountpoint", required=False)
@click.option("--metrics", is_flag=True, help="Print the mount's metrics in Prometheus' format.")
@arguments.json_option
def command(mountpoint: str | None, metrics: bool, as_json: bool) -> None:
    """Show how the mount at MOUNTPOINT is; without it, all mounts of this user.

    What counts: whether everything is in the store (staged), how fresh the volume is (head), what
    went wrong lately (errors, conflicts).
    """
    if mountpoint is None:
        if metrics:
            raise BadUsage("--metrics needs a MOUNTPOINT")
        told = [_ask(card) for card in _alive()]
        if as_json:
            output.show_json(told)
        elif told:
            output.show("\n\n".join(_text(status) for status in told))
        else:
            output.note("nothing is mounted by this user")
        return
    card = _find(mountpoint)
    if metrics:
        output.show(
            str(control_client.call(card, "metrics", patience=PATIENCE)["text"]).rstrip("\n")
        )
        return
    status = control_client.call(card, "status", patience=PATIENCE)
    if as_json:
        output.show_json(status)
    else:
        output.show(_text(status))


def _find(path: str) -> MountRecord:
    from megafs.cli.umount import find_card

    at = mountpoint.canonical(path)
    card = find_card(at)
    if card is not None and control_client.is_running(card.pid):
        return card
    there = mountpoint.find(at)
    if there is not None and there.fstype == mountpoint.FSTYPE:
        raise BadUsage(
            f"the mount at {at} is dead: megafs umount {at} cleans up"
            if card is not None or not mountpoint.responds(at, PATIENCE)
            else f"the mount at {at} is another user's"
        )
    raise BadUsage(f"no megafs volume is mounted at {at}")


def _alive() -> list[MountRecord]:
    """Return the mounts of this user; forget those that ended without a word."""
    directory = control_client.runtime_dir()
    alive = []
    for card in control_client.cards(directory):
        if control_client.is_running(card.pid):
            alive.append(card)
        elif os.access(directory, os.W_OK) and mountpoint.find(card.mountpoint) is None:
            control_client.remove_card(card)
        else:
            alive.append(card)
    return alive


def _ask(card: MountRecord) -> Message:
    try:
        return control_client.call(card, "status", patience=PATIENCE)
    except MegafsError as exc:
        state = "not answering" if control_client.is_running(card.pid) else "dead"
        return {
            "mountpoint": card.mountpoint,
            "url": card.url,
            "pid": card.pid,
            "state": state,
            "errors": [{"text": str(exc)}],
        }


def _text(status: dict[str, Any]) -> str:
    head = f"{status['mountpoint']}  {status['url']}"
    if "sequence" not in status:
        pairs = [("state", f"{status['state']} (process {status['pid']})")]
        if status["state"] == "dead":
            pairs.append(("", f"megafs umount {status['mountpoint']} cleans up"))
        return f"{head}\n{output.rows(pairs)}"
    pairs = [
        ("state", _state(status)),
        (
            "head",
            _head(status),
        ),
        ("staged", _staged(status)),
        ("store", _store(status)),
        ("cache", f"{output.size(status['cache_bytes'])} of {output.size(status['cache_limit'])}"),
        (
            "volume",
            f"{_used(status)}, {status['files']} files; {status['volume']}",
        ),
    ]
    others = [m for m in status["mounts"] if not m.get("this")]
    if others:
        pairs.append(("others", ", ".join(sorted({str(m["host"]) for m in others}))))
    slow = {op: t for op, t in status.get("requests_waiting", {}).items() if t >= 5}
    if slow:
        pairs.append(("waiting", ", ".join(f"{op} {output.span(t)}" for op, t in slow.items())))
    for name, title in (("conflicts", "conflict"), ("errors", "error")):
        for entry in status.get(name, [])[-5:]:
            pairs.append((title, f"{output.ago(entry.get('time'))}: {entry['text']}"))
    return f"{head}\n{output.rows(pairs)}"


def _head(status: dict[str, Any]) -> str:
    by = f"{status['head_host']}{' (this machine)' if status.get('head_is_ours') else ''}"
    when = output.ago(status["head_time"])
    return f"commit {status['sequence']} ({status['head_words']}), {when} by {by}"


def _used(status: dict[str, Any]) -> str:
    return f"{output.size(status['used_bytes'])} of {output.size(status['quota'])}"


def _state(status: dict[str, Any]) -> str:
    text = f"{status['state']}, process {status['pid']}, for {output.span(status['uptime'])}"
    if status.get("frozen"):
        return f"{text}; FROZEN, read-only: {status['frozen']}"
    if status.get("read_only"):
        text += "; read-only"
    return text


def _staged(status: dict[str, Any]) -> str:
    waiting, operations = status["staged_bytes"], status["pending_operations"]
    if not waiting and not operations:
        return "nothing: everything is in the store"
    return f"{output.size(waiting)} and {operations} operations on their way to the store"


def _store(status: dict[str, Any]) -> str:
    store = status["store"]
    text = str(store.get("state", "unknown"))
    if status.get("offline"):
        text += ", not reached since the mount"
    if store.get("last_error") and store.get("state") != "ok":
        text += f": {store['last_error']}"
    return text
