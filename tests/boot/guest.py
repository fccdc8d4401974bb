"""A virtual machine: qemu, its console in a file, and commands over a second serial line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

#: Seconds for a boot, until the agent is there; 80 on two cores that others use, too.
BOOT_WITHIN = 900.0
#: MiB of memory.
MEMORY = 1280
#: Software emulation, which needs nothing of the host; with hardware it is ten times as quick.
ACCELERATOR = os.environ.get("MEGAFS_BOOT_ACCELERATOR", "-accel tcg,thread=multi -cpu max")


class GuestError(Exception):
    """The machine did not do what was asked in time; the text says what."""


class Said(NamedTuple):
    """How a command ended: exit code, -1 if it was killed for taking too long; both its outputs."""

    code: int
    out: str


class Guest:
    """One virtual machine; `start` boots it, and it ends when it reboots or powers off.

    Its disks and console.log lie in *place*.
    """

    def __init__(self, place: Path, kernel: Path, initrd: Path, disks: list[Path]) -> None:
        self.place = place
        self._kernel, self._initrd, self.disks = kernel, initrd, disks
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._waiting = b""

    @property
    def console(self) -> Path:
        return self.place / "console.log"

    def start(self) -> None:
        """Boot, and wait until commands can be given."""
        address = self.place / "agent"
        address.unlink(missing_ok=True)
        drives = [
            word
            for path in self.disks
            for word in ("-drive", f"file={path},if=virtio,format=raw,cache=unsafe")
        ]
        command = [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"),
            *("-display", "none", "-m", str(MEMORY), "-smp", "2", *ACCELERATOR.split()),
            *("-kernel", str(self._kernel), "-initrd", str(self._initrd)),
            *("-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 panic=-1"),
            *drives,
            *("-nic", "user,model=virtio-net-pci"),
            *("-chardev", f"file,id=console,path={self.console},append=on"),
            *("-serial", "chardev:console"),
            *("-chardev", f"socket,id=agent,path={address},server=on,wait=off"),
            *("-serial", "chardev:agent"),
        ]
        # Should this process be killed, the machine goes with it.
        with (self.place / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._line = self._connect(address)
        self._waiting = b""
        if "ready" not in self._answer(BOOT_WITHIN):
            raise GuestError("the agent did not start")

    def run(self, command: str, within: float = 120.0) -> Said:
        """Run a shell command as root; stdout and stderr are one."""
        asked = {"run": command, "within": within}
        assert self._line is not None
        self._line.sendall(json.dumps(asked).encode() + b"\n")
        answer = self._answer(within + 60)
        return Said(int(str(answer["code"])), str(answer["out"]))

    def out(self, command: str, within: float = 120.0) -> str:
        """What a command prints that must end with 0."""
        said = self.run(command, within)
        if said.code:
            raise GuestError(f"{command}: exit code {said.code}\n{said.out}")
        return said.out

    def wait_off(self, within: float) -> float:
        """Wait until it has rebooted or powered off; return the seconds that took."""
        assert self._process is not None
        began = time.monotonic()
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            raise GuestError(f"it has not gone down within {within:.0f} s") from None
        self.end()
        return time.monotonic() - began

    def end(self) -> None:
        """End it, whatever it is doing."""
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            self._process = None

    def _connect(self, address: Path) -> socket.socket:
        assert self._process is not None
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            line = socket.socket(socket.AF_UNIX)
            try:
                line.connect(str(address))
            except OSError:
                line.close()
                time.sleep(0.05)
                continue
            return line
        raise GuestError(f"qemu did not start\n{(self.place / 'qemu.log').read_text()}")

    def _answer(self, within: float) -> dict[str, object]:
        assert self._line is not None
        deadline = time.monotonic() + within
        while b"\n" not in self._waiting:
            self._line.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                piece = self._line.recv(1 << 16)
            except TimeoutError:
                raise GuestError(f"no answer within {within:.0f} s") from None
            if not piece:
                raise GuestError("the machine ended")
            self._waiting += piece
        text, _, self._waiting = self._waiting.partition(b"\n")
        return dict(json.loads(text))
