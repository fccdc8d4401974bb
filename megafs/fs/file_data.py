"""The bytes of one file: what was written lately, over what the tree's extents say.

Written bytes collect in blocks (fs/dirty_block.py), as long as a chunk each.  A flush seals all of
them into packs, or puts a few bytes into the operation itself, and records one operation that lays
the new extents over the old.  So after a crash a file is as it was at some flush, never half of
one.  While a flush is under way its blocks are still read from memory; new writes go to new blocks.

Between two awaits nothing changes: `write` and the steps around an operation are synchronous, and a
read that had to wait looks again at whether the extents it planned with still hold (`revision`).
"""

from __future__ import annotations

import errno as e
from collections.abc import Callable

import trio
from msgspec import Struct

from megafs import clock
from megafs.chunks.store import ChunkStore
from megafs.errors import Fault, Refused
from megafs.fs import extent_bytes
from megafs.fs.dirty_block import DirtyBlock
from megafs.fs.extent_map import ExtentMap
from megafs.fs.ports import ReplicaPort, StagePort
from megafs.tree import ops
from megafs.tree.duplicates import Duplicates
from megafs.tree.inode import Inode
from megafs.tree.tree import Extent

#: A block of the file with more extents than this is written anew as a whole, if it can be read:
#: every extent costs a reader a request, or at least one more chunk to open.
_FRAGMENTS = 8
#: Flushes up to this size leave their plaintext in the memory cache: small files are often read
#: right after they were written; a big one would only push others out.
_KEEP_OPEN = 1 << 20
#: A flush seals about so much at a time.  A page that was written into a block with many extents
#: makes a whole block to seal: those of a full `dirty_limit` together would be a gigabyte.
_STEP = 8 << 20
#: The most that is fetched around an offset that a reader jumped to.
_AROUND = 1 << 20


class FileParts(Struct):
    """The parts that the data of all files of one filesystem share.

    account: called with every change in the number of bytes that wait in memory.
    note_inline: called with what a hurried flush put into the tree itself: (inode, start, bytes).
    duplicates: where equal chunks are looked up; None if the volume does not want that.
    """

    replica: ReplicaPort
    chunks: ChunkStore
    stage: StagePort
    chunk_size: int
    inline_limit: int
    account: Callable[[int], None]
    note_inline: Callable[[int, int, int], None]
    duplicates: Duplicates | None = None


class FileData:
    """One file's bytes, shared by everybody who has the file open."""

    def __init__(self, ino: int, parts: FileParts) -> None:
        self.ino = ino
        self._replica = parts.replica
        self._tree = parts.replica.tree
        self._chunks = parts.chunks
        self._stage = parts.stage
        self._chunk = parts.chunk_size
        self._inline = parts.inline_limit
        self._account = parts.account
        self._duplicates = parts.duplicates
        self._note_inline = parts.note_inline
        self._written: dict[int, DirtyBlock] = {}
        self._flushing: dict[int, DirtyBlock] = {}
        self._lock = trio.Lock()
        self._size = 0
        self._mtime = 0
        self._jumps = 0
        self.revision = 0
        self.opens = 0
        #: Calls under way that need no handle: this object must outlive them.
        self.users = 0
        self.dirty = 0
        self.dirty_since = 0.0
        self.error: Fault | None = None
        #: Known to have no set-id bits and no capabilities that a write would have to take away.
        self.unprivileged = False
        self._map = ExtentMap(self._tree, ino, parts.chunk_size)
        #: Removed by another mount while open here: the inode and extents to read on from.
        self.gone: tuple[Inode, list[Extent]] | None = None

    # ---- attributes -------------------------------------------------------------------------

    @property
    def is_dirty(self) -> bool:
        return bool(self._written) or bool(self._flushing)

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
        size = self._map.size
        if size is None:
            raise Refused(e.ENOENT)
        return size

    @property
    def is_gone(self) -> bool:
        """Whether the tree has no such file any more."""
        return self._tree.find(self.ino) is None

    def keep_removed(self) -> None:
        """Another mount removes the file: keep its attributes and extents while it is open here."""
        inode = self._tree.find(self.ino)
        if inode is not None and self.opens:
            inode.nlink = 0
            self.gone = (inode, self._tree.all_extents(self.ino))

    def extents(self, start: int, end: int) -> list[Extent]:
        """The extents that hold bytes of [start, end), not counting what was written since."""
        if self.gone is not None and self.is_gone:
            found = self.gone[1]
        else:
            found = self._map.extents(start, end)
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
            block = self._written.get(number)
            if block is None:
                block = self._written[number] = DirtyBlock()
                if count == self._chunk and isinstance(data, bytes):
                    grown += block.adopt(view[:count])
                else:
                    grown += block.write(start, view[:count])
            else:
                grown += block.write(start, view[:count])
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
            revision = self.revision
            extents = self.extents(offset, end)
            if self.is_dirty:
                extents = [x for x in extents if not self._hidden(x, offset, end)]
            along = self._around(extents[0], size) if jump and len(extents) == 1 else ()
            chunks = await self._chunks.read(extents, along) if extents else []
            if revision == self.revision:
                return self._assemble(offset, end, extents, chunks)

    def _around(self, extent: Extent, size: int) -> list[Extent]:
        """The extents to fetch along with a chunk that a reader jumped to; none if it is here.

        Nothing at first: not before the jumps so far, counted at `_AROUND` bytes each, come to a
        sixteenth of the file.  From then on, as much as takes no longer than the round trip; and
        after jumps to an eighth of the chunks `_AROUND`, for most of the file will be read.
        """
        if self._chunks.has(extent) or extent.pack == 0:
            return []
        self._jumps += 1
        length = _AROUND
        if self._jumps < 3 or self._jumps * self._chunk * 8 < size:
            length = min(_AROUND, self._chunks.worth)
            if length < 2 * self._chunk or self._jumps * _AROUND * 16 < size:
                return []
        start = extent.start // length * length
        return self.extents(start, start + length)

    def _hidden(self, extent: Extent, start: int, end: int) -> bool:
        """Whether newer bytes in memory cover all that is wanted of *extent*."""
        begin, stop = max(start, extent.start), min(end, extent.end)
        number = begin // self._chunk
        if (stop - 1) // self._chunk != number:
            return False
        base = number * self._chunk
        for layer in (self._written, self._flushing):
            block = layer.get(number)
            if block is not None and any(
                a <= begin - base and stop - base <= b for a, b in block.ranges
            ):
                return True
        return False

    def _assemble(
        self, offset: int, end: int, extents: list[Extent], chunks: list[bytes | memoryview]
    ) -> bytes | memoryview:
        if not self.is_dirty:
            return extent_bytes.join(extents, chunks, offset, end)
        out = extent_bytes.joined(extents, chunks, offset, end)
        for layer in (self._flushing, self._written):
            if layer:
                self._overlay(layer, offset, end, out)
        return memoryview(out)

    def _overlay(self, layer: dict[int, DirtyBlock], offset: int, end: int, out: bytearray) -> None:
        for number in range(offset // self._chunk, (end - 1) // self._chunk + 1):
            block = layer.get(number)
            if block is None:
                continue
            base = number * self._chunk
            for a, b in block.ranges:
                begin, stop = max(offset, base + a), min(end, base + b)
                if begin < stop:
                    part = block.part(begin - base, stop - base)
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
        size = self._map.size or 0
        end = min(size, offset + length)
        if offset >= end or (whole and (offset or end < size)):
            return None
        for extent in self._map.extents(offset, end):
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
                    self._replica.close_batch()
                await self._flush(size, time_ns)
            except Refused:
                raise  # there is no such file any more
            except BaseException:
                if gone:
                    self._count(sum(block.size for block in gone.values()))
                    self._put_back(gone)
                self._size = max(self._size, length)
                raise

    def _drop_beyond(self, size: int) -> dict[int, DirtyBlock]:
        """Forget what was written from *size* on; return the blocks as they were."""
        gone: dict[int, DirtyBlock] = {}
        for number in [n for n in self._written if (n + 1) * self._chunk > size]:
            block = gone[number] = self._written.pop(number)
            rest = block.before(max(0, size - number * self._chunk))
            self._count(rest.size - block.size)
            if rest.ranges:
                self._written[number] = rest
        self._size = min(self._size, size)
        return gone

    async def _flush(self, cut_to: int | None, time_ns: int = 0, *, soon: int = 0) -> None:
        if not self._written and cut_to is None:
            return
        inode = self._tree.find(self.ino)
        if inode is None:  # removed by another mount while open: there is nothing to write to
            self._discard()
            raise Refused(e.ESTALE)
        taken, self._written = self._written, {}
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
                ops.SetContents(
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
        self.revision += 1
        self._count(-dirty)
        for piece in pieces:
            if not piece.pack and piece.length > self._inline:
                self._note_inline(self.ino, piece.start, piece.length)
        if cut_to is not None and self._written:
            self._size = max(
                cut_to, max(n * self._chunk + c.ranges[-1][1] for n, c in self._written.items())
            )
        self.error = None

    def _discard(self) -> None:
        self._written = {}
        self._count(-self.dirty)
        self.revision += 1

    def _put_back(self, taken: dict[int, DirtyBlock]) -> None:
        """A flush failed: its blocks go below what was written since."""
        for number, newer in self._written.items():
            older = taken.get(number)
            if older is None:
                taken[number] = newer
                continue
            grown = sum(older.write(a, newer.part(a, b)) for a, b in newer.ranges)
            self._count(grown - newer.size)
        self._written = taken
        self._flushing = {}
        self.revision += 1

    async def _seal(self, blocks: dict[int, DirtyBlock], size: int, inline: int) -> list[Extent]:
        """Seal what blocks hold; return the extents, in order.

        inline: a piece up to this size is kept in its extent instead.
        """
        result: list[Extent] = []
        pieces: list[tuple[int, bytes | bytearray | memoryview]] = []
        total = 0
        for number in sorted(blocks):
            block = blocks[number]
            base = number * self._chunk
            whole = await self._whole(block, base, size)
            if whole is not None:
                pieces.append((base, whole))
                total += len(whole)
            else:
                total += block.size
                for a, b in block.ranges:
                    if b - a == len(block.data):
                        pieces.append((base + a, block.data))
                    else:
                        pieces.append((base + a, block.part(a, b)))
            if total >= _STEP:
                result += await self._seal_pieces(pieces, inline, keep=False)
                pieces = []
                total = 0
        if pieces:
            result += await self._seal_pieces(pieces, inline, keep=not result)
        return result

    async def _seal_pieces(
        self, pieces: list[tuple[int, bytes | bytearray | memoryview]], inline: int, *, keep: bool
    ) -> list[Extent]:
        """Seal (start, bytes); see `_seal`.  keep: in the memory cache too, if they are few."""
        extents: list[Extent | None] = []
        large: list[tuple[int, bytes | bytearray | memoryview]] = []
        for start, data in pieces:
            if len(data) <= inline:
                extents.append(Extent(start, len(data), 0, 0, 0, len(data), 0, None, bytes(data)))
                continue
            same = self._duplicates.find(data) if self._duplicates is not None else None
            if same is not None:
                extents.append(same._replace(start=start, length=len(data), skip=0))
                continue
            extents.append(None)
            large.append((start, data))
        keep = keep and sum(len(data) for _, data in large) <= _KEEP_OPEN
        sealed = iter(await self._stage.put([data for _, data in large]) if large else [])
        sources = iter(large)
        result: list[Extent] = []
        for extent in extents:
            if extent is None:
                start, data = next(sources)
                extent = next(sealed)._replace(start=start)
                if self._duplicates is not None:
                    self._duplicates.add(data, extent)
                if keep:
                    self._chunks.remember(extent, bytes(data))
            result.append(extent)
        return result

    async def _whole(self, block: DirtyBlock, base: int, size: int) -> bytearray | None:
        """All bytes of a block that has too many extents, or None to write just the new ones."""
        end = min(base + self._chunk, max(size, base + block.ranges[-1][1]))
        if block.ranges == [(0, end - base)]:
            return None  # all new anyway
        there = self._tree.extents(self.ino, base, end)
        if len(there) + len(block.ranges) <= _FRAGMENTS:
            return None
        try:
            chunks = await self._chunks.read(there)
        except Fault:
            return None  # cannot be read now: one more extent is better than an error
        out = extent_bytes.joined(there, chunks, base, end)
        for a, b in block.ranges:
            out[a:b] = block.part(a, b)
        return out
