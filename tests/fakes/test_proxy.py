"""The proxy does to requests what it was told, in an order that can be repeated."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from tests.fakes.proxy import Answer, Delay, Proxy, Reset, ThreadedProxy, slow_down


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def running() -> Iterator[ThreadedProxy]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with ThreadedProxy(f"http://127.0.0.1:{server.server_port}") as proxy:
        yield proxy
    server.shutdown()
    server.server_close()


def put(proxy: ThreadedProxy, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc, timeout=5)
    try:
        connection.request("PUT", "/a", body)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def test_what_is_not_broken_passes_unchanged(running: ThreadedProxy) -> None:
    body = bytes(range(256)) * 1000
    assert put(running, body) == (200, body)


def test_faults_come_in_their_order_and_then_no_more(running: ThreadedProxy) -> None:
    running.tell(Proxy.next, slow_down(3), Reset(), Answer(200, body=b"other"), method="PUT")
    assert put(running, b"1")[0] == 503
    with pytest.raises(ConnectionError):
        put(running, b"2")
    assert put(running, b"3") == (200, b"other")
    assert put(running, b"4") == (200, b"4")


def test_a_server_that_is_down_comes_back_on_the_same_port(running: ThreadedProxy) -> None:
    running.tell(Proxy.refuse)
    with pytest.raises(ConnectionRefusedError):
        put(running, b"1")
    running.tell(Proxy.accept)
    assert put(running, b"2") == (200, b"2")


def test_the_same_seed_is_the_same_weather(running: ThreadedProxy) -> None:
    def outcomes(seed: int) -> list[int]:
        running.tell(Proxy.weather, seed, [(0.3, slow_down()), (0.3, Delay(0.001))])
        return [put(running, b"x")[0] for _ in range(30)]

    first = outcomes(7)
    assert set(first) == {200, 503}
    assert outcomes(7) == first
    assert outcomes(8) != first
    running.tell(Proxy.heal)
    assert put(running, b"x")[0] == 200
