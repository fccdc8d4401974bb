"""Two machines on one volume, on each WebDAV server, through /dev/fuse."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.dav import KINDS, PASSWORD, USER, Dav
from tests.fakes.proxy import Answer, Proxy, ThreadedProxy
from tests.mount.machine import Machine, eventually

pytestmark = [pytest.mark.fuse, pytest.mark.webdav]


@pytest.fixture
def machines(place: Path) -> Iterator[list[Machine]]:
    """Two machines without a URL; their mounts are killed at the end if need be."""
    made = [Machine(place, name, url="nowhere:") for name in ("a", "b")]
    yield made
    for machine in made:
        machine.kill()


#: Files that each machine creates; `make dav-creates` has a thousand.
CREATES = int(os.environ.get("DAV_CREATES", "10"))


@pytest.mark.parametrize("kind", KINDS)
def test_two_machines_write_and_see_each_other(kind: str, machines: list[Machine]) -> None:
    with Dav(kind) as server:
        for machine in machines:
            machine.url = f"{server.url}/volumes/home"
        one = machines[0]
        one.format()
        way = (server.files / "volumes" / "home" / "exclusive.txt").read_text().strip()
        assert way == "move-folder"
        for machine in machines:
            machine.mount("-o", "sync_interval=1s")
        data = os.urandom(3 << 20)
        (one.mnt / "large").write_bytes(data)

        def create(machine: Machine) -> None:
            for i in range(CREATES):
                path = machine.mnt / f"{machine.place.name}{i}"
                fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                os.write(fd, path.name.encode())
                if CREATES <= 10 or i % 20 == 0:
                    os.fsync(fd)
                os.close(fd)

        writers = [threading.Thread(target=create, args=(machine,)) for machine in machines]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        names = {f"{name}{i}" for name in "ab" for i in range(CREATES)} | {"large"}
        for machine in machines:
            eventually(lambda m=machine: names <= set(os.listdir(m.mnt)), within=30 + CREATES)
            assert set(os.listdir(machine.mnt)) == names  # neither lost nor doubled
            for name in names - {"large"}:
                assert (machine.mnt / name).read_text() == name
            assert (machine.mnt / "large").read_bytes() == data
        assert one.status()["store"]["exclusive_create"] == way
        for machine in machines:
            machine.umount()


def test_a_password_comes_from_a_file_and_shows_nowhere(machines: list[Machine]) -> None:
    one, _ = machines
    secret = one.place / "password"
    secret.write_text(f"{PASSWORD}\n")
    secret.chmod(0o600)
    with Dav("apache", auth="digest") as server:
        one.url = f"{server.url}/v"
        said = one.run("format", one.url, code=13).stderr.splitlines()[-1]
        assert "user=" in said and "password_file=" in said
        options = ("-o", f"user={USER},password_file={secret}")
        one.format(*options)
        one.mount(*options)
        (one.mnt / "f").write_text("hello")
        shown = one.run("status").stdout + Path(f"/proc/{one.pid}/cmdline").read_text()
        assert PASSWORD not in shown
        one.umount()
        secret.write_text("wrong\n")
        said = one.run("mount", one.url, one.mnt, *options, code=13).stderr
        assert "app password" in said and "wrong\n" not in said
    said = one.run("format", f"webdav+http://{USER}:hunter2@127.0.0.1/v", code=2).stderr
    assert "credentials do not belong into the URL" in said and "hunter2" not in said
    assert len(said.splitlines()) == 1


def set_password(server: Dav, password: str) -> None:
    """Let USER in with another password; nginx reads the file at every request."""
    digest = base64.b64encode(hashlib.sha1(password.encode()).digest()).decode()
    (server.directory / "users").write_text(f"{USER}:{{SHA}}{digest}\n")


def test_a_login_that_ends_stops_nothing_and_comes_back(machines: list[Machine]) -> None:
    """Withdrawn at the service: files read, writes are staged, and one line says what to do."""
    one, _ = machines
    secret = one.place / "password"
    secret.touch(0o600)
    with Dav("nginx", auth="basic") as server:
        one.url = f"{server.url}/v"

        def log_in(password: str, code: int = 0) -> None:
            secret.write_text(password + "\n")
            one.run(*("login", one.url, "-o", f"user={USER}", "--password-file", secret), code=code)

        log_in(PASSWORD)
        one.format("-o", f"user={USER}")
        log = one.place / "log"
        one.mount("-o", f"user={USER},deadline=2s,log={log}")
        (one.mnt / "before").write_bytes(b"b" * 300_000)
        assert (one.mnt / "before").read_bytes() == b"b" * 300_000
        set_password(server, "another one")
        with (one.mnt / "after").open("wb", buffering=0) as file:
            file.write(b"a" * 300_000)
            with pytest.raises(OSError):
                os.fsync(file.fileno())
        assert (one.mnt / "before").read_bytes() == b"b" * 300_000
        assert (one.mnt / "after").read_bytes() == b"a" * 300_000
        advice = f"megafs login {one.url}"
        eventually(lambda: advice in one.status()["store"]["last_error"])
        assert advice in one.run("status", one.mnt).stdout
        log_in(PASSWORD, code=13)
        log_in("another one")
        eventually(lambda: one.status()["staged_bytes"] == 0, within=60)
        one.umount()
        lines = [line for line in log.read_text().splitlines() if advice in line]
        assert 1 <= len(lines) <= 3, lines
        assert PASSWORD not in log.read_text() and "another one" not in log.read_text()


def test_a_full_account_is_said_and_nothing_is_lost(machines: list[Machine]) -> None:
    one, two = machines
    with Dav("lighttpd") as server, ThreadedProxy(server.origin) as proxy:
        one.url = f"webdav+{proxy.endpoint}/dav/v"
        two.url = f"{server.url}/v"
        one.format()
        one.mount("-o", "deadline=3s")
        kept = os.urandom(300_000)
        proxy.tell(Proxy.always, Answer(507, body=b""), method="PUT")
        with (one.mnt / "kept").open("wb", buffering=0) as file:
            file.write(kept)
            with pytest.raises(OSError) as refused:
                os.fsync(file.fileno())
        assert refused.value.errno in (errno.EIO, errno.ENOSPC)
        assert (one.mnt / "kept").read_bytes() == kept
        eventually(lambda: "507" in one.status()["store"]["last_error"])
        proxy.tell(Proxy.heal)

        def is_stored() -> bool:
            fd = os.open(one.mnt / "kept", os.O_RDONLY)
            try:
                os.fsync(fd)
            except OSError:
                return False
            finally:
                os.close(fd)
            return True

        eventually(is_stored, within=60)
        one.umount()
        two.mount()
        assert (two.mnt / "kept").read_bytes() == kept
        two.umount()
