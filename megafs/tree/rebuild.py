"""Fill an empty database with a tree: the rows of a checkpoint's parts, then changesets.

    create_tables, insert_rows for each part, apply_changesets, create_indexes

All of it blocks: for a thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import apsw

from megafs.errors import Corrupt, Full
from megafs.tree.schema import BY_NAME, INDEXES, REPLICATED


def create_tables(db: apsw.Connection) -> None:
    """Make the replicated tables, without indexes: filling them is faster so."""
    with db:
        for table in REPLICATED:
            db.execute(table.sql)


def delete_rows(db: apsw.Connection) -> None:
    """Empty the replicated tables."""
    with db:
        for table in REPLICATED:
            db.execute(f"DELETE FROM {table.name}")


def insert_rows(
    db: apsw.Connection, table: str, rows: Sequence[Any], *, skip_known: bool = False
) -> None:
    """Insert whole rows of *table*.  skip_known: leave out those whose key is there already."""
    marks = ",".join("?" * len(BY_NAME[table].columns))
    how = "INSERT OR IGNORE" if skip_known else "INSERT"
    with db:
        db.executemany(f"{how} INTO {table} VALUES({marks})", rows)


def apply_changesets(
    db: apsw.Connection, changesets: Iterable[tuple[int, bytes]], *, lenient: bool = False
) -> None:
    """Apply changesets, each with its commit's number; all of them or none.

    lenient: onto a tree with holes.  Changes of rows that are not there are left out, and rows that
        are there but differ are overwritten.  Otherwise Corrupt is raised for both.
    """
    with db:
        for number, changeset in changesets:
            if not changeset:
                continue
            try:
                apsw.Changeset.apply(
                    changeset,
                    db,
                    filter=BY_NAME.__contains__,
                    conflict=_overwrite if lenient else _abort,
                )
            except apsw.FullError as exc:
                raise Full("the disk that holds the scratch database is full") from exc
            except apsw.Error as exc:
                raise Corrupt(f"commit {number} does not fit the tree: {exc}") from exc


def create_indexes(db: apsw.Connection) -> None:
    """Make the indexes, once the rows are there."""
    with db:
        for sql in INDEXES:
            db.execute(sql)


def _abort(_reason: int, _change: apsw.TableChange) -> int:
    return apsw.SQLITE_CHANGESET_ABORT


def _overwrite(reason: int, _change: apsw.TableChange) -> int:
    if reason in (apsw.SQLITE_CHANGESET_DATA, apsw.SQLITE_CHANGESET_CONFLICT):
        return apsw.SQLITE_CHANGESET_REPLACE
    return apsw.SQLITE_CHANGESET_OMIT
