"""Launch day: two days of overload and outage, compressed into minutes, under programs at work.

    python -m benchmarks.launchday [--seconds 120] [--deadline 10] [--mounts 3] [--seed 1]

A real Ceph behind the project's own fault proxy; several mounts of one volume, each a process with
directories of its own; on each mount programs (processes, too) that write, look around and read.
Meanwhile the proxy goes through `PHASES`: refusals with and without Retry-After, resets, half
bodies, hung sockets, nobody listening, answers 5 s late, credentials that have expired, a clock ten
minutes off.  Then it heals.  Shown, and the exit code is 1 if not:

- no call of a program takes longer than the mounts' deadline (and `GRACE`);
- df, ls, stat and reads of what is cached are answered at once, all the time;
- every write that was acknowledged is there afterwards, on another machine that talks to Ceph
  directly; no read ever returned a wrong byte;
- the mounts ask less often while the store is ill, and are back within seconds after it;
- no mount's memory grows without bound (VmHWM).

Prints a table, then one line of JSON.  A program is `python -m benchmarks.launchday program`.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from megafs.mount import control_client, mount_record
from megafs.mount.control_messages import MountStatus, StatusRequest
from tests.engines.ceph import Ceph
from tests.fakes.proxy import (
    Answer,
    Cut,
    Delay,
    Fault,
    Hang,
    Proxy,
    Request,
    Reset,
    Response,
    ShiftDate,
    ThreadedProxy,
    expired,
    slow_down,
)
from tests.mount.machine import Machine

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parent.parent
#: Seconds a call may take beyond the deadline: two busy cores, and up to a few requests a call.
GRACE = 6.0
MEMORY_LIMIT = 300 << 20
CORPUS = 40
CORPUS_SIZE = 400 << 10
HOT_SIZE = 1 << 20


# -- what goes wrong


@dataclass(frozen=True)
class WrongClock(Fault):
    """A server whose clock is *seconds* ahead, and which refuses what is signed too far from it."""

    seconds: float

    async def before(self, request: Request, client: trio.SocketStream) -> Response | None:
        now = datetime.now(UTC) + timedelta(seconds=self.seconds)
        signed = datetime.strptime(request.headers["x-amz-date"] + "+0000", "%Y%m%dT%H%M%SZ%z")
        if abs((signed - now).total_seconds()) < 300:
            return None
        body = b"<Error><Code>RequestTimeTooSkewed</Code><Message>injected</Message></Error>"
        return Response(403, {"date": format_datetime(now, usegmt=True)}, body)

    async def after(self, response: Response, client: trio.SocketStream) -> None:
        await ShiftDate(self.seconds).after(response, client)


def _crowd(proxy: Proxy, seed: int) -> None:
    too_many = Answer(429, "TooManyRequests", (("retry-after", "1"),))
    proxy.weather(seed, [(0.35, slow_down()), (0.2, slow_down(2)), (0.25, too_many)])


def _flaky(proxy: Proxy, seed: int) -> None:
    kinds = (Reset(), Reset(after_done=True), Cut(100), Hang(), Hang(after_done=True))
    proxy.weather(seed, [(0.12, kind) for kind in kinds])


def _slow(proxy: Proxy, seed: int) -> None:
    proxy.always(Delay(5))


def _hung(proxy: Proxy, seed: int) -> None:
    proxy.always(Hang())


def _expired(proxy: Proxy, seed: int) -> None:
    proxy.always(expired())


def _wrong_clock(proxy: Proxy, seed: int) -> None:
    proxy.always(WrongClock(600))


@dataclass(frozen=True)
class Phase:
    """share: of the whole time.  begin: None means that nobody listens."""

    name: str
    share: float
    begin: Callable[[Proxy, int], None] | None


PHASES = (
    Phase("calm", 0.08, lambda proxy, seed: None),
    Phase("503 and 429", 0.14, _crowd),
    Phase("resets, half bodies, hung sockets", 0.15, _flaky),
    Phase("refused", 0.22, None),
    Phase("answers 5 s late", 0.13, _slow),
    Phase("all sockets hung", 0.14, _hung),
    Phase("credentials expired", 0.08, _expired),
    Phase("clock 10 minutes off", 0.06, _wrong_clock),
)


class Tally(list[tuple[Request, Fault | None]]):
    """Takes the place of the proxy's record of requests: counts them, and keeps no body."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = ""
        self.requests: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.methods: Counter[str] = Counter()

    def append(self, item: tuple[Request, Fault | None]) -> None:
        self.requests[self.phase] += 1
        self.bytes[self.phase] += len(item[0].body)
        self.methods[item[0].method] += 1


# -- programs


def contents(name: str, version: int, size: int) -> bytes:
    """What a file of that name holds."""
    return random.Random(f"{name}/{version}").randbytes(size)


class Program:
    """A program at work in a mount; every call of it is timed and written down."""

    def __init__(self, directory: Path, log: Path, tag: str) -> None:
        self.directory = directory
        self.tag = tag
        self.rng = random.Random(tag)
        self._log = log.open("a", buffering=1)
        self.running = True
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self.running = False

    def note(self, **what: Any) -> None:
        self._log.write(json.dumps(what) + "\n")

    def call(self, op: str, what: Callable[[], T]) -> T:
        """Do it and write down how long it took; returns None, and raises OSError, as it does."""
        begin, error = time.monotonic(), 0
        try:
            return what()
        except OSError as exc:
            error = exc.errno or errno.EIO
            raise
        finally:
            took = time.monotonic() - begin
            self.note(op=op, t=begin, s=round(took, 5), error=errno.errorcode.get(error, ""))

    def wrong(self, text: str) -> None:
        self.note(wrong=text)

    def read(self, path: Path, size: int, op: str, at: int = 0) -> bytes:
        """Read past the kernel's own cache, piece by piece."""
        fd = self.call(f"{op} open", lambda: os.open(path, os.O_RDONLY))
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            data = b""
            while len(data) < size:
                want = min(128 << 10, size - len(data))
                here = at + len(data)
                piece = self.call(op, partial(os.pread, fd, want, here))
                if not piece:
                    break
                data += piece
            return data
        finally:
            os.close(fd)


def write(program: Program) -> None:
    """New files, fsync now and then, appends, renames, overwrites; acknowledged ones are noted."""
    own = program.directory / f"from-{program.tag}"
    with suppress(FileExistsError):
        program.call("mkdir", own.mkdir)
    done: list[tuple[str, int]] = []
    lines = 0
    n = 0
    while program.running:
        n += 1
        name = f"{program.tag}-{n:05d}"
        size = program.rng.choice((300, 900, 20_000, 60_000, 200_000, 500_000))
        try:
            if n % 7 == 0:
                program.call("append a line", partial(_append, own / "log", lines))
                lines += 1
                program.note(lines=lines, file=f"from-{program.tag}/log")
            elif n % 9 == 0 and done:
                old, size = done.pop(program.rng.randrange(len(done)))
                program.note(doubtful=f"from-{program.tag}/{old}")
                program.call("rename", partial(os.rename, own / old, own / f"{old}.renamed"))
                program.note(
                    file=f"from-{program.tag}/{old}.renamed", name=old, version=0, size=size
                )
            elif n % 11 == 0 and done:
                old, size = done.pop(program.rng.randrange(len(done)))
                program.note(doubtful=f"from-{program.tag}/{old}")
                _write(program, own / old, contents(old, 1, size), sync=False)
                program.note(file=f"from-{program.tag}/{old}", name=old, version=1, size=size)
            else:
                synced = n % 10 == 0
                _write(program, own / name, contents(name, 0, size), sync=synced)
                program.note(
                    file=f"from-{program.tag}/{name}", name=name, version=0, size=size,
                    bytes=size,
                )  # fmt: skip
                done.append((name, size))
                # What was written a moment ago needs no store to be read.
                if program.read(own / name, size, "read own") != contents(name, 0, size):
                    program.wrong(f"{name}: what was just written")
        except OSError as exc:
            program.note(failed=str(exc))
        time.sleep(0.15)


def _append(path: Path, number: int) -> None:
    with path.open("ab") as file:
        file.write(b"line %010d\n" % number)


def _write(program: Program, path: Path, data: bytes, *, sync: bool) -> None:
    fd = program.call("create", lambda: os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))
    try:
        done = 0
        while done < len(data):
            piece = data[done : done + (128 << 10)]
            done += program.call("write", partial(os.write, fd, piece))
        if sync:
            # Without the store it says so by its deadline; what was written stays, as close says.
            with suppress(OSError):
                program.call("fsync", lambda: os.fsync(fd))
    finally:
        program.call("close", lambda: os.close(fd))


def look(program: Program) -> None:
    """df, ls, stat, and reads of a file that is cached."""
    hot = program.directory / "hot"
    expected = contents("hot", 0, HOT_SIZE)
    while program.running:
        try:
            program.call("df", lambda: os.statvfs(program.directory))
            names = program.call("ls", lambda: os.listdir(program.directory / "corpus"))
            if len(names) != CORPUS:
                program.wrong(f"ls shows {len(names)} names")
            some = program.directory / "corpus" / program.rng.choice(names)
            if program.call("stat", partial(os.stat, some)).st_size != CORPUS_SIZE:
                program.wrong("a size")
            at = program.rng.randrange(HOT_SIZE - (64 << 10))
            if program.read(hot, 64 << 10, "read cached", at) != expected[at : at + (64 << 10)]:
                program.wrong("a cached read")
        except OSError as exc:
            program.wrong(f"what needs no store failed: {exc}")
        time.sleep(0.1)


def read(program: Program) -> None:
    """Reads of more than the cache holds."""
    while program.running:
        name = f"c{program.rng.randrange(CORPUS):03d}"
        try:
            data = program.read(program.directory / "corpus" / name, CORPUS_SIZE, "read from store")
            if data != contents(name, 0, CORPUS_SIZE):
                program.wrong(f"{name}: {len(data)} bytes, not what was written")
            program.note(read=len(data))
        except OSError:
            time.sleep(0.3)
        time.sleep(0.05)


PROGRAMS = {"write": write, "look": look, "read": read}


# -- the day


@dataclass
class Day:
    """One run.  seconds: of the bad weather in all.  say: told how it goes."""

    seconds: float = 120.0
    deadline: float = 10.0
    mounts: int = 3
    seed: int = 1
    say: Callable[[str], None] = print
    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def check(self, good: bool, what: str) -> None:
        self.say(f"  {'ok  ' if good else 'FAIL'} {what}")
        if not good:
            self.failures.append(what)

    def run(self, ceph: Ceph, place: Path) -> None:
        url = f"s3://{ceph.fresh_name()}/volume"
        with ExitStack() as stack:
            proxy = stack.enter_context(ThreadedProxy(ceph.endpoint))
            tally = Tally()
            proxy.proxy.seen = tally
            machines = [
                stack.enter_context(_machine(place, f"m{n}", url, ceph, proxy.endpoint))
                for n in range(self.mounts)
            ]
            machines[0].format()
            for n, machine in enumerate(machines):
                more = ",cache_size=8M,memory_cache=4M" if n == 1 else ""
                log = machine.place / "log"
                machine.mount("-o", f"deadline={self.deadline:g}s,log={log}{more}")
            _fill(machines)
            logs = place / "logs"
            logs.mkdir()
            programs = _start(machines, logs)
            asking = _Asking(machines)
            phases = self._weather(proxy, tally, programs)
            healed = time.monotonic()
            self._recovery(machines, healed)
            for program in programs:
                program.send_signal(signal.SIGTERM)
            for program in programs:
                self.check(program.wait(self.deadline + 60) == 0, "a program ended by itself")
            asking.end()
            self._settled(machines)
            peaks = [_peak(machine.pid) for machine in machines]
            for machine in machines:
                machine.umount()
            notes = _notes(logs)
            self._report(phases, tally, notes, asking, peaks)
            fresh = stack.enter_context(_machine(place, "fresh", url, ceph, ceph.endpoint))
            fresh.mount()
            self._nothing_lost(fresh.mnt, notes)
            fresh.umount()

    def _weather(
        self, proxy: ThreadedProxy, tally: Tally, programs: list[subprocess.Popen[bytes]]
    ) -> list[tuple[str, float, float]]:
        """Go through the phases; returns when each began and ended."""
        found = []
        for n, phase in enumerate(PHASES):
            begin = time.monotonic()
            tally.phase = phase.name
            if phase.begin is None:
                proxy.tell(Proxy.refuse)
            else:
                proxy.tell(phase.begin, self.seed * 100 + n)
            time.sleep(self.seconds * phase.share)
            if n == len(PHASES) - 1:
                tally.phase = "healed"
            if phase.begin is None:
                proxy.tell(Proxy.accept)
            proxy.tell(Proxy.heal)
            found.append((phase.name, begin, time.monotonic()))
            self.check(all(p.poll() is None for p in programs), f"all at work after: {phase.name}")
        return found

    def _recovery(self, machines: list[Machine], healed: float) -> None:
        """How soon after the end one mount sees what another writes, and the backlog is gone."""
        (machines[0].mnt / "sentinel").write_text("up again")
        seen = [_soon((m.mnt / "sentinel").exists, 60) for m in machines[1:]]
        self.figures["seen_elsewhere_s"] = round(time.monotonic() - healed, 1)
        self.check(
            all(seen) and self.figures["seen_elsewhere_s"] < 20,
            f"a new file is on the other mounts {self.figures['seen_elsewhere_s']} s after healing",
        )
        backlog = [m.status() for m in machines]
        self.figures["staged_bytes_then"] = [s["staged_bytes"] for s in backlog]

    def _settled(self, machines: list[Machine]) -> None:
        begin = time.monotonic()

        def done() -> bool:
            told = [machine.status() for machine in machines]
            return not any(s["staged_bytes"] or s["pending_operations"] for s in told)

        settled = _soon(done, 60)
        self.figures["drained_s"] = round(time.monotonic() - begin, 1)
        self.check(settled, f"everything in the store {self.figures['drained_s']} s later")
        for machine in machines:
            status = machine.status()
            self.check(not status["frozen"], f"{machine.place.name} is not frozen")
            self.check(not status["conflicts"], f"{machine.place.name} has no conflicts")

    def _report(
        self,
        phases: list[tuple[str, float, float]],
        tally: Tally,
        notes: list[dict[str, Any]],
        asking: _Asking,
        peaks: list[int],
    ) -> None:
        rates = {}
        self.say(f"{'phase':<36}{'s':>6}{'requests':>10}{'a second':>10}{'sent MB':>9}")
        for name, begin, end in phases:
            requests, took = tally.requests[name], end - begin
            rates[name] = round(requests / took, 1)
            self.say(
                f"{name:<36}{took:6.1f}{requests:10}{rates[name]:10}{tally.bytes[name] / 1e6:9.1f}"
            )
        # Nobody listens when connections are refused, so the mounts are asked how often they tried.
        rates["refused"] = round(asking.rate(*_times(phases, "refused")), 1)
        self.say(f"{'refused: tried by all mounts':<52}{rates['refused']:10}")
        self.figures["requests_per_second"] = rates
        useful = sum(n.get("bytes", 0) + n.get("read", 0) for n in notes)
        requests = sum(tally.requests.values())
        self.figures["useful_bytes"] = useful
        self.figures["requests"] = requests
        self.figures["sent_bytes"] = sum(tally.bytes.values())
        self.figures["requests_per_useful_mb"] = round(requests / max(1, useful / 1e6), 1)
        self.say(
            f"{requests} requests for {useful / 1e6:.1f} MB written and read:"
            f" {self.figures['requests_per_useful_mb']} a MB; {tally.methods}"
        )
        for name in ("refused", "all sockets hung", "credentials expired"):
            limit = max(12.0, 4.0 * self.mounts)
            self.check(rates[name] <= limit, f"{name}: {rates[name]} requests/s of all mounts")

        calls: dict[str, list[float]] = defaultdict(list)
        errors: Counter[str] = Counter()
        for note in notes:
            if "op" in note:
                calls[note["op"]].append(note["s"])
                if note["error"]:
                    errors[f"{note['op']}: {note['error']}"] += 1
        calls["megafs status"] = asking.seconds
        self.figures["calls"] = {}
        self.say(f"{'call':<18}{'times':>8}{'p50 ms':>9}{'p99 ms':>9}{'max s':>8}")
        for op, seconds in sorted(calls.items()):
            seconds.sort()
            half, most, top = (_quantile(seconds, q) for q in (0.5, 0.99, 1.0))
            self.figures["calls"][op] = [round(x, 4) for x in (half, most, top)]
            self.say(f"{op:<18}{len(seconds):8}{half * 1e3:9.1f}{most * 1e3:9.1f}{top:8.2f}")
        self.say(f"errors: {dict(errors)}")
        self.figures["errors"] = dict(errors)
        slowest = max((s, op) for op, all_ in calls.items() for s in all_)
        self.check(
            slowest[0] <= self.deadline + GRACE,
            f"no call took longer than the deadline of {self.deadline:g} s:"
            f" {slowest[1]} {slowest[0]:.2f} s",
        )
        for op in ("df", "ls", "stat", "read cached", "read cached open", "megafs status"):
            p99, top = _quantile(calls[op], 0.99), calls[op][-1]
            # A machine that is busy with other things stalls any program; the median tells.
            self.check(
                _quantile(calls[op], 0.5) < 0.1 and p99 < 1.5 and top < 4.0,
                f"{op} is answered at once: 99 % within {p99 * 1e3:.1f} ms, all in {top:.2f} s",
            )
        self.figures["VmHWM_MiB"] = [peak >> 20 for peak in peaks]
        self.check(max(peaks) < MEMORY_LIMIT, f"memory peaks {self.figures['VmHWM_MiB']} MiB")
        wrong = [n["wrong"] for n in notes if "wrong" in n]
        self.figures["wrong"] = wrong[:5]
        self.check(not wrong, f"no wrong byte was read {wrong[:5]}")

    def _nothing_lost(self, mnt: Path, notes: list[dict[str, Any]]) -> None:
        """Compare a fresh machine's view with what programs were told is safe."""
        files: dict[str, tuple[str, int, int]] = {}
        lines: dict[str, int] = {}
        for note in notes:
            if "lines" in note:
                lines[note["file"]] = note["lines"]
            elif "file" in note:
                files[note["file"]] = (note["name"], note["version"], note["size"])
            elif "doubtful" in note:
                files.pop(note["doubtful"], None)
        lost = []
        for file, (name, version, size) in files.items():
            try:
                if (mnt / file).read_bytes() != contents(name, version, size):
                    lost.append(f"{file}: other bytes")
            except OSError as exc:
                lost.append(f"{file}: {exc}")
        for file, count in lines.items():
            found = (mnt / file).read_bytes().splitlines()
            if found[:count] != [b"line %010d" % n for n in range(count)]:
                lost.append(f"{file}: {len(found)} lines of {count}")
        self.figures["acknowledged_files"] = len(files)
        self.figures["acknowledged_lines"] = sum(lines.values())
        self.figures["lost"] = lost[:5]
        self.check(
            not lost and len(files) > 10,
            f"all {len(files)} acknowledged files and {sum(lines.values())} appended lines are"
            f" there {lost[:5]}",
        )


@contextmanager
def _machine(place: Path, name: str, url: str, ceph: Ceph, endpoint: str) -> Iterator[Machine]:
    machine = Machine(place, name, url)
    machine.environ.update(ceph.environment() | {"AWS_ENDPOINT_URL_S3": endpoint})
    machine.environ["HOME"] = str(machine.place)
    try:
        yield machine
    finally:
        machine.kill()
        subprocess.run(
            ["umount", "-l", machine.mnt], check=False, timeout=20, stderr=subprocess.DEVNULL
        )


def _fill(machines: list[Machine]) -> None:
    """Write what will be read, and have the hot file cached on every machine."""
    first = machines[0]
    (first.mnt / "corpus").mkdir()
    for n in range(CORPUS):
        name = f"c{n:03d}"
        (first.mnt / "corpus" / name).write_bytes(contents(name, 0, CORPUS_SIZE))
    (first.mnt / "hot").write_bytes(contents("hot", 0, HOT_SIZE))
    for machine in machines[1:]:
        # Its name may be committed before all that is written into it.
        assert _soon(partial(_is_as_large, machine.mnt / "hot", HOT_SIZE), 60)
        machine.run("pin", machine.mnt / "hot")
        assert (machine.mnt / "hot").read_bytes() == contents("hot", 0, HOT_SIZE)


def _start(machines: list[Machine], logs: Path) -> list[subprocess.Popen[bytes]]:
    """A writer and somebody who looks around on each mount; on the second, a reader."""
    started = []
    for n, machine in enumerate(machines):
        kinds = ("look", "read") if n == 1 else ("look", "write")
        for kind in kinds:
            name = f"{machine.place.name}-{kind}"
            started.append(
                subprocess.Popen(
                    [
                        sys.executable, "-m", "benchmarks.launchday", "program", kind,
                        str(machine.mnt), str(logs / f"{name}.jsonl"), machine.place.name,
                    ],
                    cwd=REPOSITORY,
                    stdin=subprocess.DEVNULL,
                )
            )  # fmt: skip
    return started


class _Asking:
    """Asks every mount for its status all the time: that answers at once, too."""

    def __init__(self, machines: list[Machine]) -> None:
        self.seconds: list[float] = []
        self._counts: list[tuple[float, int]] = []
        self._mounts = [mount_record.records(machine.place / "run")[0] for machine in machines]
        self._running = True
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        while self._running:
            sent = 0
            for mount in self._mounts:
                begin = time.monotonic()
                status = control_client.ask(mount, StatusRequest(), MountStatus, patience=60)
                sent += status.store.requests
                self.seconds.append(time.monotonic() - begin)
            self._counts.append((time.monotonic(), sent))
            time.sleep(0.5)

    def rate(self, begin: float, end: float) -> float:
        """Requests a second that all mounts together made, or tried to."""
        inside = [(t, n) for t, n in self._counts if begin <= t <= end]
        (first, before), (last, after) = inside[0], inside[-1]
        return (after - before) / (last - first)

    def end(self) -> None:
        self._running = False
        self._thread.join(60)
        self.seconds.sort()


def _times(phases: list[tuple[str, float, float]], name: str) -> tuple[float, float]:
    return next((begin, end) for phase, begin, end in phases if phase == name)


def _is_as_large(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


def _soon(ask: Callable[[], bool], within: float) -> bool:
    deadline = time.monotonic() + within
    while not ask():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _notes(logs: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(logs.iterdir())
        for line in path.read_text().splitlines()
    ]


def _quantile(values: list[float], q: float) -> float:
    return values[min(len(values) - 1, int(len(values) * q))] if values else float("nan")


def _peak(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["program"]:
        kind, directory, log, tag = arguments[1:]
        PROGRAMS[kind](Program(Path(directory), Path(log), tag))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--deadline", type=float, default=10)
    parser.add_argument("--mounts", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="keep what the run leaves, in this directory")
    asked = parser.parse_args(arguments)
    if asked.keep is not None:
        asked.keep.mkdir(parents=True)
    day = Day(asked.seconds, asked.deadline, asked.mounts, asked.seed)
    where = tempfile.TemporaryDirectory(prefix="megafs-launchday-")
    with nullcontext(asked.keep) if asked.keep else where as directory, Ceph() as ceph:
        day.run(ceph, Path(directory).resolve())
    print(json.dumps(day.figures))
    for failure in day.failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if day.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
