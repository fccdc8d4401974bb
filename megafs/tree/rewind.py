"""Names and sizes as they were, going back from the present tree commit by commit.

An inode's row does not say where it lies, and a commit holds names only as (directory, name).  So
names are taken back one commit after the other; a scratch database holds what differs from the
present.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import apsw

from megafs.tree.changeset import is_given
from megafs.tree.inode import ROOT
from megafs.tree.schema import InodeRow
from megafs.tree.tree import Tree

NameChange = tuple[int, bytes, int | None, int | None]  # directory, name, inode before and after


class Rewind:
    """Names and sizes, going back in time.

    base: the committed tree to begin with.  db: a scratch database.
    """

    def __init__(self, base: Tree, db: apsw.Connection) -> None:
        self._base = base
        self._db = db
        db.execute(
            "CREATE TABLE names(parent INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER,"
            " PRIMARY KEY(parent, name)) WITHOUT ROWID"
        )
        db.execute("CREATE INDEX names_by_ino ON names(ino)")
        db.execute("CREATE TABLE rows(ino INTEGER PRIMARY KEY, mode INTEGER, size INTEGER, mtime)")
        self._paths: dict[int, bytes | None] = {}

    def child(self, parent: int, name: bytes) -> int | None:
        """The inode that a name stood for."""
        row = self._db.execute(
            "SELECT ino FROM names WHERE parent=? AND name=?", (parent, name)
        ).fetchone()
        if row is None:
            return self._base.child(parent, name)
        ino: int | None
        (ino,) = row
        return ino

    def names_of(self, ino: int) -> list[tuple[int, bytes]]:
        """Every (directory, name) that stood for an inode."""
        found: list[Any] = self._db.execute(
            "SELECT parent, name FROM names WHERE ino=?", (ino,)
        ).fetchall()
        for parent, name in self._base.names_of(ino):
            there = self._db.execute(
                "SELECT 1 FROM names WHERE parent=? AND name=?", (parent, name)
            ).fetchone()
            if there is None:
                found.append((parent, name))
        return found

    def path(self, ino: int) -> bytes | None:
        """A path from the root, or None if the inode had no name."""
        if ino == ROOT:
            return b""
        if ino in self._paths:
            return self._paths[ino]
        self._paths[ino] = None  # a loop ends here
        names = self.names_of(ino)
        found = None
        if names:
            above = self.path(names[0][0])
            found = None if above is None else above + b"/" + names[0][1]
        self._paths[ino] = found
        return found

    def join(self, parent: int, name: bytes) -> bytes:
        """The path of a name."""
        return (self.path(parent) or b"") + b"/" + name

    def walk(self, path: bytes) -> int | None:
        """The inode that a path stood for."""
        ino: int | None = ROOT
        for name in path.split(b"/"):
            if name and ino is not None:
                ino = self.child(ino, name)
        return ino

    def undo(self, names: Iterable[NameChange]) -> None:
        """Go back before a commit that changed these names."""
        self._db.executemany(
            "INSERT OR REPLACE INTO names VALUES(?,?,?)",
            ((parent, name, before) for parent, name, before, _ in names),
        )
        self._paths.clear()

    # ---- attributes -------------------------------------------------------------------------

    def known(self, ino: int) -> tuple[int, int, int]:
        """(mode, size, mtime) of an inode; zeros if nothing is known."""
        row = self._db.execute("SELECT mode, size, mtime FROM rows WHERE ino=?", (ino,)).fetchone()
        if row is not None:
            mode, size, mtime = row
            return mode, size, mtime
        found = self._base.find(ino)
        return (0, 0, 0) if found is None else (found.mode, found.size, found.mtime_ns)

    def undo_row(self, ino: int, old: InodeRow | None) -> None:
        """Go back before a change of an inode's row."""
        if old is None:
            return
        mode, size, mtime = now = self.known(ino)
        if is_given(old.mode):
            mode = old.mode
        if is_given(old.size):
            size = old.size
        if is_given(old.mtime):
            mtime = old.mtime
        if (mode, size, mtime) != now:
            self._db.execute(
                "INSERT OR REPLACE INTO rows VALUES(?,?,?,?)", (ino, mode, size, mtime)
            )
