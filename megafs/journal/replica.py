"""The encrypted SQLite replica: committed rows, and this mount's operations on top of them.

A replica is a cache of the journal up to `sequence`, plus what this mount has done since
(`pending`).  Operations are collected into batches; a batch is one SQLite transaction and one
changeset (what a commit carries, and, inverted, what undoes it).

    record(op)      apply an operation, and put it into the open batch
    log()           append the new operations to the log of operations
    close_batch()   end the open batch: it is pending
    next_commit()   the pending batches that fit into one commit
    won()           that commit is in the journal: they are no longer pending
    follow()        others' commits: undo ours, apply theirs, do ours again

A close(2) needs `log` only, which leaves the batch open: 44 us after one created file, where
`close_batch` takes 363.  The log is always ahead of SQLite: what a lost transaction held is done
again from there (docs/decisions/0005).

Everything here is synchronous: nobody sees a replica half way.  A replica that is damaged or gone
is rebuilt from the store; the log of operations (operation_log.py) then gives back what was not
committed.

The file is database.py, the batches that wait for a commit batches.py, undoing and doing them again
rebase.py, what a process that ended left in the log of operations logged_batches.py, and going back
when a transaction fails replica_state.py.  What is collected for the next batch is open_batch.py,
which batches are in the journal recognition.py, where new numbers come from number_range.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from megafs import clock
from megafs.crypto.volume_keys import Keyring
from megafs.errors import Corrupt, Fault, Full
from megafs.journal.batches import (
    COMMIT_SIZE,
    BatchOrigin,
    CommitDraft,
    PendingBatch,
    PendingBatches,
    StrictOutcome,
    outcome_of,
)
from megafs.journal.checkpoint_parts import Part, Parts
from megafs.journal.commit import Commit, VerifiedCommit, genesis
from megafs.journal.database import ReplicaDatabase
from megafs.journal.identity import BatchIdentity
from megafs.journal.known_commits import KnownCommits, LastCommit
from megafs.journal.logged_batches import LoggedBatch, LoggedBatches
from megafs.journal.lost_changes import Difference, LostChanges, TreeLook, touched_by
from megafs.journal.number_range import NumberRange
from megafs.journal.open_batch import ChunksForLog, CollectedOperations
from megafs.journal.operation_log import Note, OperationLog, Restore
from megafs.journal.rebase import Rebase, RemoteChanges
from megafs.journal.recognition import Recognition
from megafs.journal.replica_state import ReplicaState, whole
from megafs.journal.writer_rows import WriterRows
from megafs.tree import ops as tree_ops
from megafs.tree.changeset import Changes
from megafs.tree.merge import SeenInodes
from megafs.tree.mount_number import fresh_number
from megafs.tree.ops import AddPack, Operation
from megafs.tree.schema import Ino, SequenceNumber
from megafs.tree.tree import Extent, Tree

log = logging.getLogger(__name__)

# Inodes, and names, that are answered from memory: some 600 and 250 bytes each.
_REMEMBERED = 20_000

# A batch that nobody commits (the store is away) is closed all the same before it gets larger: it
# is undone and done again as a whole, and its session keeps every changed row in memory.
_BATCH_OPERATIONS = 4096
_BATCH_MEMORY = 4 << 20
# Bytes of a changeset that one operation comes to, as far as it matters.
_OPERATION = 1536


class Replica:
    """One machine's copy of the tree of a volume.

    longest: no extent is longer, in bytes.  mount, host: the number and the name of this mount,
        which no other process has.  state_number: the number of the state directory, by which the
        database and the log of operations are known; None if it is that of the mount.
    unlogged_chunks: small chunks to be written to the log with the operations that name them.
    commit_size: bytes at which a batch, and a commit of several, ends.

    tree: reads go there directly.  sequence, head: the last commit applied and its hash.
    batch: the last closed batch; committed: the last one that is in the journal.
    """

    def __init__(
        self,
        directory: Path,
        keyring: Keyring,
        longest: int,
        mount: int,
        host: str,
        unlogged_chunks: ChunksForLog | None = None,
        *,
        state_number: int | None = None,
        commit_size: int = COMMIT_SIZE,
    ) -> None:
        self.directory = directory
        self._commit_size = commit_size
        self.keyring = keyring
        self.mount = mount
        self.host = host
        self.path = directory / "replica.db"
        self._state_number = mount if state_number is None else state_number
        self.oplog = OperationLog(directory, keyring, self._state_number)
        self._longest = longest
        self._unlogged_chunks = unlogged_chunks
        self._note = Note(mount)
        # Batches of this process are numbered by the time it began at least: should this state be
        # an old copy (a power cut, a backup), no number stands for two batches in the journal.
        self._floor = clock.now_ns() // 1000
        self._open()

    def _open(self) -> None:
        database = ReplicaDatabase(self.directory, self.keyring, self._state_number)
        self._database = database
        self.db = database.db
        self.fresh = database.fresh
        self._collected = CollectedOperations(self.mount, self._unlogged_chunks)
        self._writers = WriterRows()
        self._found = LoggedBatches()
        try:
            self.tree = Tree(self.db, self._longest, _REMEMBERED)
            self._numbers = NumberRange(self.tree, self.mount, self.record)
            self.recognition = Recognition(self.tree, self.mount, self._state_number)
            self.parts = Parts(self.db)
            self._batches = PendingBatches(database, self._state_number)
            self._rebase = Rebase(
                database, self.tree, self._batches, self.parts, self, self.mount, self.host
            )
            self._known = KnownCommits(self.db)
            self._load()
            database.begin()
        except apsw.Error as exc:
            raise Corrupt(f"{self.path}: {exc}") from exc

    @property
    def pending(self) -> dict[int, PendingBatch]:
        """The closed batches that are not in the journal yet, oldest first."""
        return self._batches.infos

    @property
    def aliases(self) -> dict[int, int]:
        """Directories of ours that became one with somebody else's of the same name."""
        return self._rebase.aliases

    def reset(self) -> None:
        """Begin again with nothing; the log of operations stays.  Only before `tree` is in use."""
        self._database.remove()
        self._open()

    def keep_packs(self, staged: dict[int, tuple[bytes, int]]) -> None:
        """These packs are staged here: (random id, epoch), by number.

        Should others have dropped one that pending operations name, it is recorded again.
        """
        self._rebase.gone_packs.update(staged)

    def is_sound(self) -> bool:
        """Whether the file can be read to its end and its pages fit together; reads all of it."""
        return self._database.is_sound()

    # ---- opening and closing ----------------------------------------------------------------

    def wal_copier(self) -> Callable[[], None] | None:
        """A function for a thread, to copy SQLite's log into the database; None if it is short.

        Thus a COMMIT need not.
        """
        return self._database.wal_copier()

    def checker(self) -> Callable[[], bool]:
        """A function for a thread: whether the file is sound, as `is_sound` finds; see `doubt`."""
        return self._database.checker()

    def doubt(self) -> None:
        """The file is damaged: remove it when it is closed, for the next process to rebuild it."""
        self.db.damaged = True

    def _load(self) -> None:
        """Take up the state that the database holds."""
        get = self._database.get
        self.sequence: SequenceNumber = get("sequence", 0)
        self.head: bytes = get("head", genesis(self.keyring.fsid))
        self.batch: int = get("batch", 0)
        self.committed: int = get("committed", 0)
        # The range of numbers is not taken up again: if this state is an old copy, how far it was
        # used since cannot be known.  One claim for each process that makes something.
        self.tree.used = get("used", 0)
        self.tree.files = get("files", 0)

    def close(self) -> None:
        """Close the open batch and the files."""
        try:
            if self._database.is_recording:
                self.close_batch()
                self._database.forget_batch()
                self.db.execute("COMMIT")
        except (Corrupt, Full) as exc:
            log.error("the replica could not be closed well: %s", exc)
        self.oplog.close(self.committed)
        self._database.close()

    def rewind(self) -> None:
        """Go back to the last closed batch and do the operations since then again.

        SQLite gives up the whole transaction when the disk is full.  What was answered must stay,
        and doing it again takes memory only.
        """
        self._database.roll_back()
        self.tree.forget_rows()
        self._batches.reload()
        self._load()
        self.parts.reload()
        self._database.begin()
        for op in self._collected.operations:
            op.apply(self.tree)

    # ---- its state --------------------------------------------------------------------------

    def _state(self) -> ReplicaState:
        return ReplicaState(
            self.sequence,
            self.head,
            self.batch,
            self.committed,
            self._numbers.prefix,
            self._numbers.counter,
            self.tree.used,
            self.tree.files,
            dict(self._batches.infos),
        )

    def _go_back(self, state: ReplicaState) -> None:
        self.sequence, self.head = state.sequence, state.head
        self.batch, self.committed = state.batch, state.committed
        self._numbers.prefix, self._numbers.counter = state.prefix, state.counter
        self.tree.used, self.tree.files = state.used, state.files
        self._batches.infos = state.pending

    def _put_state(self) -> None:
        for key, value in (
            ("sequence", self.sequence),
            ("head", self.head),
            ("batch", self.batch),
            ("committed", self.committed),
            ("used", self.tree.used),
            ("files", self.tree.files),
        ):
            self._database.put(key, value)

    @contextmanager
    def _between_batches(self) -> Iterator[None]:
        """Close the open batch; what the block does is one transaction, outside every batch.

        If it fails, nothing of it was done.
        """
        self.close_batch()
        before = self._state()
        try:
            with self._database.between_batches():
                yield
                self._put_state()
        except BaseException:
            self._go_back(before)
            self.parts.reload()
            raise

    # ---- this mount's operations ------------------------------------------------------------

    def number(self) -> int:
        """A number that nothing in the volume has ever had."""
        return self._numbers.next()

    @property
    def last_number(self) -> tuple[int, int]:
        """The last number given out, and the last one that may follow it in its range."""
        return self._numbers.last

    @whole
    def record(self, op: Operation, outcome: StrictOutcome | None = None) -> None:
        """Apply an operation of this mount; Refused leaves everything as it was.

        outcome: if a commit race is lost, the operation is not merged by the conflict rules but
        either still fits or is refused, and the outcome says so.
        """
        for piece in op.laid():
            if piece.pack:
                self.tree.pack(piece.pack)  # gc may have dropped it since the caller looked
        op.apply(self.tree)
        self._collected.add(op, outcome)

    def announce_pack(self, number: int, name: bytes, epoch: int) -> None:
        """A pack is about to get its first chunk: record it before anything names it."""
        self.record(AddPack(number, name, epoch))

    def chunks_of(self, number: int) -> list[Extent]:
        """The chunks of a pack that files hold, each as often as it is held."""
        return self.tree.extents_of_pack(number, 0, 1 << 62)

    def take_claims(self) -> list[Operation]:
        """For `Rebase`: the ranges of numbers claimed meanwhile."""
        claims = self._collected.operations
        self._collected.clear()
        return claims

    def operations(self, batch: int) -> list[Operation]:
        """The operations of a pending batch, in order."""
        return self._batches.operations(batch)

    @property
    def named_packs(self) -> set[int]:
        """The packs that operations name which are not in the journal yet."""
        return self._collected.packs | self._batches.packs

    def pack_ids(self, numbers: Iterable[int]) -> list[bytes]:
        """The random ids of these packs, in a fixed order."""
        return [self.tree.pack(n).name for n in sorted(numbers) if self.tree.has_pack(n)]

    @property
    def undecided(self) -> set[Ino]:
        """The files whose making may still be refused, visible as they are on this machine."""
        waiting = (self._collected.outcomes, *self._batches.outcomes.values())
        return {t.ino for outcomes in waiting for t in outcomes.values() if t.ino}

    @property
    def open_operations(self) -> int:
        """How many operations are not in a closed batch yet."""
        return len(self._collected)

    @property
    def unlogged(self) -> int:
        """How many operations the log does not have yet."""
        return self._collected.unlogged

    def _batch_limits(self) -> tuple[int, int]:
        """Operations, and bytes in memory, at which a batch ends.

        A session counts what rows were, not what they became: where commits must be small, an
        operation is taken for a row and a piece of a file of 1 KiB.
        """
        if self._commit_size >= COMMIT_SIZE:
            return _BATCH_OPERATIONS, _BATCH_MEMORY
        return max(1, self._commit_size // _OPERATION), min(_BATCH_MEMORY, self._commit_size)

    def log(self) -> int:
        """Append what was done since the last time to the log of operations.

        After it the operations survive the end of this process; for a power cut, `oplog.sync`.
        Returns the number of the batch that holds the last of them, closed or still open.
        """
        if not self._collected.operations:
            return self.batch
        operations, memory = self._batch_limits()
        if len(self._collected) >= operations or self._database.recorded_bytes >= memory:
            return self.close_batch()
        return self._log()

    def _log(self) -> int:
        batch = max(self.batch + 1, self._floor)
        self._collected.log(self.oplog, batch)
        return batch

    @whole
    def close_batch(self) -> int:
        """Close the batch, if it holds anything; return the number of the last one.

        After it the operations survive the end of this process, as after `log`.
        """
        collected = self._collected
        if not collected.operations:
            return self.batch
        # First: a process that ends between the two finds them in the log.
        batch = self._log()
        if collected.outcomes:
            self._batches.outcomes[batch] = collected.outcomes
        self._rebase.finish(
            batch,
            tree_ops.encode(collected.operations),
            len(collected),
            frozenset(collected.packs),
            collected.origin,
        )
        self.batch = batch
        self._put_state()
        self._database.commit()
        collected.clear()
        return batch

    # ---- the journal ------------------------------------------------------------------------

    def first_to_commit(self, blocked: Collection[int] = ()) -> int | None:
        """The batch that the next commit would begin with; None if it has to wait for a pack.

        blocked: packs that are not in the store yet.
        """
        return self._batches.first_to_commit(blocked)

    def next_commit(self, blocked: Collection[int] = ()) -> CommitDraft | None:
        """The pending batches, from the first on, that fit into one commit; None if there are none.

        blocked: packs that are not in the store yet; stop before the first batch that names one.
        """
        draft = self._batches.next_commit(blocked, self._commit_size)
        if draft is None:
            return None
        known = self.tree.last_batch(self.mount)
        rows = [(self.mount, draft.last, self.host)]
        rows += [
            (key, batch, "")
            for key, batch in draft.inherited.items()
            if not self.recognition.is_key(key)
        ]
        old = (self.mount, known, self.host) if known else None
        draft.changeset = self._writers.add(draft.changeset, old, rows)
        return draft

    @whole
    def won(
        self, sequence: SequenceNumber, digest: bytes, commit: Commit, changeset: bytes
    ) -> None:
        """Our commit is in the journal: its batches are no longer pending."""
        assert sequence == self.sequence + 1
        with self._between_batches():
            changes = Changes.of(changeset)
            self._rebase.note(changes, None)
            gone = [number for number in self.pending if number <= commit.last_batch]
            self.tree.set_last_batch(self.mount, commit.last_batch, self.host)
            for number in gone:
                origin = self.pending[number].origin
                if origin.inherited and not self.recognition.is_key(origin.key):
                    self.tree.set_last_batch(origin.key, number, "")
            self._forget_batches(gone)
            self._add_history(sequence, digest, commit)
        self.oplog.forget(self.committed)

    def _forget_batches(self, numbers: list[int]) -> None:
        """These are in the journal, whoever brought them there."""
        self._batches.forget(numbers)
        upto = min(self.pending) - 1 if self.pending else self.batch
        self.committed = max(self.committed, upto)

    def _add_history(self, sequence: SequenceNumber, digest: bytes, commit: Commit) -> None:
        self.recognition.settled(sequence)
        self.sequence = sequence
        self.head = digest
        self._known.add(sequence, digest, commit)

    def hash_at(self, sequence: int) -> bytes | None:
        """The hash of a commit this replica knows of."""
        if sequence == 0:
            return genesis(self.keyring.fsid)
        return self._known.hash_at(sequence)

    def last_commit(self) -> LastCommit:
        """The newest commit that was applied."""
        return self._known.last()

    def touched(self, commits: Iterable[VerifiedCommit]) -> set[Ino]:
        """The inodes that commits change, whatever they change of them."""
        found: set[Ino] = set()
        heirs = any(info.origin.inherited for info in self.pending.values())
        for verified in commits:
            found |= verified.changes.touched
            heirs = heirs or verified.commit.mount == self.mount
        if heirs:
            # Batches of ours may have got there in another shape than they have here, should this
            # state be a copy: what we built on them since is ours to keep.
            for batch in self.pending:
                found |= Changes.of(self._batches.changeset(batch)).touched
        return found

    @whole
    def follow(self, commits: list[VerifiedCommit]) -> RemoteChanges:
        """Apply commits that are in the journal, without a gap.

        This mount's pending operations are undone first and done again afterwards.  Raises Corrupt,
        with nothing changed, if a commit does not fit the rows before it.
        """
        remote = RemoteChanges()
        if not commits:
            return remote
        self.close_batch()
        ours = list(self.pending)
        view = SeenInodes.of(self.tree, self.touched(commits)) if ours else SeenInodes()
        with self._between_batches():
            self._rebase.undo(ours, remote)
            for verified in commits:
                sequence, commit = verified.sequence, verified.commit
                if sequence != self.sequence + 1 or commit.prev != self.head:
                    raise Corrupt(f"commit {sequence} does not follow commit {self.sequence}")
                self._rebase.apply(verified.changes, f"commit {sequence}", remote)
                verified.forget_changes()
                self.recognition.see(verified)
                self._add_history(sequence, verified.hash, commit)
            if ours:
                self._forget_batches(self._known_pending())
            self._rebase.redo(view, remote)
        self.oplog.forget(self.committed)
        return remote

    def _known_pending(self) -> list[int]:
        """The pending batches, which are undone, that are in the journal by now.

        Of those of which a part is there, that part is forgotten.  One of another process that was
        done again here stays: a conflict copy in it may hold what later batches wrote, and nobody
        else has those.
        """
        gone = []
        elsewhere = 0
        for number, info in list(self.pending.items()):
            total = info.origin.prefixes[-1][0]
            count, by_key = self.recognition.known(number, info.origin, total)
            if count < total:
                if count:
                    self._batches.shorten(number, count)
            elif not info.origin.inherited:
                gone.append(number)
            elif self._batches.is_as_first_done(number):
                gone.append(number)
                elsewhere += by_key
        if elsewhere:
            self._rebase.add_note(_brought_elsewhere(elsewhere))
        return gone

    def disown_pending(self) -> None:
        """Another process has this mount's number: no batch that waits is known by it any more.

        It is done again by the next process, whatever that other one commits.
        """
        number = fresh_number(self._state_number)
        with self._between_batches():
            for batch, info in list(self.pending.items()):
                ops = self.operations(batch)
                identity = BatchIdentity.of(number, batch, ops)
                origin = BatchOrigin(number, True, tuple(identity.prefixes))
                changeset = self._batches.changeset(batch)
                encoded = tree_ops.encode(ops)
                self._batches.put(batch, encoded, len(ops), changeset, info.packs, origin)
        self._log_only_pending()

    def note(self, text: str) -> None:
        """Say something in the log, and to whoever asks for the conflicts that were settled."""
        try:
            with self._between_batches():
                self._rebase.add_note(text)
        except (Full, apsw.FullError):
            log.warning("%s", text)

    def conflicts(self, limit: int = 100) -> list[tuple[int, str]]:
        """The newest conflicts that were settled here: (time in ns, what happened)."""
        rows: list[Any] = self.db.execute(
            "SELECT time, text FROM conflicts ORDER BY id DESC LIMIT ?", (limit,)
        ).fetchall()
        return rows

    def recover(self, restore: Restore | None = None, *, power_cut: bool = False) -> int:
        """Take up what the log of operations holds and this replica does not; return how many.

        restore, power_cut: see `OperationLog.read`.
        """
        found = self._found = LoggedBatches.read(self.oplog, restore, power_cut=power_cut)
        missing = self._missing(found)
        if missing or self.pending:
            # What is promised from here on stands upon it.
            try:
                self.oplog.sync_read()
            except OSError as exc:
                raise Fault(f"{self.directory} cannot be synced: {exc.strerror}") from exc
        for batch in sorted(self.pending):
            # A power cut may have taken the end of it from the log and not from SQLite.  (A batch
            # that was done again since is written as it is now, which is as good.)
            if found.operations(batch) != self.operations(batch):
                number, encoded, note = self._for_log(batch)
                self.oplog.append(number, encoded, note=note)
                found.forget_frames(batch)
        self.batch = max([self.batch, self.committed, *found.batches])
        if self._batches.has_old:
            self._do_again()
        if missing:
            self._take_up(missing)
        before_first = min(self.pending) - 1 if self.pending else self.batch
        self.committed = max(self.committed, before_first)
        get = self._database.get
        if not self._collected.operations and (get("batch"), get("committed")) != (
            self.batch,
            self.committed,
        ):
            # `rewind` goes back to what is stored, and the open batch must keep its number.
            with self._between_batches():
                pass
        return sum(len(batch.operations) for _, batch in missing)

    def _missing(self, found: LoggedBatches) -> list[tuple[int, LoggedBatch]]:
        """What the log holds and neither this replica nor the journal does."""
        missing = []
        elsewhere = 0
        for number, batch in found.missing(after=self.committed, pending=self.pending):
            count, by_key = self.recognition.known(number, batch.origin, len(batch.operations))
            elsewhere += by_key
            if count < len(batch.operations):
                missing.append((number, batch.without(count) if count else batch))
        if elsewhere:
            self.note(_brought_elsewhere(elsewhere))
        return missing

    # ---- commits that are not in the journal any more ---------------------------------------

    def changes_of(self, lost: list[VerifiedCommit]) -> LostChanges:
        """What these commits changed, if they are laid over the tree as it is without what is
        pending; the tree stays as it is."""
        difference: Difference | None = None
        touched = touched_by(lost)
        try:
            with self._between_batches():
                self._rebase.undo(list(self.pending), RemoteChanges())
                before = TreeLook.of(self.tree, touched)
                left = sum(self._rebase.lay(verified.changes) for verified in lost)
                difference = Difference(before, TreeLook.of(self.tree, touched), lost, left)
                raise _LookedAtError
        except _LookedAtError:
            self.tree.forget_rows()
        assert difference is not None
        return difference.changes()

    @whole
    def bring_back(self, lost: LostChanges) -> None:
        """Do again what commits did that are not in the journal any more: a pending batch."""
        self.close_batch()
        batch = max(self.batch + 1, self._floor)
        with self._between_batches():
            identity = BatchIdentity.of(self.mount, batch, lost.operations)
            origin = BatchOrigin(self.mount, False, tuple(identity.prefixes))
            self._rebase.redo_lost(batch, lost, origin)
            self.batch = batch
        number, encoded, note = self._for_log(batch)
        self.oplog.append(number, encoded, note=note)

    def _for_log(self, batch: int) -> tuple[int, bytes, Note]:
        """What has to be appended to the log so that it holds a pending batch as it is now."""
        origin = self.pending[batch].origin
        strict = tuple(self._batches.outcomes.get(batch, ()))
        note = Note(origin.number, origin.key, strict)
        return batch, tree_ops.encode(self.operations(batch)), note

    def _do_again(self) -> None:
        """Do the pending batches again that an older megafs sealed.

        Their changesets say how far the mount has come that had the number of this directory; other
        machines with a copy of it may still hold batches of that number.
        """
        with self._between_batches():
            self._rebase.undo(list(self.pending), RemoteChanges())
            self._rebase.redo(SeenInodes(), RemoteChanges())
        self._batches.has_old = False

    def _take_up(self, missing: list[tuple[int, LoggedBatch]]) -> None:
        """Do logged batches again."""
        with self._between_batches():
            for number, batch in missing:
                if batch.strict:
                    self._batches.outcomes[number] = {
                        n: outcome_of(batch.operations[n]) for n in batch.strict
                    }
            self._rebase.redo_logged([(n, batch.operations, batch.origin) for n, batch in missing])
            self._batches.sort()
        for number, batch in missing:
            if self.operations(number) != batch.operations:
                self._found.forget_frames(number)  # its operations have other numbers now

    def drop_pending_from(self, batch: int, first: int = 0) -> int:
        """Undo and forget what was done from operation *first* of a pending batch on, whose data
        did not survive; return how many operations.

        What was written to the log at once goes at once: a new file with its contents.
        """
        first = self._found.frame_of(batch, first)
        with self._between_batches():
            gone = [number for number in self.pending if number >= batch]
            kept = self.operations(batch)[:first]
            count = sum(self.pending[number].operations for number in gone) - len(kept)
            number = self.pending[batch].origin.number
            origin = BatchOrigin(
                number, True, tuple(BatchIdentity.of(number, batch, kept).prefixes)
            )
            strict = self._batches.outcomes.get(batch, {})
            self._numbers.prefix = 0  # its claim may be among what goes
            self._rebase.undo(gone, RemoteChanges())
            self._batches.forget(gone)
            self._batches.outcomes[batch] = {n: t for n, t in strict.items() if n < first}
            if kept:
                self._rebase.redo_logged([(batch, kept, origin)])
        self._log_only_pending()
        return count

    def _log_only_pending(self) -> None:
        """Make the log hold what is pending, as it is now, and nothing else."""
        left = [self._for_log(number) for number in self.pending]
        self.oplog.keep_only(
            [(number, encoded) for number, encoded, _ in left],
            {number: note for number, _, note in left},
        )

    # ---- checkpoints ------------------------------------------------------------------------

    def insert_rows(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Rows of a checkpoint, while an empty replica is being filled."""
        with self._between_batches():
            self.db.executemany(sql, rows)

    def finish_load(
        self,
        sequence: SequenceNumber,
        head: bytes,
        history: bytes,
        last: tuple[int, str, int],
        parts: dict[str, list[Part]],
    ) -> None:
        """All rows of a checkpoint are in: go on from there."""
        if history[-32:] != head or len(history) % 32:
            raise Corrupt(f"checkpoint {sequence} ends in another commit than it says")
        with self._between_batches():
            self._known.load(sequence, history, LastCommit(*last))
            self.parts.replace(parts)
            self.tree.recount()
            self.sequence, self.head = sequence, head
            self._database.put("checkpoint", sequence)

    @whole
    def adopt_parts(self, parts: dict[str, list[Part]], sequence: int) -> None:
        """A checkpoint of this replica is in the store; what changed since is still marked."""
        with self._between_batches():
            self.parts.adopt(parts)
            self._database.put("checkpoint", sequence)

    @whole
    def expect(self, sequence: int) -> None:
        """This replica is being built anew and must not be used before it holds commit *sequence*.

        This machine's pending operations were made on top of that commit.  0: it holds it now.
        """
        if sequence != self.expected:
            with self._between_batches():
                self._database.put("expected", sequence)

    @property
    def expected(self) -> int:
        """The commit below which this replica must not be used; see `expect`."""
        return int(self._database.get("expected", 0))

    @property
    def checkpoint(self) -> int:
        """The newest checkpoint that this replica knows the parts of; 0 for none."""
        return int(self._database.get("checkpoint", 0))

    @property
    def epoch(self) -> int:
        """The highest epoch whose key sealed a commit or checkpoint that this replica applied."""
        return int(self._database.get("epoch", 0))

    def raise_epoch(self, epoch: int) -> None:
        """A commit or checkpoint of *epoch* is about to be applied."""
        if epoch > self.epoch:
            self._database.put("epoch", epoch)

    @property
    def checkpoint_epoch(self) -> int:
        """The epoch whose key sealed `checkpoint`; 0 if that is not known."""
        return int(self._database.get("checkpoint_epoch", 0))

    def note_checkpoint_epoch(self, epoch: int) -> None:
        """The key of *epoch* sealed `checkpoint`, which was read or written just now."""
        self._database.put("checkpoint_epoch", epoch)

    def hash_tail(self, count: int) -> bytes:
        """The hashes of the last *count* commits, oldest first."""
        return self._known.hashes(SequenceNumber(self.sequence - count), self.sequence)

    def reader(self) -> apsw.Connection:
        """A second connection, for long queries in a thread; it sees every closed batch."""
        return self._database.connect()

    def committed_reader(self) -> apsw.Connection:
        """A second connection that sees the tree as of `sequence`, without pending operations.

        What is pending is undone for the moment in which the reader takes its snapshot; the log of
        operations holds it should this process end right then.
        """
        self.close_batch()
        reader = self._database.connect()
        state = self._state()
        hidden = self._hide_pending() if state.pending else []
        try:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM local").fetchone()
        finally:
            if hidden:
                self._show_pending(hidden, state)
        return reader

    def _hide_pending(self) -> list[tuple[object, ...]]:
        """Commit the tree as if nothing were pending.  A crash right then finds it in the log."""
        with self._between_batches():
            self._rebase.undo(list(self.pending), RemoteChanges())
            self.batch = self.committed
            return self._batches.hide()

    def _show_pending(self, rows: list[tuple[object, ...]], state: ReplicaState) -> None:
        with self._between_batches():
            self._batches.show(rows)
            for batch in state.pending:
                changes = Changes.of(self._batches.changeset(batch))
                self._rebase.apply(changes, f"batch {batch} again", RemoteChanges())
            self._go_back(state)


class _LookedAtError(Exception):
    """Ends a transaction of which nothing shall stay."""


def _brought_elsewhere(count: int) -> str:
    """For people: others committed what waits in this state directory."""
    return (
        f"{count} batches of operations that wait here were brought to the store by another machine"
        " or an earlier mount: this state directory, or what it was copied from, was used there as"
        " well"
    )
