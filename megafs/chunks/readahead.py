"""Read-ahead: which bytes of a file a program will want next.  A pure plan, no I/O.

A handle that reads on from where it stopped gets a window that grows eightfold with every hit up
to a limit, and closes on the first jump.  The limit itself grows while the reader still has to wait
for bytes that are under way: then the line is longer or faster than the window.  The kernel sends
the requests of its own read-ahead from several threads, so one that comes a little early or late
still counts as sequential.
"""

from __future__ import annotations

from msgspec import Struct

#: How far from the expected offset a request may lie and still be sequential: the kernel has up to
#: 8 requests of 128 KiB under way.
_SLACK = 1 << 20
_UNDER_WAY = 8
_FIRST = 1 << 20
#: A window is fetched in so many pieces, or in more if more transfers at once bring more, but none
#: that is hardly worth a request: at least this many bytes, and as long as two round trips.
_PIECES = 4
_LEAST = 1 << 20
_ROUND_TRIPS = 2


class ReadAhead(Struct):
    """The reading pattern of one open file.

    limit: the largest window in bytes, to begin with; 0 turns read-ahead off.
    most: what the limit may grow to.
    """

    limit: int
    most: int = 0
    _next: int = 0
    _window: int = 0
    _fetched: int = 0

    def goes_on(self, offset: int, length: int) -> bool:
        """Whether a read of [offset, offset+length) goes on where the ones before it stopped.

        What counts is the size that the kernel asks for: its read-ahead comes in large requests,
        out of order; one for a single page is a jump as soon as it is a few pages away.
        """
        slack = min(_SLACK, _UNDER_WAY * length)
        return abs(offset - self._next) <= slack and bool(self._next or offset == 0)

    def late(self) -> None:
        """The reader had to wait for bytes that were under way already."""
        if self._window == self.limit < self.most:
            self.limit = min(self.most, self.limit * 2)

    def jumped(self, end: int) -> None:
        """Note a read that ended at *end*, after a jump, and that was answered without `after`."""
        self._window = 0
        self._fetched = self._next = end

    def piece(self, at_once: int, worth: int) -> int:
        """How much of the window is worth one request.

        at_once: how many requests the line has use for; worth: bytes that take as long as a round
        trip; 0 for what is not known.
        """
        most = self._window // _PIECES
        if worth:
            most = min(most, max(_ROUND_TRIPS * worth, self._window // max(_PIECES, at_once)))
        return max(_LEAST, most)

    def after(
        self, offset: int, length: int, size: int, at_once: int = 0, worth: int = 0
    ) -> tuple[int, int] | None:
        """A read of [offset, offset+length) came; return the range to fetch now, if any.

        size: of the file.  at_once, worth: see `piece`.
        Never asks for the same bytes twice while reading goes forward.
        """
        if self.limit <= 0:
            return None
        end = offset + length
        if self.goes_on(offset, length):
            self._window = min(self.limit, max(_FIRST, self._window * 8))
        else:
            self._window = 0
            self._fetched = end
        self._next = max(end, self._next) if self._window else end
        if not self._window:
            return None
        start = max(self._fetched, end)
        stop = min(size, self._next + self._window)
        # Ask in pieces worth a request, not for every 128 KiB that was consumed.
        if stop - start < min(self._window // 2, self.piece(at_once, worth)) and stop < size:
            return None
        if stop <= start:
            return None
        self._fetched = stop
        return start, stop
