"""The mount's end of the control socket; see control.py for where and what."""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import trio

from megafs.errors import BadUsage, Denied, MegafsError, leaf
from megafs.mount.control_client import (
    Message,
    MountRecord,
    error_message,
    leave_card,
    make_runtime_dir,
    name_of,
    remove_card,
    runtime_dir,
)

log = logging.getLogger(__name__)

REQUEST_LIMIT = 64 << 10
#: Connections at a time; status, umount and a few monitors are far fewer.
CONNECTIONS = 16
#: A client that says nothing, or reads nothing, for so long is hung up on.
PATIENCE = 30.0

# What it looks like when a client has gone.
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)

Say = Callable[[Message], Awaitable[None]]
Handler = Callable[[Message, Say], Awaitable[Message]]


@asynccontextmanager
async def listening(
    mountpoint: str, url: str, handlers: Mapping[str, Handler]
) -> AsyncIterator[MountRecord]:
    """Answer on the socket of *mountpoint* for the block; the socket is gone afterwards.

    handlers: by name of the operation; called with the request and a way to report progress.
    """
    directory = runtime_dir()
    make_runtime_dir(directory)
    card = MountRecord(mountpoint, url, os.getpid(), name_of(mountpoint), str(directory))
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        card.socket_path.unlink(missing_ok=True)
        await listener.bind(str(card.socket_path))
        os.chmod(card.socket_path, 0o600)
        listener.listen(CONNECTIONS)
        leave_card(card)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_accept, listener, handlers, nursery)
                yield card
                nursery.cancel_scope.cancel()
        finally:
            remove_card(card)
    finally:
        listener.close()


async def _accept(
    listener: trio.socket.SocketType, handlers: Mapping[str, Handler], nursery: trio.Nursery
) -> None:
    limit = trio.CapacityLimiter(CONNECTIONS)
    while True:
        try:
            connection, _ = await listener.accept()
        except OSError as exc:  # out of file descriptors, for example
            log.warning("control socket: %s", exc)
            await trio.sleep(1)
            continue
        nursery.start_soon(_converse, trio.SocketStream(connection), handlers, limit)


async def _converse(
    stream: trio.SocketStream, handlers: Mapping[str, Handler], limit: trio.CapacityLimiter
) -> None:
    async with stream:
        try:
            async with limit:
                await _answer(stream, handlers)
        except Exception as exc:
            if not isinstance(leaf(exc), _GONE):  # what it asked for goes its way
                log.exception("control socket; this is a bug")


async def _answer(stream: trio.SocketStream, handlers: Mapping[str, Handler]) -> None:
    async def send(message: Message) -> None:
        with trio.fail_after(PATIENCE):
            await stream.send_all(json.dumps(message).encode() + b"\n")

    async def say(progress: Message) -> None:
        await send({"progress": progress})

    try:
        _check_peer(stream)
        with trio.fail_after(PATIENCE):
            request = await _request(stream)
        handler = handlers.get(str(request.get("op")))
        if handler is None:
            raise BadUsage(f"this mount knows no operation {request.get('op')!r}")
        result = await handler(request, say)
    except Exception as exc:
        cause = leaf(exc)
        if isinstance(cause, _GONE):
            raise
        if not isinstance(cause, MegafsError):
            log.exception("control socket; this is a bug")
        await send({"error": error_message(exc)})
    else:
        await send({"result": result})


def _check_peer(stream: trio.SocketStream) -> None:
    """Only root and the mount's user may ask; the directory's mode says so, too (unix(7))."""
    size = struct.calcsize("3i")
    raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    assert isinstance(raw, bytes)
    _, uid, _ = struct.unpack("3i", raw)
    if uid not in (0, os.geteuid()):
        raise Denied("this mount is another user's")


async def _request(stream: trio.SocketStream) -> Message:
    data = b""
    while b"\n" not in data:
        piece = await stream.receive_some(4096)
        data += piece
        if not piece or len(data) > REQUEST_LIMIT:
            raise BadUsage("not a request")
    try:
        request = json.loads(data.partition(b"\n")[0])
    except ValueError:
        raise BadUsage("not a request") from None
    if not isinstance(request, dict):
        raise BadUsage("not a request")
    return request
