"""An entry of fstab with `user`: mount(8) runs mount.megafs as whoever asked, without rights."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import Processes
from tests.mount.machine import PASSPHRASE
from tests.mount.namespace import Namespace
from tests.mount.test_user import UID, User, device

__all__ = ["device"]

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("setpriv") is None, reason="becomes another user"
    ),
]

#: All that the user's programs have in their environment: no HOME, and nothing of megafs.
ENVIRON = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


@pytest.fixture
def place(device: None) -> Iterator[Path]:
    """A directory of the user's; pytest's own are closed to others."""
    made = Path(tempfile.mkdtemp(prefix="megafs-user-"))
    os.chown(made, UID, UID)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def user(place: Path) -> Iterator[User]:
    made = User(place)
    made.environ["HOME"] = str(place)
    for path in (made.place, made.mnt):
        os.chown(path, UID, UID)
    made.format()
    yield made


def test_a_user_without_home_in_the_environment(
    user: User, place: Path, processes: Processes
) -> None:
    home = user.place / "home"
    config = home / ".config" / "megafs" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[mount]\nfsname = "as the file says"\n')
    passphrase = home / "passphrase"
    passphrase.write_text(PASSPHRASE)
    for path in (home, passphrase):
        os.chown(path, UID, UID)
    entry = pwd.getpwuid(UID)
    name = entry.pw_name
    lines = Path("/etc/passwd").read_text().splitlines()
    others = [line for line in lines if not line.startswith(f"{name}:")]
    itself = f"{name}:x:{UID}:{entry.pw_gid}::{home}:/bin/sh"
    namespace = Namespace(
        place,
        processes,
        fstab=f"{user.url} {user.mnt} megafs user,noauto,passphrase_file={passphrase} 0 0\n",
        passwd="\n".join([*others, itself, ""]),
        for_users=True,
    )
    become = ["setpriv", f"--reuid={UID}", f"--regid={entry.pw_gid}", "--clear-groups"]
    namespace.run(ENVIRON, *become, "mount", user.mnt)
    assert namespace.is_mounted(user.mnt)
    source = namespace.run(ENVIRON, "findmnt", "-no", "SOURCE", user.mnt).stdout
    assert source == "as%20the%20file%20says\n"
    namespace.run(ENVIRON, *become, "touch", user.mnt / "made")
    assert list((home / ".local/state/megafs").iterdir())
    assert list((home / ".cache/megafs").iterdir())
    assert namespace.run(ENVIRON, *become, "ls", user.mnt).stdout == "made\n"
    assert "denied" in namespace.run(ENVIRON, "ls", user.mnt, code=2).stderr  # for root
    namespace.run(ENVIRON, *become, "umount", user.mnt)
    assert not namespace.is_mounted(user.mnt)
