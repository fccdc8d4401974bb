"""Ctrl-C ends every command with 130 and one line, wherever it comes: in a job and its tasks, while
modules are imported, at a prompt."""

from __future__ import annotations

import importlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from megafs.cli import main, mount_helper
from megafs.stores.local import driver
from tests.mount.machine import Machine

JOBS = {
    "fsck": ["fsck", "{url}"],
    "scrub": ["scrub", "{url}"],
    "gc": ["gc", "{url}"],
    "log": ["log", "{url}", "/"],
    "restore": ["restore", "{url}", "/f", "--at", "1"],
    "undelete": ["undelete", "{url}", "--list"],
    "snapshot": ["snapshot", "create", "{url}", "monday"],
    "salvage": ["salvage", "{url}", "--to", "{place}/out"],
    "key add": ["key", "add", "{url}", "--new-passphrase-file", "{place}/new"],
    "key rotate": ["key", "rotate", "{url}", "--yes"],
    "key reencrypt": ["key", "reencrypt", "{url}"],
    "format": ["format", "{url}-other"],
}


@pytest.fixture
def inside(volume: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose commands run in this process."""
    (volume.place / "new").write_text("another passphrase")
    for name, value in volume.environ.items():
        monkeypatch.setenv(name, value)
    return volume


def ctrl_c_at(
    monkeypatch: pytest.MonkeyPatch, name: str, nth: int, *, wait: bool = True
) -> list[str]:
    """Press Ctrl-C in the n-th call of a driver's method; return what was called."""
    real: Callable[..., Any] = getattr(driver.LocalStore, name)
    calls: list[str] = []

    async def pressed(self: object, *args: Any, **more: Any) -> Any:
        calls.append(name)
        if len(calls) == nth:
            signal.raise_signal(signal.SIGINT)
            if wait:
                await trio.sleep_forever()
        return await real(self, *args, **more)

    monkeypatch.setattr(driver.LocalStore, name, pressed)
    return calls


@pytest.mark.parametrize(("nth", "wait"), [(1, True), (3, False)], ids=["waiting", "going on"])
@pytest.mark.parametrize("job", JOBS)
def test_in_a_job(
    inside: Machine,
    job: str,
    nth: int,
    wait: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    args = [arg.format(url=inside.url, place=inside.place) for arg in JOBS[job]]
    # list() and get() are called by every one of them, from the first task and from others.
    listed = ctrl_c_at(monkeypatch, "list", nth, wait=wait)
    code = main.run(args)
    said = capfd.readouterr().err.splitlines()
    if len(listed) < nth:
        pytest.skip("it does not ask that often")
    assert code == 130
    assert said[-1] == "megafs: interrupted"
    assert all(line.startswith("megafs: ") for line in said), said


@pytest.mark.fuse
@pytest.mark.parametrize("args", [["pin", "{mnt}"], ["scrub", "{mnt}"], ["umount", "{mnt}"]])
def test_while_a_mount_works_for_it(
    inside: Machine,
    args: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    inside.mount()
    from megafs.mount import control_client

    def pressed(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(control_client, "ask", pressed)
    code = main.run([arg.format(mnt=inside.mnt) for arg in args])
    monkeypatch.undo()
    said = capfd.readouterr().err
    inside.umount()
    assert code == 130, said
    assert said.splitlines()[-1] == "megafs: interrupted"
    assert "Traceback" not in said


class Interrupting:
    """Finds no module, but presses Ctrl-C when one is looked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, name: str, *_: object) -> None:
        if name == self._name:
            signal.raise_signal(signal.SIGINT)


def test_while_a_command_is_imported(
    inside: Machine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "megafs.cli.scrub", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting("megafs.cli.scrub"), *sys.meta_path])
    assert main.run(["scrub", inside.url]) == 130
    assert capfd.readouterr().err == "megafs: interrupted\n"
    monkeypatch.undo()
    importlib.import_module("megafs.cli.scrub")


@pytest.mark.parametrize("module", ["megafs.cli.main", "click", "megafs.cli.output"])
def test_while_the_program_is_imported(module: str) -> None:
    program = (
        "import signal, sys\n"
        "from megafs.__main__ import main\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "sys.argv = ['megafs', 'status']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.3, 0.5, 0.8, 1.2, 2.0])
def test_at_any_moment(volume: Machine, delay: float) -> None:
    """As a terminal does it: every process of the group gets the signal."""
    started = subprocess.Popen(
        volume.command("salvage", volume.url, "--to", volume.place / "out"),
        env={**volume.environ, "MEGAFS_KDF": "default"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(delay)
    os.killpg(started.pid, signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert started.returncode in (130, 0), said
    assert "Traceback" not in said
    if started.returncode:
        assert said.splitlines()[-1] == "megafs: interrupted"


@pytest.mark.parametrize(
    "args", [["scrub", "{url}"], ["key", "recover", "{url}"], ["key", "rotate", "{url}"]]
)
def test_at_a_prompt(volume: Machine, args: list[str]) -> None:
    del volume.environ["MEGAFS_PASSPHRASE"]
    pid, terminal = pty.fork()
    if pid == 0:
        command = volume.command(*(arg.format(url=volume.url) for arg in args))
        os.execvpe(command[0], command, volume.environ)
    said = b""
    pressed = False
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            break
        if not piece:
            break
        said += piece
        if not pressed and b": " in said:
            pressed = True
            os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130, said
    assert said.endswith(b"megafs: interrupted\r\n")
    assert b"Traceback" not in said


def test_the_helper_of_mount(
    inside: Machine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def grouped(*_: object) -> None:
        raise BaseExceptionGroup("of a nursery", [KeyboardInterrupt(), OSError(5, "echo")])

    monkeypatch.setattr(mount_helper, "_mount", grouped)
    with pytest.raises(SystemExit) as ended:
        mount_helper.main(["mount.megafs", inside.url, str(inside.mnt)])
    assert ended.value.code == 8
    assert capfd.readouterr().err == "megafs: interrupted\n"


def test_a_fault_beside_it_does_not_hide_it(capfd: pytest.CaptureFixture[str]) -> None:
    group = BaseExceptionGroup("", [ExceptionGroup("", [ValueError()]), KeyboardInterrupt()])
    assert main.report_error(group, as_json=False, debug=False) == 130
    assert capfd.readouterr().err == "megafs: interrupted\n"


def test_what_stays_is_whole(inside: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted salvage leaves the place usable for the next one after it is emptied."""
    target = Path(inside.place) / "out"
    ctrl_c_at(monkeypatch, "get", 2)
    assert main.run(["salvage", inside.url, "--to", str(target)]) == 130
    monkeypatch.undo()
    inside.run("fsck", inside.url)
