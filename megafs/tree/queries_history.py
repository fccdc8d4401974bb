"""Queries of the commits that the replica knows (table `history`), and of the snapshots."""

from __future__ import annotations

from typing import Any, NamedTuple

import apsw

from megafs.tree.schema import SnapshotRow


class KnownCommit(NamedTuple):
    """A row of `history`: a commit that this machine has applied or made."""

    hash: bytes
    mount: int
    host: str
    time_ns: int
    operations: int


def snapshots(db: apsw.Connection) -> list[SnapshotRow]:
    """The snapshots, by name."""
    rows: Any = db.execute("SELECT name, seq, time FROM snapshots ORDER BY name")
    return [SnapshotRow._make(row) for row in rows]


def snapshot(db: apsw.Connection, name: str) -> int | None:
    """The sequence number of a snapshot, or None if there is none of that name."""
    return _number(db, "SELECT seq FROM snapshots WHERE name=?", name)


def snapshot_sequences(db: apsw.Connection) -> tuple[int, ...]:
    """The commits that snapshots name, each once, in order."""
    rows: Any = db.execute("SELECT DISTINCT seq FROM snapshots ORDER BY seq")
    return tuple(seq for (seq,) in rows)


def last_without_time(db: apsw.Connection) -> int:
    """The last commit of which only the hash is known, or nothing; 0 if there is none."""
    unknown = _number(db, "SELECT max(seq) FROM history WHERE time=0") or 0
    first = _number(db, "SELECT min(seq) FROM history") or 1
    return unknown if unknown or first <= 1 else first - 1


def first_later(db: apsw.Connection, time_ns: int, after: int) -> int | None:
    """The first commit beyond number *after* that is later than *time_ns*."""
    return _number(db, "SELECT min(seq) FROM history WHERE time>? AND seq>?", time_ns, after)


def time_of(db: apsw.Connection, sequence: int) -> int | None:
    """The time of a commit in ns; 0 or None if it is not known."""
    return _number(db, "SELECT time FROM history WHERE seq=?", sequence)


def known_range(db: apsw.Connection) -> tuple[int | None, int | None]:
    """The first and the last commit of which anything is known."""
    row: Any = db.execute("SELECT min(seq), max(seq) FROM history").fetchone()
    first, last = row
    return first, last


def known_commit(db: apsw.Connection, sequence: int) -> KnownCommit | None:
    """A commit, if more than its hash is known."""
    row: Any = db.execute(
        "SELECT hash, mount, host, time, operations FROM history WHERE seq=? AND time>0",
        (sequence,),
    ).fetchone()
    return None if row is None else KnownCommit._make(row)


def _number(db: apsw.Connection, sql: str, *args: Any) -> int | None:
    row: Any = db.execute(sql, args).fetchone()
    if row is None:
        return None
    (number,) = row
    return None if number is None else int(number)
