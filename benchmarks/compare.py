"""The same work on megafs and on its peers, interleaved, in one run.

    python -m benchmarks.compare [--scale small|middle|full] [--rounds N] [--peers a,b] [--only big]
                                 [--lines loopback,20ms,100ms,100mbit,far] [--out DIR]

megafs, rclone (with crypt), S3QL and s3fs share one store, a Ceph on loopback started by the run,
which they reach through `benchmarks.line`, where requests and bytes are counted and round trips and
a narrow line are made ("far": 100 ms, and no connection brings more than 4 MB/s, as with TCP's
windows and losses).  sshfs goes through such a line to an sshd of the run's own.  gocryptfs and
cryfs have no store; they work on a local directory and have no rows where there is a line.  WebDAV
is not compared yet.

In each round every peer does one group of steps, then the next group is done, and so on; the order
of the peers changes from round to round.  A step ends when what it wrote is durable (fsync, and
nothing on its way to the store any more).  "Cold" is a machine that has never seen the volume.  A
step that fails or exceeds its limit, the same for all, is reported as such, the steps that need
what it should have made are left out, and the run goes on.

Each peer has the settings that make it fastest without giving up what it promises; `Peer.note` says
which, and what it promises, and is printed with the results.

Writes DIR/results.jsonl (each measurement, as it is made), DIR/table.md and DIR/plot.svg, and
prints the table.  `make bench` installs the peers first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks import peers as kinds
from benchmarks import report
from benchmarks.line import Line
from benchmarks.peers import Peer, PeerFailed
from tests.engines.ceph import Ceph

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Scale:
    """How much work: sizes in MiB, numbers of files, seconds that a step may take."""

    big: int
    other: int
    random: int
    overwrites: int
    files: int
    synced: int
    tree: int  # files that are there when a volume is mounted and searched
    names: int  # in one directory
    limit: float  # of steps that write, or read much
    quick: float  # of steps that only look, or read here and there
    source: str = ""  # what of the repository is unpacked; "" for all


SCALES = {
    "small": Scale(32, 16, 100, 100, 200, 20, 200, 200, 20, 10, "megafs/chunks megafs/stores"),
    "middle": Scale(256, 64, 300, 300, 600, 50, 5000, 1000, 60, 30),
    "full": Scale(1024, 256, 1000, 1000, 5000, 200, 20_000, 100_000, 900, 180),
}
#: Behind a line every step costs round trips, so there is less of it.
ON_LINE = {
    "small": Scale(8, 8, 40, 20, 60, 5, 40, 40, 20, 10, "megafs/chunks"),
    "middle": Scale(64, 16, 100, 50, 100, 20, 200, 200, 25, 15, "megafs/chunks"),
    "full": Scale(256, 64, 400, 200, 2000, 50, 5000, 5000, 600, 180),
}
#: name: (round trip in seconds, bytes a second of all connections, and of each)
LINES = {
    "loopback": (0.0, 0.0, 0.0),
    "20ms": (0.02, 0.0, 0.0),
    "100ms": (0.1, 0.0, 0.0),
    "100mbit": (0.02, 12.5e6, 0.0),
    "far": (0.1, 0.0, 4e6),
}


#: What tells a measurement from another.
WHERE = ("line", "round", "group", "peer", "row")


@dataclass
class Bench:
    """One run: where results go, and what a step is."""

    out: Path
    results: list[dict[str, Any]] = field(default_factory=list)
    line: str = "loopback"
    round: int = 0
    group: str = ""
    scale: Scale = SCALES["small"]
    wires: dict[str, Line] = field(default_factory=dict)
    #: (peer, name) of what a step should have made and did not.
    missing: set[tuple[str, str]] = field(default_factory=set)

    def write(self, result: dict[str, Any]) -> None:
        self.results.append(result)
        with (self.out / "results.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")

    def record(self, peer: Peer, row: str, **measured: Any) -> None:
        self.write(
            {"line": self.line, "round": self.round, "group": self.group, "peer": peer.name,
             "row": row, **measured}
        )  # fmt: skip
        what = measured.get("failed") or (
            f"{measured['mib']} MiB" if "mib" in measured else f"{measured['seconds']:.3f} s"
        )
        print(f"  {self.line:<9} {peer.name:<18} {row:<50} {what}", file=sys.stderr, flush=True)

    def counts(self, peer: Peer) -> dict[str, int]:
        wire = self.wires.get(peer.store)
        return wire.counts() if wire else {}

    def measured(self, peer: Peer, row: str, work: Callable[[], dict[str, Any]]) -> bool:
        """Do *work* and record it with what it cost; a failure is a result, too."""
        before, cpu = self.counts(peer), peer.usage()
        try:
            result = work()
        except (PeerFailed, subprocess.SubprocessError, OSError) as exc:
            self.record(peer, row, failed=" ".join(str(exc).split())[:160])
            return False
        after = self.counts(peer)
        costs = {name: after[name] - before[name] for name in after if name != "port"}
        self.record(peer, row, **result, cpu=round(peer.usage() - cpu, 3), **costs)
        return True

    def step(
        self, peer: Peer, row: str, name: str, path: str, *,
        settle: bool = False, makes: str = "", quick: bool = False, **given: Any,
    ) -> None:  # fmt: skip
        """Measure one step of `benchmarks.workloads`.

        settle: it ends when everything is in the store.
        makes: what other steps find there afterwards; without it they are not tried.
        """
        if path != makes and (peer.name, path) in self.missing:
            self.missing.add((peer.name, makes))
            self.record(peer, row, failed=f"there is no {path}: see above")
            return
        limit = self.scale.quick if quick else self.scale.limit

        def work() -> dict[str, Any]:
            begin = time.perf_counter()
            result = self._step(peer, name, {"path": f"{peer.mnt}/{path}", **given}, limit)
            done = time.perf_counter()
            if settle:
                result["seconds"] += self._settle(peer, max(1.0, limit - (done - begin)))
            return result

        if not self.measured(peer, row, work) and makes:
            self.missing.add((peer.name, makes))

    def prepare(self, peer: Peer, name: str, path: str, **given: Any) -> None:
        """What other steps need; not a result itself."""
        try:
            self._step(peer, name, {"path": f"{peer.mnt}/{path}", **given}, self.scale.limit)
            self._settle(peer, self.scale.limit)
        except PeerFailed:
            self.missing.add((peer.name, path))

    def _step(
        self, peer: Peer, name: str, given: dict[str, Any], limit: float
    ) -> dict[str, Any]:  # fmt: skip
        if not kinds.mounted(peer.mnt):  # the directory below would be fast
            raise PeerFailed("not mounted")
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.workloads", name, json.dumps(given)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            said, _ = child.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            child.kill()
            try:
                child.communicate(timeout=3)
            except subprocess.TimeoutExpired:
                # It waits in the kernel for the filesystem: that has to go, then.
                peer.end()
                child.communicate()
                peer.mount(fresh=False)
            with suppress(PeerFailed):
                self._settle(peer, max(2.0, limit / 4))
            raise PeerFailed(f"more than {limit:g} s") from None
        result: dict[str, Any] = json.loads(said or '{"failed": "it said nothing"}')
        if "failed" in result:
            raise PeerFailed(result["failed"])
        return result

    def _settle(self, peer: Peer, limit: float) -> float:
        """`Peer.settle`; what does not get through in time is given up, not left to later steps."""
        try:
            return peer.settle(limit)
        except PeerFailed:
            peer.end()
            peer.mount(fresh=True)
            raise PeerFailed(f"not in the store {limit:.1f} s later") from None

    def mount(self, peer: Peer, row: str = "", *, fresh: bool, keyed: bool = False) -> None:
        if peer.stays and not fresh and not row and kinds.mounted(peer.mnt):
            return
        if row:
            self.measured(peer, row, lambda: {"seconds": peer.mount(fresh=fresh, keyed=keyed)})
        else:
            peer.mount(fresh=fresh, keyed=keyed)

    def again(self, peer: Peer, row: str, as_row: str) -> None:
        """Record what was measured last for *row* also as *as_row*."""
        for result in reversed(self.results):
            if result.get("row") == row and result["peer"] == peer.name:
                costs = {k: v for k, v in result.items() if k not in WHERE}
                self.record(peer, as_row, **costs)
                return


# -- the groups of steps


def big(bench: Bench, peer: Peer) -> None:
    scale, n = bench.scale, f"{bench.line}-{bench.round}"
    bench.mount(peer, fresh=False)
    bench.step(
        peer, f"write {scale.big} MiB until durable", "write", f"big-{n}",
        settle=True, makes=f"big-{n}", mib=scale.big,
    )  # fmt: skip
    for name in ("one", "four"):
        bench.prepare(peer, "write", f"{name}-{n}", mib=scale.other)
    peer.umount()
    bench.mount(peer, fresh=True)
    bench.step(peer, "first byte of a file, cold", "first_byte", f"big-{n}", quick=True)
    bench.step(peer, f"read {scale.big} MiB, cold", "read", f"big-{n}")
    bench.step(peer, f"read {scale.big} MiB, own cache", "read", f"big-{n}", drop=True)
    bench.step(peer, f"read {scale.big} MiB, page cache", "read", f"big-{n}")
    count = scale.random
    for readers, name in ((1, "one"), (4, "four")):
        bench.step(
            peer, f"{count} random 4 KiB reads, cold, {readers} reader{'s' * (readers > 1)}",
            "random_reads", f"{name}-{n}", quick=True, count=count, readers=readers, seed=1,
        )  # fmt: skip
    for readers in (1, 4):
        bench.step(
            peer, f"{count} random 4 KiB reads, warm, {readers} reader{'s' * (readers > 1)}",
            "random_reads", f"big-{n}", quick=True, count=count, readers=readers, seed=2,
        )  # fmt: skip
    bench.step(
        peer, f"{scale.overwrites} 4 KiB overwrites, durable", "overwrite", f"big-{n}",
        settle=True, count=scale.overwrites, seed=3,
    )  # fmt: skip


def small(bench: Bench, peer: Peer) -> None:
    scale, n = bench.scale, f"{bench.line}-{bench.round}"
    bench.mount(peer, fresh=False)
    bench.step(
        peer, f"create {scale.files} small files, durable", "create", f"small-{n}",
        settle=True, makes=f"small-{n}", count=scale.files,
    )  # fmt: skip
    bench.step(
        peer, f"create {scale.synced} small files, fsync each", "create_synced", f"synced-{n}",
        settle=True, makes=f"synced-{n}", count=scale.synced,
    )  # fmt: skip
    peer.umount()
    bench.mount(peer, fresh=True)
    bench.step(peer, f"read {scale.files} small files, cold", "read_back", f"small-{n}")
    bench.step(peer, f"read {scale.files} small files, warm", "read_back", f"small-{n}")


def tree(bench: Bench, peer: Peer) -> None:
    """Many files: to mount with, to search and to list.

    Who has no key file keeps its key material on the disk anyway (rclone, in its configuration) or
    has only a passphrase: its mount is recorded for the rows with a key file, too.
    """
    scale, n = bench.scale, f"{bench.line}-{bench.round}"
    bench.mount(peer, fresh=False)
    bench.step(
        peer, f"create a tree of {scale.tree} files, durable", "create", f"tree-{n}",
        settle=True, makes=f"tree-{n}", count=scale.tree,
    )  # fmt: skip
    bench.step(
        peer, f"create {scale.names} names in a directory", "names", f"names-{n}",
        settle=True, makes=f"names-{n}", count=scale.names,
    )  # fmt: skip
    peer.umount()
    row = f"mount to first listing, {scale.tree} files, "
    bench.mount(peer, row + "new machine", fresh=True)
    find = f"find -ls of {scale.tree} files, "
    bench.step(peer, find + "cold", "find", f"tree-{n}", quick=True)
    bench.step(peer, find + "warm", "find", f"tree-{n}", quick=True)
    bench.step(peer, f"list {scale.names} names, cold", "listing", f"names-{n}", quick=True)
    peer.umount()
    bench.mount(peer, row + "seen before", fresh=False)
    for fresh, which in ((False, "seen before"), (True, "new machine")):
        if peer.has_key_file:
            peer.umount()
            bench.mount(peer, f"{row}{which}, key file", fresh=fresh, keyed=True)
        else:
            bench.again(peer, row + which, f"{row}{which}, key file")


def programs(bench: Bench, peer: Peer) -> None:
    n = f"{bench.line}-{bench.round}"
    bench.mount(peer, fresh=False)
    archive, repository = str(bench.out / "tree.tar"), str(bench.out / "tree")
    bench.step(peer, "untar a source tree, durable", "untar", f"source-{n}",
               settle=True, makes=f"source-{n}", archive=archive)  # fmt: skip
    bench.step(peer, "cp -a of it, durable", "copy", f"source-{n}",
               settle=True, makes=f"copy-{n}", to=f"{peer.mnt}/copy-{n}")  # fmt: skip
    # Of the first one: where cp fails, as on rclone, this can still be compared.
    bench.step(peer, "rm -rf of it, durable", "remove", f"source-{n}", settle=True)
    bench.step(peer, "git clone, durable", "clone", f"clone-{n}",
               settle=True, makes=f"clone-{n}", repository=repository)  # fmt: skip
    bench.step(peer, "git status", "git_status", f"clone-{n}", quick=True)


GROUPS = {"big": big, "small": small, "tree": tree, "programs": programs}


def make_tree(out: Path, paths: str) -> None:
    """An archive of (a part of) this repository, and a repository with one commit of it."""
    tree, archive = out / "tree", out / "tree.tar"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    with archive.open("wb") as file:
        subprocess.run(
            ["git", "archive", "HEAD", *paths.split()], cwd=ROOT, stdout=file, check=True
        )
    subprocess.run(["tar", "-xf", archive, "-C", tree], check=True)
    git = ["git", "-C", str(tree), "-c", "user.name=x", "-c", "user.email=x@localhost"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True, capture_output=True)


def compare(bench: Bench, chosen: list[Peer], args: argparse.Namespace) -> None:
    for peer in list(chosen):
        try:
            peer.make()
        except (PeerFailed, subprocess.SubprocessError, OSError) as exc:
            bench.record(peer, "make", failed=" ".join(str(exc).split())[:160])
            chosen.remove(peer)
        else:
            bench.write(
                {"peer": peer.name, "note": peer.note, "store": peer.store,
                 "encrypts": peer.encrypts}
            )  # fmt: skip
    lines, groups = args.lines.split(","), args.only.split(",")
    for bench.round, line in itertools.product(range(1, args.rounds + 1), lines):
        bench.line = line
        if line != "loopback" and bench.round > args.line_rounds:
            continue
        bench.scale = (SCALES if line == "loopback" else ON_LINE)[args.scale]
        if "programs" in groups:
            make_tree(bench.out, bench.scale.source)
        rtt, rate, each = LINES[line]
        for group in groups:
            if line == "100mbit" and group != "big":
                continue
            turn = bench.round % len(chosen)
            for peer in chosen[turn:] + chosen[:turn]:
                if bench.round > peer.rounds:
                    continue
                if line != "loopback" and peer.store not in bench.wires:
                    continue
                for wire in bench.wires.values():
                    wire.set(rtt=rtt, rate=rate, each=each)
                one(bench, peer, group)
        for peer in chosen:
            if peer.stays:
                leave(bench, peer)


def one(bench: Bench, peer: Peer, group: str) -> None:
    bench.group = group
    try:
        peer.forget_peak()
        GROUPS[group](bench, peer)
    except (PeerFailed, subprocess.SubprocessError, OSError) as exc:
        bench.record(peer, f"(the rest of {group})", failed=" ".join(str(exc).split())[:160])
    peer.usage()
    bench.record(peer, f"peak memory, {group}", mib=round(peer.peak / (1 << 20), 1))
    for wire in bench.wires.values():
        wire.set(rtt=0, rate=0)  # what is left is not measured
    if not peer.stays:
        leave(bench, peer)


def leave(bench: Bench, peer: Peer) -> None:
    """Unmount, by force if need be."""
    try:
        peer.umount()
    except (PeerFailed, subprocess.SubprocessError, OSError) as exc:
        bench.record(
            peer, f"umount after {bench.group}", failed=" ".join(str(exc).split())[:160]
        )  # fmt: skip
    finally:
        peer.end()


def end(chosen: list[Peer]) -> None:
    """By force, whatever is left."""
    for peer in chosen:
        peer.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--line-rounds", type=int, default=1, help="rounds behind each line")
    parser.add_argument("--lines", default="loopback,20ms")
    parser.add_argument("--peers", default="", help="names with _ for blanks; all by default")
    parser.add_argument("--only", default=",".join(GROUPS), help="groups of steps")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that mounts and daemons end, too
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.jsonl").unlink(missing_ok=True)

    place = Path(tempfile.mkdtemp(prefix="megafs-bench-"))
    bench = Bench(args.out.resolve())
    begin, load = time.monotonic(), os.getloadavg()[0]
    chosen: list[Peer] = []
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        stack.callback(end, chosen)
        ceph = stack.enter_context(Ceph())
        parts = urlsplit(ceph.endpoint)
        wire = bench.wires["s3"] = stack.enter_context(Line(str(parts.hostname), parts.port or 80))
        endpoint, bucket = f"http://127.0.0.1:{wire.port}", ceph.fresh_name()
        chosen += [
            kind(place, ceph.environment(), endpoint, bucket)
            for kind in (kinds.Megafs, kinds.RcloneOff, kinds.RcloneFull, kinds.S3ql, kinds.S3fs)
            if kind.found()
        ]
        if shutil.which("sshfs") and Path("/usr/sbin/sshd").exists():
            sshd = kinds.Sshd(place)
            stack.callback(sshd.end)
            wire = bench.wires["sftp"] = stack.enter_context(Line("127.0.0.1", sshd.port))
            chosen.append(kinds.Sshfs(place, wire.port, sshd.key))
        chosen += [kind(place) for kind in (kinds.Gocryptfs, kinds.Cryfs) if kind.found()]
        wanted = {name.replace("_", " ") for name in args.peers.split(",") if name}
        chosen[:] = [p for p in chosen if not wanted or p.name in wanted]
        compare(bench, chosen, args)
    facts = {
        "scale": args.scale,
        "rounds": args.rounds,
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "cores": os.cpu_count(),
        "load before": round(load, 1),
        "load after": round(os.getloadavg()[0], 1),
    }
    bench.write({"facts": facts})
    text = report.table(bench.results)
    (bench.out / "table.md").write_text(text)
    (bench.out / "plot.svg").write_text(report.plot(bench.results))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
