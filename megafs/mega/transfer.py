"""Copy whole files out of MEGA: verified, and gone on with where an earlier copy stopped.

A copy is written beside its place as NAME.megafs-part and gets its name when all of it has come and
its MAC fits.  What an earlier copy left is read again for the MAC, so nothing that is on the disk
need be believed; if the MAC does not fit then, the file is fetched once more from its beginning.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

from megafs.concurrency import offload, one_error_nursery
from megafs.errors import AlreadyThere, Corrupt
from megafs.mega.ciphers import Buffer, FileKey, FileMac, decipherer
from megafs.mega.contents import FileContents, FileRef
from megafs.secret_struct import SecretStruct
from megafs.tree.inode import NAME_MAX

#: Bytes of one request, and requests at once for one file.
_PIECE: Final = 4 << 20
_AT_ONCE: Final = 4
_SUFFIX: Final = b".megafs-part"

#: Takes plain bytes in order.
PlainSink = Callable[[Buffer], None]
OnBytes = Callable[[int], None]


class WantedFile(SecretStruct, frozen=True):
    """A file of MEGA's.  name: for people.  mtime: seconds since 1970, or None."""

    ref: FileRef
    key: FileKey
    size: int
    name: str
    mtime: int | None = None

    _shown = ("name", "size")


def not_genuine(name: str) -> Corrupt:
    """The error for a file whose MAC does not fit."""
    return Corrupt(
        f"{name}: what MEGA sends is not what was put there: the MAC of the whole file does not fit"
    )


class Copying:
    """Copies of files.

    on_bytes: called with how many bytes have come, or were there already.
    each_durable: False if whoever copies makes all of them durable at the end.
    """

    def __init__(
        self,
        contents: FileContents,
        on_bytes: OnBytes = lambda count: None,
        *,
        each_durable: bool = True,
    ) -> None:
        self._contents = contents
        self._on_bytes = on_bytes
        self._each_durable = each_durable

    async def to_sink(self, file: WantedFile, sink: PlainSink) -> None:
        """Hand the plain bytes to *sink* as they come; raise Corrupt at the end if they are not
        genuine.
        """
        mac = FileMac(file.key)

        async def take(start: int, closed: bytes) -> None:
            await offload(_open_into, file.key, start, closed, mac, sink)

        await self._pieces(file, 0, take)
        if file.size and not mac.fits():
            raise not_genuine(file.name)

    async def to_file(self, file: WantedFile, path: Path) -> bool:
        """Copy to *path*, whose directory is there; return whether there was anything to do.

        A file of the same size and time is taken for the same.  Raises AlreadyThere for any other.
        """
        if _is_there(file, path):
            self._on_bytes(file.size)
            return False
        part = part_of(path)
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            begun = os.fstat(fd).st_size
            if begun > file.size:
                begun = 0
            await self._fill(file, fd, begun - begun % 16)
            if file.mtime is not None:
                os.utime(fd, ns=(file.mtime * 10**9,) * 2)
            if self._each_durable:
                await offload(os.fsync, fd, kind="disk")
            _give_name(part, path)
        finally:
            os.close(fd)
        return True

    async def _fill(self, file: WantedFile, fd: int, begun: int) -> None:
        """Bring the rest of *file* behind the first *begun* bytes, and verify all of it."""
        mac = FileMac(file.key)
        await offload(_read_again, fd, begun, mac, kind="disk")
        os.ftruncate(fd, begun)
        self._on_bytes(begun)

        def write(plain: Buffer) -> None:
            view = memoryview(plain)
            while view:
                view = view[os.write(fd, view) :]

        os.lseek(fd, begun, os.SEEK_SET)

        async def take(start: int, closed: bytes) -> None:
            await offload(_open_into, file.key, start, closed, mac, write, kind="disk")

        await self._pieces(file, begun, take)
        if not file.size or mac.fits():
            return
        if begun:  # perhaps another file's part lay there
            self._on_bytes(-file.size)
            await self._fill(file, fd, 0)
            return
        os.ftruncate(fd, 0)
        raise not_genuine(file.name)

    async def _pieces(
        self, file: WantedFile, start: int, take: Callable[[int, bytes], Awaitable[None]]
    ) -> None:
        """Fetch [start, size) in pieces, some at once, and hand them over in order."""
        waiting: list[trio.MemoryReceiveChannel[bytes]] = []

        async def fetch(at: int, to: trio.MemorySendChannel[bytes]) -> None:
            async with to:
                size = min(_PIECE, file.size - at)
                await to.send(await self._contents.get(file.ref, at, size))

        async with one_error_nursery() as nursery:
            asked = start
            while asked < file.size or waiting:
                while asked < file.size and len(waiting) < _AT_ONCE:
                    send, receive = trio.open_memory_channel[bytes](1)
                    waiting.append(receive)
                    nursery.start_soon(fetch, asked, send)
                    asked += min(_PIECE, file.size - asked)
                receive = waiting.pop(0)
                async with receive:
                    closed = await receive.receive()
                await take(start, closed)
                start += len(closed)
                self._on_bytes(len(closed))


def part_of(path: Path) -> Path:
    """Where a copy lies until it is whole."""
    name = os.fsencode(path.name)
    if len(name) + len(_SUFFIX) > NAME_MAX:
        name = name[: NAME_MAX - len(_SUFFIX)]
    return path.with_name(os.fsdecode(name + _SUFFIX))


def _is_there(file: WantedFile, path: Path) -> bool:
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    same = there.st_size == file.size and (file.mtime is None or int(there.st_mtime) == file.mtime)
    if not same or not path.is_file() or path.is_symlink():
        raise AlreadyThere(f"{path} is there already, and is another file: move it away")
    return True


def _give_name(part: Path, path: Path) -> None:
    """Rename, but over nothing that came meanwhile."""
    if os.path.lexists(path):
        raise AlreadyThere(f"{path} has come to be there meanwhile: the copy is {part}")
    os.rename(part, path)


def _open_into(key: FileKey, start: int, closed: bytes, mac: FileMac, sink: PlainSink) -> None:
    plain = decipherer(key, start)(closed)
    mac.update(plain)
    sink(plain)


def _read_again(fd: int, size: int, mac: FileMac) -> None:
    at = 0
    while at < size:
        piece = os.pread(fd, min(1 << 20, size - at), at)
        if not piece:
            raise OSError("the copy that was begun has become shorter")
        mac.update(piece)
        at += len(piece)
