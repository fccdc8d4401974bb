"""The entries of a cache: which ranges of which objects it holds, and which it used least recently.

Pure bookkeeping: no I/O, no clock.  No entry of an object lies within another of the same
object, so sorted by start they are sorted by end, too, and one binary search finds the entry that
contains a range, if there is one.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator

from megafs.stores.disk_cache.range_file import RangeFile

# The reach of an entry that ends where its object does: it answers for everything beyond.
_FOR_EVER = 1 << 62


_numbers = itertools.count(1)


class CacheEntry:
    """The bytes [start, start+size) of the object *name*.

    asked: how many bytes were asked for.  More than *size*: the object ends here.
    data: the bytes while they wait to be written; None once they are on disk.
    handle: an open file with the bytes, or None.
    cost: bytes of disk it takes.  access: when it was last used, seconds since 1970.
    landed: called, once, when it is written or will not be; None if nobody waits for that.
    number: no other entry of this process has it; later ones have greater ones.
    """

    __slots__ = (
        "access", "asked", "cost", "data", "handle", "landed", "name", "number", "on_disk", "size",
        "start",
    )  # fmt: skip

    def __init__(self, name: str, start: int, asked: int, size: int, access: float = 0.0) -> None:
        self.name = name
        self.start = start
        self.asked = asked
        self.size = size
        self.access = access
        self.number = next(_numbers)
        self.data: bytes | None = None
        self.handle: RangeFile | None = None
        self.landed: Callable[[], None] | None = None
        self.on_disk = False
        self.cost = 0

    @property
    def key(self) -> str:
        """The key on disk: name, start and length, and the size where that is less."""
        key = f"{self.name}:{self.start}:{self.asked}"
        return key if self.size == self.asked else f"{key}:{self.size}"

    def let_go(self) -> None:
        """The bytes, or the file with them, are no longer needed for writing."""
        self.data = None
        self.handle = None
        landed, self.landed = self.landed, None
        if landed is not None:
            landed()

    @property
    def reach(self) -> int:
        return self.start + self.size if self.asked <= self.size else _FOR_EVER

    def contains(self, start: int, end: int) -> bool:
        return self.start <= start and end <= self.reach

    def __repr__(self) -> str:
        return f"<{self.key}, {self.size}>"


_KEY = re.compile(r"([^:]*):([0-9]+):([0-9]+)(?::([0-9]+))?\Z", re.ASCII)


def parse_key(key: object) -> tuple[str, int, int, int] | None:
    """Return (name, start, asked, size) of an entry's key, or None if it is none."""
    match = _KEY.match(key) if isinstance(key, str) else None
    if match is None:
        return None
    name, start, asked, size = match.groups()
    return name, int(start), int(asked), int(asked if size is None else size)


class CacheEntries:
    """The entries of all objects."""

    def __init__(self) -> None:
        self._by_name: dict[str, list[CacheEntry]] = {}
        self._by_use: OrderedDict[CacheEntry, None] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._by_use)

    def __contains__(self, entry: CacheEntry) -> bool:
        return entry in self._by_use

    def find(self, name: str, start: int, length: int) -> CacheEntry | None:
        """Return the entry that holds all of [start, start+length), or None."""
        row = self._by_name.get(name)
        if row is None:
            return None
        at = bisect_right(row, start, key=_start)
        if at and row[at - 1].contains(start, start + length):
            return row[at - 1]
        return None

    def cover(self, name: str, start: int, length: int) -> list[CacheEntry]:
        """Return entries that together hold all of [start, start+length), in order; [] if none."""
        row = self._by_name.get(name, [])
        at = bisect_right(row, start, key=_start) - 1
        found: list[CacheEntry] = []
        reach, end = start, start + length
        while reach < end:
            if at < 0 or at >= len(row) or not row[at].start <= reach < row[at].reach:
                return []
            found.append(row[at])
            reach = row[at].reach
            at += 1
        return found

    def add(self, entry: CacheEntry) -> list[CacheEntry] | None:
        """Add an entry as the most recently used.

        Returns the entries that it makes needless, which are no longer in; or None if it is itself
        needless, and then it is not added.
        """
        row = self._by_name.setdefault(entry.name, [])
        at = bisect_right(row, entry.start, key=_start)
        if at and row[at - 1].contains(entry.start, entry.reach):
            return None
        first = bisect_left(row, entry.start, key=_start)
        last = first
        while last < len(row) and row[last].reach <= entry.reach:
            last += 1
        needless = row[first:last]
        row[first:last] = [entry]
        for old in needless:
            del self._by_use[old]
        self._by_use[entry] = None
        return needless

    def remove(self, entry: CacheEntry) -> None:
        """Forget an entry; no error if it is not in."""
        if entry not in self._by_use:
            return
        del self._by_use[entry]
        row = self._by_name[entry.name]
        del row[bisect_left(row, entry.start, key=_start)]
        if not row:
            del self._by_name[entry.name]

    def of(self, name: str) -> list[CacheEntry]:
        """Return the entries of one object, in order."""
        return list(self._by_name.get(name, ()))

    def touch(self, entry: CacheEntry) -> None:
        """Note that an entry was used."""
        self._by_use.move_to_end(entry)

    def oldest(self) -> Iterator[CacheEntry]:
        """Yield the entries, least recently used first; do not change them meanwhile."""
        return iter(self._by_use)


def _start(entry: CacheEntry) -> int:
    return entry.start
