"""Two machines on one volume in a Dropbox, through /dev/fuse."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.proxy import Proxy, Reset, ThreadedProxy
from tests.mount.machine import eventually
from tests.services.dropbox.machines import DropboxMachine
from tests.services.dropbox.server import DropboxService

pytestmark = pytest.mark.fuse

#: Files that each machine creates.
CREATES = int(os.environ.get("DROPBOX_CREATES", "10"))


@pytest.fixture
def dropbox() -> Iterator[DropboxService]:
    with DropboxService() as service:
        yield service


@pytest.fixture
def machines(place: Path, dropbox: DropboxService) -> Iterator[list[DropboxMachine]]:
    """Two machines, logged in; their mounts are killed at the end if need be."""
    made = [DropboxMachine(place, name, dropbox) for name in ("a", "b")]
    yield made
    for machine in made:
        machine.kill()


def fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def test_two_machines_write_and_see_each_other(
    machines: list[DropboxMachine], dropbox: DropboxService
) -> None:
    machines[0].format()
    for machine in machines:
        machine.mount("-o", "sync_interval=1s")
    # Whoever comes while another has the account's lock is refused.
    dropbox.account.write_seconds, dropbox.account.most_waiting = 0.002, 0
    dropbox.retry_after = "0"
    data = os.urandom(3 << 20)
    (machines[0].mnt / "large").write_bytes(data)

    def create(machine: DropboxMachine) -> None:
        for i in range(CREATES):
            path = machine.mnt / f"{machine.place.name}{i}"
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(fd, path.name.encode())
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
    for machine in machines:
        machine.umount()
    assert all(path.startswith("/home/") for path in dropbox.account.files())


def test_lost_answers_lose_and_double_nothing(place: Path, dropbox: DropboxService) -> None:
    with ThreadedProxy(dropbox.url) as proxy:
        machine = DropboxMachine(place, "a", dropbox, proxy.endpoint)
        try:
            machine.format()
            machine.mount()
            proxy.tell(Proxy.weather, 11, [(0.2, Reset(after_done=True)), (0.1, Reset())])
            for i in range(15):
                (machine.mnt / str(i)).write_bytes(b"%d" % i * 300)
                fsync(machine.mnt / str(i))
            proxy.tell(Proxy.heal)
            machine.umount()
            machine.mount()
            assert {p.name: p.read_bytes() for p in machine.mnt.iterdir()} == {
                str(i): b"%d" % i * 300 for i in range(15)
            }
            assert any(fault for _, fault in proxy.proxy.seen)
            machine.umount()
        finally:
            machine.kill()


def test_a_full_account_is_enospc_and_nothing_is_lost(
    machines: list[DropboxMachine], dropbox: DropboxService
) -> None:
    one, two = machines
    one.format()
    one.mount("-o", "deadline=3s")
    kept = os.urandom(300_000)
    dropbox.account.quota = dropbox.account.used + 1000
    (one.mnt / "kept").write_bytes(kept)
    with pytest.raises(OSError) as refused:
        fsync(one.mnt / "kept")
    assert refused.value.errno == errno.ENOSPC
    assert (one.mnt / "kept").read_bytes() == kept
    eventually(lambda: "insufficient_space" in one.status()["store"]["last_error"])
    dropbox.account.quota = None

    def is_stored() -> bool:
        try:
            fsync(one.mnt / "kept")
        except OSError:
            return False
        return True

    eventually(is_stored, within=60)
    one.umount()
    two.mount()
    assert (two.mnt / "kept").read_bytes() == kept
    two.umount()


def test_an_access_that_ends_is_renewed_and_one_that_is_revoked_waits_for_a_login(
    machines: list[DropboxMachine], dropbox: DropboxService
) -> None:
    one, _ = machines
    one.format()
    one.mount("-o", "deadline=2s")
    dropbox.expire()
    (one.mnt / "renewed").write_text("yes")
    fsync(one.mnt / "renewed")
    assert dropbox.requests["oauth2/token"] == 1

    dropbox.revoke()
    (one.mnt / "waits").write_text("for a login")
    with pytest.raises(OSError):
        fsync(one.mnt / "waits")
    assert (one.mnt / "waits").read_text() == "for a login"
    assert (one.mnt / "renewed").read_text() == "yes"
    eventually(lambda: "megafs login dropbox:/home" in one.status()["store"]["login"])
    shown = json.dumps(one.status()) + Path(f"/proc/{one.pid}/cmdline").read_text()
    one.log_in()

    def is_stored() -> bool:
        try:
            fsync(one.mnt / "waits")
        except OSError:
            return False
        return True

    eventually(is_stored, within=60)
    assert one.status()["store"]["login"] == ""
    one.umount()
    log = "".join(path.read_text() for path in (one.place / "state").rglob("*.log"))
    for secret in (*dropbox.tokens, *dropbox.refresh_tokens):
        assert secret not in shown and secret not in log


def test_the_next_mount_asks_for_what_has_changed_only(
    machines: list[DropboxMachine], dropbox: DropboxService
) -> None:
    one, _ = machines
    one.format()
    for i in range(2):
        one.mount()
        (one.mnt / str(i)).write_text("x")
        fsync(one.mnt / str(i))
        one.umount()
    before = dropbox.requests.copy()
    one.mount()
    asked = dropbox.requests - before
    assert asked["files/list_folder"] <= 1  # of a folder that was not there yet
    assert asked["files/list_folder/continue"] >= 1
    one.umount()


def test_not_logged_in_is_one_line(place: Path, dropbox: DropboxService) -> None:
    machine = DropboxMachine(place, "a", dropbox)
    for login in (machine.place / "state" / "logins").iterdir():
        login.unlink()
    said = machine.run("format", machine.url, *machine.options, code=13).stderr
    assert "megafs login dropbox:/home" in said.splitlines()[-1]
    for wrong in ("https://api.dropboxapi.com", "http://192.0.2.1:80", "http://127.0.0.1/x"):
        said = machine.run("format", machine.url, "-o", f"api={wrong}", code=2).stderr
        assert "api= is for tests" in said


def test_another_machines_file_shows_within_a_second(
    machines: list[DropboxMachine], dropbox: DropboxService
) -> None:
    one, two = machines
    one.format()
    for machine in machines:
        machine.mount("-o", "sync_interval=60s")  # so that only the news can be what wakes
    eventually(lambda: dropbox.polls >= 2)
    taken = []
    for i in range(5):
        (one.mnt / str(i)).write_text("x")
        fsync(one.mnt / str(i))
        begun = time.monotonic()
        eventually(lambda i=i: str(i) in os.listdir(two.mnt), within=20)
        taken.append(time.monotonic() - begun)
    assert sorted(taken)[2] < 1.5, taken
    for machine in machines:
        machine.umount()
