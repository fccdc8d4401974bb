"""Names: long, odd, many, deep; renamed over each other, listed while they change."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from pathlib import Path

import pytest

from tests.programs.conftest import run, sh

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(150)]

#: Nothing of it depends on the store.
STORES = ["file"]

_libc = ctypes.CDLL(None, use_errno=True)
NOREPLACE, EXCHANGE = 1, 2


def renameat2(old: Path, new: Path, flags: int) -> int:
    """Return 0 or the errno."""
    done = _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags)
    return ctypes.get_errno() if done else 0


def number_of(*args: object) -> int:
    """The errno of what fails."""
    function, *rest = args
    with pytest.raises(OSError) as caught:
        function(*rest)  # type: ignore[operator]
    assert caught.value.errno is not None
    return caught.value.errno


def test_names_of_any_bytes(here: Path) -> None:
    at = os.fsencode(here)
    names = [bytes([n]) for n in range(1, 256) if n not in b"/."]
    names += [b"\xff" * 255, b"a" * 255, b"\xc3\x28", b"...", b"  ", b"\n\n", b"-rf"]
    for name in names:
        with open(at + b"/" + name, "wb") as file:
            file.write(name)
    assert sorted(os.listdir(at)) == sorted(names)
    for name in names:
        with open(at + b"/" + name, "rb") as file:
            assert file.read() == name
    for name in names[:100]:
        os.unlink(at + b"/" + name)
    assert sorted(os.listdir(at)) == sorted(names[100:])
    assert number_of(os.mkdir, at + b"/" + b"a" * 256) == errno.ENAMETOOLONG
    assert number_of(os.symlink, b"x" * 4096, at + b"/l") == errno.ENAMETOOLONG


def test_case_and_normal_forms_are_different_names(here: Path) -> None:
    names = ["Name", "name", "NAME", "caf\u00e9", "cafe\u0301"]
    for name in names:
        (here / name).write_text(name)
    assert sorted(os.listdir(here)) == sorted(names)


def test_deep_paths(here: Path) -> None:
    at = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(200):
        os.mkdir("d" * 100, dir_fd=at)
        inner = os.open("d" * 100, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = inner
    with os.fdopen(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=at), "w") as file:
        file.write("here")
    with os.fdopen(os.open("bottom", os.O_RDONLY, dir_fd=at)) as file:
        assert file.read() == "here"
    os.close(at)
    assert len(run("find", ".", "-name", "d*", "-printf", "x", cwd=here)) == 200
    run("rm", "-r", "d" * 100, cwd=here)


def test_rename_flags(here: Path) -> None:
    a, b = here / "a", here / "b"
    a.write_text("a")
    b.mkdir()
    (b / "in").touch()
    assert renameat2(a, b, NOREPLACE) == errno.EEXIST
    assert renameat2(a, b, EXCHANGE) == 0
    assert b.read_text() == "a"
    assert (a / "in").exists()
    assert renameat2(a, here / "c", EXCHANGE) == errno.ENOENT
    assert renameat2(a, here / "c", NOREPLACE) == 0
    assert renameat2(here / "c", here / "c" / "in" / "x", 0) == errno.ENOTDIR
    assert renameat2(here / "c", here / "c" / "x", 0) == errno.EINVAL


def test_rename_over_directories_and_files(here: Path) -> None:
    for name in ("empty", "full", "moved"):
        (here / name).mkdir()
    (here / "full" / "f").touch()
    (here / "file").touch()
    assert number_of(os.rename, here / "moved", here / "full") == errno.ENOTEMPTY
    assert number_of(os.rename, here / "moved", here / "file") == errno.ENOTDIR
    assert number_of(os.rename, here / "file", here / "moved") == errno.EISDIR
    os.rename(here / "full", here / "empty")
    assert (here / "empty" / "f").exists()
    assert here.stat().st_nlink == 2 + len([p for p in here.iterdir() if p.is_dir()])


def test_open_files_outlive_their_names(here: Path) -> None:
    path = here / "f"
    with path.open("w+b") as file:
        file.write(b"1" * 500_000)
        file.flush()
        os.unlink(path)
        assert not path.exists()
        path.write_text("another")
        file.seek(400_000)
        file.write(b"2" * 200_000)
        file.seek(0)
        data = file.read()
        assert (len(data), os.fstat(file.fileno()).st_nlink) == (600_000, 0)
        assert data[399_999:400_001] == b"12"
    assert path.read_text() == "another"


def test_open_exclusively(here: Path) -> None:
    winners = []

    def attempt(who: int) -> None:
        try:
            fd = os.open(here / "one", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return
        winners.append(who)
        os.close(fd)

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1


def test_a_directory_of_20000_names_listed_while_it_changes(here: Path) -> None:
    count = 20_000
    directory = here / "many"
    directory.mkdir()
    made = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    # Hard links are the quickest names to make.
    (here / "one").touch()
    for n in range(count):
        os.link(here / "one", f"stays{n:05d}", dst_dir_fd=made)
    stop = threading.Event()

    def change() -> None:
        n = 0
        while not stop.is_set():
            os.link(here / "one", f"comes{n}", dst_dir_fd=made)
            if n > 20:
                os.unlink(f"comes{n - 20}", dir_fd=made)
            n += 1

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(3):
            seen = [name for name in os.listdir(directory) if name.startswith("stays")]
            assert len(seen) == count
            assert len(set(seen)) == count
    finally:
        stop.set()
        changing.join()
    os.close(made)
    assert (here / "one").stat().st_nlink > count
    # seekdir(3): from a place in the middle on it is the same as before.
    with os.scandir(directory) as entries:
        assert sum(1 for _ in entries) >= count
    assert len(run("find", directory, "-name", "stays*", "-printf", "x")) == count
    run("rm", "-r", directory)
    assert (here / "one").stat().st_nlink == 1


def test_removed_while_listed(here: Path) -> None:
    for n in range(3000):
        (here / f"f{n}").symlink_to("x")
    with os.scandir(here) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(here) == []


def test_shell_habits(here: Path) -> None:
    script = """
    mkdir -p a/b/c; cd a/b/c; touch x; cd ../../..; rm -rf a; test ! -e a
    mkdir d; cd d; rmdir ../d; ! touch y 2>/dev/null; cd ..
    echo 1 > f; ln f g; echo 2 >> g; test "$(cat f)" = "1
2"; ln -s f s; test "$(readlink s)" = f; test s -ef f
    mv f dir-to-be; ! mkdir dir-to-be 2>/dev/null
    set -C; ! (echo x > dir-to-be) 2>/dev/null; set +C
    install -m 751 g installed; test "$(stat -c %a installed)" = 751
    mkdir t; touch -d '2001-02-03 04:05:06.789 UTC' t/x
    test "$(stat -c %.9Y t/x)" = 981173106.789000000
    """
    sh(script, cwd=here)
