"""The journal read from its end: each commit with the names as they are right after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import trio
from msgspec import Struct, field

from megafs.concurrency import offload
from megafs.errors import Missing
from megafs.history.earlier_trees import History
from megafs.history.scratch import scratch
from megafs.journal.commit import Commit, unpack_changeset
from megafs.progress import OnProgress, Progress
from megafs.tree.changeset import (
    DirentChange,
    InodeChange,
    XattrChange,
    is_given,
    row_changes,
)
from megafs.tree.rewind import NameChange, Rewind
from megafs.tree.schema import DirentRow, InodeRow
from megafs.tree.tree import Tree

T = TypeVar("T")

#: Commits read ahead while those before are looked at.
_WINDOW: Final = 64
#: Changesets larger than this (packed) are gone through in a thread.
_LARGE: Final = 64 << 10
#: So are commits that change more inodes than this.
_MANY: Final = 50


class Touched(Struct):
    """The changes of one commit to one inode, in rows.

    old, new: its row before and after; None if there was none (see `RowChange`).
    gone, come: names that stood for it before and after, each (directory, name).
    xattrs: (name, whether it was there before, whether it is afterwards).
    """

    is_changed: bool = False
    old: InodeRow | None = None
    new: InodeRow | None = None
    gone: list[tuple[int, bytes]] = field(default_factory=list)
    come: list[tuple[int, bytes]] = field(default_factory=list)
    xattrs: list[tuple[bytes, bool, bool]] = field(default_factory=list)


def rows_of(commit: Commit) -> tuple[dict[int, Touched], list[NameChange]]:
    """The inodes and the names that a commit changed."""
    inodes: dict[int, Touched] = {}
    names: list[NameChange] = []

    def of(ino: int) -> Touched:
        found = inodes.get(ino)
        if found is None:
            found = inodes[ino] = Touched()
        return found

    for change in row_changes(unpack_changeset(commit)):
        match change:
            case InodeChange():
                touched = of(change.row.ino)
                touched.is_changed, touched.old, touched.new = True, change.old, change.new
            case XattrChange():
                entry = (change.row.name, change.old is not None, change.new is not None)
                of(change.row.ino).xattrs.append(entry)
            case DirentChange():
                before = _inode_of(change.old)
                after = _inode_of(change.new)
                if before == after:  # only the cookie changed
                    continue
                parent, name = change.row.parent, change.row.name
                names.append((parent, name, before, after))
                if before is not None:
                    of(before).gone.append((parent, name))
                if after is not None:
                    of(after).come.append((parent, name))
    return inodes, names


def _inode_of(entry: DirentRow | None) -> int | None:
    """The inode that a directory entry stands for, if the change says so."""
    return entry.ino if entry is not None and is_given(entry.ino) else None


class Step(Struct):
    """One commit, with the names as they are right after it."""

    sequence: int
    commit: Commit
    inodes: dict[int, Touched]
    names: list[NameChange]


class Backwards:
    """The commits of a volume, newest first; stops where the store has no more.

    `rewind` holds the names as they are right after the commit that `next` returned last; once
    `back` was called for that commit, as they were right before it.
    """

    def __init__(self, history: History, on_progress: OnProgress, since: int = 1) -> None:
        replica = history.replica
        self._history = history
        self._on_progress = on_progress
        self._since = max(1, since)
        self._reader = replica.committed_reader()
        self._head: int = replica.sequence
        self._last: int = self._head
        self._waiting: list[tuple[int, Commit]] = []
        self._db = scratch(history.directory)
        self.rewind = Rewind(Tree(self._reader, history.chunk_size), self._db)
        self._db.execute("BEGIN")
        #: The journal ended before `since`.
        self.cut_short = False

    def close(self) -> None:
        self._reader.close()
        self._db.close()

    async def next(self) -> Step | None:
        """The next commit, or None after the last; take the one before `back` first."""
        if not self._waiting:
            if self._last < self._since or self.cut_short:
                return None
            first = max(self._since, self._last - _WINDOW + 1)
            try:
                commits = await self._history.commits(first, self._last)
            except Missing:
                first, commits = await self._rest(first, self._last)
            self._waiting = list(enumerate((commit for _, commit in commits), first))
            self._last = first - 1
            self._on_progress(
                Progress(
                    self._head - self._last, self._head - self._since + 1, "reading the journal"
                )
            )
            if not self._waiting:
                return None
        sequence, commit = self._waiting.pop()
        if len(commit.changeset) > _LARGE:
            inodes, names = await offload(rows_of, commit)
        else:
            inodes, names = rows_of(commit)
        return Step(sequence, commit, inodes, names)

    async def _rest(self, first: int, last: int) -> tuple[int, list[tuple[bytes, Commit]]]:
        """The newest of these commits, down to the first one that is missing."""
        self.cut_short = True
        found: list[tuple[bytes, Commit]] = []
        for sequence in range(last, first - 1, -1):
            try:
                found.insert(0, await self._history.commit(sequence))
            except Missing:
                return sequence + 1, found
        return first, found

    async def work(self, step: Step, look: Callable[[Step], list[T]]) -> list[T]:
        """Return the result of *look* for a commit; for a large one, look in a thread.

        The connections below are used by nobody else meanwhile.
        """
        if len(step.inodes) > _MANY:
            return await offload(look, step)
        await trio.lowlevel.checkpoint()
        return look(step)

    def back(self, step: Step) -> None:
        """Take the names and rows of a commit back."""
        self.rewind.undo(step.names)
        for ino, touched in step.inodes.items():
            if touched.is_changed:
                self.rewind.undo_row(ino, touched.old)
