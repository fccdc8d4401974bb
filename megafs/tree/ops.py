"""The operations that change a tree: small, synchronous, replayable.

An operation is a value: what one system call (or one flush of a file's contents) did, with every
number, time and identity it needs already chosen, so that applying it to the same tree always gives
the same rows.  `apply` checks first and changes afterwards: when it raises Refused, nothing has
changed.  The same value is applied when the user calls, when staged work is taken up again after a
crash, and when a commit race was lost and our operations are done again on top of the winner's
(merge.py decides what happens when they no longer fit).

On disk and on the way (the state directory's log, never the store, which gets changesets) an
operation is MessagePack: an array whose first element is the tag below.  Tags are never reused.
"""

from __future__ import annotations

import errno as e
import stat
from typing import Any, ClassVar

import msgspec

from megafs.errors import Corrupt, Refused
from megafs.tree import link_records
from megafs.tree.inode import LINK_MAX, NAME_MAX, ROOT, Inode
from megafs.tree.schema import BY_NAME, DirentRow, InodeRow, PackRow
from megafs.tree.tree import Extent, Tree

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
#: Leave a whiteout, a character device 0/0, under the old name: what an overlayfs hides a name of
#: its lower layer with.  No flag of `Rename`: it is a rename and a `Create` in one batch.
RENAME_WHITEOUT = 4
XATTR_CREATE = 1
XATTR_REPLACE = 2


class Operation(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The base of all operations."""

    def apply(self, tree: Tree) -> None:
        """Change *tree*, or raise Refused and change nothing."""
        raise NotImplementedError

    def laid(self) -> tuple[Extent, ...]:
        """The extents that this lays: their packs must be in the store before it is committed."""
        return ()


class Create(Operation, frozen=True, tag="create"):
    """A new inode of any kind under a new name (mknod, mkdir, symlink, open with O_CREAT)."""

    parent: int
    name: bytes
    ino: int
    cookie: int
    mode: int
    uid: int
    gid: int
    rdev: int
    time_ns: int
    version: int = 0
    target: bytes | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()

    def apply(self, tree: Tree) -> None:
        parent = tree.directory(self.parent)
        check_name(self.name)
        if parent.nlink == 0:
            raise Refused(e.ENOENT)
        if tree.child(self.parent, self.name) is not None:
            raise Refused(e.EEXIST)
        is_dir = stat.S_ISDIR(self.mode)
        if is_dir and parent.nlink >= LINK_MAX:
            raise Refused(e.EMLINK)
        tree.add_inode(
            Inode(
                self.ino,
                self.mode,
                2 if is_dir else 1,
                self.uid,
                self.gid,
                self.rdev,
                len(self.target) if self.target is not None else 0,
                0,
                self.time_ns,
                self.time_ns,
                self.time_ns,
                self.time_ns,
                self.parent if is_dir else 0,
                self.version,
            ),
            self.target,
        )
        for name, value in self.xattrs:
            tree.set_xattr(self.ino, name, value)
        tree.add_name(self.parent, self.name, self.ino, self.cookie)
        tree.touch_dir(self.parent, self.time_ns, 1 if is_dir else 0)


class Link(Operation, frozen=True, tag="link"):
    """One more name for a file."""

    ino: int
    parent: int
    name: bytes
    cookie: int
    time_ns: int

    def apply(self, tree: Tree) -> None:
        inode = tree.inode(self.ino)
        tree.directory(self.parent)
        check_name(self.name)
        if tree.child(self.parent, self.name) is not None:
            raise Refused(e.EEXIST)
        if inode.is_dir:
            raise Refused(e.EPERM)
        if inode.nlink == 0:  # linkat(AT_EMPTY_PATH) on an unlinked file
            raise Refused(e.ENOENT)
        if inode.nlink >= LINK_MAX:
            raise Refused(e.EMLINK)
        tree.add_name(self.parent, self.name, self.ino, self.cookie)
        tree.change_links(self.ino, 1, self.time_ns)
        tree.touch_dir(self.parent, self.time_ns)


class Unlink(Operation, frozen=True, tag="unlink"):
    """A name of a file goes; the file too, if it was the last one and nobody has it open.

    ino, version: what the name stood for, and which contents, when the user removed it.
    keep: the mount that still has the file open, or 0.
    """

    parent: int
    name: bytes
    ino: int
    version: int
    time_ns: int
    keep: int = 0

    def apply(self, tree: Tree) -> None:
        tree.directory(self.parent)
        ino = tree.child(self.parent, self.name)
        if ino is None or ino != self.ino:
            raise Refused(e.ENOENT)
        inode = tree.inode(ino)
        if inode.is_dir:
            raise Refused(e.EISDIR)
        tree.remove_name(self.parent, self.name)
        drop_link(tree, inode, self.time_ns, self.keep)
        tree.touch_dir(self.parent, self.time_ns)


class Rmdir(Operation, frozen=True, tag="rmdir"):
    """An empty directory goes."""

    parent: int
    name: bytes
    ino: int
    time_ns: int

    def apply(self, tree: Tree) -> None:
        tree.directory(self.parent)
        ino = tree.child(self.parent, self.name)
        if ino is None or ino != self.ino:
            raise Refused(e.ENOENT)
        if not tree.inode(ino).is_dir:
            raise Refused(e.ENOTDIR)
        if not tree.is_empty(ino):
            raise Refused(e.ENOTEMPTY)
        tree.remove_name(self.parent, self.name)
        tree.remove_inode(ino)
        tree.touch_dir(self.parent, self.time_ns, -1)


class Rename(Operation, frozen=True, tag="rename"):
    """A name moves, over another one if there is one, or two names change places.

    ino: what moves.  replaced, replaced_version: what the new name stood for, and which contents,
    when the user moved over it; 0 for nothing.  keep: the mount that has the replaced file open.
    """

    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    flags: int
    ino: int
    replaced: int
    replaced_version: int
    cookie: int
    cookie2: int
    time_ns: int
    keep: int = 0

    def apply(self, tree: Tree) -> None:
        tree.directory(self.parent)
        tree.directory(self.new_parent)
        check_name(self.new_name)
        ino = tree.child(self.parent, self.name)
        if ino is None or ino != self.ino:
            raise Refused(e.ENOENT)
        there = tree.child(self.new_parent, self.new_name) or 0
        if there != self.replaced:
            raise Refused(e.EEXIST if there else e.ENOENT)
        if self.flags & RENAME_EXCHANGE:
            self._exchange(tree, ino, there)
        else:
            self._move(tree, ino, there)

    def _move(self, tree: Tree, ino: int, there: int) -> None:
        if there and self.flags & RENAME_NOREPLACE:
            raise Refused(e.EEXIST)
        if ino == there:
            return  # two names of one file: rename(2) does nothing
        inode = tree.inode(ino)
        if inode.is_dir and tree.is_below(self.new_parent, ino):
            raise Refused(e.EINVAL)
        if there:
            old = tree.inode(there)
            if inode.is_dir and not old.is_dir:
                raise Refused(e.ENOTDIR)
            if old.is_dir:
                if not inode.is_dir:
                    raise Refused(e.EISDIR)
                if not tree.is_empty(there):
                    raise Refused(e.ENOTEMPTY)
        elif (
            inode.is_dir
            and self.parent != self.new_parent
            and tree.directory(self.new_parent).nlink >= LINK_MAX
        ):
            raise Refused(e.EMLINK)
        links = 0
        if there:
            tree.set_name(self.new_parent, self.new_name, ino, self.cookie)
            if old.is_dir:
                tree.remove_inode(there)
                links -= 1
            else:
                drop_link(tree, old, self.time_ns, self.keep)
        else:
            tree.add_name(self.new_parent, self.new_name, ino, self.cookie)
        tree.remove_name(self.parent, self.name)
        tree.set_fields(ino, {"ctime": self.time_ns})
        if inode.is_dir and self.parent != self.new_parent:
            tree.set_parent(ino, self.new_parent)
            tree.touch_dir(self.parent, self.time_ns, -1)
            links += 1
        else:
            tree.touch_dir(self.parent, self.time_ns)
        tree.touch_dir(self.new_parent, self.time_ns, links)

    def _exchange(self, tree: Tree, ino: int, there: int) -> None:
        if not there:
            raise Refused(e.ENOENT)
        if ino == there:
            return
        one, two = tree.inode(ino), tree.inode(there)
        if one.is_dir and tree.is_below(self.new_parent, ino):
            raise Refused(e.EINVAL)
        if two.is_dir and tree.is_below(self.parent, there):
            raise Refused(e.EINVAL)
        tree.set_name(self.new_parent, self.new_name, ino, self.cookie)
        tree.set_name(self.parent, self.name, there, self.cookie2)
        links = 0
        if self.parent != self.new_parent:
            links = int(two.is_dir) - int(one.is_dir)
            if one.is_dir:
                tree.set_parent(ino, self.new_parent)
            if two.is_dir:
                tree.set_parent(there, self.parent)
        for number in (ino, there):
            tree.set_fields(number, {"ctime": self.time_ns})
        tree.touch_dir(self.parent, self.time_ns, links)
        tree.touch_dir(self.new_parent, self.time_ns, -links)


class SetAttributes(Operation, frozen=True, tag="attributes"):
    """chmod, chown, utimensat: columns of an inode, but never its contents."""

    FIELDS: ClassVar[frozenset[str]] = frozenset(("mode", "uid", "gid", "atime", "mtime", "ctime"))

    ino: int
    fields: dict[str, int]

    def apply(self, tree: Tree) -> None:
        tree.inode(self.ino)
        if not self.fields.keys() <= self.FIELDS:
            raise Corrupt(f"an operation sets unknown fields: {sorted(self.fields)}")
        tree.set_fields(self.ino, self.fields)


class SetXattr(Operation, frozen=True, tag="setxattr"):
    """An extended attribute gets a value."""

    ino: int
    name: bytes
    value: bytes
    flags: int
    time_ns: int

    def apply(self, tree: Tree) -> None:
        tree.inode(self.ino)
        if self.flags:
            there = tree.xattr(self.ino, self.name) is not None
            if there and self.flags & XATTR_CREATE:
                raise Refused(e.EEXIST)
            if not there and self.flags & XATTR_REPLACE:
                raise Refused(e.ENODATA)
        tree.set_xattr(self.ino, self.name, self.value)
        tree.set_fields(self.ino, {"ctime": self.time_ns})


class RemoveXattr(Operation, frozen=True, tag="removexattr"):
    """An extended attribute goes."""

    ino: int
    name: bytes
    time_ns: int

    def apply(self, tree: Tree) -> None:
        tree.inode(self.ino)
        if not tree.remove_xattr(self.ino, self.name):
            raise Refused(e.ENODATA)
        tree.set_fields(self.ino, {"ctime": self.time_ns})


class SetContents(Operation, frozen=True, tag="contents"):
    """New contents of a file: cut it, then lay pieces over it, then set its size.

    base, version: the contents this changes, and their name afterwards; another `base` in the tree
        means that another machine has changed the file meanwhile.
    cut: everything from there on becomes a hole first; None for no cut.
    pieces: extents that do not overlap, none beyond `size`.
    """

    ino: int
    base: int
    version: int
    cut: int | None
    size: int
    mtime_ns: int
    ctime_ns: int
    pieces: tuple[Extent, ...]

    def apply(self, tree: Tree) -> None:
        inode = tree.inode(self.ino)
        if inode.version != self.base:
            raise Refused(e.ESTALE)
        lay(tree, inode, self)

    def laid(self) -> tuple[Extent, ...]:
        return self.pieces


class Reap(Operation, frozen=True, tag="reap"):
    """A file without a name is closed by the last one who had it open."""

    ino: int

    def apply(self, tree: Tree) -> None:
        inode = tree.inode(self.ino)
        if inode.nlink:
            raise Refused(e.EBUSY)
        tree.remove_inode(self.ino)


class AddPack(Operation, frozen=True, tag="pack"):
    """A pack that extents of this or later operations name."""

    pack: int
    name: bytes
    epoch: int

    def apply(self, tree: Tree) -> None:
        tree.add_pack(self.pack, self.name, self.epoch)


class ClaimRange(Operation, frozen=True, tag="range"):
    """A mount takes a range of numbers for itself."""

    prefix: int
    mount: int

    def apply(self, tree: Tree) -> None:
        holder = tree.one("SELECT mount FROM ranges WHERE prefix=?", (self.prefix,))
        if holder == self.mount:
            return
        if holder is not None:
            raise Refused(e.EEXIST)
        tree.db.execute("INSERT INTO ranges VALUES(?,?)", (self.prefix, self.mount))


class Snapshot(Operation, frozen=True, tag="snapshot"):
    """A name for a moment of the journal; seq 0 removes the name."""

    name: str
    seq: int
    time_ns: int

    def apply(self, tree: Tree) -> None:
        there = tree.one("SELECT seq FROM snapshots WHERE name=?", (self.name,))
        if self.seq and there is not None:
            raise Refused(e.EEXIST)
        if not self.seq and there is None:
            raise Refused(e.ENOENT)
        if self.seq:
            tree.db.execute(
                "INSERT INTO snapshots VALUES(?,?,?)", (self.name, self.seq, self.time_ns)
            )
        else:
            tree.db.execute("DELETE FROM snapshots WHERE name=?", (self.name,))


class KeepLink(Operation, frozen=True, tag="keeplink"):
    """The record of a link (tree/link_records.py): a new one, or what has become of one.

    value: the encoded record.  packs: those that it names; they must be there.  new: whether there
    must not be one yet.  A link that was revoked meanwhile does not come back.
    """

    link: str
    value: bytes
    packs: tuple[int, ...]
    new: bool

    def apply(self, tree: Tree) -> None:
        name = link_records.attribute(self.link)
        there = tree.xattr(ROOT, name) is not None
        if there and self.new:
            raise Refused(e.EEXIST)
        if not there and not self.new:
            raise Refused(e.ENOENT)
        for pack in self.packs:
            if tree.one("SELECT 1 FROM packs WHERE pack=?", (pack,)) is None:
                raise Refused(e.ENODATA)
        tree.unmark(self.packs)
        tree.set_xattr(ROOT, name, self.value)


class DropLink(Operation, frozen=True, tag="droplink"):
    """The record of a link goes."""

    link: str

    def apply(self, tree: Tree) -> None:
        if not tree.remove_xattr(ROOT, link_records.attribute(self.link)):
            raise Refused(e.ENOENT)


class MarkGarbage(Operation, frozen=True, tag="garbage"):
    """Nothing names these packs; since when, in ns."""

    packs: tuple[int, ...]
    since: int

    def apply(self, tree: Tree) -> None:
        linked = link_records.linked_packs(tree.db)
        for pack in self.packs:
            if pack in linked or tree.is_named(pack):
                continue
            if tree.one("SELECT 1 FROM packs WHERE pack=?", (pack,)):
                tree.db.execute("INSERT OR IGNORE INTO garbage VALUES(?,?)", (pack, self.since))


class DropPacks(Operation, frozen=True, tag="droppacks"):
    """Packs that were marked for long enough go; those that are named again, or whose mark was
    taken away meanwhile, stay.

    snapshots: the moments whose trees were looked at; if there is another by now, all stay.
    """

    packs: tuple[int, ...]
    snapshots: tuple[int, ...]

    def apply(self, tree: Tree) -> None:
        for (seq,) in tree.db.execute("SELECT seq FROM snapshots"):
            if seq not in self.snapshots:
                raise Refused(e.EBUSY)
        linked = link_records.linked_packs(tree.db)
        for pack in self.packs:
            if pack in linked or tree.is_named(pack):
                tree.unmark((pack,))
            elif tree.one("SELECT 1 FROM garbage WHERE pack=?", (pack,)):
                tree.drop_pack(pack)


class Relocate(Operation, frozen=True, tag="relocate"):
    """Chunks were sealed again elsewhere: (old pack, old offset, where it lies now).

    Only what still names the old chunk changes; the bytes of the files stay what they are.
    """

    moves: tuple[tuple[int, int, Extent], ...]

    def apply(self, tree: Tree) -> None:
        for pack, offset, new in self.moves:
            tree.db.execute(
                "UPDATE extents SET pack=?, offset=?, sealed=?, digest=?"
                " WHERE pack=? AND pack>0 AND offset=? AND plain=?",
                (new.pack, new.offset, new.sealed, new.digest, pack, offset, new.plain),
            )

    def laid(self) -> tuple[Extent, ...]:
        return tuple(new for _, _, new in self.moves)


class Repack(Operation, frozen=True, tag="repack"):
    """Pieces of files that lay in the tree itself lie in packs: (inode, its version, where).

    A file that has changed since stays as it is.
    """

    moves: tuple[tuple[int, int, Extent], ...]

    def apply(self, tree: Tree) -> None:
        for ino, version, new in self.moves:
            inode = tree.find(ino)
            if inode is None or inode.version != version:
                continue
            tree.db.execute(
                "UPDATE extents SET pack=?, offset=?, sealed=?, plain=?, skip=0, digest=?,"
                " data=NULL WHERE ino=? AND start=? AND length=? AND pack=0",
                (
                    new.pack, new.offset, new.sealed, new.plain, new.digest,
                    ino, new.start, new.length,
                ),
            )  # fmt: skip

    def laid(self) -> tuple[Extent, ...]:
        return tuple(new for _, _, new in self.moves)


class Mend(Operation, frozen=True, tag="mend"):
    """One row of a table is put right by fsck, if it is still as fsck saw it.

    old, new: the whole row; None for one that is not there.
    """

    table: str
    old: tuple[Any, ...] | None
    new: tuple[Any, ...] | None

    def apply(self, tree: Tree) -> None:
        table = BY_NAME.get(self.table)
        row = self.old if self.old is not None else self.new
        if table is None or row is None or len(row) != len(table.columns):
            raise Corrupt(f"an operation mends a row of {self.table!r} that cannot be")
        where = " AND ".join(f"{name}=?" for name in table.columns[: table.key])
        key = tuple(row[: table.key])
        there = tree.db.execute(
            f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE {where}",
            key,
        ).fetchone()
        if there != self.old:
            raise Refused(e.ESTALE)
        if table.name == "dirents" and self.new is not None:
            # Other mounts may have removed either since fsck looked.
            entry = DirentRow(*self.new)
            for ino in (entry.parent, entry.ino):
                if tree.one("SELECT 1 FROM inodes WHERE ino=?", (ino,)) is None:
                    raise Refused(e.ESTALE)
        tree.db.execute(f"DELETE FROM {table.name} WHERE {where}", key)
        if self.new is not None:
            marks = ",".join("?" * len(table.columns))
            tree.db.execute(f"INSERT INTO {table.name} VALUES({marks})", self.new)
        if table.name == "inodes":
            before = None if self.old is None else InodeRow(*self.old)
            after = None if self.new is None else InodeRow(*self.new)
            tree.charge(
                (after.blocks if after else 0) - (before.blocks if before else 0),
                int(after is not None) - int(before is not None),
            )
        elif table.name == "packs":
            tree.forget_pack(PackRow(*row).pack)
        elif table.name == "dirents":
            entry = DirentRow(*row)
            tree.forget_name(entry.parent, entry.name)


AnyOperation = (
    Create
    | Link
    | Unlink
    | Rmdir
    | Rename
    | SetAttributes
    | SetXattr
    | RemoveXattr
    | SetContents
    | Reap
    | AddPack
    | ClaimRange
    | Snapshot
    | KeepLink
    | DropLink
    | MarkGarbage
    | DropPacks
    | Relocate
    | Repack
    | Mend
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[AnyOperation])


def encode(ops: list[Operation]) -> bytes:
    """Operations as bytes; see the module's text."""
    return _encoder.encode(ops)


def decode(data: bytes) -> list[Operation]:
    """The operations in *data*; Corrupt if it holds anything else."""
    try:
        return list(_decoder.decode(data))
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as exc:
        raise Corrupt(f"not a list of operations: {exc}") from exc


def check_name(name: bytes) -> None:
    """Refuse what no directory may hold; the kernel refuses "/" and NUL before us."""
    if len(name) > NAME_MAX:
        raise Refused(e.ENAMETOOLONG)
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise Refused(e.EINVAL)


def drop_link(tree: Tree, inode: Inode, time_ns: int, keep: int) -> None:
    """One name of a file has gone: forget the file with its last, unless *keep* has it open."""
    if inode.nlink > 1 or keep:
        tree.change_links(inode.ino, -1, time_ns)
        if inode.nlink == 1:
            tree.add_orphan(inode.ino, keep)
    else:
        tree.remove_inode(inode.ino)


def lay(tree: Tree, inode: Inode, op: SetContents) -> None:
    """Change the extents of *inode* as *op* says, whatever version the inode has."""
    if not inode.is_file:
        raise Refused(e.EINVAL)
    change = 0
    tree.unmark({piece.pack for piece in op.pieces if piece.pack})
    if op.cut is not None:
        change -= tree.clear_from(inode.ino, op.cut)
    if inode.blocks + change:
        for piece in op.pieces:
            change -= tree.clear_range(inode.ino, piece.start, piece.end)
    tree.put_extents(inode.ino, op.pieces)
    change += sum(piece.length for piece in op.pieces)
    tree.set_contents(
        inode.ino,
        size=op.size,
        blocks=inode.blocks + change,
        version=op.version,
        mtime=op.mtime_ns,
        ctime=op.ctime_ns,
    )
    tree.charge(change)


def empty_tree(tree: Tree, time_ns: int, uid: int, gid: int) -> None:
    """Make the root directory: the tree of a new volume."""
    tree.add_inode(
        Inode(
            ROOT,
            stat.S_IFDIR | 0o755,
            2,
            uid,
            gid,
            0,
            0,
            0,
            time_ns,
            time_ns,
            time_ns,
            time_ns,
            ROOT,
            0,
        )
    )
