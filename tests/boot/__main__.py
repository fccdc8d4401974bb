"""`make boot-test`: a Debian that boots in qemu, with megafs in fstab and in systemd's units.

    python -m tests.boot [--keep DIRECTORY] [--within SECONDS]

Software emulation (TCG), so it needs nothing of the host but root and qemu.  What it builds once is
kept (image.py).  Ends with 0 if every check held, else 1; nothing is left running or mounted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.boot import image, setting
from tests.boot.checks import Checks
from tests.boot.guest import Guest, GuestError
from tests.boot.report import Report
from tests.engines.dav import Dav, DavError

#: Lines of the console that are shown after a failure.
LAST_LINES = 40


class TookTooLong(Exception):
    """All of it took too long."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.boot", description=__doc__)
    parser.add_argument("--keep", type=Path, help="keep the console's log in this directory")
    parser.add_argument("--within", type=int, default=7200, help="seconds for all of it")
    args = parser.parse_args()
    if os.geteuid() != 0:
        os.execvp("sudo", ["sudo", "-E", sys.executable, "-m", "tests.boot", *sys.argv[1:]])
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.signal(signal.SIGTERM, _ended)
    signal.alarm(args.within)
    report = Report()
    place = Path(tempfile.mkdtemp(prefix="megafs-boot-"))
    try:
        _test(place, report)
    except (GuestError, image.ImageError, DavError, TookTooLong) as exc:
        report.check("the test goes to its end", False, str(exc))
    finally:
        signal.alarm(0)
        _show_console(place / "console.log", args.keep, shown=bool(report.failed))
        shutil.rmtree(place, ignore_errors=True)
    print(report.summary(), flush=True)
    return 1 if report.failed or not report.checks else 0


def _test(place: Path, report: Report) -> None:
    with Dav("rclone") as server:
        report.section("the disks: Debian, and this checkout's megafs by `make install`")
        setting.format_all(place, server)
        with image.alone():
            root = image.root(place / "image.log")
            kernel, initrd = (shutil.copy(path, place) for path in image.kernel(root))
            url = f"webdav+http://{setting.HOST}:{server.port}/dav"
            setting.configure(root, place, url)
            disks = [place / "root.img", place / "store.img"]
            image.disk(disks[0], image.ROOT_SIZE, root)
        image.disk(disks[1], "300M", place / "store", label="store")
        guest = Guest(place, Path(kernel), Path(initrd), disks)
        try:
            Checks(guest, server, report).run()
        finally:
            guest.end()


def _show_console(console: Path, keep: Path | None, *, shown: bool) -> None:
    if not console.exists():
        return
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        shutil.copy(console, keep)
    if shown:
        print("the end of the console:", flush=True)
        for line in console.read_text(errors="replace").splitlines()[-LAST_LINES:]:
            print(f"    {''.join(c for c in line if c.isprintable())}", flush=True)


def _out_of_time(number: int, frame: object) -> None:
    raise TookTooLong("it took too long: see --within")


def _ended(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
