"""Two machines on one volume in Google Drive, through /dev/fuse, against a server of its API."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from megafs.stores.gdrive.login_kind import gdrive_login
from megafs.stores.login.credentials import FILE, CredentialStore
from megafs.stores.login.grant import Grant
from megafs.stores.urls import Location
from tests.mount.machine import Machine, eventually
from tests.services.gdrive.server import DriveServer, ThreadedDrive

pytestmark = pytest.mark.fuse

CREATES = int(os.environ.get("GDRIVE_CREATES", "25"))


@pytest.fixture
def server() -> Iterator[DriveServer]:
    made = DriveServer()
    with ThreadedDrive(made):
        yield made


@pytest.fixture
def machines(place: Path, server: DriveServer) -> Iterator[list[Machine]]:
    """Two machines that have logged in; their mounts are killed at the end if need be."""
    made = [Machine(place, name, url="gdrive:/volumes/home") for name in ("a", "b")]
    for machine in made:
        log_in(machine, server)
    yield made
    for machine in made:
        machine.kill()


def log_in(machine: Machine, server: DriveServer) -> None:
    """As `megafs login` does."""
    login = gdrive_login(Location("", "/volumes/home"), {"endpoint": server.endpoint})
    token = next(iter(server.tokens))
    grant = Grant(token, server.refresh, client_id="ours", token_endpoint=login.token)
    kept = CredentialStore(machine.place / "state" / "logins", {})
    kept.put(login.key, grant.text, url=machine.url, keep=FILE)


def options(server: DriveServer, more: str = "sync_interval=1s") -> tuple[str, str]:
    return "-o", f"endpoint={server.endpoint},{more}"


def test_two_machines_write_and_see_each_other(
    machines: list[Machine], server: DriveServer
) -> None:
    one = machines[0]
    server.drive.list_lag, server.drive.change_lag = 1.0, 0.5
    one.format("-o", f"endpoint={server.endpoint}")
    for machine in machines:
        machine.mount(*options(server))
    data = os.urandom(9 << 20)
    (one.mnt / "large").write_bytes(data)

    def create(machine: Machine) -> None:
        for i in range(CREATES):
            path = machine.mnt / f"{machine.place.name}{i}"
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(fd, path.name.encode())
            if i % 5 == 0:
                os.fsync(fd)
            os.close(fd)

    writers = [threading.Thread(target=create, args=(machine,)) for machine in machines]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    names = {f"{name}{i}" for name in "ab" for i in range(CREATES)} | {"large"}
    for machine in machines:
        eventually(lambda m=machine: set(os.listdir(m.mnt)) == names, within=60)
        for name in names - {"large"}:
            assert (machine.mnt / name).read_text() == name
        assert (machine.mnt / "large").read_bytes() == data
        store = machine.status()["store"]
        assert store["names_with_several_files"] == 0
    for machine in machines:
        machine.umount()
    # Unmounting deletes the heartbeats, past the trash.
    assert not any(f.trashed for f in server.drive.files.values())
    assert not any(f.name.startswith("mounts/") for f in server.drive.files.values())
    files = [f.name for f in server.drive.files.values() if f.app_properties.get("megafs")]
    assert len(files) == len(set(files))


def test_a_full_account_is_said_and_nothing_is_lost(
    machines: list[Machine], server: DriveServer
) -> None:
    one, two = machines
    one.format("-o", f"endpoint={server.endpoint}")
    one.mount(*options(server, "deadline=3s"))
    kept = os.urandom(300_000)
    server.drive.limit = server.drive.usage
    with (one.mnt / "kept").open("wb", buffering=0) as file, pytest.raises(OSError) as refused:
        file.write(kept)
        os.fsync(file.fileno())
    assert refused.value.errno == errno.ENOSPC
    eventually(lambda: "account is full" in one.status()["store"]["last_error"])
    server.drive.limit = None

    def is_stored() -> bool:
        try:
            with (one.mnt / "kept").open("r+b", buffering=0) as file:
                file.write(kept)
                os.fsync(file.fileno())
        except OSError:
            return False
        return True

    eventually(is_stored, within=60)
    one.umount()
    two.mount(*options(server))
    assert (two.mnt / "kept").read_bytes() == kept
    two.umount()


def test_a_login_that_ends_and_comes_back(machines: list[Machine], server: DriveServer) -> None:
    one, two = machines
    said = one.run("mount", one.url, one.mnt, *options(server), code=14).stderr
    assert "megafs format makes it" in said
    one.format("-o", f"endpoint={server.endpoint}")
    one.mount(*options(server, "deadline=3s"))
    (one.mnt / "before").write_text("before")
    server.new_token()  # renewed in passing
    with (one.mnt / "renewed").open("w") as file:
        file.write("renewed")
        file.flush()
        os.fsync(file.fileno())
    server.refresh = "revoked"
    server.new_token()
    (one.mnt / "staged").write_text("staged")
    eventually(
        lambda: "megafs login gdrive:/volumes/home" in one.status()["store"]["last_error"],
        within=30,
    )
    assert (one.mnt / "before").read_text() == "before"  # what is here goes on
    shown = one.run("status").stdout + Path(f"/proc/{one.pid}/cmdline").read_text()
    assert "revoked" not in shown and not any(token in shown for token in server.tokens)
    server.refresh = "1//another"
    server.new_token()
    log_in(one, server)
    log_in(two, server)

    def is_stored() -> bool:
        fd = os.open(one.mnt / "staged", os.O_RDONLY)
        try:
            os.fsync(fd)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    eventually(is_stored, within=60)
    one.umount()
    two.mount(*options(server))
    for name in ("before", "renewed", "staged"):
        assert (two.mnt / name).read_text() == name
    two.umount()
