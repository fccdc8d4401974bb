"""The commits that a replica knows of: the table `history`, which holds the hash chain."""

from __future__ import annotations

from typing import NamedTuple

import apsw

from megafs.journal.commit import Commit
from megafs.tree.schema import SequenceNumber

_HASH = 32


class LastCommit(NamedTuple):
    """Writer and time (ns) of the newest commit; zeros if there is none."""

    time_ns: int
    host: str
    mount: int


class KnownCommits:
    """Reads and writes the table; inside the caller's transaction."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db

    def add(self, sequence: int, digest: bytes, commit: Commit) -> None:
        """A commit was applied.  digest: of its object."""
        self._db.execute(
            "INSERT OR REPLACE INTO history VALUES(?,?,?,?,?,?)",
            (sequence, digest, commit.mount, commit.host, commit.time_ns, commit.operations),
        )

    def load(self, sequence: int, hashes: bytes, last: LastCommit) -> None:
        """A checkpoint at *sequence* was read: the hashes that it holds, oldest first."""
        first = sequence + 1 - len(hashes) // _HASH
        self._db.executemany(
            "INSERT INTO history VALUES(?,?,0,'',0,0)",
            ((first + n, hashes[_HASH * n : _HASH * (n + 1)]) for n in range(len(hashes) // _HASH)),
        )
        self._db.execute(
            "UPDATE history SET time=?, host=?, mount=? WHERE seq=?", (*last, sequence)
        )

    def hash_at(self, sequence: int) -> bytes | None:
        """The hash of a commit, or None if it is not known."""
        row = self._db.execute("SELECT hash FROM history WHERE seq=?", (sequence,)).fetchone()
        if row is None:
            return None
        (found,) = row
        assert isinstance(found, bytes)
        return found

    def last(self) -> LastCommit:
        """The newest commit."""
        row = self._db.execute(
            "SELECT time, host, mount FROM history ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        return LastCommit(0, "", 0) if row is None else LastCommit(*row)

    def hashes(self, after: SequenceNumber, upto: SequenceNumber) -> bytes:
        """The hashes of the commits with *after* < number <= *upto*, oldest first."""
        rows = self._db.execute(
            "SELECT hash FROM history WHERE seq>? AND seq<=? ORDER BY seq", (after, upto)
        )
        return b"".join(found for (found,) in rows)
