"""A page and the links it opens, in a real browser."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class _Handler(SimpleHTTPRequestHandler):
    """Files with ranges, and whatever the test wants to go wrong."""

    server: FolderServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        status = self.server.trouble(self.path) if self.server.trouble else 0
        if status:
            self.send_error(status)
            return
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            path /= "index.html"
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        start, end, partial = self._range(size)
        if start >= end and size:
            self.send_response(416)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        self.send_response(206 if partial else 200)
        self.send_header("content-type", self.guess_type(str(path)))
        self.send_header("content-length", str(end - start))
        if partial:
            self.send_header("content-range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        with path.open("rb") as file:
            file.seek(start)
            left = end - start
            while left > 0:
                piece = file.read(min(left, 1 << 20))
                left -= len(piece)
                if self.server.cut is not None and "share/" in self.path:
                    self.server.cut -= len(piece)
                    if self.server.cut < 0:
                        self.server.cut = None
                        self.close_connection = True
                        return
                self.wfile.write(piece)

    def _range(self, size: int) -> tuple[int, int, bool]:
        asked = self.headers.get("range", "")
        if not asked.startswith("bytes="):
            return 0, size, False
        first, _, last = asked[6:].partition("-")
        return int(first), min(int(last) + 1, size) if last else size, True

    def log_message(self, *args: Any) -> None:
        pass


class FolderServer(ThreadingHTTPServer):
    """Serves a folder on a free port of loopback.

    seen: the path and headers of every request.  trouble: the status to answer instead, or 0.
    cut: after so many bytes of what is shared, one connection breaks.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        def handler(*args: Any) -> _Handler:
            return _Handler(*args, directory=str(folder))

        super().__init__(("127.0.0.1", 0), handler)
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.trouble: Any = None
        self.cut: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the browser broke off


@contextmanager
def serving_folder(folder: Path) -> Iterator[FolderServer]:
    with FolderServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
