"""Schedules of volumes with one writer by lease, on a store that ignores conditions.

A seed decides everything.  Two or three machines want to write to one volume, one at a time; while
they do, a machine is stopped at any step of any of its tasks, as by SIGSTOP, for longer than the
lease, or killed and mounted again.  A stopped machine's tasks do not run, whatever they wait for;
time goes on for it.  So a put of its commit can arrive when another machine has the lease, and
write over that one's commit.

In the end every machine is mounted once more, as `megafs fsck --repair` does, and brings what it
has to the store.  Then a new machine must find every byte that close(2) or fsync(2) has
acknowledged on any of them, in a sound tree, under a journal that fsck finds nothing wrong with.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio
from trio._core._run import GLOBAL_RUN_CONTEXT
from trio.testing import MockClock

from megafs.config import KIB, Parameters, Settings
from megafs.errors import Busy, Corrupt, Fault, Refused, Rollback, Unavailable, leaf
from megafs.fs.requests import Caller
from megafs.jobs.fsck import fsck
from megafs.jobs.messages import FsckArgs
from megafs.tree.inode import ROOT
from megafs.volume.create import format_volume
from megafs.volume.open import open_volume
from megafs.volume.volume import Volume
from tests.fakes.machine import snapshot
from tests.fakes.unconditional import Paused, Unconditional
from tests.sim.schedule import HOSTS, KEY, Wrong, memory
from tests.sim.schedule import _deterministic as deterministic
from tests.tree import invariants

if TYPE_CHECKING:
    Tasks = deque[trio.lowlevel.Task]
else:
    Tasks = deque

T = TypeVar("T")
URL = "memory://lease"
USER = Caller(0, 0, 0, 0)
PIECE = 32
PARAMETERS = Parameters(chunk_size=16 * KIB, pack_size=64 * KIB, inline_limit=64, quota=None)
#: After so many refusals to mount, somebody runs fsck --repair.
_PATIENCE = 8

_owner: ContextVar[int] = ContextVar("owner", default=-1)


class Stopping(Tasks):
    """trio's queue of runnable tasks, in which those of stopped machines stay.

    stopped: their numbers.  steps: how often a task of a machine was about to run.  stop_at: the
    step at which a machine is stopped, and the event that tells.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stopped: set[int] = set()
        self.steps: dict[int, int] = {}
        self.stop_at: dict[int, tuple[int, trio.Event]] = {}
        self._given: set[trio.lowlevel.Task] = set()

    def __iter__(self) -> Iterator[trio.lowlevel.Task]:
        self._given = set()
        for task in sorted(super().__iter__(), key=lambda task: task._counter):
            owner = _of(task)
            if owner in self.stopped:
                continue
            steps = self.steps[owner] = self.steps.get(owner, 0) + 1
            if owner in self.stop_at and steps >= self.stop_at[owner][0]:
                _, stopped = self.stop_at.pop(owner)
                self.stopped.add(owner)
                stopped.set()
                continue
            self._given.add(task)
            yield task

    def __bool__(self) -> bool:
        return any(_of(task) not in self.stopped for task in super().__iter__())

    def clear(self) -> None:
        left = [task for task in super().__iter__() if task not in self._given]
        super().clear()
        self.extend(left)


def _of(task: trio.lowlevel.Task) -> int:
    return task.context.get(_owner, -1)


@dataclass
class LeaseOutcome:
    """What a schedule came to."""

    seed: int
    acknowledged: int
    stops: int
    kills: int
    overwritten: int
    settled: int
    put_back: int


#: Requests before which a machine is stopped: what they ask, and how the object's name begins.
REQUESTS = (
    ("put_new", "commits/"),
    ("put_new", "commits/"),
    ("put_new", "packs/"),
    ("put", "mounts/lease"),
    ("get", "mounts/lease"),
    ("get", "commits/"),
)


@dataclass
class Stop:
    """A machine is stopped, for so many seconds, from some time on: at a step of any of its tasks,
    or before a request of that kind; on_its_way: which arrives when the machine goes on.
    """

    number: int
    after: float
    seconds: float
    steps: int = 0
    request: tuple[str, str] = ("", "")
    on_its_way: bool = False


@dataclass
class Host:
    """A machine: its directory, its way to the store, what it was told is safe."""

    number: int
    directory: Path
    rng: random.Random
    writes: int
    way: Paused | None = None
    scope: trio.CancelScope | None = None
    stop_before: tuple[Stop, trio.Event] | None = None
    refusals: int = 0
    down_for: float = 1.0
    done: bool = False


class Way(Paused):
    """A machine's way to the store.

    before: called before a request goes out; the seconds after which it arrives, if not at once.
    later: starts a task of nobody's.
    """

    def __init__(
        self,
        store: Unconditional,
        before: Callable[[str, str], float],
        later: Callable[..., None],
    ) -> None:
        super().__init__(store)
        self._before = before
        self._later = later

    async def _with(
        self, method: str, act: Callable[..., Awaitable[T]], name: str, *args: object
    ) -> T:
        seconds = self._before(method, name)
        if seconds:
            self._later(seconds, act, name, *args)
        await trio.lowlevel.checkpoint()  # a machine that is stopped stays here
        if seconds:
            raise Unavailable("the reply is lost", maybe_done=True)
        return await super()._with(method, act, name, *args)


class Observed(Unconditional):
    """Counts the commits that were written over by others."""

    overwritten = 0

    async def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        if name.startswith("commits/") and self.objects.get(name, data) != data:
            self.overwritten += 1
        await super().put(name, data)


@dataclass
class Scene:
    seed: int
    store: Observed
    tasks: Stopping
    hosts: list[Host]
    stops: list[Stop]
    kills: list[tuple[int, float, float]]
    later: Callable[..., None]
    acknowledged: set[bytes] = field(default_factory=set)
    pieces: int = 0
    settled: int = 0
    put_back: int = 0
    log: list[str] = field(default_factory=list)

    def tell(self, text: str) -> None:
        self.log.append(f"{trio.current_time():8.3f} {text}")


def run(
    seed: int,
    *,
    base: Path | None = None,
    log: list[str] | None = None,
    step: int = 0,
    fork: bool = False,
) -> LeaseOutcome:
    """Run the schedule of *seed*; raise Wrong (or what went wrong) if a promise was broken.

    step: instead of what the seed says, the first machine is stopped once, at that step after
        12 s, for 300 s.
    fork: instead of what the seed says, the first holder's commit arrives when the next holder has
        committed, which is killed at that moment.
    log: told what happened.
    """
    rng = random.Random(f"{seed}/lease")
    directory = (base or memory(Path("/tmp"))) / f"megafs-lease-{os.getpid()}-{seed}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    count = rng.choice((2, 2, 3))
    hosts = [
        Host(n, directory / HOSTS[n], random.Random(f"{seed}/{n}"), rng.randrange(4, 10))
        for n in range(count)
    ]
    stops = [_drawn(rng, count) for _ in range(rng.choice((1, 1, 2, 3)))]
    kills = [
        (rng.randrange(count), rng.uniform(10, 900), rng.choice((0.1, 30.0, 200.0, 500.0)))
        for _ in range(rng.choice((0, 1, 1, 2, 3)))
    ]
    for stop in stops:
        if stop.on_its_way and rng.random() < 0.5:
            # The next holder is killed about when it arrives, before it can look.
            when = stop.after + stop.seconds + rng.uniform(-10, 15)
            kills.append((rng.randrange(count), when, rng.choice((0.1, 200.0, 500.0))))
    if step:
        stops, kills = [Stop(0, 12.0, 300.0, step)], []
    if fork:
        stops = [Stop(0, 20.0, 400.0, request=("put_new", "commits/"), on_its_way=True)]
        kills = [(1, 440.0, 500.0)]
    noise = logging.getLogger("megafs")
    level = noise.level
    noise.setLevel(logging.CRITICAL)
    try:
        with deterministic(seed):
            scene = Scene(
                seed, Observed("lease"), Stopping(), hosts, stops, kills, lambda *args: None
            )
            if log is not None:
                scene.log = log
            return trio.run(_play, scene, clock=MockClock(autojump_threshold=0))
    except BaseExceptionGroup as group:
        cause = leaf(group)
        raise cause from group
    finally:
        noise.setLevel(level)
        shutil.rmtree(directory, ignore_errors=True)


def _drawn(rng: random.Random, count: int) -> Stop:
    after = rng.choice((12.0, 20.0, rng.uniform(12, 400)))
    seconds = rng.choice((rng.uniform(150, 300), rng.uniform(90, 600)))
    stop = Stop(rng.choice((0, rng.randrange(count))), after, seconds)
    if rng.random() < 0.6:
        stop.request = rng.choice(REQUESTS)
        stop.on_its_way = stop.request[0].startswith("put") and rng.random() < 0.6
    else:
        stop.steps = rng.randrange(1, rng.choice((40, 400, 1500)))
    return stop


async def _play(scene: Scene) -> LeaseOutcome:
    runner = GLOBAL_RUN_CONTEXT.runner
    scene.tasks.extend(runner.runq)
    runner.runq = scene.tasks
    made = await format_volume(scene.store, KEY, PARAMETERS, profile="low-memory")
    assert not made.create_if_absent
    with trio.move_on_after(24 * 3600) as limit:
        async with trio.open_nursery() as nursery:

            def later(seconds: float, act: Callable[..., Awaitable[object]], *args: object) -> None:
                async def arrive() -> None:
                    await trio.sleep(seconds)
                    await act(*args)

                token = _owner.set(-1)
                nursery.start_soon(arrive)
                _owner.reset(token)

            scene.later = later
            for host in scene.hosts:
                nursery.start_soon(_live, scene, host)
            async with trio.open_nursery() as events:
                for stop in scene.stops:
                    events.start_soon(_stop, scene, stop)
                for kill in scene.kills:
                    events.start_soon(_kill, scene, *kill)
            while not all(host.done for host in scene.hosts):  # noqa: ASYNC110
                await trio.sleep(5)
            for host in scene.hosts:
                _end(scene, host)
            nursery.cancel_scope.cancel()
        for _ in range(2):  # what one brings back another may have to take in
            for host in scene.hosts:
                await _bring_home(scene, host)
        await _judge(scene)
    if limit.cancelled_caught:
        raise Wrong("something waits for ever")
    return LeaseOutcome(
        scene.seed,
        len(scene.acknowledged),
        len(scene.stops),
        len(scene.kills),
        scene.store.overwritten,
        scene.settled,
        scene.put_back,
    )


async def _stop(scene: Scene, stop: Stop) -> None:
    await trio.sleep(stop.after)
    tasks, number = scene.tasks, stop.number
    stopped = trio.Event()
    if stop.steps:
        tasks.stop_at[number] = (tasks.steps.get(number, 0) + stop.steps, stopped)
    else:
        scene.hosts[number].stop_before = (stop, stopped)
    with trio.move_on_after(600):
        await stopped.wait()
    if number in tasks.stopped:
        scene.tell(f"{HOSTS[number]}: stopped for {stop.seconds:.0f} s {stop.request}")
        await trio.sleep(stop.seconds)
        scene.tell(f"{HOSTS[number]}: goes on")
    tasks.stop_at.pop(number, None)
    scene.hosts[number].stop_before = None
    tasks.stopped.discard(number)


async def _kill(scene: Scene, number: int, after: float, down_for: float) -> None:
    await trio.sleep(after)
    host = scene.hosts[number]
    host.down_for = down_for
    scene.tell(f"{HOSTS[number]}: killed")
    _end(scene, host)


def _end(scene: Scene, host: Host) -> None:
    if host.way is not None:
        host.way.dead = True
    scene.tasks.stop_at.pop(host.number, None)
    scene.tasks.stopped.discard(host.number)
    if host.scope is not None:
        host.scope.cancel()


async def _live(scene: Scene, host: Host) -> None:
    """Mount, write, go down as told, mount again; for ever."""
    _owner.set(host.number)
    await trio.sleep(15 * host.number)

    def before(method: str, name: str) -> float:
        if host.stop_before is None:
            return 0
        stop, stopped = host.stop_before
        wanted, prefix = stop.request
        if method != wanted or not name.startswith(prefix):
            return 0
        host.stop_before = None
        scene.tasks.stopped.add(host.number)
        stopped.set()
        return stop.seconds if stop.on_its_way else 0

    while True:
        host.way = Way(scene.store, before, scene.later)
        with trio.CancelScope() as host.scope:
            try:
                async with _opened(host, host.way, settle=host.refusals > _PATIENCE) as volume:
                    host.refusals = 0
                    scene.settled += len(volume.settled)
                    scene.tell(f"{HOSTS[host.number]}: up at {volume.replica.sequence}")
                    await _write(scene, host, volume)
                    if volume.writer.frozen is None:
                        host.done = True
                        await trio.sleep_forever()
            except Busy as exc:  # others have to be unmounted first
                scene.tell(f"{HOSTS[host.number]}: {exc}")
                host.done = True
                await trio.sleep_forever()
            except Fault as exc:
                host.refusals += 1
                scene.tell(f"{HOSTS[host.number]}: {type(exc).__name__}: {exc}")
            except BaseExceptionGroup as group:
                cause = leaf(group)
                if not isinstance(cause, Fault):
                    raise
                host.refusals += 1
                scene.tell(f"{HOSTS[host.number]}: {type(cause).__name__}: {cause}")
        await trio.sleep(host.down_for)
        host.down_for = 20.0


def _opened(host: Host, store: Paused | Unconditional, *, settle: bool):  # type: ignore[no-untyped-def]
    settings = Settings(
        state_dir=host.directory / "state",
        cache_dir=host.directory / "cache",
        cache_min_free=0,
        stage_min_free=0,
        deadline=60.0,
        settle_forks=settle,
    )
    return open_volume(URL, KEY, settings, host=HOSTS[host.number], store=store)


async def _write(scene: Scene, host: Host, volume: Volume) -> None:
    """Make files, and add to one that all share; note what is acknowledged."""
    refused = 0
    while host.writes > 0 and refused < 40 and volume.writer.frozen is None:
        await trio.sleep(host.rng.choice((0.0, 0.3, 3.0, 20.0, 60.0)))
        way = host.way
        scene.pieces += 1
        number = scene.pieces
        piece = b"<%03d %-26d>" % (host.number, number)
        assert len(piece) == PIECE
        shares = host.rng.random() < 0.4
        big = host.rng.choice((b"", b"", bytes(20 * KIB)))
        try:
            if shares:
                await _add(volume, number, piece, host.rng.random() < 0.7)
            else:
                await _make(volume, b"%d" % number, piece + big, host.rng.random() < 0.7)
        except (Refused, Fault) as exc:
            refused += 1
            scene.tell(f"{HOSTS[host.number]}: {number}: {exc}")
            await trio.sleep(10)
            continue
        if way is not None and not way.dead:
            scene.acknowledged.add(piece)
            scene.tell(f"{HOSTS[host.number]}: {number} is safe")
            host.writes -= 1


async def _make(volume: Volume, name: bytes, data: bytes, fsync: bool) -> None:
    fs = volume.fs
    fh, _ = await fs.create(ROOT, name, 0o644, os.O_RDWR, USER)
    await _fill(volume, fh, 0, data, fsync)


async def _add(volume: Volume, number: int, piece: bytes, fsync: bool) -> None:
    fs = volume.fs
    there = fs.core.tree.child(ROOT, b"shared")
    if there is None:
        fh, _ = await fs.create(ROOT, b"shared", 0o644, os.O_RDWR, USER)
    else:
        fs.remember(there)
        fh, _ = await fs.open(there, os.O_RDWR, USER)
    await _fill(volume, fh, number * PIECE, piece, fsync)


async def _fill(volume: Volume, fh: int, at: int, data: bytes, fsync: bool) -> None:
    fs = volume.fs
    try:
        await fs.write(fh, at, data)
        if fsync:
            await fs.fsync(fh, False)
        await fs.flush(fh)
    finally:
        with trio.CancelScope(shield=True):
            await fs.release(fh)


async def _bring_home(scene: Scene, host: Host) -> None:
    """Settle what is forked, and bring everything of a machine to the store."""
    way = Paused(scene.store)
    try:
        async with _opened(host, way, settle=True) as volume:
            scene.settled += len(volume.settled)
            assert volume.lease is not None
            with trio.fail_after(900):
                while not volume.lease.held:
                    await trio.sleep(5)
            await volume.drain()
            scene.put_back += sum("put back" in text for _, text in volume.replica.conflicts())
    except (Corrupt, Rollback, Busy) as exc:
        raise Wrong(f"{HOSTS[host.number]} cannot be mounted: {exc}") from exc


async def _judge(scene: Scene) -> None:
    settings = Settings(
        state_dir=scene.hosts[0].directory.with_name("new") / "state",
        cache_dir=scene.hosts[0].directory.with_name("new") / "cache",
        read_only=True,
    )
    async with open_volume(URL, KEY, settings, host="new", store=scene.store) as volume:
        invariants.check(volume.replica.tree)
        result = await fsck(volume, FsckArgs(), lambda progress: None)
        if result.exit_code:
            raise Wrong(f"fsck finds {[problem.text for problem in result.problems]}")
        found = await snapshot(volume.fs)
    there = b"".join(node[1] for node in found.values() if node[0] == "file")
    lost = sorted(piece for piece in scene.acknowledged if piece not in there)
    if lost:
        raise Wrong(f"acknowledged bytes are lost: {lost}")
