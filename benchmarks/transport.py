"""CPU of receiving object bodies: ours, httpx as it comes, http.client, curl, side by side.

    python -m benchmarks.transport [--rounds N] [--out DIR]

Ranged GETs of 1, 4 and 16 MiB, one or eight at once, over plain HTTP and TLS, from a server in
another process on loopback that answers from memory.  Counted is the CPU of the client alone, of
all its threads, in ms per MiB; of several rounds, in which the clients take turns, the medians.

megafs signs each request and gives the body as one `bytes`; http.client is a loop in a thread (or
eight) that reads into a buffer it keeps; curl writes to /dev/null, and what it takes to start is
taken off.  The goals: 1.5 times http.client on plain HTTP, twice curl on TLS.

Writes DIR/transport.jsonl and prints a table.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import re
import resource
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
import trio

from benchmarks.workloads import side_by_side
from megafs.stores.s3.credentials import Fixed
from megafs.stores.s3.driver import S3Store
from megafs.stores.s3.options import S3Settings
from megafs.stores.s3.sigv4 import Credentials
from tests.fakes.authority import authority

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20
SIZES = (1, 4, 16)
AT_ONCE = (1, 8)
#: MiB that each measurement brings.
AMOUNT = 128
PATH = "/bucket/object"


# ---- the server ---------------------------------------------------------------------------------


class Handler(socketserver.BaseRequestHandler):
    """Answers ranges of zeros, for ever on one connection."""

    body = memoryview(bytes(max(SIZES) * MIB))
    context: ssl.SSLContext | None = None

    def handle(self) -> None:
        sock = self.request
        if self.context is not None:
            sock = self.context.wrap_socket(sock, server_side=True)
        held = b""
        while True:
            while b"\r\n\r\n" not in held:
                got = sock.recv(65536)
                if not got:
                    return
                held += got
            head, _, held = held.partition(b"\r\n\r\n")
            found = re.search(rb"(?i)range: bytes=(\d+)-(\d+)", head)
            start, end = (int(found[1]), int(found[2]) + 1) if found else (0, 1)
            sock.sendall(
                b"HTTP/1.1 206 Partial Content\r\nContent-Length: %d\r\n"
                b'Content-Range: bytes %d-%d/%d\r\nETag: "x"\r\n\r\n'
                % (end - start, start, end - 1, len(self.body))
            )
            sock.sendall(self.body[start:end])


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients leave as they like."""


def serve(pem: str) -> None:
    """Until standard input ends."""
    if pem:
        Handler.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        Handler.context.load_cert_chain(pem)
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_address[1], flush=True)
        sys.stdin.read()


@contextmanager
def server(pem: Path | None) -> Iterator[int]:
    command = [sys.executable, "-m", "benchmarks.transport", "--serve", str(pem or "")]
    child = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdin is not None
    try:
        yield int(child.stdout.readline())
    finally:
        child.stdin.close()
        child.wait()


# ---- the clients --------------------------------------------------------------------------------


class Client:
    """port, pem: where to, and whom to trust; no pem is plain HTTP."""

    name = ""

    def __init__(self, port: int, pem: Path | None) -> None:
        self.port = port
        self.pem = pem
        self.url = f"{'https' if pem else 'http'}://127.0.0.1:{port}"

    def bring(self, size: int, count: int, at_once: int) -> None:
        """*count* bodies of *size* bytes."""
        raise NotImplementedError

    def cpu(self, size: int, count: int, at_once: int) -> float:
        """Seconds of CPU that it takes."""
        begin = resource.getrusage(resource.RUSAGE_SELF)
        self.bring(size, count, at_once)
        end = resource.getrusage(resource.RUSAGE_SELF)
        return end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime


class Ours(Client):
    name = "megafs"

    def bring(self, size: int, count: int, at_once: int) -> None:
        async def main() -> None:
            store = S3Store(
                "bucket", "", Fixed(Credentials("access", "secret")),
                S3Settings(endpoint=self.url, ca=self.pem),
            )  # fmt: skip

            async def some(n: int) -> None:
                for _ in range(n):
                    assert len(await store.get("object", 0, size)) == size

            async with trio.open_nursery() as nursery:
                for _ in range(at_once):
                    nursery.start_soon(some, count // at_once)
            await store.aclose()

        trio.run(main)


class Httpx(Client):
    name = "httpx"

    def bring(self, size: int, count: int, at_once: int) -> None:
        trust = ssl.create_default_context(cafile=str(self.pem)) if self.pem else False

        async def main() -> None:
            async with httpx.AsyncClient(verify=trust, trust_env=False) as client:

                async def some(n: int) -> None:
                    for _ in range(n):
                        asked = {"range": f"bytes=0-{size - 1}"}
                        answer = await client.get(self.url + PATH, headers=asked)
                        assert len(answer.content) == size

                async with trio.open_nursery() as nursery:
                    for _ in range(at_once):
                        nursery.start_soon(some, count // at_once)

        trio.run(main)


class HttpClient(Client):
    name = "http.client"

    def bring(self, size: int, count: int, at_once: int) -> None:
        def some(_number: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port)
            if self.pem:
                trust = ssl.create_default_context(cafile=str(self.pem))
                connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=trust)
            buffer = memoryview(bytearray(size))
            for _ in range(count // at_once):
                connection.request("GET", PATH, headers={"range": f"bytes=0-{size - 1}"})
                answer = connection.getresponse()
                got = 0
                while got < size:
                    part = answer.readinto(buffer[got:])
                    assert part
                    got += part
                answer.read()
            connection.close()

        side_by_side(some, at_once)


class Curl(Client):
    name = "curl"

    def bring(self, size: int, count: int, at_once: int) -> None:
        command = ["curl", "-s", "--fail", "-r", f"0-{size - 1}"]
        if self.pem:
            command += ["--cacert", str(self.pem)]
        if at_once > 1:
            command += ["-Z", "--parallel-max", str(at_once)]
        for _ in range(count):
            command += ["-o", "/dev/null", self.url + PATH]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)

    def cpu(self, size: int, count: int, at_once: int) -> float:
        return self._cpu(size, count, at_once) - self._cpu(1, at_once, at_once)

    def _cpu(self, size: int, count: int, at_once: int) -> float:
        begin = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.bring(size, count, at_once)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        return end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime


CLIENTS = (Ours, HttpClient, Curl, Httpx)


def measure(rounds: int, tell: Callable[[dict[str, object]], None]) -> None:
    with tempfile.TemporaryDirectory(prefix="megafs-transport-") as directory:
        tls = authority(Path(directory) / "tls")
        with server(None) as plain, server(tls / "server.pem") as secure:
            for trust, port in ((None, plain), (tls / "ca.pem", secure)):
                clients = [kind(port, trust) for kind in CLIENTS]
                for mib, at_once in itertools.product(SIZES, AT_ONCE):
                    count = max(AMOUNT // mib, at_once)
                    for turn in range(rounds + 1):
                        for client in clients[turn % 2 :: 1] + clients[: turn % 2]:
                            cpu = client.cpu(mib * MIB, count, at_once) / count / mib
                            if turn:  # the first round warms up
                                tell(
                                    {
                                        "line": "TLS" if trust else "HTTP",
                                        "mib": mib,
                                        "at_once": at_once,
                                        "client": client.name,
                                        "ms": cpu * 1000,
                                    }
                                )


def table(rows: list[dict[str, object]]) -> str:
    names = [kind.name for kind in CLIENTS]
    lines = [
        "CPU-ms per MiB; in parentheses, how many times that of the client megafs took.",
        "",
        "| | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for line, mib, at_once in itertools.product(("HTTP", "TLS"), SIZES, AT_ONCE):
        here = [r for r in rows if (r["line"], r["mib"], r["at_once"]) == (line, mib, at_once)]
        if not here:
            continue
        cost = {n: median(float(str(r["ms"])) for r in here if r["client"] == n) for n in names}
        cells = [f"{cost['megafs']:.2f}"]
        cells += [f"{cost[n]:.2f} ({cost['megafs'] / cost[n]:.2g}x)" for n in names[1:]]
        lines.append(f"| {line}, {mib} MiB, {at_once} at once | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve)
        return 0
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        del os.environ[name]
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    with (args.out / "transport.jsonl").open("w") as file:

        def tell(row: dict[str, object]) -> None:
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()

        measure(args.rounds, tell)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
