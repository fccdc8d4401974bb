"""megafs and `rclone mount` with crypt on one WebDAV server, at the end of a line of 20 ms.

    python -m benchmarks.webdav [--server nginx] [--rtt 0.02] [--files 500] [--size 64] [--rounds 3]

Each peer has a line of its own to the same server, so that its requests are counted; the peers take
turns within a round, so that whatever else the machine does meets all of them.  Three rows:

    small   so many files of 2 KiB are written and closed; until all are in the store
    write   so many MiB in one file; until all are in the store
    read    the same file on a machine that has never seen it: mounted anew, without a cache

The median of the rounds is shown, with the requests and the processor time of the last one.  What
megafs proves of the store at a machine's first mount, ten seconds after it, is waited for before.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.line import Line
from benchmarks.peers import PASSPHRASE, Megafs, Peer, PeerFailed, Rclone, RcloneFull, free_port
from tests.engines.dav import KINDS, Dav

SMALL = 2048


class DavMegafs(Megafs):
    """megafs with its defaults."""

    beginning = 25.0

    def __init__(self, place: Path, port: int) -> None:
        super().__init__(place, {}, "", "")
        self._url = f"webdav+http://127.0.0.1:{port}/dav/megafs-{place.name}"


class DavRclone(Rclone):
    """`rclone mount` of a crypt remote; `--vfs-cache-mode off`."""

    beginning = 0.0

    name = "rclone crypt"

    def __init__(self, place: Path, port: int) -> None:
        Peer.__init__(self, place)
        self._port = free_port()
        obscured = subprocess.run(
            ["rclone", "obscure", PASSPHRASE], capture_output=True, text=True, check=True
        ).stdout.strip()
        self._config = self.place / "rclone.conf"
        self._folder = f"dav:{self.place.name}-{place.name}"
        self._config.write_text(
            f"[dav]\ntype = webdav\nurl = http://127.0.0.1:{port}/dav\nvendor = other\n"
            f"[crypt]\ntype = crypt\nremote = {self._folder}\npassword = {obscured}\n"
        )

    def make(self) -> None:
        self.run("rclone", "--config", self._config, "mkdir", self._folder)


class DavRcloneFull(DavRclone):
    """The same with `--vfs-cache-mode full --vfs-write-back 1ms --transfers 16`."""

    name, cache, quiet = RcloneFull.name, RcloneFull.cache, RcloneFull.quiet


PEERS: tuple[type[DavMegafs | DavRclone], ...] = (DavMegafs, DavRclone, DavRcloneFull)


def small(peer: Peer, files: int) -> None:
    """Write the small files."""
    directory = peer.mnt / "small"
    directory.mkdir()
    for n in range(files):
        (directory / f"file-{n:04}").write_bytes(os.urandom(SMALL))


def write(peer: Peer, data: bytes) -> None:
    """Write the large file."""
    with (peer.mnt / "large").open("wb") as file:
        for at in range(0, len(data), 1 << 20):
            file.write(data[at : at + (1 << 20)])


def read(peer: Peer, data: bytes) -> None:
    """Read the large file, and see that it is what was written."""
    with (peer.mnt / "large").open("rb") as file:
        for at in range(0, len(data), 1 << 20):
            if file.read(1 << 20) != data[at : at + (1 << 20)]:
                raise PeerFailed(f"it gives other bytes at {at}")


class Table:
    """What was measured: seconds by row and peer, and the requests of the last round."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], list[float]] = {}
        self.requests: dict[tuple[str, str], int] = {}
        self.cpu: dict[tuple[str, str], float] = {}

    def measure(self, row: str, peer: Peer, line: Line, step: Callable[[], None]) -> None:
        """Do a step of a row and wait until everything is in the store."""
        before, used = line.counts()["requests"], peer.usage()
        begin = time.perf_counter()
        step()
        peer.settle(600)
        seconds = time.perf_counter() - begin - peer.quiet
        self.seconds.setdefault((row, peer.name), []).append(seconds)
        self.requests[row, peer.name] = line.counts()["requests"] - before
        self.cpu[row, peer.name] = peer.usage() - used
        print(f"  {row:<6} {peer.name:<18} {seconds:7.2f} s", flush=True)

    def show(self) -> None:
        """Print the medians."""
        peers = list(dict.fromkeys(peer for _, peer in self.seconds))
        print("\n| row | " + " | ".join(peers) + " |\n|---|" + "---|" * len(peers))
        for row in dict.fromkeys(row for row, _ in self.seconds):
            cells = [
                f"{statistics.median(self.seconds[row, peer]):.2f} s,"
                f" {self.requests[row, peer]} requests, {self.cpu[row, peer]:.1f} s CPU"
                if (row, peer) in self.seconds
                else "failed"
                for peer in peers
            ]
            print(f"| {row} | " + " | ".join(cells) + " |")


def one(peer: DavMegafs | DavRclone, line: Line, table: Table, files: int, data: bytes) -> None:
    """One peer's turn in a round."""
    try:
        peer.make()
        peer.mount(fresh=True)
        time.sleep(peer.beginning)
        table.measure("small", peer, line, lambda: small(peer, files))
        table.measure("write", peer, line, lambda: write(peer, data))
        peer.umount(600)
        peer.mount(fresh=True)
        table.measure("read", peer, line, lambda: read(peer, data))
        peer.umount(600)
    except (PeerFailed, OSError, subprocess.SubprocessError) as exc:
        print(f"  {peer.name}: {exc}", flush=True)
    finally:
        peer.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", choices=KINDS, default="nginx")
    parser.add_argument("--rtt", type=float, default=0.02)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--size", type=int, default=64, help="MiB")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    data = os.urandom(args.size << 20)
    table = Table()
    with Dav(args.server) as server, tempfile.TemporaryDirectory(prefix="megafs-dav-bench-") as top:
        for number in range(args.rounds):
            print(f"round {number + 1}", flush=True)
            place = Path(top) / str(number)
            place.mkdir()
            with ExitStack() as stack:
                kinds: tuple[type[DavMegafs | DavRclone], ...] = (
                    DavMegafs,
                    DavRclone,
                    DavRcloneFull,
                )
                for kind in kinds:
                    line = stack.enter_context(Line("127.0.0.1", server.port))
                    line.set(rtt=args.rtt, rate=0)
                    one(kind(place, line.port), line, table, args.files, data)
    print(f"\n{args.server}, {args.rtt * 1000:.0f} ms, {args.files} files, {args.size} MiB")
    table.show()
    return 0


if __name__ == "__main__":
    sys.exit(main())
