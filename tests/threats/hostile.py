"""A volume to attack, and a store that lies.

`Site` is a volume as it lies in a store, with what a machine that knows it remembers, and what
every file holds.  Each test gets copies of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from megafs.errors import Exists, Fault
from megafs.fs.filesystem import FileSystem
from megafs.stores.base import Entry, Page
from megafs.stores.memory import MemoryStore
from megafs.volume.upkeep import write_checkpoint
from tests.fakes.machine import (
    Change,
    Machine,
    Recording,
    Snapshot,
    make_volume,
    mkdir,
    overwrite,
    read_file,
    replay,
    snapshot,
    store_of,
    write_file,
)

PARAMETERS = {"chunk_size": 65536, "pack_size": 1 << 20, "inline_limit": 512}


@dataclass(frozen=True)
class Site:
    """A volume in a store.

    objects: what the store holds.  changes: how they came.  tree: what is in the volume.
    checkpoints: their sequence numbers, oldest first.  head: the last commit's number.
    pack_of: the pack object that holds all of a file.
    before_overwrite: the pack that held "over" before its bytes were written anew.
    """

    objects: dict[str, bytes]
    changes: list[Change]
    tree: Snapshot
    checkpoints: tuple[int, int]
    head: int
    head_hash: str
    pack_of: dict[str, str]
    before_overwrite: str
    machine: Machine

    def known(self, base: Path, *, replica: bool = True) -> Machine:
        """A machine that had this volume open when it was as it is now."""
        machine = self.machine.copy(base)
        if not replica:
            for path in machine.volume_dir.glob("replica.db*"):
                path.unlink()
        return machine

    def at(self, commit: int) -> dict[str, bytes]:
        """What the store held when that commit had just been written."""
        last = next(n for n, c in enumerate(self.changes) if c.name == f"commits/{commit:016d}")
        return replay(self.changes[: last + 1])


async def make_site(base: Path) -> Site:
    store = Recording()
    await make_volume(store, **PARAMETERS)
    machine = Machine(base / "known", host="known")
    rng = random.Random(1)
    pack_of: dict[str, str] = {}

    def new_packs(before: set[str]) -> set[str]:
        return {n for n in store.objects if n.startswith("packs/")} - before

    async with machine.open(store) as volume:
        fs = volume.fs
        await mkdir(fs, "dir")
        for path, size in (("a", 60_000), ("b", 60_000), ("dir/c", 150_000), ("over", 60_000)):
            before = set(store.objects)
            await write_file(fs, path, rng.randbytes(size), sync=True)
            (pack_of[path],) = new_packs(before)
        await write_file(fs, "small", b"small contents", sync=True)
        first = await write_checkpoint(volume)
        before_overwrite = pack_of["over"]
        before = set(store.objects)
        await overwrite(fs, "over", 0, rng.randbytes(60_000), sync=True)
        (pack_of["over"],) = new_packs(before)
        await write_file(fs, "later", b"later contents", sync=True)
        second = await volume.checkpointer.write()
        for name in ("tail1", "tail2", "tail3", "tail4"):
            await write_file(fs, name, name.encode(), sync=True)
        tree = await snapshot(fs)
        head, head_hash = volume.replica.sequence, volume.replica.head.hex()
        await volume.drain()
    assert first is not None
    assert first < second < head - 2
    objects = {n: d for n, d in store.objects.items() if not n.startswith("mounts/")}
    return Site(
        objects,
        store.changes,
        tree,
        (first, second),
        head,
        head_hash,
        pack_of,
        before_overwrite,
        machine,
    )


class Lying(MemoryStore):
    """A view of a store, with lies.

    Several clients may be shown different views of one dict of objects.

    on_get: called with (name, start, length, what is true, or None if there is no such object);
        returns what the client gets, or raises.
    hidden: names that neither get nor list shows.
    taken: names for which put_new says that they are taken.
    """

    def __init__(self, objects: dict[str, bytes]) -> None:
        super().__init__("lying")
        for name in sorted(objects):
            self._place(name, objects[name])
        self.on_get: Callable[[str, int, int, bytes | None], bytes] | None = None
        self.hidden: Callable[[str], bool] = lambda name: False
        self.taken: Callable[[str], bool] = lambda name: False
        self.gets: list[tuple[str, int, int]] = []
        self.puts: list[str] = []

    async def get(self, name: str, start: int, length: int) -> bytes:
        self.gets.append((name, start, length))
        if self.on_get is not None:
            await trio.lowlevel.checkpoint()
            data = self.objects.get(name)
            true = None if data is None or self.hidden(name) else data[start : start + length]
            return self.on_get(name, start, length, true)
        if self.hidden(name):
            return await super().get("nothing/here", start, length)
        return await super().get(name, start, length)

    async def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self.puts.append(name)
        if self.taken(name):
            await trio.lowlevel.checkpoint()
            raise Exists(f"{name} is there already")
        await super().put_new(name, data)

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        page = await super().list(prefix, after, limit)
        shown: list[Entry] = [e for e in page.entries if not self.hidden(e.name)]
        return Page(shown, page.more)


async def readable(fs: FileSystem, tree: Snapshot) -> dict[str, Fault]:
    """Read every file; what can be read must be right.  Returns the files that cannot, and why."""
    failed: dict[str, Fault] = {}
    for path, node in tree.items():
        if node[0] != "file":
            continue
        try:
            got = await read_file(fs, path)
        except Fault as exc:
            failed[path] = exc
        else:
            assert got == node[1], f"{path}: wrong bytes"
    return failed


async def refused(
    machine: Machine,
    objects: dict[str, bytes],
    error: type[Fault],
    match: str | None = None,
    **settings: Any,
) -> Fault:
    """Opening must fail with *error*."""
    with pytest.raises(error, match=match) as failure:
        async with machine.open(store_of(objects), **settings):
            pass
    return failure.value
