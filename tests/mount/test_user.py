"""The same for a user who is not root: fusermount3 mounts, and root is kept out."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from megafs.mount import mount_record
from tests.mount.conftest import mounts_below
from tests.mount.machine import Machine, is_mounted
from tests.mount.machine_wide import device_for_all

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("setpriv") is None, reason="becomes another user"
    ),
]

# fusermount3 wants a user with a name.
NOBODY = pwd.getpwnam("nobody")
UID, GID = NOBODY.pw_uid, NOBODY.pw_gid


class User(Machine):
    """A machine as one of its users has it."""

    def command(self, *args: str | Path) -> list[str]:
        # The interpreter may lie where only root looks.
        caps = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
        become = ["setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups", *caps]
        return [*become, *super().command(*args)]

    def run(self, *args: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
        return super().run(*args, **more)


@pytest.fixture
def device() -> Iterator[None]:
    """/dev/fuse open to everybody."""
    with device_for_all():
        yield


@pytest.fixture
def user(device: None) -> Iterator[User]:
    place = Path(tempfile.mkdtemp(prefix="megafs-user-"))
    made = User(place)
    made.environ["HOME"] = str(place)
    for path in (place, made.place, made.mnt):
        os.chown(path, UID, UID)
    try:
        made.format()
        yield made
    finally:
        made.kill()
        for point in mounts_below(place):
            subprocess.run(["umount", "-l", point], check=False)
        # One that was unmounted is still putting its files away.
        made.end()
        shutil.rmtree(place)


def test_mount_use_umount(user: User) -> None:
    user.mount()
    assert is_mounted(user.mnt)
    with pytest.raises(PermissionError):  # of root, by FUSE's rule
        os.listdir(user.mnt)
    script = 'cd "$1" && echo kept > f && mkdir d && cat f && stat -c %u f'
    done = subprocess.run(
        ["sh", "-c", script, "sh", user.mnt],
        user=UID,
        group=GID,
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["kept", str(UID)]
    assert user.status()["state"] == "mounted"
    user.umount()
    assert not is_mounted(user.mnt)


def test_memory_is_closed_to_others_of_the_same_user(user: User) -> None:
    user.mount()
    assert os.stat(f"/proc/{user.pid}/mem").st_uid == 0
    user.umount()


def test_umounted_with_fusermount3(user: User) -> None:
    user.mount()
    subprocess.run(["fusermount3", "-u", user.mnt], user=UID, group=GID, cwd="/", check=True)
    assert not is_mounted(user.mnt)


def test_killed_and_mounted_again(user: User) -> None:
    user.mount()
    user.kill()
    user.mount()
    assert user.status()["state"] == "mounted"
    user.umount()


def test_allow_other_needs_permission(user: User) -> None:
    conf = Path("/etc/fuse.conf")
    if conf.exists() and "\nuser_allow_other" in "\n" + conf.read_text():
        pytest.skip("this machine allows it")
    assert "user_allow_other" in user.mount("-o", "allow_other", code=32).stderr


def test_a_directory_of_somebody_else(user: User) -> None:
    os.chown(user.mnt, 0, 0)
    assert "not yours to write" in user.mount(code=32).stderr


def test_root_sees_and_unmounts_it(user: User) -> None:
    # Root looks where a user's sockets lie unless something else is set.
    for name in ("MEGAFS_RUNTIME_DIR", "XDG_RUNTIME_DIR"):
        user.environ.pop(name, None)
    user.mount()
    done = subprocess.run(
        Machine.command(user, "status", user.mnt),
        env=user.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "mounted" in done.stdout, done.stderr
    subprocess.run(Machine.command(user, "umount", user.mnt), env=user.environ, check=True)
    assert not is_mounted(user.mnt)
    with suppress(OSError):  # other mounts of that user are there, too
        mount_record.runtime_dir({}, UID).rmdir()


def test_suid_and_dev_are_for_root(user: User) -> None:
    """Said and ignored, as fusermount3 does."""
    said = user.mount("-o", "suid,dev").stderr
    assert "option suid is for root: ignored" in said
    assert "option dev is for root: ignored" in said
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    (options,) = [line.split()[5] for line in table if f" {user.mnt} " in line]
    assert {"nosuid", "nodev"} <= set(options.split(","))
    user.umount()
