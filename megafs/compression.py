"""Zstandard, with the one level megafs uses and a cap on what comes out.

The standard library has it from Python 3.14 (PEP 784); backports.zstd is the same code before.
Level 1: twice as small as lz4 at three quarters of its speed (docs/threats.md, "Measured").
A compressor keeps state and must not be shared, so each thread has its own.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from megafs.errors import Corrupt

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Buffer = bytes | bytearray | memoryview

LEVEL = 1
_local = threading.local()


def compress(data: Buffer) -> bytes:
    """Return *data* as one zstd frame."""
    compressor: Any = getattr(_local, "compressor", None)
    if compressor is None:
        compressor = _local.compressor = zstd.ZstdCompressor(level=LEVEL)
    return compressor.compress(data, mode=compressor.FLUSH_FRAME)  # type: ignore[no-any-return]


def decompress(data: Buffer, limit: int) -> bytes:
    """Return what *data* was before, at most *limit* bytes; Corrupt if it is more, or damaged."""
    decompressor = zstd.ZstdDecompressor()
    try:
        out = decompressor.decompress(data, max_length=limit)
    except zstd.ZstdError as exc:
        raise Corrupt(f"compressed bytes do not decompress: {exc}") from exc
    if not decompressor.eof or decompressor.unused_data:
        raise Corrupt(f"compressed bytes are damaged or become more than {limit} bytes")
    return out
