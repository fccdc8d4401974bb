"""The acceptance run: real data through a mount on a real Ceph, and back on another machine.

    python -m benchmarks.acceptance [--size MIB] [--store URL] [--keep]

Through a mount made with the command line go the interpreter's own standard library, a git clone of
this repository and a file of random bytes (1 GiB unless told otherwise).  Then umount, mount with
empty state and cache directories, as on another machine, and compare: `diff -r`, `git fsck`, `cmp`.
Last, no name and no content of any of it may be found in the store's objects and their names, in
the states or in the caches, as bytes, by `grep -F`; the same needles are looked for in the source
first, so that a grep that finds nothing anywhere does not pass.

Prints what it did with its figures, then one line of JSON, and exits with 1 if anything differs,
anything is found, or a mount's process had more than 300 MiB in memory (VmHWM).

Ceph is started and stopped by the script (memory: about three times what is written).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import trio

from megafs.stores.base import list_all
from megafs.stores.stack import Traffic, open_store
from tests.engines.ceph import Ceph
from tests.mount.machine import Machine

REPOSITORY = Path(__file__).resolve().parent.parent
MEMORY_LIMIT = 300 << 20
CANARY = "canary-7f3a91-of-the-coal-mine"
#: Shorter needles could be found by chance.
NEEDLE_MIN = 10


class Memory:
    """Follows the peak of a process's resident memory for as long as it runs."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._status = Path(f"/proc/{pid}/status")
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while True:
            try:
                found = re.search(r"VmHWM:\s+(\d+) kB", self._status.read_text())
            except (FileNotFoundError, ProcessLookupError):
                return
            if found is None:  # a zombie
                return
            self.peak = int(found[1]) << 10
            time.sleep(0.1)

    def end(self) -> int:
        """Wait for the process's end and return the peak."""
        self._thread.join(60)
        return self.peak


class Run:
    """Steps with their times, and what went wrong."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self.failures: list[str] = []

    @contextmanager
    def step(self, name: str, size: int = 0, files: int = 0) -> Iterator[None]:
        begin = time.monotonic()
        yield
        took = time.monotonic() - begin
        self.figures[name] = round(took, 2)
        text = f"{name:<44} {took:8.2f} s"
        if size:
            text += f"  {size / took / (1 << 20):7.1f} MiB/s"
        if files:
            text += f"  {took / files * 1000:6.2f} ms a file"
        print(text, flush=True)

    def check(self, good: bool, what: str) -> None:
        print(f"  {'ok  ' if good else 'FAIL'} {what}", flush=True)
        if not good:
            self.failures.append(what)

    def same(self, *command: str | Path) -> None:
        """Run a command that compares; its exit code must be 0."""
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        shown = " ".join(map(str, command))
        said = (done.stdout + done.stderr).strip()
        self.check(done.returncode == 0, shown + (f"\n{said[:2000]}" if done.returncode else ""))


def tree_size(directory: Path) -> tuple[int, int]:
    """Bytes and number of the files below *directory*."""
    sizes = [p.lstat().st_size for p in directory.rglob("*") if not p.is_dir()]
    return sum(sizes), len(sizes)


def make_source(source: Path, size: int) -> None:
    """What is to be written; a copy, so that nobody changes it meanwhile."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(
        stdlib, source / "stdlib", symlinks=True, ignore=shutil.ignore_patterns("site-packages")
    )
    with (source / "random.bin").open("wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    canary = source / CANARY
    canary.mkdir()
    (canary / f"{CANARY}-small").write_text(f"{CANARY} tiny, travels in the commit\n")
    (canary / f"{CANARY}-large").write_text(f"{CANARY} compresses well\n" * 50_000)
    (canary / "link").symlink_to(f"{CANARY}-target")
    os.setxattr(canary / f"{CANARY}-small", f"user.{CANARY}", f"{CANARY}-value".encode())


def needles(source: Path) -> list[bytes]:
    """Names and pieces of contents that must not be found anywhere."""
    chosen = {CANARY.encode(), f"../{CANARY}".encode()}
    pick = random.Random(1)
    for path in source.rglob("*"):
        name = os.fsencode(path.name)
        if len(name) >= NEEDLE_MIN and not re.fullmatch(rb"[0-9a-f]+", name):
            chosen.add(name)
        if path.is_symlink() or not path.is_file():
            continue
        pieces = 200 if path.name == "random.bin" else 1
        with path.open("rb") as file:
            size = path.stat().st_size
            for _ in range(pieces):
                if size < 64:
                    continue
                file.seek(pick.randrange(size - 48))
                # grep takes a pattern a line, without NUL.
                runs = re.findall(rb"[^\n\0]{16,}", file.read(48))
                chosen.update(run[:32] for run in runs[:1] if len(set(run)) > 6)
    return sorted(chosen)


def found_in(patterns: Path, place: Path) -> list[str]:
    """The files below *place* that hold a needle, by bytes."""
    done = subprocess.run(
        ["grep", "-rlaF", "-f", patterns, place],
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
    )
    if done.returncode > 1:
        raise RuntimeError(done.stderr.decode(errors="replace"))
    return done.stdout.decode(errors="replace").splitlines()


async def download(url: str, options: dict[str, str], to: Path) -> int:
    """Every object of the store into one directory of files, and their names into one more."""
    store = open_store(url, options, Traffic(patience=60.0))
    sizes: dict[str, int] = {}
    async for page in list_all(store, ""):
        sizes.update((entry.name, entry.size) for entry in page.entries)
    for n, (name, size) in enumerate(sizes.items()):
        (to / f"{n:06d}").write_bytes(await store.get(name, 0, size))
    (to / "names").write_text("\n".join(sizes))
    total = sum(sizes.values())
    await store.aclose()
    print(f"  the store holds {len(sizes)} objects, {total / (1 << 20):.1f} MiB")
    return total


def acceptance(run: Run, url: str, environ: dict[str, str], place: Path, size: int) -> None:
    source = place / "source"
    source.mkdir()
    make_source(source, size)
    bytes_of, files_of = tree_size(source / "stdlib")
    print(f"  standard library: {files_of} files, {bytes_of >> 20} MiB; random: {size >> 20} MiB")
    machines = [Machine(place, name, url) for name in ("first", "second")]
    for machine in machines:
        machine.environ.update(environ)
        del machine.environ["MEGAFS_KDF"]  # as a user has it
    first, second = machines
    try:
        with run.step("format"):
            first.format()
        with run.step("mount"):
            first.mount()
        memory = Memory(first.pid)
        mnt = first.mnt
        with run.step("cp -a of the standard library", bytes_of, files_of):
            subprocess.run(["cp", "-a", source / "stdlib", mnt], check=True)
        with run.step("cp -a of the canaries"):
            subprocess.run(["cp", "-a", source / CANARY, mnt], check=True)
        with run.step("git clone"):
            clone = ["git", "clone", "-q", "--no-hardlinks", str(REPOSITORY), str(mnt / "clone")]
            subprocess.run(clone, check=True)
        with run.step("dd of the random file, conv=fsync", size):
            command = ["dd", f"if={source}/random.bin", f"of={mnt}/random.bin", "bs=1M"]
            subprocess.run([*command, "conv=fsync", "status=none"], check=True)
        shutil.copytree(mnt / "clone", source / "clone", symlinks=True)
        head = subprocess.run(
            ["git", "-C", mnt / "clone", "rev-parse", "HEAD"],
            check=True,
            capture_output=True,
        ).stdout
        # What lies there while the volume is in use is looked at, too.
        shutil.copytree(first.place / "state", place / "state-in-use")
        with run.step("umount"):
            first.umount()
        run.figures["memory of the first mount, MiB"] = round(memory.end() / (1 << 20), 1)

        with run.step("mount on another machine"):
            second.mount()
        memory = Memory(second.pid)
        mnt = second.mnt
        with run.step("diff -r of the standard library", bytes_of, files_of):
            run.same("diff", "-r", "--no-dereference", source / "stdlib", mnt / "stdlib")
        with run.step("diff -r of clone and canaries"):
            run.same("diff", "-r", "--no-dereference", source / "clone", mnt / "clone")
            run.same("diff", "-r", "--no-dereference", source / CANARY, mnt / CANARY)
        run.check(
            os.getxattr(mnt / CANARY / f"{CANARY}-small", f"user.{CANARY}")
            == f"{CANARY}-value".encode(),
            "the extended attribute is there",
        )
        with run.step("cmp of the random file", size):
            run.same("cmp", source / "random.bin", mnt / "random.bin")
        with run.step("rsync -nac of the standard library"):
            done = subprocess.run(
                ["rsync", "-nacH", "--delete", "-i", f"{source}/stdlib/", f"{mnt}/stdlib/"],
                check=True,
                capture_output=True,
                text=True,
            )
            run.check(not done.stdout, f"rsync -nacH finds nothing to do{done.stdout[:500]}")
        with run.step("git fsck"):
            run.same("git", "-C", mnt / "clone", "fsck", "--full", "--strict")
            run.same("git", "-C", mnt / "clone", "cat-file", "-e", head.decode().strip())
            run.same("git", "-C", mnt / "clone", "diff", "--quiet", "HEAD")
        shutil.copytree(second.place / "state", place / "state-in-use-2")
        with run.step("umount of the second"):
            second.umount()
        run.figures["memory of the second mount, MiB"] = round(memory.end() / (1 << 20), 1)
    finally:
        for machine in machines:
            machine.kill()

    for number in ("first", "second"):
        peak = run.figures[f"memory of the {number} mount, MiB"]
        run.check(peak < MEMORY_LIMIT >> 20, f"peak memory of the {number} mount: {peak} MiB")

    objects = place / "objects"
    objects.mkdir()
    with run.step("download of the store"):
        stored = trio.run(download, url, _options(environ), objects)
    run.figures["stored, MiB"] = round(stored / (1 << 20), 1)
    patterns = place / "needles"
    chosen = needles(source)
    patterns.write_bytes(b"\n".join(chosen) + b"\n")
    with run.step(f"grep for {len(chosen)} names and contents"):
        seen = found_in(patterns, source)
        run.check(len(seen) > files_of // 2, f"they are found in {len(seen)} files of the source")
        for what in ("objects", "state-in-use", "state-in-use-2"):
            _nothing(run, patterns, place / what)
        for machine in machines:
            for what in ("state", "cache"):
                _nothing(run, patterns, machine.place / what)


def _nothing(run: Run, patterns: Path, place: Path) -> None:
    size, count = tree_size(place)
    seen = found_in(patterns, place)
    names = b"\n".join(os.fsencode(p) for p in place.rglob("*"))
    relative = names.replace(os.fsencode(place), b"")
    wanted = patterns.read_bytes().rstrip(b"\n").split(b"\n")
    seen += [needle.decode(errors="replace") for needle in wanted if needle in relative]
    name = place.relative_to(place.parent.parent)
    run.check(not seen, f"nothing in {name} ({count} files, {size / (1 << 20):.1f} MiB){seen[:5]}")


def _options(environ: dict[str, str]) -> dict[str, str]:
    os.environ.update(environ)
    return {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=1024, help="MiB of the random file")
    parser.add_argument("--store", help="an empty store to use instead of a Ceph of our own")
    parser.add_argument("--keep", action="store_true", help="leave the working directory")
    args = parser.parse_args()
    run = Run()
    place = Path(tempfile.mkdtemp(prefix="megafs-acceptance-"))
    try:
        with Ceph() if args.store is None else nullcontext() as ceph:
            environ = ceph.environment() if ceph else {}
            url = args.store or f"s3://{ceph.fresh_name()}/volume"  # type: ignore[union-attr]
            acceptance(run, url, environ, place, args.size << 20)
    finally:
        if not args.keep:
            shutil.rmtree(place, ignore_errors=True)
        else:
            print(f"left in {place}")
    print(json.dumps(run.figures))
    for failure in run.failures:
        print(f"FAILED: {failure}")
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
