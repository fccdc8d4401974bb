"""A process to be killed: works on a volume and says what it was promised, line by line.

python -m tests.crash.victim STORE BASE RUN

    made NAME        close(2) of a new file returned; its contents are `contents(NAME)`
    renamed OLD NEW  fsync(2) of the directory returned after a rename
    removed NAME     and after an unlink

What was begun is said before, with a question mark in front.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import trio

from megafs.config import Settings
from megafs.volume.open import open_volume
from megafs.volume.upkeep import write_checkpoint
from tests.fakes.machine import KEY, rename, unlink, write_file


def contents(name: str) -> bytes:
    """What the file that was made as *name* holds."""
    rng = random.Random(name)
    return rng.randbytes(rng.choice([0, 10, 900, 5000, 40_000, 200_000]))


def say(*words: str) -> None:
    os.write(1, (" ".join(words) + "\n").encode())


async def work(store: str, base: Path, run: str) -> None:
    settings = Settings(
        state_dir=base / "state",
        cache_dir=base / "cache",
        sync_interval=0.05,
        stage_min_free=0,
        fsync="local" if int(run) % 2 else "store",
    )
    rng = random.Random(run)
    async with open_volume(f"file://{store}", KEY, settings, host="victim") as volume:
        fs = volume.fs
        files: list[str] = []
        directory = fs.opendir(1)
        number = 0
        say("ready")
        while True:
            number += 1
            name = f"{run}-{number}"
            what = rng.choice(["make"] * 6 + ["rename", "remove", "wait", "checkpoint"])
            if what == "rename" and files:
                old = files.pop(rng.randrange(len(files)))
                say("?renamed", old, name)
                await rename(fs, old, name)
                await fs.fsyncdir(directory)
                say("renamed", old, name)
            elif what == "remove" and files:
                old = files.pop(rng.randrange(len(files)))
                say("?removed", old)
                await unlink(fs, old)
                await fs.fsyncdir(directory)
                say("removed", old)
            elif what == "wait":
                await trio.sleep(rng.uniform(0, 0.1))
            elif what == "checkpoint" and number % 7 == 0:
                await write_checkpoint(volume)
            else:
                say("?made", name)
                await write_file(fs, name, contents(name))
                files.append(name)
                say("made", name)


if __name__ == "__main__":
    trio.run(work, sys.argv[1], Path(sys.argv[2]), sys.argv[3])
