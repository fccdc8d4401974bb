"""Puts the commits of other mounts beneath this mount's pending batches.

The pending batches are undone, the commits are applied, and the batches are done again, one
operation after the other, by the rules of tree/merge.py.  All of it is one transaction.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from typing import Protocol

import apsw
from msgspec import Struct, field

from megafs import clock
from megafs.errors import Corrupt, Refused
from megafs.journal.batches import BatchOrigin, PendingBatches
from megafs.journal.checkpoint_parts import Parts
from megafs.journal.database import ReplicaDatabase
from megafs.journal.lost_changes import LostChanges
from megafs.tree import ops as tree_ops
from megafs.tree.changeset import Changes
from megafs.tree.merge import Merge, SeenInodes
from megafs.tree.ops import AddPack, Operation, SetContents
from megafs.tree.schema import BY_NAME, Ino
from megafs.tree.tree import Tree

log = logging.getLogger(__name__)


class RemoteChanges(Struct):
    """The changes that others' commits made, for the kernel's caches and for open files.

    inodes: attributes or contents changed.  names: (directory, name) that stand for something else.
    contents: inodes whose bytes changed.  notes: conflicts that were settled.
    """

    inodes: set[Ino] = field(default_factory=set)
    names: set[tuple[Ino, bytes]] = field(default_factory=set)
    contents: set[Ino] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


class OpenBatch(Protocol):
    """The part of the replica that a rebase uses; its open batch is empty meanwhile."""

    def number(self) -> int:
        """A number that nothing in the volume has ever had; may claim a range of them."""

    def take_claims(self) -> list[Operation]:
        """The claims that `number` made since the last time."""


class Rebase:
    """Undoes pending batches, applies commits, does the batches again; in the caller's transaction.

    aliases: directories of ours that became one with somebody else's of the same name.
    gone_packs: packs that others dropped as garbage, or that are staged here: (random id, epoch).
    """

    def __init__(
        self,
        database: ReplicaDatabase,
        tree: Tree,
        batches: PendingBatches,
        parts: Parts,
        open_batch: OpenBatch,
        mount: int,
        host: str,
    ) -> None:
        self._database = database
        self._db = database.db
        self._tree = tree
        self._batches = batches
        self._parts = parts
        self._open_batch = open_batch
        self._mount = mount
        self._host = host
        self.aliases: dict[int, int] = {}
        self.gone_packs: dict[int, tuple[bytes, int]] = {}

    def apply(self, changes: Changes, what: str, remote: RemoteChanges) -> None:
        """Apply a changeset that the tree does not know of yet; *what* it is, for messages."""
        if not changes.changeset:
            return
        try:
            apsw.Changeset.apply(
                changes.changeset, self._db, filter=BY_NAME.__contains__, conflict=_no_conflict
            )
        except apsw.FullError:
            raise  # the caller goes back to the last closed batch
        except apsw.Error as exc:
            raise Corrupt(f"{what} does not fit the tree: {exc}") from exc
        self._tree.charge(changes.used, changes.files)
        self.note(changes, remote)

    def lay(self, changes: Changes) -> int:
        """Apply a changeset as far as it fits: its rows take the place of what is there.

        Returns how many rows of contents do not: those that they change are not there.
        """
        left = 0

        def as_it_fits(reason: int, change: apsw.TableChange) -> int:
            nonlocal left
            if reason in (apsw.SQLITE_CHANGESET_DATA, apsw.SQLITE_CHANGESET_CONFLICT):
                return apsw.SQLITE_CHANGESET_REPLACE
            left += change.name == "extents" and change.new is not None
            return apsw.SQLITE_CHANGESET_OMIT

        if changes.changeset:
            apsw.Changeset.apply(
                changes.changeset, self._db, filter=BY_NAME.__contains__, conflict=as_it_fits
            )
        return left

    def note(self, changes: Changes, remote: RemoteChanges | None) -> None:
        """The tree has changed: parts to write anew, and what the kernel must forget."""
        for pack in changes.dropped_packs.values():
            self._tree.forget_pack(pack.pack)
            self.gone_packs[pack.pack] = (pack.name, pack.epoch)
        if remote is not None:
            remote.inodes |= changes.inodes
            remote.contents |= changes.contents
            remote.names |= changes.names
            for parent, name in changes.names:
                self._tree.forget_name(parent, name)
        self._parts.mark(changes.keys)

    def undo(self, batches: list[int], remote: RemoteChanges) -> None:
        """Take back what these batches changed; they stay pending."""
        for batch in reversed(batches):
            inverse = apsw.Changeset.invert(self._batches.changeset(batch))
            self.apply(Changes.of(inverse), f"undoing batch {batch}", remote)

    def redo(self, view: SeenInodes, remote: RemoteChanges) -> None:
        """Do every pending batch again, as far as what others did allows.

        view: what this mount had seen of the inodes that others changed.
        """
        for ino in [ino for ino in self.aliases if self._tree.find(ino) is not None]:
            del self.aliases[ino]  # somebody brought the directory back: it is itself again
        left = list(self._batches.infos)
        if not left:
            return
        merge = self._merge(view, self._is_pending)
        merge.aliases = dict(self.aliases)
        for batch in left:
            origin = self._batches.infos[batch].origin
            self._redo_batch(batch, self._batches.operations(batch), origin, merge, remote)
        self.aliases = merge.aliases
        self._log_conflicts(merge.notes, remote)

    def redo_logged(self, batches: list[tuple[int, list[Operation], BatchOrigin]]) -> None:
        """Do batches again that only the log of operations holds: (number, operations, whose)."""
        remote = RemoteChanges()
        merge = self._merge(
            SeenInodes(),
            lambda ino, version: any(_makes(ops, ino, version) for _, ops, _ in batches),
        )
        for batch, ops, origin in batches:
            self._redo_batch(batch, ops, origin, merge, remote)
        self.aliases.update(merge.aliases)
        self._log_conflicts(merge.notes, remote)

    def redo_lost(self, batch: int, lost: LostChanges, origin: BatchOrigin) -> None:
        """Do what stands for commits that are not in the journal any more, as a batch of ours."""
        remote = RemoteChanges()
        merge = self._merge(lost.view, lambda ino, version: False, lost.host)
        merge.aliases = dict(self.aliases)
        self._redo_batch(batch, lost.operations, origin, merge, remote)
        self._log_conflicts(merge.notes, remote)

    def _merge(
        self, view: SeenInodes, is_ours: Callable[[int, int], bool], host: str = ""
    ) -> Merge:
        """host: whose operations they are, if not this one's."""
        date = _date(clock.now_ns())
        number = self._open_batch.number
        return Merge(self._tree, view, number, host or self._host, date, self._mount, is_ours)

    def _is_pending(self, ino: int, version: int) -> bool:
        """Whether a pending operation makes that version of a file."""
        return any(
            _makes(self._batches.operations(batch), ino, version) for batch in self._batches.infos
        )

    def _redo_batch(
        self,
        batch: int,
        ops: list[Operation],
        origin: BatchOrigin,
        merge: Merge,
        remote: RemoteChanges,
    ) -> None:
        """Do one batch's operations again, inside the open transaction, as a batch of its own."""
        self._database.record()
        done: list[Operation] = []
        outcomes = self._batches.outcomes.pop(batch, {})
        for n, op in enumerate(ops):
            outcome = outcomes.get(n)
            if outcome is None:
                done.extend(merge.redo(op))
                continue
            try:
                if outcome.refused is not None:
                    raise outcome.refused  # of several operations of one call none is done
                merge.check_unchanged(op)
                op.apply(self._tree)
            except Refused as no:
                outcome.refused = no
                merge.refused(op)
            else:
                self._batches.outcomes.setdefault(batch, {})[len(done)] = outcome
                done.append(op)
        done.extend(self._open_batch.take_claims())  # for conflict copies
        packs = frozenset(piece.pack for op in done for piece in op.laid() if piece.pack)
        if self.gone_packs:
            for pack in packs & self.gone_packs.keys():
                if not self._tree.has_pack(pack):
                    # Ours names it again, so gc must not take it: heartbeats hold it until this
                    # is committed (docs/maintenance.md).
                    again = AddPack(pack, *self.gone_packs[pack])
                    again.apply(self._tree)
                    done.insert(0, again)
        changeset = self.finish(batch, tree_ops.encode(done), len(done), packs, origin)
        self.note(Changes.of(changeset), remote)

    def finish(
        self, batch: int, ops: bytes, count: int, packs: frozenset[int], origin: BatchOrigin
    ) -> bytes:
        """End the open batch: it is pending from here on.  Returns its changeset."""
        changeset = self._database.recorded()
        self._batches.put(batch, ops, count, changeset, packs, origin)
        return changeset

    def add_note(self, note: str) -> None:
        """Something that the user should know of, for `megafs status`."""
        self._log_conflicts([note], RemoteChanges())

    def _log_conflicts(self, notes: list[str], remote: RemoteChanges) -> None:
        now = clock.now_ns()
        for note in notes:
            log.warning("conflict settled: %s", note)
            self._db.execute("INSERT INTO conflicts(time, text) VALUES(?,?)", (now, note))
        remote.notes.extend(notes)


def _makes(operations: list[Operation], ino: int, version: int) -> bool:
    return any(
        isinstance(op, SetContents) and op.ino == ino and op.version == version for op in operations
    )


def _no_conflict(_reason: int, _change: apsw.TableChange) -> int:
    return apsw.SQLITE_CHANGESET_ABORT


def _date(now_ns: int) -> str:
    """The date in the name of a conflict copy: UTC, without characters that names do not like."""
    when = datetime.datetime.fromtimestamp(now_ns // 10**9, datetime.UTC)
    return when.strftime("%Y-%m-%d %H.%M.%S")
