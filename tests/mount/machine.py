"""The megafs command as a user of one machine has it: own state, cache and sockets."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from megafs.mount import mount_record
from megafs.mount.processes import is_running, wait_for_end

PASSPHRASE = "correct horse battery staple"


class Machine:
    """Runs `megafs` with directories of its own below *place*."""

    def __init__(self, place: Path, name: str = "a", url: str | None = None) -> None:
        self.place = place / name
        self.place.mkdir()
        self.url = url or f"file://{place}/store"
        self.mnt = self.place / "mnt"
        self.mnt.mkdir()
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("MEGAFS_", "AWS_"))},
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "MEGAFS_STATE_DIR": str(self.place / "state"),
            "MEGAFS_CACHE_DIR": str(self.place / "cache"),
            "MEGAFS_RUNTIME_DIR": str(self.place / "run"),
            "MEGAFS_CONFIG": str(self.place / "config.toml"),
            "MEGAFS_KDF": "low-memory",
            "MEGAFS_PASSPHRASE": PASSPHRASE,
        }
        (self.place / "config.toml").touch()

    def command(self, *args: str | Path) -> list[str]:
        return [sys.executable, "-m", "megafs", *map(str, args)]

    def run(
        self, *args: str | Path, code: int = 0, environ: dict[str, str] | None = None, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run the command; its exit code must be *code*."""
        done = subprocess.run(
            self.command(*args),
            env={**self.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            # A session without a terminal, so that nothing can ask.
            start_new_session=True,
            **more,
        )
        assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def format(self, *args: str) -> None:
        self.run("format", self.url, *args)

    def mount(self, *args: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run("mount", self.url, self.mnt, *args, code=code)

    def umount(self, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run("umount", self.mnt, *args, code=code)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.run("status", self.mnt, "--json").stdout))

    @property
    def pid(self) -> int:
        """The mount's process."""
        (record,) = self.records()
        return record.pid

    def records(self) -> list[mount_record.MountRecord]:
        """The records of the mounts, whoever this machine's user is."""
        run = self.place / "run"
        return mount_record.records(run, run.stat().st_uid) if run.exists() else []

    def kill(self) -> None:
        """kill -9 for whatever still runs of this machine."""
        for record in self.records():
            if is_running(record.pid):
                os.kill(record.pid, signal.SIGKILL)
                wait_for_end(record.pid, 10)

    def processes(self) -> list[int]:
        """Everything that runs with this machine's environment: a mount, too, whose record is gone
        and which has not ended yet.
        """
        ours = os.fsencode(f"MEGAFS_STATE_DIR={self.environ['MEGAFS_STATE_DIR']}")
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if ours in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
            except OSError:
                continue  # it has ended, or is a zombie
        return found

    def end(self, *, within: float = 10.0) -> None:
        """Return when nothing of this machine runs; kill -9 for what does not end by itself."""
        deadline = time.monotonic() + within
        while left := self.processes():
            if time.monotonic() > deadline:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                    wait_for_end(pid, 10)
            time.sleep(0.02)


def is_mounted(path: Path) -> bool:
    return any(
        line.split()[4] == str(path)
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    )


def eventually(ask: Any, *, within: float = 10.0) -> None:
    """Wait until *ask* answers yes."""
    deadline = time.monotonic() + within
    while not ask():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def at_terminal(machine: Machine, args: list[str], answers: list[str]) -> str:
    """Run a command at a terminal, and type *answers* whenever it asks."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(machine.command()[0], machine.command(*args), machine.environ)
    said = b""
    waiting = list(answers)
    seen = 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            break
        if not piece:
            break
        said += piece
        if waiting and re.search(rb"assphrase[^\n]*: $", said[seen:]):
            seen = len(said)
            os.write(terminal, waiting.pop(0).encode() + b"\n")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, said
    os.close(terminal)
    return said.decode()
