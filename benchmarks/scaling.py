"""What an operation costs as a volume grows: in one process, without the kernel, on a local store.

    python -m benchmarks.scaling [--full] [--json FILE]

First the number of files in the tree, from 1,000 to 100,000 (--full: 1,000,000), a thousand to a
directory: creating, looking up, reading a directory, committing, a checkpoint of all of it, the
checkpoint after one more change, and opening the volume here again and on a new machine.  Then the
size of one sparse file, from 1 MiB to 100 GiB: writing and reading 4 KiB at random places of it,
and making that durable.  Columns that should be flat are flat; the table shows which are not.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from megafs.config import Parameters, Settings
from megafs.fs.filesystem import Caller
from megafs.stores.open import open_store
from megafs.tree.inode import SetAttr
from megafs.volume.format import format_volume
from megafs.volume.header import Credential
from megafs.volume.open import Volume, open_volume

CREDENTIAL = Credential(keyfile=bytes(range(64)))
USER = Caller(0, 0, 1)
ROOT_INO = 1
TO_A_DIRECTORY = 1000
PAGE = 4096
US, MS = 1e6, 1e3


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


async def timed(work: Callable[[], Awaitable[Any]], times: int = 1) -> float:
    """Seconds for one call."""
    begin = time.perf_counter()
    for _ in range(times):
        await work()
    return (time.perf_counter() - begin) / times


async def grow(volume: Volume, have: int, want: int) -> float:
    """Create empty files; return the seconds for one."""
    fs = volume.fs
    begin = time.perf_counter()
    for n in range(have, want):
        if n % TO_A_DIRECTORY == 0:
            directory = await fs.mkdir(ROOT_INO, b"d%06d" % (n // TO_A_DIRECTORY), 0o755, USER)
        await fs.mknod(directory.ino, b"file-%08d" % n, 0o100644, 0, USER)
        if n % 200 == 0:
            await trio.lowlevel.checkpoint()
    return (time.perf_counter() - begin) / (want - have)


async def files(counts: list[int]) -> list[dict[str, float]]:
    rows = []
    place = Path(tempfile.mkdtemp(prefix="megafs-scaling-"))
    try:
        url = await formatted(place)
        have = 0
        for count in counts:
            row: dict[str, float] = {"files": count}
            async with opened(url, place) as volume:
                row["create us"] = await grow(volume, have, count) * US
                row["drain ms"] = await timed(volume.drain) * MS
                have = count
                row |= await _inside(volume, count)
            async with opened(url, place) as volume:
                pass  # whatever closing left to do is done now
            begin = time.perf_counter()
            async with opened(url, place) as volume:
                row["open, seen ms"] = (time.perf_counter() - begin) * MS
            other = place / "other"
            begin = time.perf_counter()
            async with opened(url, other) as volume:
                row["open, new ms"] = (time.perf_counter() - begin) * MS
                assert volume.replica.tree.files >= count
            shutil.rmtree(other)
            show(row)
            rows.append(row)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return rows


async def _inside(volume: Volume, count: int) -> dict[str, float]:
    fs = volume.fs
    pick = random.Random(count)
    chosen = [pick.randrange(count) for _ in range(1000)]
    begin = time.perf_counter()
    for n in chosen:
        directory = fs.lookup(ROOT_INO, b"d%06d" % (n // TO_A_DIRECTORY))
        fs.lookup(directory.ino, b"file-%08d" % n)
    row = {"lookup us": (time.perf_counter() - begin) / 2000 * US}

    directory = fs.lookup(ROOT_INO, b"d%06d" % (count // TO_A_DIRECTORY // 2))
    handle = fs.opendir(directory.ino)
    begin = time.perf_counter()
    names = after = 0
    while page := fs.readdir(handle, after, 500):
        names, after = names + len(page), page[-1][2]
    row["readdir us/name"] = (time.perf_counter() - begin) / names * US
    fs.releasedir(handle)
    row["checkpoint ms"] = await timed(volume.checkpointer.write) * MS
    await fs.mknod(directory.ino, b"one more %d" % count, 0o100644, 0, USER)
    row["commit of 1 ms"] = await timed(volume.drain) * MS
    row["next checkpoint ms"] = await timed(volume.checkpointer.write) * MS
    return row


async def sizes(mib: list[int]) -> list[dict[str, float]]:
    rows = []
    place = Path(tempfile.mkdtemp(prefix="megafs-scaling-"))
    try:
        url = await formatted(place)
        async with opened(url, place) as volume:
            for size in mib:
                rows.append(await _one_size(volume, size))
                show(rows[-1])
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return rows


async def _one_size(volume: Volume, mib: int) -> dict[str, float]:
    fs = volume.fs
    pick = random.Random(mib)
    handle, inode = await fs.create(ROOT_INO, b"size-%d" % mib, 0o644, 2, USER)
    begin = time.perf_counter()
    await fs.setattr(inode.ino, SetAttr(size=mib << 20), USER)
    row: dict[str, float] = {"MiB": mib, "truncate us": (time.perf_counter() - begin) * US}
    places = [pick.randrange((mib << 20) // PAGE) * PAGE for _ in range(200)]
    data = pick.randbytes(PAGE)
    begin = time.perf_counter()
    for at in places:
        await fs.write(handle, at, data)
    row["write 4 KiB us"] = (time.perf_counter() - begin) / len(places) * US
    row["fsync ms"] = await timed(lambda: fs.fsync(handle, False)) * MS
    volume.chunks.clear()
    begin = time.perf_counter()
    for at in places:
        assert len(await fs.read(handle, at, PAGE)) == PAGE
    row["read 4 KiB us"] = (time.perf_counter() - begin) / len(places) * US
    begin = time.perf_counter()
    for _ in range(200):
        await fs.read(handle, pick.randrange((mib << 20) // PAGE) * PAGE, PAGE)
    row["read hole us"] = (time.perf_counter() - begin) / 200 * US
    await fs.release(handle)
    return row


def show(row: dict[str, float]) -> None:
    print("  ".join(f"{name} {value:,.4g}" for name, value in row.items()), file=sys.stderr)


def table(rows: list[dict[str, float]]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        cells = [f"{row[n]:,.0f}" if row[n] >= 100 else f"{row[n]:.2g}" for n in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="up to 1,000,000 files")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    counts = [1000, 10_000, 100_000] + [1_000_000] * args.full
    by_count = trio.run(files, counts)
    by_size = trio.run(sizes, [1, 100, 10 << 10, 100 << 10])
    print(table(by_count), table(by_size), sep="\n\n")
    if args.json:
        args.json.write_text(json.dumps({"files": by_count, "sizes": by_size}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
