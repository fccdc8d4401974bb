"""How editors and office programs save: over the file, beside it, by way of a backup."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.programs.conftest import run

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(150)]

#: Nothing of it depends on the store.
STORES = ["file"]


@pytest.fixture
def text(here: Path) -> Path:
    path = here / "text.txt"
    path.write_text("old\n" * 100)
    path.chmod(0o640)
    os.setxattr(path, "user.kept", b"1")
    return path


@pytest.mark.skipif(shutil.which("vim") is None, reason="no vim")
@pytest.mark.parametrize(
    "setting", ["backupcopy=no", "backupcopy=yes", "nobackup nowritebackup", "backup patchmode=.o"]
)
def test_vim(text: Path, setting: str) -> None:
    command = ["vim", "-u", "NONE", "-N", "-es", f"+set {setting} fsync", "+%s/old/new/", "+wq"]
    done = subprocess.run(
        [*command, text], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done
    assert text.read_text() == "new\n" * 100
    assert text.stat().st_mode & 0o777 == 0o640
    assert not list(text.parent.glob(".*.sw*"))


def test_atomic_save(text: Path) -> None:
    """Write beside it, fsync, rename over it: whoever looks sees the old or the new."""
    for n in range(20):
        fresh = text.with_suffix(".tmp")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        os.write(fd, b"%d" % n * 1000)
        if n % 10 == 0:
            os.fsync(fd)
        os.close(fd)
        with text.open() as before:
            os.rename(fresh, text)
            before.read()
        assert text.read_bytes() == b"%d" % n * 1000
    directory = os.open(text.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    assert os.listdir(text.parent) == ["text.txt"]


def test_emacs_backup_by_renaming_and_by_copying(text: Path) -> None:
    os.rename(text, f"{text}~")
    text.write_text("first")
    assert Path(f"{text}~").read_text() == "old\n" * 100
    shutil.copy2(text, f"{text}~")
    with text.open("r+") as file:
        file.truncate(0)
        file.write("second")
        file.flush()
        os.fsync(file.fileno())
    assert text.read_text() == "second"
    assert Path(f"{text}~").read_text() == "first"
    lock = text.parent / ".#text.txt"
    lock.symlink_to("user@host.123:456")
    assert os.readlink(lock) == "user@host.123:456"
    lock.unlink()


def test_truncated_and_rewritten(text: Path) -> None:
    inode = text.stat().st_ino
    for n in range(10):
        text.write_text("x" * (n * 1000))
        assert text.read_text() == "x" * (n * 1000)
    assert text.stat().st_ino == inode
    assert os.getxattr(text, "user.kept") == b"1"


def test_office_lock_and_delete_before_rename(text: Path) -> None:
    """Some programs remove the old file, then rename the new one."""
    lock = text.parent / "~$text.txt"
    lock.write_bytes(b"\0" * 162)
    fresh = text.parent / "A1B2C3.tmp"
    fresh.write_text("new")
    os.unlink(text)
    os.rename(fresh, text)
    lock.unlink()
    assert text.read_text() == "new"
    assert os.listdir(text.parent) == ["text.txt"]


def test_sed_in_place_and_patch(text: Path) -> None:
    run("sed", "-i.bak", "s/old/new/", text)
    assert text.read_text() == "new\n" * 100
    assert text.with_name("text.txt.bak").read_text() == "old\n" * 100
    run("perl", "-pi", "-e", "s/new/newest/", text)
    assert text.read_text() == "newest\n" * 100


def test_log_files_appended_rotated_and_followed(here: Path) -> None:
    log = here / "log"
    with log.open("a", buffering=1) as writer, log.open() as reader:
        for n in range(50):
            writer.write(f"line {n}\n")
        assert len(reader.readlines()) == 50
        os.rename(log, here / "log.1")
        writer.write("still the old file\n")
        assert reader.readline() == "still the old file\n"
        with log.open("a") as fresh:
            fresh.write("new file\n")
    assert (here / "log.1").read_text().endswith("still the old file\n")
    assert log.read_text() == "new file\n"
    os.truncate(here / "log.1", 0)
    assert (here / "log.1").read_text() == ""
