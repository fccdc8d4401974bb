"""The control socket: closed to others, and not to be confused."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from megafs import logs
from megafs.errors import BadUsage, Busy, MegafsError, MountFailed, Refused
from megafs.mount import control_client, control_messages, mount_record
from megafs.mount.control_messages import (
    CacheClearRequest,
    CacheClearResult,
    DrainProgress,
    ErrorReply,
    FlushRequest,
    JobRequest,
    MetricsRequest,
    Reply,
    StatusRequest,
    UmountRequest,
)
from tests.mount.machine import Machine, eventually


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
    (record,) = mount_record.records(volume.place / "run")
    for data in (b"", b"\n", b"{}\n", b"[]\n", b"x" * 200_000, b'{"op": 7}\n', b"\xff\n"):
        try:
            assert "error" in json.loads(exchange(record.socket_path, data))
        except ConnectionResetError:  # hung up on before it had said all of it
            assert len(data) > 65536
    assert volume.status()["state"] == "mounted"
    assert stat.S_IMODE(os.stat(record.directory).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(record.socket_path).st_mode) == 0o600
    volume.umount()


@pytest.mark.fuse
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_other_users_are_not_answered(volume: Machine) -> None:
    volume.mount()
    (record,) = mount_record.records(volume.place / "run")
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
        env={**os.environ, "S": str(record.socket_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "refused\n"

    os.chmod(record.socket_path, 0o666)
    os.chmod(record.directory, 0o711)
    program = (
        "import socket, os, sys\n"
        "os.chdir(sys.argv[1])\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "t = socket.socket(socket.AF_UNIX); t.connect(sys.argv[2])\n"
        "print(t.recv(9999).decode())\n"  # refused without being asked anything
    )
    done = subprocess.run(
        [sys.executable, "-c", program, record.directory, record.socket_path.name],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "another user's" in done.stdout
    os.chmod(record.directory, 0o700)
    volume.umount()


def test_a_directory_that_is_not_ours_is_not_used(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "link").symlink_to(other)
    with pytest.raises(MountFailed, match="not a directory of yours"):
        mount_record.make_runtime_dir(tmp_path / "link")
    if os.geteuid() == 0:
        os.chown(other, 65534, 65534)
        with pytest.raises(MountFailed, match="not a directory of yours"):
            mount_record.make_runtime_dir(other)
    loose = tmp_path / "loose"
    loose.mkdir(mode=0o755)
    mount_record.make_runtime_dir(loose)
    assert stat.S_IMODE(loose.stat().st_mode) == 0o700


def test_where_sockets_lie(tmp_path: Path) -> None:
    own = os.geteuid()
    assert mount_record.runtime_dir({"MEGAFS_RUNTIME_DIR": "/x"}) == Path("/x")
    if own == 0:
        assert mount_record.runtime_dir({"XDG_RUNTIME_DIR": str(tmp_path)}) == Path("/run/megafs")
        assert mount_record.runtime_dir({}, uid=12345) == Path("/tmp/megafs-12345")


def test_an_error_arrives_as_what_it_was() -> None:
    busy = ErrorReply.of(ExceptionGroup("g", [Busy("in use")])).exception()
    assert isinstance(busy, Busy)
    assert (str(busy), busy.exit_code) == ("in use", 19)
    bug = ErrorReply.of(KeyError("x")).exception()
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


def _every_error() -> list[type[MegafsError]]:
    kinds, waiting = [], [MegafsError]
    while waiting:
        kind = waiting.pop()
        waiting.extend(kind.__subclasses__())
        if kind.__module__ == MegafsError.__module__:
            kinds.append(kind)
    return kinds


@pytest.mark.parametrize("kind", [k for k in _every_error() if k is not Refused])
def test_every_error_arrives_as_what_it_was(kind: type[MegafsError]) -> None:
    said = control_messages.encode_reply(Reply(error=ErrorReply.of(kind("no"))))
    error = control_messages.decode_reply(said).error

    assert isinstance(error, ErrorReply)
    assert type(error.exception()) is kind
    assert error.exception().exit_code == kind.exit_code


def test_an_error_that_only_the_other_release_has_keeps_its_exit_code() -> None:
    error = ErrorReply("too warm", 77, "TooWarm").exception()

    assert (str(error), error.exit_code) == ("too warm", 77)


@pytest.mark.parametrize(
    "request_",
    [
        StatusRequest(),
        UmountRequest(how="lazy"),
        FlushRequest(),
        CacheClearRequest(),
        MetricsRequest(),
        # A name that is not UTF-8.
        JobRequest(job="restore", args={"path": os.fsdecode(b"/a\xff"), "at": None}),
    ],
    ids=lambda request_: type(request_).__name__,
)
def test_a_request_arrives_as_it_was(request_: control_messages.Request) -> None:
    assert control_messages.decode_request(control_messages.encode_request(request_)) == request_


def test_the_first_release_is_understood() -> None:
    """It sent no version, and its mounts go on while megafs is upgraded."""
    told = control_messages.decode_request(b'{"op": "umount", "how": "force"}\n')

    assert told == UmountRequest(how="force")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"", "not a request"),
        (b"\xff", "not a request"),
        (b"[" * 60_000, "not a request"),
        (b"{}", "not a request"),
        (b'{"op": 7}', "not a request"),
        (b'{"op": "dance"}', "knows no operation 'dance'"),
        (b'{"op": "umount", "how": "never"}', r"Invalid enum value 'never' - at `\$.how`"),
        (b'{"op": "job"}', "missing required field `job`"),
        (b'{"op": "status", "version": 2}', "understands version 1 .*, not 2: use the megafs that"),
        (b'{"op": "dance", "version": 2}', "understands version 1 .*, not 2: use the megafs that"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_request_is_refused_in_one_line(line: bytes, says: str) -> None:
    with pytest.raises(BadUsage, match=says) as refused:
        control_messages.decode_request(line)
    assert "\n" not in str(refused.value)


class _Mount:
    """Answers one connection with *said*."""

    def __init__(self, directory: Path, said: bytes) -> None:
        self.record = mount_record.MountRecord("/mnt", "s3://b", 1, "x", str(directory))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.record.socket_path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._answer, args=(said,))
        self._thread.start()

    def _answer(self, said: bytes) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as lines:
            lines.readline()
            connection.sendall(said)

    def __enter__(self) -> mount_record.MountRecord:
        return self.record

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listener.close()


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\n",
        b"[]\n",
        b"{}\n",
        b'{"result": {}, "progress": {}}\n',
        b'{"result": 7}\n',
        b'{"result": {"before": "many", "after": 0}}\n',
        b'{"error": 7}\n',
        b"[" * 60_000 + b"\n",
    ],
    ids=lambda said: repr(said)[:30],
)
def test_a_mount_that_answers_nonsense_is_named(tmp_path: Path, said: bytes) -> None:
    with (
        _Mount(tmp_path, said) as record,
        pytest.raises(MountFailed, match="the mount at /mnt answered nonsense") as failed,
    ):
        control_client.ask(record, CacheClearRequest(), CacheClearResult)
    assert "\n" not in str(failed.value)


def test_progress_comes_before_the_result(tmp_path: Path) -> None:
    said = b"".join(
        control_messages.encode_reply(reply)
        for reply in (
            Reply(progress=DrainProgress(8, 2)),
            Reply(progress=DrainProgress(0, 1, "the store is away")),
            Reply(result=DrainProgress(0, 0)),
        )
    )
    heard: list[DrainProgress] = []
    with _Mount(tmp_path, said) as record:
        result = control_client.ask(
            record,
            FlushRequest(),
            DrainProgress,
            progress=control_client.listener(DrainProgress, heard.append),
        )

    assert heard == [DrainProgress(8, 2), DrainProgress(0, 1, "the store is away")]
    assert result == DrainProgress(0, 0)


@pytest.mark.fuse
def test_a_name_that_is_not_utf8_goes_through_the_socket(volume: Machine) -> None:
    volume.mount()
    name = os.fsencode(volume.mnt) + b"/\xff"
    with open(name, "wb", buffering=0) as file:
        file.write(b"1")
        os.fsync(file.fileno())  # commits it, so that the journal knows it
    os.unlink(name)
    eventually(lambda: not volume.status()["pending_operations"])
    volume.run("undelete", os.fsdecode(name))

    assert Path(os.fsdecode(name)).read_bytes() == b"1"
    volume.umount()
