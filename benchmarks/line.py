"""A line between a program and its store: it delays, narrows and counts.

    with Line("127.0.0.1", 8000) as line:
        line.set(rtt=0.02, rate=12_500_000)      # seconds there and back; bytes a second each way
    line.set(rtt=0.1, rate=0, each=4e6)      # a long line: windows and losses slow each connection
        ...                                      # clients connect to line.port
        line.counts()                            # {"requests": ..., "sent": ..., "received": ...}

The bytes pass unchanged.  Every piece arrives half a round trip after it was sent, a new connection
costs one more (TCP's handshake), and all connections together share the rate, as on a real line.
Requests of HTTP/1.1 are counted by their heads; other protocols only have bytes.

It runs in a process of its own (`python -m benchmarks.line HOST PORT`), so that neither the
benchmark nor its clients share a core's lock with it, and ends with the one that started it: it
reads orders from stdin, one JSON object a line, and stops at its end.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType

PIECE = 64 << 10
#: Seconds of bytes that a narrow line's first router keeps.
QUEUE = 0.03


class Line:
    """The process, as the benchmark sees it."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, str(port))
        self.port = 0

    def __enter__(self) -> Line:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.line", *self._upstream],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.port = int(self._ask({})["port"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def _ask(self, order: dict[str, float]) -> dict[str, int]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def set(self, *, rtt: float, rate: float, each: float = 0.0) -> None:
        """rtt: seconds; rate, each: bytes a second in each direction of all connections together
        and of each; 0 for as fast as it goes.
        """
        self._ask({"rtt": rtt, "rate": rate, "each": each})

    def counts(self) -> dict[str, int]:
        """Since the start: requests, bytes to the store, bytes from it."""
        return self._ask({})


class _Requests:
    """Counts the requests of one connection of HTTP/1.1."""

    def __init__(self) -> None:
        self._head = b""
        self._body = 0

    def feed(self, data: bytes) -> int:
        found = 0
        while data:
            if self._body:
                taken = min(self._body, len(data))
                self._body -= taken
                data = data[taken:]
                continue
            self._head += data
            head, end, rest = self._head.partition(b"\r\n\r\n")
            if not end:
                if len(self._head) > 1 << 16:  # not HTTP
                    self._head = b""
                return found
            self._head = b""
            data = rest
            found += 1
            for line in head.split(b"\r\n")[1:]:
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length" and value.strip().isdigit():
                    self._body = int(value)
        return found


class _Proxy:
    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self.rtt = 0.0
        self.rate = 0.0
        self.each = 0.0
        self.counted = {"requests": 0, "sent": 0, "received": 0}
        #: When the line is free again, for each direction.
        self._free = {"sent": 0.0, "received": 0.0}
        self._tasks: set[asyncio.Task[None]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened = asyncio.get_running_loop().time()
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._upstream, limit=PIECE)
        except OSError:
            writer.close()
            return
        for end in (writer, far_writer):
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for way in (
            self._pass(reader, far_writer, "sent", opened + self.rtt),
            self._pass(far_reader, writer, "received", 0.0),
        ):
            task = asyncio.create_task(way)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        way: str,
        not_before: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        # What is under way; bounded as a TCP window is.
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)
        requests = _Requests()
        own = 0.0  # when this connection may send again

        async def arrive() -> None:
            broken = False
            while True:
                at, data = await under_way.get()
                if (wait := at - loop.time()) > 0:
                    await asyncio.sleep(wait)
                if not data:
                    break
                if not broken:
                    try:
                        writer.write(data)
                        await writer.drain()
                    except OSError:  # nobody is there any more: let the sender run dry
                        broken = True
            writer.close()

        arriving = asyncio.create_task(arrive())
        try:
            while True:
                # A narrow line has a short queue: others' pieces have to get in between.
                while self.rate and (lag := self._free[way] - loop.time()) > QUEUE:
                    await asyncio.sleep(lag - QUEUE / 2)
                while self.each and (lag := own - loop.time()) > QUEUE:
                    await asyncio.sleep(lag - QUEUE / 2)
                if not (data := await reader.read(PIECE)):
                    break
                self.counted[way] += len(data)
                if way == "sent":
                    self.counted["requests"] += requests.feed(data)
                now = max(loop.time(), not_before)
                if self.rate:
                    now = self._free[way] = max(now, self._free[way]) + len(data) / self.rate
                if self.each:
                    now = own = max(now, own) + len(data) / self.each
                await under_way.put((now + self.rtt / 2, data))
            await under_way.put((loop.time() + self.rtt / 2, b""))
            await arriving
        except OSError:  # one side is gone, so the other has to know
            arriving.cancel()
            writer.close()


async def _serve(host: str, port: int) -> None:
    proxy = _Proxy(host, port)
    server = await asyncio.start_server(proxy.connected, "127.0.0.1", 0, limit=PIECE, backlog=256)
    own = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        proxy.rtt = order.get("rtt", proxy.rtt)
        proxy.rate = order.get("rate", proxy.rate)
        proxy.each = order.get("each", proxy.each)
        print(json.dumps({"port": own, **proxy.counted}), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
