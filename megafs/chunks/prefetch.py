"""Read-ahead: which bytes of a file a program will want next.  A pure plan, no I/O.

A handle that reads on from where it stopped gets a window that grows fourfold with every hit up
to a limit, and closes on the first jump.  The kernel sends the requests of its own read-ahead from
several threads, so one that comes a little early or late still counts as sequential.
"""

from __future__ import annotations

from dataclasses import dataclass

#: How far from the expected place a request may lie and still be sequential: the kernel has up to
#: 8 requests of 128 KiB under way.
_SLACK = 1 << 20
_FIRST = 512 << 10


@dataclass(slots=True)
class ReadAhead:
    """The reading pattern of one open file.

    limit: the largest window in bytes; 0 turns read-ahead off.
    """

    limit: int
    _next: int = 0
    _window: int = 0
    _fetched: int = 0

    def after(self, offset: int, length: int, size: int) -> tuple[int, int] | None:
        """A read of [offset, offset+length) came; return the range to fetch now, if any.

        size: of the file.  Never asks for the same bytes twice while reading goes forward.
        """
        if self.limit <= 0:
            return None
        end = offset + length
        if self._next - _SLACK <= offset <= self._next + _SLACK and (self._next or offset == 0):
            self._window = min(self.limit, max(_FIRST, self._window * 4))
        else:
            self._window = 0
            self._fetched = end
        self._next = max(end, self._next) if self._window else end
        if not self._window:
            return None
        start = max(self._fetched, end)
        stop = min(size, self._next + self._window)
        # Ask in pieces worth a request, not for every 128 KiB that was consumed.
        if stop - start < min(self._window // 2, 1 << 20) and stop < size:
            return None
        if stop <= start:
            return None
        self._fetched = stop
        return start, stop
