"""A recovery key exists nowhere but with its owner: it arrives there, or nothing is changed."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.test_keys import keys, opens, secret
from tests.mount.machine import PASSPHRASE, Machine

COMMANDS = {
    "format": ["format", "{url}-new"],
    "recovery-key": ["key", "recovery-key", "{url}"],
    "rotate": ["key", "rotate", "{url}", "--yes"],
}


def kinds(machine: Machine) -> list[str]:
    return sorted(slot["kind"] for slot in keys(machine)["slots"])


def run_with_output(machine: Machine, args: list[str], stdout: str) -> tuple[int, str]:
    """Run a command whose stdout is full, closed or read by nobody."""
    redirect = {"full": ">/dev/full", "closed": ">&-", "left": ""}[stdout]
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirect}', "sh", *machine.command(*args)],
        env=machine.environ,
        stdin=subprocess.DEVNULL,
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        start_new_session=True,
    )
    os.close(write_end)
    return done.returncode, done.stderr


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("stdout", ["full", "closed", "left"])
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_changes_if_it_cannot_be_printed(
    volume: Machine, command: str, stdout: str, as_json: bool
) -> None:
    before = keys(volume)
    args = [arg.format(url=volume.url) for arg in COMMANDS[command]]
    code, said = run_with_output(volume, [*args, "--json"] if as_json else args, stdout)
    assert code == 1
    assert "Traceback" not in said
    assert "bug" not in said
    if stdout != "left":
        assert "standard output cannot be written" in said.splitlines()[-1]
    if command == "format":
        assert not Path(
            volume.url.removeprefix("file://") + "-new/keys"
        ).exists() or not os.listdir(volume.url.removeprefix("file://") + "-new/keys")
    else:
        assert keys(volume) == before
        assert opens(volume, PASSPHRASE)


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("command", COMMANDS)
def test_into_a_file(volume: Machine, command: str, as_json: bool) -> None:
    if command == "format":
        volume.url += "-new"
        args = ["format", volume.url]
    else:
        args = [arg.format(url=volume.url) for arg in COMMANDS[command]]
    kept = volume.place / "recovery"
    args += ["--recovery-key-file", str(kept)]
    said = volume.run(*args, *(["--json"] if as_json else [])).stdout
    key, second = kept.read_text().splitlines()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert second == f"volume {keys(volume)['volume']}"
    assert key not in said
    if as_json:
        assert json.loads(said)["recovery_key"] is None
        assert json.loads(said)["recovery_key_file"] == str(kept)
    else:
        assert str(kept) in said
    new = secret(volume, "new", "afterwards")
    volume.run(
        *("key", "recover", volume.url),
        *("--recovery-key-file", kept, "--new-passphrase-file", new),
    )
    assert opens(volume, "afterwards")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_file_is_written_over(volume: Machine, command: str) -> None:
    before = keys(volume)
    kept = secret(volume, "recovery", "mine")
    args = [arg.format(url=volume.url) for arg in COMMANDS[command]]
    said = volume.run(*args, "--recovery-key-file", kept, code=18).stderr
    assert f"{kept} is there already" in said
    (volume.place / "dangling").symlink_to(volume.place / "elsewhere")
    volume.run(*args, "--recovery-key-file", volume.place / "dangling", code=18)
    assert not (volume.place / "elsewhere").exists()
    volume.run(*args, "--recovery-key-file", volume.place / "absent" / "f", code=2)
    assert kept.read_text() == "mine"
    assert keys(volume) == before


def test_a_full_disk_below_the_file(volume: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    from megafs.cli import main, recovery_output

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    for name, value in volume.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(recovery_output, "sync_directory", full)
    before = keys(volume)
    kept = volume.place / "recovery"
    assert main.run(["key", "recovery-key", volume.url, "--recovery-key-file", str(kept)]) == 1
    assert not kept.exists()
    assert keys(volume) == before


def test_what_failed_afterwards_is_said(
    volume: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from megafs.cli import main
    from megafs.errors import Unavailable
    from megafs.volume import header_store

    async def away(*_: object) -> bool:
        raise Unavailable("the store went away")

    for name, value in volume.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(header_store, "_put_next", away)
    assert main.run(["key", "recovery-key", volume.url]) == 14
    said = capsys.readouterr()
    assert re.search(r"^    (\w{4}-){13}\w{4}$", said.out, re.MULTILINE)
    assert "may open nothing" in said.err
    assert said.err.splitlines()[-1] == "megafs: the store went away"
    # The command takes the passphrase out of its environment when it has read it.
    monkeypatch.setenv("MEGAFS_PASSPHRASE", volume.environ["MEGAFS_PASSPHRASE"])
    assert main.run(["key", "recovery-key", volume.url, "--json"]) == 14
    document = json.loads(capsys.readouterr().out)
    assert document["recovery_key"]
    assert document["error"]["exit_code"] == 14


# -- no slot without a key that somebody has


def test_no_recovery_key_means_none(machine: Machine) -> None:
    machine.format("--no-recovery-key")
    assert kinds(machine) == ["passphrase"]
    slot = keys(machine)["slots"][0]["id"]
    said = machine.run("key", "remove", machine.url, slot, code=2).stderr
    assert "last key slot" in said
    assert opens(machine, PASSPHRASE)
    assert json.loads(machine.run("key", "recovery-key", machine.url, "--json").stdout)[
        "recovery_key"
    ]
    assert kinds(machine) == ["passphrase", "recovery"]
    both = ("--no-recovery-key", "--recovery-key-file", machine.place / "f")
    assert "exclude each other" in machine.run("format", machine.url, *both, code=2).stderr


def test_the_last_slot_that_one_can_use_stays(machine: Machine) -> None:
    """As a volume of before: its recovery slot may be for a key that nobody ever saw."""
    made = json.loads(machine.run("format", machine.url, "--json").stdout)
    (slot,) = [s["id"] for s in keys(machine)["slots"] if s["kind"] == "passphrase"]
    for args in ([], ["--yes"], ["--json"], ["--yes", "--json"]):
        done = machine.run("key", "remove", machine.url, slot, *args, code=2)
        assert "--recovery-key-file" in done.stdout + done.stderr
    wrong = secret(machine, "wrong", "ABCD-" * 13 + "ABCD")
    machine.run("key", "remove", machine.url, slot, "--yes", "--recovery-key-file", wrong, code=12)
    assert kinds(machine) == ["passphrase", "recovery"]
    right = secret(machine, "right", made["recovery_key"])
    machine.run("key", "remove", machine.url, slot, "--yes", "--recovery-key-file", right)
    assert kinds(machine) == ["recovery"]
    new = secret(machine, "new", "again")
    machine.run(
        *("key", "recover", machine.url, "--recovery-key-file", right),
        *("--new-passphrase-file", new),
    )
    assert opens(machine, "again")


def at_terminal(machine: Machine, args: list[str], answer: str) -> tuple[int, str]:
    """Run a command at a terminal and type *answer* when it asks."""
    pid, terminal = pty.fork()
    if pid == 0:
        command = machine.command(*args)
        os.execvpe(command[0], command, machine.environ)
    said, answered = b"", False
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            break
        if not piece:
            break
        said += piece
        if not answered and re.search(rb"(\[y/N\]|key): ", said):
            answered = True
            os.write(terminal, answer.encode() + b"\n")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), said.decode()


def test_it_is_asked_about_at_a_terminal(machine: Machine) -> None:
    made = json.loads(machine.run("format", machine.url, "--json").stdout)
    (slot,) = [s["id"] for s in keys(machine)["slots"] if s["kind"] == "passphrase"]
    code, said = at_terminal(machine, ["key", "remove", machine.url, slot], "what was it")
    assert code == 12, said
    new = secret(machine, "new", "a colleague's")
    machine.run("key", "add", machine.url, "--new-passphrase-file", new, "--label", "colleague")
    code, said = at_terminal(machine, ["key", "remove", machine.url, slot], "n")
    assert (code, "other people's" in said) == (130, True), said
    assert slot in {s["id"] for s in keys(machine)["slots"]}
    machine.run("key", "remove", machine.url, "colleague")
    code, said = at_terminal(machine, ["key", "remove", machine.url, slot], made["recovery_key"])
    assert code == 0, said
    assert kinds(machine) == ["recovery"]
