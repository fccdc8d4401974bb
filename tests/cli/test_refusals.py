"""What a new user does wrong is answered with one line that says what to do, and its exit code."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from tests.mount.machine import Machine

pytestmark = pytest.mark.fuse


def said(machine: Machine, *args: str | Path, code: int, **environ: str) -> str:
    """Run a command that must fail with *code*; return the one line on stderr."""
    done = machine.run(*args, code=code, environ=environ)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("megafs: ")
    assert done.stdout == ""
    return lines[0]


# -- the command line


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["mout"], "there is no command 'mout'; did you mean mount?"),
        (["frobnicate"], "there is no command 'frobnicate' (format, mount"),
        (["mount"], "missing argument 'URL'"),
        (["mount", "file:///x"], "missing argument 'MOUNTPOINT'"),
        (["mount", "--frgrnd", "a", "b"], "no such option"),
        (["format", "/srv/v"], "write file:///srv/v"),
        (["format", "ftp://x/y"], "no driver for ftp://"),
        (["format", "https://s3.example.org/b"], "s3://BUCKET/PREFIX and -o endpoint="),
        (["format", "s3://key:secret@b/p"], "credentials do not belong into the URL"),
        (["format", "file:///x", "--quota", "much"], "not a size: 'much'"),
        (["format", "file:///x", "--chunk-size", "100K"], "power of two"),
        (["format", "file:///x", "-o", "bucket=x"], "unknown option 'bucket'"),
        (["mount", "file:///x", "/tmp", "-o", "remount"], "cannot be changed while it runs"),
        (["umount", "/"], "what is mounted at / is not megafs"),
        (["status", "/proc"], "no megafs volume is mounted at /proc"),
        (["status", "--metrics"], "--metrics needs a MOUNTPOINT"),
        (["cache", "show", "/usr"], "no megafs volume is mounted at /usr"),
        (["cache", "show", "file:///never-mounted"], "was not mounted on this machine yet"),
    ],
)
def test_usage(machine: Machine, args: list[str], sentence: str) -> None:
    line = said(machine, *args, code=2)
    assert sentence in line
    assert "secret" not in line


# -- the mountpoint


def test_mountpoint_missing(volume: Machine) -> None:
    line = said(volume, "mount", volume.url, volume.place / "absent", code=32)
    assert f"{volume.place}/absent does not exist: mkdir" in line


def test_mountpoint_is_a_file(volume: Machine) -> None:
    (volume.place / "file").touch()
    line = said(volume, "mount", volume.url, volume.place / "file", code=32)
    assert "is not a directory" in line


def test_mountpoint_not_empty(volume: Machine) -> None:
    (volume.mnt / "mine").touch()
    line = said(volume, "mount", volume.url, volume.mnt, code=32)
    assert "is not empty, and what is in it would be hidden" in line
    volume.mount("-o", "nonempty")
    assert os.listdir(volume.mnt) == []
    volume.umount()
    assert os.listdir(volume.mnt) == ["mine"]


def test_mounted_already(volume: Machine) -> None:
    volume.mount()
    line = said(volume, "mount", volume.url, volume.mnt, code=18)
    assert f"{volume.mnt} is mounted already ({volume.url})" in line
    other = volume.place / "other"
    other.mkdir()
    line = said(volume, "mount", volume.url, other, code=19)
    assert "in use by process" in line
    volume.umount()


def test_not_mounted(volume: Machine) -> None:
    assert "nothing is mounted at" in said(volume, "umount", volume.mnt, code=2)
    assert "no megafs volume is mounted" in said(volume, "status", volume.mnt, code=2)
    assert volume.run("status").stderr == "megafs: nothing is mounted by this user\n"
    assert json.loads(volume.run("status", "--json").stdout) == []


# -- keys


def test_wrong_passphrase(volume: Machine) -> None:
    line = said(volume, "mount", volume.url, volume.mnt, code=12, MEGAFS_PASSPHRASE="geheim")
    assert "passphrase is wrong" in line
    assert "geheim" not in line


def test_no_passphrase_and_no_terminal(volume: Machine) -> None:
    del volume.environ["MEGAFS_PASSPHRASE"]
    line = said(volume, "mount", volume.url, volume.mnt, code=2)
    for way in ("--passphrase-file", "--passphrase-fd", "--passphrase-command", "LoadCredential"):
        assert way in line


def test_passphrase_file_missing_or_empty(volume: Machine) -> None:
    absent = volume.place / "absent"
    line = said(volume, "mount", volume.url, volume.mnt, "--passphrase-file", absent, code=2)
    assert f"{absent}: No such file" in line
    absent.touch(mode=0o600)
    line = said(volume, "mount", volume.url, volume.mnt, "--passphrase-file", absent, code=2)
    assert "the first line is empty" in line


def test_two_ways_at_once(volume: Machine) -> None:
    line = said(
        volume,
        *("mount", volume.url, volume.mnt, "--passphrase-fd", "0", "--passphrase-command", "true"),
        code=2,
    )
    assert "say only one of" in line


# -- the store


def test_nothing_there(machine: Machine, place: Path) -> None:
    line = said(machine, "mount", machine.url, machine.mnt, code=14)
    assert "is not there" in line
    (place / "store").mkdir()
    line = said(machine, "mount", machine.url, machine.mnt, code=10)
    assert "megafs format makes a new volume" in line
    (place / "store" / "photo").write_text("x")


def test_a_volume_is_there_already(volume: Machine) -> None:
    done = volume.run("format", volume.url, code=18)
    assert "holds a megafs volume already" in done.stderr.splitlines()[-1]


def test_no_network(machine: Machine) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    done = machine.run(
        *("mount", "s3://bucket/p", machine.mnt),
        *("-o", f"endpoint=http://127.0.0.1:{port},deadline=2s"),
        code=14,
        environ={"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
    )
    assert f"127.0.0.1:{port}" in done.stderr.splitlines()[-1]
    assert "Connection refused" in done.stderr.splitlines()[-1]
    assert all(line.startswith("megafs: ") for line in done.stderr.splitlines())


def test_no_credentials(machine: Machine) -> None:
    line = said(
        machine,
        *("mount", "s3://bucket/p", machine.mnt, "-o", "endpoint=http://127.0.0.1:1,deadline=2s"),
        code=13,
        HOME=str(machine.place),
        AWS_EC2_METADATA_DISABLED="true",
    )
    assert "AWS_ACCESS_KEY_ID" in line


def test_damaged_and_newer_headers(volume: Machine, place: Path) -> None:
    (header,) = (place / "store" / "keys").iterdir()
    text = header.read_text()
    good = json.loads(text)
    newer = {**good, "version": 99} if "version" in good else {**good, "format": 99}
    header.chmod(0o600)
    header.write_text(json.dumps(newer))
    line = said(volume, "mount", volume.url, volume.mnt, code=11)
    assert "newer" in line
    header.write_text(text[:-10])
    line = said(volume, "mount", volume.url, volume.mnt, code=16)
    assert "keys/" in line


def test_state_directory_is_not_writable(volume: Machine) -> None:
    line = said(volume, "mount", volume.url, volume.mnt, "--state-dir", "/proc/nowhere", code=1)
    assert "/proc/nowhere" in line
    assert "--state-dir" in line


# -- programs


def test_errors_as_json(volume: Machine) -> None:
    done = volume.run("umount", volume.mnt, "--json", code=2)
    error = json.loads(done.stdout)["error"]
    assert error["exit_code"] == 2
    assert error["kind"] == "BadUsage"
    assert "nothing is mounted" in error["text"]
    assert done.stderr == ""


def test_a_bug_is_called_one(volume: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    from megafs.cli import main

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("megafs.mount.mount_record.records", broken)
    assert main.run(["status"]) == 1
