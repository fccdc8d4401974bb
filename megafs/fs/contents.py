"""The bytes of one file: what was written lately, over what the tree's extents say.

Written bytes collect in cells, one for each chunk-sized place of the file, and leave together in
a flush: sealed into packs (or, if few, into the operation itself), then recorded as one operation
that lays the new extents over the old.  So after a crash a file is as it was at some flush, never
half of one.  While a flush is under way its cells are still read from memory; new writes go to
new cells.

Between two awaits nothing changes: `write` and the steps around an operation are synchronous, and a
read that had to wait looks again at whether the extents it planned with still hold (`generation`).
"""

from __future__ import annotations

import errno as e
from bisect import bisect_left
from collections.abc import Callable, Iterator

import trio

from megafs import clock
from megafs.chunks.store import ChunkStore
from megafs.errors import Fault, Refused
from megafs.fs.ports import Replica, Stage
from megafs.tree.inode import Inode
from megafs.tree.ops import Contents as ContentsOperation
from megafs.tree.tree import Extent, Tree

#: A place of the file with more extents than this is written anew as a whole, if it can be read:
#: every extent costs a reader a request or at least a seal to open.
_FRAGMENTS = 8
#: Flushes up to this size leave their plaintext in the memory cache: small files are often read
#: right after they were written; a big one would only push others out.
_KEEP_OPEN = 1 << 20


#: The most that is fetched around a place that a reader jumped to.
_BLOCK = 1 << 20
#: Places of a file whose extents are kept: 1 GiB of chunks of 256 KiB, some 1.5 MB.
_PLACES = 4096


class DirtyBlock:
    """The bytes written to one chunk-sized place, and which they are.

    data: the bytes from *origin* on, zeros where none were written; so that a page in the middle
    of the place takes a page of memory, and not all that comes before it.
    ranges: where bytes were written, as [start, end) within the cell; sorted, apart.
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
        if isinstance(data, memoryview) or (grows and _is_looked_at(data)):
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
        """Take the bytes of a whole cell as they are, without copying them."""
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

    def upto(self, end: int) -> DirtyBlock:
        """A cell with what lies before *end*."""
        cell = DirtyBlock()
        cell.origin = self.origin
        cell.data = bytearray(self.part(self.origin, max(self.origin, end)))
        cell.ranges = [(a, min(b, end)) for a, b in self.ranges if a < end]
        return cell

    @property
    def size(self) -> int:
        """How many bytes of memory it holds."""
        return len(self.data)


def _is_looked_at(data: bytearray) -> bool:
    """Whether somebody has a view of the bytes, so that they cannot move: a flush that failed."""
    try:
        data.append(0)
    except BufferError:
        return True
    del data[-1:]
    return False


class ExtentMap:
    """What the tree says of a file, kept for as long as nothing in the tree changes.

    A query costs 5 microseconds, but it also lets go of the interpreter, and beside a thread that
    opens chunks it may take a hundred times as long to get it back; each MiB read needs four.
    """

    __slots__ = ("_changes", "_chunk", "_ino", "_places", "_size", "_tree")

    def __init__(self, tree: Tree, ino: int, chunk: int) -> None:
        self._tree = tree
        self._ino = ino
        self._chunk = chunk
        self._changes = -1
        self._size: int | None = None
        #: By number, the extents that hold bytes of each chunk-sized place.
        self._places: dict[int, list[Extent]] = {}

    def _refresh(self) -> None:
        changes = self._tree.db.total_changes()
        if changes != self._changes:
            self._changes = changes
            self._places.clear()
            inode = self._tree.find(self._ino)
            self._size = None if inode is None else inode.size

    @property
    def size(self) -> int | None:
        """Bytes in the file; None if there is no such file any more."""
        self._refresh()
        return self._size

    def extents(self, start: int, end: int) -> list[Extent]:
        """As `Tree.extents`, but perhaps with some that lie just outside."""
        self._refresh()
        if end <= start:
            return []
        first, last = start // self._chunk, (end - 1) // self._chunk
        places = self._places
        if any(n not in places for n in range(first, last + 1)):
            if len(places) + last - first >= _PLACES:
                places.clear()
            places.update((n, []) for n in range(first, last + 1))
            for extent in self._tree.extents(
                self._ino, first * self._chunk, (last + 1) * self._chunk
            ):
                low, high = extent.start // self._chunk, (extent.end - 1) // self._chunk
                for n in range(max(first, low), min(last, high) + 1):
                    places[n].append(extent)
        if first == last:
            return places[first]
        found: list[Extent] = []
        for n in range(first, last + 1):
            for extent in places[n]:
                if not found or found[-1].start < extent.start:
                    found.append(extent)
        return found


class Contents:
    """One file's bytes.  Shared by everybody who has the file open.

    account: told of every change in the number of bytes that wait in memory.
    travelled: told of pieces that a hurried flush put into the tree itself: (inode, start, bytes).
    """

    def __init__(
        self,
        ino: int,
        replica: Replica,
        chunks: ChunkStore,
        stage: Stage,
        *,
        chunk_size: int,
        inline_limit: int,
        account: Callable[[int], None],
        deduplicate: Callable[[memoryview | bytearray | bytes], Extent | None] | None = None,
        stored: Callable[[memoryview | bytearray | bytes, Extent], None] | None = None,
        travelled: Callable[[int, int, int], None] = lambda ino, start, size: None,
    ) -> None:
        self.ino = ino
        self._replica = replica
        self._tree = replica.tree
        self._chunks = chunks
        self._stage = stage
        self._chunk = chunk_size
        self._inline = inline_limit
        self._account = account
        self._deduplicate = deduplicate
        self._stored = stored
        self._travelled = travelled
        self._cells: dict[int, DirtyBlock] = {}
        self._flushing: dict[int, DirtyBlock] = {}
        self._lock = trio.Lock()
        self._size = 0
        self._mtime = 0
        self._jumps = 0
        self.generation = 0
        self.opens = 0
        #: Calls under way that need no handle: this object must outlive them.
        self.users = 0
        self.dirty = 0
        self.dirty_since = 0.0
        self.error: Fault | None = None
        #: Known to have no set-id bits and no capabilities that a write would have to take away.
        self.unprivileged = False
        self._layout = ExtentMap(self._tree, ino, chunk_size)
        #: Removed by another mount while open here: what it was then, to read on from.
        self.gone: tuple[Inode, list[Extent]] | None = None

    # ---- attributes -------------------------------------------------------------------------

    @property
    def is_dirty(self) -> bool:
        return bool(self._cells) or bool(self._flushing)

    def show(self, inode: Inode) -> Inode:
        """*inode* with the size and times of what was written since."""
        if self.is_dirty:
            inode.size = self._size
            inode.mtime_ns = self._mtime
            inode.ctime_ns = max(inode.ctime_ns, self._mtime)
            inode.blocks += self.dirty
        return inode

    @property
    def size(self) -> int:
        """Bytes in the file, counting what was written since the last flush."""
        if self.gone is not None and self.is_gone:
            return self.gone[0].size
        if self.is_dirty:
            return self._size
        size = self._layout.size
        if size is None:
            raise Refused(e.ENOENT)
        return size

    @property
    def is_gone(self) -> bool:
        """Whether the tree has no such file any more."""
        return self._tree.find(self.ino) is None

    def look_back(self) -> None:
        """Another mount has removed the file: keep what it is now, for those who have it open."""
        inode = self._tree.find(self.ino)
        if inode is not None and self.opens:
            inode.nlink = 0
            self.gone = (inode, self._tree.all_extents(self.ino))

    def extents(self, start: int, end: int) -> list[Extent]:
        """The extents that hold bytes of [start, end), not counting what was written since."""
        if self.gone is not None and self.is_gone:
            found = self.gone[1]
        else:
            found = self._layout.extents(start, end)
        return [x for x in found if x.start < end and x.end > start]

    # ---- writing ----------------------------------------------------------------------------

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write *data*; synchronous, into memory only."""
        if not self.is_dirty:
            self._size = self._tree.inode(self.ino).size
            self.dirty_since = trio.current_time()
        view = memoryview(data).cast("B")
        grown = 0
        position = offset
        while view:
            number, start = divmod(position, self._chunk)
            count = min(len(view), self._chunk - start)
            cell = self._cells.get(number)
            if cell is None:
                cell = self._cells[number] = DirtyBlock()
                if count == self._chunk and isinstance(data, bytes):
                    grown += cell.adopt(view[:count])
                else:
                    grown += cell.write(start, view[:count])
            else:
                grown += cell.write(start, view[:count])
            view = view[count:]
            position += count
        self._size = max(self._size, position)
        self._mtime = clock.now_ns()
        self._count(grown)
        return len(data)

    def _count(self, by: int) -> None:
        self.dirty += by
        self._account(by)

    # ---- reading ----------------------------------------------------------------------------

    async def read(self, offset: int, length: int, *, jump: bool = False) -> bytes | memoryview:
        """The bytes [offset, offset+length), fewer only at the end of the file.

        jump: they do not go on where the reader stopped.
        """
        while True:
            size = self.size
            if offset >= size or length <= 0:
                return b""
            end = min(size, offset + length)
            generation = self.generation
            extents = self.extents(offset, end)
            if self.is_dirty:
                extents = [x for x in extents if not self._hidden(x, offset, end)]
            along = self._around(extents[0], size) if jump and len(extents) == 1 else ()
            chunks = await self._chunks.read(extents, along) if extents else []
            if generation == self.generation:
                return self._assemble(offset, end, extents, chunks)

    def _around(self, extent: Extent, size: int) -> list[Extent]:
        """What to fetch along with a chunk that a reader jumped to; nothing if it is here.

        As much as costs no more than the round trip, once there were jumps enough that their blocks
        would be a sixteenth of the file: whoever has jumped about in that will want more of it.
        After jumps to an eighth of its chunks, whole blocks: most of the file will be read.
        """
        if self._chunks.has(extent) or extent.pack == 0:
            return []
        self._jumps += 1
        block = _BLOCK
        if self._jumps < 3 or self._jumps * self._chunk * 8 < size:
            block = min(_BLOCK, self._chunks.worth)
            if block < 2 * self._chunk or self._jumps * _BLOCK * 16 < size:
                return []
        start = extent.start // block * block
        return self.extents(start, start + block)

    def _hidden(self, extent: Extent, start: int, end: int) -> bool:
        """Whether newer bytes in memory cover all that is wanted of *extent*."""
        begin, stop = max(start, extent.start), min(end, extent.end)
        number = begin // self._chunk
        if (stop - 1) // self._chunk != number:
            return False
        base = number * self._chunk
        for layer in (self._cells, self._flushing):
            cell = layer.get(number)
            if cell is not None and any(
                a <= begin - base and stop - base <= b for a, b in cell.ranges
            ):
                return True
        return False

    def _assemble(
        self, offset: int, end: int, extents: list[Extent], chunks: list[bytes | memoryview]
    ) -> bytes | memoryview:
        if len(extents) == 1 and not self.is_dirty:
            only = extents[0]
            if only.start <= offset and only.end >= end:  # no copy
                skip = only.skip + offset - only.start
                return memoryview(chunks[0])[skip : skip + end - offset]
        if not self.is_dirty and _without_holes(extents, offset, end):
            # In one go: a buffer that is zeroed first takes half as long again.
            return b"".join(part for _, part in _parts(extents, chunks, offset, end))
        out = bytearray(end - offset)  # zeros: holes
        for begin, part in _parts(extents, chunks, offset, end):
            out[begin - offset : begin - offset + len(part)] = part
        for layer in (self._flushing, self._cells):
            if layer:
                self._overlay(layer, offset, end, out)
        return memoryview(out)

    def _overlay(self, layer: dict[int, DirtyBlock], offset: int, end: int, out: bytearray) -> None:
        for number in range(offset // self._chunk, (end - 1) // self._chunk + 1):
            cell = layer.get(number)
            if cell is None:
                continue
            base = number * self._chunk
            for a, b in cell.ranges:
                begin, stop = max(offset, base + a), min(end, base + b)
                if begin < stop:
                    part = cell.part(begin - base, stop - base)
                    out[begin - offset : stop - offset] = part
                    part.release()

    def read_now(
        self, offset: int, length: int, *, whole: bool = False
    ) -> bytes | memoryview | None:
        """As `read`, if nothing has to be fetched or waited for; None if it has.

        For what a database or an index does all day: pages of a file that lies in the cache; and
        for small files that were read before.
        whole: only if that is the whole file, so that there is nothing to read ahead.
        """
        if self.is_dirty or length <= 0 or self.gone is not None:
            return None
        size = self._layout.size or 0
        end = min(size, offset + length)
        if offset >= end or (whole and (offset or end < size)):
            return None
        for extent in self._layout.extents(offset, end):
            if extent.start <= offset and end <= extent.end:
                skip = extent.skip - extent.start
                return self._chunks.part(extent, skip + offset, skip + end)
        return None

    # ---- leaving memory ---------------------------------------------------------------------

    async def flush(self, *, soon: int = 0) -> None:
        """Bring what was written into the stage and the tree.

        soon: somebody waits until it is in the store, so up to this many bytes go into the commit
            itself.
        On an error nothing is lost: the bytes stay in memory, and the next flush tries again.
        """
        if not self.is_dirty:
            return
        async with self._lock:
            await self._flush(None, soon=soon if self.dirty <= soon else 0)

    async def truncate(self, size: int, time_ns: int) -> None:
        """Make the file *size* bytes long; on an error it is as it was."""
        async with self._lock:
            length = self._size
            gone = self._drop_beyond(size)
            try:
                while (cut := self._tree.far_cut(self.ino, size)) is not None:
                    await self._flush(cut, time_ns)
                    self._replica.seal()
                await self._flush(size, time_ns)
            except Refused:
                raise  # there is no such file any more
            except BaseException:
                if gone:
                    self._count(sum(cell.size for cell in gone.values()))
                    self._put_back(gone)
                self._size = max(self._size, length)
                raise

    def _drop_beyond(self, size: int) -> dict[int, DirtyBlock]:
        """Forget what was written at *size* or beyond; return the cells as they were."""
        gone: dict[int, DirtyBlock] = {}
        for number in [n for n in self._cells if (n + 1) * self._chunk > size]:
            cell = gone[number] = self._cells.pop(number)
            rest = cell.upto(max(0, size - number * self._chunk))
            self._count(rest.size - cell.size)
            if rest.ranges:
                self._cells[number] = rest
        self._size = min(self._size, size)
        return gone

    async def _flush(self, cut_to: int | None, time_ns: int = 0, *, soon: int = 0) -> None:
        if not self._cells and cut_to is None:
            return
        inode = self._tree.find(self.ino)
        if inode is None:  # removed by another mount while open: there is nothing to write to
            self._discard()
            raise Refused(e.ESTALE)
        taken, self._cells = self._cells, {}
        self._flushing = taken
        was_dirty = bool(taken)
        size = self._size if was_dirty else inode.size
        mtime = self._mtime if was_dirty else inode.mtime_ns
        dirty = self.dirty
        try:
            pieces = await self._seal(taken, size, max(soon, self._inline))
            inode = self._tree.find(self.ino)
            if inode is None:
                raise Refused(e.ESTALE)
            cut: int | None = None
            if cut_to is not None:
                cut = cut_to if cut_to < inode.size else None
                size = cut_to
                mtime = time_ns
            self._replica.record(
                ContentsOperation(
                    self.ino,
                    inode.version,
                    self._replica.number(),
                    cut,
                    size,
                    mtime,
                    max(mtime, inode.ctime_ns),
                    tuple(pieces),
                )
            )
        except BaseException:
            self._put_back(taken)
            raise
        self._flushing = {}
        self.generation += 1
        self._count(-dirty)
        for piece in pieces:
            if not piece.pack and piece.length > self._inline:
                self._travelled(self.ino, piece.start, piece.length)
        if cut_to is not None and self._cells:
            self._size = max(
                cut_to, max(n * self._chunk + c.ranges[-1][1] for n, c in self._cells.items())
            )
        self.error = None

    def _discard(self) -> None:
        self._cells = {}
        self._count(-self.dirty)
        self.generation += 1

    def _put_back(self, taken: dict[int, DirtyBlock]) -> None:
        """A flush failed: its cells go below what was written since."""
        for number, newer in self._cells.items():
            older = taken.get(number)
            if older is None:
                taken[number] = newer
                continue
            grown = sum(older.write(a, newer.part(a, b)) for a, b in newer.ranges)
            self._count(grown - newer.size)
        self._cells = taken
        self._flushing = {}
        self.generation += 1

    async def _seal(self, cells: dict[int, DirtyBlock], size: int, inline: int) -> list[Extent]:
        """Seal what cells hold; return the extents, in order.  inline: up to here they are data."""
        pieces: list[tuple[int, bytes | bytearray | memoryview]] = []
        for number in sorted(cells):
            cell = cells[number]
            base = number * self._chunk
            whole = await self._whole(cell, base, size)
            if whole is not None:
                pieces.append((base, whole))
                continue
            for a, b in cell.ranges:
                if b - a == len(cell.data):
                    pieces.append((base + a, cell.data))
                else:
                    pieces.append((base + a, cell.part(a, b)))
        extents: list[Extent | None] = []
        large: list[tuple[int, bytes | bytearray | memoryview]] = []
        for start, data in pieces:
            if len(data) <= inline:
                extents.append(Extent(start, len(data), 0, 0, 0, len(data), 0, None, bytes(data)))
                continue
            same = self._deduplicate(data) if self._deduplicate is not None else None
            if same is not None:
                extents.append(same._replace(start=start, length=len(data), skip=0))
                continue
            extents.append(None)
            large.append((start, data))
        total = sum(len(data) for _, data in large)
        sealed = iter(await self._stage.put([data for _, data in large]) if large else [])
        sources = iter(large)
        result: list[Extent] = []
        for extent in extents:
            if extent is None:
                start, data = next(sources)
                extent = next(sealed)._replace(start=start)
                if self._stored is not None:
                    self._stored(data, extent)
                if total <= _KEEP_OPEN:
                    self._chunks.remember(extent, bytes(data))
            result.append(extent)
        return result

    async def _whole(self, cell: DirtyBlock, base: int, size: int) -> bytearray | None:
        """All bytes of a place that has too many extents, or None to write just the new ones."""
        end = min(base + self._chunk, max(size, base + cell.ranges[-1][1]))
        if cell.ranges == [(0, end - base)]:
            return None  # all new anyway
        there = self._tree.extents(self.ino, base, end)
        if len(there) + len(cell.ranges) <= _FRAGMENTS:
            return None
        try:
            chunks = await self._chunks.read(there)
        except Fault:
            return None  # cannot be read now: one more extent is better than an error
        out = bytearray(end - base)
        for begin, part in _parts(there, chunks, base, end):
            out[begin - base : begin - base + len(part)] = part
        for a, b in cell.ranges:
            out[a:b] = cell.part(a, b)
        return out


def _parts(
    extents: list[Extent], chunks: list[bytes | memoryview], start: int, end: int
) -> Iterator[tuple[int, memoryview]]:
    """What each extent holds of [start, end), given its chunk: (where it begins, the bytes)."""
    for extent, chunk in zip(extents, chunks, strict=True):
        begin, stop = max(start, extent.start), min(end, extent.end)
        skip = extent.skip + begin - extent.start
        yield begin, memoryview(chunk)[skip : skip + stop - begin]


def _without_holes(extents: list[Extent], start: int, end: int) -> bool:
    """Whether *extents*, in order, hold every byte of [start, end)."""
    for extent in extents:
        if extent.start > start:
            return False
        start = extent.end
    return start >= end
