"""One simulated schedule: a seed decides everything that happens, and in which order.

Two to four machines mount one volume; programs on them do random operations while requests fail,
machines are cut off, crash, and come back with the disk they had.  Then the weather clears, all
that waits is brought to the store, everybody catches up, and `_judge` looks at what is left:

    every replica holds the same rows, and they are a sound tree (tests/tree/invariants.py)
    every machine reads the same bytes, and so does a machine that has never seen the volume
    no acknowledged byte is missing (witness.py)
    what the kernel of each machine was told still holds
    the journal cut off anywhere mounts, and is a sound tree as well

Time is virtual, threads run in place, trio's scheduler and every random number come from the seed:
the same seed gives the same tree (`Outcome.digest`).
"""

from __future__ import annotations

import errno as e
import itertools
import logging
import os
import random
import shutil
import stat
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
import trio._core._run as trio_run
from blake3 import blake3
from trio.testing import MockClock

from megafs import clock
from megafs.concurrency import in_place
from megafs.config import KIB, Atime, Fsync, Parameters, Settings
from megafs.errors import Corrupt, Fault, Refused, Unavailable, leaf
from megafs.fs.dirty_block import DirtyBlock
from megafs.fs.file_data import FileData
from megafs.fs.filesystem import FileSystem
from megafs.fs.requests import Caller, Invalidation
from megafs.journal.batches import StrictOutcome
from megafs.stores.memory import MemoryStore
from megafs.stores.retry import Retrying
from megafs.tree import ops
from megafs.tree.inode import ROOT, SetAttr
from megafs.volume import upkeep
from megafs.volume.create import format_volume
from megafs.volume.header import Credential
from megafs.volume.open import open_volume
from megafs.volume.upkeep import write_checkpoint
from megafs.volume.volume import Volume
from tests.fakes.machine import live_file
from tests.sim.link import CALM, ROUGH, STORM, Link
from tests.sim.witness import LOCAL, STORE, TAG, Tag, Witness, tags_in
from tests.tree import invariants

KEY = Credential(keyfile=bytes(range(64)))
USER = Caller(0, 0, 0, 0)
URL = "memory://simulation"
HOSTS = ("anna", "berta", "clara", "doris", "emil", "frida")
CHUNK = 16 * KIB
START_NS = 1_700_000_000 * 10**9

PARAMETERS = (
    Parameters(chunk_size=CHUNK, pack_size=64 * KIB, inline_limit=64, quota=None),
    Parameters(chunk_size=CHUNK, pack_size=64 * KIB, inline_limit=1 * KIB, quota=None),
    Parameters(
        chunk_size=CHUNK, pack_size=64 * KIB, inline_limit=64, quota=None, deduplication=True
    ),
)

#: What a program may get as an answer, and the user must be able to understand.
ANSWERS = frozenset(
    (
        e.ENOENT,
        e.EEXIST,
        e.ENOTEMPTY,
        e.EISDIR,
        e.ENOTDIR,
        e.ESTALE,
        e.EINVAL,
        e.EBUSY,
        e.ENODATA,
        e.EPERM,
    )
)

#: Seconds between two operations of one program.
SLOW = (0, 0, 0.001, 0.1, 0.5, 1.0, 3.0)
FAST = (0, 0, 0, 0.001, 0.2, 1.0)
FILES = tuple(b"f%d" % n for n in range(5))
DIRECTORIES = tuple(b"d%d" % n for n in range(3))


class Wrong(AssertionError):
    """A promise was broken."""


@dataclass
class Outcome:
    """What a schedule came to."""

    seed: int
    digest: str
    operations: int
    answers: Counter[str]
    commits: int
    races: int
    conflicts: int
    crashes: int
    tags: int
    acknowledged: int
    seconds: float


@dataclass
class Open:
    """A file that a program has open."""

    fh: int
    ino: int
    writable: bool


@dataclass
class Plan:
    """What the seed decided about the world, before anything happens."""

    machines: int
    operations: int
    programs: int
    strict: tuple[bool, ...]
    fsync: tuple[Fsync, ...]
    atime: Atime
    retrying: bool
    weather: str
    checkpoint_every: int
    parameters: int
    pauses: tuple[float, ...]
    files: tuple[bytes, ...]
    directories: tuple[bytes, ...]
    events: list[tuple[float, str, int, float]] = field(default_factory=list)
    #: Copies of a machine's disk that run as machines of their own: when, of which, how it is made,
    #: and how long after.
    clones: list[tuple[float, int, str, float]] = field(default_factory=list)

    def draw_clones(self, rng: random.Random) -> None:
        """Now and then a machine's state directory is copied, whether it is up or down."""
        for _ in range(rng.choice((0, 0, 0, 0, 1, 1, 2))):
            how = rng.choice(("whole", "whole", "log first", "database first"))
            since = rng.uniform(0, 25)
            self.clones.append((since, rng.randrange(self.machines), how, rng.uniform(0, 20)))
        for _ in self.clones:
            self.strict += (rng.random() < 0.2,)
            self.fsync += (rng.choice(("local", "store")),)

    @classmethod
    def draw(cls, rng: random.Random, operations: int | None = None) -> Plan:
        machines = rng.choice((2, 2, 2, 3, 3, 4))
        style = rng.random()
        plan = cls(
            machines,
            operations or rng.randrange(20, 45),
            rng.choice((1, 1, 2)),
            tuple(style < 0.15 or (style < 0.35 and rng.random() < 0.5) for _ in range(machines)),
            tuple(rng.choice(("local", "store")) for _ in range(machines)),
            rng.choice(("noatime", "noatime", "relatime")),
            rng.random() < 0.5,
            rng.choice(("calm", "rough", "rough", "storm")),
            rng.choice((4, 256)),
            rng.choice((0, 0, 0, 1, 2)),
            rng.choice((SLOW, FAST)),
            FILES[: rng.choice((2, 3, 5))],
            DIRECTORIES[: rng.choice((2, 2, 3))],
        )
        if rng.random() < 0.4:
            # All work apart for a while, then meet.
            since = rng.uniform(0.5, 4)
            plan.events.extend(
                (since, "cut", index, rng.uniform(5, 40))
                for index in range(machines)
                if index < machines - 1 or rng.random() < 0.5
            )
        kinds = (
            *("cut", "cut", "cut", "crash", "crash", "restart", "checkpoint"),
            *("restore", "loss", "damage"),
        )
        for _ in range(rng.choice((0, 1, 2, 3, 4, 6))):
            kind = rng.choice(kinds)
            if kind in ("restore", "loss") and rng.random() < 0.6:
                kind = "crash"
            plan.events.append(
                (rng.uniform(0, 40), kind, rng.randrange(machines), rng.uniform(0, 25))
            )
        plan.events.sort()
        return plan


_skew: ContextVar[int] = ContextVar("skew", default=0)


class World:
    """Everything that one schedule consists of."""

    def __init__(self, seed: int, plan: Plan, directory: Path) -> None:
        self.seed = seed
        self.plan = plan
        self.directory = directory
        self.store = MemoryStore("simulation")
        self.witness = Witness(self.store.objects)
        self.machines: list[Machine] = []
        self.later: Callable[..., None] = lambda *a: None
        self.furnished = trio.Event()
        self.operations = 0
        self.crashes = 0
        self.races = 0
        self.commits = 0
        self.answers: Counter[str] = Counter()
        self.by_replica: dict[int, Machine] = {}
        self.log: list[str] = []

    def waiting(self) -> list[str]:
        return [
            f"{m.host}: {'up' if m.volume else 'down'}, {'idle' if m.idle else 'busy'},"
            f" {m.left} left"
            for m in self.machines
        ]

    def rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.seed}/{purpose}")

    def tell(self, text: str) -> None:
        self.log.append(f"{trio.current_time():8.3f} {text}")

    def before_write(self, contents: FileData, offset: int, size: int) -> None:
        """A machine is about to overwrite what it sees in [offset, offset+size)."""
        machine = self.by_replica.get(id(contents._replica))
        if machine is not None and machine.volume is not None:
            self.witness.destroyed |= self.witness.visible(
                machine.volume, contents.ino, contents, offset, offset + size
            )

    def before_cut(self, contents: FileData, size: int) -> None:
        """A machine is about to cut a file in memory."""
        machine = self.by_replica.get(id(contents._replica))
        if machine is not None and machine.volume is not None:
            self.witness.destroyed |= self.witness.visible(
                machine.volume, contents.ino, contents, size
            )


class Machine:
    """A computer: its disk, its way to the store, its programs."""

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index
        self.host = HOSTS[index]
        self.rng = world.rng(f"machine {index}")
        self.net_rng = world.rng(f"network {index}")
        self.generation = 0
        self.directory = world.directory / f"{self.host}-0"
        self.backup: tuple[Path, float] | None = None
        self.left = world.plan.operations // world.plan.machines
        self.link: Link | None = None
        self.volume: Volume | None = None
        self.scope: trio.CancelScope | None = None
        self.down_for = 0.0
        self.cut = False
        self.rates = CALM
        self.files: list[Open] = []
        self.unacknowledged: dict[int, list[int]] = {}
        self.idle = False
        # What a kernel would have cached: (directory, name) -> inode, inode -> (size, mtime).
        self.names: dict[tuple[int, bytes], int] = {}
        self.attributes: dict[int, tuple[int, ...]] = {}

    # ---- being up, going down ---------------------------------------------------------------

    async def live(self) -> None:
        """Mount, run the programs, go down as told, come up again; for ever."""
        _skew.set(self.rng.randrange(-5, 6) * 10**9)
        if self.index:
            await self.world.furnished.wait()
            await trio.sleep(self.rng.uniform(0, 3))
        while True:
            self.link = Link(self.world.store, self.net_rng, self.world.later)
            self.link.cut = self.cut
            self.link.rates = self.rates
            store = Retrying(self.link, 20.0) if self.world.plan.retrying else self.link
            with trio.CancelScope() as self.scope:
                try:
                    async with open_volume(
                        URL, KEY, self._settings(), host=self.host, store=store
                    ) as volume:
                        self._came_up(volume)
                        async with trio.open_nursery() as nursery:
                            await self.world.furnished.wait()
                            for n in range(self.world.plan.programs):
                                nursery.start_soon(self._program, n)
                        self.idle = True
                        await trio.sleep_forever()
                except Unavailable as exc:
                    self.world.tell(f"{self.host}: cannot mount: {exc}")
                    self.down_for = 2.0
                except BaseExceptionGroup as group:
                    cause = leaf(group)
                    if isinstance(cause, trio.Cancelled):
                        raise
                    raise Wrong(f"{self.host} fell over: {cause!r}") from group
                finally:
                    self._went_down()
            await trio.sleep(self.down_for)

    def _settings(self) -> Settings:
        plan = self.world.plan
        return Settings(
            state_dir=self.directory / "state",
            cache_dir=self.directory / "cache",
            cache_min_free=0,
            stage_min_free=0,
            fsync=plan.fsync[self.index],
            consistency="strict" if plan.strict[self.index] else "close-to-open",
            atime=plan.atime,
            deadline=20.0,
        )

    def _came_up(self, volume: Volume) -> None:
        self.world.tell(f"{self.host}: up at commit {volume.replica.sequence}")
        self.volume = volume
        self.world.by_replica[id(volume.replica)] = self
        apply = volume.replica.record

        def record(op: ops.Operation, outcome: StrictOutcome | None = None) -> None:
            destroys = self._destroys(op)
            apply(op, outcome)
            self.world.witness.destroyed |= destroys
            if not isinstance(op, ops.AddPack | ops.ClaimRange):
                self.world.tell(f"{self.host}:     {_brief(op)}")

        volume.replica.record = record  # type: ignore[method-assign]
        volume.fs.attach_kernel(self._invalidate)

    def _went_down(self) -> None:
        if self.volume is not None:
            self.world.races += self.volume.writer.races_lost
            self.world.commits += self.volume.writer.commits
            self.world.by_replica.pop(id(self.volume.replica), None)
        self.volume = None
        self.idle = False
        self.files.clear()
        self.unacknowledged.clear()
        self.names.clear()
        self.attributes.clear()

    def _destroys(self, op: ops.Operation) -> set[int]:
        """The tags that this machine sees and that *op* may take away from everybody."""
        assert self.volume is not None
        tree, witness = self.volume.replica.tree, self.world.witness
        match op:
            case ops.Unlink(ino=ino):
                pass
            case ops.Rename(replaced=ino, flags=flags) if ino and not flags & ops.RENAME_EXCHANGE:
                pass
            case ops.SetContents(ino=ino, cut=cut) if cut is not None:
                return witness.visible(self.volume, ino, None, cut)
            case _:
                return set()
        if tree.find(ino) is None:
            return set()
        return witness.visible(self.volume, ino, self.volume.fs.core.files.get(ino))

    def go_down(self, kind: str, seconds: float) -> None:
        """Go down, and come up again after so many seconds.

        crash: as if killed: the disk keeps all that was written.  damage: the same, and the replica
        is gone.  restore: the disk is as it was some time ago.  loss: the disk is empty.  restart:
        the process ends in order.
        """
        world = self.world
        assert self.scope is not None
        self.down_for = seconds
        if kind != "restart":
            world.crashes += 1
            self.generation += 1
            new = world.directory / f"{self.host}-{self.generation}"
            old, since = self.directory, trio.current_time()
            if kind == "restore" and self.backup is not None:
                old, since = self.backup
                world.witness.state_lost(self.index, since)
            elif kind == "loss":
                world.witness.state_lost(self.index, 0.0)
            if kind != "loss" and old.exists():
                shutil.copytree(old, new)
            if kind == "damage":
                for path in new.glob("state/volumes/*/replica.db*"):
                    path.unlink()
            self.directory = new
            if self.link is not None:
                self.link.end()
        self.idle = False
        world.tell(f"{self.host}: {kind}, down for {seconds:.1f} s")
        self.scope.cancel()

    def back_up(self) -> None:
        """Copy the disk, for a later `restore`."""
        if self.directory.exists() and self.backup is None:
            target = self.world.directory / f"{self.host}-backup"
            shutil.copytree(self.directory, target)
            self.backup = (target, trio.current_time())

    async def copy_of(self, other: Machine, how: str) -> None:
        """Begin with a copy of another machine's disk, which may be up; *how* is the order."""
        late = {"log first": "replica.db*", "database first": "ops-*"}.get(how, "")
        if not other.directory.exists():
            return
        source = other.directory
        skip = shutil.ignore_patterns(late) if late else None
        shutil.copytree(source, self.directory, ignore=skip)
        if late:
            await trio.sleep(self.rng.uniform(0, 2))
            for path in sorted(source.glob(f"state/volumes/*/{late}")):
                shutil.copy2(path, self.directory / path.relative_to(source))

    def weather(self, rates: dict[str, float] | None = None, cut: bool | None = None) -> None:
        if rates is not None:
            self.rates = rates
        if cut is not None:
            self.cut = cut
        if self.link is not None:
            self.link.rates = self.rates
            self.link.cut = self.cut

    # ---- what its kernel believes -----------------------------------------------------------

    def _invalidate(self, told: list[Invalidation]) -> None:
        for what in told:
            if what.kind == "entry":
                assert what.name is not None
                self.names.pop((what.ino, what.name), None)
            else:
                self.attributes.pop(what.ino, None)

    def _believe(self, parent: int, name: bytes, ino: int) -> None:
        assert self.volume is not None
        fs = self.volume.fs
        fs.remember(ino)
        self.names[parent, name] = ino
        self._look(ino)

    def _look(self, ino: int) -> None:
        assert self.volume is not None
        self.attributes[ino] = _attributes(self.volume.fs, ino)

    def doubt(self) -> None:
        """Fail if the kernel would still believe something that is not so."""
        assert self.volume is not None
        fs, tree = self.volume.fs, self.volume.replica.tree
        for (parent, name), ino in self.names.items():
            if tree.find(fs.core.current(parent)) is None:
                continue  # nobody can ask for a name in a directory that is gone
            there = tree.child(fs.core.current(parent), name)
            if there != fs.core.current(ino):
                raise Wrong(
                    f"{self.host}'s kernel believes that {name!r} in {parent} is {ino}:"
                    f" it is {there}"
                )
        for ino, believed in self.attributes.items():
            if tree.find(fs.core.current(ino)) is None:
                continue
            now = _attributes(fs, ino)
            if now != believed:
                raise Wrong(f"{self.host}'s kernel believes {believed} of {ino}: it is {now}")

    # ---- its programs -----------------------------------------------------------------------

    async def _program(self, number: int) -> None:
        rng = self.rng
        while self.left > 0:
            await trio.sleep(rng.choice(self.world.plan.pauses))
            if self.left <= 0:
                return
            self.left -= 1
            name, act = rng.choice(_ACTIONS)
            self.world.operations += 1
            self.world.tell(f"{self.host}: {name}")
            try:
                await act(self)
                answer = "ok"
            except Refused as no:
                if no.errno not in ANSWERS:
                    raise Wrong(f"{self.host}: {name}: {e.errorcode.get(no.errno)}") from no
                answer = e.errorcode[no.errno]
            except Unavailable as exc:
                answer = "EIO"
                self.world.tell(f"{self.host}: {name}: {exc}")
            except BaseExceptionGroup as group:
                cause = leaf(group)
                if not isinstance(cause, Unavailable):
                    raise
                answer = "EIO"
            self.world.answers[f"{name} {answer}"] += 1
            self.world.tell(f"{self.host}: {name}: {answer}")

    @property
    def fs(self) -> FileSystem:
        assert self.volume is not None
        return self.volume.fs

    def _some_directory(self) -> int:
        rng, tree = self.rng, self.fs.core.tree
        at = ROOT
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            below = [d.ino for d in tree.names(at) if tree.inode(d.ino).is_dir]
            if not below:
                break
            at = rng.choice(below)
            self.fs.remember(at)
        return at

    def _some_name(self, parent: int, pool: tuple[bytes, ...]) -> bytes:
        there = [d.name for d in self.fs.core.tree.names(parent)]
        if there and self.rng.random() < 0.6:
            return self.rng.choice(there)
        return self.rng.choice(pool)

    def _existing(self, kind: Callable[[int], bool]) -> tuple[int, bytes, int] | None:
        """Some (directory, name, inode) of that kind."""
        tree = self.fs.core.tree
        for _ in range(4):
            parent = self._some_directory()
            there = [d for d in tree.names(parent) if kind(tree.inode(d.ino).mode)]
            if there:
                chosen = self.rng.choice(there)
                self._believe(parent, chosen.name, chosen.ino)
                return parent, chosen.name, chosen.ino
        return None

    def _forget_names(self, *names: tuple[int, bytes]) -> None:
        """The kernel itself knows what its own calls change."""
        for parent, name in names:
            self.attributes.pop(self.names.pop((parent, name), 0), None)
            self.attributes.pop(self.fs.core.tree.child(parent, name) or 0, None)
            self.attributes.pop(parent, None)

    async def furnish(self) -> None:
        """Some directories and files that everybody finds when they come."""
        plan = self.world.plan
        made = [await self.fs.mkdir(ROOT, name, 0o755, USER) for name in plan.directories[:2]]
        for parent in (ROOT, made[0].ino):
            for name in plan.files[:2]:
                fh, inode = await self.fs.create(parent, name, 0o644, os.O_RDWR, USER)
                file = Open(fh, inode.ino, True)
                await self._write_to(file)
                await self.close(file)
        assert self.volume is not None
        await self.volume.drain()

    async def _write_to(self, file: Open) -> None:
        rng, fs = self.rng, self.fs
        contents = live_file(fs, file.fh).data
        inode = fs.core.tree.find(contents.ino)
        if inode is None:
            await fs.write(file.fh, 0, b"")
            return
        size = contents.size // TAG
        at = rng.choice((0, size, size, rng.randrange(size + 1), CHUNK // TAG - 2))
        count = rng.choice((1, 1, 2, 8, 8, 70))
        numbers, data = self.world.witness.new(self.index, contents.ino, trio.current_time(), count)
        nameless = inode.nlink == 0
        self.attributes.pop(contents.ino, None)
        self.world.tell(
            f"{self.host}:     tags {numbers[0]}..{numbers[-1]} at {at * TAG} of {contents.ino}"
        )
        if not nameless:
            self.unacknowledged.setdefault(contents.ino, []).extend(numbers)
        try:
            await fs.write(file.fh, at * TAG, data)
        except BaseException:
            waiting = self.unacknowledged.get(contents.ino, [])
            self.unacknowledged[contents.ino] = [n for n in waiting if n not in set(numbers)]
            raise

    async def _acknowledged(
        self, file: Open, act: Callable[[], Awaitable[None]], level: int
    ) -> None:
        """Do what acknowledges all that was written to a file so far."""
        ino = live_file(self.fs, file.fh).data.ino
        numbers = list(self.unacknowledged.get(ino, []))
        link = self.link
        await act()
        if link is None or link.ended:
            return  # the machine has crashed: nobody was told
        self.world.witness.acknowledge(numbers, level, trio.current_time())
        if level == STORE:
            done = set(numbers)
            self.unacknowledged[ino] = [
                n for n in self.unacknowledged.get(ino, []) if n not in done
            ]

    async def close(self, file: Open) -> None:
        """close(2), as the kernel does it: flush, then release whatever flush said."""
        try:
            if file.writable:
                await self._acknowledged(file, lambda: self.fs.flush(file.fh), LOCAL)
        finally:
            if file in self.files:
                self.files.remove(file)
            with trio.CancelScope(shield=True):
                if self.volume is not None:
                    await self.fs.release(file.fh)

    async def fsync(self, file: Open) -> None:
        level = STORE if self.world.plan.fsync[self.index] == "store" else LOCAL
        await self._acknowledged(file, lambda: self.fs.fsync(file.fh, False), level)

    async def open(self, ino: int, flags: int) -> Open:
        fh, keep = await self.fs.open(ino, flags, USER)
        if not keep or flags & os.O_TRUNC:
            self.attributes.pop(ino, None)
        return Open(fh, ino, flags & os.O_ACCMODE != os.O_RDONLY)

    async def make(self) -> None:
        """Make a file, write it, close it or leave it open."""
        parent = self._some_directory()
        name = self._some_name(parent, self.world.plan.files)
        self._forget_names((parent, name))
        fh, inode = await self.fs.create(parent, name, 0o644, os.O_RDWR, USER)
        file = Open(fh, inode.ino, True)
        keep = self.rng.random() < 0.2
        try:
            if self.rng.random() < 0.9:
                await self._write_to(file)
        finally:
            if not keep:
                await self.close(file)  # noqa: ASYNC102
        if keep:
            self.files.append(file)

    async def change(self) -> None:
        """Open a file, write into it, perhaps sync, close it."""
        found = self._existing(stat.S_ISREG)
        if found is None:
            return
        flags = os.O_RDWR | (os.O_TRUNC if self.rng.random() < 0.2 else 0)
        file = await self.open(found[2], flags)
        try:
            for _ in range(self.rng.choice((1, 1, 2, 3))):
                await self._write_to(file)
                await trio.sleep(self.rng.choice((0, 0, 0.2)))
            if self.rng.random() < 0.3:
                await self.fsync(file)
        finally:
            await self.close(file)  # noqa: ASYNC102

    async def change_open(self) -> None:
        """Write into a file that was left open, or sync, or close it."""
        mine = [file for file in self.files if file.writable]
        if not mine:
            found = self._existing(stat.S_ISREG)
            if found is not None:
                self.files.append(await self.open(found[2], os.O_RDWR))
            return
        file = self.rng.choice(mine)
        act = self.rng.random()
        if act < 0.6:
            await self._write_to(file)
        elif act < 0.8:
            await self.fsync(file)
        else:
            await self.close(file)

    async def truncate(self) -> None:
        found = self._existing(stat.S_ISREG)
        if found is None:
            return
        ino = found[2]
        size = self.fs.getattr(ino).size // TAG
        self.attributes.pop(ino, None)
        cut = self.rng.choice((0, size // 2, size + 4))
        await self.fs.setattr(ino, SetAttr(size=cut * TAG), USER)

    async def remove(self) -> None:
        found = self._existing(lambda mode: not stat.S_ISDIR(mode))
        if found is None:
            return
        self._forget_names(found[:2])
        await self.fs.unlink(found[0], found[1], USER)
        self._forget_names(found[:2])  # who looked meanwhile would have waited for the call's end

    async def remove_directory(self) -> None:
        found = self._existing(stat.S_ISDIR)
        if found is None:
            return
        self._forget_names(found[:2])
        await self.fs.rmdir(found[0], found[1], USER)

    async def make_directory(self) -> None:
        parent = self._some_directory()
        name = self._some_name(parent, self.world.plan.directories)
        self._forget_names((parent, name))
        await self.fs.mkdir(parent, name, 0o755, USER)

    async def rename(self) -> None:
        kind = self.rng.random()
        found = self._existing(
            (lambda mode: True)
            if kind < 0.3
            else stat.S_ISDIR
            if kind < 0.6
            else (lambda mode: not stat.S_ISDIR(mode))
        )
        if found is None:
            return
        parent = self._some_directory()
        is_dir = self.fs.core.tree.inode(found[2]).is_dir
        plan = self.world.plan
        name = self._some_name(parent, plan.directories if is_dir else plan.files)
        flags = self.rng.choice((0, 0, 0, 0, ops.RENAME_NOREPLACE, ops.RENAME_EXCHANGE))
        self._forget_names(found[:2], (parent, name))
        await self.fs.rename(found[0], found[1], parent, name, flags, USER)

    async def link_name(self) -> None:
        found = self._existing(stat.S_ISREG)
        if found is None:
            return
        parent = self._some_directory()
        name = self._some_name(parent, self.world.plan.files)
        self._forget_names(found[:2], (parent, name))
        await self.fs.link(found[2], parent, name, USER)

    async def symlink(self) -> None:
        parent = self._some_directory()
        name = self._some_name(parent, self.world.plan.files)
        self._forget_names((parent, name))
        await self.fs.symlink(parent, name, b"somewhere", USER)

    async def attributes_of(self) -> None:
        found = self._existing(lambda mode: True)
        if found is None:
            return
        self.attributes.pop(found[2], None)
        what = self.rng.randrange(4)
        if what == 0:
            await self.fs.setattr(found[2], SetAttr(mode=self.rng.choice((0o600, 0o755))), USER)
        elif what == 1:
            mtime = START_NS + self.rng.randrange(10**9)
            await self.fs.setattr(found[2], SetAttr(mtime_ns=mtime), USER)
        elif what == 2:
            value = b"%d" % self.rng.randrange(100)
            await self.fs.setxattr(found[2], b"user.a", value, 0, USER)
        else:
            await self.fs.removexattr(found[2], b"user.a", USER)

    async def read(self) -> None:
        found = self._existing(stat.S_ISREG)
        if found is None:
            return
        file = await self.open(found[2], os.O_RDONLY)
        try:
            size = self.fs.getattr(found[2]).size
            data = bytes(await self.fs.read(file.fh, 0, size))
            for at in range(0, len(data), TAG):
                piece = data[at : at + TAG]
                if piece.strip(b"\0") and not (piece[0] == 60 and piece[-1] == 62):
                    raise Wrong(f"{self.host} read bytes at {at} that nobody wrote: {piece!r}")
        finally:
            await self.close(file)  # noqa: ASYNC102

    async def list_directory(self) -> None:
        fh = self.fs.opendir(self._some_directory())
        after, seen = 0, set()
        while entries := self.fs.readdir(fh, after, 2):
            for name, _, after in entries:  # noqa: B007
                if name in seen:
                    raise Wrong(f"{self.host}: {name!r} was listed twice")
                seen.add(name)
        self.fs.releasedir(fh)


_ACTIONS: tuple[tuple[str, Callable[[Machine], Awaitable[None]]], ...] = tuple(
    itertools.chain.from_iterable(
        [(name, act)] * weight
        for name, act, weight in (
            ("make", Machine.make, 6),
            ("change", Machine.change, 6),
            ("change open", Machine.change_open, 6),
            ("truncate", Machine.truncate, 2),
            ("remove", Machine.remove, 4),
            ("rmdir", Machine.remove_directory, 2),
            ("mkdir", Machine.make_directory, 4),
            ("rename", Machine.rename, 7),
            ("link", Machine.link_name, 2),
            ("symlink", Machine.symlink, 1),
            ("attributes", Machine.attributes_of, 2),
            ("read", Machine.read, 3),
            ("list", Machine.list_directory, 1),
        )
    )
)


def _brief(op: ops.Operation) -> str:
    """An operation without the bytes and the digests, which are not the seed's."""
    if isinstance(op, ops.SetContents):
        pieces = ", ".join(f"{x.start}+{x.length}" for x in op.pieces)
        return f"Contents({op.ino}, {op.base} -> {op.version}, cut={op.cut}, {op.size}: {pieces})"
    if isinstance(op, ops.Repack):
        moves = ", ".join(
            f"{ino} {version} -> {extent.pack} {extent.offset}+{extent.sealed}"
            for ino, version, extent in op.moves
        )
        return f"Repack({moves})"
    return str(op)


def _attributes(fs: FileSystem, ino: int) -> tuple[int, ...]:
    inode = fs.getattr(ino)
    return (inode.mode, inode.nlink, inode.size, inode.mtime_ns)


# ---- running it --------------------------------------------------------------------------------


@contextmanager
def _instrumented(world: World) -> Iterator[None]:
    """Let the witness see what is overwritten, in the step in which it is."""
    write, drop = FileData.write, FileData._drop_beyond
    every = upkeep.CHECKPOINT_EVERY

    def watched_write(self: FileData, offset: int, data: bytes | memoryview) -> int:
        world.before_write(self, offset, len(data))
        return write(self, offset, data)

    def watched_drop(self: FileData, size: int) -> dict[int, DirtyBlock]:
        world.before_cut(self, size)
        return drop(self, size)

    FileData.write = watched_write  # type: ignore[method-assign]
    FileData._drop_beyond = watched_drop  # type: ignore[method-assign]
    upkeep.CHECKPOINT_EVERY = world.plan.checkpoint_every
    try:
        yield
    finally:
        FileData.write = write  # type: ignore[method-assign]
        FileData._drop_beyond = drop  # type: ignore[method-assign]
        upkeep.CHECKPOINT_EVERY = every


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Time, randomness and the order of tasks from the seed alone."""
    rng = random.Random(f"{seed}/everything else")
    ticks = itertools.count()

    def elapsed() -> float:
        try:
            return trio.current_time()
        except RuntimeError:
            return 0.0

    def now_ns() -> int:
        return START_NS + int(elapsed() * 1e9) + next(ticks) * 1000 + _skew.get()

    # Final for type checkers, and there to be set: trio has no public face for it.
    allowed = trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    trio_run._r.seed(seed)
    try:
        with (
            clock.replaced(
                now_ns=now_ns,
                boottime=elapsed,
                stopwatch=elapsed,
                random_bytes=rng.randbytes,
                uniform=rng.uniform,
            ),
            in_place(),
        ):
            yield
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = allowed  # type: ignore[misc]


def memory(otherwise: Path) -> Path:
    """Where syncing to disk costs nothing."""
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else otherwise


def explain(seed: int, exc: BaseException) -> str:
    """One line for a broken schedule, and how to see more of it."""
    cause = leaf(exc)
    return f"seed {seed}: {type(cause).__name__}: {cause}  (python -m tests.sim.soak --only {seed})"


_formatted: dict[int, dict[str, bytes]] = {}


def _new_volume(parameters: int) -> dict[str, bytes]:
    """The objects of a new volume, made once and always the same."""
    if parameters not in _formatted:
        store = MemoryStore("new")
        with _deterministic(0):
            trio.run(_format, store, PARAMETERS[parameters])
        _formatted[parameters] = dict(store.objects)
    return _formatted[parameters]


async def _format(store: MemoryStore, parameters: Parameters) -> None:
    await format_volume(store, KEY, parameters, profile="low-memory")


def run(
    seed: int,
    *,
    operations: int | None = None,
    base: Path | None = None,
    log: list[str] | None = None,
) -> Outcome:
    """Run the schedule of *seed*; raise Wrong (or what went wrong) if a promise was broken.

    log: told, line by line, what happened.
    """
    rng = random.Random(f"{seed}/plan")
    plan = Plan.draw(rng, operations)
    plan.draw_clones(random.Random(f"{seed}/clones"))
    objects = _new_volume(plan.parameters)
    directory = (base or memory(Path("/tmp"))) / f"megafs-sim-{os.getpid()}-{seed}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    world = World(seed, plan, directory)
    if log is not None:
        world.log = log
    for name in sorted(objects):
        world.store._place(name, objects[name])
        world.store._modified[name] = 0.0  # long ago: no listing lacks it
    noise = logging.getLogger("megafs")
    level = noise.level
    noise.setLevel(logging.CRITICAL)
    try:
        with _deterministic(seed), _instrumented(world):
            return trio.run(_play, world, clock=MockClock(autojump_threshold=0))
    except BaseExceptionGroup as group:
        cause = leaf(group)
        if isinstance(cause, Wrong):
            raise cause from group
        raise
    finally:
        noise.setLevel(level)
        shutil.rmtree(directory, ignore_errors=True)


async def _play(world: World) -> Outcome:
    plan = world.plan
    outcome: Outcome | None = None
    with trio.move_on_after(4 * 3600):
        async with trio.open_nursery() as late, trio.open_nursery() as nursery:
            world.later = late.start_soon
            rates = {"calm": CALM, "rough": ROUGH, "storm": STORM}[plan.weather]
            for index in range(plan.machines):
                machine = Machine(world, index)
                world.machines.append(machine)
                machine.weather(CALM if index == 0 else rates)
                nursery.start_soon(machine.live)
            await _until(lambda: world.machines[0].volume is not None)
            await world.machines[0].furnish()
            world.furnished.set()
            world.machines[0].weather(rates)
            async with trio.open_nursery() as events:
                events.start_soon(_events, world)
                for when, index, how, pause in plan.clones:
                    events.start_soon(_clone, world, when, index, how, pause, nursery)
            for machine in world.machines:
                machine.weather(CALM, cut=False)
            await _until(lambda: all(m.idle and m.volume for m in world.machines))
            outcome = await _judge(world)
            nursery.cancel_scope.cancel()
            late.cancel_scope.cancel()
    if outcome is not None:
        return outcome
    raise Wrong("something waits for ever: " + "; ".join(world.waiting()))


async def _until(true: Callable[[], Any]) -> None:
    while not true():  # noqa: ASYNC110
        await trio.sleep(0.1)


async def _events(world: World) -> None:
    async with trio.open_nursery() as nursery:
        for when, kind, index, seconds in world.plan.events:
            nursery.start_soon(_event, world, when, kind, world.machines[index], seconds)


async def _clone(
    world: World, when: float, index: int, how: str, pause: float, nursery: trio.Nursery
) -> None:
    """A copy of a machine's disk becomes a machine."""
    await trio.sleep(when)
    source = world.machines[index]
    machine = Machine(world, len(world.machines))
    world.machines.append(machine)
    up = "up" if source.volume is not None else "down"
    world.tell(f"{machine.host}: a copy of {source.host}, which is {up} ({how})")
    await machine.copy_of(source, how)
    machine.weather(source.rates)
    await trio.sleep(pause)
    nursery.start_soon(machine.live)


async def _event(world: World, when: float, kind: str, machine: Machine, seconds: float) -> None:
    if kind == "restore":
        await trio.sleep(when / 2)
        machine.back_up()
        await trio.sleep(when / 2)
    else:
        await trio.sleep(when)
    if kind == "cut":
        world.tell(f"{machine.host}: cut off for {seconds:.1f} s")
        machine.weather(cut=True)
        await trio.sleep(seconds)
        machine.weather(cut=False)
    elif kind == "checkpoint":
        if machine.volume is not None:
            machine.volume.background.start(write_checkpoint, machine.volume)
    elif machine.scope is not None and machine.volume is not None:
        machine.go_down(kind, max(seconds, 0.01))


# ---- judging it --------------------------------------------------------------------------------


async def _judge(world: World) -> Outcome:
    for machine in world.machines:
        for file in list(machine.files):
            try:
                await machine.close(file)
            except Refused as no:
                if no.errno not in ANSWERS:
                    raise
    volumes = [machine.volume for machine in world.machines if machine.volume is not None]
    if len(volumes) != len(world.machines):
        raise Wrong("a machine is down")
    await _agree(volumes)
    first = volumes[0]
    rows = invariants.rows(first.replica.tree)
    for machine, volume in zip(world.machines, volumes, strict=True):
        if volume.writer.frozen is not None:
            raise Wrong(f"{machine.host} is frozen: {volume.writer.frozen}")
        invariants.check(volume.replica.tree)
        _same(rows, invariants.rows(volume.replica.tree), f"{machine.host}'s replica")
        machine.doubt()
    alive = {volume.replica.mount for volume in volumes}
    left = [ino for ino, mount in rows["orphans"] if mount in alive]
    if left:  # those of a mount whose disk is lost are for fsck to find
        raise Wrong(f"nobody has a file open, yet there are orphans: {left}")
    await trio.sleep(2)  # what was given up on a moment ago fails at once for a second
    snapshots = [await _snapshot(volume.fs) for volume in volumes]
    for machine, snapshot in zip(world.machines, snapshots, strict=True):
        if snapshot != snapshots[0]:
            paths = sorted(snapshot.items() ^ snapshots[0].items())
            raise Wrong(f"{machine.host} reads another tree: {str(paths)[:300]}")
    found: set[int] = set()
    for kind, _, data, _ in snapshots[0].values():
        if kind == "file":
            found |= tags_in(data)
    missing = world.witness.missing(found)
    if missing:
        raise Wrong(f"acknowledged bytes are lost: {_list(world, missing)}")
    rng = world.rng("judge")
    if rng.random() < 0.3:
        # The mounts have gone on since `rows`: with repacking, for example, and committing that.
        await _agree(volumes)
        await _newcomer(world, invariants.rows(first.replica.tree))
    if rng.random() < 0.1:
        await _prefixes(world, rng)
    digest = blake3(repr(sorted(snapshots[0].items())).encode()).hexdigest()
    return Outcome(
        world.seed,
        digest,
        world.operations,
        world.answers,
        world.commits + sum(v.writer.commits for v in volumes),
        world.races + sum(v.writer.races_lost for v in volumes),
        sum(len(v.replica.conflicts()) for v in volumes),
        world.crashes,
        len(world.witness.tags),
        sum(1 for tag in world.witness.tags.values() if tag.ack),
        trio.current_time(),
    )


async def _agree(volumes: list[Volume]) -> None:
    """Bring everything to the store, and everyone to its end."""
    for _ in range(50):
        for volume in volumes:
            await volume.drain()
        for volume in volumes:
            await volume.writer.catch_up()
        if len({volume.replica.head for volume in volumes}) == 1 and not any(
            v.replica.pending or v.replica.open_operations for v in volumes
        ):
            return
    raise Wrong("the machines never come to rest")


async def _snapshot(fs: FileSystem) -> dict[bytes, tuple[str, int, bytes, Any]]:
    """All that can be seen from the root: path -> (kind, mode and links, contents, xattrs)."""
    found: dict[bytes, tuple[str, int, bytes, Any]] = {}
    tree = fs.core.tree

    async def walk(ino: int, path: bytes) -> None:
        for entry in list(tree.names(ino)):
            inode = fs.getattr(entry.ino)
            here = path + b"/" + entry.name
            facts = inode.mode * 1000 + inode.nlink
            xattrs = tuple(tree.xattrs(entry.ino))
            if inode.is_dir:
                found[here] = ("dir", facts, b"", xattrs)
                await walk(entry.ino, here)
            elif inode.is_symlink:
                found[here] = ("link", facts, fs.readlink(entry.ino), xattrs)
            else:
                contents = fs.core.file(entry.ino)
                data = bytes(await contents.read(0, inode.size))
                fs.core.drop_unused(contents)
                if len(data) != inode.size:
                    raise Wrong(f"{here!r}: {len(data)} bytes of {inode.size}")
                found[here] = ("file", facts, data, xattrs)

    await walk(ROOT, b"")
    return found


def _same(one: dict[str, list[Any]], two: dict[str, list[Any]], what: str) -> None:
    for table, rows in one.items():
        if rows != two[table]:
            mine, theirs = set(map(repr, rows)), set(map(repr, two[table]))
            raise Wrong(f"{what}: {table}: {sorted(mine ^ theirs)[:6]}")


def _list(world: World, missing: list[Tag]) -> str:
    return "; ".join(
        f"tag {tag.number} written by {HOSTS[tag.machine]} at {tag.time:.3f} to {tag.ino}"
        f" (ack {tag.ack})"
        for tag in missing[:4]
    ) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")


async def _newcomer(world: World, rows: dict[str, list[Any]] | None) -> None:
    """A machine that has never seen the volume mounts it."""
    store = MemoryStore("copy")
    for name in sorted(world.store.objects):
        store._place(name, world.store.objects[name])
    await _mount_copy(world, store, rows)


async def _mount_copy(world: World, store: MemoryStore, rows: dict[str, list[Any]] | None) -> None:
    directory = world.directory / "newcomer"
    shutil.rmtree(directory, ignore_errors=True)
    settings = Settings(
        state_dir=directory / "state", cache_dir=directory / "cache", read_only=True
    )
    async with open_volume(URL, KEY, settings, host="new", store=store) as volume:
        invariants.check(volume.replica.tree)
        if rows is not None:
            _same(rows, invariants.rows(volume.replica.tree), "a new machine")
        else:
            await _snapshot(volume.fs)


async def _prefixes(world: World, rng: random.Random) -> None:
    """The journal cut off anywhere mounts, and every byte it names can be read."""
    objects = world.store.objects
    commits = sorted(name for name in objects if name.startswith("commits/"))
    for last in rng.sample(range(1, len(commits) + 1), min(2, len(commits))):
        store = MemoryStore("prefix")
        for name in sorted(objects):
            kind, _, rest = name.partition("/")
            if kind == "commits" and name > commits[last - 1]:
                continue
            if (
                kind == "checkpoints"
                and rest.partition("/")[0] > commits[last - 1].partition("/")[2]
            ):
                continue
            store._place(name, objects[name])
        try:
            await _mount_copy(world, store, None)
        except (Fault, Corrupt) as exc:
            raise Wrong(f"the first {last} commits do not mount: {exc}") from exc
