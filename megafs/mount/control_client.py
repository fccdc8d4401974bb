"""Ask a running mount over its control socket: mount_record.py finds it, control_messages.py says
what is asked.

Without trio, so that `megafs status` starts quickly.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import TypeVar

from msgspec import UNSET

from megafs.errors import BadUsage, Busy, MountFailed
from megafs.mount.control_messages import (
    REPLY_LIMIT,
    Request,
    converted,
    decode_reply,
    encode_request,
)
from megafs.mount.mount_record import MountRecord

T = TypeVar("T")
P = TypeVar("P")


class NotAnswering(Busy):
    """The mount's process lives, but did not answer in time."""


class NobodyListens(MountFailed):
    """The mount has ended, or its socket is gone."""


def ask(
    record: MountRecord,
    request: Request,
    result: type[T],
    *,
    patience: float = 10.0,
    progress: Callable[[object], None] | None = None,
) -> T:
    """Send *request* to the mount of *record* and return its result as a *result*.

    patience: seconds between two lines from the mount.  progress: called with each report of
        progress; `listener` makes one from a function that takes a Struct.
    Raises what the mount answered, NobodyListens, NotAnswering, MountFailed if it answers nonsense.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(patience)
            connection.connect(str(record.socket_path))
            _check_peer(connection, record)
            try:
                connection.sendall(encode_request(request))
            except BrokenPipeError:
                pass  # it has answered already: it does not talk to us
            with connection.makefile("rb") as lines:
                while line := lines.readline(REPLY_LIMIT):
                    reply = decode_reply(line)
                    if reply.error is not UNSET:
                        raise reply.error.exception()
                    if reply.result is not UNSET:
                        return converted(reply.result, result)
                    if progress is not None and reply.progress is not UNSET:
                        progress(reply.progress)
    except TimeoutError:
        raise NotAnswering(
            f"the mount at {record.mountpoint} (process {record.pid}) does not answer"
        ) from None
    except OSError as exc:
        if exc.errno == errno.EACCES:
            raise BadUsage(f"the mount at {record.mountpoint} is another user's") from exc
        raise NobodyListens(f"no mount answers for {record.mountpoint}: {exc.strerror}") from exc
    except ValueError as exc:  # not JSON, or not of the kind that was expected
        raise MountFailed(f"the mount at {record.mountpoint} answered nonsense: {exc}") from exc
    raise NobodyListens(f"the mount at {record.mountpoint} ended without an answer")


def process_of(record: MountRecord) -> tuple[int, int]:
    """Return pid and pidfd of the process that listens on the socket of *record*, whichever the
    record names; a process that hangs listens, too.

    Raises BadUsage if it is not the record's user's, OSError if nobody listens.
    """
    first = _peer_of(record)
    pidfd = os.pidfd_open(first)
    try:
        # Somebody still listens, so that the pid has not become another process's meanwhile.
        if _peer_of(record) == first:
            return first, pidfd
    except BaseException:
        os.close(pidfd)
        raise
    os.close(pidfd)
    raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


def _peer_of(record: MountRecord) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(2.0)
        connection.connect(str(record.socket_path))
        return _check_peer(connection, record)


def _check_peer(connection: socket.socket, record: MountRecord) -> int:
    """Return the pid of the process that listens; BadUsage if it is not the record's user's."""
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    if uid != record.uid:
        raise BadUsage(
            f"{record.socket_path} is not the mount's: process {pid} of user {uid} listens there,"
            f" not one of user {record.uid}"
        )
    return int(pid)


def listener(kind: type[P], show: Callable[[P], None]) -> Callable[[object], None]:
    """Return what `ask` calls with reports of progress, so that *show* gets each as a *kind*."""
    return lambda report: show(converted(report, kind))
