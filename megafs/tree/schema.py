"""The tables of a replica.

REPLICATED tables are the tree: every mount that has applied the same commits holds the same rows,
and only these go into commits (as SQLite changesets) and checkpoints.  LOCAL tables belong to this
machine alone.

Numbers without a table of their own (inode, cookie, version, pack) come from one allocator, whose
ranges each belong to one mount (`ranges`): unique in the volume without asking anybody.
"""

from __future__ import annotations

from typing import NamedTuple, NewType

from msgspec import Struct

SCHEMA_VERSION = 2

#: The number of an inode; 1 is the root directory.
Ino = NewType("Ino", int)
#: The number of a commit in the journal, from 1 on; 0 is the state before the first one.
SequenceNumber = NewType("SequenceNumber", int)
#: What the tree calls a pack; the object's name in the store is random (`PackRow.name`).
PackNumber = NewType("PackNumber", int)

# A row of each replicated table.  Field for field the columns of the CREATE TABLE below, in order.
# `row_changes` (tree/changeset.py) gives rows of an UPDATE in which the columns that stayed hold
# `apsw.no_change`; every other source gives whole rows.


class InodeRow(NamedTuple):
    """nlink counts names (for a directory: 2 plus its subdirectories).

    blocks is the sum of the lengths of the inode's extents, in bytes.  Times are nanoseconds.
    target: where a symbolic link leads, else None.
    """

    ino: Ino
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    btime: int
    parent: Ino
    version: int
    target: bytes | None


class DirentRow(NamedTuple):
    """cookie: where readdir goes on.

    A new name gets a new cookie, so a listing that is under way neither skips nor repeats the names
    that stay.
    """

    parent: Ino
    name: bytes
    ino: Ino
    cookie: int


class XattrRow(NamedTuple):
    """One extended attribute of an inode."""

    ino: Ino
    name: bytes
    value: bytes


class ExtentRow(NamedTuple):
    """Where some bytes of a file are.

    The file's bytes [start, start+length) are the bytes [skip, skip+length) of what is sealed at
    [offset, offset+sealed) of the pack, `plain` bytes in all, or of `data` when pack is 0.
    Extents of one inode never overlap, and none is longer than the volume's chunk size.
    """

    ino: Ino
    start: int
    length: int
    pack: PackNumber
    offset: int
    sealed: int
    plain: int
    skip: int
    digest: bytes | None
    data: bytes | None


class PackRow(NamedTuple):
    """One pack object: its random 16-byte name and the epoch of the key that sealed it."""

    pack: PackNumber
    name: bytes
    epoch: int


class OrphanRow(NamedTuple):
    """An inode without a name that a mount still has open."""

    ino: Ino
    mount: int


class WriterRow(NamedTuple):
    """The last batch of a mount that is in the journal: after a crash it is not committed again."""

    mount: int
    batch: int
    host: str


class RangeRow(NamedTuple):
    """A range of numbers that belongs to one mount: see `Replica.number`."""

    prefix: int
    mount: int


class SnapshotRow(NamedTuple):
    """A name for a commit, so that the tree as of it is kept.  time: in ns."""

    name: str
    seq: SequenceNumber
    time: int


class GarbageRow(NamedTuple):
    """gc's mark on a pack that nothing names.  since: in ns; the pack goes after the retention."""

    pack: PackNumber
    since: int


AnyRow = (
    InodeRow
    | DirentRow
    | XattrRow
    | ExtentRow
    | PackRow
    | OrphanRow
    | WriterRow
    | RangeRow
    | SnapshotRow
    | GarbageRow
)


class Table(Struct, frozen=True):
    """A replicated table: the type of its rows, and how many of the first columns are its key."""

    name: str
    row: type[AnyRow]
    key: int
    sql: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        return self.row._fields


REPLICATED = (
    Table(
        "inodes",
        InodeRow,
        1,
        """CREATE TABLE inodes(
            ino INTEGER PRIMARY KEY, mode INTEGER NOT NULL, nlink INTEGER NOT NULL,
            uid INTEGER NOT NULL, gid INTEGER NOT NULL, rdev INTEGER NOT NULL,
            size INTEGER NOT NULL, blocks INTEGER NOT NULL,
            atime INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL,
            btime INTEGER NOT NULL, parent INTEGER NOT NULL, version INTEGER NOT NULL,
            target BLOB)""",
    ),
    Table(
        "dirents",
        DirentRow,
        2,
        """CREATE TABLE dirents(
            parent INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL,
            cookie INTEGER NOT NULL, PRIMARY KEY(parent, name)) WITHOUT ROWID""",
    ),
    Table(
        "xattrs",
        XattrRow,
        2,
        """CREATE TABLE xattrs(
            ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL,
            PRIMARY KEY(ino, name)) WITHOUT ROWID""",
    ),
    Table(
        "extents",
        ExtentRow,
        2,
        """CREATE TABLE extents(
            ino INTEGER NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL,
            pack INTEGER NOT NULL, offset INTEGER NOT NULL, sealed INTEGER NOT NULL,
            plain INTEGER NOT NULL, skip INTEGER NOT NULL, digest BLOB, data BLOB,
            PRIMARY KEY(ino, start)) WITHOUT ROWID""",
    ),
    Table(
        "packs",
        PackRow,
        1,
        """CREATE TABLE packs(
            pack INTEGER PRIMARY KEY, name BLOB NOT NULL, epoch INTEGER NOT NULL)""",
    ),
    Table(
        "orphans",
        OrphanRow,
        1,
        "CREATE TABLE orphans(ino INTEGER PRIMARY KEY, mount INTEGER NOT NULL)",
    ),
    Table(
        "writers",
        WriterRow,
        1,
        """CREATE TABLE writers(
            mount INTEGER PRIMARY KEY, batch INTEGER NOT NULL, host TEXT NOT NULL)""",
    ),
    Table(
        "ranges",
        RangeRow,
        1,
        "CREATE TABLE ranges(prefix INTEGER PRIMARY KEY, mount INTEGER NOT NULL)",
    ),
    Table(
        "snapshots",
        SnapshotRow,
        1,
        """CREATE TABLE snapshots(
            name TEXT PRIMARY KEY NOT NULL, seq INTEGER NOT NULL, time INTEGER NOT NULL
            ) WITHOUT ROWID""",
    ),
    Table(
        "garbage",
        GarbageRow,
        1,
        "CREATE TABLE garbage(pack INTEGER PRIMARY KEY, since INTEGER NOT NULL)",
    ),
)

INDEXES = (
    "CREATE INDEX dirents_by_cookie ON dirents(parent, cookie)",
    # From a file to its names: messages, the journal of one path, conflict copies.
    "CREATE INDEX dirents_by_ino ON dirents(ino)",
    # From a chunk to the files that hold it: gc, scrub, compaction.
    "CREATE INDEX extents_by_pack ON extents(pack, offset) WHERE pack > 0",
)

LOCAL = (
    "CREATE TABLE local(key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    # Batches that are not in the journal yet, with what undoes them.
    """CREATE TABLE pending(
        batch INTEGER PRIMARY KEY, ops BLOB NOT NULL, changeset BLOB NOT NULL,
        packs BLOB NOT NULL)""",
    # Every commit this replica knows of; the hash chain.
    """CREATE TABLE history(
        seq INTEGER PRIMARY KEY, hash BLOB NOT NULL, mount INTEGER NOT NULL,
        host TEXT NOT NULL, time INTEGER NOT NULL, operations INTEGER NOT NULL)""",
    # Which object of the newest checkpoint holds which rows, and whether they changed since.
    """CREATE TABLE parts(
        tbl INTEGER NOT NULL, low BLOB NOT NULL, object TEXT NOT NULL, digest BLOB NOT NULL,
        size INTEGER NOT NULL, rows INTEGER NOT NULL, dirty INTEGER NOT NULL,
        PRIMARY KEY(tbl, low)) WITHOUT ROWID""",
    # Where equal chunks were stored before (volumes with deduplication); the key is a keyed hash.
    """CREATE TABLE duplicates(
        hash BLOB PRIMARY KEY, pack INTEGER NOT NULL, offset INTEGER NOT NULL,
        sealed INTEGER NOT NULL, plain INTEGER NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE conflicts(
        id INTEGER PRIMARY KEY, time INTEGER NOT NULL, text TEXT NOT NULL)""",
)

BY_NAME = {table.name: table for table in REPLICATED}
