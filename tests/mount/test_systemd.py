"""The units are what systemd takes, and the service does what they promise it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.conftest import Processes
from tests.mount.machine import Machine, eventually, is_mounted

CONTRIB = Path(__file__).parents[2] / "contrib" / "systemd"
UNITS = sorted(
    path for path in CONTRIB.rglob("*") if path.suffix in (".service", ".mount", ".automount")
)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd's tools")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: str(path.relative_to(CONTRIB)))
def test_systemd_accepts(unit: Path, tmp_path: Path) -> None:
    for other in UNITS:
        if other.parent == unit.parent:
            # Where nothing is installed, some program has to stand in.
            text = other.read_text().replace("/usr/local/bin/megafs", sys.executable)
            text = text.replace("/bin/fusermount3", "/bin/true")
            (tmp_path / other.name).write_text(text)
    name = unit.name.replace("@.", "@cloud.")
    if name != unit.name:
        (tmp_path / unit.name).rename(tmp_path / name)
    scope = ["--user"] if unit.parent.name == "user" else []
    done = subprocess.run(
        ["systemd-analyze", *scope, "--man=no", "verify", str(tmp_path / name)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_LOG_LEVEL": "warning"},
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert complaints == []
    assert done.returncode == 0, done.stderr


def test_nothing_in_the_unit_hides_the_mount() -> None:
    """Each of these gives the service a mount namespace of its own (systemd.exec(5))."""
    text = (CONTRIB / "megafs@.service").read_text()
    settings = {
        line.partition("=")[0] for line in text.splitlines() if re.match(r"[A-Z]\w+=", line)
    }
    hiding = re.compile(
        r"Private|Protect|(ReadWrite|ReadOnly|Inaccessible|Exec|NoExec|Bind|BindReadOnly)Paths"
        r"|TemporaryFileSystem|MountFlags|MountImages|Root|DynamicUser|Extension"
    )
    assert [name for name in settings if hiding.match(name)] == []
    assert {"NoNewPrivileges", "CapabilityBoundingSet", "SystemCallFilter"} <= settings


def exec_start(environ: dict[str, str]) -> list[str]:
    """ExecStart= of the service, as systemd would run it."""
    text = (CONTRIB / "megafs@.service").read_text()
    line = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert line is not None
    words = [re.sub(r"\$\{(\w+)\}", lambda m: environ[m[1]], word) for word in shlex.split(line[1])]
    assert words[0] == "/usr/local/bin/megafs"
    return [sys.executable, "-m", "megafs", *words[1:]]


@pytest.mark.fuse
def test_the_service_as_systemd_runs_it(volume: Machine, place: Path, processes: Processes) -> None:
    credentials = place / "credentials"
    credentials.mkdir()
    (credentials / "megafs.passphrase").write_text(volume.environ.pop("MEGAFS_PASSPHRASE"))
    (credentials / "megafs.passphrase").chmod(0o400)
    environ = {
        **volume.environ,
        "MEGAFS_URL": volume.url,
        "MEGAFS_MOUNTPOINT": str(volume.mnt),
        "MEGAFS_OPTIONS": "",
        "CREDENTIALS_DIRECTORY": str(credentials),
        "NOTIFY_SOCKET": str(place / "n"),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(environ["NOTIFY_SOCKET"])
        manager.settimeout(30)
        service = processes.start(
            *exec_start(environ), env=environ, start_new_session=True, stderr=subprocess.DEVNULL
        )
        told = manager.recv(4096).decode()
        assert "READY=1" in told.split("\n")
        # Usable at the very moment that systemd starts what comes after.
        (volume.mnt / "f").write_bytes(os.urandom(1 << 20))

        store = Path(volume.url.removeprefix("file://"))
        store.rename(store.with_name("away"))
        (volume.mnt / "g").write_text("x")
        service.send_signal(signal.SIGTERM)
        told = manager.recv(4096).decode()
        assert "STOPPING=1" in told.split("\n")
        assert re.search(r"^EXTEND_TIMEOUT_USEC=\d+$", told, re.MULTILINE)
        assert re.search(r"^STATUS=sending \d+ bytes", told, re.MULTILINE)
        store.with_name("away").rename(store)
        assert service.wait(60) == 0
    eventually(lambda: not is_mounted(volume.mnt))


@pytest.mark.fuse
def test_lines_for_the_journal_carry_their_priority(
    volume: Machine, place: Path, processes: Processes
) -> None:
    with (place / "journal").open("w+") as journal:
        found = os.fstat(journal.fileno())
        environ = {**volume.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        service = processes.start(
            *volume.command("mount", "--foreground", volume.url, volume.mnt),
            env=environ,
            stderr=journal,
        )
        eventually(lambda: "mounted" in (place / "journal").read_text())
        service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0
    lines = (place / "journal").read_text().splitlines()
    assert all(re.match("<[3-7]>megafs", line) for line in lines), lines
    assert any(line.startswith("<4>") and "SIGTERM" in line for line in lines)
