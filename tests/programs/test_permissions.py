"""Users, groups, modes: what root and others may do, and what the bits do to what is made."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.programs.conftest import run, sh

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.timeout(150),
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users"),
]

#: Nothing of it depends on the store.
STORES = ["file"]

ALICE, BOB, GROUP = 4321, 4322, 4999


def as_user(uid: int, script: str, cwd: Path, *, groups: str = "", code: int = 0) -> str:
    """Run a shell script as another user, in *cwd*."""
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--inh-caps=-all"]
    become.append(f"--groups={groups}" if groups else "--clear-groups")
    return run(*become, "sh", "-euc", script, cwd=cwd, code=code)


@pytest.fixture
def room(here: Path) -> Path:
    """A directory in which everybody may write."""
    here.chmod(0o777)
    return here


def test_modes_are_enforced(room: Path) -> None:
    as_user(ALICE, "umask 077; echo secret > f; mkdir d; echo x > d/in", room)
    seen = (room / "f").stat()
    assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (ALICE, ALICE, 0o600)
    for wrong in ("cat f", "echo x >> f", "ls d", "cat d/in", "chmod 666 f", "chown 4322 f",
                  "touch -d 2001-01-01 f", "setfacl -m u:4322:r f"):  # fmt: skip
        as_user(BOB, f"! {wrong} 2>/dev/null", room)
    as_user(ALICE, "chmod 644 f; chgrp 4999 f", room, groups=str(GROUP))
    assert (room / "f").stat().st_gid == GROUP
    assert as_user(BOB, "cat f", room) == "secret\n"
    as_user(ALICE, "! chgrp 4998 f 2>/dev/null; ! chown 0 f 2>/dev/null", room)
    assert run("cat", room / "d" / "in") == "x\n"  # root


def test_the_umask_counts_once_and_default_acls_are_handed_down(room: Path) -> None:
    as_user(ALICE, "umask 027; : > f; mkdir d; umask 0; : > g; mkdir e", room)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in room.iterdir()}
    assert modes == {"f": 0o640, "d": 0o750, "g": 0o666, "e": 0o777}
    run("setfacl", "-d", "-m", "u::rwx,g::rx,o::-,u:4322:rwx", room / "e")
    # The kernel applies the umask here, too, unlike on ext4: docs/semantics.md.
    as_user(ALICE, "umask 0; : > e/f; mkdir e/d", room)
    assert "user:4322:rwx\t#effective:rw-" in run("getfacl", "-p", "-n", room / "e" / "f")
    assert "default:user:4322:rwx" in run("getfacl", "-p", "-n", room / "e" / "d")
    as_user(BOB, "echo x > e/f; echo y > e/d/new", room)
    as_user(BOB + 1, "! cat e/f 2>/dev/null", room)


def test_sticky_directories(room: Path) -> None:
    room.chmod(0o1777)
    as_user(ALICE, "echo x > f; mkdir d", room)
    for wrong in ("rm -f f", "mv f g", "rmdir d"):
        as_user(BOB, f"! {wrong} 2>/dev/null", room)
    as_user(BOB, "echo mine > g; ! mv g f 2>/dev/null", room)
    as_user(ALICE, "mv f h; rm h; rmdir d", room)
    assert sorted(os.listdir(room)) == ["g"]


def test_setgid_directories_hand_their_group_down(room: Path) -> None:
    (room / "d").mkdir()
    os.chown(room / "d", 0, GROUP)
    os.chmod(room / "d", 0o2777)
    as_user(ALICE, "mkdir d/sub; : > d/f; ln -s x d/l; mkdir -p d/sub/deep", room)
    assert (room / "d" / "f").stat().st_gid == GROUP
    assert (room / "d" / "l").lstat().st_gid == GROUP
    for name in ("sub", "sub/deep"):
        seen = (room / "d" / name).stat()
        assert seen.st_gid == GROUP
        assert seen.st_mode & stat.S_ISGID


def test_set_id_bits_go_when_others_write_or_own(room: Path) -> None:
    (room / "f").write_text("x")
    os.chmod(room / "f", 0o6777)
    as_user(BOB, "echo more >> f", room)
    assert stat.S_IMODE((room / "f").stat().st_mode) == 0o777
    os.chmod(room / "f", 0o6777)
    as_user(BOB, ": > f", room)
    assert stat.S_IMODE((room / "f").stat().st_mode) == 0o777
    os.chmod(room / "f", 0o6755)
    os.chown(room / "f", ALICE, GROUP)
    assert stat.S_IMODE((room / "f").stat().st_mode) == 0o755
    # A group that one is not in cannot be set.
    as_user(ALICE, "chmod 2755 f", room)
    assert not (room / "f").stat().st_mode & stat.S_ISGID
    as_user(ALICE, "chmod 2755 f", room, groups=str(GROUP))
    assert (room / "f").stat().st_mode & stat.S_ISGID


def test_times(room: Path) -> None:
    path = room / "f"
    path.touch()
    for ns in (0, 1, 999_999_999, 10**18 + 123_456_789, 2**33 * 10**9, -1_000_000_001):
        os.utime(path, ns=(ns, ns + 1))
        seen = path.stat()
        assert (seen.st_atime_ns, seen.st_mtime_ns) == (ns, ns + 1)
    os.symlink("x", room / "l")
    os.utime(room / "l", ns=(5, 6), follow_symlinks=False)
    assert (room / "l").lstat().st_mtime_ns == 6
    before = path.stat()
    os.chmod(path, 0o600)
    after = path.stat()
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns
    as_user(ALICE, "! touch f 2>/dev/null", room)
    path.write_text("x")
    assert path.stat().st_mtime_ns > 10**18
    directory = room.stat().st_mtime_ns
    (room / "new").touch()
    assert room.stat().st_mtime_ns > directory


def test_extended_attributes(room: Path) -> None:
    path = room / "f"
    path.touch()
    path.chmod(0o644)
    os.setxattr(path, "user.large", os.urandom(60_000))
    os.setxattr(path, "trusted.t", b"root only")
    os.setxattr(path, "user.ä", b"")
    with pytest.raises(OSError) as caught:
        os.setxattr(path, "user.large", b"", os.XATTR_CREATE)
    assert caught.value.errno == errno.EEXIST
    with pytest.raises(OSError) as caught:
        os.setxattr(path, "user.absent", b"", os.XATTR_REPLACE)
    assert caught.value.errno == errno.ENODATA
    assert set(os.listxattr(path)) == {"user.large", "trusted.t", "user.ä"}
    shown = as_user(ALICE, "getfattr -d -m - f; ! setfattr -n user.x -v 1 f 2>/dev/null", room)
    assert "trusted" not in shown
    os.removexattr(path, "user.large")
    assert len(os.getxattr(path, "user.ä")) == 0
    sh('cp -a f g; test "$(getfattr --only-values -n trusted.t g)" = "root only"', cwd=room)


def test_devices(room: Path) -> None:
    os.mknod(room / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    seen = (room / "null").stat()
    assert stat.S_ISCHR(seen.st_mode)
    assert seen.st_rdev == os.makedev(1, 3)
    as_user(ALICE, "! mknod mine c 1 3 2>/dev/null; mkfifo pipe; test -p pipe", room)
