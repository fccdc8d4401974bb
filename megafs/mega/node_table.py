"""The tree of an account or link on this machine: a sealed SQLite file, never the whole in memory.

`NodeTable` answers; a `Loader` fills the table anew, in one transaction on a connection of its own,
so that the old tree is there until the new one is complete; `apply` brings a change of the feed.

The number of an inode is the node's handle, 48 bits, with the 49th bit set: it stays the same for
ever, on every machine.  The row that the mount shows as its root is called `top`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

from megafs.errors import Corrupt, Fault, Full
from megafs.mega.ciphers import decode, encode
from megafs.mega.names import KEYLESS, marked, needs_mark
from megafs.mega.node_keys import FILE, FOLDER, INBOX, ROOT, RUBBISH, NodeKeys, OpenedNode
from megafs.private_files import expect_file

_SCHEMA: Final = 1
_NAME: Final = "nodes.db"
_HANDLES: Final = 1 << 48
#: The folder that the shared folders of others lie in; no node has handle 0.
INBOUND: Final = _HANDLES
#: Nodes between two looks at what else is to be done.
_BATCH: Final = 500

# name: as names.py makes it of the attribute.  shown: unique in its folder.  raw: the node as the
# API sent it, while no key opens it.
_NODES: Final = """CREATE TABLE nodes(
    ino INTEGER PRIMARY KEY, parent INTEGER NOT NULL, kind INTEGER NOT NULL, size INTEGER NOT NULL,
    mtime INTEGER NOT NULL, key BLOB, name BLOB NOT NULL, shown BLOB NOT NULL, raw BLOB)"""
_TABLES: Final = (
    "CREATE TABLE local(key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    _NODES,
    "CREATE TABLE shares(handle TEXT PRIMARY KEY, key BLOB NOT NULL) WITHOUT ROWID",
    "CREATE INDEX by_shown ON nodes(parent, shown)",
    "CREATE INDEX by_name ON nodes(parent, name)",
    "CREATE INDEX by_parent ON nodes(parent)",
)


class NodeRow(NamedTuple):
    """One node.  key: None if none that is known opens it."""

    ino: int
    parent: int
    kind: int
    size: int
    mtime: int
    key: bytes | None
    shown: bytes

    @property
    def is_file(self) -> bool:
        return self.kind == FILE

    @property
    def handle(self) -> str:
        return handle_of(self.ino)


class Moved(NamedTuple):
    """A name that is no longer what it was: in *parent*, of the inode *ino*."""

    parent: int
    shown: bytes
    ino: int


_ROW: Final = "ino, parent, kind, size, mtime, key, shown"


def ino_of(handle: str) -> int:
    """The inode number of a node; 0 for ""."""
    return _HANDLES | int.from_bytes(decode(handle), "big") if handle else 0


def handle_of(ino: int) -> str:
    return encode((ino & (_HANDLES - 1)).to_bytes(6, "big"))


class _Connection(apsw.Connection):
    """A connection whose errors are ours."""

    def execute(self, *args: Any, **kwargs: Any) -> apsw.Cursor:
        try:
            return super().execute(*args, **kwargs)
        except (apsw.CorruptError, apsw.NotADBError, apsw.IOError, apsw.FullError) as exc:
            raise _translated(self.filename, exc) from exc

    def executemany(self, *args: Any, **kwargs: Any) -> apsw.Cursor:
        try:
            return super().executemany(*args, **kwargs)
        except (apsw.CorruptError, apsw.NotADBError, apsw.IOError, apsw.FullError) as exc:
            raise _translated(self.filename, exc) from exc


def _translated(path: str, exc: apsw.Error) -> Fault:
    room = os.statvfs(os.path.dirname(path) or ".")
    if isinstance(exc, apsw.FullError) or room.f_bavail * room.f_frsize < 1 << 20:
        return Full(f"{path}: the disk is full")
    return Corrupt(f"{path}: {exc}: remove it, and it is made anew")


class NodeTable:
    """See the module.

    directory: must be there, ours alone.  key: 32 bytes that seal the file.
    is_new: there was none, or none that this key opens.
    """

    def __init__(self, directory: Path, key: bytes) -> None:
        self._path = directory / _NAME
        self._key = key
        self._db = self._open()
        self.is_new = self.get("loaded") is None

    def _open(self) -> _Connection:
        expect_file(self._path)
        try:
            db = self._connect()
            if self._schema_of(db) not in (None, _SCHEMA):
                raise Corrupt(f"{self._path}: tables of another version")
        except (Corrupt, apsw.Error):  # another key, another version, or damaged: a copy, no more
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            db = self._connect()
        if self._schema_of(db) is None:
            with db:
                for sql in _TABLES:
                    db.execute(sql)
                db.execute("INSERT INTO local VALUES('schema', ?)", (_SCHEMA,))
        return db

    def _connect(self) -> _Connection:
        old = os.umask(0o077)
        try:
            db = _Connection(str(self._path))
            db.pragma("key", f"raw:{self._key.hex()}")
            db.pragma("temp_store", 2)  # no temporary files: they would hold plaintext
            db.pragma("cache_size", -16384)
            db.pragma("journal_mode", "wal")
            db.pragma("synchronous", 1)
            db.set_busy_timeout(5000)
            return db
        except apsw.Error as exc:
            raise _translated(str(self._path), exc) from exc
        finally:
            os.umask(old)

    @staticmethod
    def _schema_of(db: _Connection) -> int | None:
        if db.execute("SELECT 1 FROM sqlite_master WHERE name='local'").fetchone() is None:
            return None
        row = db.execute("SELECT value FROM local WHERE key='schema'").fetchone()
        return None if row is None else int(row[0])

    def close(self) -> None:
        self._db.close()

    # What is known

    def get(self, key: str) -> Any:
        """A value kept beside the tree: "sn", "loaded", "root", "bin", "top"."""
        row = self._db.execute("SELECT value FROM local WHERE key=?", (key,)).fetchone()
        return None if row is None else row[0]

    def put(self, key: str, value: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO local VALUES(?,?)", (key, value))

    def kept_keys(self, keys: NodeKeys) -> NodeKeys:
        """*keys*, with those of shared folders that the last load brought."""
        for handle, key in self._db.execute("SELECT handle, key FROM shares").fetchall():
            keys.add_share(str(handle), bytes(key))  # type: ignore[arg-type]
        return keys

    def find(self, ino: int) -> NodeRow | None:
        row = self._db.execute(f"SELECT {_ROW} FROM nodes WHERE ino=?", (ino,)).fetchone()
        return None if row is None else NodeRow(*row)

    def lookup(self, parent: int, shown: bytes) -> NodeRow | None:
        row = self._db.execute(
            f"SELECT {_ROW} FROM nodes WHERE parent=? AND shown=?", (parent, shown)
        ).fetchone()
        return None if row is None else NodeRow(*row)

    def children(self, parent: int, after: int = 0, limit: int = 1000) -> list[NodeRow]:
        """Some of what lies in *parent*, in the order of inode numbers, above *after*."""
        rows = self._db.execute(
            f"SELECT {_ROW} FROM nodes WHERE parent=? AND ino>? ORDER BY ino LIMIT ?",
            (parent, after, limit),
        )
        return [NodeRow(*row) for row in rows]

    def totals(self) -> tuple[int, int]:
        """How many nodes there are, and the bytes of all files."""
        row = self._db.execute("SELECT count(*), total(size) FROM nodes").fetchone()
        assert row is not None
        return int(row[0]), int(row[1])

    def keyless(self) -> int:
        """How many nodes no key opens."""
        sql = "SELECT count(*) FROM nodes WHERE key IS NULL AND kind IN (?,?) AND ino!=?"
        row = self._db.execute(sql, (FILE, FOLDER, INBOUND)).fetchone()
        assert row is not None
        return int(row[0])

    # Changes of the feed

    def apply(self, nodes: Iterable[tuple[OpenedNode, bytes | None]]) -> list[Moved]:
        """Take nodes that are new or changed; return the names that changed."""
        changed: list[Moved] = []
        with self._db:
            groups: set[tuple[int, bytes]] = set()
            for node, raw in nodes:
                self._take(node, raw, groups, changed)
            for parent, name in groups:
                changed += _name_group(self._db, parent, name)
        return changed

    def _take(
        self,
        node: OpenedNode,
        raw: bytes | None,
        groups: set[tuple[int, bytes]],
        changed: list[Moved],
    ) -> None:
        ino, parent = ino_of(node.handle), ino_of(node.parent)
        above = self.find(parent)
        old = self.find(ino)
        if old is not None:
            changed.append(Moved(old.parent, old.shown, ino))
            groups.add((old.parent, self._name_of(ino)))
        if above is None or above.is_file:  # of a folder not known here, or an old version
            self._remove(ino, changed)
            return
        row = _row(node, raw, parent)
        self._db.execute(_INSERT, row)
        name, shown = row[6], row[7]
        groups.add((parent, name))
        changed.append(Moved(parent, shown, ino))

    def _name_of(self, ino: int) -> bytes:
        row = self._db.execute("SELECT name FROM nodes WHERE ino=?", (ino,)).fetchone()
        return b"" if row is None else bytes(row[0])

    def remove(self, handle: str) -> list[Moved]:
        """Take a node away, with all that lies below it."""
        changed: list[Moved] = []
        with self._db:
            ino = ino_of(handle)
            row = self.find(ino)
            if row is not None:
                name = self._name_of(ino)
                self._remove(ino, changed)
                changed += _name_group(self._db, row.parent, name)
        return changed

    def _remove(self, ino: int, changed: list[Moved]) -> None:
        row = self.find(ino)
        if row is None:
            return
        changed.append(Moved(row.parent, row.shown, ino))
        self._db.execute(
            "WITH RECURSIVE below(ino) AS (VALUES(?) UNION SELECT nodes.ino FROM nodes"
            " JOIN below ON nodes.parent=below.ino)"
            " DELETE FROM nodes WHERE ino IN (SELECT ino FROM below)",
            (ino,),
        )

    def loader(self) -> Loader:
        """What loads the whole tree anew."""
        return Loader(self._connect())


class Loader:
    """Fills the table, wholly (`commit`) or not at all.  For one thread at a time."""

    def __init__(self, db: _Connection) -> None:
        self._db = db
        self.count = 0

    def begin(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("DELETE FROM nodes")
        self._db.execute("DELETE FROM shares")
        self._db.execute("DELETE FROM local WHERE key IN ('sn','loaded','root','bin')")
        self._db.execute(
            _INSERT, (INBOUND, 0, FOLDER, 0, 0, None, b"incoming shares", b"incoming shares", None)
        )

    def add(self, nodes: Iterable[tuple[OpenedNode, bytes | None]], shared: set[str]) -> None:
        """Take nodes, in any order.  shared: those of them that others share with this account."""
        rows = []
        for node, raw in nodes:
            parent = INBOUND if node.handle in shared else ino_of(node.parent)
            rows.append(_row(node, raw, parent))
            if node.kind in (ROOT, RUBBISH):
                self.put("root" if node.kind == ROOT else "bin", ino_of(node.handle))
        self._db.executemany(_INSERT, rows)
        self.count += len(rows)

    def put(self, key: str, value: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO local VALUES(?,?)", (key, value))

    def unopened(self) -> Iterator[bytes]:
        """The nodes, as the API sent them, that no key has opened yet."""
        after = 0
        while True:
            rows: list[Any] = self._db.execute(
                "SELECT ino, raw FROM nodes WHERE ino>? AND raw IS NOT NULL ORDER BY ino LIMIT ?",
                (after, _BATCH),
            ).fetchall()
            if not rows:
                return
            for ino, raw in rows:
                yield bytes(raw)
                after = int(ino)

    def reopen(self, node: OpenedNode) -> None:
        """A key has come that opens this one."""
        ino = ino_of(node.handle)
        row = _row(node, None, 0)
        self._db.execute(
            "UPDATE nodes SET key=?, name=?, shown=?, mtime=?, raw=NULL WHERE ino=?",
            (row[5], row[6], row[7], row[4], ino),
        )

    def commit(self, sn: str, shares: Mapping[str, bytes] | None = None) -> None:
        """The tree is complete.  shares: the keys of shared folders."""
        self._db.executemany("INSERT INTO shares VALUES(?,?)", list((shares or {}).items()))
        # Old versions are files below files.
        self._db.execute(
            "DELETE FROM nodes WHERE parent IN (SELECT ino FROM nodes WHERE kind=?)", (FILE,)
        )
        doubled: list[Any] = self._db.execute(
            "SELECT parent, name FROM nodes WHERE parent!=0 GROUP BY parent, name HAVING count(*)>1"
        ).fetchall()
        for parent, name in doubled:
            _name_group(self._db, parent, name)
        self.put("sn", sn)
        self.put("loaded", 1)
        self._db.execute("COMMIT")
        # Or the log would stay as large as the tree.
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def rollback(self) -> None:
        """Give up what is not committed."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self.count = 0

    def close(self) -> None:
        """Give up what is not committed, and the connection."""
        self.rollback()
        self._db.close()


_INSERT: Final = "INSERT OR REPLACE INTO nodes VALUES(?,?,?,?,?,?,?,?,?)"


def _row(node: OpenedNode, raw: bytes | None, parent: int) -> tuple[Any, ...]:
    name = node.name
    if node.kind in (ROOT, INBOX, RUBBISH):
        name = b"."  # lies in no folder
    elif node.key is None:
        name = KEYLESS
    odd = node.key is None or needs_mark(node.name)
    plain = name == b"." or not odd
    shown = name if plain else marked(name, node.handle)
    return (
        ino_of(node.handle),
        parent,
        node.kind,
        node.size,
        node.mtime,
        node.key,
        # Whoever is marked whatever the others are called is in no group.
        name if plain else shown,
        shown,
        raw if node.key is None else None,
    )


def _name_group(db: _Connection, parent: int, name: bytes) -> list[Moved]:
    """Give each of those in *parent* with one name its own: the newest gets the plain one."""
    rows: list[Any] = db.execute(
        "SELECT ino, shown FROM nodes WHERE parent=? AND name=? ORDER BY mtime DESC, ino",
        (parent, name),
    ).fetchall()
    changed = []
    for i, (ino, shown) in enumerate(rows):
        now = name if not i else marked(name, handle_of(ino))
        if now != shown:
            db.execute("UPDATE nodes SET shown=? WHERE ino=?", (now, ino))
            changed += [Moved(parent, bytes(shown), ino), Moved(parent, now, ino)]
    return changed
