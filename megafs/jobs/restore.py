"""Bring a file or a directory back as it was: new inodes that name the old chunks.

No data is copied: the extents of the past lie in packs that are still in the store.  The tree is
made under a name of its own beside the place where it belongs and gets its name last, in one
rename; if it fails before, nothing of it stays.
"""

from __future__ import annotations

import errno as e
from typing import Final

import trio
from msgspec import Struct, field

from megafs import clock
from megafs.errors import AlreadyThere, BadUsage, Corrupt, Full, Missing, Refused
from megafs.fs.names import RENAME_EXCHANGE, RENAME_NOREPLACE
from megafs.fs.requests import Caller, Invalidation
from megafs.history.moments import show_time
from megafs.jobs.committing import check_writable, commit_all
from megafs.jobs.messages import RestoreArgs, RestoreResult
from megafs.progress import OnProgress, Progress
from megafs.tree import ops, queries_packs
from megafs.tree.inode import NAME_MAX, ROOT, Inode
from megafs.tree.paths import exact, parse, show
from megafs.tree.subtree import below
from megafs.tree.tree import Tree
from megafs.volume.volume import Volume

#: Inodes that are made without letting anybody else run.
_AT_ONCE: Final = 200
#: Extents of one operation: a huge file is laid in several.
_PIECES: Final = 4096

_CALLER = Caller()


async def restore(volume: Volume, args: RestoreArgs, on_progress: OnProgress) -> RestoreResult:
    """Bring a path back as of a moment."""
    path = parse(args.path)
    to = parse(args.to) if args.to else None
    check_writable(volume, "restoring")
    await volume.fs.writeback.flush_all()
    sequence = await volume.history.resolve(args.at)
    return await bring_back(
        volume, path, sequence, to=to, replace=args.replace, on_progress=on_progress
    )


class _Inventory(Struct):
    """The size of a restore: inodes (directories among them), bytes, and the packs it needs."""

    inodes: int = 0
    directories: int = 0
    bytes: int = 0
    packs: set[int] = field(default_factory=set)


async def bring_back(
    volume: Volume,
    path: bytes,
    sequence: int,
    *,
    to: bytes | None = None,
    replace: bool = False,
    on_progress: OnProgress,
) -> RestoreResult:
    """Bring *path* back as of commit *sequence*, to the same place or to *to*.

    A parent directory that is gone is made again as it was then, if the place is the same.
    Raises AlreadyThere if something lies in the place and it is not to be replaced.
    """
    target = to if to is not None else path
    if target == b"/":
        raise BadUsage("the root cannot be put in its own place: name a new one with --to")
    present = volume.replica.tree

    def reading(done: int, total: int) -> None:
        on_progress(Progress(done, total, f"reading the tree of commit {sequence}"))

    async with volume.history.view(sequence, progress=reading) as past:
        time_ns = await volume.history.time_of(sequence)
        when = show_time(time_ns)
        try:
            source = past.inode(past.walk(path))
        except Refused:
            raise BadUsage(f"{show(path)} did not exist at commit {sequence} ({when})") from None
        above, _, name = target.rpartition(b"/")
        if len(name) > NAME_MAX:
            raise BadUsage(f"{show(name)}: the name is too long")
        _check_free(present, target, replace)
        inventory = await _inventory(past, source, on_progress)
        _check_packs(volume, inventory, path)
        quota = volume.params.quota
        if quota is not None and present.used + inventory.bytes > quota:
            raise Full(f"{show(path)} needs {inventory.bytes} bytes, more than the quota leaves")
        parent = _parents(volume, past, above, same_place=to is None)
        staged = b".megafs-restoring-" + clock.random_bytes(6).hex().encode()
        try:
            await _Copy(volume, past, inventory, on_progress).make(source, parent, staged)
            await _put_in_place(volume, parent, staged, name, replace)
        except BaseException:
            remove_tree(volume, parent, staged)
            raise
    volume.fs.invalidate(
        [Invalidation("entry", parent, name), Invalidation("inode", parent, attr_only=True)]
    )
    on_progress(Progress(inventory.inodes, inventory.inodes, "bringing it to the store"))
    await commit_all(volume)
    return RestoreResult(
        path=show(target),
        source=show(path),
        sequence=sequence,
        time=time_ns / 1e9,
        files=inventory.inodes - inventory.directories,
        directories=inventory.directories,
        bytes=inventory.bytes,
        text=f"{show(target)} is as it was at {when} (commit {sequence})",
        path_b64=exact(target),
        source_b64=exact(path),
    )


def _check_free(tree: Tree, target: bytes, replace: bool) -> None:
    try:
        tree.walk(target)
    except Refused:
        return
    if not replace:
        raise AlreadyThere(
            f"{show(target)} exists: restore to another place with --to, or replace it with"
            " --replace (what is replaced stays in the history)"
        )


async def _inventory(past: Tree, source: Inode, on_progress: OnProgress) -> _Inventory:
    inventory = _Inventory()
    seen: set[int] = set()
    _count(inventory, past, source)
    for _, _, inode in below(past, source):
        if not inode.is_dir and inode.nlink > 1:
            if inode.ino in seen:
                continue
            seen.add(inode.ino)
        _count(inventory, past, inode)
        if inventory.inodes % _AT_ONCE == 0:
            on_progress(Progress(0, 0, f"{inventory.inodes} files found"))
            await trio.lowlevel.checkpoint()
    return inventory


def _count(inventory: _Inventory, past: Tree, inode: Inode) -> None:
    inventory.inodes += 1
    inventory.directories += inode.is_dir
    inventory.bytes += inode.blocks
    if inode.is_file and inode.blocks:
        inventory.packs |= queries_packs.packs_of(past.db, inode.ino)


def _check_packs(volume: Volume, inventory: _Inventory, path: bytes) -> None:
    """Raise Missing if gc has removed what the past names."""
    for pack in inventory.packs:
        try:
            volume.replica.tree.pack(pack)
        except Corrupt:
            raise Missing(
                f"{show(path)}: some of its contents were removed from the store since; what is"
                " older than the retention goes unless a snapshot keeps it"
            ) from None


def _parents(volume: Volume, past: Tree, path: bytes, *, same_place: bool) -> int:
    """The directory at *path* now; what is missing is made again as it was, in the same place."""
    tree = volume.replica.tree
    now = clock.now_ns()
    ino, there = ROOT, ROOT
    walked = b""
    for name in [part for part in path.split(b"/") if part]:
        walked += b"/" + name
        found = tree.child(ino, name)
        was = past.child(there, name) if there else None
        there = was or 0
        if found is None:
            if not same_place or was is None:
                raise BadUsage(f"{show(walked)} does not exist")
            found = _make(volume, past, past.inode(was), ino, name, now)
        elif not tree.inode(found).is_dir:
            raise BadUsage(f"{show(walked)} is not a directory now: choose a place with --to")
        ino = found
    return ino


def _make(volume: Volume, past: Tree, inode: Inode, parent: int, name: bytes, now: int) -> int:
    """A new inode with everything of *inode* but its contents; return its number."""
    replica = volume.replica
    new = replica.number()
    replica.record(
        ops.Create(
            parent,
            name,
            new,
            replica.number(),
            inode.mode,
            inode.uid,
            inode.gid,
            inode.rdev,
            now,
            0,
            past.target(inode.ino) if inode.is_symlink else None,
            tuple(past.xattrs(inode.ino)),
        )
    )
    return new


class _Copy:
    """One tree on its way from the past into the present."""

    def __init__(
        self, volume: Volume, past: Tree, inventory: _Inventory, on_progress: OnProgress
    ) -> None:
        self._volume = volume
        self._replica = volume.replica
        self._past = past
        self._inventory = inventory
        self._on_progress = on_progress
        self._now = clock.now_ns()
        self._made: dict[int, int] = {}  # directories, and files with several names
        self._done = 0

    async def make(self, source: Inode, parent: int, name: bytes) -> None:
        """Make *source*, and what is below it, as *name* in *parent*."""
        self._one(source, parent, name)
        directories = [source] if source.is_dir else []
        for above, child, inode in below(self._past, source):
            self._one(inode, self._made[above], child)
            if inode.is_dir:
                directories.append(inode)
            if self._done % _AT_ONCE == 0:
                self._on_progress(Progress(self._done, self._inventory.inodes, "restoring"))
                self._volume.writer.poke()
                await trio.lowlevel.checkpoint()
        for inode in directories:  # last, for every name that is made changes its directory's
            self._times(inode, self._made[inode.ino])

    def _one(self, inode: Inode, parent: int, name: bytes) -> None:
        replica = self._replica
        again = self._made.get(inode.ino)
        if again is not None:
            replica.record(ops.Link(again, parent, name, replica.number(), self._now))
            return
        new = _make(self._volume, self._past, inode, parent, name, self._now)
        self._done += 1
        if inode.is_dir:
            self._made[inode.ino] = new
            return
        if inode.nlink > 1:
            self._made[inode.ino] = new
        if inode.is_file and inode.size:
            self._contents(inode, new)
        self._times(inode, new)

    def _contents(self, inode: Inode, new: int) -> None:
        extents = self._past.all_extents(inode.ino)
        base = 0
        for first in range(0, max(1, len(extents)), _PIECES):
            version = self._replica.number()
            self._replica.record(
                ops.SetContents(
                    new,
                    base,
                    version,
                    None,
                    inode.size,
                    inode.mtime_ns,
                    self._now,
                    tuple(extents[first : first + _PIECES]),
                )
            )
            base = version

    def _times(self, inode: Inode, new: int) -> None:
        self._replica.record(
            ops.SetAttributes(new, {"atime": inode.atime_ns, "mtime": inode.mtime_ns})
        )


async def _put_in_place(
    volume: Volume, parent: int, staged: bytes, name: bytes, replace: bool
) -> None:
    """Give what was made its name, over what has it now if that is to be replaced."""
    fs, tree = volume.fs, volume.replica.tree
    there = tree.lookup(parent, name)
    if there is None:
        await fs.rename(parent, staged, parent, name, RENAME_NOREPLACE, _CALLER)
        return
    if not replace:
        raise AlreadyThere(f"{show(name)} has just been made by somebody else")
    made = tree.lookup(parent, staged)
    assert made is not None
    if not there.is_dir and not made.is_dir:
        await fs.rename(parent, staged, parent, name, 0, _CALLER)
        return
    await fs.rename(parent, staged, parent, name, RENAME_EXCHANGE, _CALLER)
    remove_tree(volume, parent, staged)


def remove_tree(volume: Volume, parent: int, name: bytes) -> None:
    """Remove *name* and what is below it, if it is there."""
    tree, replica = volume.replica.tree, volume.replica
    top = tree.lookup(parent, name)
    if top is None:
        return
    now = clock.now_ns()
    found = [(parent, name, top), *below(tree, top)]
    for above, child, inode in reversed(found):
        try:
            if inode.is_dir:
                replica.record(ops.Rmdir(above, child, inode.ino, now))
            else:
                current = tree.inode(inode.ino)  # an earlier name of it may have gone
                keep = volume.fs.keeps(inode.ino)
                replica.record(ops.Unlink(above, child, inode.ino, current.version, now, keep))
        except Refused as no:
            if no.errno not in (e.ENOENT, e.ENOTEMPTY):
                raise
    volume.writer.poke()
