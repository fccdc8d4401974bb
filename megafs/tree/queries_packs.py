"""Packs as the tree sees them: which are named, and by which extents.

Functions that go through a whole table block for long on a large tree: for a thread, on a
connection of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import apsw

from megafs.tree.schema import PackRow
from megafs.tree.tree import Extent


class FileRange(NamedTuple):
    """A range of a file's bytes."""

    ino: int
    start: int
    length: int


def pack(db: apsw.Connection, number: int) -> PackRow | None:
    """The pack of that number, or None."""
    row: Any = db.execute("SELECT pack, name, epoch FROM packs WHERE pack=?", (number,)).fetchone()
    return None if row is None else PackRow(*row)


def all_packs(db: apsw.Connection) -> dict[int, PackRow]:
    """Every pack that has a row, by number."""
    rows: Any = db.execute("SELECT pack, name, epoch FROM packs")
    return {row.pack: row for row in map(PackRow._make, rows)}


def pack_names(db: apsw.Connection) -> set[bytes]:
    """The names of all packs that have a row."""
    rows: Any = db.execute("SELECT name FROM packs")
    return {name for (name,) in rows}


def named_pack_names(db: apsw.Connection) -> list[bytes]:
    """The names of the packs that a file needs."""
    rows: Any = db.execute(
        "SELECT name FROM packs WHERE pack IN (SELECT pack FROM extents WHERE pack > 0)"
    )
    return [name for (name,) in rows]


def live_bytes(db: apsw.Connection) -> dict[int, int]:
    """Of each pack that a file needs, the sealed bytes of the chunks that are needed."""
    rows: Any = db.execute(
        "SELECT pack, sum(sealed) FROM (SELECT DISTINCT pack, offset, sealed FROM extents"
        " WHERE pack > 0) GROUP BY pack"
    )
    return dict(rows)


def garbage_marks(db: apsw.Connection) -> dict[int, int]:
    """The packs that are marked as garbage, and since when (ns)."""
    rows: Any = db.execute("SELECT pack, since FROM garbage")
    return dict(rows)


def count_named(db: apsw.Connection, up_to: int | None = None) -> int:
    """How many packs files need; up_to: of those with this number or a lower one."""
    limit = 1 << 62 if up_to is None else up_to
    row: Any = db.execute(
        "SELECT count(*) FROM (SELECT DISTINCT pack FROM extents WHERE pack > 0 AND pack<=?)",
        (limit,),
    ).fetchone()
    (count,) = row
    return int(count)


def next_named(db: apsw.Connection, after: int, limit: int) -> list[int]:
    """The next packs that files need, by number."""
    rows: Any = db.execute(
        "SELECT DISTINCT pack FROM extents WHERE pack > 0 AND pack > ? ORDER BY pack LIMIT ?",
        (after, limit),
    )
    return [pack for (pack,) in rows]


def chunks_of(db: apsw.Connection, number: int) -> list[Extent]:
    """Every chunk of a pack that a file needs, once, by offset; inode and start are 0."""
    rows: Any = db.execute(
        "SELECT DISTINCT offset, sealed, plain, digest FROM extents"
        " WHERE pack=? AND pack>0 ORDER BY offset",
        (number,),
    )
    return [Extent(0, r[2], number, r[0], r[1], r[2], 0, r[3], None) for r in rows]


def files_with_chunk(db: apsw.Connection, number: int, offset: int) -> list[FileRange]:
    """The ranges of files that lie in one chunk."""
    rows: Any = db.execute(
        "SELECT ino, start, length FROM extents WHERE pack=? AND pack>0 AND offset=?"
        " ORDER BY ino, start",
        (number, offset),
    )
    return [FileRange(*row) for row in rows]


def chunks_below(db: apsw.Connection, ino: int) -> list[tuple[int, int, int]]:
    """The chunks that *ino* and what lies below it need, in order: (pack, offset, sealed size)."""
    rows: list[Any] = db.execute(
        "WITH RECURSIVE below(ino) AS ("
        " SELECT ?1 UNION SELECT d.ino FROM dirents d JOIN below b ON d.parent = b.ino)"
        " SELECT DISTINCT e.pack, e.offset, e.sealed FROM extents e JOIN below b ON e.ino = b.ino"
        " WHERE e.pack != 0 ORDER BY e.pack, e.offset",
        (ino,),
    ).fetchall()
    return rows


def packs_of(db: apsw.Connection, ino: int) -> set[int]:
    """The packs that one file needs."""
    rows: Any = db.execute("SELECT DISTINCT pack FROM extents WHERE ino=?", (ino,))
    return {pack for (pack,) in rows if pack}


def long_inlined(db: apsw.Connection, limit: int) -> list[FileRange]:
    """Pieces of files that lie in the tree itself and are longer than *limit*."""
    rows: Any = db.execute(
        "SELECT ino, start, length FROM extents WHERE pack=0 AND length>?", (limit,)
    )
    return [FileRange(*row) for row in rows]
