"""What a cache holds, and what waits to be written or removed.  Bookkeeping: no I/O, no waiting."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from megafs import clock
from megafs.stores.disk_cache.range_file import RangeFile
from megafs.stores.disk_cache.segments import Segment, Segments

#: Keys of ranges to be removed from the disk, and their files if they are open.
Drops = list[tuple[str, RangeFile | None]]


class CacheIndex:
    """The segments of a cache, from the moment they are read until they are off the disk.

    handle_limit: files kept open.
    changed: called when there is something to be removed from the disk.
    """

    def __init__(self, handle_limit: int, changed: Callable[[], None]) -> None:
        self._handle_limit = handle_limit
        self._changed = changed
        self.segments = Segments()
        #: Segments whose files are open, the one used last at the end.
        self.handles: OrderedDict[Segment, None] = OrderedDict()
        #: Objects whose ranges are never evicted.
        self.pinned: set[str] = set()
        #: Segments that were used since their access times were last written.
        self.touched: set[Segment] = set()
        #: The cost of everything on the disk.
        self.used = 0
        #: What waits to be written, and the bytes of memory in it.
        self.queue: deque[Segment] = deque()
        self.queued = 0
        #: What waits to be removed: key, cost, open file.
        self.drops: deque[tuple[str, int, RangeFile | None]] = deque()

    def add(self, segment: Segment, data: bytes | RangeFile) -> bool:
        """Index a segment and queue it to be written; readers get it from *data* until then.

        False, and it is not added, if what is there holds all of it.
        """
        needless = self.segments.add(segment)
        if needless is None:
            return False
        for old in needless:
            self.throw_out(old)
        if isinstance(data, bytes):
            segment.data = data
            self.queued += len(data)
        else:
            segment.handle = data
        segment.access = clock.now()
        self.queue.append(segment)
        return True

    def use(self, segment: Segment) -> None:
        """A segment is read: it is the last to go, and its file the last to be closed."""
        self.segments.touch(segment)
        segment.access = clock.now()
        self.touched.add(segment)
        if segment in self.handles:
            self.handles.move_to_end(segment)

    def keep_open(self, segment: Segment, handle: RangeFile) -> None:
        """Keep the file of a segment open, and close those that were not used for longest."""
        # While we read it may have been thrown out, or just written and so have a file of its own.
        if segment not in self.segments or not segment.on_disk or segment.handle is not None:
            return
        segment.handle = handle
        self.handles[segment] = None
        while len(self.handles) > self._handle_limit:
            oldest, _ = self.handles.popitem(last=False)
            oldest.handle = None

    def discard(self, segment: Segment) -> None:
        """Take a segment out of the index and off the disk."""
        self.segments.remove(segment)
        self.throw_out(segment)

    def throw_out(self, segment: Segment) -> None:
        """Have a segment that is no longer in the index removed from the disk."""
        self.handles.pop(segment, None)
        self.touched.discard(segment)
        handle, segment.handle = segment.handle, None
        if segment.on_disk:
            segment.on_disk = False
            self.drops.append((segment.key, segment.cost, handle))
            self._changed()

    def evict(self, wanted: int, drops: Drops) -> int:
        """Throw out the least recently used until *wanted* bytes are free; return how many are."""
        if wanted <= 0:
            return 0
        chosen: list[Segment] = []
        pinned: list[Segment] = []
        gained = 0
        for segment in self.segments.oldest():
            if gained >= wanted:
                break
            if segment.name in self.pinned:
                pinned.append(segment)
            elif segment.on_disk:
                chosen.append(segment)
                gained += segment.cost
        for segment in pinned:  # so that the next search does not meet them again
            self.segments.touch(segment)
        for segment in chosen:
            self.segments.remove(segment)
            self.handles.pop(segment, None)
            self.touched.discard(segment)
            drops.append((segment.key, segment.handle))
            segment.handle = None
            segment.on_disk = False
            self.used -= segment.cost
        return gained

    def empty(self) -> None:
        """Forget what the cache holds; what is on the disk stays there."""
        for segment in (*self.segments.oldest(), *self.queue):
            segment.let_go()
            segment.on_disk = False
        self.segments = Segments()
        self.handles.clear()
        self.touched.clear()
        self.queue.clear()
        self.queued = 0
        self.drops.clear()
        self.used = 0
