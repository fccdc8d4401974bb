"""Closed batches of this mount that are not in the journal yet, and their table `pending`."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import apsw
import msgspec
from msgspec import Struct

from megafs.errors import Corrupt, Refused
from megafs.journal.database import ReplicaDatabase
from megafs.tree import ops as tree_ops
from megafs.tree.ops import Operation
from megafs.tree.schema import Ino

#: The most bytes of changesets that go into one commit.
COMMIT_SIZE = 4 << 20


class PendingBatch(Struct):
    """A closed batch that is not in the journal yet.  size: bytes of its changeset."""

    operations: int
    size: int
    packs: frozenset[int]


class CommitDraft(Struct):
    """The contents of the next commit."""

    first: int
    last: int
    operations: int
    changeset: bytes
    packs: frozenset[int]


class StrictOutcome(Struct):
    """Stands for the operations of one call, whose caller waits for them to be committed as they
    are, or refused; once one is refused, so are those after it.

    refused: what the operation met when it was done again after a lost race.
    ino: the file it makes, or 0.
    """

    refused: Refused | None = None
    ino: Ino = Ino(0)


class PendingBatches:
    """The pending batches, oldest first.

    infos: by number.  outcomes: of those whose callers wait, by number and place in the batch.
    """

    def __init__(self, database: ReplicaDatabase) -> None:
        self._database = database
        self._db = database.db
        self.infos: dict[int, PendingBatch] = {}
        self.outcomes: dict[int, dict[int, StrictOutcome]] = {}
        self.reload()

    def reload(self) -> None:
        """Read the table again, after a rollback."""
        self.infos.clear()
        for batch, ops, size, packs in self._db.execute(
            "SELECT batch, ops, length(changeset), packs FROM pending ORDER BY batch"
        ):
            self.infos[batch] = PendingBatch(
                len(tree_ops.decode(ops)), size, frozenset(msgspec.msgpack.decode(packs))
            )

    def put(
        self, batch: int, ops: bytes, count: int, changeset: bytes, packs: frozenset[int]
    ) -> None:
        """Add a batch, or replace it.  ops: its *count* operations, encoded."""
        self._db.execute(
            "INSERT OR REPLACE INTO pending VALUES(?,?,?,?)",
            (batch, ops, changeset, msgspec.msgpack.encode(sorted(packs))),
        )
        self.infos[batch] = PendingBatch(count, len(changeset), packs)

    def operations(self, batch: int) -> list[Operation]:
        """The operations of a batch, in order."""
        row = self._db.execute("SELECT ops FROM pending WHERE batch=?", (batch,)).fetchone()
        return tree_ops.decode(self._blob(batch, row))

    def changeset(self, batch: int) -> bytes:
        """The changeset of a batch."""
        row = self._db.execute("SELECT changeset FROM pending WHERE batch=?", (batch,)).fetchone()
        return self._blob(batch, row)

    def _blob(self, batch: int, row: tuple[object, ...] | None) -> bytes:
        if row is None:
            raise Corrupt(f"{self._database.path}: batch {batch} is not there")
        (blob,) = row
        assert isinstance(blob, bytes)
        return blob

    def forget(self, numbers: Iterable[int]) -> None:
        """These batches are in the journal, or given up."""
        for batch in numbers:
            del self.infos[batch]
            self.outcomes.pop(batch, None)
            self._db.execute("DELETE FROM pending WHERE batch=?", (batch,))

    def sort(self) -> None:
        """Put `infos` in order again, after batches were done again that had not been here."""
        self.infos = dict(sorted(self.infos.items()))

    def hide(self) -> list[tuple[object, ...]]:
        """Empty the table for a moment; return its rows for `show`."""
        rows = self._db.execute("SELECT * FROM pending ORDER BY batch").fetchall()
        self._db.execute("DELETE FROM pending")
        return rows

    def show(self, rows: list[tuple[object, ...]]) -> None:
        """Put back what `hide` took."""
        self._db.executemany("INSERT INTO pending VALUES(?,?,?,?)", rows)

    @property
    def packs(self) -> set[int]:
        """The packs that pending operations name."""
        return set().union(*(info.packs for info in self.infos.values()))

    def next_commit(self, blocked: Collection[int] = ()) -> CommitDraft | None:
        """The pending batches, from the first on, that fit into one commit; None if there are none.

        blocked: packs that are not in the store yet; stop before the first batch that names one.
        """
        builder = apsw.ChangesetBuilder()  # type: ignore[no-untyped-call]
        first = last = operations = size = 0
        packs: set[int] = set()
        for batch, info in self.infos.items():
            if not info.packs.isdisjoint(blocked):
                break
            if first and size + info.size > COMMIT_SIZE:
                break
            changeset = self.changeset(batch)
            if changeset:
                builder.add(changeset)
            first = first or batch
            last = batch
            operations += info.operations
            size += info.size
            packs |= info.packs
        if not first:
            builder.close()
            return None
        changeset = builder.output()
        builder.close()
        return CommitDraft(first, last, operations, changeset, frozenset(packs))
