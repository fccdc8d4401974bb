"""Every example of docs/semantics.md, run on two machines with one volume and a store in memory.

An example is a fenced block marked `mounts` (or `mounts strict`), one step a line.  A step that
must fail ends with the errno.  DATE stands for the date in the name of a conflict copy.
"""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from megafs.concurrency import in_place
from megafs.errors import Refused
from megafs.fs.filesystem import FileSystem
from megafs.stores.memory import MemoryStore
from megafs.tree.inode import ROOT as ROOT_INO
from megafs.tree.inode import SetAttr
from megafs.volume.volume import Volume
from tests.fs.opened import ROOT, contents, new_store_here, opened
from tests.sim.link import Link

PAGE = Path(__file__).parents[2] / "docs" / "semantics.md"
EXAMPLES = [
    pytest.param(match[1].strip(), match[2].splitlines(), id=f"line {line}")
    for text in [PAGE.read_text()]
    for match in re.finditer(r"^```mounts(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE)
    for line in [text[: match.start()].count("\n") + 1]
]
DATE = re.compile(r"\d{4}-\d\d-\d\d \d\d\.\d\d\.\d\d")


class Machine:
    """A machine of an example: goes on with the same disk after a crash (the last one can)."""

    def __init__(self, name: str, place: Path, store: MemoryStore, consistency: str) -> None:
        self.name = name
        self.place = place / name
        self.link = Link(store, random.Random(0), lambda *args: None)
        self._consistency = consistency
        self._stack = AsyncExitStack()
        self._handle: int | None = None

    async def start(self) -> None:
        self.volume: Volume = await self._stack.enter_async_context(
            opened(self.place, self.link, host=self.name, consistency=self._consistency)
        )

    async def stop(self) -> None:
        await self._stack.aclose()

    async def crash(self) -> None:
        copy = self.place.with_name(self.place.name + "-after")
        shutil.copytree(self.place, copy)
        await self.stop()
        self.place = copy
        await self.start()

    @property
    def fs(self) -> FileSystem:
        return self.volume.fs

    def _find(self, path: str) -> int:
        at = ROOT_INO
        for part in path.strip("/").split("/"):
            if part:
                there = {
                    DATE.sub("DATE", entry.name.decode()): entry.ino
                    for entry in self.fs.core.tree.names(at)
                }
                if part not in there:
                    raise Refused(errno.ENOENT)
                at = there[part]
        return at

    def _place(self, path: str) -> tuple[int, bytes]:
        above, _, name = path.rpartition("/")
        return self._find(above), name.encode()

    async def does(self, what: str) -> str:
        """Do one step; return what it shows."""
        match what.split(" ", 1):
            case ["writes", rest] if rest.startswith("to what is open"):
                assert self._handle is not None
                await self.fs.write(self._handle, 0, b"x")
            case ["writes", rest]:
                path, _, text = rest.partition(": ")
                await self._write(path, text.encode())
            case ["reads" | "read", "what is open"]:
                assert self._handle is not None
                return bytes(await self.fs.read(self._handle, 0, 1000)).decode()
            case ["reads" | "read", path]:
                return (await contents(self.fs, self._find(path))).decode()
            case ["list" | "lists", path]:
                names = [entry.name.decode() for entry in self.fs.core.tree.names(self._find(path))]
                return ", ".join(DATE.sub("DATE", name) for name in sorted(names))
            case ["opens", path]:
                self._handle, _ = await self.fs.open(self._find(path), os.O_RDWR, ROOT)
            case ["makes", path]:
                await self.fs.mkdir(*self._place(path), 0o755, ROOT)
            case ["removes", path]:
                is_dir = self.fs.getattr(self._find(path)).is_dir
                await (self.fs.rmdir if is_dir else self.fs.unlink)(*self._place(path), ROOT)
            case ["moves", rest]:
                old, _, new = rest.partition(" to ")
                await self.fs.rename(*self._place(old), *self._place(new), 0, ROOT)
            case ["sets" | "see", rest]:
                path, _, mode = rest.removeprefix("the mode of ").partition(" to ")
                ino = self._find(path)
                if mode:
                    await self.fs.setattr(ino, SetAttr(mode=int(mode, 8)), ROOT)
                return oct(self.fs.getattr(ino).mode & 0o777)[2:]
            case _:
                raise AssertionError(f"not a step: {what}")
        return ""

    async def _write(self, path: str, text: bytes) -> None:
        parent, name = self._place(path)
        ino = self.fs.core.tree.child(parent, name)
        if ino is None:
            handle, _ = await self.fs.create(parent, name, 0o644, os.O_RDWR, ROOT)
        else:
            handle, _ = await self.fs.open(ino, os.O_RDWR | os.O_TRUNC, ROOT)
        await self.fs.write(handle, 0, text)
        await self.fs.flush(handle)
        await self.fs.release(handle)


@asynccontextmanager
async def two_machines(place: Path, consistency: str) -> AsyncIterator[dict[str, Machine]]:
    store = await new_store_here()
    machines = {name: Machine(name, place, store, consistency) for name in ("anna", "berta")}
    try:
        for machine in machines.values():
            await machine.start()
        yield machines
    finally:
        for machine in reversed(machines.values()):  # nurseries end in the order of their nesting
            await machine.stop()  # noqa: ASYNC102


async def together(machines: list[Machine]) -> None:
    for machine in machines:
        machine.link.cut = False
    while len({m.volume.replica.head for m in machines}) > 1 or any(
        m.volume.replica.pending or m.volume.replica.open_operations for m in machines
    ):
        for machine in machines:
            await machine.volume.drain()
            await machine.volume.writer.catch_up()


async def step(machines: dict[str, Machine], line: str) -> None:
    words = line.split()
    if line == "apart":
        for machine in machines.values():
            machine.link.cut = True
    elif line == "together":
        await together(list(machines.values()))
    elif words[1:] == ["meets"]:
        await together([machines[words[0]]])
    elif words[1:] == ["seconds", "pass"]:
        await trio.sleep(float(words[0]))
    elif words[1:] == ["crashes"]:
        await machines[words[0]].crash()
    else:
        who, what = line.split(" ", 1)
        chosen = list(machines.values()) if who == "both" else [machines[who]]
        for machine in chosen:
            await check(machine, what)


async def check(machine: Machine, what: str) -> None:
    """Do a step of one machine, and look at what it shows, or which errno it fails with."""
    act, _, wanted = what.rpartition(": ")
    if wanted in errno.errorcode.values():
        with pytest.raises(Refused) as no:
            await machine.does(act)
        assert errno.errorcode[no.value.errno] == wanted, what
    elif act and not act.startswith("writes"):
        assert await machine.does(act) == wanted, f"{machine.name} {what}"
    else:
        await machine.does(what)


@pytest.mark.parametrize(("options", "lines"), EXAMPLES)
async def test_example(
    options: str, lines: list[str], tmp_path: Path, autojump_clock: MockClock
) -> None:
    with in_place():
        consistency = "strict" if options == "strict" else "close-to-open"
        async with two_machines(tmp_path, consistency) as machines:
            await together(list(machines.values()))
            for line in lines:
                await step(machines, line)


def test_the_page_has_an_example_for_every_rule_of_merging() -> None:
    assert len(EXAMPLES) >= 16
