"""The contents of files as blocks that are sealed for this machine: what the disk cache keeps.

MEGA's ciphertext has nothing that shows a change of a part.  So what comes is opened, and sealed
again under a key of ours, before it reaches a disk: what lies there shows nothing, and what was
changed there is noticed.  What was changed before it came is not.

A file is the object "packs/m/HANDLE": for each 128 KiB of it a sealed block, one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NoReturn

from megafs.concurrency import offload
from megafs.crypto.aead import context, open_sealed, seal, sealed_size
from megafs.errors import Fault, Missing
from megafs.mega.ciphers import FileKey, decipherer
from megafs.mega.contents import FileContents, FileRef
from megafs.secret_struct import SecretStruct
from megafs.stores.base import Buffer, Health, ObjectStore, Page

#: Bytes of a file that are sealed as one.
BLOCK: Final = 128 << 10
#: Bytes that they take then.
SEALED: Final = sealed_size(BLOCK)
_PREFIX: Final = "packs/m/"
_FSID: Final = b"megafs/mega cach"  # 16 bytes, in the place of a volume's


class SealedFile(SecretStruct, frozen=True):
    """A file that is read.  size: in bytes, of its contents."""

    ref: FileRef
    key: FileKey
    size: int

    @property
    def name(self) -> str:
        return _PREFIX + self.ref.handle

    def sealed_range(self, first: int, end: int) -> tuple[int, int]:
        """Start and length of the sealed blocks [first, end)."""
        stop = min(end * BLOCK, self.size)
        last = stop - (end - 1) * BLOCK
        return first * SEALED, (end - 1 - first) * SEALED + sealed_size(last)


class SealedRanges(ObjectStore):
    """See the module.  key: of 32 bytes, for this tree on this machine."""

    def __init__(self, contents: FileContents, key: bytes, url: str) -> None:
        self.url = url
        self._contents = contents
        self._key = key
        self._files: dict[str, SealedFile] = {}

    def know(self, file: SealedFile) -> None:
        """*file* will be asked for by its name."""
        self._files[file.name] = file

    def forget_files(self, keep: Mapping[str, object]) -> None:
        """Nobody will ask for other files than those named *keep*."""
        for name in [name for name in self._files if name not in keep]:
            del self._files[name]

    async def get(self, name: str, start: int, length: int) -> bytes:
        """Whole blocks, as `SealedFile.sealed_range` names them."""
        file = self._files.get(name)
        if file is None:
            raise Missing(f"no file of that name is read: {name}")
        first, end = start // SEALED, -(-(start + length) // SEALED)
        if file.sealed_range(first, end) != (start, length):
            raise Fault("a range that is no whole blocks")
        at, stop = first * BLOCK, min(end * BLOCK, file.size)
        closed = await self._contents.get(file.ref, at, stop - at)
        return await offload(self._sealed, file, at, closed)

    def _sealed(self, file: SealedFile, at: int, closed: bytes) -> bytes:
        plain = memoryview(decipherer(file.key, at)(closed))
        return b"".join(
            seal(self._key, self._context(file, (at + i) // BLOCK), plain[i : i + BLOCK])
            for i in range(0, len(plain), BLOCK)
        )

    def opened(self, file: SealedFile, first: int, sealed: Buffer) -> list[bytes]:
        """The blocks from number *first* on; Corrupt if one of them was changed."""
        view = memoryview(sealed)
        return [
            open_sealed(self._key, self._context(file, first + i), view[at : at + SEALED])
            for i, at in enumerate(range(0, len(view), SEALED))
        ]

    @staticmethod
    def _context(file: SealedFile, number: int) -> bytes:
        return context("mega cache", _FSID, 0, file.ref.handle, number)

    async def put_new(self, name: str, data: Buffer) -> NoReturn:
        raise Fault("MEGA's files are only read here")

    async def put(self, name: str, data: Buffer) -> NoReturn:
        raise Fault("MEGA's files are only read here")

    async def delete(self, name: str) -> NoReturn:
        raise Fault("MEGA's files are only read here")

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        return Page([], False)

    def health(self) -> Health:
        return Health()
