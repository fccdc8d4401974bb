"""kill -9 of a process that works on a volume, at random moments, again and again.

MEGAFS_KILLS: how many times (12 unless set).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megafs.stores.local.driver import LocalStore
from tests.crash.victim import contents
from tests.fakes.machine import Machine, Snapshot, make_volume, snapshot

KILLS = int(os.environ.get("MEGAFS_KILLS", "12"))


def lives(store: Path, base: Path, run: int, seconds: float) -> list[list[str]]:
    """Start a process, kill it so long after it began to work; return what it said."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.crash.victim", str(store), str(base), str(run)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(seconds)
            assert process.poll() is None, "it ended by itself"
        finally:
            os.kill(process.pid, signal.SIGKILL)
        said = process.stdout.read().decode()
    return [line.split() for line in said.splitlines()]


def apply(model: Snapshot, words: list[str]) -> None:
    """Do in the model what a line says was done."""
    match words:
        case ["made", name]:
            model[name] = ("file", contents(name))
        case ["renamed", old, new]:
            model[new] = model.pop(old)
        case ["removed", name]:
            del model[name]


def allowed(model: Snapshot, begun: list[str] | None) -> list[Snapshot]:
    """The model, with what was begun last done, not done, or half made."""
    states = [model]
    if begun is not None:
        after = dict(model)
        apply(after, [begun[0][1:], *begun[1:]])
        states.append(after)
        if begun[0] == "?made":
            states.append({**model, begun[1]: ("file", b"")})
    return states


@pytest.mark.slow
async def test_what_was_closed_survives_kill_9(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = LocalStore(root)
    await make_volume(store, chunk_size=65536, pack_size=1 << 20)
    base = tmp_path / "machine"
    rng = random.Random(5)
    model: Snapshot = {}
    promises = 0

    for run in range(KILLS):
        begun: list[str] | None = None
        for words in lives(root, base, run, rng.uniform(0.02, 0.7)):
            if words[0].startswith("?"):
                begun = words
            else:
                apply(model, words)
                begun = None
                promises += 1
        # The same machine, and, of what it had brought to the store by then, another one.
        async with Machine(base, host="victim").open(store) as volume:
            tree = await snapshot(volume.fs)
            assert tree in allowed(model, begun), sorted(set(tree) ^ set(model))
            if run % 3 == 2:
                await volume.drain()
                async with Machine(tmp_path / f"other{run}").open(store) as other:
                    assert await snapshot(other.fs) == tree
            assert volume.status()["conflicts"] == []
        model = tree  # what was begun last is decided
    assert promises > KILLS * 5
    await store.aclose()
