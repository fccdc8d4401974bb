"""What an operation costs as a volume grows: in one process, without the kernel, on a local store.

    python -m benchmarks.scaling [--full] [--out DIR]

First the number of files in the tree, from 1,000 to 100,000 (--full: 1,000,000), a thousand to a
directory: creating, looking up, reading a directory, making one change and committing it, a
checkpoint of all of it, the checkpoint after one more change, and opening the volume here again and
on a new machine; and the same through the kernel, from `megafs mount` to the first listing of the
root and of one directory.  Then the size of one sparse file, from 1 MiB to 100 GiB: writing and
reading 4 KiB at random places of it, and making that durable.  Columns that should be flat are
flat; the table shows which are not.

Each measurement is a line of DIR/scaling.jsonl: `sweep` ("files" or "MiB"), `at` (how many),
`operation`, and `seconds` and `cpu` (of all threads of this process, so nothing of what a mount
takes) for one of them; of what is done several times
the medians.  DIR/scaling.svg draws the seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from html import escape
from math import ceil, floor, log10
from pathlib import Path
from statistics import median
from typing import Any

import trio

from megafs.config import Parameters, Settings
from megafs.fs.requests import Caller
from megafs.stores.stack import open_store
from megafs.tree.inode import SetAttr
from megafs.volume.create import format_volume
from megafs.volume.header import Credential
from megafs.volume.open import open_volume
from megafs.volume.volume import Volume

ROOT = Path(__file__).resolve().parents[1]
CREDENTIAL = Credential(keyfile=bytes(range(64)))
USER = Caller(0, 0, 1)
ROOT_INO = 1
TO_A_DIRECTORY = 1000
PAGE = 4096
#: How often what changes the volume, and what opens it, is done.
CHANGES, OPENINGS = 9, 3
COLOURS = ("#0b6", "#36c", "#c60", "#a3a", "#888", "#a55", "#0aa", "#69f", "#b90", "#333")

Row = dict[str, Any]


class Sweep:
    """The measurements along one axis."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.at = 0
        self.rows: list[Row] = []

    @contextmanager
    def measured(self, operation: str, times: int = 1) -> Iterator[None]:
        """Measure the block, which does *operation* so many times."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        seconds, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.rows.append(
            {
                "sweep": self.name,
                "at": self.at,
                "operation": operation,
                "seconds": seconds / times,
                "cpu": cpu / times,
            }
        )

    async def call(self, operation: str, work: Callable[[], Awaitable[Any]]) -> None:
        with self.measured(operation):
            await work()

    def medians(self) -> list[Row]:
        """One row for each place and operation."""
        together: dict[tuple[int, str], list[Row]] = {}
        for row in self.rows:
            together.setdefault((row["at"], row["operation"]), []).append(row)
        return [
            rows[0] | {what: median(row[what] for row in rows) for what in ("seconds", "cpu")}
            for rows in together.values()
        ]


async def formatted(place: Path) -> str:
    """A new volume in a directory."""
    url = f"file://{place / 'store'}"
    (place / "store").mkdir()
    store = open_store(url, {})
    await format_volume(store, CREDENTIAL, Parameters(quota=None))
    await store.aclose()
    return url


@asynccontextmanager
async def opened(url: str, place: Path) -> AsyncIterator[Volume]:
    settings = Settings(state_dir=place / "state", cache_dir=place / "cache")
    async with open_volume(url, CREDENTIAL, settings, say=lambda _text: None) as volume:
        yield volume


async def grow(volume: Volume, have: int, want: int) -> None:
    """Create empty files."""
    fs = volume.fs
    for n in range(have, want):
        if n % TO_A_DIRECTORY == 0:
            directory = await fs.mkdir(ROOT_INO, b"d%06d" % (n // TO_A_DIRECTORY), 0o755, USER)
        await fs.mknod(directory.ino, b"file-%08d" % n, 0o100644, 0, USER)
        if n % 200 == 0:
            await trio.lowlevel.checkpoint()


async def files(counts: list[int]) -> list[Row]:
    sweep = Sweep("files")
    place = Path(tempfile.mkdtemp(prefix="megafs-scaling-"))
    try:
        url = await formatted(place)
        have = 0
        for count in counts:
            sweep.at = count
            async with opened(url, place) as volume:
                with sweep.measured("create", count - have):
                    await grow(volume, have, count)
                with sweep.measured("drain, a file", count - have):
                    await volume.drain()
                await trio.sleep(2)  # what goes on behind it must not be counted for what follows
                have = count
                await _inside(volume, sweep)
            for _ in range(OPENINGS):
                with sweep.measured("open, seen"):
                    volume = await _open_once(url, place)
            other = place / "other"
            with sweep.measured("open, new"):
                volume = await _open_once(url, other)
            assert volume.replica.tree.files >= count
            shutil.rmtree(other)
            for _ in range(OPENINGS):
                _mount_once(sweep, "mount, seen", url, place, place)
            _mount_once(sweep, "mount, new", url, place, other)
            shutil.rmtree(other)
            show(sweep)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return sweep.medians()


async def _open_once(url: str, place: Path) -> Volume:
    async with opened(url, place) as volume:
        return volume


def _mount_once(sweep: Sweep, operation: str, url: str, place: Path, state: Path) -> None:
    """From the command to the names in two directories."""
    mnt, key = place / "mnt", place / "key"
    mnt.mkdir(exist_ok=True)
    assert CREDENTIAL.keyfile is not None
    key.write_bytes(CREDENTIAL.keyfile)
    key.chmod(0o600)
    megafs = [sys.executable, "-m", "megafs"]
    dirs = ["--state-dir", str(state / "state"), "--cache-dir", str(state / "cache")]
    command = [*megafs, "mount", url, str(mnt), "--key-file", str(key), *dirs]
    try:
        with sweep.measured(operation):
            subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
            directories = sorted(os.listdir(mnt))
            names = os.listdir(mnt / directories[len(directories) // 2])
        assert len(directories) * TO_A_DIRECTORY >= sweep.at
        assert len(names) >= TO_A_DIRECTORY
    finally:
        subprocess.run([*megafs, "umount", str(mnt)], cwd=ROOT, capture_output=True, check=False)


async def _inside(volume: Volume, sweep: Sweep) -> None:
    fs, count = volume.fs, sweep.at
    pick = random.Random(count)
    chosen = [pick.randrange(count) for _ in range(1000)]
    with sweep.measured("lookup", 2 * len(chosen)):
        for n in chosen:
            directory = fs.lookup(ROOT_INO, b"d%06d" % (n // TO_A_DIRECTORY))
            fs.lookup(directory.ino, b"file-%08d" % n)
    directory = fs.lookup(ROOT_INO, b"d%06d" % (count // TO_A_DIRECTORY // 2))
    with sweep.measured("readdir, a name", TO_A_DIRECTORY):
        handle = fs.opendir(directory.ino)
        after = 0
        while page := fs.readdir(handle, after, 500):
            after = page[-1][2]
        fs.releasedir(handle)
    with sweep.measured("checkpoint, a file", count):
        await volume.checkpointer.write()
    for n in range(CHANGES):
        # Elsewhere each time: what a change costs must not come from the one before it.
        directory = fs.lookup(ROOT_INO, b"d%06d" % pick.randrange(count // TO_A_DIRECTORY))
        await fs.mknod(directory.ino, b"one more %d %d" % (count, n), 0o100644, 0, USER)
        await sweep.call("commit of one", volume.drain)
        await sweep.call("next checkpoint", volume.checkpointer.write)


async def sizes(mib: list[int]) -> list[Row]:
    sweep = Sweep("MiB")
    place = Path(tempfile.mkdtemp(prefix="megafs-scaling-"))
    try:
        url = await formatted(place)
        async with opened(url, place) as volume:
            for size in mib:
                sweep.at = size
                await _one_size(volume, sweep)
                show(sweep)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return sweep.medians()


async def _one_size(volume: Volume, sweep: Sweep) -> None:
    fs, mib = volume.fs, sweep.at
    pick = random.Random(mib)
    handle, inode = await fs.create(ROOT_INO, b"size-%d" % mib, 0o644, 2, USER)
    for _ in range(CHANGES):
        await fs.setattr(inode.ino, SetAttr(size=0), USER)
        await sweep.call("truncate", lambda: fs.setattr(inode.ino, SetAttr(size=mib << 20), USER))
    pages = (mib << 20) // PAGE
    places = [pick.randrange(pages) * PAGE for _ in range(200)]
    data = pick.randbytes(PAGE)
    with sweep.measured("write 4 KiB", len(places)):
        for at in places:
            await fs.write(handle, at, data)
    with sweep.measured("fsync, a write", len(places)):
        await fs.fsync(handle, False)
    volume.chunks.clear()
    with sweep.measured("read 4 KiB", len(places)):
        for at in places:
            assert len(await fs.read(handle, at, PAGE)) == PAGE
    with sweep.measured("read a hole", len(places)):
        for _ in places:
            await fs.read(handle, pick.randrange(pages) * PAGE, PAGE)
    await fs.release(handle)


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def show(sweep: Sweep) -> None:
    """The measurements of the place that was reached, for whoever waits."""
    here = [row for row in sweep.medians() if row["at"] == sweep.at]
    text = ", ".join(f"{row['operation']} {_time(row['seconds'])}" for row in here)
    print(f"{sweep.at:,} {sweep.name}: {text}", file=sys.stderr)


def table(rows: list[Row]) -> str:
    """Markdown: a row for each place, and in each cell the time, and the CPU of it."""
    operations = list(dict.fromkeys(row["operation"] for row in rows))
    lines = [f"| {rows[0]['sweep']} | " + " | ".join(operations) + " |"]
    lines.append("|---" * (len(operations) + 1) + "|")
    for at in dict.fromkeys(row["at"] for row in rows):
        here = {row["operation"]: row for row in rows if row["at"] == at}
        cells = [
            _time(here[o]["seconds"])
            + ("" if o.startswith("mount") else f" ({_time(here[o]['cpu'])})")
            for o in operations
        ]
        lines.append(f"| {at:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(sweeps: list[list[Row]]) -> str:
    """An SVG: for each sweep a panel, both axes logarithmic, a line for each operation."""
    left, top, wide, high, legend = 60, 40, 360, 340, 200
    panel = left + wide + legend
    seconds = [row["seconds"] for rows in sweeps for row in rows]
    low, most = floor(log10(min(seconds))), ceil(log10(max(seconds)))
    out = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{panel * len(sweeps)}"'
            f' height="{top + high + 40}" font-family="sans-serif" font-size="12">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
    ]

    def y_of(value: float) -> float:
        return top + high - (log10(value) - low) / (most - low) * high

    for number, rows in enumerate(sweeps):
        x0 = panel * number + left
        places = sorted({row["at"] for row in rows})
        first, last = log10(places[0]), log10(places[-1])

        def x_of(at: float, x0: int = x0, first: float = first, last: float = last) -> float:
            return x0 + (log10(at) - first) / ((last - first) or 1) * wide

        out.append(f'<text x="{x0}" y="16">seconds for one, by {escape(rows[0]["sweep"])}</text>')
        for power in range(low, most + 1):
            y = y_of(10.0**power)
            out.append(
                f'<line x1="{x0}" y1="{y:.1f}" x2="{x0 + wide}" y2="{y:.1f}" stroke="#ddd"/>'
                f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">'
                f"{_time(10.0**power)}</text>"
            )
        for at in places:
            x = x_of(at)
            out.append(
                f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{top + high}" stroke="#ddd"/>'
                f'<text x="{x:.1f}" y="{top + high + 18}" text-anchor="middle">{at:,}</text>'
            )
        operations = list(dict.fromkeys(row["operation"] for row in rows))
        lines = {o: [row for row in rows if row["operation"] == o] for o in operations}
        # Names beside the ends of their lines, pushed apart where they would lie over each other.
        below = float(top)
        for operation in sorted(operations, key=lambda o: -lines[o][-1]["seconds"]):
            colour = COLOURS[operations.index(operation) % len(COLOURS)]
            points = [(x_of(row["at"]), y_of(row["seconds"])) for row in lines[operation]]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            out.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
            )
            for (x, y), row in zip(points, lines[operation], strict=True):
                out.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>'
                    f"{escape(operation)}, {row['at']:,}: {_time(row['seconds'])}</title></circle>"
                )
            below = max(below, points[-1][1] + 4)
            out.append(
                f'<text x="{x0 + wide + 10}" y="{below:.1f}" fill="{colour}">'
                f"{escape(operation)} {_time(lines[operation][-1]['seconds'])}</text>"
            )
            below += 15
    out.append("</svg>")
    return "\n".join(out) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="up to 1,000,000 files")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    counts = [1000, 10_000, 100_000] + [1_000_000] * args.full
    sweeps = [
        trio.run(files, counts),
        trio.run(sizes, [1, 10, 100, 1 << 10, 10 << 10, 100 << 10]),
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "scaling.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for rows in sweeps for row in rows)
    (args.out / "scaling.svg").write_text(plot(sweeps))
    print(*(table(rows) for rows in sweeps), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
