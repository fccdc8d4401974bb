"""A directory as a store, in which somebody else has put what does not belong there.

Nothing outside it is read, written or removed, nothing waits, and whatever is said is one line.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import random
import resource
import socket
import stat
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from megafs import beneath
from megafs.errors import BadStore, Exists, Missing, NoStore, StoreError, Unavailable
from megafs.stores.base import list_all
from megafs.stores.local import listing
from megafs.stores.local.driver import LocalStore

#: Such a name as the driver gives to its temporary files.
OURS = "0123456789abcdef" * 2


@pytest.fixture(params=["openat2", "parts"])
def walk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to open what lies beneath: in one call, and where the kernel has not got that."""
    if request.param == "parts":
        monkeypatch.setattr(beneath, "_HAS_OPENAT2", False)
    else:
        assert beneath._HAS_OPENAT2
    return str(request.param)


@pytest.fixture
async def store(tmp_path: Path, walk: str) -> LocalStore:
    store = LocalStore(tmp_path / "store")
    await store.create()
    return store


@pytest.fixture
def root(tmp_path: Path, store: LocalStore) -> Path:
    return tmp_path / "store"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Somebody's directory outside the store."""
    place = tmp_path / "victim"
    (place / "ab").mkdir(parents=True)
    for name in ("notes.txt", OURS, "ab/one", "1"):
        (place / name).write_bytes(b"dear to somebody")
    return place


def contents(place: Path) -> dict[str, bytes | str]:
    """All that lies there, with a directory's or special file's kind for its contents."""
    found: dict[str, bytes | str] = {}
    for path in sorted(place.rglob("*")):
        info = path.lstat()
        kind = oct(stat.S_IFMT(info.st_mode))
        found[str(path.relative_to(place))] = (
            path.read_bytes() if stat.S_ISREG(info.st_mode) else kind
        )
    return found


async def names(store: LocalStore, prefix: str = "", limit: int = 1000) -> list[str]:
    found: list[str] = []
    while True:
        page = await store.list(prefix, found[-1] if found else "", limit)
        found += [entry.name for entry in page.entries]
        if not page.more:
            return found


def one_line(raised: pytest.ExceptionInfo[StoreError], *words: str) -> None:
    text = str(raised.value)
    assert "\n" not in text
    assert "Traceback" not in text
    for word in words:
        assert word in text


# Symbolic links.


@pytest.mark.parametrize("call", ["put", "put_new"])
async def test_a_link_in_place_of_the_temporary_directory(
    store: LocalStore, root: Path, victim: Path, call: str
) -> None:
    (root / ".tmp").symlink_to(victim)
    before = contents(victim)

    with pytest.raises(StoreError) as raised:
        await getattr(store, call)("mounts/1", b"x")

    one_line(raised, ".tmp is a symbolic link")
    assert contents(victim) == before
    assert not (root / "mounts/1").exists()


async def test_a_link_in_place_of_a_directory_of_objects(
    store: LocalStore, root: Path, victim: Path
) -> None:
    (root / "packs").symlink_to(victim)
    (root / "mounts").symlink_to(victim)
    before = contents(victim)

    for call in (
        lambda: store.get("packs/ab/one", 0, 100),
        lambda: store.get("mounts/1", 0, 100),
        lambda: store.put("mounts/1", b"x"),
        lambda: store.put("mounts/2", b"x"),
        lambda: store.put_new("mounts/1", b"x"),
        lambda: store.put_new("packs/ab/two", b"x"),
        lambda: store.put_new("packs/cd/two", b"x"),
        lambda: store.delete("packs/ab/one"),
        lambda: store.delete("mounts/1"),
        lambda: store.list("packs/"),
        lambda: store.list("packs/ab/"),
    ):
        with pytest.raises(StoreError, match=r"(packs|mounts) is a symbolic link") as raised:
            await call()
        one_line(raised)
        assert type(raised.value) is StoreError  # final: no retry mends it
    assert await names(store) == []
    assert contents(victim) == before
    assert contents(root / ".tmp") == {}


async def test_a_link_further_below(store: LocalStore, root: Path, victim: Path) -> None:
    await store.put_new("packs/cd/one", b"x")
    (root / "packs/ab").symlink_to(victim / "ab")
    before = contents(victim)

    for call in (
        lambda: store.get("packs/ab/one", 0, 100),
        lambda: store.put_new("packs/ab/two", b"x"),
        lambda: store.delete("packs/ab/one"),
    ):
        with pytest.raises(StoreError, match="packs/ab is a symbolic link"):
            await call()
    assert await names(store, "packs/") == ["packs/cd/one"]
    assert contents(victim) == before


async def test_a_link_in_place_of_an_object(store: LocalStore, root: Path, victim: Path) -> None:
    await store.put_new("commits/1", b"x")
    for name in ("2", "3", "4"):
        (root / "commits" / name).symlink_to(victim / "notes.txt")
    (root / "commits/5").symlink_to(root / "commits/1")
    (root / "commits/6").symlink_to("nowhere")
    (root / "commits/7").symlink_to("7")
    before = contents(victim)

    for i in range(2, 8):
        with pytest.raises(StoreError, match=f"commits/{i} is a symbolic link"):
            await store.get(f"commits/{i}", 0, 100)
        with pytest.raises(StoreError, match=f"commits/{i} is a symbolic link") as raised:
            await store.put_new(f"commits/{i}", b"x")
        # Who hears Exists may read it; here there is nothing to be read.
        assert not isinstance(raised.value, Exists)
    assert await names(store) == ["commits/1"]
    await store.put("commits/3", b"in its place")
    await store.delete("commits/4")
    assert await store.get("commits/3", 0, 100) == b"in its place"
    assert await names(store) == ["commits/1", "commits/3"]
    assert contents(victim) == before


async def test_a_link_to_itself_among_the_keys(store: LocalStore, root: Path) -> None:
    await store.put_new("keys/00000001", b"x")
    (root / "keys/loop").symlink_to(".")
    (root / "keys/00000002").symlink_to("00000002")
    (root / "keys/up").symlink_to("..")

    assert await names(store) == ["keys/00000001"]
    assert await names(store, "keys/") == ["keys/00000001"]
    with pytest.raises(StoreError, match="keys/loop is a symbolic link"):
        await store.list("keys/loop/")
    with pytest.raises(StoreError, match="keys/loop is a symbolic link"):
        await store.get("keys/loop/loop/00000001", 0, 1)


async def test_a_new_store_is_not_made_around_links(
    tmp_path: Path, walk: str, victim: Path
) -> None:
    for name in (".tmp", "packs"):
        place = tmp_path / f"new{name}"
        place.mkdir()
        (place / name).symlink_to(victim)
        with pytest.raises(StoreError, match=f"{name} is a symbolic link"):
            await LocalStore(place).create()
    # One that is not in the way is not ours to judge.
    place = tmp_path / "other"
    place.mkdir()
    (place / "read.me").symlink_to(victim)
    await LocalStore(place).create()


async def test_the_root_may_be_a_link_and_is_resolved_once(tmp_path: Path, walk: str) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    link = tmp_path / "link"
    link.symlink_to("one")
    store = LocalStore(link)
    await store.create()
    await store.put_new("keys/1", b"x")
    link.unlink()
    link.symlink_to("two")
    await store.put_new("keys/2", b"x")

    assert await names(store) == ["keys/1", "keys/2"]
    assert contents(tmp_path / "two") == {}
    assert (tmp_path / "one/keys/2").read_bytes() == b"x"


async def test_a_root_that_becomes_a_link(tmp_path: Path, walk: str, victim: Path) -> None:
    store = LocalStore(tmp_path / "a/store")
    await store.create()
    await store.put_new("mounts/1", b"x")
    before = contents(victim)
    for moved in ("a/store", "a"):
        (tmp_path / moved).rename(tmp_path / "away")
        (tmp_path / moved).symlink_to(victim)
        for call in (
            lambda: store.put("mounts/1", b"x"),
            lambda: store.get("mounts/1", 0, 1),
            lambda: store.delete("mounts/1"),
            lambda: store.list(""),
        ):
            with pytest.raises(NoStore, match=f"{moved} is a symbolic link now") as raised:
                await call()
            one_line(raised)
        (tmp_path / moved).unlink()
        (tmp_path / "away").rename(tmp_path / moved)
    assert contents(victim) == before
    assert await store.get("mounts/1", 0, 1) == b"x"


async def test_a_root_that_leads_to_itself(tmp_path: Path, walk: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path in ("loop", "loop/store"):
        store = LocalStore(tmp_path / path)
        with pytest.raises(NoStore) as raised:
            await store.get("keys/1", 0, 1)
        one_line(raised)
        with pytest.raises(NoStore) as raised:
            await store.create()
        one_line(raised)


@pytest.mark.parametrize("swapped", ["packs/ab", "packs", ".tmp", "packs/ab/one"])
async def test_a_link_that_comes_and_goes_between_two_calls(
    store: LocalStore, root: Path, victim: Path, swapped: str
) -> None:
    """Every name is swapped with a link to somebody's directory as fast as it goes."""
    await store.put_new("packs/ab/one", b"x")
    before = contents(victim)
    target = {"packs/ab": victim / "ab", "packs/ab/one": victim / "ab/one"}.get(swapped, victim)
    aside, link = root.parent / "aside", root.parent / "link"
    link.symlink_to(target)
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            for source, to in (
                (root / swapped, aside),
                (link, root / swapped),
                (root / swapped, link),
                (aside, root / swapped),
            ):
                with contextlib.suppress(OSError):
                    os.rename(source, to)

    thread = threading.Thread(target=swap)
    thread.start()
    rng = random.Random(1)
    outcomes: set[str] = set()
    try:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            name = f"packs/ab/{rng.randrange(3)}"
            call = rng.choice(
                (
                    lambda name=name: store.put(name, b"ours"),
                    lambda name=name: store.put_new(name, b"ours"),
                    lambda name=name: store.get(name, 0, 100),
                    lambda: store.get("packs/ab/one", 0, 100),
                    lambda name=name: store.delete(name),
                    lambda: store.list("packs/"),
                )
            )
            store._cleaned = False
            try:
                got = await call()
                if isinstance(got, bytes):
                    assert got in (b"x", b"ours")
                outcomes.add("done")
            except StoreError as exc:
                assert "\n" not in str(exc)
                outcomes.add("symbolic link" if "symbolic link" in str(exc) else type(exc).__name__)
    finally:
        done.set()
        thread.join()
    assert {"done", "symbolic link"} <= outcomes
    assert contents(victim) == before


# What is no plain file.


def make(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        if os.geteuid() != 0:
            pytest.skip("only root makes devices")
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
            made.bind(path.name)


@pytest.mark.parametrize("kind", ["FIFO", "device", "socket"])
async def test_what_holds_no_bytes_is_named_and_not_waited_for(
    store: LocalStore, root: Path, kind: str
) -> None:
    await store.put_new("commits/1", b"x")
    make(root / "commits/2", kind)

    with trio.fail_after(5):
        with pytest.raises(StoreError) as raised:
            await store.get("commits/2", 0, 100)
        one_line(raised, f"commits/2 is a {kind}", "remove it")
        assert type(raised.value) is StoreError
        with pytest.raises(StoreError) as raised:
            await store.put_new("commits/2", b"x")
        one_line(raised, f"commits/2 is a {kind}", "remove it")
        assert type(raised.value) is StoreError
        assert await names(store) == ["commits/1"]
        await store.put("commits/2", b"in its place")
    assert await store.get("commits/2", 0, 100) == b"in its place"


@pytest.mark.parametrize("kind", ["FIFO", "device", "socket"])
async def test_what_holds_no_bytes_in_place_of_a_directory(
    store: LocalStore, root: Path, kind: str
) -> None:
    make(root / "packs", kind)
    make(root / ".tmp", kind)

    with trio.fail_after(5):
        with pytest.raises(Missing):
            await store.get("packs/ab/one", 0, 100)
        assert await names(store, "packs/") == []
        await store.delete("packs/ab/one")
        with pytest.raises(StoreError) as raised:
            await store.put_new("commits/1", b"x")
        one_line(raised, ".tmp is not a directory")
        (root / ".tmp").unlink()
        with pytest.raises(BadStore) as raised:
            await store.put_new("packs/ab/one", b"x")
        one_line(raised, "packs/ab/one", "not a directory")


async def test_directories_in_place_of_objects(store: LocalStore, root: Path) -> None:
    for name in ("keys/00000001", "commits/1", "mounts/1", ".tmp"):
        (root / name).mkdir(parents=True)
    (root / ".tmp" / OURS).mkdir()
    (root / "commits/1/x.y").mkdir()

    assert await names(store) == []
    with pytest.raises(Missing):
        await store.get("keys/00000001", 0, 100)
    with pytest.raises(BadStore):
        await store.put("mounts/1", b"x")
    with pytest.raises(BadStore):
        await store.put_new("commits/1", b"x")
    await store.delete("mounts/1")
    assert (root / "mounts/1").is_dir()


async def test_hard_links_to_somebodys_files(store: LocalStore, root: Path, victim: Path) -> None:
    (root / "mounts").mkdir()
    (root / ".tmp").mkdir()
    for name in ("mounts/1", "mounts/2", f".tmp/{OURS}"):
        os.link(victim / "notes.txt", root / name)
    before = contents(victim)
    mode = (victim / "notes.txt").stat().st_mode

    await store.put("mounts/1", b"a heartbeat")
    with pytest.raises(Exists):
        await store.put_new("mounts/2", b"x")
    await store.delete("mounts/2")

    assert contents(victim) == before
    assert (victim / "notes.txt").stat().st_mode == mode
    assert contents(root / ".tmp") == {}


async def test_a_file_larger_than_memory(store: LocalStore, root: Path) -> None:
    await store.put_new("packs/ab/one", b"x")
    size = 1 << 43  # a sparse file of 8 TiB
    os.truncate(root / "packs/ab/one", size)

    assert await store.get("packs/ab/one", size - 10, 100) == bytes(10)
    assert await store.get("packs/ab/one", 5, 10) == bytes(10)
    assert await store.get("packs/ab/one", size, 1) == b""
    assert await store.get("packs/ab/one", 1 << 70, 1) == b""
    (entry,) = (await store.list("")).entries
    assert entry.size == size
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, limits[1]))
    try:
        with pytest.raises(StoreError) as raised:
            await store.get("packs/ab/one", 0, size)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    one_line(raised, "packs/ab/one", "memory")


async def test_times_that_are_no_dates(store: LocalStore, root: Path) -> None:
    await store.put_new("packs/ab/one", b"x")
    for when in (-(1 << 40), 1 << 33, 1 << 50):
        with contextlib.suppress(OSError):
            os.utime(root / "packs/ab/one", (when, when))
        (entry,) = (await store.list("")).entries
        assert isinstance(entry.modified, float)


async def test_names_that_are_no_objects(store: LocalStore, root: Path) -> None:
    await store.put_new("commits/1", b"x")
    odd = (b"\xff\xfe", b"a\nb", b"\x1b[2J", b"caf\xc3\xa9", b"x" * 255, b"-.-", b" ", b"..x")
    for place in (root, root / "commits", root / ".tmp"):
        for name in odd:
            (Path(os.fsdecode(os.fsencode(place) + b"/" + name))).write_bytes(b"x")
            (Path(os.fsdecode(os.fsencode(place) + b"/d" + name[:200]))).mkdir()
    kept = contents(root / ".tmp")
    store._cleaned = False

    # "x" * 255 is longer than a name may be; as a directory, "d" + "x" * 200 is, too.
    assert await names(store) == ["commits/1"]
    await store.put_new("commits/2", b"x")
    assert contents(root / ".tmp") == kept


async def test_in_the_temporary_directory_only_our_files_are_removed(
    store: LocalStore, root: Path, victim: Path
) -> None:
    place = root / ".tmp"
    (place / ("d" * 32)).mkdir(parents=True)
    (place / ("d" * 32) / OURS).write_bytes(b"below")
    make(place / ("f" * 32), "FIFO")
    make(place / ("5" * 32), "socket")
    (place / ("1" * 32)).symlink_to(victim / "notes.txt")
    for name in ("notes", OURS.upper(), OURS[1:], OURS + "0", "claim-commits+1", f"{OURS}.txt"):
        (place / name).write_bytes(b"somebody's")
    kept = contents(place)
    (place / OURS).write_bytes(b"half a pack")
    before = contents(victim)

    with trio.fail_after(5):
        await store.put_new("commits/9", b"x")

    assert contents(place) == kept
    assert contents(victim) == before


# Depth and number.


def nest(place: Path, depth: int) -> None:
    """Make *depth* directories, each in the one before it."""
    fd = os.open(place, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("object", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def unnest(place: Path) -> None:
    """Take them away again: what clears up after the tests calls itself for each."""
    path = place / "d"
    while path.is_dir():
        below = path / "d"
        aside = place / "aside"
        if below.is_dir():
            below.rename(aside)
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
        if aside.is_dir():
            aside.rename(path)


async def test_directories_without_end(store: LocalStore, root: Path) -> None:
    await store.put_new("commits/1", b"x")
    for place in (root, root / "commits"):
        nest(place, 1600)
    try:
        files = len(os.listdir("/proc/self/fd"))
        assert await names(store) == ["commits/1"]
        assert await names(store, "commits/") == ["commits/1"]
        assert await names(store, "d/d/d/") == []
        assert len(os.listdir("/proc/self/fd")) == files
    finally:
        for place in (root, root / "commits"):
            unnest(place)


async def test_as_deep_as_a_name_can_be(store: LocalStore) -> None:
    name = "a/" * 99 + "bc"
    assert len(name) == 200
    await store.put_new(name, b"x")

    assert await names(store) == [name]
    assert await names(store, "a/" * 99) == [name]
    assert await store.get(name, 0, 1) == b"x"


async def test_more_files_than_a_volume_has(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "LOOKED", 300)
    for i in range(150):
        await store.put_new(f"commits/{i:04}", b"x")
    assert len(await names(store)) == 150
    for i in range(200):
        (root / f"commits/x{i}").touch()

    with pytest.raises(StoreError) as raised:
        await store.list("commits/")
    one_line(raised, str(root), "commits/")
    assert type(raised.value) is StoreError
    for path in (root / "commits").iterdir():
        path.unlink()
    for i in range(40):  # each costs more to open than a name to read
        (root / f"packs/{i}").mkdir(parents=True)
    with pytest.raises(StoreError, match="far more files"):
        await store.list("packs/")


async def test_a_listing_holds_few_names(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "BATCH", 8)
    wanted = sorted(f"commits/{i}" for i in range(100))
    for name in wanted:
        await store.put_new(name, b"x")
    for i in range(40):  # emptied directories, which give no names
        (root / f"commits/3{i:02}x").mkdir()
    looked_up: list[str] = []
    real = os.stat

    def noted(path: str, **more: Any) -> os.stat_result:
        looked_up.append(path)
        return real(path, **more)

    monkeypatch.setattr(os, "stat", noted)

    assert await names(store, "commits/") == wanted
    looked_up.clear()
    assert [e.name for e in (await store.list("commits/", limit=3)).entries] == wanted[:3]
    assert len(looked_up) == 4
    assert await names(store, limit=3) == wanted


PARTS = st.sampled_from(["a", "b", "a-b", "a_", "A", "0", "ab"])
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("/".join)


@settings(max_examples=60, deadline=None)
@given(
    made=st.sets(NAMES, max_size=25),
    empty=st.sets(NAMES, max_size=10),
    prefix=st.one_of(st.just(""), NAMES, NAMES.map(lambda name: name + "/")),
    after=st.one_of(st.just(""), NAMES),
    limit=st.integers(1, 6),
    batch=st.integers(1, 5),
)
def test_any_listing_is_what_it_should_be(
    made: set[str], empty: set[str], prefix: str, after: str, limit: int, batch: int
) -> None:
    """However few names it holds, a page is the next ones in order."""
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "BATCH", batch)
        objects = set()
        for name in sorted(made):
            path = Path(place, name)
            with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(exist_ok=False)
                objects.add(name)
        for name in sorted(empty):
            with contextlib.suppress(FileExistsError, NotADirectoryError):
                Path(place, name).mkdir(parents=True, exist_ok=True)
        wanted = sorted(n for n in objects if n.startswith(prefix) and n > after)

        page = trio.run(LocalStore(place).list, prefix, after, limit)

        assert [entry.name for entry in page.entries] == wanted[:limit]
        assert page.more == (len(wanted) > limit)


async def test_a_listing_of_very_many_names_takes_little_memory(
    store: LocalStore, root: Path
) -> None:
    """What is held of 60,000 is no more than of 8,000, and a tenth of all their names."""
    place = root / "commits"
    place.mkdir()
    fd = os.open(place, os.O_RDONLY)
    (place / "0").touch()
    for i in range(1, 60_000):
        os.link("0", str(i), src_dir_fd=fd, dst_dir_fd=fd)
    os.close(fd)
    tracemalloc.start()
    try:
        page = await store.list("commits/")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(page.entries) == 1000
    assert page.more
    assert peak < 4 << 20


# Whatever else.


@pytest.mark.parametrize(
    "odd",
    [
        ValueError("embedded\nnull byte"),
        RecursionError("maximum recursion depth exceeded"),
        OverflowError("Python int too large"),
        UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
        TypeError("a mistake"),
        OSError("without a number"),
        OSError(errno.EBADF, os.strerror(errno.EBADF)),
    ],
)
async def test_what_leaves_the_driver_is_a_store_error(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch, odd: Exception
) -> None:
    await store.put_new("commits/1", b"x")

    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise odd

    for broken, call in (
        ("pread", lambda: store.get("commits/1", 0, 1)),
        ("write", lambda: store.put_new("commits/2", b"x")),
        ("rename", lambda: store.put("commits/1", b"x")),
        ("unlink", lambda: store.delete("commits/1")),
        ("scandir", lambda: store.list("")),
        ("scandir", store.create),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, fail)
            with pytest.raises(StoreError) as raised:
                await call()
        one_line(raised, store.url)
        assert raised.value.__cause__ is odd
    monkeypatch.undo()
    assert await store.get("commits/1", 0, 1) == b"x"


async def test_no_descriptor_is_left(store: LocalStore, root: Path, victim: Path) -> None:
    await store.put_new("commits/1", b"x")
    (root / "packs").symlink_to(victim)
    (root / "commits/2").symlink_to(victim)
    make(root / "commits/3", "FIFO")
    (root / "commits/4").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for name in ("commits/1", "commits/2", "commits/3", "commits/4", "packs/x/y", "new/1", "x"):
        for call in (
            lambda name=name: store.get(name, 0, 1),
            lambda name=name: store.put_new(name, b"x"),
            lambda name=name: store.put(name, b"x"),
            lambda name=name: store.delete(name),
            lambda name=name: store.list(name + "/"),
            lambda name=name: store.list(name),
        ):
            with contextlib.suppress(StoreError):
                await call()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_kernel_that_says_no_to_the_one_call(
    store: LocalStore, root: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """seccomp filters answer EPERM, old kernels ENOSYS: each part is opened by itself."""
    monkeypatch.setattr(beneath, "_SYS_OPENAT2", ctypes.c_long(9999))
    assert not beneath._has_openat2()


async def test_somebody_who_takes_every_temporary_file_away(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(*args: object) -> NoReturn:
        raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))

    monkeypatch.setattr(fcntl, "flock", taken)
    with trio.fail_after(10), pytest.raises(Unavailable) as raised:
        await store.put_new("commits/1", b"x")
    one_line(raised, ".tmp")


async def test_listing_all_reaches_every_object(store: LocalStore) -> None:
    for i in range(5):
        await store.put_new(f"commits/{i}", b"x")
    found = [e.name async for page in list_all(store, "commits/") for e in page.entries]
    assert found == [f"commits/{i}" for i in range(5)]
