"""Every file of a state directory, damaged in every way: the volume opens and reads right, or one
line says what to do; what was staged is never thrown away silently."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from msgspec.structs import astuple
from trio.testing import MockClock

from megafs.errors import Corrupt, MegafsError
from megafs.jobs import pins, scrub
from megafs.stores.memory import MemoryStore
from megafs.volume import recovery, upkeep
from megafs.volume.state_directory import Place, write_durably
from tests.fs.opened import contents, new_store_here, opened, put_file
from tests.mount.test_user import User, device, user

__all__ = ["device", "user"]

COMMITTED = random.Random(1).randbytes(50_000)
STAGED = random.Random(2).randbytes(90_000)
SMALL = b"a small one, which lies in the log"

FILES = [
    "replica.db",
    "replica.db-wal",
    "replica.db-shm",
    "head",
    "header",
    "mount",
    "mount-copy",
    "boot",
    "lock",
    "pins",
    "scrub",
    "store-limits",
    "process",
    "reserve",
    "ops-*",
    "packs/*",
    "urls/*",
]
#: Those that hold what is nowhere else.
STAGING = ("ops-*", "packs/*")


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(3).randbytes(max(path.stat().st_size, 100)))


def not_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe{[\x00")


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) * 2 // 3] ^= 0x10
    path.write_bytes(data)


def holed(path: Path) -> None:
    """As a copy is that was made before the middle was written."""
    data = path.read_bytes()
    third = -(-len(data) // 3)
    path.write_bytes(data[:third] + bytes(len(data[third : 2 * third])) + data[2 * third :])


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "somebody's").write_text("dear")


def link(path: Path) -> None:
    path.rename(victim_of(path))
    path.symlink_to(victim_of(path))


def victim_of(path: Path) -> Path:
    """Where `link` leads: out of the state directory."""
    return next(p for p in path.parents if p.name == "state").parent / "victim"


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(victim_of(path))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def gone(path: Path) -> None:
    path.unlink()


DAMAGES = [
    garbage,
    not_text,
    truncated,
    empty,
    flipped,
    holed,
    directory,
    link,
    dangling,
    fifo,
    gone,
]


def in_place(home: Path) -> None:
    """The process that was killed had the directory here, in this boot."""
    set_place(home, Place.of(home))


def copied(home: Path) -> None:
    """It had another directory of this machine, which was moved or copied here: as it is."""
    assert not Place.of(home).surely_same(Place(*json.loads((home / "process").read_bytes())[1:]))


def from_elsewhere(home: Path) -> None:
    """It was one of another machine."""
    set_place(home, Place("another machine", "another boot", 1, 2))
    (home / "boot").write_text("another boot")


def set_place(home: Path, place: Place) -> None:
    number, *_ = json.loads((home / "process").read_bytes())
    (home / "process").write_text(json.dumps([number, *astuple(place)]))


ORIGINS = [in_place, copied, from_elsewhere]


def the(state: Path, pattern: str) -> Path:
    """The one file that *pattern* means."""
    (home,) = (state / "volumes").iterdir()
    where = state if pattern.startswith("urls") else home
    found = [p for p in where.glob(pattern) if p.name != "damaged"]
    assert len(found) == 1, (pattern, found)
    return found[0]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MemoryStore]:
    """A machine with a committed file, a staged one, a small one in the log, pins and a scrub."""
    place = tmp_path_factory.mktemp("prepared")

    async def make() -> MemoryStore:
        store = await new_store_here()
        async with opened(place, store) as volume:
            await put_file(volume.fs, 1, b"committed", COMMITTED)
            await volume.drain()
        # What goes to this copy of the store never gets to the real one.
        async with opened(place, copy.deepcopy(store), sync_interval=1000.0) as volume:
            await put_file(volume.fs, 1, b"staged", STAGED)
            await put_file(volume.fs, 1, b"small", SMALL * 100)
            home = volume.replica.directory
            write_durably(home / "pins", b"[1]")
            write_durably(home / "scrub", b'{"started":1.0,"pack":1,"chunks":1,"bytes":1,"bad":[]}')
            write_durably(home / "store-limits", b'{"largest_object": 1000000}')
            # As kill -9 leaves it: SQLite's log and its index are there.
            shutil.copytree(place, place.parent / "killed", dirs_exist_ok=True)
        return store

    store = trio.run(make)
    return place.parent / "killed", store


def everything(state: Path) -> set[bytes]:
    """The contents of all packs and logs of operations, wherever they lie."""
    kept = set()
    for path in state.rglob("*"):
        ours = path.name.startswith("ops-") or "packs" in path.parts or "damaged" in path.parts
        if path.is_file() and ours:
            kept.add(path.read_bytes())
    return kept - {b""}


def is_kept(data: bytes, after: set[bytes], original: bytes) -> bool:
    """Whether *data* is there *after* all, or the *original* bytes in place of damaged ones."""
    return any(
        len(found) >= len(data)
        and all(byte in right for byte, *right in zip(found, data, original, strict=False))
        for found in after
    )


@pytest.mark.parametrize(
    "pattern,damage,origin",
    [
        (pattern, damage, origin)
        for pattern in FILES
        for damage in DAMAGES
        for origin in ORIGINS
        # Nothing can tell that those were ever there.
        if damage is not gone or pattern not in STAGING
        # A directory that was copied is recovered in another way.
        if origin is in_place or pattern in STAGING
    ],
)
async def test_each_file_in_each_way(
    pattern: str,
    damage: Callable[[Path], None],
    origin: Callable[[Path], None],
    prepared: tuple[Path, MemoryStore],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    shutil.copytree(prepared[0], tmp_path / "m")
    state = tmp_path / "m/state"
    origin(the(state, "mount").parent)
    target = the(state, pattern)
    original = target.read_bytes()
    damage(target)
    before = everything(state)
    outside = victim_of(target)
    dear = outside.read_bytes() if outside.exists() else None
    failed: MegafsError | None = None
    store = copy.deepcopy(prepared[1])
    try:
        with trio.fail_after(60):
            async with opened(tmp_path / "m", store, sync_interval=1000.0) as volume:
                assert await contents(volume.fs, volume.fs.lookup(1, b"committed").ino) == COMMITTED
                for name, data in ((b"staged", STAGED), (b"small", SMALL * 100)):
                    try:
                        assert await contents(volume.fs, volume.fs.lookup(1, name).ino) == data
                    except MegafsError as exc:
                        failed = exc
                assert pins.pinned(volume) in ([], [1])
                scrub.ScrubPosition.read(volume.replica.directory / "scrub")
    except MegafsError as exc:
        # One line that names what it is about and says what to do.
        text = str(exc)
        assert "\n" not in text
        assert str(target) in text
        assert any(word in text for word in ("remove", "move", "chmod", "put the file back")), text
        assert before <= everything(state)
        failed = exc
    else:
        if failed is not None:
            # Something that was staged is lost: that was said, and what could not be used is kept.
            said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
            assert any(target.name in text or str(target.parent) in text for text in said), said
        if pattern in STAGING and failed is not None:
            after = everything(state)
            lost = {data for data in before if not is_kept(data, after, original)}
            assert not lost, "staged bytes were removed"
    if failed is None and damage not in (dangling,) and dear is not None:
        assert outside.read_bytes() == dear  # not written through the link
    if damage is dangling:
        assert not outside.exists()
    assert not [r for r in caplog.records if "bug" in r.getMessage()]
    expected_to_open = pattern not in ("head", *STAGING)
    if expected_to_open:
        assert failed is None, failed
        caplog.clear()
        async with opened(tmp_path / "m", store) as volume:
            assert await contents(volume.fs, volume.fs.lookup(1, b"staged").ino) == STAGED
            await volume.drain()
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


async def test_more_than_one_file_is_set_aside_twice(
    prepared: tuple[Path, MemoryStore], tmp_path: Path
) -> None:
    shutil.copytree(prepared[0], tmp_path / "m")
    for _ in range(2):
        for pattern in ("boot", "pins", "header", "replica.db", "packs/*"):
            for target in (tmp_path / "m/state/volumes").glob(f"*/{pattern}"):
                if target.is_file():
                    target.unlink()
                    target.mkdir()
        async with opened(tmp_path / "m", copy.deepcopy(prepared[1])) as volume:
            ino = volume.fs.lookup(1, b"committed").ino
            assert await contents(volume.fs, ino) == COMMITTED


@pytest.mark.parametrize("name", ["ops-x~", "ops-00000001~", "#head#", "somebody's", "ops-1"])
async def test_what_an_editor_leaves_is_left_alone(
    name: str, prepared: tuple[Path, MemoryStore], tmp_path: Path
) -> None:
    shutil.copytree(prepared[0], tmp_path / "m")
    home = the(tmp_path / "m/state", "head").parent
    for odd in (home / name, home / "packs" / name, home.parent / name):
        odd.write_bytes(b"\xff dear")
    async with opened(tmp_path / "m", copy.deepcopy(prepared[1])) as volume:
        assert await contents(volume.fs, volume.fs.lookup(1, b"staged").ino) == STAGED
    assert (home / name).read_bytes() == (home / "packs" / name).read_bytes() == b"\xff dear"


async def test_each_page_of_the_replica(prepared: tuple[Path, MemoryStore], tmp_path: Path) -> None:
    """One flip anywhere: it is rebuilt at once, with what was not committed."""
    size = the(prepared[0] / "state", "replica.db").stat().st_size
    for at in range(0, size, max(4096, size // 20)):
        place = tmp_path / str(at)
        shutil.copytree(prepared[0], place)
        path = the(place / "state", "replica.db")
        data = bytearray(path.read_bytes())
        data[at + at // 4096 % 4000] ^= 1
        path.write_bytes(data)
        async with opened(place, copy.deepcopy(prepared[1]), sync_interval=1000.0) as volume:
            assert volume.replica.is_sound()
            for name, expected in ((b"committed", COMMITTED), (b"staged", STAGED)):
                assert await contents(volume.fs, volume.fs.lookup(1, name).ino) == expected


async def test_a_large_replica_is_looked_at_while_it_is_used(
    prepared: tuple[Path, MemoryStore],
    tmp_path: Path,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (recovery, upkeep):
        monkeypatch.setattr(module, "CHECKED_AT_ONCE", 0)
    shutil.copytree(prepared[0], tmp_path / "m")
    store = copy.deepcopy(prepared[1])
    async with opened(tmp_path / "m", store, sync_interval=1000.0) as volume:
        await trio.sleep(60)
    assert "is damaged" not in caplog.text
    path = the(tmp_path / "m/state", "replica.db")
    async with opened(tmp_path / "m", store, sync_interval=1000.0):
        size = path.stat().st_size
        with path.open("r+b") as file:
            for page in range(size // 4096 // 3, size // 4096):
                file.seek(page * 4096 + 100)
                file.write(b"flipped")
        await trio.sleep(60)
    assert "is damaged: unmount and mount again" in caplog.text
    assert not path.exists()
    caplog.clear()
    async with opened(tmp_path / "m", store, sync_interval=1000.0) as volume:
        assert volume.replica.is_sound()
        assert await contents(volume.fs, volume.fs.lookup(1, b"staged").ino) == STAGED


async def test_a_state_directory_without_the_copy_of_its_number(
    prepared: tuple[Path, MemoryStore], tmp_path: Path
) -> None:
    """As builds before wrote it.  Its number is all that the log of operations opens with."""
    shutil.copytree(prepared[0], tmp_path / "old")
    number = the(tmp_path / "old/state", "mount")
    (number.parent / "mount-copy").unlink()
    shutil.copytree(tmp_path / "old", tmp_path / "damaged")
    async with opened(tmp_path / "old", copy.deepcopy(prepared[1])) as volume:
        assert await contents(volume.fs, volume.fs.lookup(1, b"staged").ino) == STAGED
    assert (number.parent / "mount-copy").read_bytes().startswith(number.read_bytes() + b" ")

    number = the(tmp_path / "damaged/state", "mount")
    number.write_bytes(b"\xff")
    with pytest.raises(Corrupt, match="Put the file back from a copy"):
        async with opened(tmp_path / "damaged", copy.deepcopy(prepared[1])):
            pass
    assert list(number.parent.glob("ops-*"))


@pytest.mark.fuse
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_files_that_their_user_may_not_read(user: User) -> None:
    user.run("log", user.url)
    (home,) = (user.place / "state/volumes").iterdir()
    for name in ("replica.db", "head", "header", "mount", "boot", "lock"):
        (home / name).chmod(0)
        said = user.run("log", user.url, code=13).stderr
        assert len(said.splitlines()) == 1
        assert str(home / name) in said
        assert "bug" not in said
        (home / name).chmod(0o600)
    for directory in (home, home / "packs", home.parent, user.place / "state"):
        directory.chmod(0o500)
        said = user.run("scrub", user.url, code=13).stderr
        assert len(said.splitlines()) == 1
        assert str(directory) in said
        assert "--state-dir" in said
        directory.chmod(0o700)
    user.run("log", user.url)
