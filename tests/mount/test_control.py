"""The control socket: closed to others, and not to be confused."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from megafs import logs
from megafs.errors import Busy, MountFailed
from megafs.mount import control_client
from tests.mount.machine import Machine


def exchange(path: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.settimeout(10)
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        heard = b""
        while piece := connection.recv(65536):
            heard += piece
    return heard


@pytest.mark.fuse
def test_nonsense_is_answered_and_forgotten(volume: Machine) -> None:
    volume.mount()
    (card,) = control_client.cards(volume.place / "run")
    for data in (b"", b"\n", b"{}\n", b"[]\n", b"x" * 200_000, b'{"op": 7}\n', b"\xff\n"):
        try:
            assert "error" in json.loads(exchange(card.socket_path, data))
        except ConnectionResetError:  # hung up on before it had said all of it
            assert len(data) > 65536
    assert volume.status()["state"] == "mounted"
    assert stat.S_IMODE(os.stat(card.directory).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(card.socket_path).st_mode) == 0o600
    volume.umount()


@pytest.mark.fuse
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_other_users_are_not_answered(volume: Machine) -> None:
    volume.mount()
    (card,) = control_client.cards(volume.place / "run")
    # Even if they could reach the socket.
    program = (
        "import socket, os\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(os.environ['S'])\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "t = socket.socket(socket.AF_UNIX)\n"
        "try: t.connect(os.environ['S'])\n"
        "except PermissionError: print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "S": str(card.socket_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "refused\n"

    os.chmod(card.socket_path, 0o666)
    os.chmod(card.directory, 0o711)
    program = (
        "import socket, os, sys\n"
        "os.chdir(sys.argv[1])\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "t = socket.socket(socket.AF_UNIX); t.connect(sys.argv[2])\n"
        "print(t.recv(9999).decode())\n"  # refused without being asked anything
    )
    done = subprocess.run(
        [sys.executable, "-c", program, card.directory, card.socket_path.name],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "another user's" in done.stdout
    os.chmod(card.directory, 0o700)
    volume.umount()


def test_a_directory_that_is_not_ours_is_not_used(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "link").symlink_to(other)
    with pytest.raises(MountFailed, match="not a directory of yours"):
        control_client.make_runtime_dir(tmp_path / "link")
    if os.geteuid() == 0:
        os.chown(other, 65534, 65534)
        with pytest.raises(MountFailed, match="not a directory of yours"):
            control_client.make_runtime_dir(other)
    loose = tmp_path / "loose"
    loose.mkdir(mode=0o755)
    control_client.make_runtime_dir(loose)
    assert stat.S_IMODE(loose.stat().st_mode) == 0o700


def test_where_sockets_lie(tmp_path: Path) -> None:
    own = os.geteuid()
    assert control_client.runtime_dir({"MEGAFS_RUNTIME_DIR": "/x"}) == Path("/x")
    if own == 0:
        assert control_client.runtime_dir({"XDG_RUNTIME_DIR": str(tmp_path)}) == Path("/run/megafs")
        assert control_client.runtime_dir({}, uid=12345) == Path("/tmp/megafs-12345")


def test_an_error_arrives_as_what_it_was() -> None:
    busy = control_client.told(control_client.error_message(ExceptionGroup("g", [Busy("in use")])))
    assert isinstance(busy, Busy)
    assert (str(busy), busy.exit_code) == ("in use", 19)
    bug = control_client.told(control_client.error_message(KeyError("x")))
    assert (str(bug), bug.exit_code) == ("KeyError: 'x'", 1)


@pytest.mark.parametrize(
    "line",
    [
        "GET https://b.s3/x?X-Amz-Signature=0123abcd&X-Amz-Expires=3",
        "headers: {'Authorization': 'AWS4-HMAC-SHA256 Credential=AK/x, Signature=0123abcd'}",
        "AWS_SECRET_ACCESS_KEY=0123abcd",
        "https://user:0123abcd@host/path",
        '{"access_token": "0123abcd"}',
        "key 0123-ABCD-QXYP-YNWM-JTMP-GP3V-TEEC-WBEX-ANPC-WKYD-SAED-SVM5-6Z2Q-2WQQ",
    ],
)
def test_logs_hold_no_secrets(line: str) -> None:
    shown = logs.redacted(f"before {line}")
    assert "0123" not in shown
    assert shown.startswith("before ")
    assert "[redacted]" in shown
