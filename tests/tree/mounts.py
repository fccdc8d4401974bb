"""Replicas of one volume that meet in a journal kept in a list: for tests of ops and merging."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import trio

from megafs import clock
from megafs.crypto.volume_keys import FSID_SIZE, Keyring, digest
from megafs.errors import Refused
from megafs.journal import commit as commit_format
from megafs.journal.commit import Commit, VerifiedCommit
from megafs.journal.rebase import RemoteChanges
from megafs.journal.replica import Replica
from megafs.stores.memory import MemoryStore
from megafs.tree import ops
from megafs.tree.inode import ROOT
from megafs.tree.schema import SequenceNumber
from megafs.tree.tree import Extent
from megafs.volume.create import write_first_commit

LONGEST = 1 << 14
KEYRING = Keyring(bytes(range(FSID_SIZE)), {1: bytes(32)}, 1)


def _first() -> bytes:
    store = MemoryStore()
    trio.run(write_first_commit, store, KEYRING, 1)
    return store.objects[commit_format.object_name(1)]


class Journal:
    """The commits of one volume."""

    def __init__(self) -> None:
        data = _first()
        first = commit_format.open_commit(KEYRING, 1, data)
        self.commits = [VerifiedCommit(SequenceNumber(1), digest(data), first)]


class Mount:
    """One mount: what programs on it do, as the filesystem would record it."""

    def __init__(self, journal: Journal, place: Path, number: int, host: str) -> None:
        self.journal = journal
        self.replica = Replica(place, KEYRING, LONGEST, number, host)
        self.tree = self.replica.tree
        self.opened: set[int] = set()
        self.follow()

    # ---- the journal ------------------------------------------------------------------------

    def follow(self) -> RemoteChanges:
        return self.replica.follow(self.journal.commits[self.replica.sequence :])

    def publish(self) -> None:
        """Follow, then commit everything."""
        self.replica.close_batch()
        self.follow()
        while self.replica.pending:
            draft = self.replica.next_commit()
            assert draft is not None
            replica = self.replica
            sequence = SequenceNumber(replica.sequence + 1)
            commit = Commit(
                replica.head,
                replica.mount,
                replica.host,
                clock.random_bytes(16),
                draft.first,
                draft.last,
                clock.now_ns(),
                1,
                draft.operations,
                commit_format.pack_changeset(draft.changeset),
            )
            data = commit_format.seal(KEYRING, sequence, commit)
            self.journal.commits.append(VerifiedCommit(sequence, digest(data), commit))
            replica.won(sequence, digest(data), commit, draft.changeset)

    # ---- what programs do -------------------------------------------------------------------

    def at(self, path: str) -> tuple[int, bytes]:
        """(directory, name) of a path."""
        head, _, name = path.rpartition("/")
        return self.tree.walk(head.encode()), name.encode()

    def ino(self, path: str) -> int:
        return self.tree.walk(path.encode())

    def _new(self, path: str, mode: int, target: bytes | None = None) -> int:
        parent, name = self.at(path)
        ino = self.replica.number()
        cookie = self.replica.number()
        self.replica.record(
            ops.Create(parent, name, ino, cookie, mode, 0, 0, 0, clock.now_ns(), 0, target)
        )
        return ino

    def create(self, path: str, data: bytes | None = None) -> int:
        ino = self._new(path, stat.S_IFREG | 0o644)
        if data is not None:
            self.write(path, data)
        return ino

    def mkdir(self, path: str) -> int:
        return self._new(path, stat.S_IFDIR | 0o755)

    def symlink(self, path: str, target: bytes) -> int:
        return self._new(path, stat.S_IFLNK | 0o777, target)

    def write(self, path: str, data: bytes, offset: int | None = None) -> None:
        """Overwrite a whole file, or a part of it at *offset*."""
        self.write_ino(self.ino(path), data, offset)

    def write_ino(self, ino: int, data: bytes, offset: int | None = None) -> None:
        inode = self.tree.inode(ino)
        start = offset or 0
        now = clock.now_ns()
        size = len(data) if offset is None else max(inode.size, start + len(data))
        piece = Extent(start, len(data), 0, 0, 0, len(data), 0, None, data)
        self.replica.record(
            ops.SetContents(
                ino,
                inode.version,
                self.replica.number(),
                0 if offset is None else None,
                size,
                now,
                now,
                (piece,) if data else (),
            )
        )

    def link(self, old: str, new: str) -> None:
        parent, name = self.at(new)
        ino = self.ino(old)
        cookie = self.replica.number()
        self.replica.record(ops.Link(ino, parent, name, cookie, clock.now_ns()))

    def unlink(self, path: str) -> None:
        parent, name = self.at(path)
        inode = self.tree.inode(self.ino(path))
        keep = self.replica.mount if inode.ino in self.opened else 0
        self.replica.record(
            ops.Unlink(parent, name, inode.ino, inode.version, clock.now_ns(), keep)
        )

    def rmdir(self, path: str) -> None:
        parent, name = self.at(path)
        self.replica.record(ops.Rmdir(parent, name, self.ino(path), clock.now_ns()))

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        parent, name = self.at(old)
        new_parent, new_name = self.at(new)
        ino = self.ino(old)
        there = self.tree.lookup(new_parent, new_name)
        if there is not None and there.ino == ino:
            return
        keep = self.replica.mount if there is not None and there.ino in self.opened else 0
        self.replica.record(
            ops.Rename(
                parent,
                name,
                new_parent,
                new_name,
                flags,
                ino,
                there.ino if there else 0,
                there.version if there else 0,
                self.replica.number(),
                self.replica.number(),
                clock.now_ns(),
                keep,
            )
        )

    def chmod(self, path: str, mode: int) -> None:
        inode = self.tree.inode(self.ino(path))
        mode |= stat.S_IFMT(inode.mode)
        self.replica.record(ops.SetAttributes(inode.ino, {"mode": mode, "ctime": clock.now_ns()}))

    def setxattr(self, path: str, name: bytes, value: bytes, flags: int = 0) -> None:
        self.replica.record(ops.SetXattr(self.ino(path), name, value, flags, clock.now_ns()))

    def open(self, path: str) -> int:
        ino = self.ino(path)
        self.opened.add(ino)
        return ino

    def close(self, ino: int) -> None:
        self.opened.discard(ino)
        inode = self.tree.find(ino)
        if inode is not None and inode.nlink == 0:
            self.replica.record(ops.Reap(ino))

    # ---- what they see ----------------------------------------------------------------------

    def read_ino(self, ino: int) -> bytes:
        data = bytearray(self.tree.inode(ino).size)
        for x in self.tree.all_extents(ino):
            assert x.data is not None
            data[x.start : x.end] = x.data[x.skip : x.skip + x.length]
        return bytes(data)

    def read(self, path: str) -> bytes:
        return self.read_ino(self.ino(path))

    def files(self, ino: int = ROOT, prefix: str = "") -> dict[str, bytes | None]:
        """Every path, with the contents of files."""
        found: dict[str, bytes | None] = {}
        for entry in self.tree.names(ino):
            path = prefix + "/" + os.fsdecode(entry.name)
            inode = self.tree.inode(entry.ino)
            found[path] = self.read_ino(entry.ino) if inode.is_file else None
            if inode.is_dir:
                found.update(self.files(entry.ino, path))
        return found


def refusal(function: object, *args: object) -> str:
    """The name of the errno with which a call is refused."""
    try:
        function(*args)  # type: ignore[operator]
    except Refused as no:
        return errno.errorcode[no.errno]
    return "done"
