"""The bytes of a range of a file, put together from the chunks of its extents."""

from __future__ import annotations

from collections.abc import Iterator

from megafs.tree.tree import Extent


def parts(
    extents: list[Extent], chunks: list[bytes | memoryview], start: int, end: int
) -> Iterator[tuple[int, memoryview]]:
    """The pieces of [start, end), one for each extent, given its chunk: (start, bytes)."""
    for extent, chunk in zip(extents, chunks, strict=True):
        begin, stop = max(start, extent.start), min(end, extent.end)
        skip = extent.skip + begin - extent.start
        yield begin, memoryview(chunk)[skip : skip + stop - begin]


def join(
    extents: list[Extent], chunks: list[bytes | memoryview], start: int, end: int
) -> bytes | memoryview:
    """The bytes of [start, end); extents in order, zeros where none of them has bytes."""
    if len(extents) == 1:
        only = extents[0]
        if only.start <= start and only.end >= end:  # no copy
            skip = only.skip + start - only.start
            return memoryview(chunks[0])[skip : skip + end - start]
    if _without_holes(extents, start, end):
        # In one go: a buffer that is zeroed first takes half as long again.
        return b"".join(part for _, part in parts(extents, chunks, start, end))
    return memoryview(joined(extents, chunks, start, end))


def joined(
    extents: list[Extent], chunks: list[bytes | memoryview], start: int, end: int
) -> bytearray:
    """As `join`, in a buffer of its own, to be written into."""
    out = bytearray(end - start)
    for begin, part in parts(extents, chunks, start, end):
        out[begin - start : begin - start + len(part)] = part
    return out


def _without_holes(extents: list[Extent], start: int, end: int) -> bool:
    """Whether *extents*, in order, hold every byte of [start, end)."""
    for extent in extents:
        if extent.start > start:
            return False
        start = extent.end
    return start >= end
