"""A server of MEGA's protocol for each test, and an account on it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from megafs import logs
from megafs.cli import main
from tests.services.mega.server import MegaServer, Owner

MAIL, PASSWORD = "me@example.org", "correct horse"


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: bytes
    stderr: bytes


#: Runs the command line with the arguments that follow.
Run = Callable[..., Done]


@pytest.fixture
def mega() -> Iterator[MegaServer]:
    with MegaServer() as server:
        yield server


@pytest.fixture
def owner(mega: MegaServer) -> Owner:
    return mega.add_account(MAIL, PASSWORD)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """For a program: its own state, cache and home."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MEGAFS_")}
    return kept | {
        "HOME": str(home),
        "MEGAFS_STATE_DIR": str(home / "state"),
        "MEGAFS_CACHE_DIR": str(home / "cache"),
        "MEGAFS_RUNTIME_DIR": str(home / "run"),
        "PYTHONDEVMODE": "",
    }


@pytest.fixture
def run(
    mega: MegaServer,
    environ: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> Run:
    """run("get", LINK, ...): the command line against the server, in this process."""

    def start(command: str, *args: str | Path, stdin: str = "", **more: str) -> Done:
        with monkeypatch.context() as patch:
            for name, value in (environ | more).items():
                patch.setenv(name, value)
            patch.setattr("sys.stdin", io.StringIO(stdin))
            patch.chdir(tmp_path)
            logs.set_up("terminal")
            code = main.run([command, "-o", f"api={mega.url}", *map(str, args)])
            sys.stdout.flush()
            return Done(code, *capfdbinary.readouterr())

    return start
