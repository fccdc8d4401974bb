"""A directory as a store: what is on the disk when, and what is said when it is not."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from megafs.errors import BadStore, Denied, Exists, Full, Missing, NoStore, Unavailable
from megafs.stores.base import list_all
from megafs.stores.local import placing
from megafs.stores.local.driver import LocalStore
from megafs.stores.retry import Retrying


@pytest.fixture
async def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "store")
    await store.create()
    return store


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """The calls that change a directory or reach the disk, in order, with short paths."""
    calls: list[tuple[str, ...]] = []

    def short(path: str | int, directory: int | None) -> str:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        elif directory is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), path)
        parts = os.path.relpath(path, tmp_path / "store").split("/")
        return ".tmp/*" if parts[0] == ".tmp" and len(parts) > 1 else "/".join(parts)

    def trace(name: str, count: int) -> None:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            one = kwargs.get("dir_fd")
            directories = (kwargs.get("src_dir_fd", one), kwargs.get("dst_dir_fd", one))
            calls.append((name, *map(short, args[:count], directories)))
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name, count in (("fsync", 1), ("link", 2), ("rename", 2), ("unlink", 1), ("mkdir", 1)):
        trace(name, count)
    return calls


def test_urls_name_no_secret(tmp_path: Path) -> None:
    assert LocalStore(tmp_path).url == f"file://{tmp_path}"


async def test_an_object_is_on_the_disk_before_its_name_is(
    store: LocalStore, traced: list[tuple[str, ...]]
) -> None:
    traced.clear()
    await store.put_new("packs/ab/one", b"x")

    assert traced == [
        ("mkdir", ".tmp"),
        ("fsync", ".tmp/*"),
        ("mkdir", "packs"),
        ("fsync", "."),
        ("mkdir", "packs/ab"),
        ("fsync", "packs"),
        ("link", ".tmp/*", "packs/ab/one"),
        ("fsync", "packs/ab"),
        ("unlink", ".tmp/*"),
    ]


async def test_a_directory_known_to_be_on_the_disk_is_not_synced_again(
    store: LocalStore, traced: list[tuple[str, ...]]
) -> None:
    await store.put_new("packs/ab/one", b"x")
    traced.clear()
    await store.put_new("packs/ab/two", b"x")

    assert traced == [
        ("fsync", ".tmp/*"),
        ("link", ".tmp/*", "packs/ab/two"),
        ("fsync", "packs/ab"),
        ("unlink", ".tmp/*"),
    ]


async def test_a_directory_that_another_program_just_made_is_synced(
    store: LocalStore, traced: list[tuple[str, ...]], tmp_path: Path
) -> None:
    (tmp_path / "store/packs/ab").mkdir(parents=True)
    traced.clear()
    await store.put_new("packs/ab/one", b"x")

    assert ("fsync", "packs") in traced
    assert ("fsync", ".") in traced


async def test_replacing_is_a_rename(store: LocalStore, traced: list[tuple[str, ...]]) -> None:
    await store.put("mounts/1", b"old")
    traced.clear()
    await store.put("mounts/1", b"new")

    assert traced == [
        ("fsync", ".tmp/*"),
        ("rename", ".tmp/*", "mounts/1"),
        ("fsync", "mounts"),
    ] or traced == [
        ("fsync", ".tmp/*"),
        ("rename", ".tmp/*", "mounts/1"),
        ("fsync", "mounts"),
        ("unlink", ".tmp/*"),
    ]


async def test_whoever_hears_exists_can_rely_on_it(
    store: LocalStore, traced: list[tuple[str, ...]]
) -> None:
    await store.put_new("commits/1", b"x")
    traced.clear()
    with pytest.raises(Exists):
        await store.put_new("commits/1", b"y")

    assert traced == [("fsync", "commits")]


async def test_nothing_but_the_objects_is_left(store: LocalStore, tmp_path: Path) -> None:
    for i in range(5):
        await store.put_new(f"commits/{i}", b"x")
        with pytest.raises(Exists):
            await store.put_new(f"commits/{i}", b"y")

    assert list((tmp_path / "store/.tmp").iterdir()) == []


async def test_a_store_is_private(store: LocalStore, tmp_path: Path) -> None:
    await store.put_new("packs/ab/one", b"x")

    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "store/packs/ab/one").stat().st_mode & 0o777 == 0o600


async def test_creating_is_idempotent_and_makes_what_is_above(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "a/b/c")
    await store.create()
    await store.create()
    await store.put_new("keys/1", b"x")
    await store.create()

    assert await store.get("keys/1", 0, 9) == b"x"


async def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(NoStore, match=f"{tmp_path}/file is not a directory"):
        await LocalStore(tmp_path / "file" / "store").create()


async def test_a_missing_store_is_one_clear_line(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "nothing")
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.get("keys/1", 0, 1),
        lambda: store.put_new("keys/1", b"x"),
        lambda: store.put("mounts/1", b"x"),
        lambda: store.delete("keys/1"),
        lambda: store.list(""),
        lambda: store.list("keys/"),
    ]
    for call in calls:
        with pytest.raises(NoStore) as raised:
            await call()
        assert str(tmp_path / "nothing") in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (errno.ENOSPC, Full),
        (errno.EDQUOT, Full),
        (errno.EROFS, Denied),
        (errno.EACCES, Denied),
        (errno.EIO, Unavailable),
        (errno.ESTALE, Unavailable),
        (errno.EMFILE, Unavailable),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "link"])
async def test_what_the_disk_says_is_translated(
    store: LocalStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    code: int,
    error: type[Exception],
) -> None:
    await store.put_new("packs/ab/one", b"x")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(error) as raised:
        await store.put_new("packs/ab/two", b"x")
    monkeypatch.undo()

    assert os.strerror(code) in str(raised.value)
    assert "packs/ab/two" in str(raised.value)
    assert list((tmp_path / "store/.tmp").iterdir()) == []
    with pytest.raises(Missing):
        await store.get("packs/ab/two", 0, 1)
    await store.put_new("packs/ab/two", b"x")


async def test_an_object_whose_name_may_not_be_on_disk_is_not_called_stored(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory's fsync fails: asked again, the store syncs before it says Exists."""
    await store.put_new("commits/1", b"x")
    fsync, failures = os.fsync, [1]

    def fail_once(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}") and failures:
            failures.pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fail_once)
    with pytest.raises(Unavailable) as raised:
        await store.put_new("commits/2", b"ours")
    assert raised.value.maybe_done
    await Retrying(store).put_new("commits/3", b"ours")


async def test_left_over_files_of_the_dead_are_removed_and_others_kept(
    store: LocalStore, tmp_path: Path
) -> None:
    temporary = tmp_path / "store/.tmp"
    temporary.mkdir()
    (temporary / ("dead" * 8)).write_bytes(b"half a pack")
    alive = "a11fe0" * 5 + "00"
    script = (
        "import sys, fcntl\n"
        "f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX)\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, temporary / alive],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout
        other.stdout.readline()
        await store.put_new("commits/1", b"x")
        assert [path.name for path in temporary.iterdir()] == [alive]
        other.kill()
    # One that opens the store later finds its writer dead.
    await LocalStore(tmp_path / "store").put_new("commits/2", b"x")
    assert list(temporary.iterdir()) == []


async def test_files_that_are_no_objects_are_left_alone(store: LocalStore, tmp_path: Path) -> None:
    await store.put_new("commits/1", b"x")
    root = tmp_path / "store"
    (root / "README.txt").write_text("hello")
    (root / "commits/2.part").write_text("rsync was here")
    (root / "lost+found").mkdir()
    (root / "lost+found/x").write_text("hello")

    names = [entry.name async for page in list_all(store, "") for entry in page.entries]

    assert names == ["commits/1"]


async def test_a_listing_does_not_lead_out_of_the_store(store: LocalStore, tmp_path: Path) -> None:
    await store.put_new("commits/1", b"x")
    (tmp_path / "outside").write_bytes(b"x")

    for prefix in ("../", "..", "./", "commits/../", "/", "//", "commits/./", "packs/../commits/"):
        assert (await store.list(prefix)).entries == []


async def test_a_name_below_an_object_is_refused(store: LocalStore) -> None:
    await store.put_new("a/b", b"x")

    with pytest.raises(BadStore):
        await store.put_new("a/b/c", b"x")
    with pytest.raises(BadStore):
        await store.put_new("a", b"x")
    with pytest.raises(BadStore):
        await store.put("a", b"x")


async def test_a_page_reads_only_the_directories_it_needs(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(20):
        await store.put_new(f"packs/{i:02}/one", b"x")
        await store.put_new(f"commits/{i:04}", b"x")
    read = []
    scandir = os.scandir

    def trace(path: int) -> Any:
        read.append(os.path.relpath(os.readlink(f"/proc/self/fd/{path}"), tmp_path / "store"))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", trace)

    await store.list("commits/", after="commits/0010")
    assert read == ["commits"]

    read.clear()
    page = await store.list("", after="packs/04/one", limit=3)
    assert [entry.name for entry in page.entries] == [f"packs/{i:02}/one" for i in (5, 6, 7)]
    assert read == [".", "packs", "packs/04", "packs/05", "packs/06", "packs/07", "packs/08"]

    read.clear()
    await store.list("packs/07/")
    assert read == ["packs/07"]


async def test_of_racing_processes_exactly_one_wins(store: LocalStore, tmp_path: Path) -> None:
    script = """
import sys, trio
from megafs.errors import Exists
from megafs.stores.local.driver import LocalStore
async def main():
    store = LocalStore(sys.argv[1])
    store._ways = store._ways[int(sys.argv[2]):]
    won = []
    for i in range(60):
        try:
            await store.put_new(f"commits/{i}", sys.argv[3].encode() * 5000)
        except Exists:
            continue
        except Exception as exc:
            if "somebody is creating" not in str(exc):
                raise
            continue
        won.append(str(i))
    print(*won)
trio.run(main)
"""
    for way in (0, 1, 2):
        root = tmp_path / f"race{way}"
        root.mkdir()
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", script, root, str(way), letter], stdout=subprocess.PIPE
            )
            for letter in "abcd"
        ]
        won = {letter: racer.communicate()[0].split() for letter, racer in zip("abcd", racers)}  # noqa: B905
        assert all(racer.returncode == 0 for racer in racers)
        winners = [name for names in won.values() for name in names]
        assert sorted(winners, key=int) == [b"%d" % i for i in range(60)]
        for letter, names in won.items():
            for name in names:
                data = (root / "commits" / name.decode()).read_bytes()
                assert data == letter.encode() * 5000


async def test_a_file_system_without_hard_links_is_noticed(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    await store.put_new("commits/1", b"ours")
    with pytest.raises(Exists):
        await store.put_new("commits/1", b"theirs")
    assert store._ways[0][0] is placing.by_rename

    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: None)
    await store.put_new("commits/2", b"ours")
    with pytest.raises(Exists):
        await store.put_new("commits/2", b"theirs")
    assert len(store._ways) == 1


async def test_a_claim_left_by_the_dead_is_named(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store._ways = store._ways[2:]
    await store.put_new("commits/1", b"x")
    (tmp_path / ".tmp/claim-commits+2").write_bytes(b"")

    with pytest.raises(Unavailable, match="claim-commits"):
        await store.put_new("commits/2", b"x")


async def test_a_hung_disk_holds_a_thread_and_not_the_caller(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = __import__("threading").Event()
    await store.put_new("commits/1", b"x")
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: release.wait(20) and pread(*args))

    with trio.fail_after(5):
        with trio.move_on_after(0.1) as scope:
            await store.get("commits/1", 0, 1)
    release.set()

    assert scope.cancelled_caught


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_directory_of_somebody_else_is_denied() -> None:
    with pytest.raises(Denied):
        await LocalStore(Path("/")).put_new("keys/1", b"x")
