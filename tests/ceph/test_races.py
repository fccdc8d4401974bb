"""Several real mounts of one volume, in processes of their own, over real Ceph, at the same time.

Every racer is a process of its own as well, so that nothing but the store lies between them: they
start at one moment by the clock, do their system calls on their own mount, and print what happened.
What each test found in figures goes to the test's report (`pytest -rP`).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engines.ceph import Ceph
from tests.mount.conftest import mounts_below
from tests.mount.machine import Machine

pytestmark = [pytest.mark.fuse, pytest.mark.ceph]

#: What one mount closes, another one opens within: both sides' intervals of one second, and the
#: time that two noisy cores take for all the processes of these tests.
SOON = 10.0


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Crowd:
    """Machines that have one volume mounted."""

    def __init__(self, ceph: Ceph, count: int, *options: str) -> None:
        # In memory: every close(2) syncs, and how fast a disk is has no part in these tests.
        self.place = Path(tempfile.mkdtemp(prefix="megafs-races-", dir=_memory()))
        self.url = f"s3://{ceph.fresh_name()}/volume"
        self.environ = ceph.environment()
        self.machines = [self.add(f"machine{n}") for n in range(count)]
        self.machines[0].format()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda machine: machine.mount(*options), self.machines))

    def add(self, name: str) -> Machine:
        machine = Machine(self.place, name, self.url)
        machine.environ.update(self.environ)
        return machine

    @property
    def mounts(self) -> list[Path]:
        return [machine.mnt for machine in self.machines]

    def everywhere(self, path: str, *, within: float = SOON) -> float:
        """Wait until every mount has this path; return how many seconds that took."""
        return self.until(lambda mnt: os.path.lexists(mnt / path), within=within)

    def until(self, true: Any, *, within: float = SOON) -> float:
        """Wait until *true* of every mount; return how many seconds that took."""
        began = time.monotonic()
        for mnt in self.mounts:
            while not true(mnt):
                waited = time.monotonic() - began
                assert waited < within, f"{mnt.parent.name}: not so after {waited:.1f} s"
                time.sleep(0.02)
        return time.monotonic() - began

    def kill(self) -> None:
        for machine in self.machines:
            machine.kill()

    def race(self, script: str, patience: float = 60.0) -> list[Any]:
        """Run *script* on every mount at the same moment; return what each printed as JSON.

        It finds `mnt`, `me` (its number) and a function `go(n)`, which returns at the same moment
        everywhere, once for each n.
        """
        start = time.time() + 1.0
        head = (
            "import errno, json, os, sys, time\n"
            "mnt, me, start = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])\n"
            "def go(n, every=0.0):\n"
            "    time.sleep(max(0.0, start + n * every - time.time()))\n"
        )
        running = [
            subprocess.Popen(
                [sys.executable, "-c", head + script, mnt, str(n), str(start)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for n, mnt in enumerate(self.mounts)
        ]
        # A mount that hangs would hang its racer, and so this test: killing the mount frees both.
        guard = threading.Timer(patience, self.kill)
        guard.start()
        try:
            results = [(process, *process.communicate()) for process in running]
        finally:
            guard.cancel()
        for process, _, wrong in results:
            assert process.returncode == 0, wrong[-3000:]
        return [json.loads(said) for _, said, _ in results]

    def end(self) -> None:
        for machine in self.machines:
            machine.kill()
        for point in mounts_below(self.place):
            subprocess.run(["umount", "-l", point], check=False)
        shutil.rmtree(self.place, ignore_errors=True)


@pytest.fixture(scope="module")
def crowd(ceph: Ceph) -> Iterator[Crowd]:
    """Three machines with one volume, close-to-open."""
    made = Crowd(ceph, 3)
    try:
        yield made
        for machine in made.machines:
            machine.umount()
    finally:
        made.end()


@pytest.fixture(scope="module")
def strict(ceph: Ceph) -> Iterator[Crowd]:
    """Three machines with one volume, mounted with consistency=strict."""
    made = Crowd(ceph, 3, "-o", "consistency=strict")
    try:
        yield made
        for machine in made.machines:
            machine.umount()
    finally:
        made.end()


# ---- many at once ------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_thousand_names_made_by_three_mounts_in_one_directory(crowd: Crowd) -> None:
    """None is lost, none is there twice, also for a machine that comes later."""
    (crowd.mounts[0] / "many").mkdir()
    crowd.everywhere("many")
    began = time.monotonic()
    crowd.race(
        "go(0)\n"
        "for n in range(3334):\n"
        "    os.close(os.open(f'{mnt}/many/{me}-{n:05}', os.O_CREAT | os.O_EXCL | os.O_WRONLY))\n"
        "print('true')\n",
        patience=150.0,
    )
    made = time.monotonic() - began
    wanted = sorted(f"{me}-{n:05}" for me in range(3) for n in range(3334))
    agreed = crowd.until(lambda mnt: sorted(os.listdir(mnt / "many")) == wanted, within=30)
    late = crowd.add("late")
    late.mount("-o", "ro")
    assert sorted(os.listdir(late.mnt / "many")) == wanted
    late.umount()
    for machine in crowd.machines:
        assert not machine.status()["conflicts"]
    print(f"{len(wanted)} names in {made:.1f} s, the same everywhere {agreed:.1f} s later")


def test_the_same_name_on_every_mount_is_kept_under_names_of_its_own(crowd: Crowd) -> None:
    """Without strict consistency both files are there in the end, one under a conflict name."""
    (crowd.mounts[0] / "same").mkdir()
    crowd.everywhere("same")
    crowd.race(
        "go(0)\n"
        "for n in range(10):\n"
        "    with open(f'{mnt}/same/{n}.txt', 'w') as f: f.write(f'{me} {n}')\n"
        "print('true')\n"
    )

    def contents(mnt: Path) -> list[str]:
        try:
            return sorted(path.read_text() for path in (mnt / "same").iterdir())
        except OSError:
            return []  # a name went between listing and opening

    wanted = sorted(f"{me} {n}" for me in range(3) for n in range(10))
    took = crowd.until(lambda mnt: contents(mnt) == wanted, within=20)
    names = [sorted(os.listdir(mnt / "same")) for mnt in crowd.mounts]
    assert names[0] == names[1] == names[2]
    copies = [name for name in names[0] if "conflict from" in name]
    assert all(name.endswith(".txt") for name in names[0])
    print(f"30 files of 10 names: {len(copies)} conflict copies, settled in {took:.1f} s")


# ---- exactly one winner ------------------------------------------------------------------------

ROUNDS = 12


def one_winner(results: list[list[str]], loser: str) -> Counter[int]:
    """Who won how often; fail unless each round had one winner, and *loser* for the others."""
    wins: Counter[int] = Counter()
    for n, answers in enumerate(zip(*results, strict=True)):
        assert sorted(answers) == sorted(["won"] + [loser] * (len(results) - 1)), (n, answers)
        wins[answers.index("won")] += 1
    return wins


def attempt(call: str, every: float) -> str:
    """A racer's script that tries *call* in every round."""
    return (
        "answers = []\n"
        f"for n in range({ROUNDS}):\n"
        f"    go(n, {every})\n"
        "    try:\n"
        f"        {call}\n"
        "        answers.append('won')\n"
        "    except OSError as exc:\n"
        "        answers.append(errno.errorcode[exc.errno])\n"
        "print(json.dumps(answers))\n"
    )


def test_exclusive_creation_has_one_winner(strict: Crowd) -> None:
    (strict.mounts[0] / "excl").mkdir()
    strict.everywhere("excl")
    call = "os.close(os.open(f'{mnt}/excl/{n}', os.O_CREAT | os.O_EXCL | os.O_WRONLY))"
    wins = one_winner(strict.race(attempt(call, 0.5)), "EEXIST")
    strict.until(lambda mnt: len(os.listdir(mnt / "excl")) == ROUNDS)
    print(f"O_EXCL, {ROUNDS} rounds of 3: won {sorted(wins.values())}")


def test_mkdir_has_one_winner(strict: Crowd) -> None:
    (strict.mounts[0] / "locks").mkdir()
    strict.everywhere("locks")
    wins = one_winner(strict.race(attempt("os.mkdir(f'{mnt}/locks/{n}')", 0.5)), "EEXIST")
    strict.until(lambda mnt: len(os.listdir(mnt / "locks")) == ROUNDS)
    print(f"mkdir, {ROUNDS} rounds of 3: won {sorted(wins.values())}")


def test_rename_has_one_winner(strict: Crowd) -> None:
    """Whoever takes the file first has it; the others find nothing to take."""
    spool = strict.mounts[0] / "spool"
    spool.mkdir()
    for n in range(ROUNDS):
        (spool / f"job{n}").write_text(str(n))
    strict.everywhere(f"spool/job{ROUNDS - 1}")
    call = "os.rename(f'{mnt}/spool/job{n}', f'{mnt}/spool/taken{n}-{me}')"
    wins = one_winner(strict.race(attempt(call, 0.5)), "ENOENT")
    strict.until(lambda mnt: not [x for x in os.listdir(mnt / "spool") if x.startswith("job")])
    for mnt in strict.mounts:
        taken = sorted(os.listdir(mnt / "spool"))
        assert len(taken) == ROUNDS
        assert {path.read_text() for path in (mnt / "spool").iterdir()} == {
            str(n) for n in range(ROUNDS)
        }
    print(f"rename, {ROUNDS} rounds of 3: won {sorted(wins.values())}")


def test_link_as_a_lock_has_one_winner(strict: Crowd) -> None:
    """The classic lock of mail programs: link(2) to a name that must not exist."""
    (strict.mounts[0] / "mail").mkdir()
    for n in range(3):
        (strict.mounts[0] / "mail" / f"me{n}").touch()
    strict.everywhere("mail/me2")
    call = "os.link(f'{mnt}/mail/me{me}', f'{mnt}/mail/lock{n}')"
    wins = one_winner(strict.race(attempt(call, 0.5)), "EEXIST")
    print(f"link, {ROUNDS} rounds of 3: won {sorted(wins.values())}")


# ---- what the others see -----------------------------------------------------------------------


def test_logs_that_grow_are_read_by_the_others(crowd: Crowd) -> None:
    """Each mount appends to its own file; what the others read is always a beginning of it."""
    (crowd.mounts[0] / "logs").mkdir()
    crowd.everywhere("logs")
    results = crowd.race(
        "seen = {}\n"
        "reads = wrong = 0\n"
        "def line(who, n): return f'{who} {n:06} ' + 'x' * 50 + '\\n'\n"
        "go(0)\n"
        "for n in range(60):\n"
        "    with open(f'{mnt}/logs/{me}.log', 'a') as f: f.write(line(me, n))\n"
        "    for who in range(3):\n"
        "        try: text = open(f'{mnt}/logs/{who}.log').read()\n"
        "        except FileNotFoundError: continue\n"
        "        reads += 1\n"
        "        count = len(text) // len(line(0, 0))\n"
        "        if text != ''.join(line(who, k) for k in range(count)): wrong += 1\n"
        "        if count < seen.get(who, 0): wrong += 1\n"
        "        seen[who] = count\n"
        "    time.sleep(0.05)\n"
        "print(json.dumps([reads, wrong]))\n"
    )
    assert [wrong for _, wrong in results] == [0, 0, 0]
    took = crowd.until(
        lambda mnt: all(
            (mnt / "logs" / f"{who}.log").read_text().count("\n") == 60 for who in range(3)
        )
    )
    print(f"{sum(reads for reads, _ in results)} reads, all lines everywhere {took:.1f} s later")


def test_what_one_closes_the_others_open_within_the_interval(crowd: Crowd) -> None:
    """One writer, two readers: never half a version, never an older one after a newer one."""
    (crowd.mounts[0] / "board").mkdir()
    (crowd.mounts[0] / "board" / "page").write_text("0 " * 2000)
    crowd.everywhere("board/page")
    writer, *readers = crowd.race(
        "path = f'{mnt}/board/page'\n"
        "go(0)\n"
        "if me == 0:\n"
        "    closed = []\n"
        "    for n in range(1, 13):\n"
        "        text = f'{n} ' * 2000\n"
        "        if n % 2:\n"
        "            with open(path + '.new', 'w') as f: f.write(text)\n"
        "            os.rename(path + '.new', path)\n"
        "        else:\n"
        "            fd = os.open(path, os.O_WRONLY)\n"
        "            os.pwrite(fd, text.encode().ljust(6000), 0)\n"
        "            os.close(fd)\n"
        "        closed.append([n, time.time()])\n"
        "        time.sleep(0.7)\n"
        "    print(json.dumps(closed))\n"
        "else:\n"
        "    seen, last, wrong, reads = [], -1, [], 0\n"
        "    while last < 12 and time.time() < start + 30:\n"
        "        when = time.time()\n"
        "        words = set(open(path).read().split())\n"
        "        reads += 1\n"
        "        if len(words) != 1: wrong.append(sorted(words))\n"
        "        n = int(min(words))\n"
        "        if n < last: wrong.append([last, n])\n"
        "        if n > last: seen.append([n, when])\n"
        "        last = n\n"
        "        time.sleep(0.02)\n"
        "    print(json.dumps([seen, wrong, reads]))\n"
    )
    closed = dict(writer)
    delays = []
    for seen, wrong, reads in readers:
        assert not wrong, wrong[:5]
        assert reads > 12
        for n, when in closed.items():
            first = min(at for number, at in seen if number >= n)
            delays.append(first - when)
    assert max(delays) < SOON
    print(
        f"{len(delays)} versions seen, median {statistics.median(delays):.2f} s, at most"
        f" {max(delays):.2f} s after close"
    )


def test_the_kernel_forgets_what_others_changed(crowd: Crowd) -> None:
    """Names, attributes, contents and absent names that a kernel had cached are looked up anew."""
    one, two = crowd.mounts[0] / "cache", crowd.mounts[1] / "cache"
    one.mkdir()
    (one / "grows").write_text("short")
    (one / "goes").write_text("away")
    (one / "moves").write_text("here")
    (one / "same size").write_text("old old old")
    os.utime(one / "same size", (1, 1))
    (one / "mode").touch(mode=0o644)
    (one / "sub").mkdir()
    crowd.everywhere("cache/sub")

    def before() -> None:
        assert (two / "grows").read_text() == "short"
        assert (two / "goes").stat().st_size == 4
        assert (two / "moves").exists()
        assert (two / "same size").read_text() == "old old old"
        assert (two / "mode").stat().st_mode & 0o777 == 0o644
        assert not (two / "comes").exists()
        assert (two / "sub").stat().st_nlink == 2
        assert len(os.listdir(two)) == 6

    before()
    time.sleep(0.3)
    before()  # from the kernel's caches
    descriptor = os.open(two / "grows", os.O_RDONLY)
    try:
        (one / "grows").write_text("much longer than it was")
        (one / "goes").unlink()
        (one / "moves").rename(one / "moved")
        (one / "same size").write_text("new new new")
        os.utime(one / "same size", (1, 1))
        (one / "mode").chmod(0o600)
        (one / "comes").write_text("new")
        (one / "sub" / "below").mkdir()
        began = time.monotonic()

        def after() -> bool:
            try:
                return (
                    (two / "grows").read_text() == "much longer than it was"
                    and not (two / "goes").exists()
                    and not (two / "moves").exists()
                    and (two / "moved").read_text() == "here"
                    and (two / "same size").read_text() == "new new new"
                    and (two / "mode").stat().st_mode & 0o777 == 0o600
                    and (two / "comes").read_text() == "new"
                    and (two / "sub").stat().st_nlink == 3
                    and sorted(os.listdir(two))
                    == ["comes", "grows", "mode", "moved", "same size", "sub"]
                )
            except OSError:
                return False

        while not after():
            assert time.monotonic() - began < SOON
            time.sleep(0.02)
        took = time.monotonic() - began
        # A file that stays open shows it, too.
        assert os.pread(descriptor, 100, 0) == b"much longer than it was"
        assert os.fstat(descriptor).st_size == 23
    finally:
        os.close(descriptor)
    print(f"everything seen by the other mount after {took:.2f} s")


@pytest.mark.slow
def test_a_git_repository_between_two_mounts(crowd: Crowd, tmp_path: Path) -> None:
    """Pushed to through one mount, pulled through another, and back."""

    def git(*args: str | Path, cwd: Path) -> str:
        done = subprocess.run(
            ["git", *map(str, args)],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
            env={
                **os.environ,
                "GIT_CONFIG_GLOBAL": "/dev/null",
                "GIT_AUTHOR_NAME": "a",
                "GIT_AUTHOR_EMAIL": "a@example.org",
                "GIT_COMMITTER_NAME": "a",
                "GIT_COMMITTER_EMAIL": "a@example.org",
            },
            check=False,
        )
        assert done.returncode == 0, (args, done.stdout, done.stderr)
        return done.stdout.strip()

    def commit(work: Path, name: str) -> str:
        for n in range(15):
            (work / f"{name}{n}").write_text(f"{name} {n}\n" * 50)
        git("add", ".", cwd=work)
        git("commit", "-q", "-m", name, cwd=work)
        return git("rev-parse", "HEAD", cwd=work)

    one, two = crowd.mounts[0] / "project.git", crowd.mounts[1] / "project.git"
    git("init", "-q", "--bare", "-b", "main", one, cwd=tmp_path)
    git("init", "-q", "-b", "main", tmp_path / "a", cwd=tmp_path)
    git("remote", "add", "origin", one, cwd=tmp_path / "a")
    first = commit(tmp_path / "a", "first")
    git("push", "-q", "origin", "main", cwd=tmp_path / "a")

    def has(path: Path, commit: str) -> bool:
        try:
            return (path / "refs/heads/main").read_text().strip() == commit
        except FileNotFoundError:
            return False

    crowd.until(lambda mnt: has(mnt / "project.git", first))
    git("-c", "safe.directory=*", "clone", "-q", two, tmp_path / "b", cwd=tmp_path)
    assert git("rev-parse", "HEAD", cwd=tmp_path / "b") == first
    for n in range(3):
        second = commit(tmp_path / "b", f"b{n}-")
        git("push", "-q", "origin", "main", cwd=tmp_path / "b")
        crowd.until(lambda mnt, second=second: has(mnt / "project.git", second))
        git("pull", "-q", "--ff-only", "origin", "main", cwd=tmp_path / "a")
        assert git("rev-parse", "HEAD", cwd=tmp_path / "a") == second
        third = commit(tmp_path / "a", f"a{n}-")
        git("push", "-q", "origin", "main", cwd=tmp_path / "a")
        crowd.until(lambda mnt, third=third: has(mnt / "project.git", third))
        git("pull", "-q", "--ff-only", "origin", "main", cwd=tmp_path / "b")
    for path in (one, two):
        git("fsck", "--full", "--strict", cwd=path)
