"""Other S3 servers on this machine, for as long as somebody wants them: versitygw, MinIO, s3rver.

    with Server.start("versitygw") as server:
        server.endpoint, server.access, server.secret, server.region

Their programs are built once, by `make engines` (tools/engines.sh), into ENGINES, outside of the
checkout.  Where one was not built, `missing` says so, and tests skip with that line.

Each listens on loopback only, keeps its data in a temporary directory, and ends with whoever
started it (setpriv --pdeathsig), as in ceph.py.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tests.engines.ceph import EngineError

ENGINES = Path(
    os.environ.get("MEGAFS_ENGINES")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megafs-engines"
)

ACCESS, SECRET = "megafs-tests", "only-on-loopback"

#: For each server: its arguments, given a port and a directory, and the path that says it is ready.
SERVERS: dict[str, tuple[Callable[[int, Path], list[str]], str]] = {
    "versitygw": (
        lambda port, place: ["--quiet", "--port", f"127.0.0.1:{port}", "--health", "/health",
                             "posix", str(place)],
        "/health",
    ),
    "minio": (
        lambda port, place: ["server", "--quiet", "--address", f"127.0.0.1:{port}", str(place)],
        "/minio/health/live",
    ),
    "s3rver": (
        lambda port, place: ["--silent", "--address", "127.0.0.1", "--port", str(port),
                             "--no-vhost-buckets", "--directory", str(place)],
        "/",
    ),
}  # fmt: skip
#: Those that create an object only if its name is free.  s3rver does not look at the condition, and
#: is here for that: a volume there has one writer at a time.
EXCLUSIVE = frozenset({"versitygw", "minio"})
#: The one key that s3rver knows.
_S3RVER = "S3RVER"


def missing(name: str) -> str:
    """Why the server cannot be started here, "" if it can."""
    if not (ENGINES / "bin" / name).exists():
        return f"{name} is not in {ENGINES}/bin: make engines"
    return ""


class Server:
    """A running server; made by `start`."""

    region = "us-east-1"

    def __init__(self, name: str, place: Path, port: int, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.access, self.secret = (_S3RVER, _S3RVER) if name == "s3rver" else (ACCESS, SECRET)
        self._place = place
        self._process = process
        self.endpoint = f"http://127.0.0.1:{port}"
        self._names = itertools.count(1)

    @classmethod
    def start(cls, name: str) -> Server:
        """Start it, and wait until it answers."""
        arguments, health = SERVERS[name]
        place = Path(tempfile.mkdtemp(prefix=f"megafs-{name}-", dir=_with_xattrs()))
        (place / "data").mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        keys = {
            "ROOT_ACCESS_KEY": ACCESS,
            "ROOT_SECRET_KEY": SECRET,
            "MINIO_ROOT_USER": ACCESS,
            "MINIO_ROOT_PASSWORD": SECRET,
            "MINIO_UPDATE": "off",
        }
        program = str(ENGINES / "bin" / name)
        with (place / "log").open("wb") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", program, *arguments(port, place / "data")],
                env={**os.environ, **keys},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=place,
            )
        server = cls(name, place, port, process)
        try:
            server._wait(health)
        except BaseException:
            server.stop()
            raise
        return server

    def fresh_name(self) -> str:
        """The name of a bucket that nobody has."""
        return f"megafs-{next(self._names)}"

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._place, ignore_errors=True)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _wait(self, health: str) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(self.endpoint + health, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        said = (self._place / "log").read_text(errors="replace")[-2000:]
        raise EngineError(f"{self.name} did not start:\n{said}")


def _with_xattrs() -> str | None:
    """A directory in memory where files can have attributes, which versitygw keeps its own in."""
    if not os.access("/dev/shm", os.W_OK):
        return None
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        try:
            os.setxattr(file.name, "user.megafs", b"1")
        except OSError:
            return None
    return "/dev/shm"
