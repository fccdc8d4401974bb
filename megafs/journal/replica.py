"""The encrypted SQLite replica: committed rows, and this mount's operations on top of them.

A replica is a cache of the journal up to `sequence`, plus what this mount has done since
(`pending`).  Operations are collected into batches; a batch is one SQLite transaction and one
changeset (what a commit carries, and, inverted, what undoes it).

    record(op)  apply it, remember it         log()      write down what was done since
    next_commit()  what to try to commit      seal()     close the batch
    won()       it is in the journal
    follow()    others' commits: undo ours, apply theirs, do ours again

A close(2) needs `log` only, which appends to the log of operations and leaves the batch open: 44 us
after one created file, where `seal` takes 363.  The log is always ahead of SQLite: what a lost
transaction held is done again from there (docs/decisions/0005).

Everything here is synchronous: nobody sees a replica half way.  A replica that is damaged or gone
is rebuilt from the store; the log of operations (oplog.py) then gives back what was not committed.

SQLite runs in WAL mode with synchronous=NORMAL: a power cut may lose the last transactions, never
the consistency.  That is enough, for what they held is in the journal or in the log of operations.
"""

from __future__ import annotations

import datetime
import functools
import logging
import os
import weakref
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import apsw
import msgspec
from msgspec import Struct, field

from megafs import clock
from megafs.crypto.volume_keys import Keyring
from megafs.errors import Corrupt, Fault, Full, Refused
from megafs.journal.checkpoint_parts import Part, Parts
from megafs.journal.commit import Commit, VerifiedCommit, genesis
from megafs.journal.operation_log import OperationLog, Piece, Restore
from megafs.tree import ops as tree_ops
from megafs.tree.changeset import Changes
from megafs.tree.merge import Merge, View
from megafs.tree.ops import AddPack, ClaimRange, Create, Operation
from megafs.tree.schema import BY_NAME, INDEXES, LOCAL, REPLICATED, SCHEMA_VERSION, Ino
from megafs.tree.tree import Extent, Tree

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# A number is a range's prefix (38 random bits) and a counter (25 bits): below 2**63, as inode
# numbers, SQLite's integers and readdir's offsets must be.  Two mounts that claim ranges at the
# same moment take the same one once in 2**38 times; the second claim is then refused (follow()).
_COUNTER_BITS = 25
_PREFIX_BITS = 38

#: The most bytes of changesets that go into one commit.
COMMIT_SIZE = 4 << 20

# Inodes, and names, that are answered from memory: some 600 and 250 bytes each.
_REMEMBERED = 20_000

# Pages of SQLite's log (WAL) after which they are copied into the database: 16 MiB.  A thread does
# that, for it takes 40 to 55 CPU-ms and up to 0.2 s (`tidying`).  With the most, the next COMMIT
# does it, whatever it takes: that is while no task runs, when a new machine reads the tree.
_WAL_PAGES = 4000
_WAL_MOST = 16000

# A batch that nobody commits (the store is away) is closed all the same before it gets larger: it
# is undone and done again as a whole, and its session keeps every changed row in memory.
_BATCH_OPERATIONS = 4096
_BATCH_MEMORY = 4 << 20


class Pending(Struct):
    """A sealed batch that is not in the journal yet.  size: bytes of its changeset."""

    operations: int
    size: int
    packs: frozenset[int]


class Candidate(Struct):
    """What the next commit would hold."""

    first: int
    last: int
    operations: int
    changeset: bytes
    packs: frozenset[int]


class Ticket(Struct):
    """Stands for one operation whose caller waits for it to be committed as it is, or refused.

    refused: what the operation met when it was done again after a lost race.
    ino: the file it makes, or 0.
    """

    refused: Refused | None = None
    ino: Ino = Ino(0)


class News(Struct):
    """What others' commits changed: for the kernel's caches and for open files.

    inodes: attributes or contents changed.  names: (directory, name) that stand for something else.
    contents: inodes whose bytes changed.  notes: conflicts that were settled.
    """

    inodes: set[Ino] = field(default_factory=set)
    names: set[tuple[Ino, bytes]] = field(default_factory=set)
    contents: set[Ino] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


class _Connection(apsw.Connection):
    """A connection whose errors are ours, and which remembers that the file is damaged."""

    damaged = False

    def execute(self, *args: Any, **kwargs: Any) -> apsw.Cursor:
        try:
            return super().execute(*args, **kwargs)
        except (apsw.CorruptError, apsw.NotADBError, apsw.IOError, apsw.FullError) as exc:
            raise self._translated(exc) from exc

    def _translated(self, exc: apsw.Error) -> Fault:
        # SQLite says "disk I/O error" where its shared memory finds no room.
        room = os.statvfs(os.path.dirname(self.filename))
        if isinstance(exc, apsw.FullError) or room.f_bavail * room.f_frsize < 1 << 20:
            return Full(f"{self.filename}: the disk is full")
        self.damaged = True
        return Corrupt(
            f"{self.filename}: {exc}; the replica will be rebuilt from the store at the next mount"
        )


def _whole(method: Callable[P, T]) -> Callable[P, T]:
    """A method of Replica that a full disk may stop in the middle: then nothing of it was done."""

    @functools.wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except (Full, apsw.FullError) as exc:
            replica = args[0]
            assert isinstance(replica, Replica)
            replica.rewind()
            if isinstance(exc, Full):
                raise
            raise Full(f"{replica.path}: the disk is full") from exc

    return run


class ChunksForLog(Protocol):
    """Sealed chunks that lie in a staged pack which nobody syncs (chunks/unlogged.py)."""

    def take(self, extent: Extent) -> bytes | None:
        """The chunk that *extent* names, if it has to go into the log with the operation."""


class Replica:
    """One machine's copy of the tree of a volume.

    longest: no extent is longer, in bytes.  mount, host: the number and the name of this mount.
    unlogged_chunks: small chunks to be written to the log with the operations that name them.

    tree: reads go there directly.  sequence, head: the last commit applied and its hash.
    batch: the last sealed batch; committed: the last one that is in the journal.
    """

    def __init__(
        self,
        directory: Path,
        keyring: Keyring,
        longest: int,
        mount: int,
        host: str,
        unlogged_chunks: ChunksForLog | None = None,
    ) -> None:
        self.directory = directory
        self.keyring = keyring
        self.mount = mount
        self.host = host
        self.path = directory / "replica.db"
        self.oplog = OperationLog(directory, keyring, mount)
        self._longest = longest
        self._unlogged_chunks = unlogged_chunks
        # Batches of this process are numbered by the time it began at least: should this state be
        # an old copy (a power cut, a backup), no number stands for two batches in the journal.
        self._floor = clock.now_ns() // 1000
        self._open()

    def _open(self) -> None:
        self.db = self._connect()
        self._wal_due = _WAL_PAGES
        self._wal = 0
        self._wal_copied = False
        me = weakref.ref(self)  # see Tree: a connection must not hold who holds it

        def grew(db: apsw.Connection, name: str, pages: int) -> int:
            replica = me()
            return apsw.SQLITE_OK if replica is None else replica._wal_grew(db, name, pages)

        self.db.set_wal_hook(grew)
        self.tree = Tree(self.db, self._longest, _REMEMBERED)
        self.pending: dict[int, Pending] = {}
        # Packs that others dropped as garbage, or that are staged here: (random id, epoch).
        self.gone_packs: dict[int, tuple[bytes, int]] = {}
        self.aliases: dict[int, int] = {}
        self.sequence = 0
        self.head = genesis(self.keyring.fsid)
        self.batch = 0
        self.committed = 0
        self._prefix = 0
        self._counter = 0
        self._ops: list[Operation] = []
        self._logged = 0  # how many of them the log of operations has
        # Where the frames began of the batches that `recover` found, by numbers of operations.
        self._frames: dict[int, list[int]] = {}
        self._packs: set[int] = set()
        self._tickets: dict[int, Ticket] = {}
        self._batch_tickets: dict[int, dict[int, Ticket]] = {}
        self._session: apsw.Session | None = None
        try:
            self.fresh = not self._has_tables()
            if self.fresh:
                self._make_tables()
            self.parts = Parts(self.db)
            self._load()
            self._begin()
        except apsw.Error as exc:
            raise Corrupt(f"{self.path}: {exc}") from exc

    def reset(self) -> None:
        """Begin again with nothing; the log of operations stays.  Only before `tree` is in use."""
        self._session = None
        self.db.close(True)
        remove_files(self.directory)
        self._open()

    def is_sound(self) -> bool:
        """Whether the file can be read to its end and its pages fit together; reads all of it."""
        try:
            return bool(self.tree.one("PRAGMA quick_check(1)") == "ok")
        except (Corrupt, apsw.Error):
            return False

    # ---- opening and closing ----------------------------------------------------------------

    def _connect(self) -> _Connection:
        old = os.umask(0o077)
        try:
            db = _Connection(str(self.path))
            # "raw:": 32 random bytes need no stretching, which took 27 ms at every opening.
            key = self.keyring.subkey("replica", min(self.keyring.epochs))
            db.pragma("key", f"raw:{key.hex()}")
            # Our statements are planned once.  Without it SQLite (built with STAT4) prepares those
            # with a range or a join anew for every set of values: a lookup took 43 us, not 3.
            db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
            db.pragma("temp_store", 2)  # no temporary files: they would hold plaintext
            # 32 MiB: looking names up in a tree of 100,000 files took 35 us, with 16 MiB 53.
            db.pragma("cache_size", -32768)
            db.pragma("journal_mode", "wal")
            db.pragma("synchronous", 1)
            db.pragma("wal_autocheckpoint", 0)
            db.set_busy_timeout(5000)
        except apsw.Error as exc:
            room = os.statvfs(self.directory)
            # SQLite says "disk I/O error" where its shared memory finds no room.
            if isinstance(exc, apsw.FullError) or room.f_bavail * room.f_frsize < 1 << 20:
                raise Full(
                    f"the disk of {self.directory} is full: make room there, or choose another"
                    " directory with --state-dir"
                ) from exc
            raise Corrupt(f"{self.path}: {exc}") from exc
        finally:
            os.umask(old)
        return db

    def _wal_grew(self, db: apsw.Connection, _name: str, pages: int) -> int:
        """After each COMMIT: how long SQLite's log is."""
        self._wal = pages
        if pages < _WAL_PAGES:
            self._wal_due = _WAL_PAGES
        if self._wal_copied or pages >= _WAL_MOST:
            # What came since the thread looked is little.  It has to be done here: only if all is
            # copied when the next transaction begins, does the log begin anew.
            self._wal_copied = False
            try:
                db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            except apsw.Error as exc:
                log.debug("%s-wal grows: %s", self.path, exc)
        return apsw.SQLITE_OK

    def tidying(self) -> Callable[[], None] | None:
        """What should run in a thread now, beside everything else; None if there is nothing.

        It copies SQLite's log into the database, so that a COMMIT need not.
        """
        if self._wal < self._wal_due:
            return None
        self._wal_due = self._wal + _WAL_PAGES  # a reader may keep it from getting anywhere
        connection = self._connect()

        def copy() -> None:
            try:
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                self._wal_copied = True
            except apsw.Error as exc:
                log.debug("%s-wal grows: %s", self.path, exc)
            finally:
                connection.close()

        return copy

    def _has_tables(self) -> bool:
        try:
            row = self.db.execute("SELECT 1 FROM sqlite_master WHERE name='local'").fetchone()
            if row is None:
                return False
            version = self._get("schema")
        except apsw.Error as exc:
            raise Corrupt(f"{self.path}: {exc}") from exc
        if version != SCHEMA_VERSION:
            raise Corrupt(f"{self.path}: tables of version {version}")
        return True

    def _make_tables(self) -> None:
        with self.db:
            for table in REPLICATED:
                self.db.execute(table.sql)
            for sql in INDEXES + LOCAL:
                self.db.execute(sql)
            self._put("schema", SCHEMA_VERSION)
            self._put("mount", self.mount)

    def _load(self) -> None:
        try:
            if not self.fresh and self._get("mount") != self.mount:
                raise Corrupt(f"{self.path}: made by another mount")
            self.sequence = self._get("sequence", 0)
            self.head = self._get("head", self.head)
            self.batch = self._get("batch", 0)
            self.committed = self._get("committed", 0)
            # The range of numbers is not taken up again: if this state is an old copy, how far it
            # was used since cannot be known.  One claim for each process that makes something.
            self.tree.used = self._get("used", 0)
            self.tree.files = self._get("files", 0)
            for batch, ops, size, packs in self.db.execute(
                "SELECT batch, ops, length(changeset), packs FROM pending ORDER BY batch"
            ):
                self.pending[batch] = Pending(
                    len(tree_ops.decode(ops)), size, frozenset(msgspec.msgpack.decode(packs))
                )
        except apsw.Error as exc:
            raise Corrupt(f"{self.path}: {exc}") from exc

    def close(self) -> None:
        """Seal what is open and close the files."""
        try:
            if self._session is not None:
                self.seal()
                self._session.close()
                self._session = None
                self.db.execute("COMMIT")
        except (Corrupt, Full) as exc:
            log.error("the replica could not be closed well: %s", exc)
        self.oplog.close(self.committed)
        self.db.close()
        if self.db.damaged:
            remove_files(self.directory)  # the log of operations holds what is not committed

    def _begin(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        session = apsw.Session(self.db, "main")
        for table in REPLICATED:
            session.attach(table.name)
        self._session = session

    def rewind(self) -> None:
        """Go back to the last sealed batch and do the operations since then again.

        SQLite gives up the whole transaction when the disk is full.  What was answered must stay,
        and doing it again takes memory only.
        """
        if self._session is not None:
            self._session.close()
            self._session = None
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")
        self.tree.forget_rows()
        self.pending.clear()
        self._load()
        self.parts.reload()
        self.db.pragma("cache_spill", 0)
        self._begin()
        for op in self._ops:
            op.apply(self.tree)

    def _get(self, key: str, default: Any = None) -> Any:
        row = self.db.execute("SELECT value FROM local WHERE key=?", (key,)).fetchone()
        return default if row is None else row[0]

    def _put(self, key: str, value: Any) -> None:
        self.db.execute("INSERT OR REPLACE INTO local VALUES(?,?)", (key, value))

    # ---- this mount's operations ------------------------------------------------------------

    def number(self) -> int:
        """A number that nothing in the volume has ever had."""
        if not self._prefix or self._counter >> _COUNTER_BITS:
            self._claim()
        self._counter += 1
        return self._prefix << _COUNTER_BITS | self._counter

    @property
    def last_number(self) -> tuple[int, int]:
        """The last number given out, and the last one that may follow it in its range."""
        first = self._prefix << _COUNTER_BITS
        return first | self._counter, first | (1 << _COUNTER_BITS) - 1

    def _claim(self) -> None:
        while True:
            prefix = int.from_bytes(clock.random_bytes(5), "big") >> (40 - _PREFIX_BITS)
            taken = self.tree.one("SELECT 1 FROM ranges WHERE prefix=?", (prefix,))
            if prefix and not taken:  # 0 holds the root directory
                break
        self._prefix, self._counter = prefix, 0
        self.record(ClaimRange(prefix, self.mount))

    @_whole
    def record(self, op: Operation, ticket: Ticket | None = None) -> None:
        """Apply an operation of this mount; Refused leaves everything as it was.

        ticket: if a commit race is lost, the operation is not merged by the conflict rules but
        either still fits or is refused, and the ticket says so.
        """
        for piece in op.laid():
            if piece.pack:
                self.tree.pack(piece.pack)  # gc may have dropped it since the caller looked
        op.apply(self.tree)
        if ticket is not None:
            self._tickets[len(self._ops)] = ticket
            if isinstance(op, Create):
                ticket.ino = Ino(op.ino)
        self._ops.append(op)
        self._packs.update(piece.pack for piece in op.laid() if piece.pack)

    def announce_pack(self, number: int, name: bytes, epoch: int) -> None:
        """A pack is about to get its first chunk: record it before anything names it."""
        self.record(AddPack(number, name, epoch))

    def operations(self, batch: int) -> list[Operation]:
        """What a pending batch did, in order."""
        ops = self.tree.one("SELECT ops FROM pending WHERE batch=?", (batch,))
        if ops is None:
            raise Corrupt(f"{self.path}: batch {batch} is not there")
        return tree_ops.decode(bytes(ops))

    @property
    def named_packs(self) -> set[int]:
        """The packs that operations name which are not in the journal yet."""
        return self._packs.union(*(info.packs for info in self.pending.values()))

    def pack_ids(self, numbers: Iterable[int]) -> list[bytes]:
        """The random ids of these packs, in a fixed order."""
        found = (
            self.tree.one("SELECT name FROM packs WHERE pack=?", (n,)) for n in sorted(numbers)
        )
        return [bytes(name) for name in found if name is not None]

    @property
    def undecided(self) -> set[Ino]:
        """The files whose making may still be refused, visible as they are on this machine."""
        waiting = (self._tickets, *self._batch_tickets.values())
        return {t.ino for tickets in waiting for t in tickets.values() if t.ino}

    @property
    def unsealed(self) -> int:
        """How many operations are not in a sealed batch yet."""
        return len(self._ops)

    @property
    def unlogged(self) -> int:
        """How many operations the log does not have yet."""
        return len(self._ops) - self._logged

    def log(self) -> int:
        """Append what was done since the last time to the log of operations.

        After it the operations survive the end of this process; for a power cut, `oplog.sync`.
        Returns the number of the batch that holds the last of them, sealed or still open.
        """
        if not self._ops:
            return self.batch
        assert self._session is not None
        if len(self._ops) >= _BATCH_OPERATIONS or self._session.memory_used >= _BATCH_MEMORY:
            return self.seal()
        return self._log()

    def _log(self) -> int:
        batch = max(self.batch + 1, self._floor)
        if self._logged < len(self._ops):
            ops = self._ops[self._logged :]
            self.oplog.append(batch, tree_ops.encode(ops), self._logged, self._pieces(ops))
            self._logged = len(self._ops)
        return batch

    def _pieces(self, ops: Iterable[Operation]) -> list[Piece]:
        """The small chunks that these name and nobody syncs."""
        unlogged = self._unlogged_chunks
        if unlogged is None:
            return []
        return [
            (extent.pack, extent.offset, sealed)
            for op in ops
            for extent in op.laid()
            if extent.pack and (sealed := unlogged.take(extent)) is not None
        ]

    @_whole
    def seal(self) -> int:
        """Close the batch, if it holds anything; return the number of the last one.

        After it the operations survive the end of this process, as after `log`.
        """
        if not self._ops:
            return self.batch
        assert self._session is not None
        # First: a process that ends between the two finds them in the log.
        batch = self._log()
        self._finish(batch, tree_ops.encode(self._ops), len(self._ops), frozenset(self._packs))
        self.batch = batch
        self._put_state()
        self.db.execute("COMMIT")
        self.db.pragma("cache_spill", 1)  # see `rewind`
        if self._tickets:
            self._batch_tickets[batch] = self._tickets
            self._tickets = {}
        self._ops = []
        self._logged = 0
        self._packs = set()
        self._begin()
        return batch

    def _finish(self, batch: int, ops: bytes, count: int, packs: frozenset[int]) -> None:
        """End the session: its changeset becomes the batch's row."""
        assert self._session is not None
        self.db.execute(
            "INSERT OR REPLACE INTO writers VALUES(?,?,?)", (self.mount, batch, self.host)
        )
        changeset = self._session.changeset()
        self._session.close()
        self._session = None
        self.db.execute(
            "INSERT OR REPLACE INTO pending VALUES(?,?,?,?)",
            (batch, ops, changeset, msgspec.msgpack.encode(sorted(packs))),
        )
        self.pending[batch] = Pending(count, len(changeset), packs)

    def _put_state(self) -> None:
        for key, value in (
            ("sequence", self.sequence),
            ("head", self.head),
            ("batch", self.batch),
            ("committed", self.committed),
            ("used", self.tree.used),
            ("files", self.tree.files),
        ):
            self._put(key, value)

    # ---- the journal ------------------------------------------------------------------------

    def next_commit(self, blocked: Collection[int] = ()) -> Candidate | None:
        """The pending batches, from the first on, that fit into one commit; None if there are none.

        blocked: packs that are not in the store yet; stop before the first batch that names one.
        """
        builder = apsw.ChangesetBuilder()  # type: ignore[no-untyped-call]
        first = last = operations = size = 0
        packs: set[int] = set()
        for batch, info in self.pending.items():
            if not info.packs.isdisjoint(blocked):
                break
            if first and size + info.size > COMMIT_SIZE:
                break
            changeset = self._changeset(batch)
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
        return Candidate(first, last, operations, changeset, frozenset(packs))

    def _changeset(self, batch: int) -> bytes:
        changeset = self.tree.one("SELECT changeset FROM pending WHERE batch=?", (batch,))
        if changeset is None:
            raise Corrupt(f"{self.path}: batch {batch} is not there")
        return bytes(changeset)

    @_whole
    def won(self, sequence: int, digest: bytes, commit: Commit, changeset: bytes) -> None:
        """Our commit is in the journal: its batches are no longer pending."""
        assert sequence == self.sequence + 1
        self.seal()
        self._note_changes(Changes.of(changeset), None)
        self._forget_batches(commit.last_batch)
        self._add_history(sequence, digest, commit)
        self._put_state()
        self._turn()
        self.oplog.forget(self.committed)

    def _turn(self) -> None:
        """Commit the SQLite transaction (local tables only changed) and begin another."""
        self._pause()
        self.db.execute("COMMIT")
        self._begin()

    def _forget_batches(self, last: int) -> None:
        for batch in [number for number in self.pending if number <= last]:
            del self.pending[batch]
            self._batch_tickets.pop(batch, None)
        self.db.execute("DELETE FROM pending WHERE batch<=?", (last,))
        self.committed = max(self.committed, last)
        self.batch = max(self.batch, last)

    def _add_history(self, sequence: int, digest: bytes, commit: Commit) -> None:
        self.sequence = sequence
        self.head = digest
        self.db.execute(
            "INSERT OR REPLACE INTO history VALUES(?,?,?,?,?,?)",
            (sequence, digest, commit.mount, commit.host, commit.time_ns, commit.operations),
        )

    def hash_at(self, sequence: int) -> bytes | None:
        """The hash of a commit this replica knows of."""
        if sequence == 0:
            return genesis(self.keyring.fsid)
        found = self.tree.one("SELECT hash FROM history WHERE seq=?", (sequence,))
        return None if found is None else bytes(found)

    def last_commit(self) -> tuple[int, str, int]:
        """(time in ns, host, mount) of the last commit; zeros if there is none."""
        row = self.db.execute(
            "SELECT time, host, mount FROM history ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        return row if row is not None else (0, "", 0)

    def touched(self, commits: Iterable[VerifiedCommit]) -> set[Ino]:
        """The inodes that commits change, whatever they change of them."""
        found: set[Ino] = set()
        ours = False
        for verified in commits:
            found |= verified.changes.touched
            ours = ours or verified.commit.mount == self.mount
        if ours:
            # Batches of ours may have got there in another shape than they have here, should this
            # state be an old copy: what we built on them since is ours to keep.
            for batch in self.pending:
                found |= Changes.of(self._changeset(batch)).touched
        return found

    @_whole
    def follow(self, commits: list[VerifiedCommit]) -> News:
        """Apply commits that are in the journal, without a gap.

        This mount's pending operations are undone first and done again afterwards.  Raises Corrupt,
        with nothing changed, if a commit does not fit the rows before it.
        """
        news = News()
        if not commits:
            return news
        self.seal()
        assert self._session is not None
        ours = list(self.pending)
        view = View()
        if ours:
            view = View.of(self.tree, self.touched(commits))
        self._session.close()
        self._session = None
        self.db.execute("COMMIT")
        saved = (
            self.sequence,
            self.head,
            self.batch,
            self.committed,
            self.tree.used,
            self.tree.files,
            dict(self.pending),
            self._counter,
            self._prefix,
        )
        self.db.execute("BEGIN IMMEDIATE")
        try:
            self._undo(ours, news)
            for verified in commits:
                sequence, commit = verified.sequence, verified.commit
                if sequence != self.sequence + 1 or commit.prev != self.head:
                    raise Corrupt(f"commit {sequence} does not follow commit {self.sequence}")
                changes = verified.changes
                self._apply(changes.changeset, f"commit {sequence}")
                self._note_changes(changes, news, count=True)
                verified.forget_changes()
                if commit.mount == self.mount:
                    self._forget_batches(commit.last_batch)
                self._add_history(sequence, verified.hash, commit)
            self._redo(view, news)
            self._put_state()
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            (
                self.sequence,
                self.head,
                self.batch,
                self.committed,
                self.tree.used,
                self.tree.files,
                self.pending,
                self._counter,
                self._prefix,
            ) = saved
            self.parts.reload()
            self._begin()
            raise
        self.db.execute("COMMIT")
        self._begin()
        self.oplog.forget(self.committed)
        return news

    def _undo(self, batches: list[int], news: News) -> None:
        for batch in reversed(batches):
            inverse = apsw.Changeset.invert(self._changeset(batch))
            self._apply(inverse, f"undoing batch {batch}")
            self._note_changes(Changes.of(inverse), news, count=True)

    def _redo(self, view: View, news: News) -> None:
        for ino in [ino for ino in self.aliases if self.tree.find(ino) is not None]:
            del self.aliases[ino]  # somebody brought the directory back: it is itself again
        left = list(self.pending)
        if not left:
            return
        date = _date(clock.now_ns())
        merge = Merge(self.tree, view, self.number, self.host, date, self.mount)
        merge.aliases = dict(self.aliases)
        for batch in left:
            self._redo_batch(batch, self.operations(batch), merge, news)
        self.aliases = merge.aliases
        self._log_conflicts(merge.notes, news)

    def _redo_batch(self, batch: int, ops: list[Operation], merge: Merge, news: News) -> None:
        """Do one batch's operations again, inside the open transaction, as a batch of its own."""
        session = apsw.Session(self.db, "main")
        for table in REPLICATED:
            session.attach(table.name)
        self._session = session
        done: list[Operation] = []
        tickets = self._batch_tickets.pop(batch, {})
        for n, op in enumerate(ops):
            ticket = tickets.get(n)
            if ticket is None:
                done.extend(merge.redo(op))
                continue
            try:
                merge.check_unchanged(op)
                op.apply(self.tree)
            except Refused as no:
                ticket.refused = no
                merge.refused(op)
            else:
                self._batch_tickets.setdefault(batch, {})[len(done)] = ticket
                done.append(op)
        done.extend(self._ops)  # a range claimed for conflict copies
        self._ops = []
        packs = frozenset(piece.pack for op in done for piece in op.laid() if piece.pack)
        if self.gone_packs:
            for pack in packs & self.gone_packs.keys():
                if self.tree.one("SELECT 1 FROM packs WHERE pack=?", (pack,)) is None:
                    # Ours names it again, so gc must not take it: heartbeats hold it until this
                    # is committed (docs/maintenance.md).
                    again = AddPack(pack, *self.gone_packs[pack])
                    again.apply(self.tree)
                    done.insert(0, again)
        self._finish(batch, tree_ops.encode(done), len(done), packs)
        self._note_changes(Changes.of(self._changeset(batch)), news)

    def _log_conflicts(self, notes: list[str], news: News) -> None:
        for note in notes:
            log.warning("conflict settled: %s", note)
            self.db.execute("INSERT INTO conflicts(time, text) VALUES(?,?)", (clock.now_ns(), note))
        news.notes.extend(notes)

    def conflicts(self, limit: int = 100) -> list[tuple[int, str]]:
        """The newest conflicts that were settled here: (time in ns, what happened)."""
        rows: list[Any] = self.db.execute(
            "SELECT time, text FROM conflicts ORDER BY id DESC LIMIT ?", (limit,)
        ).fetchall()
        return rows

    def recover(self, restore: Restore | None = None) -> int:
        """Take up what the log of operations holds and this replica does not; return how many.

        restore: see `OperationLog.read`.
        """
        logged: dict[int, list[Operation]] = {}
        for batch, frames in self.oplog.read(restore):
            ops = logged[batch] = []
            starts = self._frames[batch] = []
            for frame in frames:
                starts.append(len(ops))
                ops.extend(tree_ops.decode(frame))
        known = self.tree.one("SELECT batch FROM writers WHERE mount=?", (self.mount,)) or 0
        missing = [
            (batch, ops)
            for batch, ops in logged.items()
            if batch > known and batch > self.committed and batch not in self.pending
        ]
        if missing or self.pending:
            # What is promised from here on stands upon it.
            try:
                self.oplog.sync_read()
            except OSError as exc:
                raise Fault(f"{self.directory} cannot be synced: {exc.strerror}") from exc
        for batch in sorted(self.pending):
            # A power cut may have taken the end of it from the log and not from SQLite.  (A batch
            # that was done again since is written as it is now, which is as good.)
            ops = self.operations(batch)
            if logged.get(batch) != ops:
                self.oplog.append(batch, tree_ops.encode(ops))
                self._frames.pop(batch, None)
        self.batch = max([self.batch, self.committed, known, *logged])
        count = self._take_up(missing) if missing else 0
        before_first = min(self.pending) - 1 if self.pending else self.batch
        self.committed = max(self.committed, before_first)
        if not self._ops and (self._get("batch"), self._get("committed")) != (
            self.batch,
            self.committed,
        ):
            # `rewind` goes back to what is stored, and the open batch must keep its number.
            self._put_state()
            self._turn()
        return count

    def _take_up(self, missing: list[tuple[int, list[Operation]]]) -> int:
        """Do logged batches again; return how many operations they hold."""
        self.seal()
        assert self._session is not None
        self._session.close()
        self._session = None
        news = News()
        date = _date(clock.now_ns())
        merge = Merge(self.tree, View(), self.number, self.host, date, self.mount)
        count = 0
        try:
            for batch, ops in missing:
                self._redo_batch(batch, ops, merge, news)
                count += len(ops)
                if self.operations(batch) != ops:
                    del self._frames[batch]  # its operations have other numbers now
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.pending = dict(sorted(self.pending.items()))
        self.aliases.update(merge.aliases)
        self._log_conflicts(merge.notes, news)
        self._put_state()
        self.db.execute("COMMIT")
        self._begin()
        return count

    def drop_pending_from(self, batch: int, first: int = 0) -> int:
        """Undo and forget what was done from operation *first* of a pending batch on, whose data
        did not survive; return how many operations.

        What was written to the log at once goes at once: a new file with its contents.
        """
        first = max((at for at in self._frames.get(batch, ()) if at <= first), default=first)
        self.seal()
        assert self._session is not None
        self._session.close()
        self._session = None
        gone = [number for number in self.pending if number >= batch]
        kept = self.operations(batch)[:first]
        count = sum(self.pending[number].operations for number in gone) - len(kept)
        news = News()
        self._prefix = 0  # its claim may be among what goes
        try:
            self._undo(gone, news)
            for number in gone:
                del self.pending[number]
                self.db.execute("DELETE FROM pending WHERE batch=?", (number,))
            if kept:
                date = _date(clock.now_ns())
                merge = Merge(self.tree, View(), self.number, self.host, date, self.mount)
                self._redo_batch(batch, kept, merge, news)
                self._log_conflicts(merge.notes, news)
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self._put_state()
        self.db.execute("COMMIT")
        self._begin()
        self.oplog.keep_only(
            [(number, tree_ops.encode(self.operations(number))) for number in self.pending]
        )
        return count

    def _apply(self, changeset: bytes, what: str) -> None:
        if not changeset:
            return
        try:
            apsw.Changeset.apply(
                changeset, self.db, filter=BY_NAME.__contains__, conflict=_no_conflict
            )
        except apsw.FullError:
            raise  # see `_whole`
        except apsw.Error as exc:
            raise Corrupt(f"{what} does not fit the tree: {exc}") from exc

    def _note_changes(self, changes: Changes, news: News | None, count: bool = False) -> None:
        """After a changeset: parts to write anew, usage, what the kernel must forget.

        count: it was applied as it is, so that the tree knows nothing of it yet.
        """
        for pack in changes.dropped_packs.values():
            self.tree.forget_pack(pack.pack)
            self.gone_packs[pack.pack] = (pack.name, pack.epoch)
        if count:
            self.tree.charge(changes.used, changes.files)
        if news is not None:
            news.inodes |= changes.inodes
            news.contents |= changes.contents
            news.names |= changes.names
            for parent, name in changes.names:
                self.tree.forget_name(parent, name)
        self.parts.mark(changes.keys)

    # ---- checkpoints ------------------------------------------------------------------------

    def insert_rows(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Rows of a checkpoint, while an empty replica is being filled."""
        self._pause()
        self.db.executemany(sql, rows)
        self.db.execute("COMMIT")
        self._begin()

    def finish_load(
        self,
        sequence: int,
        head: bytes,
        history: bytes,
        last: tuple[int, str, int],
        parts: dict[str, list[Part]],
    ) -> None:
        """All rows of a checkpoint are in: go on from there."""
        if history[-32:] != head or len(history) % 32:
            raise Corrupt(f"checkpoint {sequence} ends in another commit than it says")
        self._pause()
        first = sequence + 1 - len(history) // 32
        self.db.executemany(
            "INSERT INTO history VALUES(?,?,0,'',0,0)",
            ((first + n, history[32 * n : 32 * n + 32]) for n in range(len(history) // 32)),
        )
        self.db.execute("UPDATE history SET time=?, host=?, mount=? WHERE seq=?", (*last, sequence))
        self.parts.replace(parts)
        self.tree.recount()
        self.sequence, self.head = sequence, head
        self._put_state()
        self._put("checkpoint", sequence)
        self.db.execute("COMMIT")
        self._begin()

    @_whole
    def adopt_parts(self, parts: dict[str, list[Part]], sequence: int) -> None:
        """A checkpoint of this replica is in the store; what changed since is still marked."""
        self.seal()
        for table, made in parts.items():
            changed = {part.low for part in self.parts.of(table) if part.dirty}
            old = [part.low for part in self.parts.of(table)]
            if changed:
                _carry_marks(old, changed, made)
            if table in self.parts.blind:
                for part in made:
                    part.dirty = True
        self.parts.replace(parts)
        self._put("checkpoint", sequence)
        self._turn()

    @_whole
    def expect(self, sequence: int) -> None:
        """This replica is being built anew, and of no use before it has reached that commit.

        What this machine did since stands upon it; 0 when it has.
        """
        if sequence != self.expected:
            self.seal()
            self._put("expected", sequence)
            self._turn()

    @property
    def expected(self) -> int:
        """The commit below which this replica must not be used; see `expect`."""
        return int(self._get("expected", 0))

    @property
    def checkpoint(self) -> int:
        """The newest checkpoint that this replica knows the parts of; 0 for none."""
        return int(self._get("checkpoint", 0))

    @property
    def epoch(self) -> int:
        """The highest epoch whose key sealed a commit or checkpoint that this replica applied."""
        return int(self._get("epoch", 0))

    def raise_epoch(self, epoch: int) -> None:
        """A commit or checkpoint of *epoch* is about to be applied."""
        if epoch > self.epoch:
            self._put("epoch", epoch)

    def hash_tail(self, count: int) -> bytes:
        """The hashes of the last *count* commits, oldest first."""
        rows = self.db.execute(
            "SELECT hash FROM history WHERE seq>? AND seq<=? ORDER BY seq",
            (self.sequence - count, self.sequence),
        )
        return b"".join(row[0] for row in rows)

    def reader(self) -> apsw.Connection:
        """A second connection, for long queries in a thread; it sees every sealed batch."""
        return self._connect()

    def committed_reader(self) -> apsw.Connection:
        """A second connection that sees the tree as of `sequence`, without pending operations.

        What is pending is undone for the moment in which the reader takes its snapshot; the log of
        operations holds it should this process end right then.
        """
        self.seal()
        reader = self._connect()
        batches = list(self.pending)
        self._pause()
        news = News()
        kept = dict(self.pending)
        if batches:
            # As if they had never been: a crash before they are back finds them in the log.
            self._undo(batches, news)
            saved: list[Any] = self.db.execute("SELECT * FROM pending ORDER BY batch").fetchall()
            self.db.execute("DELETE FROM pending")
            self._put("batch", self.committed)
        self.db.execute("COMMIT")
        try:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM local").fetchone()
        finally:
            self.db.execute("BEGIN IMMEDIATE")
            if batches:
                for batch in batches:
                    changeset = next(bytes(row[2]) for row in saved if row[0] == batch)
                    self._apply(changeset, f"batch {batch} again")
                    self._note_changes(Changes.of(changeset), news, count=True)
                self.db.executemany("INSERT INTO pending VALUES(?,?,?,?)", saved)
                self.pending = kept
            self._put_state()
            self.db.execute("COMMIT")
            self._begin()
        return reader

    def _pause(self) -> None:
        """Close the session of an empty batch, leaving its transaction open."""
        assert self._session is not None
        assert not self._ops
        self._session.close()
        self._session = None


def remove_files(directory: Path) -> None:
    """Remove the replica that lies in *directory*."""
    for name in ("replica.db", "replica.db-wal", "replica.db-shm"):
        (directory / name).unlink(missing_ok=True)


def _carry_marks(old: list[Any], changed: set[Any], made: list[Part]) -> None:
    """Mark in *made* every part that overlaps a changed part of the division before."""
    lows = [part.low for part in made]
    for m, low in enumerate(old):
        if low not in changed:
            continue
        end = old[m + 1] if m + 1 < len(old) else None
        n = max(0, bisect_right(lows, low) - 1)
        while n < len(made) and (end is None or lows[n] < end):
            made[n].dirty = True
            n += 1


def _no_conflict(_reason: int, _change: apsw.TableChange) -> int:
    return apsw.SQLITE_CHANGESET_ABORT


def _date(now_ns: int) -> str:
    """The date in the name of a conflict copy: UTC, without characters that names do not like."""
    when = datetime.datetime.fromtimestamp(now_ns // 10**9, datetime.UTC)
    return when.strftime("%Y-%m-%d %H.%M.%S")
