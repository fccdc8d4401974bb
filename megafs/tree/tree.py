"""The tree of one volume, over the SQLite tables of schema.py: look things up, change rows.

Pure and synchronous: nothing here awaits, reads a clock or makes a random number, so between two
awaits of the caller a tree is never half changed.  What a user's operation means is in ops.py; what
happens when two machines disagree is in merge.py.  Both are built from the small steps below, which
keep the invariants: link counts, `blocks`, extents that never overlap.
"""

from __future__ import annotations

import errno as e
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apsw

from megafs.errors import Corrupt, Refused
from megafs.tree.inode import ROOT, Inode
from megafs.tree.schema import Ino, PackRow

_INODE = (
    "ino, mode, nlink, uid, gid, rdev, size, blocks, atime, mtime, ctime, btime, parent, version"
)


#: Extents that one operation may remove: some 5 MB of changeset.
STEP = 32768


class Extent(NamedTuple):
    """A run of a file's bytes: see the table `extents`."""

    start: int
    length: int
    pack: int
    offset: int
    sealed: int
    plain: int
    skip: int
    digest: bytes | None
    data: bytes | None

    @property
    def end(self) -> int:
        return self.start + self.length

    def cut(self, start: int, end: int) -> Extent:
        """The part of this extent that lies in [start, end)."""
        begin = max(start, self.start)
        return self._replace(
            start=begin, length=min(end, self.end) - begin, skip=self.skip + begin - self.start
        )


class Dirent(NamedTuple):
    """One name in a directory."""

    name: bytes
    ino: int
    cookie: int


class Tree:
    """Reads and changes the rows of a tree.

    db: an open connection with the tables of schema.py.
    longest: no extent is longer than this many bytes (the volume's chunk size).
    remember: how many inodes, and how many names, are answered from memory: 2 microseconds, not 10
        to 35.  0 if others change the rows.

    used, files: bytes allocated and inodes in use; kept with every change (see `charge`).

    SQLite's hooks keep the memory true: they report every inode's row that changes, whoever changes
    it, and every rollback.  They do not report names (`dirents` has no row numbers): whoever
    changes a name without the methods here calls `forget_name`.
    """

    def __init__(self, db: apsw.Connection, longest: int, remember: int = 0) -> None:
        self.db = db
        self.longest = longest
        self.used = 0
        self.files = 0
        self._packs: dict[int, PackRow] = {}
        self._remember = remember
        # Rows, not inodes: callers change the inodes they are given.
        self._inodes: dict[int, tuple[Any, ...]] = {}
        self._names: dict[tuple[int, bytes], int] = {}
        if remember:
            # A weak reference: a connection that held its tree would make a cycle, and its files
            # would stay open until somebody closes it.
            me = weakref.ref(self)

            def changed(kind: int, database: str, table: str, row: int) -> None:
                if (tree := me()) is not None:
                    tree._row_changed(kind, database, table, row)

            def rolled_back() -> None:
                if (tree := me()) is not None:
                    tree.forget_rows()

            db.set_update_hook(changed)
            db.set_rollback_hook(rolled_back)

    # ---- remembering ------------------------------------------------------------------------

    def _row_changed(self, _kind: int, _database: str, table: str, row: int) -> None:
        if table == "inodes":
            self._inodes.pop(row, None)

    def forget_rows(self) -> None:
        """The rows may be others now."""
        self._inodes.clear()
        self._names.clear()

    def forget_name(self, parent: int, name: bytes) -> None:
        """*name* in *parent* may stand for something else now, or for nothing."""
        self._names.pop((parent, name), None)

    def _keep_inode(self, ino: int, row: tuple[Any, ...]) -> None:
        if self._remember:
            if len(self._inodes) >= self._remember:
                del self._inodes[next(iter(self._inodes))]
            self._inodes[ino] = row

    def _keep_name(self, parent: int, name: bytes, ino: int) -> None:
        if self._remember:
            if len(self._names) >= self._remember:
                del self._names[next(iter(self._names))]
            self._names[parent, name] = ino

    # ---- looking up -------------------------------------------------------------------------

    def find(self, ino: int) -> Inode | None:
        """The inode, or None if there is none of that number."""
        row = self._inodes.get(ino)
        if row is None:
            row = self.db.execute(f"SELECT {_INODE} FROM inodes WHERE ino=?", (ino,)).fetchone()
            if row is None:
                return None
            self._keep_inode(ino, row)
        return Inode(*row)

    def inode(self, ino: int) -> Inode:
        """The inode, or ENOENT."""
        found = self.find(ino)
        if found is None:
            raise Refused(e.ENOENT)
        return found

    def directory(self, ino: int) -> Inode:
        """The inode of a directory, or ENOENT or ENOTDIR."""
        found = self.inode(ino)
        if not found.is_dir:
            raise Refused(e.ENOTDIR)
        return found

    def child(self, parent: int, name: bytes) -> int | None:
        """The inode number that *name* in *parent* stands for, or None."""
        known = self._names.get((parent, name))
        if known is not None:
            return known
        ino: Ino | None = self.one(
            "SELECT ino FROM dirents WHERE parent=? AND name=?", (parent, name)
        )
        if ino is not None:
            self._keep_name(parent, name, ino)
        return ino

    def lookup(self, parent: int, name: bytes) -> Inode | None:
        """The inode that *name* in *parent* stands for, or None, in one query."""
        known = self._names.get((parent, name))
        if known is not None:
            return self.find(known)
        row = self.db.execute(
            "SELECT i.ino, i.mode, i.nlink, i.uid, i.gid, i.rdev, i.size, i.blocks, i.atime,"
            " i.mtime, i.ctime, i.btime, i.parent, i.version"
            " FROM dirents d JOIN inodes i ON i.ino = d.ino"
            " WHERE d.parent=? AND d.name=?",
            (parent, name),
        ).fetchone()
        if row is None:
            return None
        found = Inode(*row)
        self._keep_name(parent, name, found.ino)
        self._keep_inode(found.ino, row)
        return found

    def entries(self, parent: int, after: int, limit: int) -> list[tuple[bytes, Inode, int]]:
        """Up to *limit* entries of a directory whose cookies follow *after*, by cookie."""
        rows = self.db.execute(
            "SELECT d.name, d.cookie, i.ino, i.mode, i.nlink, i.uid, i.gid, i.rdev, i.size,"
            " i.blocks, i.atime, i.mtime, i.ctime, i.btime, i.parent, i.version"
            " FROM dirents d JOIN inodes i ON i.ino = d.ino"
            " WHERE d.parent=? AND d.cookie>? ORDER BY d.cookie LIMIT ?",
            (parent, after, limit),
        )
        return [(name, Inode(*attributes), cookie) for name, cookie, *attributes in rows]

    def names(self, parent: int) -> Iterator[Dirent]:
        """Every entry of a directory, by name."""
        for row in self.db.execute(
            "SELECT name, ino, cookie FROM dirents WHERE parent=? ORDER BY name", (parent,)
        ):
            yield Dirent(*row)

    def is_empty(self, ino: int) -> bool:
        return (
            self.db.execute("SELECT 1 FROM dirents WHERE parent=? LIMIT 1", (ino,)).fetchone()
            is None
        )

    def names_of(self, ino: int) -> list[tuple[int, bytes]]:
        """Every (directory, name) that stands for *ino*."""
        rows: list[Any] = self.db.execute(
            "SELECT parent, name FROM dirents WHERE ino=?", (ino,)
        ).fetchall()
        return rows

    def path(self, ino: int) -> bytes | None:
        """A path from the root, for messages, or None if there is none."""
        parts: list[bytes] = []
        seen = set()
        while ino != ROOT:
            if ino in seen:
                return None
            seen.add(ino)
            found = self.find(ino)
            if found is not None and found.is_dir:
                row = self.db.execute(
                    "SELECT parent, name FROM dirents WHERE parent=? AND ino=?",
                    (found.parent, ino),
                ).fetchone()
            else:
                row = self.db.execute(
                    "SELECT parent, name FROM dirents WHERE ino=? LIMIT 1", (ino,)
                ).fetchone()
            if row is None:
                return None
            ino, name = row
            parts.append(name)
        return b"/" + b"/".join(reversed(parts))

    def walk(self, path: bytes) -> int:
        """The inode number at an absolute path, symbolic links not followed; ENOENT if none."""
        ino = ROOT
        for part in path.split(b"/"):
            if part in (b"", b"."):
                continue
            found = self.child(ino, part)
            if found is None:
                raise Refused(e.ENOENT)
            ino = found
        return ino

    def is_below(self, ino: int, ancestor: int) -> bool:
        """Whether the directory *ino* is *ancestor* or lies somewhere below it."""
        steps = 0
        while True:
            if ino == ancestor:
                return True
            if ino == ROOT:
                return False
            found = self.find(ino)
            steps += 1
            if found is None or not found.is_dir or steps > 1_000_000:
                return False
            ino = found.parent

    def target(self, ino: int) -> bytes:
        """The target of a symbolic link; EINVAL for anything else."""
        row = self.db.execute("SELECT target FROM inodes WHERE ino=?", (ino,)).fetchone()
        if row is None:
            raise Refused(e.ENOENT)
        (target,) = row
        if target is None:
            raise Refused(e.EINVAL)
        return bytes(target)

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        found: bytes | None = self.one(
            "SELECT value FROM xattrs WHERE ino=? AND name=?", (ino, name)
        )
        return found

    def xattrs(self, ino: int) -> list[tuple[bytes, bytes]]:
        """The attributes that programs see: none of megafs's own (tree/link_records.py)."""
        rows: list[Any] = self.db.execute(
            "SELECT name, value FROM xattrs WHERE ino=? ORDER BY name", (ino,)
        ).fetchall()
        return [row for row in rows if not row[0].startswith(b"megafs.")]

    def extents(self, ino: int, start: int, end: int) -> list[Extent]:
        """The extents that hold bytes of [start, end), in order, not cut to it."""
        rows = self.db.execute(
            "SELECT start, length, pack, offset, sealed, plain, skip, digest, data FROM extents"
            " WHERE ino=? AND start>? AND start<? AND start+length>? ORDER BY start",
            (ino, start - self.longest, end, start),
        )
        return [Extent(*row) for row in rows]

    def all_extents(self, ino: int) -> list[Extent]:
        rows = self.db.execute(
            "SELECT start, length, pack, offset, sealed, plain, skip, digest, data FROM extents"
            " WHERE ino=? ORDER BY start",
            (ino,),
        )
        return [Extent(*row) for row in rows]

    def extents_of_pack(self, number: int, start: int, end: int) -> list[Extent]:
        """The extents with a chunk that begins in [start, end) of a pack, in the pack's order."""
        rows = self.db.execute(
            "SELECT start, length, pack, offset, sealed, plain, skip, digest, data FROM extents"
            " WHERE pack=? AND pack>0 AND offset>=? AND offset<? ORDER BY offset",
            (number, start, end),
        )
        return [Extent(*row) for row in rows]

    def pack(self, number: int) -> PackRow:
        """The pack of that number; Corrupt if an extent names one that was never recorded."""
        known = self._packs.get(number)
        if known is None:
            row = self.db.execute(
                "SELECT pack, name, epoch FROM packs WHERE pack=?", (number,)
            ).fetchone()
            if row is None:
                raise Corrupt(f"the tree names pack {number}, which no commit recorded")
            known = self._packs[number] = PackRow(*row)
            if len(self._packs) > 100_000:
                self._packs.clear()
        return known

    # ---- changing ---------------------------------------------------------------------------

    def charge(self, used: int, files: int = 0) -> None:
        """Count bytes and inodes that came (or, negative, went)."""
        self.used += used
        self.files += files

    def add_inode(self, inode: Inode, target: bytes | None = None) -> None:
        row = (
            inode.ino,
            inode.mode,
            inode.nlink,
            inode.uid,
            inode.gid,
            inode.rdev,
            inode.size,
            inode.blocks,
            inode.atime_ns,
            inode.mtime_ns,
            inode.ctime_ns,
            inode.btime_ns,
            inode.parent,
            inode.version,
        )
        self.db.execute("INSERT INTO inodes VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", (*row, target))
        self._keep_inode(inode.ino, row)
        self.charge(inode.blocks, 1)

    def remove_inode(self, ino: int) -> None:
        """Forget an inode with its contents and attributes; its names must be gone."""
        inode = self.inode(ino)
        self.db.execute("DELETE FROM extents WHERE ino=?", (ino,))
        self.db.execute("DELETE FROM xattrs WHERE ino=?", (ino,))
        self.db.execute("DELETE FROM orphans WHERE ino=?", (ino,))
        self.db.execute("DELETE FROM inodes WHERE ino=?", (ino,))
        self.charge(-inode.blocks, -1)

    def has_entry(self, parent: int, cookie: int, ino: int) -> bool:
        """Whether a name in *parent* has that cookie and stands for *ino*."""
        sql = "SELECT 1 FROM dirents WHERE parent=? AND cookie=? AND ino=?"
        return self.one(sql, (parent, cookie, ino)) is not None

    def add_name(self, parent: int, name: bytes, ino: int, cookie: int) -> None:
        self.db.execute("INSERT INTO dirents VALUES(?,?,?,?)", (parent, name, ino, cookie))

    def remove_name(self, parent: int, name: bytes) -> None:
        self.forget_name(parent, name)
        self.db.execute("DELETE FROM dirents WHERE parent=? AND name=?", (parent, name))

    def set_name(self, parent: int, name: bytes, ino: int, cookie: int) -> None:
        """Let an existing name stand for another inode."""
        self.forget_name(parent, name)
        self.db.execute(
            "UPDATE dirents SET ino=?, cookie=? WHERE parent=? AND name=?",
            (ino, cookie, parent, name),
        )

    def touch_dir(self, ino: int, time_ns: int, links: int = 0) -> None:
        """A directory's entries changed: its times, and *links* more or fewer subdirectories."""
        row = self._inodes.get(ino)
        self.db.execute(
            "UPDATE inodes SET mtime=?, ctime=?, nlink=nlink+? WHERE ino=?",
            (time_ns, time_ns, links, ino),
        )
        if row is not None:  # the hook has dropped it, and the next name in this directory needs it
            ino, mode, nlink, uid, gid, rdev, size, blocks, atime, _, _, btime, parent, version = (
                row
            )
            nlink += links
            self._keep_inode(
                ino,
                (ino, mode, nlink, uid, gid, rdev, size, blocks, atime, time_ns, time_ns, btime,
                 parent, version),
            )  # fmt: skip

    def change_links(self, ino: int, by: int, time_ns: int) -> None:
        self.db.execute("UPDATE inodes SET nlink=nlink+?, ctime=? WHERE ino=?", (by, time_ns, ino))

    def set_parent(self, ino: int, parent: int) -> None:
        self.db.execute("UPDATE inodes SET parent=? WHERE ino=?", (parent, ino))

    def set_fields(self, ino: int, fields: dict[str, int]) -> None:
        """Set columns of an inode; the caller names only columns of the table."""
        names = ", ".join(f"{name}=?" for name in fields)
        self.db.execute(f"UPDATE inodes SET {names} WHERE ino=?", (*fields.values(), ino))

    def set_xattr(self, ino: int, name: bytes, value: bytes) -> None:
        self.db.execute("INSERT OR REPLACE INTO xattrs VALUES(?,?,?)", (ino, name, value))

    def remove_xattr(self, ino: int, name: bytes) -> bool:
        self.db.execute("DELETE FROM xattrs WHERE ino=? AND name=?", (ino, name))
        return self.db.changes() > 0

    def clear_range(self, ino: int, start: int, end: int) -> int:
        """Make [start, end) a hole; return how many bytes were allocated there.

        Extents that stick out are cut: what remains of them still names the whole sealed chunk.
        """
        freed = 0
        for ext in self.extents(ino, start, end):
            inner_start, inner_end = max(start, ext.start), min(end, ext.end)
            freed += inner_end - inner_start
            if ext.start < start:
                self.db.execute(
                    "UPDATE extents SET length=? WHERE ino=? AND start=?",
                    (start - ext.start, ino, ext.start),
                )
            else:
                self.db.execute("DELETE FROM extents WHERE ino=? AND start=?", (ino, ext.start))
            if ext.end > end:
                self.put_extent(ino, ext.cut(end, ext.end))
        return freed

    def clear_from(self, ino: int, start: int) -> int:
        """Make everything from *start* on a hole; return how many bytes were allocated there."""
        freed = self.clear_range(ino, start, start + self.longest)
        rest = int(
            self.one("SELECT total(length) FROM extents WHERE ino=? AND start>=?", (ino, start))
        )
        if rest:
            self.db.execute("DELETE FROM extents WHERE ino=? AND start>=?", (ino, start))
        return freed + rest

    def far_cut(self, ino: int, size: int) -> int | None:
        """Where to cut first a file that is to end at *size*, so that no step removes too much.

        None if one step will do.  A change of more extents than STEP makes a commit that takes
        everybody too much memory: a file of a tebibyte has four million.
        """
        found: int | None = self.one(
            "SELECT start FROM extents WHERE ino=? AND start>=? ORDER BY start DESC"
            " LIMIT 1 OFFSET ?",
            (ino, size, STEP),
        )
        return found

    def put_extent(self, ino: int, ext: Extent) -> None:
        """Add an extent where there is a hole."""
        self.db.execute("INSERT INTO extents VALUES(?,?,?,?,?,?,?,?,?,?)", (ino, *ext))

    def put_extents(self, ino: int, extents: Iterable[Extent]) -> None:
        self.db.executemany(
            "INSERT INTO extents VALUES(?,?,?,?,?,?,?,?,?,?)", ((ino, *ext) for ext in extents)
        )

    def allocated(self, ino: int, start: int, end: int) -> int:
        """How many bytes of [start, end) are not holes."""
        return sum(
            min(end, ext.end) - max(start, ext.start) for ext in self.extents(ino, start, end)
        )

    def set_contents(
        self, ino: int, *, size: int, blocks: int, version: int, mtime: int, ctime: int
    ) -> None:
        row = self._inodes.get(ino)
        self.db.execute(
            "UPDATE inodes SET size=?, blocks=?, version=?, mtime=?, ctime=? WHERE ino=?",
            (size, blocks, version, mtime, ctime, ino),
        )
        if row is not None:
            ino, mode, nlink, uid, gid, rdev, _, _, atime, _, _, btime, parent, _ = row
            self._keep_inode(
                ino,
                (ino, mode, nlink, uid, gid, rdev, size, blocks, atime, mtime, ctime, btime,
                 parent, version),
            )  # fmt: skip

    def add_orphan(self, ino: int, mount: int) -> None:
        self.db.execute("INSERT OR REPLACE INTO orphans VALUES(?,?)", (ino, mount))

    def orphan_of(self, ino: int) -> int | None:
        """The mount that keeps an inode without a name open, or None."""
        found: int | None = self.one("SELECT mount FROM orphans WHERE ino=?", (ino,))
        return found

    def orphans(self, mount: int) -> list[Ino]:
        """The inodes without a name that *mount* kept open."""
        rows = self.db.execute("SELECT ino FROM orphans WHERE mount=? ORDER BY ino", (mount,))
        return [Ino(ino) for (ino,) in rows]

    def add_pack(self, number: int, name: bytes, epoch: int) -> None:
        self.db.execute("INSERT OR IGNORE INTO packs VALUES(?,?,?)", (number, name, epoch))

    def drop_pack(self, number: int) -> None:
        """Forget a pack that nothing names."""
        self.db.execute("DELETE FROM packs WHERE pack=?", (number,))
        self.db.execute("DELETE FROM garbage WHERE pack=?", (number,))
        self.forget_pack(number)

    def forget_pack(self, number: int) -> None:
        """The row of a pack went: do not answer from memory for it."""
        self._packs.pop(number, None)

    def is_claimed(self, prefix: int) -> bool:
        """Whether a mount has claimed this range of numbers."""
        return self.one("SELECT 1 FROM ranges WHERE prefix=?", (prefix,)) is not None

    def last_batch(self, mount: int) -> int:
        """The last batch of a mount that is in the tree; 0 for none."""
        return self.one("SELECT batch FROM writers WHERE mount=?", (mount,)) or 0

    def set_last_batch(self, mount: int, batch: int, host: str) -> None:
        """*batch* is the last one of *mount*, which runs on *host*."""
        self.db.execute("INSERT OR REPLACE INTO writers VALUES(?,?,?)", (mount, batch, host))

    def has_pack(self, number: int) -> bool:
        """Whether the tree has a pack of this number."""
        return self.one("SELECT 1 FROM packs WHERE pack=?", (number,)) is not None

    def is_named(self, number: int) -> bool:
        """Whether an extent names this pack."""
        found = self.one("SELECT 1 FROM extents WHERE pack=? AND pack>0 LIMIT 1", (number,))
        return found is not None

    def unmark(self, packs: Iterable[int]) -> None:
        """These packs are named: they are no garbage any more."""
        if self.one("SELECT 1 FROM garbage LIMIT 1") is None:
            return
        self.db.executemany("DELETE FROM garbage WHERE pack=?", ((pack,) for pack in packs))

    def one(self, sql: str, args: tuple[Any, ...] = ()) -> Any:
        """The first column of the first row of a query, or None."""
        row = self.db.execute(sql, args).fetchone()
        return None if row is None else row[0]

    def recount(self) -> None:
        """Set `used` and `files` from the rows: O(inodes); for a replica just built."""
        row = self.db.execute("SELECT total(blocks), count(*) FROM inodes").fetchone()
        assert row is not None
        used, self.files = row
        self.used = int(used)
