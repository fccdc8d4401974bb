"""A state directory of a megafs that had one number for all its processes.

`state-of-22ba646.tar.xz` was made by that commit: `store`, a volume with one file;
`state`, a state directory with two batches in the replica and one in the log alone, none of which
was committed; `later`, what the same process then brought to the store.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from megafs.concurrency import in_place
from megafs.stores.memory import MemoryStore
from tests.fakes.machine import Machine, snapshot, store_of

OLD = Path(__file__).parent / "state-of-22ba646.tar.xz"
EVERYTHING = {
    "committed": ("file", b"in the journal\n" * 20),
    "small": ("file", b"abc"),
    "large": ("file", b"0123456789abcdef" * 2000),
    "last": ("file", b"only in the log"),
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with in_place():
        yield


def _store(*parts: str) -> MemoryStore:
    objects: dict[str, bytes] = {}
    with tarfile.open(OLD) as tar:
        for part in parts:
            for member in tar.getmembers():
                if member.isfile() and member.name.startswith(f"{part}/"):
                    file = tar.extractfile(member)
                    assert file is not None
                    objects[member.name.removeprefix(f"{part}/")] = file.read()
    return store_of(objects)


def _machine(base: Path, host: str) -> Machine:
    base.mkdir()
    with tarfile.open(OLD) as tar:
        members = [m for m in tar.getmembers() if m.name.split("/")[0] == "state"]
        tar.extractall(base, members, filter="data")
    return Machine(base, host, {"fsync": "local"})


@pytest.mark.parametrize("lost", ["", "replica.db*", "ops-*"])
async def test_what_was_not_committed_is_taken_up(tmp_path: Path, lost: str) -> None:
    machine = _machine(tmp_path / "a", "a")
    for path in machine.volume_dir.glob(lost) if lost else ():
        path.unlink()
    async with machine.open(_store("store")) as volume:
        await volume.drain()
        expected = dict(EVERYTHING)
        if lost == "ops-*":
            del expected["last"]
        assert await snapshot(volume.fs) == expected
        assert volume.status()["conflicts"] == []


@pytest.mark.parametrize("lost", ["", "replica.db*"])
async def test_what_was_committed_is_not_done_again(tmp_path: Path, lost: str) -> None:
    machine = _machine(tmp_path / "a", "a")
    for path in machine.volume_dir.glob(lost) if lost else ():
        path.unlink()
    async with machine.open(_store("store", "later")) as volume:
        before = volume.replica.sequence
        await volume.drain()
        assert await snapshot(volume.fs) == EVERYTHING
        assert volume.replica.sequence == before
        assert volume.status()["conflicts"] == []


async def test_two_copies_of_it_do_it_once(tmp_path: Path) -> None:
    store = _store("store")
    one, two = _machine(tmp_path / "a", "a"), _machine(tmp_path / "b", "b")
    async with one.open(store) as a, two.open(store) as b:
        await a.drain()
        await b.drain()
        await b.writer.catch_up()
        await a.writer.catch_up()
        assert await snapshot(a.fs) == EVERYTHING
        assert await snapshot(b.fs) == EVERYTHING
