"""Directories for state, cache and exports that other users of the machine have their hands in."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from megafs.errors import Denied
from megafs.history.scratch import scratch
from megafs.jobs.salvage import salvage
from megafs.private_files import (
    check_directory,
    make_directories,
    open_private,
    read_private,
    set_aside,
)
from megafs.stores.disk_cache.cache_directory import CacheDirectory
from tests.fs.opened import CREDENTIAL, contents, new_store_here, opened, put_file
from tests.mount.test_user import GID, UID

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
CONTENTS = os.urandom(100_000)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def shared(path: Path, *, sticky: bool) -> Path:
    """A directory that everybody may write to."""
    path.mkdir(parents=True)
    path.chmod(0o1777 if sticky else 0o777)
    return path


# ---- directories -------------------------------------------------------------------------------


async def test_what_is_made_is_for_the_owner_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        async with opened(tmp_path / "a/b", cache_size=10 << 20) as volume:
            ino = await put_file(volume.fs, 1, b"f", CONTENTS)
            assert await contents(volume.fs, ino) == CONTENTS
            await volume.drain()
    finally:
        os.umask(old)
    made = list(tmp_path.rglob("*"))
    assert len(made) > 10
    assert [path for path in made if mode(path) & 0o077] == []


async def test_old_directories_that_everybody_may_write_to_are_closed(tmp_path: Path) -> None:
    """As a umask of 000 left them; those that may only be read stay as they are."""
    store = await new_store_here()
    async with opened(tmp_path, store):
        pass
    (home,) = (tmp_path / "state/volumes").iterdir()
    for path in (home, home / "packs", tmp_path / "state/urls"):
        path.chmod(0o777)
    (tmp_path / "state/volumes").chmod(0o755)
    (tmp_path / "state").chmod(0o775)
    async with opened(tmp_path, store):
        pass
    assert {mode(path) for path in (home, home / "packs", tmp_path / "state/urls")} == {0o755}
    assert mode(tmp_path / "state/volumes") == 0o755
    assert mode(tmp_path / "state") == 0o755


async def test_a_directory_that_everybody_may_swap_is_refused(tmp_path: Path) -> None:
    place = shared(tmp_path / "shared", sticky=False)
    with pytest.raises(Denied) as caught:
        async with opened(place):
            pass
    said = str(caught.value)
    assert said.startswith(f"everybody may write to {place}")
    assert "chmod o-w" in said
    assert "--state-dir" in said
    with pytest.raises(Denied, match="--state-dir"):
        async with opened(place / "deep/er"):
            pass
    place.chmod(0o1777)
    async with opened(place):
        pass


def test_so_is_one_for_the_cache(tmp_path: Path) -> None:
    directory = CacheDirectory(str(shared(tmp_path / "s", sticky=False) / "cache"), 1 << 20)
    with pytest.raises(Denied, match=r"everybody may write .*--cache-dir"):
        directory.open()


def test_links_of_ones_own_are_followed(tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "link").symlink_to("large disk")
    check_directory(tmp_path / "link", instead="")
    place = shared(tmp_path / "shared", sticky=True)
    (place / "link").symlink_to(tmp_path / "large disk")
    check_directory(place / "link", instead="")
    (tmp_path / "1").symlink_to("2")
    (tmp_path / "2").symlink_to("1")
    with pytest.raises(Denied, match="too many symbolic links; choose another"):
        check_directory(tmp_path / "1", instead="choose another")


@root_only
def test_a_link_that_another_user_made_is_not(tmp_path: Path) -> None:
    place = shared(tmp_path / "shared", sticky=True)
    (tmp_path / "victim").mkdir()
    (place / "cache").symlink_to(tmp_path / "victim")
    os.chown(place / "cache", UID, GID, follow_symlinks=False)
    with pytest.raises(Denied, match="a link that user"):
        check_directory(place / "cache", instead="choose another")


@root_only
def test_root_may_use_what_a_user_keeps(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", UID, GID)
    (tmp_path / "home/state").mkdir(0o775)
    os.chown(tmp_path / "home/state", UID, GID)
    check_directory(tmp_path / "home/state", instead="")
    assert mode(tmp_path / "home/state") == 0o755  # as mkdir's umask left it: not ours to change


@root_only
def test_a_user_may_not_use_what_another_user_keeps() -> None:
    """In a process that is another user for good."""
    program = (
        "import os, sys, tempfile\n"
        "from pathlib import Path\n"
        "from megafs.errors import Denied\n"
        "from megafs.private_files import check_directory\n"
        "place = Path(tempfile.mkdtemp())\n"
        "place.chmod(0o777)\n"
        f"os.setresgid({GID}, {GID}, {GID}); os.setresuid({UID}, {UID}, {UID})\n"
        "try:\n"
        "    check_directory(place, instead='choose another')\n"
        "except Denied as exc:\n"
        "    print(str(exc).replace(str(place), 'PLACE'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout == (
        "PLACE belongs to user 0, who could change what lies there: chown it to user"
        f" {UID}, or choose another\n"
    )


def test_make_directories_says_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        make_directories(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        make_directories(tmp_path / "file/below")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(OSError):
        make_directories(tmp_path / "dangling")
    assert not (tmp_path / "nowhere").exists()


# ---- files -------------------------------------------------------------------------------------


def a_link(path: Path) -> None:
    path.symlink_to(path.parent / "victim")


def a_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize("make", [a_link, a_dangling_link, os.mkfifo, Path.mkdir])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_CREAT])
def test_only_regular_files_are_opened(
    tmp_path: Path, make: Callable[[Path], None], flags: int
) -> None:
    (tmp_path / "victim").write_text("dear")
    make(tmp_path / "f")
    with pytest.raises(OSError) as caught:
        open_private(tmp_path / "f", flags)
    assert caught.value.errno in (errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENXIO)
    assert (tmp_path / "victim").read_text() == "dear"
    assert not (tmp_path / "nowhere").exists()


def test_reading_and_setting_aside(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert read_private(tmp_path / "f") == b"abc"
    assert read_private(tmp_path / "f", 2) == b"ab"
    with pytest.raises(FileNotFoundError):
        read_private(tmp_path / "g")
    assert set_aside(tmp_path / "f") == tmp_path / "damaged/f-1"
    (tmp_path / "f").symlink_to("nowhere")
    assert set_aside(tmp_path / "f") == tmp_path / "damaged/f-2"
    assert (tmp_path / "damaged/f-1").read_bytes() == b"abc"


# ---- the cache ---------------------------------------------------------------------------------


def _subdirectory(cache: Path, victim: Path) -> None:
    (cache / "3").rmdir()
    (cache / "3").symlink_to(victim)


def _table(cache: Path, victim: Path) -> None:
    (cache / "cache.db").rename(victim / "cache.db")
    (cache / "cache.db").symlink_to(victim / "cache.db")


def _log_of_table(cache: Path, victim: Path) -> None:
    (cache / "cache.db-wal").unlink(missing_ok=True)
    (cache / "cache.db-wal").symlink_to(victim / "0123")


def _lock(cache: Path, victim: Path) -> None:
    (cache / "lock").unlink()
    (cache / "lock").symlink_to(victim / "made")


def _directory(cache: Path, victim: Path) -> None:
    (cache / "cache.db").unlink()
    (cache / "cache.db").mkdir()
    (cache / "cache.db/dear").write_text("dear")


def _fifo(cache: Path, victim: Path) -> None:
    (cache / "lock").unlink()
    os.mkfifo(cache / "lock")


@pytest.mark.parametrize("plant", [_subdirectory, _table, _log_of_table, _lock, _directory, _fifo])
async def test_nothing_outside_the_cache_is_touched(
    tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    cache, victim = tmp_path / "cache", tmp_path / "victim"
    victim.mkdir()
    name = "3" * 30 + "a"
    (victim / name).write_text("dear")  # as a file of the cache is called
    (victim / "0123").write_text("dear")
    first = CacheDirectory(str(cache), 1 << 20)
    first.open()
    first.close()
    plant(cache, victim)
    before = {path.name: path.read_bytes() for path in victim.iterdir()}
    second = CacheDirectory(str(cache), 1 << 20)
    with trio.fail_after(30):
        second.open()
    second.apply([], [("packs/ab/0123:0:4:4", b"data")], [])
    second.close()
    assert {path.name: path.read_bytes() for path in victim.iterdir()} == before
    third = CacheDirectory(str(cache), 1 << 20)
    assert len(third.open()) == 1
    third.close()


# ---- exports and scratch -----------------------------------------------------------------------


async def test_the_report_of_salvage_goes_through_no_link(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path, store) as volume:
        await put_file(volume.fs, 1, b"f", b"text")
        await volume.drain()
        settings = volume.settings
    victim = tmp_path / "victim"
    victim.write_text("dear")
    victim.chmod(0o644)
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)  # closed while files are made in it
    (tmp_path / "salvage-report.json").symlink_to(victim)
    result = await salvage(store, "memory://test", CREDENTIAL, settings, tmp_path / "out")
    assert result.files == 1
    assert victim.read_text() == "dear"
    assert mode(victim) == 0o644
    report = tmp_path / "salvage-report.json"
    assert not report.is_symlink()
    assert mode(report) == 0o600


def test_a_scratch_database_is_made_for_the_owner(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        scratch(tmp_path / "a/b").close()
    finally:
        os.umask(old)
    assert mode(tmp_path / "a") == mode(tmp_path / "a/b") == 0o700
    with pytest.raises(Denied):
        scratch(shared(tmp_path / "s", sticky=False) / "b")
