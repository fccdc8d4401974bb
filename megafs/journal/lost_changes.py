"""The operations that stand for commits which are no longer part of the journal.

A commit carries the rows that it changed, not the operations.  So its rows are laid over the tree
that it was made on, as far as that is known here, and what the two trees differ in is put into
operations.  These are then done again by the rules of tree/merge.py, as a mount does its own when
it has lost a race: what fits is done, the rest becomes conflict copies.  They have the numbers that
they had (inodes, versions, cookies), so what another machine brings back as well is there once.

Removals are left out: nothing that either side has is taken away.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator

from msgspec import Struct

from megafs.journal.commit import VerifiedCommit
from megafs.tree.changeset import Changes, PackChange, row_changes
from megafs.tree.inode import Inode
from megafs.tree.merge import SeenInode, SeenInodes
from megafs.tree.ops import (
    AddPack,
    ClaimRange,
    Create,
    Link,
    Operation,
    Rename,
    SetAttributes,
    SetContents,
    SetXattr,
)
from megafs.tree.schema import Ino, RangeRow
from megafs.tree.tree import Extent, Tree


class LostChanges(Struct, frozen=True):
    """What commits changed that are not in the journal any more.

    operations: that stand for it.  view: the tree as they left it.  host: who made the last.
    unreadable: pieces of files whose packs, or whose other columns, only a commit had that is not
    there any more.
    """

    operations: list[Operation]
    view: SeenInodes
    host: str
    unreadable: int


class TreeLook(Struct):
    """What some inodes are in a tree: rows, cookies of names, extents of inodes without a row."""

    seen: SeenInodes
    cookies: dict[tuple[int, bytes], int]
    strays: dict[int, list[Extent]]
    packs: set[int]

    @classmethod
    def of(cls, tree: Tree, touched: set[Ino]) -> TreeLook:
        """Look at *touched* now, and at the directories above."""
        made = cls(SeenInodes.of(tree, sorted(touched)), {}, {}, set())
        for inode in made.seen.seen.values():
            for parent, name in inode.names:
                made.cookies[parent, name] = _cookie(tree, parent, name)
            made.packs |= {x.pack for x in inode.extents if x.pack and tree.has_pack(x.pack)}
        for ino in touched - made.seen.seen.keys():
            extents = tree.all_extents(ino)
            if extents:
                made.strays[ino] = extents
                made.packs |= {x.pack for x in extents if x.pack and tree.has_pack(x.pack)}
        return made


class Difference:
    """Puts what differs between two looks at a tree into operations.

    commits: that make the difference.  left: pieces of files in them that fit to nothing.
    """

    def __init__(
        self, before: TreeLook, after: TreeLook, commits: list[VerifiedCommit], left: int
    ) -> None:
        self._before = before
        self._after = after
        self._commits = commits
        self._unreadable = left
        self._made: list[Operation] = []

    def changes(self) -> LostChanges:
        """The operations, in an order in which they can be done."""
        self._made = list(self._packs_and_ranges())
        old, new = self._before.seen.seen, self._after.seen.seen
        added = {ino: inode for ino, inode in new.items() if ino not in old and inode.names}
        for ino in _from_above(added):
            self._create(ino, added[ino])
        for ino, inode in new.items():
            if ino in old:
                self._change(ino, old[ino], inode)
        for ino, extents in self._after.strays.items():
            self._stray(ino, extents)
        host = self._commits[-1].commit.host
        return LostChanges(self._made, self._after.seen, host, self._unreadable)

    def _packs_and_ranges(self) -> Iterator[Operation]:
        for verified in self._commits:
            for change in row_changes(verified.changes.changeset):
                if change.old is not None or change.new is None:
                    continue
                if isinstance(change, PackChange):
                    yield AddPack(change.new.pack, change.new.name, change.new.epoch)
                elif change.table == "ranges":
                    row = RangeRow(*change.new)
                    yield ClaimRange(row.prefix, row.mount)

    def _create(self, ino: int, new: SeenInode) -> None:
        inode = new.inode
        (parent, name), *others = new.names
        self._made.append(
            Create(
                parent,
                name,
                ino,
                self._after.cookies[parent, name],
                inode.mode,
                inode.uid,
                inode.gid,
                inode.rdev,
                inode.ctime_ns,
                0,
                new.target,
                tuple(new.xattrs),
            )
        )
        if inode.is_file and (inode.size or new.extents):
            self._lay(ino, 0, new, None)
        for above, other in others:
            cookie = self._after.cookies[above, other]
            self._made.append(Link(ino, above, other, cookie, inode.ctime_ns))

    def _change(self, ino: int, old: SeenInode, new: SeenInode) -> None:
        inode = new.inode
        if inode.is_file and inode.version != old.inode.version:
            self._lay(ino, old.inode.version, new, 0)
        fields = dict(_attributes(inode) - _attributes(old.inode))
        if fields:
            self._made.append(SetAttributes(ino, {**fields, "ctime": inode.ctime_ns}))
        for name, value in set(new.xattrs) - set(old.xattrs):
            self._made.append(SetXattr(ino, name, value, 0, inode.ctime_ns))
        gone = [place for place in old.names if place not in new.names]
        for above, other in [place for place in new.names if place not in old.names]:
            cookie = self._after.cookies[above, other]
            if gone:
                parent, name = gone.pop()
                self._made.append(
                    Rename(parent, name, above, other, 0, ino, 0, 0, cookie, 0, inode.ctime_ns)
                )
            elif not inode.is_dir:
                self._made.append(Link(ino, above, other, cookie, inode.ctime_ns))

    def _stray(self, ino: int, extents: list[Extent]) -> None:
        """A file that another lost commit made: what is known of its bytes goes to lost+found."""
        last = self._commits[-1].commit.time_ns
        self._made.append(Create(0, b"file-%d" % ino, ino, 0, stat.S_IFREG | 0o600, 0, 0, 0, last))
        pieces = self._readable(extents)
        size = max(extent.end for extent in extents)
        # Its version is not known: its number, which nothing else has.
        self._made.append(SetContents(ino, 0, ino, None, size, last, last, pieces))

    def _lay(self, ino: int, base: int, new: SeenInode, cut: int | None) -> None:
        inode = new.inode
        pieces = self._readable(new.extents)
        self._made.append(
            SetContents(
                ino, base, inode.version, cut, inode.size, inode.mtime_ns, inode.ctime_ns, pieces
            )
        )

    def _readable(self, extents: list[Extent]) -> tuple[Extent, ...]:
        good = tuple(x for x in extents if not x.pack or x.pack in self._after.packs)
        self._unreadable += len(extents) - len(good)
        return good


def touched_by(commits: list[VerifiedCommit]) -> set[Ino]:
    """The inodes that commits change in any way."""
    found: set[Ino] = set()
    for verified in commits:
        changes: Changes = verified.changes
        found |= changes.touched
    return found


def _attributes(inode: Inode) -> set[tuple[str, int]]:
    return {("mode", inode.mode), ("uid", inode.uid), ("gid", inode.gid)}


def _from_above(added: dict[int, SeenInode]) -> Iterator[int]:
    """New inodes, each after the directory that it lies in."""
    done: set[int] = set()

    def visit(ino: int) -> Iterator[int]:
        if ino in done:
            return
        done.add(ino)
        for parent, _ in added[ino].names:
            if parent in added:
                yield from visit(parent)
        yield ino

    for ino in added:
        yield from visit(ino)


def _cookie(tree: Tree, parent: int, name: bytes) -> int:
    return int(tree.one("SELECT cookie FROM dirents WHERE parent=? AND name=?", (parent, name)))
