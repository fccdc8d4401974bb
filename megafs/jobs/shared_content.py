"""The contents of a link: which chunks a file or folder consists of, with the key of each.

Nothing is uploaded that lies in the store already.  Two kinds of chunks are sealed anew, into
objects of the link's own (share/<id>/<pack id>): all of them where a copy is asked for, and those
that hold more than the file: bytes that were overwritten since lie in the same chunk, and its key
would give them away.
"""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from blake3 import blake3
from msgspec import Struct
from msgspec.structs import replace

from megafs import clock
from megafs.chunks import codec
from megafs.concurrency import offload
from megafs.crypto.volume_keys import KEY_SIZE, chunk_key, digest
from megafs.errors import BadUsage
from megafs.links.manifest import SharedBytes, SharedChunk, SharedFile
from megafs.progress import OnProgress, Progress
from megafs.tree.inode import Inode
from megafs.tree.paths import exact, show
from megafs.tree.subtree import below
from megafs.tree.tree import Extent, Tree
from megafs.volume.volume import Volume

#: Sealed bytes of one object of a link's own.
_OWN_SIZE: Final = 8 << 20
_AT_ONCE: Final = 200
#: Files and directories of one link.
MOST: Final = 200_000


class SharedPack(Struct, frozen=True):
    """An object that the manifest names.  name: in the store.  id, epoch: of its chunks."""

    name: str
    id: bytes
    epoch: int


class SharedContent(Struct):
    """The contents of a link.  packs: the volume's packs that it needs, by number."""

    files: list[SharedFile]
    objects: list[SharedPack]
    packs: list[int]
    copies: int = 0
    left_out: int = 0

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def file_count(self) -> int:
        return sum(not file.folder for file in self.files)


#: Stores an object of the link's own.
Put = Callable[[str, bytes], Awaitable[None]]


async def gather(
    volume: Volume, top: Inode, link: str, *, copy: bool, put: Put, on_progress: OnProgress
) -> SharedContent:
    """Collect what *top*, and everything below it, consists of; upload what is sealed anew.

    Everything of it must be committed.  link: the id, which names the objects of its own.
    """
    own = OwnObjects(volume, link, put)
    return await _Gathering(volume, own, copy, on_progress).run(top)


async def state_of(tree: Tree, top: Inode) -> bytes:
    """A digest of everything below a folder that its listing shows."""
    found = blake3()
    for n, (parent, name, inode) in enumerate(below(tree, top)):
        fields = (parent, name, inode.ino, inode.mode, inode.size, inode.mtime_ns, inode.version)
        found.update(repr(fields).encode())
        if n % _AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint()
    return found.digest()


class _Gathering:
    def __init__(
        self, volume: Volume, own: OwnObjects, copy: bool, on_progress: OnProgress
    ) -> None:
        self._volume = volume
        self._tree = volume.replica.tree
        self._copy = copy
        self._on_progress = on_progress
        self._own = own
        self._content = SharedContent([], [], [])
        self._numbers: dict[int, int] = {}  # pack number: place in objects
        self._keys: dict[int, bytes] = {}
        self._done = 0

    async def run(self, top: Inode) -> SharedContent:
        content = self._content
        if top.is_file:
            content.files.append(await self._file(top, b""))
        else:
            await self._folder(top)
        await self._own.close()
        first = len(content.objects)
        content.objects.extend(self._own.objects)
        content.copies = len(self._own.objects)
        # Own objects come last; until now their chunks counted from -1 downwards.
        content.files = [_numbered(file, first) for file in content.files]
        return content

    async def _folder(self, top: Inode) -> None:
        paths: dict[int, bytes] = {top.ino: b""}
        for parent, name, inode in below(self._tree, top):
            path = paths[parent] + b"/" + name if paths[parent] else name
            if inode.is_dir:
                paths[inode.ino] = path
                self._content.files.append(_described(inode, path))
            elif inode.is_file:
                self._content.files.append(await self._file(inode, path))
            else:
                self._content.left_out += 1
            if len(self._content.files) > MOST:
                raise BadUsage(f"a link gives out at most {MOST} files: share parts of the folder")
            self._done += 1
            if self._done % _AT_ONCE == 0:
                self._on_progress(Progress(self._done, 0, "files found"))
                await trio.lowlevel.checkpoint()

    async def _file(self, inode: Inode, path: bytes) -> SharedFile:
        extents = [e for e in self._tree.all_extents(inode.ino) if e.start < inode.size]
        extents = [e.cut(e.start, inode.size) for e in extents]
        used: dict[tuple[int, int], int] = {}
        for extent in extents:
            key = (extent.pack, extent.offset)
            used[key] = used.get(key, 0) + extent.length
        chunks: list[SharedChunk] = []
        inline: list[SharedBytes] = []
        for extent in extents:
            if extent.pack == 0:
                data = bytes(extent.data or b"")[extent.skip : extent.skip + extent.length]
                inline.append(SharedBytes(extent.start, data))
            elif self._copy or used[extent.pack, extent.offset] < extent.plain:
                chunks.append(await self._own_chunk(extent))
            else:
                chunks.append(self._chunk(extent))
        described = _described(inode, path)
        return SharedFile(
            path=described.path,
            size=inode.size,
            modified=described.modified,
            executable=bool(inode.mode & stat.S_IXUSR),
            chunks=tuple(chunks),
            inline=tuple(inline),
            path_b64=described.path_b64,
        )

    def _chunk(self, extent: Extent) -> SharedChunk:
        """A chunk where it lies."""
        number = self._numbers.get(extent.pack)
        if number is None:
            pack = self._tree.pack(extent.pack)
            number = self._numbers[extent.pack] = len(self._content.objects)
            self._content.objects.append(
                SharedPack(codec.pack_name(pack.name), pack.name, pack.epoch)
            )
            self._content.packs.append(extent.pack)
            self._keys[extent.pack] = self._volume.keyring.pack_key(pack.name, pack.epoch)
        assert extent.digest is not None
        return SharedChunk(
            start=extent.start,
            length=extent.length,
            object=number,
            at=extent.offset,
            offset=extent.offset,
            sealed=extent.sealed,
            plain=extent.plain,
            skip=extent.skip,
            key=chunk_key(self._keys[extent.pack], extent.offset),
            digest=extent.digest,
        )

    async def _own_chunk(self, extent: Extent) -> SharedChunk:
        """The bytes of an extent, and nothing else of its chunk, sealed for this link alone."""
        (data,) = await self._volume.chunks.read([extent])
        part = bytes(data[extent.skip : extent.skip + extent.length])
        return await self._own.add(extent.start, part)


class OwnObjects:
    """Objects with chunks that were sealed for one link; named share/<id>/<pack id>."""

    def __init__(self, volume: Volume, link: str, put: Put) -> None:
        self._volume = volume
        self._link = link
        self._put = put
        self._compress = volume.params.compression != "none"
        self._body = bytearray()
        self._id = b""
        self._key = b""
        self.objects: list[SharedPack] = []

    async def add(self, start: int, data: bytes) -> SharedChunk:
        """Seal *data*, the bytes of a file from *start* on; its object counts down from -1."""
        if len(self._body) >= _OWN_SIZE:
            await self.close()
        if not self._id:
            self._id, self._key = clock.random_bytes(16), clock.random_bytes(KEY_SIZE)
        keyring, offset = self._volume.keyring, len(self._body)
        pack, key, compress = self._id, self._key, self._compress

        def seal() -> bytes:
            plain = codec.encode(data, compress)
            return codec.seal(key, keyring.fsid, keyring.epoch, pack, offset, plain)

        sealed = await offload(seal)
        self._body += sealed
        return SharedChunk(
            start=start,
            length=len(data),
            object=-1 - len(self.objects),
            at=offset,
            offset=offset,
            sealed=len(sealed),
            plain=len(data),
            skip=0,
            key=chunk_key(key, offset),
            digest=digest(sealed),
        )

    async def close(self) -> None:
        """Upload what was sealed since the last time."""
        if not self._id:
            return
        name = own_name(self._link, self._id)
        await self._put(name, bytes(self._body))
        self.objects.append(SharedPack(name, self._id, self._volume.keyring.epoch))
        self._body.clear()
        self._id = b""


def own_name(link: str, pack: bytes) -> str:
    """The name of an object of a link's own."""
    return f"share/{link}/{pack.hex()}"


def manifest_name(link: str) -> str:
    """The name of a link's manifest in the store."""
    return f"share/{link}/manifest"


def _described(inode: Inode, path: bytes) -> SharedFile:
    exactly = exact(path)
    return SharedFile(
        path=show(path),
        modified=inode.mtime_ns / 1e9,
        folder=inode.is_dir,
        path_b64=exactly if isinstance(exactly, str) else "",
    )


def _numbered(file: SharedFile, first: int) -> SharedFile:
    """The file, with the objects of the link's own counted from *first* on."""
    if all(chunk.object >= 0 for chunk in file.chunks):
        return file
    chunks = [
        chunk if chunk.object >= 0 else replace(chunk, object=first - 1 - chunk.object)
        for chunk in file.chunks
    ]
    return replace(file, chunks=tuple(chunks))
