"""The bytes that were written to one block of a file and are not flushed yet.

A block is as long as the volume's chunks, and begins at a multiple of that.
"""

from __future__ import annotations

from bisect import bisect_left


class DirtyBlock:
    """The bytes written to one block of a file, and which they are.

    data: the bytes from *origin* on, zeros where none were written; so that a page in the middle
    of the block takes a page of memory, and not all that comes before it.
    ranges: where bytes were written, as [start, end) within the block; sorted, apart.
    """

    __slots__ = ("data", "origin", "ranges")

    def __init__(self) -> None:
        self.data: bytearray | memoryview = bytearray()
        self.origin = 0
        self.ranges: list[tuple[int, int]] = []

    def write(self, start: int, part: memoryview) -> int:
        """Put *part* at *start*; return by how many bytes more memory is held."""
        end = start + len(part)
        data = self.data
        held = len(data)
        if not held:
            self.origin = start
        before = max(0, self.origin - start)
        grows = before or end - self.origin > held
        if isinstance(data, memoryview) or (grows and _has_views(data)):
            data = self.data = bytearray(data)
        if before:
            data[:0] = bytes(before)
            self.origin = start
        at = start - self.origin
        if len(data) < at:
            data.extend(bytes(at - len(data)))
        data[at : at + len(part)] = part
        self._cover(start, end)
        return len(data) - held

    def adopt(self, part: memoryview) -> int:
        """Take *part*, the bytes of a whole block, without copying them; return its size."""
        self.data = part
        self.ranges = [(0, len(part))]
        return len(part)

    def part(self, start: int, end: int) -> memoryview:
        """The bytes of [start, end), which were written."""
        return memoryview(self.data)[start - self.origin : end - self.origin]

    def _cover(self, start: int, end: int) -> None:
        ranges = self.ranges
        if ranges and ranges[-1][1] == start:  # appending is the common case
            ranges[-1] = (ranges[-1][0], end)
            return
        first = bisect_left(ranges, start, key=lambda r: r[1])
        last = first
        low, high = start, end
        while last < len(ranges) and ranges[last][0] <= end:
            low, high = min(low, ranges[last][0]), max(high, ranges[last][1])
            last += 1
        ranges[first:last] = [(low, high)]

    def before(self, end: int) -> DirtyBlock:
        """A copy with only the bytes before *end*."""
        copy = DirtyBlock()
        copy.origin = self.origin
        copy.data = bytearray(self.part(self.origin, max(self.origin, end)))
        copy.ranges = [(a, min(b, end)) for a, b in self.ranges if a < end]
        return copy

    @property
    def size(self) -> int:
        """How many bytes of memory it holds."""
        return len(self.data)


def _has_views(data: bytearray) -> bool:
    """Whether a memoryview of the bytes exists, so that they cannot be resized.

    A flush that failed leaves one for as long as its traceback lives.
    """
    try:
        data.append(0)
    except BufferError:
        return True
    del data[-1:]
    return False
