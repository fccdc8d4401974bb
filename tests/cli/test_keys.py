"""Who can open a volume, and where the passphrase may come from."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from megafs.cli import main, passphrase
from megafs.errors import BadUsage, Unavailable
from megafs.journal import head
from megafs.mount.options import Secrets
from tests.mount.machine import PASSPHRASE, Machine, at_terminal, is_mounted


def keys(machine: Machine) -> dict[str, list[dict[str, str]]]:
    return dict(json.loads(machine.run("key", "list", machine.url, "--json").stdout))


def opens(machine: Machine, passphrase: str, *args: str) -> bool:
    """Whether *passphrase* opens the volume: changing nothing, by asking for a slot that is not."""
    done = subprocess.run(
        machine.command("key", "remove", machine.url, "no-such-slot", *args),
        env={**machine.environ, "MEGAFS_PASSPHRASE": passphrase},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert done.returncode in (2, 12), done.stderr
    return done.returncode == 2


def secret(machine: Machine, name: str, text: str) -> Path:
    path = machine.place / name
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_format_shows_the_recovery_key_once(machine: Machine) -> None:
    said = machine.run("format", machine.url, "--json").stdout
    made = json.loads(said)
    assert re.fullmatch(r"(\w{4}-){13}\w{4}", made["recovery_key"])
    assert made["parameters"]["quota"] == 50 * 10**9
    other = Machine(machine.place, "b", f"file://{machine.place}/other")
    text = other.run("format", other.url, "--quota", "none").stdout
    assert re.search(r"^    (\w{4}-){13}\w{4}$", text, re.MULTILINE)
    assert "quota          no limit" in text


def test_format_without_showing_it(machine: Machine) -> None:
    said = machine.run("format", machine.url, "--no-recovery-key", "--quota", "200GB").stdout
    assert "ecovery" not in said
    assert "200 GB" in said


def test_add_change_remove(volume: Machine) -> None:
    (first,) = [s for s in keys(volume)["slots"] if s["kind"] == "passphrase"]
    new = secret(volume, "new", "another passphrase\n")
    volume.run("key", "add", volume.url, "--new-passphrase-file", new, "--label", "laptop")
    assert opens(volume, "another passphrase")
    assert opens(volume, PASSPHRASE)

    newer = secret(volume, "newer", "a third passphrase")
    volume.run("key", "change", volume.url, "laptop", "--new-passphrase-file", newer)
    assert opens(volume, "a third passphrase")
    assert not opens(volume, "another passphrase")

    said = volume.run("key", "remove", volume.url, first["id"][:6]).stdout
    assert "does not lock out" in said
    assert not opens(volume, PASSPHRASE)
    labels = [s["label"] for s in keys(volume)["slots"]]
    assert "laptop" in labels
    text = volume.run("key", "list", volume.url).stdout
    assert re.search(r"SLOT +KIND +MADE +COST +LABEL", text)
    assert "64 MiB x 3" in text


def test_recover(machine: Machine) -> None:
    made = json.loads(machine.run("format", machine.url, "--json").stdout)
    recovery = secret(machine, "recovery", made["recovery_key"])
    new = secret(machine, "new", "after the loss of the first")
    args = ("--recovery-key-file", recovery, "--new-passphrase-file", new)
    machine.run("key", "recover", machine.url, *args)
    assert opens(machine, "after the loss of the first")
    wrong = secret(machine, "wrong", made["recovery_key"].replace("-", "", 1)[:-1] + "0")
    done = machine.run(
        "key", "recover", machine.url, "--recovery-key-file", wrong,
        "--new-passphrase-file", new, code=12,
    )  # fmt: skip
    assert made["recovery_key"][:9] not in done.stderr

    again = json.loads(machine.run("key", "recovery-key", machine.url, "--json").stdout)
    assert again["recovery_key"] != made["recovery_key"]
    machine.run("key", "recover", machine.url, *args, code=12)


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("command", ["format", "recovery-key", "rotate"])
def test_a_new_recovery_key_is_printed_though_the_next_step_fails(
    machine: Machine,
    command: str,
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first commit fails, or the note of the new header on this machine."""
    for name, value in machine.environ.items():
        monkeypatch.setenv(name, value)
    machine.run("format", machine.url if command != "format" else machine.url + "-other")
    if command != "format":
        machine.run("fsck", machine.url)  # so that this machine knows the volume

    async def fail(*args: object, **more: object) -> None:
        raise Unavailable("the store went away")

    before_rotating = [head.write] if command == "rotate" else []

    def fail_at_once(directory: Path, seen: head.RememberedHead) -> None:
        # What a rotation notes before it begins is not the step after it.
        if not before_rotating:
            raise Unavailable("the store went away")
        before_rotating.pop()(directory, seen)

    args = {
        "format": ["format", machine.url],
        "recovery-key": ["key", "recovery-key", machine.url],
        "rotate": ["key", "rotate", machine.url, "--yes"],
    }[command]
    monkeypatch.setattr("megafs.volume.create.write_first_commit", fail)
    monkeypatch.setattr("megafs.journal.head.write", fail_at_once)
    code = main.run([*args, "--json"] if as_json else args)

    assert code == Unavailable.exit_code
    said = capsys.readouterr()
    assert "megafs: the store went away" in said.err
    if as_json:
        key = json.loads(said.out)["recovery_key"]
    else:
        (key,) = re.findall(r"(?:\w{4}-){13}\w{4}", said.out)
    recovery, new = secret(machine, "recovery", key), secret(machine, "new", "afterwards")
    machine.run(
        "key", "recover", machine.url, "--recovery-key-file", recovery,
        "--new-passphrase-file", new,
    )  # fmt: skip
    assert opens(machine, "afterwards")


def test_key_file(machine: Machine) -> None:
    key = machine.place / "key"
    key.write_bytes(os.urandom(64))
    machine.run("format", machine.url, "--key-file", key)
    assert not opens(machine, PASSPHRASE)
    assert opens(machine, PASSPHRASE, "--key-file", str(key))
    said = machine.run("key", "list", machine.url, "--key-file", "x", code=2).stderr
    assert "no such option" in said


@pytest.mark.fuse
def test_changed_while_mounted_then_mounted_again(volume: Machine) -> None:
    volume.mount()
    new = secret(volume, "new", "changed meanwhile")
    volume.run("key", "change", volume.url, "--new-passphrase-file", new)
    (volume.mnt / "f").write_text("x")
    volume.umount()
    volume.environ["MEGAFS_PASSPHRASE"] = "changed meanwhile"
    volume.mount()
    assert (volume.mnt / "f").read_text() == "x"
    volume.umount()


# -- where it comes from


def read(sources: Secrets, **environ: str) -> str | None:
    return passphrase.credential(sources, environ=environ).passphrase


def test_the_first_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_bytes("größe \r\nmore\n".encode())
    path.chmod(0o600)
    assert read(Secrets(passphrase_file=path)) == "größe "


def test_everybody_can_read_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p"
    path.write_text("x\n")
    path.chmod(0o644)
    read(Secrets(passphrase_file=path))
    assert f"everybody can read {path}" in capsys.readouterr().err


def test_a_descriptor_is_read_no_further_than_its_line() -> None:
    heard, told = os.pipe()
    os.write(told, b"secret\nnot ours")
    assert read(Secrets(passphrase_fd=heard)) == "secret"
    assert os.read(heard, 100) == b"not ours"
    os.close(heard)
    os.close(told)


def test_a_command() -> None:
    assert read(Secrets(passphrase_command="echo a b; echo c")) == "a b"
    with pytest.raises(BadUsage, match="failed with status 3"):
        read(Secrets(passphrase_command="exit 3"))


def test_the_order(tmp_path: Path) -> None:
    (tmp_path / "megafs.passphrase").write_text("from systemd")
    (tmp_path / "megafs.passphrase").chmod(0o400)
    directory = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert read(Secrets(), **directory) == "from systemd"
    assert read(Secrets(), **directory, MEGAFS_PASSPHRASE="from environ") == "from environ"
    asked = Secrets(passphrase_command="echo from command")
    assert read(asked, MEGAFS_PASSPHRASE="from environ") == "from command"


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_bytes(b"\xff\xfe\n")
    path.chmod(0o600)
    with pytest.raises(BadUsage, match="not UTF-8"):
        read(Secrets(passphrase_file=path))


@pytest.mark.fuse
def test_asked_at_a_terminal(machine: Machine) -> None:
    del machine.environ["MEGAFS_PASSPHRASE"]
    said = at_terminal(
        machine, ["format", machine.url], ["one thing", "another", *["the same"] * 2]
    )
    assert said.count("New passphrase: ") == 2
    assert "the two are not the same" in said
    assert "the same\r\n" not in said.replace("not the same", "")
    said = at_terminal(machine, ["mount", machine.url, str(machine.mnt)], ["the same"])
    assert f"Passphrase for {machine.url}: " in said
    assert is_mounted(machine.mnt)
    assert "\rmegafs: mounted" in said or "megafs: mounted at" in said
    machine.umount()
