"""The rules for operations that no longer fit, because another mount has changed the tree.

A mount that loses a commit race undoes its pending operations, applies the winner's rows, and does
its own operations again, one by one, through `Merge.redo`.  Most fit as they are.  For the rest the
rules are (docs/semantics.md gives an example of each):

    same name made twice          the later file becomes `name (conflict from HOST DATE).ext`;
                                  two directories become one
    contents changed on both      the later contents become a conflict copy beside the file
    removed here, changed there   the file stays
    changed here, removed there   the file comes back, with its directory if need be
    renamed on both               the first rename stands; nothing is copied
    moved over something new      the later file goes to a conflict name beside it
    a directory into itself       the later rename becomes a conflict name in the old place
    directory removed there       it comes back if something was put into it here
    directory filled there        it stays
    a conflict in a git directory goes to its `megafs-conflicts`, under its path with "__" for "/"
    attributes, xattrs            the later value stands; those of a removed file are dropped

No rule loses a byte that was written: it is reachable afterwards in place, in a conflict copy, or
in `lost+found`.  Every rule that changed anything adds a line to `notes`.

Pure: numbers, the host's name and the date come from the caller.
"""

from __future__ import annotations

import errno as e
import stat
from collections.abc import Callable, Iterable

import msgspec
from msgspec import Struct, field

from megafs.errors import Refused
from megafs.tree.inode import NAME_MAX, ROOT, Inode
from megafs.tree.mount_number import is_kin
from megafs.tree.ops import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    AddPack,
    ClaimRange,
    Create,
    DropLink,
    DropPacks,
    KeepLink,
    Link,
    MarkGarbage,
    Mend,
    Operation,
    Reap,
    Relocate,
    RemoveXattr,
    Rename,
    Repack,
    Rmdir,
    SetAttributes,
    SetContents,
    SetXattr,
    Snapshot,
    Unlink,
)
from megafs.tree.tree import Extent, Tree

LOST_FOUND = b"lost+found"
#: In a git directory: what conflicts there go to.  git reads every file below refs and objects, and
#: took "main (conflict ...)" for a branch; of directories at the top it reads those that it made.
GIT_CONFLICTS = b"megafs-conflicts"
#: The names by which git itself knows its directory, bare or not.
_OF_GIT = (b"HEAD", b"objects", b"refs")


class SeenInode(Struct):
    """One inode as this mount saw it before the others' commits were applied."""

    inode: Inode
    target: bytes | None
    names: list[tuple[int, bytes]]
    xattrs: list[tuple[bytes, bytes]]
    extents: list[Extent]


class SeenInodes(Struct):
    """The inodes that others changed, as this mount saw them, with the directories above.

    complete: an inode that others changed and that is missing here had been removed by this mount.
    """

    seen: dict[int, SeenInode] = field(default_factory=dict)
    complete: bool = False

    @classmethod
    def of(cls, tree: Tree, inos: Iterable[int]) -> SeenInodes:
        """Look at these inodes now; those that do not exist are left out."""
        view = cls(complete=True)
        for ino in inos:
            view.add(tree, ino)
        return view

    def add(self, tree: Tree, ino: int) -> None:
        while ino not in self.seen:
            inode = tree.find(ino)
            if inode is None:
                return
            names = tree.names_of(ino)
            self.seen[ino] = SeenInode(
                inode,
                tree.target(ino) if inode.is_symlink else None,
                names,
                tree.xattrs(ino),
                tree.all_extents(ino) if inode.is_file else [],
            )
            for parent, _ in names[1:]:
                self.add(tree, parent)
            if not names:
                return
            ino = names[0][0]


class Merge:
    """Does one mount's operations again on a tree that others have changed.

    view: what the mount saw of the inodes that the others changed.
    number: gives a number never used before.  host, date: for the names of conflict copies.
    mount: whose operations they are.
    is_ours: whether an operation that is still to be done made that version of a file: then it is
        in the journal already, brought there by a process with a copy of it.

    aliases: directories of ours that became one with somebody else's of the same name.
    notes: one line for every rule that changed something.
    """

    def __init__(
        self,
        tree: Tree,
        view: SeenInodes,
        number: Callable[[], int],
        host: str,
        date: str,
        mount: int = 0,
        is_ours: Callable[[int, int], bool] = lambda ino, version: False,
    ) -> None:
        self.tree = tree
        self.view = view
        self.number = number
        self.mount = mount
        self.is_ours = is_ours
        self.label = f"conflict from {_plain(host)} {date}".encode()
        self.aliases: dict[int, int] = {}
        self.notes: list[str] = []
        #: Files whose contents written here are kept already: in a conflict copy, or brought back.
        self._kept: set[int] = set()
        self._revived: set[int] = set()
        #: Files whose operations come from the log, without a view of what this mount saw: their
        #: contents go to a conflict copy.  (Inode of the copy, our version that it holds.)
        self._copies: dict[int, tuple[int, int]] = {}
        self._refused: dict[int, Create] = {}
        self._done: list[Operation] = []

    def redo(self, op: Operation) -> list[Operation]:
        """Apply *op*, or what stands for it now; return the operations that were applied."""
        self._done = []
        if isinstance(op, Rmdir) and op.ino in self.aliases:
            return []  # ours was never made: the one that is there is somebody else's
        op = self._translated(op)
        if self._names_already(op):
            return []
        match op:
            case Create():
                self._create(op)
            case Link():
                self._link(op)
            case Unlink():
                self._unlink(op)
            case Rmdir():
                self._rmdir(op)
            case Rename():
                self._rename(op)
            case SetContents():
                self._contents(op)
            case SetXattr():
                self._try(msgspec.structs.replace(op, flags=0))
            case Snapshot():
                self._snapshot(op)
            case SetAttributes() | RemoveXattr() | Reap():
                self._try(op)
            case KeepLink() | DropLink() | MarkGarbage() | DropPacks():
                self._try(op)  # each looks itself at what is still as it was
            case Relocate() | Repack() | Mend():
                self._try(op)  # likewise
            case AddPack() | ClaimRange():
                self._do(op)
            case _:
                raise TypeError(f"no rule for {type(op).__name__}")
        return self._done

    def _names_already(self, op: Operation) -> bool:
        """Whether the name that *op* gives is there: another copy of this state has brought it.

        It may be another name there, that of a conflict; the cookie tells.
        """
        match op:
            case Create() | Link():
                return self.tree.has_entry(op.parent, op.cookie, op.ino)
            case Rename():
                return self.tree.has_entry(op.new_parent, op.cookie, op.ino)
            case _:
                return False

    def check_unchanged(self, op: Operation) -> None:
        """Raise ESTALE if *op* would remove contents that its caller has not seen."""
        match op:
            case Unlink(ino=ino, version=version):
                pass
            case Rename(replaced=ino, replaced_version=version) if ino:
                pass
            case _:
                return
        inode = self.tree.find(ino)
        if inode is not None and inode.is_file and inode.version != version:
            raise Refused(e.ESTALE)

    def refused(self, op: Operation) -> None:
        """*op* was refused to its caller (strict consistency) and will not be done again.

        A file was visible on this machine until then: should somebody have written into it, it is
        made after all, by the conflict rules.
        """
        if isinstance(op, Create):
            self._refused[op.ino] = op

    # ---- the rules --------------------------------------------------------------------------

    def _create(self, op: Create) -> None:
        parent = self._directory(op.parent)
        there = self.tree.child(parent, op.name)
        if there == op.ino:
            return  # brought back already, for an operation that needed it
        if self.tree.find(op.ino) is not None:
            return  # brought back under another name
        if there is None:
            self._do(msgspec.structs.replace(op, parent=parent))
            return
        other = self.tree.inode(there)
        if stat.S_ISDIR(op.mode) and other.is_dir:
            self.aliases[op.ino] = there
            return
        place = self._conflict_place(parent, op.name)
        self._note(
            f"{self._shown(parent, op.name)} was made twice:"
            f" ours is now {self._from(parent, place)}"
        )
        self._do(msgspec.structs.replace(op, parent=place[0], name=place[1]))

    def _link(self, op: Link) -> None:
        parent = self._directory(op.parent)
        there = self.tree.child(parent, op.name)
        if there == op.ino:
            return
        name = op.name
        if there is not None:
            place = self._conflict_place(parent, name)
            self._note(
                f"{self._shown(parent, name)} was made twice:"
                f" ours is now {self._from(parent, place)}"
            )
            parent, name = place
        inode = self._present(op.ino)
        if inode is None or inode.nlink == 0:
            if inode is None and op.ino in self.view.seen:
                self._revive_file(op.ino, parent, name, op.time_ns)
            return
        self._try(msgspec.structs.replace(op, parent=parent, name=name))

    def _unlink(self, op: Unlink) -> None:
        if self.tree.find(op.parent) is None or self.tree.child(op.parent, op.name) != op.ino:
            return
        inode = self.tree.inode(op.ino)
        if inode.version != op.version and inode.nlink == 1 and op.ino not in self._revived:
            self._note(
                f"{self._shown(op.parent, op.name)} was removed here and changed elsewhere:"
                " it stays"
            )
            return
        self._try(op)
        self._perhaps_gone(op.ino)

    def _perhaps_gone(self, ino: int) -> None:
        """A name was removed.  If it was the last one of a revived file, forget the revival,
        so that a later operation that writes to it revives it again.
        """
        if ino in self._revived and self.tree.find(ino) is None:
            self._revived.discard(ino)
            self._kept.discard(ino)

    def _rmdir(self, op: Rmdir) -> None:
        try:
            self._do(op)
        except Refused as no:
            if no.errno == e.ENOTEMPTY:
                self._note(
                    f"{self._shown(op.parent, op.name)} was removed here and filled elsewhere:"
                    " it stays"
                )

    def _rename(self, op: Rename) -> None:
        tree = self.tree
        if op.flags & RENAME_EXCHANGE:
            try:
                self._do(op)
            except Refused:
                self._note(
                    f"{self._shown(op.parent, op.name)} and {_show(op.new_name)} did not change"
                    " places: one of them was changed elsewhere"
                )
            return
        new_parent = self._directory(op.new_parent)
        if tree.child(new_parent, op.new_name) == op.ino:
            return
        if tree.find(op.parent) is None or tree.child(op.parent, op.name) != op.ino:
            self._rename_moved(op, new_parent)
            return
        there = tree.child(new_parent, op.new_name) or 0
        fits = there == 0 or there == op.replaced
        if fits and there:
            other = tree.inode(there)
            fits = other.is_dir or other.version == op.replaced_version or there in self._revived
        moved = msgspec.structs.replace(op, new_parent=new_parent, replaced=there)
        if tree.inode(op.ino).is_dir and tree.is_below(new_parent, op.ino):
            name = self._conflict_name(op.parent, op.new_name)
            self._note(
                f"{self._shown(op.parent, op.name)} could not move below itself after a rename"
                f" elsewhere: it is now {_show(name)}"
            )
            self._do(
                msgspec.structs.replace(
                    op, new_parent=op.parent, new_name=name, replaced=0, flags=0
                )
            )
            return
        if fits:
            try:
                self._do(moved)
                self._perhaps_gone(there)
                return
            except Refused:
                pass  # a directory there was filled meanwhile
        place = self._conflict_place(new_parent, op.new_name)
        if tree.inode(op.ino).is_dir and tree.is_below(place[0], op.ino):
            place = new_parent, self._conflict_name(new_parent, op.new_name)
        self._note(
            f"{self._shown(new_parent, op.new_name)} was made or changed elsewhere: ours, moved"
            f" there, is now {self._from(new_parent, place)}"
        )
        self._do(
            msgspec.structs.replace(
                moved, new_parent=place[0], new_name=place[1], replaced=0, flags=RENAME_NOREPLACE
            )
        )

    def _rename_moved(self, op: Rename, new_parent: int) -> None:
        """Our rename no longer fits: the old name does not stand for that inode any more."""
        if self._present(op.ino) is not None:
            self._note(
                f"{_show(op.name)} was renamed here to {_show(op.new_name)} and also elsewhere:"
                " the other name stands"
            )
            return
        seen = self.view.seen.get(op.ino)
        if seen is None:
            return
        parent, name = self._free_place(new_parent, op.new_name)
        if seen.inode.is_dir:
            self._revive_directory(op.ino, parent, name, op.time_ns)
        else:
            self._revive_file(op.ino, parent, name, op.time_ns)
        self._note(f"{_show(op.name)} was renamed here and removed elsewhere: it is {_show(name)}")

    def _contents(self, op: SetContents) -> None:
        if op.ino in self._kept:
            return
        if op.ino in self._refused:
            self._create(self._refused.pop(op.ino))
        if not self.view.complete:
            self._rescue(op)
        copied, ours = self._copies.get(op.ino, (0, 0))
        if copied and op.base == ours:
            self._copies[op.ino] = (copied, op.version)
            base = self.tree.inode(copied).version
            self._do(msgspec.structs.replace(op, ino=copied, base=base, version=self.number()))
            return
        inode = self._present(op.ino)
        if inode is not None and inode.version == op.base:
            self._do(op)
            return
        if inode is None:
            self._come_back(op)
            return
        if inode.version == op.version or self.is_ours(op.ino, inode.version):
            return  # it is done already, and so perhaps is what we did later
        if inode.nlink == 0:
            return  # nobody can reach an unlinked file but those who have it open
        if self.view.complete and op.ino not in self.view.seen:
            return  # we removed it afterwards; what others made of it stays
        names = self.tree.names_of(op.ino)
        parent, name = names[0] if names else (self._lost_found(op.ctime_ns), b"file")
        place, copy = self._conflict_place(parent, name)
        seen = self.view.seen.get(op.ino)
        source = seen.inode if seen is not None else inode
        extents = seen.extents if seen is not None else self.tree.all_extents(op.ino)
        new = self.number()
        self._do(
            Create(
                place,
                copy,
                new,
                self.number(),
                source.mode,
                source.uid,
                source.gid,
                0,
                op.ctime_ns,
                0,
                None,
                tuple(seen.xattrs if seen is not None else ()),
            )
        )
        if seen is None:
            # Taken up from the log without the replica it was made on: lay our pieces over theirs.
            self._do(
                SetContents(
                    new,
                    0,
                    self.number(),
                    None,
                    inode.size,
                    op.mtime_ns,
                    op.ctime_ns,
                    tuple(extents),
                )
            )
            base = self.tree.inode(new).version
            cut = op.size if op.cut is None else min(op.cut, op.size)  # theirs may be longer
            self._do(
                msgspec.structs.replace(op, ino=new, base=base, version=self.number(), cut=cut)
            )
            self._copies[op.ino] = (new, op.version)
        else:
            self._do(
                SetContents(
                    new,
                    0,
                    self.number(),
                    None,
                    source.size,
                    source.mtime_ns,
                    op.ctime_ns,
                    tuple(extents),
                )
            )
            self._kept.add(op.ino)
        self._note(
            f"{self._shown(parent, name)} was changed here and elsewhere:"
            f" ours is {self._from(parent, (place, copy))}"
        )

    def _rescue(self, op: SetContents) -> None:
        """Taken up from the log: others removed the file, and only still have it open."""
        inode = self.tree.find(op.ino)
        if inode is None or inode.nlink or not inode.is_file:
            return
        holder = self.tree.orphan_of(op.ino)
        if holder is not None and is_kin(holder, self.mount):
            return  # we removed it ourselves
        extents, xattrs = self.tree.all_extents(op.ino), self.tree.xattrs(op.ino)
        self._do(Reap(op.ino))
        parent = self._lost_found(op.ctime_ns)
        name = self._free_name(parent, b"file")
        self._do(
            Create(
                parent,
                name,
                op.ino,
                self.number(),
                inode.mode,
                inode.uid,
                inode.gid,
                0,
                op.ctime_ns,
                0,
                None,
                tuple(xattrs),
            )
        )
        self._do(
            SetContents(
                op.ino,
                0,
                inode.version,
                None,
                inode.size,
                inode.mtime_ns,
                op.ctime_ns,
                tuple(extents),
            )
        )
        self._note(f"a file written here was removed elsewhere: it is lost+found/{_show(name)}")

    def _come_back(self, op: SetContents) -> None:
        """A file we wrote to was removed elsewhere."""
        seen = self.view.seen.get(op.ino)
        if seen is None and self.view.complete:
            return  # we removed it as well, afterwards
        if seen is None:
            name = self._free_name(self._lost_found(op.ctime_ns), b"file")
            self._do(
                Create(
                    self._lost_found(op.ctime_ns),
                    name,
                    op.ino,
                    self.number(),
                    stat.S_IFREG | 0o600,
                    0,
                    0,
                    0,
                    op.ctime_ns,
                    op.base,
                )
            )
            self._do(op)
            self._note(f"a file written here was removed elsewhere: it is lost+found/{_show(name)}")
            return
        if not seen.names:
            self._kept.add(op.ino)
            return  # it had no name on this machine either
        parent, name = seen.names[0]
        parent = self._directory(parent)
        parent, name = self._free_place(parent, name)
        self._revive_file(op.ino, parent, name, op.ctime_ns)
        self._note(f"{self._shown(parent, name)} was changed here and removed elsewhere: it stays")

    def _snapshot(self, op: Snapshot) -> None:
        try:
            self._do(op)
        except Refused as no:
            if no.errno == e.EEXIST:
                name = f"{op.name} ({self.label.decode()})"
                self._try(msgspec.structs.replace(op, name=name))

    # ---- bringing back ----------------------------------------------------------------------

    def _directory(self, ino: int) -> int:
        """The directory *ino*, brought back if it was removed, or lost+found."""
        ino = self.aliases.get(ino, ino)
        found = self.tree.find(ino)
        if found is not None and found.is_dir:
            return ino
        seen = self.view.seen.get(ino)
        if found is None and seen is not None and seen.inode.is_dir and seen.names:
            parent, name = seen.names[0]
            parent = self._directory(parent)
            there = self.tree.child(parent, name)
            if there is not None and self.tree.inode(there).is_dir:
                self.aliases[ino] = there
                return there
            parent, name = self._free_place(parent, name)
            self._revive_directory(ino, parent, name, seen.inode.ctime_ns)
            self._note(f"{self._shown(parent, name)} was removed elsewhere: it is back, for ours")
            return ino
        return self._lost_found(0)

    def _revive_directory(self, ino: int, parent: int, name: bytes, time_ns: int) -> None:
        seen = self.view.seen[ino]
        self.aliases.pop(ino, None)
        self._do(
            Create(
                parent,
                name,
                ino,
                self.number(),
                seen.inode.mode,
                seen.inode.uid,
                seen.inode.gid,
                0,
                time_ns,
                0,
                None,
                tuple(seen.xattrs),
            )
        )

    def _revive_file(self, ino: int, parent: int, name: bytes, time_ns: int) -> None:
        """Make a removed file again, with attributes and contents as this mount saw them last.

        Operations that wrote those contents need not be done again (`_kept`).
        """
        seen = self.view.seen[ino]
        old = seen.inode
        self._do(
            Create(
                parent,
                name,
                ino,
                self.number(),
                old.mode,
                old.uid,
                old.gid,
                old.rdev,
                time_ns,
                0,
                seen.target,
                tuple(seen.xattrs),
            )
        )
        if old.is_file:
            self._do(
                SetContents(
                    ino,
                    0,
                    self.number(),
                    None,
                    old.size,
                    old.mtime_ns,
                    time_ns,
                    tuple(seen.extents),
                )
            )
            self._kept.add(ino)
        self._revived.add(ino)

    def _lost_found(self, time_ns: int) -> int:
        """The directory for what has no place of its own any more."""
        there = self.tree.child(ROOT, LOST_FOUND)
        if there is not None and self.tree.inode(there).is_dir:
            return there
        name = LOST_FOUND if there is None else self._conflict_name(ROOT, LOST_FOUND)
        root = self.tree.inode(ROOT)
        ino = self.number()
        self._do(
            Create(
                ROOT,
                name,
                ino,
                self.number(),
                stat.S_IFDIR | 0o700,
                root.uid,
                root.gid,
                0,
                time_ns or root.ctime_ns,
            )
        )
        return ino

    def _present(self, ino: int) -> Inode | None:
        """The inode, or None if others removed it.

        An inode that they removed and still have open counts as removed: no name leads to it, and
        it ends with their last close.  Its row is removed here, so that `_revive_file` can make one
        with the same number.
        """
        inode = self.tree.find(ino)
        if inode is not None and inode.nlink == 0:
            seen = self.view.seen.get(ino)
            if seen is not None and seen.inode.nlink:
                self._do(Reap(ino))
                return None
        return inode

    # ---- small steps ------------------------------------------------------------------------

    def _do(self, op: Operation) -> None:
        op.apply(self.tree)
        self._done.append(op)

    def _try(self, op: Operation) -> None:
        try:
            self._do(op)
        except Refused:
            pass  # the inode or the name that it changes is gone

    def _translated(self, op: Operation) -> Operation:
        if not self.aliases:
            return op
        changes = {
            name: self.aliases[getattr(op, name)]
            for name in ("ino", "parent", "new_parent")
            if getattr(op, name, None) in self.aliases
        }
        if not changes or (isinstance(op, Create) and changes.keys() == {"ino"}):
            return op
        if isinstance(op, Create):
            changes.pop("ino", None)
        return msgspec.structs.replace(op, **changes)

    def _free_name(self, parent: int, name: bytes) -> bytes:
        if self.tree.child(parent, name) is None:
            return name
        return self._conflict_name(parent, name)

    def _free_place(self, parent: int, name: bytes) -> tuple[int, bytes]:
        """(directory, name): as given if that is free, else where a conflict copy goes."""
        if self.tree.child(parent, name) is None:
            return parent, name
        return self._conflict_place(parent, name)

    def _conflict_place(self, parent: int, name: bytes) -> tuple[int, bytes]:
        """The directory and the name of a conflict copy: beside the file, or out of git's way."""
        path: list[bytes] = [name]
        above = parent
        while above != ROOT:
            names = self.tree.names_of(above)
            if not names:
                break
            if names[0][1] == b".git" or self._is_of_git(above):
                there = self._git_conflicts(above)
                if there in (0, parent):
                    break
                return there, self._conflict_name(there, b"__".join(reversed(path)))
            path.append(names[0][1])
            above = names[0][0]
        return parent, self._conflict_name(parent, name)

    def _is_of_git(self, directory: int) -> bool:
        return all(self.tree.child(directory, name) is not None for name in _OF_GIT)

    def _git_conflicts(self, directory: int) -> int:
        """The directory for the conflicts of a git directory; 0 if something else has its name."""
        there = self.tree.child(directory, GIT_CONFLICTS)
        if there is not None:
            return there if self.tree.inode(there).is_dir else 0
        like = self.tree.inode(directory)
        ino = self.number()
        self._do(
            Create(
                directory,
                GIT_CONFLICTS,
                ino,
                self.number(),
                like.mode,
                like.uid,
                like.gid,
                0,
                like.ctime_ns,
            )
        )
        return ino

    def _from(self, parent: int, place: tuple[int, bytes]) -> str:
        """A place as a note about something in *parent* names it."""
        return _show(place[1]) if place[0] == parent else self._shown(*place)

    def _conflict_name(self, parent: int, name: bytes) -> bytes:
        """`name (conflict from HOST DATE).ext`, with a number if that is taken as well."""
        stem, dot, extension = name.rpartition(b".")
        if not stem or len(extension) > 16:
            stem, dot, extension = name, b"", b""
        count = 1
        while True:
            label = b" (" + self.label + (b"" if count == 1 else b" %d" % count) + b")"
            room = NAME_MAX - len(label) - len(dot) - len(extension)
            made = _cut(stem, room) + label + dot + extension
            if self.tree.child(parent, made) is None:
                return made
            count += 1

    def _shown(self, parent: int, name: bytes) -> str:
        above = self.tree.path(parent) or b"/?"
        return _show(above.rstrip(b"/") + b"/" + name)

    def _note(self, text: str) -> None:
        self.notes.append(text)


def _plain(host: str) -> str:
    """A host's name as it may stand in a file's name."""
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in host)
    return kept[:40] or "unknown"


def _cut(name: bytes, room: int) -> bytes:
    """At most *room* bytes of *name*, not in the middle of a UTF-8 character."""
    if len(name) <= room:
        return name
    name = name[:room]
    while name and name[-1] & 0xC0 == 0x80:
        name = name[:-1]
    if name and name[-1] >= 0xC0:
        name = name[:-1]
    return name


def _show(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
