"""Times, extended attributes and set-id bits at their limits, as programs meet them."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs.conftest import run, sh
from tests.programs.test_permissions import as_user

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.timeout(150),
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users"),
]

#: Nothing of it depends on the store.
STORES = ["file"]

#: The last and the first second that a volume keeps.
LAST, FIRST = 9_223_372_036, -9_223_372_036


@pytest.fixture
def room(here: Path) -> Path:
    """A directory in which everybody may write."""
    here.chmod(0o777)
    return here


# ---- times ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("date", "kept"),
    [
        ("9999-12-31", LAST),
        ("2262-04-11T23:47:16Z", LAST),
        ("2262-04-11T23:47:17Z", LAST),
        ("2446-05-10", LAST),
        ("1601-01-01", FIRST),  # the zero of NTFS
        ("1677-09-21T00:12:44Z", FIRST),
        ("1677-09-21T00:12:43Z", FIRST),
        ("@9223372036854775807", LAST),
        ("@-9000000000000000000", FIRST),
        ("2262-04-11T23:47:15Z", LAST - 1),
        ("1700-01-01T00:00:00Z", -8_520_336_000),
    ],
)
def test_any_time_can_be_set(room: Path, date: str, kept: int) -> None:
    """What cannot be kept becomes the nearest time that can, as on ext4."""
    (room / "f").touch()
    (room / "d").mkdir()
    os.symlink("f", room / "l")
    run("touch", "-h", "-d", date, "f", "d", "l", cwd=room)
    for name in "fdl":
        seen = (room / name).lstat()
        assert (seen.st_atime_ns, seen.st_mtime_ns) == (kept * 10**9, kept * 10**9), name
        run("rm", "-d", name, cwd=room)  # this machine's filesystem may not keep that time


def test_copies_of_files_from_far_times(room: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, date in (("past", "1601-01-01"), ("future", "2400-01-01"), ("now", "now")):
        (source / name).write_text(name)
        run("touch", "-d", date, source / name)
    run("cp", "-a", source, room / "cp")
    run("rsync", "-a", f"{source}/", room / "rsync")
    run("tar", "--format=posix", "-cf", room / "t.tar", "-C", source, ".")
    (room / "tar").mkdir()
    run("tar", "-xf", room / "t.tar", "-C", room / "tar")
    for how in ("cp", "rsync", "tar"):
        for name in ("past", "future", "now"):
            assert (room / how / name).read_text() == name


# ---- extended attributes ----------------------------------------------------------------------


def test_names_that_could_not_be_listed_are_refused(room: Path) -> None:
    path = room / "f"
    path.touch()
    made = []
    with pytest.raises(OSError) as caught:
        for n in range(400):
            name = f"user.{n:03}".ljust(255, "x")
            os.setxattr(path, name, b"")
            made.append(name)
    assert caught.value.errno == errno.ENOSPC
    assert len(made) == 256  # of 256 bytes each, with its NUL
    assert sorted(os.listxattr(path)) == made
    os.setxattr(path, made[0], b"another value")  # no new name
    os.removexattr(path, made[0])
    os.setxattr(path, "user.short", b"")
    assert len(os.listxattr(path)) == 256
    path.unlink()  # no other filesystem could take a copy


@pytest.mark.parametrize("namespace", ["user.", "trusted.", "security."])
def test_a_namespace_alone_is_no_name(room: Path, namespace: str) -> None:
    path = room / "f"
    path.touch()
    for call in (
        lambda: os.setxattr(path, namespace, b"x"),
        lambda: os.setxattr(path, namespace, b"x", os.XATTR_REPLACE),
        lambda: os.getxattr(path, namespace),
        lambda: os.removexattr(path, namespace),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EINVAL
    assert os.listxattr(path) == []


def test_what_is_in_no_namespace_is_not_supported(room: Path) -> None:
    path = room / "f"
    path.touch()
    for call in (
        lambda: os.setxattr(path, "other.x", b"x"),
        lambda: os.getxattr(path, "other.x"),
        lambda: os.removexattr(path, "other.x"),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EOPNOTSUPP


def test_trusted_names_are_shown_to_administrators_only(room: Path) -> None:
    path = room / "f"
    path.touch()
    path.chmod(0o644)
    os.setxattr(path, "trusted.secret", b"x")
    os.setxattr(path, "user.open", b"x")
    listing = "import os; print(sorted(os.listxattr('f')))"
    assert as_user(4321, f'/usr/bin/python3 -c "{listing}"', room) == "['user.open']\n"
    seen = run("/usr/bin/python3", "-c", listing, cwd=room)
    assert seen == "['trusted.secret', 'user.open']\n"
    # Root without the capability, and a user with it.
    python = ["/usr/bin/python3", "-c", listing]
    without = run("setpriv", "--bounding-set=-sys_admin", *python, cwd=room)
    assert without == "['user.open']\n"
    with_it = run(
        "setpriv", "--reuid=4321", "--regid=4321", "--clear-groups", "--inh-caps=+sys_admin",
        "--ambient-caps=+sys_admin", *python, cwd=room,
    )  # fmt: skip
    assert with_it == seen


# ---- set-id bits ------------------------------------------------------------------------------


def test_an_acl_takes_setgid_away_from_strangers_to_the_group(room: Path) -> None:
    """CVE-2016-7097."""
    path = room / "f"
    script = "setfacl -m u::rwx,g::rwx,o::rwx f"
    for groups, kept in (("", False), ("100", True)):
        path.touch()
        os.chown(path, 4321, 100)
        path.chmod(0o2755)
        as_user(4321, script, room, groups=groups)
        assert stat.S_IMODE(path.stat().st_mode) == (0o2777 if kept else 0o777)
        path.chmod(0o2755)
        as_user(4321, "setfacl -m u:5:rwx f", room, groups=groups)
        assert bool(path.stat().st_mode & stat.S_ISGID) is kept
        path.unlink()
    path.touch()
    os.chown(path, 4321, 100)
    path.chmod(0o2755)
    sh(script, cwd=room)  # root may
    assert stat.S_IMODE(path.stat().st_mode) == 0o2777


#: What a member of no group of the file, and a member, do to a file of theirs; the mode before.
CHANGES = [
    "chmod 2755 f",
    "chmod g+s f",
    "chmod 6777 f",
    "setfacl -m u::rwx,g::rx,o::rx f",
    "setfacl -m u:5:rwx f",
    "setfacl -b f",
    "echo x >> f",
    ": > f; echo x >> f",
    "truncate -s 1 f",
    "truncate -s 0 f",
    "chgrp 101 f",
    "chgrp 4321 f",
    "mv f g; cp -p g f",
    "cp -a f g; mv g f",
    "/usr/bin/python3 -c \"import os; os.open('new', os.O_CREAT, 0o2775)\"; mv new f",
    "rm f; mkdir -m 2775 f",
]


@pytest.mark.parametrize("change", CHANGES)
def test_set_id_bits_go_and_stay_as_on_a_filesystem_of_this_machine(
    room: Path, local: Path, change: str
) -> None:
    for mode in (0o6777, 0o6755, 0o2744, 0o4755, 0o2666):
        for groups in ("101", "100,101"):
            seen = []
            for number, top in enumerate((room, local)):
                at = top / f"{CHANGES.index(change)}-{mode:o}-{groups.replace(',', '-')}"
                at.mkdir()
                os.chown(at, 4321, 100)
                at.chmod(0o2777)
                path = at / "f"
                path.write_text("text")
                os.chown(path, 4321, 100)
                path.chmod(mode)
                as_user(4321, change, at, groups=groups)
                found = path.stat()
                seen.append((number, oct(found.st_mode), found.st_uid, found.st_gid))
            assert seen[0][1:] == seen[1][1:], (oct(mode), groups)


@pytest.fixture
def local() -> Iterator[Path]:
    """A directory of this machine's own filesystem that everybody may enter."""
    made = Path(tempfile.mkdtemp(prefix="megafs-local-"))
    made.chmod(0o777)
    yield made
    shutil.rmtree(made)
