"""One chunk: a piece of a file's contents, sealed for its offset in a pack.

The plaintext is:  length of the data u32 big-endian | codec u8 | the data, perhaps compressed.
Codecs: 0 as it is, 1 zstd.  The key is derived from the pack's random id and the chunk's offset
in it, and both are in the context, so a chunk opens only where it was put.  A pack is sealed
chunks, one behind the other, then random bytes up to a Padmé size, which does not tell the sizes of
files.
"""

from __future__ import annotations

import struct
from typing import Final

from megafs import compression
from megafs.crypto import aead
from megafs.crypto.volume_keys import chunk_key
from megafs.errors import Corrupt
from megafs.tree.tree import Extent

HEAD: Final = struct.Struct(">IB")
RAW, ZSTD = 0, 1
#: The most plaintext of one chunk, whatever a volume's parameters say.
MAX_CHUNK: Final = 1 << 20


def pack_name(name: bytes) -> str:
    """The object name of the pack with this random id."""
    digits = name.hex()
    return f"packs/{digits[:2]}/{digits}"


def encode(data: bytes | bytearray | memoryview, compress: bool) -> bytes:
    """The plaintext of the chunk that holds *data*, compressed if that helps."""
    if compress and len(data) >= 64:
        small = compression.compress(data)
        # Below a sixteenth saved, decompressing costs more than the bytes.
        if len(small) < len(data) - (len(data) >> 4):
            return HEAD.pack(len(data), ZSTD) + small
    return b"".join((HEAD.pack(len(data), RAW), data))


def decode(plain: bytes) -> bytes | memoryview:
    """The data of a chunk's plaintext; Corrupt if it does not hold what its head says."""
    if len(plain) < HEAD.size:
        raise Corrupt(f"a chunk of {len(plain)} bytes has no head")
    size, codec = HEAD.unpack_from(plain)
    if size > MAX_CHUNK:
        raise Corrupt(f"a chunk says it holds {size} bytes")
    if codec == RAW:
        if len(plain) - HEAD.size < size:
            raise Corrupt(f"a chunk of {len(plain)} bytes says it holds {size}")
        return memoryview(plain)[HEAD.size : HEAD.size + size]
    if codec == ZSTD:
        data = compression.decompress(memoryview(plain)[HEAD.size :], size)
        if len(data) != size:
            raise Corrupt(f"a chunk says it holds {size} bytes, has {len(data)}")
        return data
    raise Corrupt(f"a chunk is packed with codec {codec}, which this megafs does not know")


def seal(pack_key: bytes, fsid: bytes, epoch: int, pack: bytes, offset: int, plain: bytes) -> bytes:
    """Seal a chunk's plaintext for *offset* in *pack*."""
    context = aead.context("chunk", fsid, epoch, pack, offset)
    return aead.seal(chunk_key(pack_key, offset), context, plain)


def is_plain(extent: Extent) -> bool:
    """Whether a chunk is not compressed, so that a part of it can be opened alone.

    Its size tells: `encode` compresses only what becomes smaller by more than a few bytes.
    """
    return extent.sealed == aead.sealed_size(HEAD.size + extent.plain)


def part_opener(
    pack_key: bytes, fsid: bytes, epoch: int, pack: bytes, extent: Extent, header: bytes
) -> aead.PartOpener:
    """Return an opener for parts of a chunk.  header: its first `aead.HEADER_SIZE` sealed bytes.

    A byte at some offset of the data lies `HEAD.size` further on in the plaintext.
    """
    return aead.PartOpener(
        chunk_key(pack_key, extent.offset),
        aead.context("chunk", fsid, epoch, pack, extent.offset),
        header,
        extent.sealed,
        f"{pack_name(pack)} at {extent.offset}",
    )


def open_chunk(
    pack_key: bytes,
    fsid: bytes,
    epoch: int,
    pack: bytes,
    extent: Extent,
    sealed: bytes | memoryview,
) -> bytes | memoryview:
    """The data of a sealed chunk, checked against what the tree says of it."""
    name = f"{pack_name(pack)} at {extent.offset}"
    if len(sealed) != extent.sealed:
        raise Corrupt(f"{name}: {len(sealed)} bytes came, not {extent.sealed}")
    context = aead.context("chunk", fsid, epoch, pack, extent.offset)
    data = decode(aead.open_sealed(chunk_key(pack_key, extent.offset), context, sealed, name))
    if len(data) != extent.plain:
        raise Corrupt(f"{name}: holds {len(data)} bytes, the tree says {extent.plain}")
    return data
