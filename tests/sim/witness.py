"""What must still be there at the end: which bytes were acknowledged, and who removed which.

Everything that the simulated programs write consists of tags: 16 bytes, each used once, at offsets
that are multiples of 16.  So every tag can be followed through renames, links, conflict copies and
lost+found.  The rule that is checked is sound, if not complete:

    A tag whose write was acknowledged (by close or fsync) is in some file of the final tree, or
    somebody who had that tag before their eyes overwrote it, cut it off, or removed its file.

"Before their eyes" is meant literally: the tag was in that machine's view of that file, in its tree
or in its memory, in the very step in which the operation was applied.  A write never excuses the
loss of bytes that its machine had not seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from megafs.chunks import codec as chunk_format
from megafs.fs.file_data import FileData
from megafs.tree.tree import Extent
from megafs.volume.volume import Volume

TAG = 16
LOCAL, STORE = 1, 2


@dataclass(slots=True)
class Tag:
    """One tag's story.  ack: 0, LOCAL or STORE.  since: when it was first acknowledged."""

    number: int
    machine: int
    ino: int
    time: float
    ack: int = 0
    since: float = 0.0


def tag_bytes(number: int) -> bytes:
    return b"<%014x>" % number


def tags_in(data: bytes | memoryview, offset: int = 0) -> set[int]:
    """The whole tags in the bytes that begin at *offset* of a file."""
    data = bytes(data)
    found = set()
    at = -offset % TAG
    while at + TAG <= len(data):
        piece = data[at : at + TAG]
        if piece[0] == 60 and piece[-1] == 62:
            found.add(int(piece[1:-1], 16))
        at += TAG
    return found


class Witness:
    """Knows every tag, and what each machine saw when it destroyed something."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.tags: dict[int, Tag] = {}
        self.destroyed: set[int] = set()
        self.story: list[str] = []
        self._objects = objects
        self._opened: dict[tuple[int, int], bytes] = {}

    def new(self, machine: int, ino: int, time: float, count: int) -> tuple[list[int], bytes]:
        """Tags to write, and their bytes."""
        numbers = []
        for _ in range(count):
            number = len(self.tags) + 1
            self.tags[number] = Tag(number, machine, ino, time)
            numbers.append(number)
        return numbers, b"".join(map(tag_bytes, numbers))

    def acknowledge(self, numbers: Iterable[int], level: int, time: float) -> None:
        for number in numbers:
            tag = self.tags[number]
            if not tag.ack:
                tag.since = time
            tag.ack = max(tag.ack, level)

    def state_lost(self, machine: int, since: float) -> None:
        """A machine's disk is gone, or an old copy of it is back: what only it had may be lost."""
        for tag in self.tags.values():
            if tag.machine == machine and tag.ack == LOCAL and tag.since >= since:
                tag.ack = 0

    def missing(self, found: set[int]) -> list[Tag]:
        """Acknowledged tags that nobody can find and nobody has removed."""
        return [
            tag
            for number, tag in self.tags.items()
            if tag.ack and number not in found and number not in self.destroyed
        ]

    # ---- what a machine sees of a file ------------------------------------------------------

    def visible(
        self,
        volume: Volume,
        ino: int,
        contents: FileData | None,
        start: int = 0,
        end: int = 1 << 62,
    ) -> set[int]:
        """The tags in [start, end) of a file, as this machine sees it now; in one step."""
        found: set[int] = set()
        for extent in volume.replica.tree.all_extents(ino):
            begin, stop = max(start, extent.start), min(end, extent.end)
            if begin < stop:
                data = self.open(volume, extent)
                skip = extent.skip + begin - extent.start
                found |= tags_in(data[skip : skip + stop - begin], begin)
        if contents is not None:
            for layer in (contents._flushing, contents._written):
                for number, cell in layer.items():
                    base = number * contents._chunk
                    for a, b in cell.ranges:
                        begin, stop = max(start, base + a), min(end, base + b)
                        if begin < stop:
                            found |= tags_in(bytes(cell.part(begin - base, stop - base)), begin)
        return found

    def open(self, volume: Volume, extent: Extent) -> bytes:
        """The bytes of a chunk, from the stage or straight from the store."""
        if extent.pack == 0:
            assert extent.data is not None
            return extent.data
        key = (extent.pack, extent.offset)
        known = self._opened.get(key)
        if known is None:
            pack, pack_key = volume.chunks._pack(extent.pack)
            sealed: bytes | memoryview | None = volume.stage.read(extent)
            if sealed is None:
                # The tree names it: it must be in the store (docs/ordering.md, invariant 1).
                whole = self._objects[chunk_format.pack_name(pack.name)]
                sealed = memoryview(whole)[extent.offset : extent.offset + extent.sealed]
            opened = volume.chunks._open_now(pack, pack_key, [extent], [sealed])
            known = self._opened[key] = bytes(opened[0])
        return known
