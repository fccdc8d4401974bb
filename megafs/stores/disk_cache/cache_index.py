"""The entries of a cache, and those that wait to be written or removed; no I/O, no waiting."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from megafs import clock
from megafs.stores.disk_cache.cache_entries import CacheEntries, CacheEntry
from megafs.stores.disk_cache.range_file import RangeFile

#: Keys of ranges to be removed from the disk, and their files if they are open.
Drops = list[tuple[str, RangeFile | None]]


class CacheIndex:
    """The entries of a cache, from the moment they are read until they are off the disk.

    handle_limit: files kept open.
    changed: called when there is something to be removed from the disk.
    """

    def __init__(self, handle_limit: int, changed: Callable[[], None]) -> None:
        self._handle_limit = handle_limit
        self._changed = changed
        self.entries = CacheEntries()
        #: CacheEntries whose files are open, the one used last at the end.
        self.handles: OrderedDict[CacheEntry, None] = OrderedDict()
        #: Objects whose ranges are never evicted.
        self.pinned: set[str] = set()
        #: CacheEntries that were used since their access times were last written.
        self.touched: set[CacheEntry] = set()
        #: The cost of everything on the disk.
        self.used = 0
        #: What waits to be written, and the bytes of memory in it.
        self.queue: deque[CacheEntry] = deque()
        self.queued = 0
        #: What waits to be removed: key, cost, open file.
        self.drops: deque[tuple[str, int, RangeFile | None]] = deque()

    def add(self, entry: CacheEntry, data: bytes | RangeFile) -> bool:
        """Index an entry and queue it to be written; readers get it from *data* until then.

        False, and it is not added, if what is there holds all of it.
        """
        needless = self.entries.add(entry)
        if needless is None:
            return False
        for old in needless:
            self.throw_out(old)
        if isinstance(data, bytes):
            entry.data = data
            self.queued += len(data)
        else:
            entry.handle = data
        entry.access = clock.now()
        self.queue.append(entry)
        return True

    def use(self, entry: CacheEntry) -> None:
        """An entry is read: it is the last to go, and its file the last to be closed."""
        self.entries.touch(entry)
        entry.access = clock.now()
        self.touched.add(entry)
        if entry in self.handles:
            self.handles.move_to_end(entry)

    def keep_open(self, entry: CacheEntry, handle: RangeFile) -> None:
        """Keep the file of an entry open, and close those that were not used for longest."""
        # While we read it may have been thrown out, or just written and so have a file of its own.
        if entry not in self.entries or not entry.on_disk or entry.handle is not None:
            return
        entry.handle = handle
        self.handles[entry] = None
        while len(self.handles) > self._handle_limit:
            oldest, _ = self.handles.popitem(last=False)
            oldest.handle = None

    def discard(self, entry: CacheEntry) -> None:
        """Take an entry out of the index and off the disk."""
        self.entries.remove(entry)
        self.throw_out(entry)

    def throw_out(self, entry: CacheEntry) -> None:
        """Queue an entry that is no longer in the index to be removed from the disk."""
        self.handles.pop(entry, None)
        self.touched.discard(entry)
        handle, entry.handle = entry.handle, None
        if entry.on_disk:
            entry.on_disk = False
            self.drops.append((entry.key, entry.cost, handle))
            self._changed()

    def evict(self, wanted: int, drops: Drops) -> int:
        """Throw out the least recently used until *wanted* bytes are free; return how many are."""
        if wanted <= 0:
            return 0
        chosen: list[CacheEntry] = []
        pinned: list[CacheEntry] = []
        gained = 0
        for entry in self.entries.oldest():
            if gained >= wanted:
                break
            if entry.name in self.pinned:
                pinned.append(entry)
            elif entry.on_disk:
                chosen.append(entry)
                gained += entry.cost
        for entry in pinned:  # so that the next search does not meet them again
            self.entries.touch(entry)
        for entry in chosen:
            self.entries.remove(entry)
            self.handles.pop(entry, None)
            self.touched.discard(entry)
            drops.append((entry.key, entry.handle))
            entry.handle = None
            entry.on_disk = False
            self.used -= entry.cost
        return gained

    def empty(self) -> None:
        """Forget what the cache holds; what is on the disk stays there."""
        for entry in (*self.entries.oldest(), *self.queue):
            entry.let_go()
            entry.on_disk = False
        self.entries = CacheEntries()
        self.handles.clear()
        self.touched.clear()
        self.queue.clear()
        self.queued = 0
        self.drops.clear()
        self.used = 0
