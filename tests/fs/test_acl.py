"""ACLs: their bytes, their rules, and the same answers as a filesystem of this machine gives."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megafs.errors import Refused
from megafs.fs import acl
from megafs.fs.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, AclEntry
from megafs.tree.inode import SetAttr
from tests.fs.opened import ROOT, opened

UNDEFINED = 0xFFFFFFFF
permissions = st.integers(0, 7)
modes = st.integers(0, 0o7777)


@st.composite
def acls(draw: st.DrawFn) -> list[AclEntry]:
    """Any valid ACL, in the kernel's order."""
    users = sorted(draw(st.sets(st.integers(1, 5), max_size=3)))
    groups = sorted(draw(st.sets(st.integers(1, 5), max_size=3)))
    masked: bool = bool(users or groups) or draw(st.booleans())
    entries = [AclEntry(USER_OBJ, draw(permissions), UNDEFINED)]
    entries += [AclEntry(USER, draw(permissions), user) for user in users]
    entries += [AclEntry(GROUP_OBJ, draw(permissions), UNDEFINED)]
    entries += [AclEntry(GROUP, draw(permissions), group) for group in groups]
    if masked:
        entries.append(AclEntry(MASK, draw(permissions), UNDEFINED))
    return [*entries, AclEntry(OTHER, draw(permissions), UNDEFINED)]


def bits(entries: list[AclEntry], tag: int) -> int:
    return next(entry.permissions for entry in entries if entry.tag == tag)


@given(acls())
def test_an_acl_is_read_as_it_was_written(entries: list[AclEntry]) -> None:
    assert acl.parse(acl.build(entries)) == entries


@given(acls(), modes)
def test_after_chmod_the_mode_of_the_acl_is_the_new_mode(
    entries: list[AclEntry], mode: int
) -> None:
    changed = acl.with_mode(entries, mode)
    assert acl.mode_of(changed, mode) == mode
    named = [e for e in entries if e.tag in (USER, GROUP)]
    assert [e for e in changed if e.tag in (USER, GROUP)] == named
    if any(e.tag == MASK for e in entries):
        assert bits(changed, GROUP_OBJ) == bits(entries, GROUP_OBJ)


@given(acls(), modes)
def test_setting_an_acl_leaves_the_higher_bits_of_the_mode(
    entries: list[AclEntry], mode: int
) -> None:
    changed = acl.mode_of(entries, mode)
    assert changed & ~0o777 == mode & ~0o777
    assert changed >> 6 & 7 == bits(entries, USER_OBJ)
    assert changed & 7 == bits(entries, OTHER)


@given(acls(), modes)
def test_a_new_file_never_gets_more_than_was_asked_for(entries: list[AclEntry], mode: int) -> None:
    made, access = acl.inherit(acl.build(entries), mode)
    assert made & ~mode == 0
    assert acl.mode_of(access, made) == made
    assert acl.parse(acl.build(access)) == access


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (b"", errno.EOPNOTSUPP),
        (b"\1\0\0\0", errno.EOPNOTSUPP),
        (b"\2\0\0\0" + bytes(5), errno.EINVAL),
        (acl.build([AclEntry(USER_OBJ, 7, 0)]), errno.EINVAL),
        (
            acl.build(
                [
                    AclEntry(USER_OBJ, 7, 0),
                    AclEntry(USER, 7, 5),
                    AclEntry(GROUP_OBJ, 7, 0),
                    AclEntry(OTHER, 7, 0),
                ]
            ),
            errno.EINVAL,
        ),
        (
            acl.build([AclEntry(USER_OBJ, 8, 0), AclEntry(GROUP_OBJ, 7, 0), AclEntry(OTHER, 7, 0)]),
            errno.EINVAL,
        ),
        (
            acl.build(
                [
                    AclEntry(USER_OBJ, 7, 0),
                    AclEntry(GROUP_OBJ, 7, 0),
                    AclEntry(OTHER, 7, 0),
                    AclEntry(3, 7, 0),
                ]
            ),
            errno.EINVAL,
        ),
    ],
)
def test_what_is_no_acl_is_refused(value: bytes, error: int) -> None:
    with pytest.raises(Refused) as no:
        acl.parse(value)
    assert no.value.errno == error


def setfacl(*args: str | Path) -> None:
    subprocess.run(["setfacl", *map(str, args)], check=True, capture_output=True)


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A directory on a filesystem of this machine that keeps ACLs."""
    made = tmp_path / "real"
    made.mkdir()
    if shutil.which("setfacl") is None or os.geteuid() != 0:
        pytest.skip("needs setfacl and root")
    try:
        setfacl("-m", "u:5:r", made)
    except subprocess.CalledProcessError:
        pytest.skip("the temporary directory keeps no ACLs")
    setfacl("-b", made)
    return made


def seen(path: Path) -> tuple[str, dict[str, bytes]]:
    found = {}
    for name in (acl.ACCESS.decode(), acl.DEFAULT.decode()):
        try:
            found[name] = os.getxattr(path, name)
        except OSError:
            pass
    return oct(path.stat().st_mode), found


DEFAULTS = [
    "d:u::rwx,d:g::r-x,d:o::---",
    "d:u::rwx,d:g::rwx,d:o::r-x,d:u:5:rw-,d:m::r--",
    "d:u::rw-,d:g::r--,d:o::rwx,d:g:7:rwx",
    "d:u::---,d:g::---,d:o::---",
]


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("mode", [0o777, 0o644, 0o600, 0o2755])
async def test_inheritance_is_that_of_this_machines_filesystem(
    tmp_path: Path, real: Path, default: str, mode: int
) -> None:
    setfacl("-m", default, real)
    old = os.umask(0o022)
    try:
        os.close(os.open(real / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode & 0o777))
        os.mkdir(real / "directory", mode & 0o777)
        os.chmod(real / "file", mode)
    finally:
        os.umask(old)
    async with opened(tmp_path) as volume:
        fs = volume.fs
        top = await fs.mkdir(1, b"top", 0o755, ROOT)
        await fs.setxattr(top.ino, acl.DEFAULT, os.getxattr(real, acl.DEFAULT), 0, ROOT)
        handle, file = await fs.create(top.ino, b"file", mode & 0o777, os.O_RDWR, ROOT)
        await fs.release(handle)
        directory = await fs.mkdir(top.ino, b"directory", mode & 0o777, ROOT)
        await fs.setattr(file.ino, SetAttr(mode=mode), ROOT)
        for inode, path in ((file, real / "file"), (directory, real / "directory")):
            found = {
                name.decode(): fs.getxattr(inode.ino, name) for name in fs.listxattr(inode.ino)
            }
            assert (oct(fs.getattr(inode.ino).mode), found) == seen(path)


async def test_an_acl_and_the_mode_stay_in_step_as_on_this_machine(
    tmp_path: Path, real: Path
) -> None:
    path = real / "f"
    path.touch()
    path.chmod(0o640)
    async with opened(tmp_path) as volume:
        fs = volume.fs
        handle, inode = await fs.create(1, b"f", 0o640, os.O_RDWR, ROOT)
        await fs.release(handle)
        ino = inode.ino

        def same() -> None:
            found = {name.decode(): fs.getxattr(ino, name) for name in fs.listxattr(ino)}
            assert (oct(fs.getattr(ino).mode), found) == seen(path)

        for change in ("u:5:rwx", "g:7:r-x", "m::r--", "g::rwx"):
            setfacl("-m", change, path)
            await fs.setxattr(ino, acl.ACCESS, os.getxattr(path, acl.ACCESS), 0, ROOT)
            same()
            path.chmod(0o751)
            await fs.setattr(ino, SetAttr(mode=0o751), ROOT)
            same()
        minimal = acl.build([AclEntry(t, 5, UNDEFINED) for t in (USER_OBJ, GROUP_OBJ, OTHER)])
        os.setxattr(path, acl.ACCESS, minimal)
        await fs.setxattr(ino, acl.ACCESS, minimal, 0, ROOT)
        same()


async def test_a_default_acl_belongs_to_directories_only(tmp_path: Path) -> None:
    value = acl.build([AclEntry(t, 5, UNDEFINED) for t in (USER_OBJ, GROUP_OBJ, OTHER)])
    async with opened(tmp_path) as volume:
        fs = volume.fs
        handle, inode = await fs.create(1, b"f", 0o640, os.O_RDWR, ROOT)
        await fs.release(handle)
        with pytest.raises(Refused) as no:
            await fs.setxattr(inode.ino, acl.DEFAULT, value, 0, ROOT)
        assert no.value.errno == errno.EACCES
