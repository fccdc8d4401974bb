"""The three walks of docs/architecture.md: every function that a walk names is called on the way.

Without the kernel and with a store in memory, so what lies in mount/ and stores/ is left out.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import trio
from trio.testing import MockClock

from megafs.concurrency import in_place
from megafs.tree.inode import ROOT as ROOT_INO
from tests.fs.opened import ROOT, new_store_here, opened, put_file

REPOSITORY = Path(__file__).parents[2]
PACKAGE = f"{REPOSITORY / 'megafs'}/"
PAGE = REPOSITORY / "docs" / "architecture.md"
NAMED = re.compile(r"`((?:fs|chunks|journal|tree|crypto)/\w+\.py:[\w.]+)`")


def walk(title: str) -> set[str]:
    """The functions, and the classes as their constructors, that a section names."""
    section = PAGE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    found = set(NAMED.findall(section))
    assert len(found) > 5, f"nothing is named under {title!r}"
    return found


@contextmanager
def called() -> Iterator[set[str]]:
    """Collects `room/module.py:Class.method` of everything that is called in the block."""
    names: set[str] = set()

    def note(frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            file = code.co_filename.removeprefix(PACKAGE)
            names.add(f"{file}:{code.co_qualname.removesuffix('.__init__')}")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield names
    finally:
        sys.setprofile(before)


async def test_a_read(tmp_path: Path, autojump_clock: MockClock) -> None:
    data = os.urandom(100_000)
    with in_place():
        store = await new_store_here()
        async with opened(tmp_path / "a", store, host="anna", fsync="store") as anna:
            ino = await put_file(anna.fs, ROOT_INO, b"file", data)
            await anna.drain()
        async with opened(tmp_path / "b", store, host="berta") as berta:
            fh, _ = await berta.fs.open(ino, os.O_RDWR, ROOT)
            with called() as names:
                assert await berta.fs.read(fh, 0, 20_000) == data[:20_000]
    assert walk("A read") - names == set()


async def test_a_write_until_it_is_durable(tmp_path: Path, autojump_clock: MockClock) -> None:
    with in_place():
        async with opened(tmp_path, host="anna", fsync="store") as anna:
            with called() as names:
                fh, _ = await anna.fs.create(ROOT_INO, b"file", 0o644, os.O_RDWR, ROOT)
                await anna.fs.write(fh, 0, os.urandom(100_000))
                await anna.fs.flush(fh)
                await anna.fs.fsync(fh, False)
                await anna.fs.release(fh)
                await trio.sleep(10)  # the follower looks for others' commits
    assert walk("A write, until it is durable") - names == set()


async def test_a_commit_from_elsewhere(tmp_path: Path, autojump_clock: MockClock) -> None:
    with in_place():
        store = await new_store_here()
        async with (
            opened(tmp_path / "a", store, host="anna") as anna,
            opened(tmp_path / "b", store, host="berta", sync_interval=5.0) as berta,
        ):
            with called() as names:
                await put_file(anna.fs, ROOT_INO, b"hers", b"1")
                await anna.drain()
                await berta.fs.mkdir(ROOT_INO, b"his", 0o755, ROOT)  # to be done again
                await berta.writer.catch_up()
                await trio.sleep(10)  # so that the follower looks by itself, too
            assert berta.fs.lookup(ROOT_INO, b"hers").size == 1
    assert walk("A commit from elsewhere") - names == set()
