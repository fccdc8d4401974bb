"""Which object of the newest checkpoint holds which rows, and what changed since.

A checkpoint cuts every replicated table into runs of rows in order of key ("parts"), each a sealed
object of its own.  A part whose rows did not change stands in the next checkpoint again by its
name, so a checkpoint costs what changed since the last one, not the size of the tree.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

import apsw
import msgspec
from msgspec import Struct

from megafs.tree.schema import REPLICATED

Key = tuple[Any, ...]

_NUMBER = {table.name: number for number, table in enumerate(REPLICATED)}


class Part(Struct):
    """A run of rows: from `low` (a key, or () for the start) to the next part's `low`.

    object: its name in the store.  digest, size: of that object's bytes.  rows: how many it holds.
    """

    low: Key
    object: str
    digest: bytes
    size: int
    rows: int
    dirty: bool = False


class Parts:
    """The parts of each table, in memory and in the local table `parts`."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self._parts: list[list[Part]] = []
        self._lows: list[list[Key]] = []
        #: Tables that changed while no parts of them were known: while the first checkpoint is
        #: written, for example.
        self.blind: set[str] = set()
        self.reload()

    def reload(self) -> None:
        """Read the local table again, after a rollback."""
        self._parts = [[] for _ in REPLICATED]
        for tbl, low, name, digest, size, rows, dirty in self._db.execute(
            "SELECT tbl, low, object, digest, size, rows, dirty FROM parts"
        ):
            self._parts[tbl].append(
                Part(tuple(msgspec.msgpack.decode(low)), name, digest, size, rows, bool(dirty))
            )
        for parts in self._parts:
            parts.sort(key=lambda part: part.low)
        self._lows = [[part.low for part in parts] for parts in self._parts]

    def of(self, table: str) -> list[Part]:
        """The parts of a table, in order; empty if no checkpoint is known."""
        return self._parts[_NUMBER[table]]

    def forget(self) -> None:
        """The next checkpoint writes every row anew.  Inside the caller's transaction."""
        self._db.execute("DELETE FROM parts")
        self._parts = [[] for _ in REPLICATED]
        self._lows = [[] for _ in REPLICATED]

    def mark(self, rows: Iterable[tuple[str, Key]]) -> None:
        """These rows changed: (table, key)."""
        for table, key in rows:
            number = _NUMBER[table]
            lows = self._lows[number]
            if not lows:
                self.blind.add(table)
                continue
            part = self._parts[number][max(0, bisect_right(lows, key) - 1)]
            if not part.dirty:
                part.dirty = True
                self._db.execute(
                    "UPDATE parts SET dirty=1 WHERE tbl=? AND low=?",
                    (number, msgspec.msgpack.encode(part.low)),
                )

    def replace(self, tables: dict[str, list[Part]]) -> None:
        """A checkpoint is in the store: these are its parts.  Inside the caller's transaction.

        Only rows of parts that are not as they were are written: most stand in it again.
        """
        for table, made in tables.items():
            number = _NUMBER[table]
            parts = sorted(made, key=lambda part: part.low)
            # By the keys of the rows: a part that was kept may have another `low` by now.
            old = {
                low: part.object
                for low, part in zip(self._lows[number], self._parts[number], strict=True)
            }
            new = {part.low for part in parts}
            self._db.executemany(
                "DELETE FROM parts WHERE tbl=? AND low=?",
                [(number, msgspec.msgpack.encode(low)) for low in old if low not in new],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO parts VALUES(?,?,?,?,?,?,?)",
                [
                    (
                        number,
                        msgspec.msgpack.encode(part.low),
                        part.object,
                        part.digest,
                        part.size,
                        part.rows,
                        part.dirty,
                    )
                    for part in parts
                    if part.dirty or old.get(part.low) != part.object
                ],
            )
            self._parts[number] = parts
            self._lows[number] = [part.low for part in parts]

    def adopt(self, tables: dict[str, list[Part]]) -> None:
        """`replace`, where rows may have changed while the checkpoint was written.

        What changed meanwhile is marked in the parts as they were; the new ones take that over.
        """
        for table, made in tables.items():
            known = self.of(table)
            changed = {part.low for part in known if part.dirty}
            if changed:
                _carry_marks([part.low for part in known], changed, made)
            if table in self.blind:
                for part in made:
                    part.dirty = True
        self.replace(tables)


def _carry_marks(old: list[Key], changed: set[Key], made: list[Part]) -> None:
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
