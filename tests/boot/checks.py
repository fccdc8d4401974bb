"""What is asked of the virtual machine, boot by boot."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.boot import setting
from tests.boot.guest import Guest, GuestError
from tests.boot.report import Report
from tests.engines.dav import Dav
from tests.mount.conftest import mounts_below
from tests.mount.machine import Machine

#: Seconds that a shutdown may take in emulation, when all can go to the store.
SHUTDOWN = 240.0
#: Seconds more with the store away: megafs gives up after 60, systemd ends the service after 90.
STORE_AWAY = 150.0
#: Seconds within which everything has started; 400 on two cores that 25 processes wait for.
STARTED = 1800.0

_FILES = 8
_WRITE = """
import hashlib, os, sys
for number in range({count}):
    name = f"{name} {{number}}"
    fd = os.open(f"{at}/{{name}}", os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(fd, hashlib.sha256(name.encode()).digest() * 2048)
    os.fsync(fd)
    os.close(fd)
"""
_READ = """
import hashlib
for number in range({count}):
    name = f"{name} {{number}}"
    with open(f"{at}/{{name}}", "rb") as file:
        same = file.read() == hashlib.sha256(name.encode()).digest() * 2048
    print(name if same else f"WRONG {{name}}")
"""


class Checks:
    """The story of one machine and its stores.  Every step says in *report* how it went."""

    def __init__(self, guest: Guest, server: Dav, report: Report) -> None:
        self._guest, self._server, self._report = guest, server, report

    def run(self) -> None:
        self._first_boot()
        self._reboot("what was written just before a reboot", SHUTDOWN)
        self._on_the_host("before")
        self._second_boot()
        self._reboot("the store away", SHUTDOWN + STORE_AWAY)
        self._third_boot()

    # ---- boot 1 ----------------------------------------------------------------------------

    def _first_boot(self) -> None:
        self._boot("boot 1: everything is mounted")
        for name in ("disk", "net", "service", "cloud"):
            self._is_mounted(name)
        self._report.check("/mnt/auto waits to be looked at", self._type("auto") == "autofs")
        self._look("auto")
        self._orders()
        for name in (*setting.LOCAL, *setting.REMOTE):
            self._write(name, "before")

    def _look(self, name: str) -> None:
        """Five programs look into an automount at once."""
        at = f"/mnt/{name}"
        began = time.monotonic()
        said = self._guest.run(f"for n in 1 2 3 4 5; do ls {at} & done; wait", 300)
        took = time.monotonic() - began
        there = self._type(name) == "fuse.megafs"
        self._report.check(
            f"five programs look into {at} at once, and it is mounted",
            said.code == 0 and there,
            f"{took:.0f} s {said.out}",
        )

    def _orders(self) -> None:
        report, before = self._report, {}
        for name in ("net", "cloud"):
            before[name] = self._order(name)
            report.check(
                f"/mnt/{name} is ordered as what needs the network",
                {"network.target", "remote-fs-pre.target"} <= before[name]["After"]
                and not {"local-fs.target", "local-fs-pre.target"}
                & (before[name]["After"] | before[name]["Before"]),
            )
            options = self._guest.out(f"findmnt -mno OPTIONS /mnt/{name}").strip().split(",")
            report.check(f"/mnt/{name} is shown with _netdev", "_netdev" in options)
        before["disk"] = self._order("disk")
        report.check(
            "/mnt/disk is unmounted before the disk that it lies on",
            "srv-store.mount" in before["disk"]["After"],
        )
        times = self._guest.out(
            "systemctl show --value -p ActiveEnterTimestampMonotonic network-online.target;"
            " systemctl show --value -p InactiveExitTimestampMonotonic mnt-net.mount"
        )
        online, mounting = map(int, times.split())
        report.check("/mnt/net was mounted when the network was up", 0 < online <= mounting)
        self._guest.out("systemctl daemon-reload", 300)
        for name, order in before.items():
            after = self._order(name)
            report.check(
                f"/mnt/{name} is ordered so after daemon-reload, too",
                after == order,
                f"{order} then {after}",
            )

    def _order(self, name: str) -> dict[str, set[str]]:
        said = self._guest.out(f"systemctl show -p After,Before mnt-{name}.mount")
        rows = [line.partition("=") for line in said.splitlines()]
        return {row[0]: set(row[2].split()) for row in rows}

    # ---- boot 2 and 3 ----------------------------------------------------------------------

    def _second_boot(self) -> None:
        self._boot("boot 2: everything is there; then the store does not answer")
        for name in (*setting.LOCAL, *setting.REMOTE):
            self._read(name, "before")
        self._server.pause()
        self._write("net", "away")

    def _third_boot(self) -> None:
        self._server.stop()
        self._boot("boot 3: without the store, which then comes back")
        self._is_mounted("net")
        self._read("net", "away")
        self._server.start()
        deadline = time.monotonic() + 300
        left = "?"
        while time.monotonic() < deadline and left != "0 0":
            left = self._guest.run(
                "megafs status --json /mnt/net | /usr/bin/python3 -c 'import json, sys;"
                ' s = json.load(sys.stdin); print(s["staged_bytes"], s["pending_operations"])\'',
                120,
            ).out.strip()
        self._report.check("what was staged is in the store", left == "0 0", left)
        self._reboot("nothing staged", SHUTDOWN, "poweroff")
        self._on_the_host("away", only=("net",))

    # ---- steps -----------------------------------------------------------------------------

    def _boot(self, title: str) -> None:
        self._report.section(title)
        began = time.monotonic()
        self._guest.start()
        deadline = began + STARTED
        state = ""
        # While it is busy, systemctl may give up without a word.
        while state not in ("running", "degraded", "maintenance") and time.monotonic() < deadline:
            time.sleep(2)
            # Mounts with nofail may come after the target that wants them.
            said = self._guest.run(
                "systemctl is-system-running; systemctl --no-legend list-jobs | wc -l", 120
            )
            state = said.out.removesuffix("\n0\n").strip()
        failed = ""
        if state != "running":
            failed = self._guest.run(
                "systemctl list-jobs --no-pager; systemctl --failed --no-pager --no-legend;"
                " journalctl -b --no-pager -p warning | tail -n 40"
            ).out
        took = time.monotonic() - began
        self._report.check("systemd has started everything", state == "running", state + failed)
        self._report.note(f"{took:.0f} s from the start of qemu")

    def _type(self, name: str) -> str:
        """The type of what is mounted there, the topmost."""
        said = self._guest.run(f"findmnt -no FSTYPE /mnt/{name} | tail -n 1")
        return said.out.strip()

    def _is_mounted(self, name: str) -> None:
        self._report.check(f"/mnt/{name} is mounted", self._type(name) == "fuse.megafs")

    def _write(self, name: str, prefix: str) -> None:
        script = _WRITE.format(count=_FILES, name=prefix, at=f"/mnt/{name}")
        said = self._guest.run(f"/usr/bin/python3 -c {shlex.quote(script)}", 300)
        self._report.check(
            f"/mnt/{name}: {_FILES} files are written and synced", said.code == 0, said.out
        )

    def _read(self, name: str, prefix: str) -> None:
        script = _READ.format(count=_FILES, name=prefix, at=f"/mnt/{name}")
        said = self._guest.run(f"/usr/bin/python3 -c {shlex.quote(script)}", 300)
        expected = [f"{prefix} {number}" for number in range(_FILES)]
        self._report.check(
            f"/mnt/{name}: every synced byte is there",
            said.out.splitlines() == expected,
            said.out,
        )

    def _reboot(self, what: str, within: float, how: str = "reboot") -> None:
        began = time.monotonic()
        self._guest.run(f"systemctl --no-block {how}", 60)
        try:
            self._guest.wait_off(within)
            down = True
        except GuestError:
            down = False
            self._guest.end()
        took = time.monotonic() - began
        self._report.check(f"it goes down within {within:.0f} s ({what})", down, f"{took:.0f} s")
        self._report.note(f"{took:.0f} s")
        if not down:
            raise GuestError("it did not go down")

    def _on_the_host(self, prefix: str, only: tuple[str, ...] = setting.REMOTE) -> None:
        """Another machine has all of it from the store alone."""
        for name in only:
            place = Path(tempfile.mkdtemp(prefix="megafs-boot-"))
            machine = Machine(place, url=f"{self._server.url}/{name}")
            machine.environ["MEGAFS_PASSPHRASE"] = setting.PASSPHRASE
            options: list[str] = []
            if name == "net":
                del machine.environ["MEGAFS_PASSPHRASE"]
                options = ["--key-file", str(self._guest.place / "net.key")]
            try:
                machine.mount(*options)
                wrong = [
                    each
                    for each in (f"{prefix} {number}" for number in range(_FILES))
                    if not _is_right(machine.mnt / each)
                ]
                machine.umount()
            finally:
                machine.kill()
                for point in mounts_below(place):
                    subprocess.run(["umount", "-l", point], check=False)
                shutil.rmtree(place)
            self._report.check(
                f"/mnt/{name}: another machine has every byte from the store", not wrong, str(wrong)
            )


def _is_right(path: Path) -> bool:
    try:
        return path.read_bytes() == hashlib.sha256(path.name.encode()).digest() * 2048
    except OSError as exc:
        print(exc, file=sys.stderr)
        return False
