"""Save what a link gives out: only whole files get their names, and a copy can be gone on with.

A file is written beside its place as NAME.<fingerprint>.megafs-part.  The fingerprint is of the
chunks that the file consists of, so that a part is only ever gone on with if it is of the same
contents; whatever is in it was verified before it was written.  Nothing that is there is replaced.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from megafs.concurrency import offload
from megafs.crypto.volume_keys import digest
from megafs.errors import AlreadyThere, Corrupt
from megafs.links.manifest import SharedFile
from megafs.links.reader import SharedFiles
from megafs.stores.base import Buffer
from megafs.tree.inode import NAME_MAX

_SUFFIX: Final = b".megafs-part"

#: Called with how many bytes more are there.
OnBytes = Callable[[int], None]


class SavedLink(msgspec.Struct, frozen=True):
    """How a copy went.  skipped: files that were there already."""

    path: str
    files: int
    size: int
    skipped: int


class Saving:
    """Saves files of one link.  on_bytes: hears of what came, or was there already."""

    def __init__(self, shared: SharedFiles, on_bytes: OnBytes = lambda count: None) -> None:
        self._shared = shared
        self._on_bytes = on_bytes

    async def to_stdout(self, file: SharedFile, write: Callable[[Buffer], None]) -> None:
        """Hand the bytes to *write* in order, as they verify; a hole as zeros."""
        at = 0

        async def sink(start: int, data: Buffer) -> None:
            nonlocal at
            _zeros(write, start - at)
            await offload(write, data, kind="disk")
            at = start + len(data)
            self._on_bytes(len(data))

        await self._shared.copy(file, sink)
        await offload(_zeros, write, file.size - at, kind="disk")

    async def to_place(self, dest: Path) -> SavedLink:
        """Save everything as *dest*: a file, or a directory with what is in it.

        Raises AlreadyThere if something else is in the place of a file.
        """
        manifest = self._shared.manifest
        if not manifest.folder:
            fresh = await self._file(manifest.files[0], dest)
            return SavedLink(str(dest), 1, manifest.files[0].size, 0 if fresh else 1)
        dest.mkdir(exist_ok=True)
        files = skipped = size = 0
        folders: list[tuple[Path, float]] = []
        for file in manifest.files:
            path = dest.joinpath(*_parts(file))
            if file.folder:
                path.mkdir(exist_ok=True)
                folders.append((path, file.modified))
                continue
            files += 1
            size += file.size
            skipped += not await self._file(file, path)
        for path, modified in reversed(folders):
            os.utime(path, (modified, modified))
        return SavedLink(str(dest), files, size, skipped)

    async def _file(self, file: SharedFile, path: Path) -> bool:
        """Save one file; False if it was there."""
        if _is_there(file, path):
            self._on_bytes(file.size)
            return False
        part = path.with_name(os.fsdecode(_part_name(os.fsencode(path.name), file)))
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            begun = min(os.fstat(fd).st_size, file.size)
            self._on_bytes(begun)

            async def sink(start: int, data: Buffer) -> None:
                await offload(_write_at, fd, start, data, kind="disk")
                self._on_bytes(max(0, start + len(data) - max(begun, start)))

            await self._shared.copy(file, sink, begun)
            os.ftruncate(fd, file.size)
            if file.executable:
                os.fchmod(fd, os.fstat(fd).st_mode & 0o777 | 0o100)
            os.utime(fd, (file.modified, file.modified))
            await offload(os.fsync, fd, kind="disk")
        finally:
            os.close(fd)
        _give_name(part, path)
        return True


def _give_name(part: Path, path: Path) -> None:
    """Rename, but over nothing that came meanwhile."""
    if os.path.lexists(path):
        raise AlreadyThere(f"{path} has come to be there meanwhile: the copy is {part}")
    part.rename(path)


def path_of(file: SharedFile) -> bytes:
    """The exact path of a file, relative to the folder that is shared."""
    return base64.b64decode(file.path_b64) if file.path_b64 else file.path.encode()


def _parts(file: SharedFile) -> list[str]:
    """The names on the way to a file; Corrupt if they lead anywhere else."""
    parts = path_of(file).split(b"/")
    for part in parts:
        if part in (b"", b".", b"..") or b"\0" in part or len(part) > NAME_MAX:
            raise Corrupt("the link has a name in it that no file can have")
    return [os.fsdecode(part) for part in parts]


def checked_name(name: str) -> str:
    """The name that whoever made the link gave; Corrupt if no file can have it."""
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        raise Corrupt("the link has a name that no file can have: say another one")
    return name


def _part_name(name: bytes, file: SharedFile) -> bytes:
    contents = msgspec.json.encode(([chunk.digest for chunk in file.chunks], file.inline))
    tail = b"." + digest(contents)[:4].hex().encode() + _SUFFIX
    return name[: NAME_MAX - len(tail)] + tail


def _is_there(file: SharedFile, path: Path) -> bool:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    if (
        path.is_symlink()
        or not path.is_file()
        or there.st_size != file.size
        or abs(there.st_mtime - file.modified) > 0.001
    ):
        raise AlreadyThere(f"{path} is there already, and is another file: move it away")
    return True


def _write_at(fd: int, at: int, data: Buffer) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        at, view = at + done, view[done:]


def _zeros(write: Callable[[Buffer], None], count: int) -> None:
    zeros = bytes(min(count, 1 << 20))
    while count > 0:
        write(zeros[:count])
        count -= len(zeros)
