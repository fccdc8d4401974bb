"""The rows of `writers` that a commit brings beside its batches: how far its mount has come.

They are no part of any batch: a batch may be committed by another process than the one that did it,
and then says nothing of that one.
"""

from __future__ import annotations

import apsw

from megafs.tree.schema import BY_NAME

_TABLE = "writers"


class WriterRows:
    """Makes the changeset of a few rows, in a database in memory that holds nothing else."""

    def __init__(self) -> None:
        self._db = apsw.Connection(":memory:")
        self._db.execute(BY_NAME[_TABLE].sql)

    def add(
        self,
        changeset: bytes,
        old: tuple[int, int, str] | None,
        rows: list[tuple[int, int, str]],
    ) -> bytes:
        """*changeset*, and after it *rows*; *old* is the first of them as it stood before, if it
        did."""
        db = self._db
        db.execute("DELETE FROM writers")
        if old is not None:
            db.execute("INSERT INTO writers VALUES(?,?,?)", old)
        session = apsw.Session(db, "main")
        session.attach(_TABLE)
        db.executemany("INSERT OR REPLACE INTO writers VALUES(?,?,?)", rows)
        builder = apsw.ChangesetBuilder()  # type: ignore[no-untyped-call]
        try:
            if changeset:
                builder.add(changeset)
            builder.add(session.changeset())
            return builder.output()
        finally:
            session.close()
            builder.close()
