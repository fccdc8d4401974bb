"""Mounts of MEGA's files through /dev/fuse: an account's, and those of links."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megafs.mega.session import MegaSession
from megafs.stores.login.credentials import FILE, CredentialStore
from megafs.stores.login.kinds import LoginKey
from tests.services.mega import reference
from tests.services.mega.server import MegaServer, Owner

pytestmark = pytest.mark.fuse

MTIME = 1_600_000_000
CONTENT = random.Random(5).randbytes(3_000_001)
WITHIN = 30.0


class Machine:
    """One machine's megafs, as a program."""

    def __init__(self, mega: MegaServer, environ: dict[str, str], place: Path) -> None:
        self.mega = mega
        self.environ = environ
        self.at = place / "mnt"
        self.at.mkdir()
        self.mounted = False

    def run(self, *args: str | Path, stdin: str = "") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "megafs", *map(str, args)],
            env=self.environ,
            input=stdin.encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )

    def mount(
        self, what: str, options: str = "", **more: str
    ) -> subprocess.CompletedProcess[bytes]:
        chosen = ",".join(["api=" + self.mega.url, *filter(None, [options])])
        done = self.run("mount", what, self.at, "-o", chosen, **more)
        self.mounted = self.mounted or not done.returncode
        return done

    def umount(self) -> None:
        done = self.run("umount", self.at)
        assert done.returncode == 0, done.stderr
        self.mounted = False

    def status(self) -> dict[str, object]:
        found = json.loads(self.run("status", "--json", self.at).stdout)
        assert isinstance(found, dict)
        return found

    def keep_login(self, owner: Owner, sid: str | None = None) -> str:
        """What `megafs login mega:` leaves behind."""
        account = owner.account
        session = MegaSession(sid or owner.session(), account.master, account.handle, account.mail)
        directory = Path(self.environ["MEGAFS_STATE_DIR"]) / "logins"
        CredentialStore(directory, {}).put(LoginKey("mega"), session.text(), keep=FILE)
        return session.sid

    def end(self) -> None:
        if self.mounted:
            self.run("umount", "--force", self.at)


@pytest.fixture
def machine(mega: MegaServer, environ: dict[str, str], tmp_path: Path) -> Iterator[Machine]:
    made = Machine(mega, environ, tmp_path)
    try:
        yield made
    finally:
        made.end()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def contents(directory: Path) -> dict[str, bytes]:
    """By path; directories end in a slash."""
    return {
        str(path.relative_to(directory)) + ("/" if path.is_dir() else ""): (
            b"" if path.is_dir() else path.read_bytes()
        )
        for path in directory.rglob("*")
    }


def test_an_account(machine: Machine, mega: MegaServer, owner: Owner, tmp_path: Path) -> None:
    """Listing, reads of every kind, cold and warm, what the disk shows, the feed, the end."""
    big = owner.put("/a/big.bin", CONTENT, mtime=MTIME)
    owner.put("/a/b/small.txt", b"small and secret", mtime=MTIME + 1)
    owner.put("/strange/a\x00b/..", b"dots")
    nobody = machine.mount("mega:")
    assert nobody.returncode == 13 and b"megafs login mega:" in nobody.stderr
    machine.keep_login(owner)
    done = machine.mount("mega:")
    assert done.returncode == 0, done.stderr
    assert b"read-only" in done.stderr and b"not verified" in done.stderr

    at = machine.at
    assert sorted(os.listdir(at)) == ["a", "strange"]
    info = (at / "a" / "big.bin").stat()
    assert (info.st_size, int(info.st_mtime)) == (len(CONTENT), MTIME)
    assert contents(at / "strange") == {"a\u2400b/": b"", "a\u2400b/\uff0e\uff0e": b"dots"}

    chance = random.Random(1)
    with open(at / "a" / "big.bin", "rb") as file:
        for _ in range(60):
            start = chance.randrange(len(CONTENT) + 1000)
            size = chance.choice([1, 100, 4096, 200_000])
            file.seek(start)
            assert file.read(size) == CONTENT[start : start + size]
    assert (at / "a" / "big.bin").read_bytes() == CONTENT

    for change in (
        lambda: (at / "new").write_bytes(b"x"),
        lambda: (at / "a").rename(at / "c"),
        lambda: (at / "a" / "big.bin").unlink(),
    ):
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno == errno.EROFS

    # What another client does is seen without a question of ours.
    owner.put("/a/later.txt", b"later")
    until(lambda: (at / "a" / "later.txt").exists())
    assert (at / "a" / "later.txt").read_bytes() == b"later"
    owner.rename(big, "renamed.bin", MTIME)
    until(lambda: "renamed.bin" in os.listdir(at / "a"))
    until(lambda: not (at / "a" / "big.bin").exists())

    shown = machine.run("status", at).stdout.decode()
    assert "reads are not verified" in shown and "read-only" in shown
    status = machine.status()
    assert status["authenticated_ranges"] is False and status["feed"] == "live"
    machine.umount()

    # Nothing of it lies plain on the disk.
    home = tmp_path / "home"
    kept = [path for path in home.rglob("*") if path.is_file() and "logins" not in path.parts]
    assert any(path.stat().st_size > 100_000 for path in kept)
    for path in kept:
        data = path.read_bytes()
        assert b"small and secret" not in data and CONTENT[1000:1064] not in data
        assert b"small.txt" not in data and b"renamed.bin" not in data

    # Warm, and without a server: the tree and what was read are here.
    before = len(mega.ranges)
    mega.fail("sc", *[500] * 100)
    assert machine.mount("mega:").returncode == 0
    assert (at / "a" / "renamed.bin").read_bytes() == CONTENT
    assert len(mega.ranges) == before
    assert mega.logins == 0 and mega.commands.count("f") == 1
    machine.umount()

    # A cache that was changed is noticed, and what it held is fetched anew.
    for path in kept:
        if "ranges" in path.parts and path.parent.name in "0123456789abcdef":
            changed = bytearray(path.read_bytes())
            changed[len(changed) // 2] ^= 1
            path.write_bytes(changed)
    assert machine.mount("mega:/a").returncode == 0
    assert sorted(os.listdir(at)) == ["b", "later.txt", "renamed.bin"]
    assert (at / "renamed.bin").read_bytes() == CONTENT
    assert len(mega.ranges) > before
    machine.umount()


def test_a_link_to_a_folder(machine: Machine, mega: MegaServer, owner: Owner) -> None:
    owner.put("/Pictures/2013/cat.jpg", CONTENT[:500_000], mtime=MTIME)
    owner.put("/private", b"private")
    link = owner.link(owner.folder("/Pictures"))
    done = machine.mount(link)
    assert done.returncode == 0, done.stderr
    wanted = {"2013/": b"", "2013/cat.jpg": CONTENT[:500_000]}
    assert contents(machine.at) == wanted
    key = link.partition("#")[2]
    pid = machine.status()["pid"]
    for shown in (
        Path(f"/proc/{pid}/cmdline").read_bytes(),
        Path("/proc/mounts").read_bytes(),
        machine.run("status").stdout,
        done.stderr,
    ):
        assert key.encode() not in shown
    owner.put("/Pictures/2013/dog.jpg", b"dog")
    until(lambda: (machine.at / "2013" / "dog.jpg").exists())
    assert (machine.at / "2013" / "dog.jpg").read_bytes() == b"dog"
    machine.umount()

    # As `mount -a` does, which compares what is mounted with fstab.
    program = "import sys; from megafs.cli.mount_helper import main; main(sys.argv)"
    helper = [sys.executable, "-c", program, link, str(machine.at), "-v"]
    for said in (b"", b"is mounted at"):
        done = subprocess.run(
            [*helper, "-o", f"api={mega.url}"],
            env=machine.environ,
            capture_output=True,
            timeout=60,
            check=False,
        )
        machine.mounted = True
        assert done.returncode == 0 and said in done.stderr, done.stderr
        assert key.encode() not in done.stderr
    machine.umount()

    inside = owner.folder("/Pictures/2013").handle
    assert machine.mount(f"{link}/folder/{inside}").returncode == 0
    assert sorted(os.listdir(machine.at)) == ["cat.jpg", "dog.jpg"]
    machine.umount()


def test_links_that_are_not_mounted(machine: Machine, owner: Owner) -> None:
    link = owner.link(owner.put("/a/file", b"x"))
    file = machine.mount(link)
    assert file.returncode == 2 and b"megafs get fetches" in file.stderr
    public, _ = owner.link_parts(owner.folder("/a"))
    wrong = machine.mount(f"https://mega.nz/folder/{public}#{reference.b64(bytes(16))}")
    assert wrong.returncode == 12 and b"the key does not open this" in wrong.stderr
    secret = machine.run(
        "mount",
        owner.password_link(owner.folder("/a"), "open sesame"),
        machine.at,
        "-o",
        f"api={machine.mega.url}",
        "--passphrase-fd",
        "0",
        stdin="open sesame\n",
    )
    machine.mounted = True
    assert secret.returncode == 0, secret.stderr
    assert os.listdir(machine.at) == ["file"]
    machine.umount()


def test_the_transfer_quota(machine: Machine, mega: MegaServer, owner: Owner) -> None:
    owner.put("/read.bin", CONTENT[:300_000])
    owner.put("/unread.bin", CONTENT[:300_000])
    machine.keep_login(owner)
    assert machine.mount("mega:").returncode == 0
    assert (machine.at / "read.bin").read_bytes() == CONTENT[:300_000]
    mega.transfer_left = 600
    asked = len(mega.commands)
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            (machine.at / "unread.bin").read_bytes()
        assert caught.value.errno == errno.EDQUOT
    assert mega.commands.count("g") <= 2 and len(mega.commands) <= asked + 1
    assert (machine.at / "read.bin").read_bytes() == CONTENT[:300_000]
    assert "transfer quota used up" in machine.run("status", machine.at).stdout.decode()
    machine.umount()


def test_a_session_that_ends_and_comes_back(
    machine: Machine, mega: MegaServer, owner: Owner
) -> None:
    owner.put("/read.bin", CONTENT[:200_000])
    owner.put("/unread.bin", b"unread")
    machine.keep_login(owner)
    assert machine.mount("mega:").returncode == 0
    assert (machine.at / "read.bin").read_bytes() == CONTENT[:200_000]
    mega.expire_sessions()
    until(lambda: machine.status()["feed"] == "expired")
    assert (machine.at / "read.bin").read_bytes() == CONTENT[:200_000]
    with pytest.raises(PermissionError):
        (machine.at / "unread.bin").read_bytes()
    assert "megafs login mega:" in machine.run("status", machine.at).stdout.decode()
    machine.keep_login(owner)
    until(lambda: machine.status()["feed"] == "live")
    assert (machine.at / "unread.bin").read_bytes() == b"unread"
    assert mega.logins == 0
    machine.umount()


def test_other_parts_of_an_account(machine: Machine, mega: MegaServer, owner: Owner) -> None:
    other = mega.add_account("other@example.org", "x")
    other.put("/Shared/file", b"theirs")
    other.share_with(other.folder("/Shared"), owner)
    owner.move(owner.put("/old", b"old"), mega.state.root(owner.account, 4))
    machine.keep_login(owner)
    for part, wanted in (
        ("incoming", {"Shared/": b"", "Shared/file": b"theirs"}),
        ("rubbish", {"old": b"old"}),
    ):
        assert machine.mount("mega:", f"part={part}").returncode == 0
        assert contents(machine.at) == wanted
        machine.umount()
    bad = machine.mount("mega:", "part=all")
    assert bad.returncode == 2 and b"part= takes" in bad.stderr
    gone = machine.mount("mega:/no/such")
    assert gone.returncode == 16 and b"there is no /no/such" in gone.stderr.replace(
        b"no/such", b"/no/such"
    )
