"""Closed batches of this mount that are not in the journal yet, and their table `pending`."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import apsw
import msgspec
from msgspec import Struct

from megafs.errors import Corrupt, Refused
from megafs.journal.database import ReplicaDatabase
from megafs.journal.identity import BatchIdentity
from megafs.tree import ops as tree_ops
from megafs.tree.ops import Create, Operation
from megafs.tree.schema import Ino

#: The most bytes of changesets that go into one commit.
COMMIT_SIZE = 4 << 20


class BatchOrigin(Struct, frozen=True):
    """Whose batch it is, and what it is known by (identity.py).

    number: of the mount that did it first.  inherited: by an earlier process, or a copy of this
    state directory somewhere else.  prefixes: (operations, key) after each frame, as they were done
    first; the last is that of the whole batch.
    """

    number: int
    inherited: bool
    prefixes: tuple[tuple[int, int], ...]

    @property
    def key(self) -> int:
        """What the whole batch is known by."""
        return self.prefixes[-1][1]

    def after(self, count: int) -> BatchOrigin:
        """What is known of the rest when the first *count* operations are in the journal."""
        rest = tuple((n - count, key) for n, key in self.prefixes if n > count)
        return BatchOrigin(self.number, self.inherited, rest)


class PendingBatch(Struct):
    """A closed batch that is not in the journal yet.  size: bytes of its changeset."""

    operations: int
    size: int
    packs: frozenset[int]
    origin: BatchOrigin


class _Kept(Struct, array_like=True):
    """What the column `packs` holds; before there was more than packs, a list of them."""

    packs: list[int]
    origin: int
    prefixes: tuple[tuple[int, int], ...]
    strict: tuple[int, ...]


class CommitDraft(Struct):
    """The contents of the next commit.  inherited: the keys of batches of another process."""

    first: int
    last: int
    operations: int
    changeset: bytes
    packs: frozenset[int]
    inherited: dict[int, int]


class StrictOutcome(Struct):
    """Stands for the operations of one call, whose caller waits for them to be committed as they
    are, or refused; once one is refused, so are those after it.

    refused: what the operation met when it was done again after a lost race.
    ino: the file it makes, or 0.
    """

    refused: Refused | None = None
    ino: Ino = Ino(0)


def outcome_of(op: Operation) -> StrictOutcome:
    """For an operation whose caller has died: nobody waits, yet it is done as it is or not."""
    return StrictOutcome(ino=Ino(op.ino) if isinstance(op, Create) else Ino(0))


class PendingBatches:
    """The pending batches, oldest first.

    infos: by number.  outcomes: of those whose callers wait, by number and place in the batch.
    has_old: some were sealed by a megafs that put the rows of `writers` into their changesets.
    """

    def __init__(self, database: ReplicaDatabase, state_number: int) -> None:
        self._database = database
        self._state_number = state_number
        self._db = database.db
        self.infos: dict[int, PendingBatch] = {}
        self.outcomes: dict[int, dict[int, StrictOutcome]] = {}
        self.has_old = False
        self.reload()

    def reload(self) -> None:
        """Read the table again, after a rollback."""
        before, outcomes = self.infos, self.outcomes
        self.infos, self.outcomes = {}, {}
        for batch, ops, size, kept in self._db.execute(
            "SELECT batch, ops, length(changeset), packs FROM pending ORDER BY batch"
        ):
            operations = tree_ops.decode(ops)
            packs, origin, strict = self._decoded(batch, operations, kept)
            if batch in before:  # this process sealed it, or has taken it up already
                origin = before[batch].origin
                waiting = outcomes.get(batch)
            else:
                waiting = {n: outcome_of(operations[n]) for n in strict}
            self.infos[batch] = PendingBatch(len(operations), size, packs, origin)
            if waiting:
                self.outcomes[batch] = waiting

    def _decoded(
        self, batch: int, operations: list[Operation], kept: bytes
    ) -> tuple[frozenset[int], BatchOrigin, tuple[int, ...]]:
        found = msgspec.msgpack.decode(kept)
        if len(found) != 4 or not isinstance(found[0], list):
            # Of a megafs that had one number for all processes, which was the directory's.
            self.has_old = True
            number = self._state_number
            prefixes = BatchIdentity.of(number, batch, operations).prefixes
            return frozenset(found), BatchOrigin(number, True, tuple(prefixes)), ()
        row = msgspec.convert(found, _Kept)
        origin = BatchOrigin(row.origin, True, row.prefixes)
        return frozenset(row.packs), origin, row.strict

    def put(
        self,
        batch: int,
        ops: bytes,
        count: int,
        changeset: bytes,
        packs: frozenset[int],
        origin: BatchOrigin,
    ) -> None:
        """Add a batch, or replace it.  ops: its *count* operations, encoded."""
        strict = tuple(self.outcomes.get(batch, ()))
        kept = _Kept(sorted(packs), origin.number, origin.prefixes, strict)
        self._db.execute(
            "INSERT OR REPLACE INTO pending VALUES(?,?,?,?)",
            (batch, ops, changeset, msgspec.msgpack.encode(kept)),
        )
        self.infos[batch] = PendingBatch(count, len(changeset), packs, origin)

    def shorten(self, batch: int, count: int) -> None:
        """The first *count* operations of a batch, as they were done first, are in the journal.

        If it has been done again since, which of its operations these are is not known: it stays as
        it is, and the rules of tree/merge.py see what is there already.
        """
        if not self.is_as_first_done(batch):
            return
        info, operations = self.infos[batch], self.operations(batch)
        waiting = self.outcomes.pop(batch, {})
        self.outcomes[batch] = {n - count: t for n, t in waiting.items() if n >= count}
        ops = tree_ops.encode(operations[count:])
        origin = info.origin.after(count)
        self.put(batch, ops, len(operations) - count, b"", info.packs, origin)

    def is_as_first_done(self, batch: int) -> bool:
        """Whether no rebase has changed the operations of a batch, or put others in their place."""
        origin = self.infos[batch].origin
        now = BatchIdentity.of(origin.number, batch, self.operations(batch))
        return now.prefixes[-1] == origin.prefixes[-1]

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

    def first_to_commit(self, blocked: Collection[int]) -> int | None:
        """The batch that the next commit would begin with; None if it has to wait for a pack."""
        batch = next(iter(self.infos), None)
        if batch is None or not self.infos[batch].packs.isdisjoint(blocked):
            return None
        return batch

    def next_commit(self, blocked: Collection[int] = (), most: int = 0) -> CommitDraft | None:
        """The pending batches, from the first on, that fit into one commit; None if there are none.

        blocked: packs that are not in the store yet; stop before the first batch that names one.
        most: bytes of a commit of several batches, if not COMMIT_SIZE.
        """
        builder = apsw.ChangesetBuilder()  # type: ignore[no-untyped-call]
        first = last = operations = size = 0
        packs: set[int] = set()
        inherited: dict[int, int] = {}
        for batch, info in self.infos.items():
            if not info.packs.isdisjoint(blocked):
                break
            if first and size + info.size > (most or COMMIT_SIZE):
                break
            changeset = self.changeset(batch)
            if changeset:
                builder.add(changeset)
            first = first or batch
            last = batch
            operations += info.operations
            size += info.size
            packs |= info.packs
            if info.origin.inherited:
                inherited[info.origin.key] = batch
        if not first:
            builder.close()
            return None
        changeset = builder.output()
        builder.close()
        return CommitDraft(first, last, operations, changeset, frozenset(packs), inherited)
