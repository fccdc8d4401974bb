"""Volumes opened in this process, for tests of the journal, of crashes and of hostile stores.

A `Machine` is one state directory and one cache directory: what a computer remembers.  A `World` is
one store with a volume in it, and any number of machines.  The credential is a key file, so that no
test pays for Argon2; threads run in place, so that trio's autojump clock works.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from megafs.concurrency import in_place
from megafs.config import Parameters, Settings
from megafs.errors import Fault, StoreError, leaf
from megafs.fs.filesystem import FileSystem
from megafs.fs.open_files import LiveFile
from megafs.fs.requests import Caller
from megafs.stores.base import Buffer, ObjectStore
from megafs.stores.memory import MemoryStore
from megafs.tree.inode import ROOT, SetAttr
from megafs.volume.create import format_volume
from megafs.volume.header import Credential
from megafs.volume.open import open_volume
from megafs.volume.volume import Volume

KEY = Credential(keyfile=bytes(range(64)))
ROOT_USER = Caller(0, 0, 0, 0)
URL = "memory://test"

#: What a path is: ("dir",), ("file", contents), ("link", target).
Node = tuple[Any, ...]
Snapshot = dict[str, Node]


def live_file(fs: FileSystem, fh: int) -> LiveFile:
    """The open file of the present tree that a handle stands for."""
    file = fs.file(fh)
    assert isinstance(file, LiveFile)
    return file


@dataclass(frozen=True)
class Change:
    """One change of a store: op is "put_new", "put" or "delete", or "refused"."""

    op: str
    name: str
    data: bytes = b""


class Recording(MemoryStore):
    """A MemoryStore that keeps every change that was made to it, in order.

    latency: called for how long a change takes to reach the store, and how long its reply takes.
    moments: for each change, ("begin", number) and ("end", number): between the two a crash of the
        client may or may not find it done.
    """

    def __init__(self, name: str = "recorded", latency: Callable[[], float] | None = None) -> None:
        super().__init__(name)
        self.changes: list[Change] = []
        self.moments: list[tuple[str, int]] = []
        self.latency = latency

    async def put_new(self, name: str, data: Buffer) -> None:
        async with self._recorded(Change("put_new", name, bytes(data))):
            await super().put_new(name, data)

    async def put(self, name: str, data: Buffer) -> None:
        async with self._recorded(Change("put", name, bytes(data))):
            await super().put(name, data)

    async def delete(self, name: str) -> None:
        async with self._recorded(Change("delete", name)):
            await super().delete(name)

    @asynccontextmanager
    async def _recorded(self, change: Change) -> AsyncIterator[None]:
        number = len(self.changes)
        self.changes.append(change)
        self.moments.append(("begin", number))
        if self.latency is not None:
            await trio.sleep(self.latency())
        try:
            yield
        except StoreError:  # refused: nothing changed
            self.changes[number] = Change("refused", change.name)
            self.moments.append(("end", number))
            raise
        if self.latency is not None:
            await trio.sleep(self.latency())
        self.moments.append(("end", number))

    def certain(self, moment: int) -> tuple[list[Change], list[Change]]:
        """At that moment: the changes that were done, and those that may or may not be."""
        begun = {n for what, n in self.moments[:moment] if what == "begin"}
        ended = {n for what, n in self.moments[:moment] if what == "end"}
        return (
            [self.changes[n] for n in sorted(ended)],
            [self.changes[n] for n in sorted(begun - ended)],
        )


def store_of(objects: dict[str, bytes]) -> MemoryStore:
    """A store that holds exactly these objects."""
    store = MemoryStore("replayed")
    for name in sorted(objects):
        store._place(name, objects[name])
    return store


def replay(changes: list[Change], into: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """The objects of a store to which these changes were made."""
    objects = dict(into or {})
    for change in changes:
        if change.op == "delete":
            objects.pop(change.name, None)
        elif change.op == "put" or (change.op == "put_new" and change.name not in objects):
            objects[change.name] = change.data
    return objects


@dataclass
class Machine:
    """One computer: what it keeps, and how it opens a volume."""

    base: Path
    host: str = "host"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.base / "state"

    @property
    def volume_dir(self) -> Path:
        """The state of the one volume this machine knows."""
        (found,) = (self.state / "volumes").iterdir()
        return found

    def copy(self, base: Path) -> Machine:
        """What lies on this machine's disk now, as another machine: a crash at this moment."""
        shutil.copytree(self.base, base)
        return Machine(base, self.host, self.settings)

    @asynccontextmanager
    async def open(
        self,
        store: ObjectStore | None,
        *,
        url: str = URL,
        credential: Credential = KEY,
        say: Callable[[str], None] = lambda text: None,
        **settings: Any,
    ) -> AsyncIterator[Volume]:
        """Open the volume; what goes wrong inside comes out as itself, not as a group."""
        wanted = {"stage_min_free": 0, **self.settings, **settings}
        chosen = Settings(state_dir=self.state, cache_dir=self.base / "cache", **wanted)
        with in_place():
            try:
                async with open_volume(
                    url, credential, chosen, host=self.host, store=store, say=say
                ) as volume:
                    yield volume
            except BaseExceptionGroup as group:
                cause = leaf(group)
                if isinstance(cause, Fault | AssertionError):
                    raise cause from group
                raise


async def make_volume(store: ObjectStore, **parameters: Any) -> None:
    """Format *store*."""
    await format_volume(store, KEY, Parameters(**parameters))


# ---- small files by path, over FileSystem ------------------------------------------------------


def resolve(fs: FileSystem, path: str) -> int:
    """The inode at a path."""
    ino = ROOT
    for part in [p for p in path.split("/") if p]:
        ino = fs.lookup(ino, part.encode()).ino
    return ino


def _split(fs: FileSystem, path: str) -> tuple[int, bytes]:
    above, _, name = path.strip("/").rpartition("/")
    return resolve(fs, above), name.encode()


async def write_file(
    fs: FileSystem, path: str, data: bytes, *, sync: bool = False, close: bool = True
) -> None:
    """Make a file, write it, close it; sync: fsync(2) it before."""
    parent, name = _split(fs, path)
    fh, _ = await fs.create(parent, name, 0o644, os.O_RDWR, ROOT_USER)
    try:
        for start in range(0, len(data), 1 << 17):
            await fs.write(fh, start, data[start : start + (1 << 17)])
        if sync:
            await fs.fsync(fh, False)
        if close:
            await fs.flush(fh)
    finally:
        await fs.release(fh)


async def overwrite(
    fs: FileSystem, path: str, offset: int, data: bytes, *, sync: bool = False
) -> None:
    """Write into a file that is there, and close it."""
    fh, _ = await fs.open(resolve(fs, path), os.O_RDWR, ROOT_USER)
    try:
        await fs.write(fh, offset, data)
        if sync:
            await fs.fsync(fh, False)
        await fs.flush(fh)
    finally:
        await fs.release(fh)


async def truncate(fs: FileSystem, path: str, size: int) -> None:
    await fs.setattr(resolve(fs, path), SetAttr(size=size), ROOT_USER)


async def mkdir(fs: FileSystem, path: str) -> None:
    parent, name = _split(fs, path)
    await fs.mkdir(parent, name, 0o755, ROOT_USER)


async def symlink(fs: FileSystem, path: str, target: str) -> None:
    parent, name = _split(fs, path)
    await fs.symlink(parent, name, target.encode(), ROOT_USER)


async def unlink(fs: FileSystem, path: str) -> None:
    parent, name = _split(fs, path)
    await fs.unlink(parent, name, ROOT_USER)


async def rmdir(fs: FileSystem, path: str) -> None:
    parent, name = _split(fs, path)
    await fs.rmdir(parent, name, ROOT_USER)


async def rename(fs: FileSystem, old: str, new: str) -> None:
    await fs.rename(*_split(fs, old), *_split(fs, new), 0, ROOT_USER)


async def read_file(fs: FileSystem, path: str) -> bytes:
    """All bytes of a file."""
    fh, _ = await fs.open(resolve(fs, path), os.O_RDONLY, ROOT_USER)
    try:
        parts = []
        at = 0
        while part := bytes(await fs.read(fh, at, 1 << 17)):
            parts.append(part)
            at += len(part)
        return b"".join(parts)
    finally:
        await fs.release(fh)


async def snapshot(fs: FileSystem) -> Snapshot:
    """Everything in the tree, by path."""
    found: Snapshot = {}

    async def walk(ino: int, above: str) -> None:
        fh = fs.opendir(ino)
        after = 0
        while entries := fs.readdir(fh, after, 1000):
            for name, inode, after in entries:  # noqa: B007
                path = f"{above}{name.decode()}"
                if stat.S_ISDIR(inode.mode):
                    found[path] = ("dir",)
                    await walk(inode.ino, path + "/")
                elif stat.S_ISLNK(inode.mode):
                    found[path] = ("link", fs.readlink(inode.ino))
                else:
                    found[path] = ("file", await read_file(fs, path))
        fs.releasedir(fh)

    await walk(ROOT, "")
    return found
