"""tar, rsync, cp, find, du: a tree goes in and comes out as it was."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from tests.programs.conftest import run, same, sh

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(150)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that a tree can hold, on an ordinary filesystem."""
    root = tmp_path_factory.mktemp("tree")
    for n in range(5):
        deep = root / f"dir{n}" / "a" / "b"
        deep.mkdir(parents=True)
        for m in range(20):
            (deep / f"file{m}").write_bytes(os.urandom((m * 733) % 5000))
    (root / "empty").touch()
    (root / "large").write_bytes(os.urandom(5 << 20))
    (root / "text").write_text("the same line again and again\n" * 100_000)
    os.link(root / "large", root / "dir0" / "hard link to large")
    os.link(root / "large", root / "dir1" / "another")
    (root / "symlink").symlink_to("dir0/a/b/file3")
    (root / "dangling").symlink_to("x" * 1000)
    os.mkfifo(root / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
    if os.geteuid() == 0:
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chown(root / "text", 12, 34)
        os.chown(root / "symlink", 56, 78, follow_symlinks=False)
    with (root / "sparse").open("wb") as file:
        file.seek(10 << 20)
        file.write(b"end")
        file.truncate(20 << 20)
    for name in (
        "with space", "with\nnewline", "quote'\"\\", "-dash", "ünïcode", "n" * 255, "*?[a]",
    ):  # fmt: skip
        (root / name).write_text(name)
    raw = os.fsencode(root) + b"/not utf-8 \xff\xfe\x80"
    with open(raw, "wb") as file:
        file.write(b"bytes")
    os.chmod(root / "empty", 0o4755)
    os.chmod(root / "dir2", 0o3770)
    os.chmod(root / "text", 0o000)
    os.setxattr(root / "large", "user.one", b"1" * 1000)
    os.setxattr(root / "large", "user.two", b"\0\xff")
    os.setxattr(root / "dir3", "user.of a directory", b"")
    run("setfacl", "-m", "u:12:rwx,g:34:r-x,m::rwx", root / "dir4" / "a")
    run("setfacl", "-d", "-m", "u:12:rwx,g:34:---", root / "dir4")
    run("setfacl", "-m", "u:99:r--", root / "dir0" / "a" / "b" / "file1")
    for n, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        if not path.is_symlink():
            os.utime(path, ns=(10**18 + n, 1_234_567_890_123_456_789 - n * 10**9))
    return root


def test_cp_keeps_everything(tree: Path, here: Path) -> None:
    run("cp", "-a", tree, here / "copy")
    same(tree, here / "copy")
    assert (here / "copy" / "large").stat().st_nlink == 3
    seen = (here / "copy" / "dir0" / "a" / "b" / "file3").stat()
    was = (tree / "dir0" / "a" / "b" / "file3").stat()
    assert seen.st_mtime_ns == was.st_mtime_ns
    assert _acls(here / "copy") == _acls(tree)


def _acls(root: Path) -> list[str]:
    return sorted(run("getfacl", "-Rpn", ".", cwd=root).split("\n\n"))


def test_tar_in_and_out(tree: Path, here: Path, tmp_path: Path) -> None:
    # tar does not take sockets.
    sh('cp -a "$1" src; rm src/socket; touch -r "$1" src', tree, cwd=here)
    sh("tar --acls --xattrs -cf a.tar src", cwd=here)
    sh("mkdir out; tar --acls --xattrs -xpf a.tar -C out", cwd=here)
    same(here / "src", here / "out" / "src")
    (tmp_path / "o").mkdir()
    run("tar", "--acls", "--xattrs", "-xpf", here / "a.tar", "-C", tmp_path / "o")
    same(here / "src", tmp_path / "o" / "src")


def test_tar_compares_what_it_has_written(tree: Path, here: Path, tmp_path: Path) -> None:
    run("tar", "-cf", tmp_path / "t.tar", "--exclude=./socket", "-C", tree, ".")
    run("tar", "-xpf", tmp_path / "t.tar", "-C", here)
    run("tar", "--compare", "-f", tmp_path / "t.tar", "-C", here)


def test_rsync_both_ways(tree: Path, here: Path, tmp_path: Path) -> None:
    run("rsync", "-aHAX", "--checksum", f"{tree}/", f"{here}/r/")
    same(tree, here / "r")
    # An update of a few files, by delta and in place.
    (here / "r" / "large").write_bytes(b"other" + os.urandom(3 << 20))
    run("rsync", "-aHAX", "--checksum", "--no-whole-file", f"{tree}/", f"{here}/r/")
    same(tree, here / "r")
    with (here / "r" / "text").open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"changed in place")
    command = ["rsync", "-aHAX", "--checksum", "--no-whole-file", "--inplace"]
    run(*command, f"{tree}/", f"{here}/r/")
    same(tree, here / "r")
    (tmp_path / "back").mkdir()
    run("rsync", "-aHAX", "--checksum", f"{here}/r/", f"{tmp_path}/back/")
    same(tree, tmp_path / "back")


def test_rsync_deletes(tree: Path, here: Path) -> None:
    run("rsync", "-a", f"{tree}/", f"{here}/r/")
    (here / "r" / "new").mkdir()
    (here / "r" / "new" / "x").touch()
    run("rsync", "-a", "--delete", f"{tree}/", f"{here}/r/")
    assert not (here / "r" / "new").exists()


def test_find_and_du_see_what_an_ordinary_filesystem_shows(tree: Path, here: Path) -> None:
    run("cp", "-a", tree, here / "copy")
    wanted = ["find", ".", "-not", "-type", "d", "-printf", r"%P %y %s %m %n %U %G %l %T@\0"]
    assert sorted(run(*wanted, cwd=here / "copy").split("\0")) == sorted(
        run(*wanted, cwd=tree).split("\0")
    )
    directories = ["find", ".", "-type", "d", "-printf", r"%P %m %T@\0"]
    assert sorted(run(*directories, cwd=here / "copy").split("\0")) == sorted(
        run(*directories, cwd=tree).split("\0")
    )
    apparent = int(run("du", "-sb", "--apparent-size", here / "copy" / "large").split()[0])
    assert apparent == 5 << 20
    used = int(run("du", "-s", "-B1", here / "copy" / "large").split()[0])
    assert 5 << 20 <= used < 6 << 20
    # Links are counted once.
    assert int(run("du", "-s", "-B1M", here / "copy").split()[0]) < 30


def test_holes_take_no_room(here: Path) -> None:
    run("dd", "if=/dev/zero", f"of={here}/sparse", "bs=1", "count=0", "seek=1T")
    seen = (here / "sparse").stat()
    assert (seen.st_size, seen.st_blocks) == (1 << 40, 0)
    with (here / "sparse").open("r+b") as file:
        file.seek(1 << 39)
        file.write(b"island")
        file.seek((1 << 39) - 10)
        assert file.read(26) == bytes(10) + b"island" + bytes(10)
        file.seek((1 << 40) - 100)
        assert file.read() == bytes(100)
    assert (here / "sparse").stat().st_blocks < 3000
    # Put back to a size that can be read for comparison.
    os.truncate(here / "sparse", 1 << 20)


def test_cp_sparse_of_a_sparse_file(here: Path, tmp_path: Path) -> None:
    with (tmp_path / "s").open("wb") as file:
        for n in range(10):
            file.seek(n << 20)
            file.write(b"x" * 5000)
    run("cp", "--sparse=always", tmp_path / "s", here / "s")
    assert (here / "s").read_bytes() == (tmp_path / "s").read_bytes()
    assert (here / "s").stat().st_blocks < (9 << 20) // 512


def test_cp_within_the_mount_and_mv_out(here: Path, tmp_path: Path) -> None:
    (here / "a").write_bytes(os.urandom(3 << 20))
    data = (here / "a").read_bytes()
    run("cp", "--reflink=auto", here / "a", here / "b")
    assert (here / "b").read_bytes() == data
    run("cp", "--reflink=always", here / "a", here / "c", code=1)
    run("mv", here / "b", tmp_path)
    assert (tmp_path / "b").read_bytes() == data
    assert not (here / "b").exists()
    run("mv", tmp_path / "b", here / "d")
    assert (here / "d").read_bytes() == data


def test_rm_of_a_large_tree(here: Path) -> None:
    sh("for d in 1 2 3 4 5; do mkdir -p $d/x/y; for f in $(seq 100); do : > $d/x/y/$f; done; done",
       cwd=here)  # fmt: skip
    run("rm", "-r", *[here / str(n) for n in range(1, 6)])
    assert list(here.iterdir()) == []
