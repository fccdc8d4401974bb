"""`megafs get` of folders, and of an account; the tree that is kept is taken up again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megafs.mega.session import MegaSession
from megafs.stores.login.credentials import FILE, CredentialStore
from megafs.stores.login.kinds import LoginKey
from tests.mega.conftest import MAIL, PASSWORD, Run
from tests.services.mega.server import MegaServer, Owner

MTIME = 1_500_000_000
CONTENT = os.urandom(700_000)
WANTED = {"2013": None, "2013/cat.jpg": CONTENT, "2013/empty": b"", "list.txt": b"list"}


@pytest.fixture
def folder(owner: Owner) -> str:
    owner.put("/Pictures/2013/cat.jpg", CONTENT, mtime=MTIME)
    owner.put("/Pictures/2013/empty", b"", mtime=MTIME)
    owner.put("/Pictures/list.txt", b"list", mtime=MTIME + 1)
    owner.put("/private", b"private")
    return owner.link(owner.folder("/Pictures"))


@pytest.fixture
def login(owner: Owner, environ: dict[str, str]) -> None:
    account = owner.account
    session = MegaSession(owner.session(), account.master, account.handle, account.mail)
    directory = Path(environ["MEGAFS_STATE_DIR"]) / "logins"
    CredentialStore(directory, {}).put(LoginKey("mega"), session.text(), keep=FILE)


def found(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): None if path.is_dir() else path.read_bytes()
        for path in directory.rglob("*")
    }


def test_a_folder_is_fetched_as_a_tree(
    run: Run, folder: str, tmp_path: Path, mega: MegaServer
) -> None:
    done = run("get", folder)
    assert done.returncode == 0, done.stderr
    assert b"3 files, each verified" in done.stderr
    assert found(tmp_path / "Pictures") == WANTED
    assert int((tmp_path / "Pictures/2013/cat.jpg").stat().st_mtime) == MTIME
    (tmp_path / "Pictures/list.txt").unlink()
    asked = len(mega.ranges)
    again = run("get", folder)
    assert b"2 of them there already" in again.stderr and len(mega.ranges) == asked + 1
    assert found(tmp_path / "Pictures") == WANTED


def test_a_folder_is_listed(run: Run, folder: str, mega: MegaServer, tmp_path: Path) -> None:
    shown = run("get", "--list", folder).stdout.decode()
    assert "2013/cat.jpg" in shown and "700 kB" in shown and "private" not in shown
    assert not mega.ranges and not (tmp_path / "Pictures").exists()
    assert b'"path": "2013/"' in run("get", "--list", "--json", folder).stdout


def test_what_lies_within_a_folder(run: Run, folder: str, owner: Owner, tmp_path: Path) -> None:
    inside = owner.folder("/Pictures/2013")
    assert run("get", f"{folder}/folder/{inside.handle}", "year").returncode == 0
    assert found(tmp_path / "year") == {"cat.jpg": CONTENT, "empty": b""}
    child = owner.state.children[inside.handle][0]
    assert run("get", f"{folder}/file/{child}", "cat").returncode == 0
    assert (tmp_path / "cat").read_bytes() == CONTENT
    gone = run("get", f"{folder}/file/AAAAAAAA")
    assert gone.returncode == 16 and gone.stderr.count(b"\n") == 1


def test_one_file_of_a_folder_is_not_genuine(
    run: Run, folder: str, owner: Owner, mega: MegaServer, tmp_path: Path
) -> None:
    mega.tampered.add(owner.state.children[owner.folder("/Pictures/2013").handle][0])
    done = run("get", folder)
    assert done.returncode == 16 and b"2013/cat.jpg" in done.stderr
    assert not (tmp_path / "Pictures/2013/cat.jpg").exists()


def test_a_name_that_is_a_path_stays_inside(run: Run, owner: Owner, tmp_path: Path) -> None:
    top = owner.folder("/top")
    for name in ("../../outside", "..", "/etc/outside"):
        owner.put_in(top, name, b"x")
    assert run("get", owner.link(top), "in").returncode == 0
    assert not (tmp_path.parent / "outside").exists()
    assert len(list((tmp_path / "in").iterdir())) == 3


@pytest.mark.usefixtures("folder", "login")
def test_an_account(run: Run, owner: Owner, tmp_path: Path, mega: MegaServer) -> None:
    assert run("get", "mega:/Pictures", "in").returncode == 0
    assert found(tmp_path / "in") == WANTED
    owner.put("/Pictures/new", b"new")
    assert run("get", "mega:/Pictures/new").returncode == 0
    assert (tmp_path / "new").read_bytes() == b"new"
    # The tree was kept, and brought up to date through the feed.
    assert mega.commands.count("f") == 1 and mega.logins == 0
    assert run("get", "mega:").returncode == 0
    assert (tmp_path / "MEGA" / "private").read_bytes() == b"private"


def test_from_login_to_logout(run: Run, owner: Owner, mega: MegaServer, tmp_path: Path) -> None:
    owner.put("/file", b"mine")
    wrong = run("login", "--keep", "file", "mega:", stdin=f"{MAIL}\nwrong\n")
    assert wrong.returncode == 13 and b"does not take" in wrong.stderr
    done = run("login", "--keep", "file", "mega:", stdin=f"{MAIL}\n{PASSWORD}\n")
    assert done.returncode == 0, done.stderr
    for _ in range(3):
        assert run("get", "mega:/file").returncode == 0
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert mega.logins == 2 and len(mega.state.sessions) == 1
    for kept in (tmp_path / "home").rglob("*"):
        if kept.is_file():
            assert PASSWORD.encode() not in kept.read_bytes()
    assert run("logout", "mega:").returncode == 0
    assert not mega.state.sessions
    assert run("get", "mega:/file").returncode == 13


def test_without_a_login(run: Run) -> None:
    done = run("get", "mega:/Pictures")
    assert done.returncode == 13 and b"megafs login mega:" in done.stderr


@pytest.mark.usefixtures("folder", "login")
def test_a_session_that_has_ended(run: Run, mega: MegaServer) -> None:
    mega.expire_sessions()
    done = run("get", "mega:/Pictures")
    assert done.returncode == 13 and b"has ended: megafs login mega:" in done.stderr
    assert done.stderr.count(b"\n") == 1
