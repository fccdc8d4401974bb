"""The mount's end of the control socket: who may ask, and one reply to each request."""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol, assert_never

import trio

from megafs.errors import BadUsage, Denied, MegafsError, leaf
from megafs.mount.control_messages import (
    REQUEST_LIMIT,
    CacheClearRequest,
    CacheClearResult,
    DrainProgress,
    ErrorReply,
    FlushRequest,
    JobRequest,
    JsonObject,
    MetricsRequest,
    MetricsResult,
    Reply,
    Request,
    StatusRequest,
    UmountRequest,
    UmountResult,
    decode_request,
    encode_reply,
)
from megafs.mount.mount_record import (
    MountRecord,
    file_name,
    make_runtime_dir,
    remove_record,
    runtime_dir,
    write_record,
)
from megafs.mount.processes import start_time

log = logging.getLogger(__name__)

#: Connections at a time; status, umount and a few monitors are far fewer.
CONNECTIONS = 16
#: A client that says nothing, or reads nothing, for so many seconds is hung up on.
PATIENCE = 30.0

# What it looks like when a client has gone.
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)

#: Reports progress to the client: a Struct, or plain data.
Say = Callable[[object], Awaitable[None]]


class Handlers(Protocol):
    """A mount's answer to each request."""

    async def status(self) -> JsonObject: ...

    async def umount(self, request: UmountRequest, say: Say) -> UmountResult: ...

    async def flush(self, say: Say) -> DrainProgress: ...

    async def clear_cache(self) -> CacheClearResult: ...

    async def metrics(self) -> MetricsResult: ...

    async def job(self, request: JobRequest, say: Say) -> JsonObject: ...


@asynccontextmanager
async def listening(mountpoint: str, url: str, handlers: Handlers) -> AsyncIterator[MountRecord]:
    """Answer on the socket of *mountpoint* for the block; the socket is gone afterwards."""
    directory = runtime_dir()
    make_runtime_dir(directory)
    record = MountRecord(
        mountpoint,
        url,
        os.getpid(),
        file_name(mountpoint),
        str(directory),
        start_time(os.getpid()),
        os.geteuid(),
    )
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        record.socket_path.unlink(missing_ok=True)
        await listener.bind(str(record.socket_path))
        os.chmod(record.socket_path, 0o600)
        listener.listen(CONNECTIONS)
        write_record(record)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_accept, listener, handlers, nursery)
                yield record
                nursery.cancel_scope.cancel()
        finally:
            remove_record(record)
    finally:
        listener.close()


async def _accept(
    listener: trio.socket.SocketType, handlers: Handlers, nursery: trio.Nursery
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
    stream: trio.SocketStream, handlers: Handlers, limit: trio.CapacityLimiter
) -> None:
    async with stream:
        try:
            async with limit:
                await _serve(stream, handlers)
        except Exception as exc:
            if not isinstance(leaf(exc), _GONE):  # what it asked for goes its way
                log.exception("control socket; this is a bug")


async def _serve(stream: trio.SocketStream, handlers: Handlers) -> None:
    """Read one request, and reply to it."""

    async def send(reply: Reply) -> None:
        with trio.fail_after(PATIENCE):
            await stream.send_all(encode_reply(reply))

    async def say(progress: object) -> None:
        await send(Reply(progress=progress))

    try:
        _check_peer(stream)
        with trio.fail_after(PATIENCE):
            line = await _line(stream)
        result = await _result(decode_request(line), handlers, say)
    except Exception as exc:
        cause = leaf(exc)
        if isinstance(cause, _GONE):
            raise
        if not isinstance(cause, MegafsError):
            log.exception("control socket; this is a bug")
        await send(Reply(error=ErrorReply.of(exc)))
    else:
        await send(Reply(result=result))


async def _result(request: Request, handlers: Handlers, say: Say) -> object:
    match request:
        case StatusRequest():
            return await handlers.status()
        case UmountRequest():
            return await handlers.umount(request, say)
        case FlushRequest():
            return await handlers.flush(say)
        case CacheClearRequest():
            return await handlers.clear_cache()
        case MetricsRequest():
            return await handlers.metrics()
        case JobRequest():
            return await handlers.job(request, say)
        case _:
            assert_never(request)


def _check_peer(stream: trio.SocketStream) -> None:
    """Only root and the mount's user may ask; the directory's mode says so, too (unix(7))."""
    size = struct.calcsize("3i")
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    assert isinstance(credentials, bytes)
    _, uid, _ = struct.unpack("3i", credentials)
    if uid not in (0, os.geteuid()):
        raise Denied("this mount is another user's")


async def _line(stream: trio.SocketStream) -> bytes:
    data = b""
    while b"\n" not in data:
        piece = await stream.receive_some(4096)
        data += piece
        if not piece or len(data) > REQUEST_LIMIT:
            raise BadUsage("not a request")
    return data.partition(b"\n")[0]
