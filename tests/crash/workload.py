"""A workload of which every moment is known: what the tree held, and what was promised, when.

Each step is one change of the tree, whole or not there: so the tree after any crash must be one of
the states that were passed through, and not one from before the last promise.
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from megafs.fs.filesystem import FileSystem
from megafs.volume.upkeep import write_checkpoint
from megafs.volume.volume import Volume
from tests.fakes import machine
from tests.fakes.machine import ROOT_USER, Snapshot, live_file, snapshot

#: Sizes around what matters: inline, one chunk, several chunks.
SIZES = (0, 1, 700, 1024, 1025, 5000, 20_000, 70_000)


@dataclass
class History:
    """states: the tree after each step.  promises: (moment, index of the promised state)."""

    states: list[Snapshot] = field(default_factory=list)
    promises: list[tuple[int, int]] = field(default_factory=list)

    async def note(self, fs: FileSystem) -> None:
        self.states.append(await snapshot(fs))

    def promise(self, moment: int) -> None:
        self.promises.append((moment, len(self.states) - 1))

    def owed(self, moment: int) -> int:
        """The first state that the tree may be in after a crash at *moment*."""
        return max((state for at, state in self.promises if at <= moment), default=0)

    def find(self, tree: Snapshot, moment: int) -> int:
        """The last state that *tree* equals; fails if there is none, or it is older than owed."""
        found = [n for n, state in enumerate(self.states) if state == tree]
        assert found, f"a tree that never was: {sorted(tree)}"
        assert found[-1] >= self.owed(moment), (
            f"state {found[-1]}, but {self.owed(moment)} of {len(self.states)} was promised"
        )
        return found[-1]


async def run_steps(
    volume: Volume,
    history: History,
    moment: Callable[[], int],
    *,
    steps: int,
    seed: int,
    promise_close: bool = False,
    after_step: Callable[[], Awaitable[None]] | None = None,
    checkpoints: bool = True,
) -> None:
    """Do *steps* random changes.

    moment: what to note a promise with.  promise_close: a close is a promise too (for the state of
    this machine); otherwise only an fsync is (for the store).
    """
    rng = random.Random(seed)
    fs = volume.fs
    files: list[str] = [p for p, node in (await snapshot(fs)).items() if node[0] == "file"]
    directories = [""] + [p + "/" for p, node in (await snapshot(fs)).items() if node[0] == "dir"]
    if not history.states:
        await history.note(fs)

    async def stored(path: str, sync: bool) -> None:
        """flush or fsync what was written; then the tree is as it is shown."""
        fh, _ = await fs.open(machine.resolve(fs, path), os.O_RDWR, ROOT_USER)
        if sync:
            await fs.fsync(fh, False)
        await fs.flush(fh)
        await fs.release(fh)
        if sync or promise_close:
            history.promise(moment())

    for count in range(1, steps + 1):
        kind = rng.choice(
            ["create", "create", "write", "write", "rename", "unlink", "truncate", "mkdir"]
            + ["symlink", "sleep", "sync", "replace"]
            + (["checkpoint"] if checkpoints else [])
        )
        if kind == "create" or not files:
            path = f"{rng.choice(directories)}f{seed}-{count}"
            await machine.write_file(fs, path, b"", close=False)
            files.append(path)
            await history.note(fs)
        elif kind == "write":
            path = rng.choice(files)
            fh, _ = await fs.open(machine.resolve(fs, path), os.O_RDWR, ROOT_USER)
            at = rng.choice(SIZES)
            data = rng.randbytes(rng.choice(SIZES[1:]))
            await fs.write(fh, at, data)
            # The bytes leave memory as one operation; other operations must not be shown before.
            await live_file(fs, fh).data.flush()
            await history.note(fs)
            sync = rng.random() < 0.3
            if sync:
                await fs.fsync(fh, False)
            await fs.flush(fh)
            if sync or promise_close:
                history.promise(moment())
            await fs.release(fh)
        elif kind == "rename":
            old = files.pop(rng.randrange(len(files)))
            new = f"{rng.choice(directories)}r{seed}-{count}"
            await machine.rename(fs, old, new)
            files.append(new)
            await history.note(fs)
        elif kind == "replace" and len(files) > 1:
            old, new = rng.sample(files, 2)
            await machine.rename(fs, old, new)
            files.remove(old)
            await history.note(fs)
        elif kind == "unlink":
            await machine.unlink(fs, files.pop(rng.randrange(len(files))))
            await history.note(fs)
        elif kind == "truncate":
            await machine.truncate(fs, rng.choice(files), rng.choice(SIZES))
            await history.note(fs)
        elif kind == "mkdir":
            path = f"{rng.choice(directories)}d{seed}-{count}"
            await machine.mkdir(fs, path)
            directories.append(path + "/")
            await history.note(fs)
        elif kind == "symlink":
            await machine.symlink(fs, f"l{seed}-{count}", "elsewhere")
            await history.note(fs)
        elif kind == "sleep":
            await trio.sleep(rng.choice([0.01, 0.5, 1.5]))
        elif kind == "sync":
            await stored(rng.choice(files), sync=True)
        elif kind == "checkpoint":
            await write_checkpoint(volume)
        if after_step is not None:
            await after_step()
