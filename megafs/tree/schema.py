"""The tables of a replica.

REPLICATED tables are the tree: every mount that has applied the same commits holds the same rows,
and only these go into commits (as SQLite changesets) and checkpoints.  LOCAL tables belong to this
machine alone.

Numbers without a table of their own (inode, cookie, version, pack) come from one allocator, whose
ranges each belong to one mount (`ranges`): unique in the volume without asking anybody.
"""

from __future__ import annotations

from msgspec import Struct

SCHEMA_VERSION = 2


class Table(Struct, frozen=True):
    """A replicated table: its columns in order, and how many of the first ones are its key."""

    name: str
    columns: tuple[str, ...]
    key: int
    sql: str


REPLICATED = (
    # nlink counts names (for a directory: 2 plus its subdirectories).  blocks is the sum of the
    # lengths of the inode's extents.  target: of a symbolic link, what it says.
    Table(
        "inodes",
        (
            "ino",
            "mode",
            "nlink",
            "uid",
            "gid",
            "rdev",
            "size",
            "blocks",
            "atime",
            "mtime",
            "ctime",
            "btime",
            "parent",
            "version",
            "target",
        ),
        1,
        """CREATE TABLE inodes(
            ino INTEGER PRIMARY KEY, mode INTEGER NOT NULL, nlink INTEGER NOT NULL,
            uid INTEGER NOT NULL, gid INTEGER NOT NULL, rdev INTEGER NOT NULL,
            size INTEGER NOT NULL, blocks INTEGER NOT NULL,
            atime INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL,
            btime INTEGER NOT NULL, parent INTEGER NOT NULL, version INTEGER NOT NULL,
            target BLOB)""",
    ),
    # cookie: where readdir goes on; a new name gets a new one, so a listing that is under way
    # neither skips nor repeats the names that stay.
    Table(
        "dirents",
        ("parent", "name", "ino", "cookie"),
        2,
        """CREATE TABLE dirents(
            parent INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL,
            cookie INTEGER NOT NULL, PRIMARY KEY(parent, name)) WITHOUT ROWID""",
    ),
    Table(
        "xattrs",
        ("ino", "name", "value"),
        2,
        """CREATE TABLE xattrs(
            ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL,
            PRIMARY KEY(ino, name)) WITHOUT ROWID""",
    ),
    # The file's bytes [start, start+length) are the bytes [skip, skip+length) of what is sealed at
    # [offset, offset+sealed) of the pack, `plain` bytes in all, or of `data` when pack is 0.
    # Extents of one inode never overlap, and none is longer than the volume's chunk size.
    Table(
        "extents",
        ("ino", "start", "length", "pack", "offset", "sealed", "plain", "skip", "digest", "data"),
        2,
        """CREATE TABLE extents(
            ino INTEGER NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL,
            pack INTEGER NOT NULL, offset INTEGER NOT NULL, sealed INTEGER NOT NULL,
            plain INTEGER NOT NULL, skip INTEGER NOT NULL, digest BLOB, data BLOB,
            PRIMARY KEY(ino, start)) WITHOUT ROWID""",
    ),
    Table(
        "packs",
        ("pack", "name", "epoch"),
        1,
        """CREATE TABLE packs(
            pack INTEGER PRIMARY KEY, name BLOB NOT NULL, epoch INTEGER NOT NULL)""",
    ),
    # Inodes without a name that some mount still has open.
    Table(
        "orphans",
        ("ino", "mount"),
        1,
        "CREATE TABLE orphans(ino INTEGER PRIMARY KEY, mount INTEGER NOT NULL)",
    ),
    # The last batch of each mount that is in the journal: after a crash, what not to send again.
    Table(
        "writers",
        ("mount", "batch", "host"),
        1,
        """CREATE TABLE writers(
            mount INTEGER PRIMARY KEY, batch INTEGER NOT NULL, host TEXT NOT NULL)""",
    ),
    Table(
        "ranges",
        ("prefix", "mount"),
        1,
        "CREATE TABLE ranges(prefix INTEGER PRIMARY KEY, mount INTEGER NOT NULL)",
    ),
    # Names given to a moment of the journal; kept as long as anyone wants that past.
    Table(
        "snapshots",
        ("name", "seq", "time"),
        1,
        """CREATE TABLE snapshots(
            name TEXT PRIMARY KEY NOT NULL, seq INTEGER NOT NULL, time INTEGER NOT NULL
            ) WITHOUT ROWID""",
    ),
    # Packs that nothing named when gc looked, and since when (ns): they go after the retention.
    Table(
        "garbage",
        ("pack", "since"),
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
