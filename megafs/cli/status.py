"""`megafs status`: how the mounts are."""

from __future__ import annotations

import os
from typing import TypeVar

import click

from megafs.cli import arguments, output
from megafs.cli.volume_path import mountpoint_of
from megafs.errors import BadUsage, MegafsError
from megafs.mount import control_client, mount_record, mountpoint
from megafs.mount.control_messages import (
    JsonObject,
    MetricsRequest,
    MetricsResult,
    MountStatus,
    StatusRequest,
)
from megafs.mount.mount_record import MountRecord, is_alive

T = TypeVar("T")

#: Seconds that a mount has to answer, and its directory to respond.
PATIENCE = 5.0


@click.command(name="status", short_help="Show how the mounts are.")
@click.argument("mountpoint", required=False)
@click.option("--metrics", is_flag=True, help="Print the mount's metrics in Prometheus' format.")
@arguments.json_option
def command(mountpoint: str | None, metrics: bool, as_json: bool) -> None:
    """Show how the mount at MOUNTPOINT is; without it, all mounts of this user.

    MOUNTPOINT may also be the URL of a volume that is mounted once.

    What counts: whether everything is in the store (staged), how fresh the volume is (head), what
    went wrong lately (errors, conflicts).
    """
    if mountpoint is None:
        if metrics:
            raise BadUsage("--metrics needs a MOUNTPOINT")
        found = _mounts()
        if as_json:
            output.show_json([_json_of(record) for record in found])
        elif found:
            for i, record in enumerate(found):
                output.show(*([""] if i else []), *_lines(_status_of(record)))
        else:
            output.note("nothing is mounted by this user")
        return
    record = _find(mountpoint)
    if metrics:
        numbers = control_client.ask(record, MetricsRequest(), MetricsResult, patience=PATIENCE)
        output.show(*numbers.text.splitlines())
    elif as_json:
        output.show_json(_ask(record, JsonObject))
    else:
        output.show(*_lines(_ask(record, MountStatus)))


def _find(path: str) -> MountRecord:
    """Return the record of the running mount at *path*; BadUsage if there is none."""
    from megafs.cli.umount import find_record

    at = mountpoint_of(path)
    record = find_record(at)
    if record is not None and is_alive(record):
        return record
    there = mountpoint.find(at)
    if there is not None and there.fstype == mountpoint.FSTYPE:
        raise BadUsage(
            f"the mount at {at} is dead: megafs umount {at} cleans up"
            if record is not None or not mountpoint.responds(at, PATIENCE)
            else f"the mount at {at} is another user's"
        )
    raise BadUsage(f"no megafs volume is mounted at {at}")


def _mounts() -> list[MountRecord]:
    """Return the mounts of this user, dead ones too while the kernel still shows them.

    The record of a dead mount that has left nothing at its mountpoint is removed.
    """
    directory = mount_record.runtime_dir()
    found = []
    for record in mount_record.records(directory):
        if (
            not is_alive(record)
            and os.access(directory, os.W_OK)
            and mountpoint.find(record.mountpoint) is None
        ):
            mount_record.remove_record(record)
        else:
            found.append(record)
    return found


def _ask(record: MountRecord, kind: type[T]) -> T:
    return control_client.ask(record, StatusRequest(), kind, patience=PATIENCE)


def _json_of(record: MountRecord) -> JsonObject:
    """Return the status for programs, whether the mount answers or not."""
    try:
        return _ask(record, JsonObject)
    except MegafsError as exc:
        return {
            "mountpoint": record.mountpoint,
            "url": record.url,
            "pid": record.pid,
            "state": _state_unanswered(record),
            "errors": [{"text": str(exc)}],
        }


def _status_of(record: MountRecord) -> MountStatus:
    """Return the status for people, whether the mount answers or not."""
    try:
        return _ask(record, MountStatus)
    except MegafsError:
        return MountStatus(
            record.mountpoint, record.url, record.pid, state=_state_unanswered(record)
        )


def _state_unanswered(record: MountRecord) -> str:
    return "not answering" if is_alive(record) else "dead"


def _lines(status: MountStatus) -> list[str]:
    heading = f"{status.mountpoint}  {status.url}"
    if status.facts:
        cache = f"{output.size(status.cache_bytes)} of {output.size(status.cache_limit)}"
        pairs = [("state", _state(status)), *status.facts, ("cache", cache)]
        pairs += [("error", f"{output.ago(error.time)}: {error.text}") for error in status.errors]
        return [heading, *output.rows(pairs)]
    if status.sequence is None:
        pairs = [("state", f"{status.state} (process {status.pid})")]
        if status.state == "dead":
            pairs.append(("", f"megafs umount {status.mountpoint} cleans up"))
        return [heading, *output.rows(pairs)]
    pairs = [
        ("state", _state(status)),
        ("head", _head(status)),
        ("staged", _staged(status)),
        ("store", _store(status)),
        ("cache", f"{output.size(status.cache_bytes)} of {output.size(status.cache_limit)}"),
        ("volume", f"{_used(status)}, {status.files} files; {status.volume}"),
    ]
    if status.account_left is not None:
        pairs.append(("account", f"{output.size(status.account_left)} left"))
    if status.store.limit:
        pairs.append(("limit", status.store.limit))
    others = [mount for mount in status.mounts if not mount.this]
    if others:
        pairs.append(("others", ", ".join(sorted({mount.host for mount in others}))))
    slow = {op: t for op, t in status.requests_waiting.items() if t >= 5}
    if slow:
        pairs.append(("waiting", ", ".join(f"{op} {output.span(t)}" for op, t in slow.items())))
    for entries, title in ((status.conflicts, "conflict"), (status.errors, "error")):
        for entry in entries[-5:]:
            pairs.append((title, f"{output.ago(entry.time)}: {entry.text}"))
    return [heading, *output.rows(pairs)]


def _head(status: MountStatus) -> str:
    by = f"{status.head_host}{' (this machine)' if status.head_is_ours else ''}"
    when = output.ago(status.head_time)
    return f"commit {status.sequence} ({status.head_words}), {when} by {by}"


def _used(status: MountStatus) -> str:
    return f"{output.size(status.used_bytes)} of {output.size(status.quota)}"


def _state(status: MountStatus) -> str:
    text = f"{status.state}, process {status.pid}, for {output.span(status.uptime)}"
    if status.frozen:
        return f"{text}; FROZEN, read-only: {status.frozen}"
    if status.read_only:
        text += "; read-only"
    return text


def _staged(status: MountStatus) -> str:
    waiting, operations = status.staged_bytes, status.pending_operations
    if not waiting and not operations:
        return "nothing: everything is in the store"
    return f"{output.size(waiting)} and {operations} operations on their way to the store"


def _store(status: MountStatus) -> str:
    store = status.store
    text = store.state
    if status.offline:
        text += ", not reached since the mount"
    if store.last_error and store.state != "ok":
        text += f": {store.last_error}"
    return text
