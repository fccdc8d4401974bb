"""The state that all families of operations of a filesystem share.

The parts below it, the data of the files in use, and the inodes that the kernel knows.
"""

from __future__ import annotations

import errno as e
from collections.abc import Callable

from msgspec import Struct, field

from megafs import clock
from megafs.chunks.store import ChunkStore
from megafs.concurrency import Background
from megafs.config import Parameters, Settings
from megafs.errors import Refused
from megafs.fs.file_data import FileData, FileParts
from megafs.fs.ports import ReplicaPort, StagePort, WriterPort
from megafs.fs.repack import Repacker
from megafs.fs.snapshot_view import in_snapshots
from megafs.fs.writeback import Writeback
from megafs.tree import ops
from megafs.tree.duplicates import Duplicates
from megafs.tree.inode import Inode


class Below(Struct, frozen=True):
    """The parts that a filesystem stands on."""

    replica: ReplicaPort
    chunks: ChunkStore
    stage: StagePort
    writer: WriterPort


class Errors(Struct):
    """The last faults, for `megafs status`: (time in ns, text), newest last."""

    last: list[tuple[int, str]] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.last.append((clock.now_ns(), text))
        del self.last[:-20]


class KernelInodes:
    """The inodes that the kernel knows.

    lookups: how often each was handed to it, less what it forgot.  unlinked: the last attributes of
    those that the tree has no more.  stale: those whose cached pages no longer hold.
    """

    def __init__(self) -> None:
        self.lookups: dict[int, int] = {}
        self.unlinked: dict[int, Inode] = {}
        self.stale: set[int] = set()

    def __contains__(self, ino: int) -> bool:
        return ino in self.lookups

    def remember(self, ino: int) -> None:
        """The kernel knows this inode once more."""
        self.lookups[ino] = self.lookups.get(ino, 0) + 1

    def forget(self, ino: int, n: int) -> None:
        """The kernel knows this inode *n* times less."""
        left = self.lookups.get(ino, 0) - n
        if left > 0:
            self.lookups[ino] = left
        else:
            self.lookups.pop(ino, None)
            self.unlinked.pop(ino, None)
            self.stale.discard(ino)


#: A read-ahead that was asked to be smaller than this stays as small as it is.
_GROWING = 4 << 20


class Core:
    """See the module.

    files: the data of the files that are open, or have bytes waiting.
    readahead: the largest window of a reader to begin with, and what that may grow to, in bytes.
    account_left: says how many bytes the account behind the store takes yet; None for no limit, or
        none that is known.
    """

    def __init__(
        self,
        below: Below,
        params: Parameters,
        settings: Settings,
        background: Background,
        dedup_key: bytes | None,
    ) -> None:
        replica, stage, writer = below.replica, below.stage, below.writer
        self._stage = stage
        self.replica = replica
        self.tree = replica.tree
        self.chunks = below.chunks
        self.writer = writer
        self.params = params
        self.settings = settings
        self.background = background
        self.noatime = settings.atime == "noatime" or settings.read_only
        self.readahead = _readahead(settings)
        self.account_left: Callable[[], int | None] = lambda: None
        self.errors = Errors()
        self.kernel = KernelInodes()
        self.files: dict[int, FileData] = {}
        self.writeback = Writeback(replica, stage, writer, settings.dirty_limit, self.drop_unused)
        self.repack = Repacker(
            replica,
            stage,
            params.inline_limit,
            background,
            allowed=self.is_writable,
            poke=writer.poke,
        )
        duplicates: Duplicates | None = None
        if params.deduplication and dedup_key is not None:
            duplicates = Duplicates(self.tree, dedup_key)
        self.file_parts = FileParts(
            replica,
            below.chunks,
            stage,
            params.chunk_size,
            params.inline_limit,
            self.writeback.account,
            self.repack.note,
            duplicates,
        )

    # ---- inodes -----------------------------------------------------------------------------

    def current(self, ino: int) -> int:
        """The inode that *ino* became when two directories of one name became one."""
        aliases = self.replica.aliases
        return aliases.get(ino, ino) if aliases else ino

    def changeable(self, ino: int) -> int:
        """As `current`; EROFS for an inode of a snapshot."""
        if in_snapshots(ino):
            raise Refused(e.EROFS)
        return self.current(ino)

    def shown(self, inode: Inode) -> Inode:
        """*inode*, changed to show what was written and not flushed yet."""
        data = self.files.get(inode.ino)
        return inode if data is None else data.show(inode)

    def getattr(self, ino: int) -> Inode:
        """The attributes of an inode, also of an unlinked one that the kernel still knows."""
        ino = self.current(ino)
        found = self.tree.find(ino)
        if found is None:
            unlinked = self.kernel.unlinked.get(ino)
            if unlinked is None:
                raise Refused(e.ESTALE if ino in self.kernel.lookups else e.ENOENT)
            return unlinked
        return self.shown(found)

    # ---- the data of files ------------------------------------------------------------------

    def file(self, ino: int) -> FileData:
        """The data of a file, which everybody who uses the file shares."""
        data = self.files.get(ino)
        if data is None:
            data = self.files[ino] = FileData(ino, self.file_parts)
        return data

    def drop_unused(self, data: FileData) -> None:
        """Forget a file's data when nobody uses it and nothing of it waits."""
        if data.opens or data.users or data.is_dirty:
            return
        if self.files.get(data.ino) is data:  # else it was forgotten, and opened again
            del self.files[data.ino]

    @property
    def used_bytes(self) -> int:
        """Bytes of file contents in the volume, counting what is not flushed yet."""
        return self.tree.used + self.writeback.dirty

    @property
    def unsent_bytes(self) -> int:
        """Bytes of contents that the store does not have yet."""
        return self._stage.staged_bytes + self.writeback.dirty

    # ---- changes ----------------------------------------------------------------------------

    def is_writable(self) -> bool:
        writer = self.writer
        return not self.settings.read_only and writer.frozen is None and writer.barred is None

    def check_writable(self) -> None:
        """EROFS unless this mount may write now."""
        if not self.is_writable():
            raise Refused(e.EROFS)

    def record(self, op: ops.Operation) -> None:
        """Apply an operation; it is committed in the background."""
        if isinstance(op, ops.SetAttributes | ops.SetXattr):
            data = self.files.get(op.ino)
            if data is not None:
                data.unprivileged = False
        self.replica.record(op)
        self.writer.poke()


def _readahead(settings: Settings) -> tuple[int, int]:
    limit = settings.readahead
    if limit < _GROWING:
        return limit, limit
    return limit, max(limit, min(4 * limit, settings.memory_cache // 2))
