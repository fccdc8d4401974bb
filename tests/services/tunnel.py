"""The way for programs that know their service by name alone: a proxy that leads them elsewhere.

    with Tunnel(service.endpoint, authority / "server.pem") as tunnel:
        subprocess.run(..., env={"HTTPS_PROXY": tunnel.url})

Whatever host a program asks the proxy for (CONNECT), it speaks TLS to us, with a certificate whose
authority the program must trust, and what it says goes to *upstream* in the clear.
"""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from urllib.parse import urlsplit

import trio


class Tunnel:
    """A proxy in a thread of its own.

    upstream: an http:// URL.  certificate: key and certificate for the names asked for.
    """

    def __init__(self, upstream: str, certificate: Path) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname and parts.port
        self._upstream = (parts.hostname, parts.port)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,), daemon=True)
        self._token: trio.lowlevel.TrioToken
        self._stop: trio.Event
        #: The hosts that were asked for.
        self.hosts: set[str] = set()
        self.url = ""

    def __enter__(self) -> Tunnel:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
        self._thread.join(10)

    async def _run(self) -> None:
        self._token, self._stop = trio.lowlevel.current_trio_token(), trio.Event()
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                lambda task_status: trio.serve_tcp(
                    self._client, 0, host="127.0.0.1", task_status=task_status
                )
            )
            self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            self._ready.set()
            await self._stop.wait()
            nursery.cancel_scope.cancel()

    async def _client(self, client: trio.SocketStream) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            more = await client.receive_some(1)
            if not more:
                return
            head += more
        method, host, _ = head.decode("latin-1").split(" ", 2)
        assert method == "CONNECT"
        self.hosts.add(host.partition(":")[0])
        await client.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        inside = trio.SSLStream(client, self._context, server_side=True, https_compatible=True)
        try:
            service = await trio.open_tcp_stream(*self._upstream)
            async with service, trio.open_nursery() as nursery:
                nursery.start_soon(_pass, inside, service)
                await _pass(service, inside)
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass  # whoever hangs up first


async def _pass(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream) -> None:
    while data := await source.receive_some(1 << 16):
        await sink.send_all(data)
