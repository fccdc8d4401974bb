"""A wrong address is answered within seconds; a known volume needs no network to be mounted."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes.proxy import Proxy
from tests.fakes.s3 import Service, ThreadedService
from tests.mount.machine import Machine

pytestmark = pytest.mark.fuse


@contextmanager
def nobody() -> Iterator[str]:
    """A port at which connections are refused."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextmanager
def black_hole() -> Iterator[str]:
    """A port at which connections hang: its queue is full."""
    with socket.socket() as server, socket.socket() as one, socket.socket() as two:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for filler in (one, two):
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        time.sleep(0.1)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def timed(machine: Machine, *args: str | Path, code: int) -> tuple[float, str]:
    began = time.monotonic()
    done = machine.run(*args, code=code)
    lines = [line for line in done.stderr.splitlines() if line.startswith("megafs: ")]
    return time.monotonic() - began, lines[-1]


@pytest.fixture
def at_s3(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path, url="s3://bucket/v")
    machine.environ |= {
        "AWS_ACCESS_KEY_ID": "KEY",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "HOME": str(tmp_path),
    }
    yield machine
    machine.kill()


WRONG = {
    "refused": ("", 14, "cannot connect: Connection refused"),
    "unknown": ("https://does-not-exist.invalid", 14, "cannot connect"),
    "no TLS": ("https", 2, "does not speak TLS at this port: write http://"),
    "no scheme": ("http://[::1", 2, "not a URL"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_address_is_said_within_five_seconds(at_s3: Machine, what: str) -> None:
    endpoint, code, text = WRONG[what]
    with nobody() as refused, ThreadedService(Service()) as service:
        if not endpoint:
            endpoint = refused
        elif endpoint == "https":
            endpoint = service.endpoint.replace("http:", "https:")
        for args in (("format", at_s3.url), ("mount", at_s3.url, at_s3.mnt)):
            seconds, said = timed(at_s3, *args, "-o", f"endpoint={endpoint}", code=code)
            assert text in said
            assert seconds < 5
    assert not list(at_s3.mnt.iterdir())


@pytest.mark.parametrize("way", [nobody, black_hole])
def test_a_known_volume_is_mounted_without_a_network_within_two_seconds(
    at_s3: Machine, way: object
) -> None:
    with ThreadedService(Service()) as service:
        option = f"endpoint={service.endpoint}"
        at_s3.run("format", at_s3.url, "-o", option)
        at_s3.mount("-o", option)
        (at_s3.mnt / "f").write_bytes(b"known")
        at_s3.umount()
        began = time.monotonic()
        at_s3.mount("-o", option)
        with_network = time.monotonic() - began
        at_s3.umount()
        service.tell(Proxy.refuse)
    assert callable(way)
    fastest = 60.0
    for _ in range(3):  # another program may have had the processor
        with way() as endpoint:
            began = time.monotonic()
            at_s3.mount("-o", f"endpoint={endpoint}")
            fastest = min(fastest, time.monotonic() - began)
            assert (at_s3.mnt / "f").stat().st_size == 5
            at_s3.umount("--force")
        if fastest < 2:
            break
    # What starting a process takes on a loaded machine is not what is measured.
    assert fastest < max(2.0, with_network + 1.2)


def test_the_header_knows_that_the_store_takes_no_conditions(at_s3: Machine) -> None:
    """`conditional_put=no` was given to format, and is forgotten at every mount after it."""
    with ThreadedService(Service(conditions="refused")) as service:
        endpoint = ("-o", f"endpoint={service.endpoint}")
        refused = at_s3.run("format", at_s3.url, *endpoint, code=2)
        assert "conditional_put=no" in refused.stderr
        at_s3.run("format", at_s3.url, "-o", f"endpoint={service.endpoint},conditional_put=no")
        at_s3.mount(*endpoint)
        (at_s3.mnt / "a").write_bytes(b"written without conditions")
        at_s3.umount()
        at_s3.mount(*endpoint)
        assert (at_s3.mnt / "a").read_bytes() == b"written without conditions"
        at_s3.umount()
