"""The encrypted SQLite file of a replica: its connection, its transactions, its write-ahead log.

A transaction and a session are open all the time: they hold the batch that is being collected.
What belongs to no batch (a commit of another mount, the parts of a checkpoint) is done
`between_batches`.

SQLite runs in WAL mode with synchronous=NORMAL: a power cut may lose the last transactions, never
the consistency.  That is enough, for what they held is in the journal or in the log of operations.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from megafs.crypto.volume_keys import Keyring
from megafs.errors import Corrupt, Fault, Full
from megafs.tree.schema import INDEXES, LOCAL, REPLICATED, SCHEMA_VERSION

log = logging.getLogger(__name__)

# Pages of SQLite's log (WAL) after which they are copied into the database: 16 MiB.  A thread does
# that, for it takes 40 to 55 CPU-ms and up to 0.2 s (`wal_copier`).  With the most, the next COMMIT
# does it, whatever it takes: that is while no task runs, when a new machine reads the tree.
_WAL_PAGES = 4000
_WAL_MOST = 16000


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


class ReplicaDatabase:
    """The file `replica.db` of one mount.

    fresh: it was made just now.
    """

    def __init__(self, directory: Path, keyring: Keyring, mount: int) -> None:
        self.path = directory / "replica.db"
        self._directory = directory
        self._keyring = keyring
        self._session: apsw.Session | None = None
        self.db = self.connect()
        self._wal_due = _WAL_PAGES
        self._wal = 0
        self._wal_copied = False
        me = weakref.ref(self)  # see Tree: a connection must not hold who holds it

        def grew(db: apsw.Connection, name: str, pages: int) -> int:
            database = me()
            return apsw.SQLITE_OK if database is None else database._wal_grew(db, name, pages)

        self.db.set_wal_hook(grew)
        try:
            self.fresh = not self._has_tables()
            if self.fresh:
                self._make_tables(mount)
            elif self.get("mount") != mount:
                raise Corrupt(f"{self.path}: made by another mount")
        except apsw.Error as exc:
            raise Corrupt(f"{self.path}: {exc}") from exc

    # ---- opening and closing ----------------------------------------------------------------

    def connect(self) -> _Connection:
        """One more connection, which sees every closed batch."""
        old = os.umask(0o077)
        try:
            db = _Connection(str(self.path))
            # "raw:": 32 random bytes need no stretching, which took 27 ms at every opening.
            key = self._keyring.subkey("replica", min(self._keyring.epochs))
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
            room = os.statvfs(self._directory)
            # SQLite says "disk I/O error" where its shared memory finds no room.
            if isinstance(exc, apsw.FullError) or room.f_bavail * room.f_frsize < 1 << 20:
                raise Full(
                    f"the disk of {self._directory} is full: make room there, or choose another"
                    " directory with --state-dir"
                ) from exc
            raise Corrupt(f"{self.path}: {exc}") from exc
        finally:
            os.umask(old)
        return db

    def _has_tables(self) -> bool:
        try:
            row = self.db.execute("SELECT 1 FROM sqlite_master WHERE name='local'").fetchone()
            if row is None:
                return False
            version = self.get("schema")
        except apsw.Error as exc:
            raise Corrupt(f"{self.path}: {exc}") from exc
        if version != SCHEMA_VERSION:
            raise Corrupt(f"{self.path}: tables of version {version}")
        return True

    def _make_tables(self, mount: int) -> None:
        with self.db:
            for table in REPLICATED:
                self.db.execute(table.sql)
            for sql in INDEXES + LOCAL:
                self.db.execute(sql)
            self.put("schema", SCHEMA_VERSION)
            self.put("mount", mount)

    def is_sound(self) -> bool:
        """Whether the file can be read to its end and its pages fit together; reads all of it."""
        try:
            found = self.db.execute("PRAGMA quick_check(1)").fetchone()
        except (Corrupt, apsw.Error):
            return False
        return found == ("ok",)

    def checker(self) -> Callable[[], bool]:
        """A function for a thread: as `is_sound`, with a connection of its own."""
        connection = self.connect()

        def check() -> bool:
            try:
                return connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
            except (Corrupt, apsw.Error):
                return False
            finally:
                connection.close()

        return check

    def close(self) -> None:
        """Close the file; remove it if it is damaged."""
        self.db.close()
        if self.db.damaged:
            remove_files(self._directory)  # the log of operations holds what is not committed

    def remove(self) -> None:
        """Close the file, whatever is open, and remove it."""
        self._session = None
        self.db.close(True)
        remove_files(self._directory)

    # ---- values of this machine -------------------------------------------------------------

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the table `local`."""
        row = self.db.execute("SELECT value FROM local WHERE key=?", (key,)).fetchone()
        if row is None:
            return default
        (value,) = row
        return value

    def put(self, key: str, value: Any) -> None:
        """Set a value of the table `local`, in the open transaction."""
        self.db.execute("INSERT OR REPLACE INTO local VALUES(?,?)", (key, value))

    # ---- transactions -----------------------------------------------------------------------

    def begin(self) -> None:
        """Open the transaction of the next batch."""
        self.db.execute("BEGIN IMMEDIATE")
        self.record()

    def record(self) -> None:
        """From here on, until `recorded`, the changes of the tree belong to one batch."""
        session = apsw.Session(self.db, "main")
        for table in REPLICATED:
            session.attach(table.name)
        self._session = session

    @property
    def is_recording(self) -> bool:
        """Whether a batch is open; not if opening it failed."""
        return self._session is not None

    @property
    def recorded_bytes(self) -> int:
        """Memory that the open batch takes."""
        return 0 if self._session is None else self._session.memory_used

    def recorded(self) -> bytes:
        """End the batch; return its changeset."""
        assert self._session is not None
        changeset = self._session.changeset()
        self.forget_batch()
        return changeset

    def forget_batch(self) -> None:
        """End the batch without its changeset; the transaction stays open."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def commit(self) -> None:
        """Commit the batch that was `recorded`, and open the next."""
        self.db.execute("COMMIT")
        self.db.pragma("cache_spill", 1)  # see `roll_back`
        self.begin()

    @contextmanager
    def between_batches(self) -> Iterator[None]:
        """Do the block in a transaction of its own, outside every batch; the open one is empty.

        If the block fails, nothing of it was done.  Then, too, the next batch is open.
        """
        self.forget_batch()
        self.db.execute("COMMIT")
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.forget_batch()
            self.db.execute("COMMIT")
        except BaseException:
            self.forget_batch()
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            self.begin()
            raise
        self.begin()

    def roll_back(self) -> None:
        """Give up the open transaction, and keep the next one in memory until it is committed.

        For a full disk: the operations of the batch are done again, which then takes memory only.
        """
        self.forget_batch()
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")
        self.db.pragma("cache_spill", 0)

    # ---- the write-ahead log ----------------------------------------------------------------

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

    def wal_copier(self) -> Callable[[], None] | None:
        """A function to be run in a thread, beside everything else; None if there is no need.

        It copies SQLite's log into the database, so that a COMMIT need not.
        """
        if self._wal < self._wal_due:
            return None
        self._wal_due = self._wal + _WAL_PAGES  # a reader may keep it from getting anywhere
        connection = self.connect()

        def copy() -> None:
            try:
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                self._wal_copied = True
            except apsw.Error as exc:
                log.debug("%s-wal grows: %s", self.path, exc)
            finally:
                connection.close()

        return copy


def remove_files(directory: Path) -> None:
    """Remove the replica that lies in *directory*."""
    for name in ("replica.db", "replica.db-wal", "replica.db-shm"):
        (directory / name).unlink(missing_ok=True)
