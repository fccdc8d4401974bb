"""Machines whose way to a real Ceph leads through a proxy that breaks it as it is told."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engines.ceph import Ceph
from tests.fakes.proxy import ThreadedProxy
from tests.mount.conftest import machine, place, processes, volume
from tests.mount.machine import Machine

__all__ = ["machine", "place", "processes", "volume"]


@pytest.fixture
def network(ceph: Ceph) -> Iterator[ThreadedProxy]:
    """What lies between the machines and Ceph."""
    with ThreadedProxy(ceph.endpoint) as proxy:
        yield proxy


@pytest.fixture
def on_network(ceph: Ceph, network: ThreadedProxy, place: Path) -> Iterator[Callable[..., Machine]]:
    """on_network(name, direct=False): a machine; directly at Ceph, or behind `network`."""
    url = f"s3://{ceph.fresh_name()}/volume"
    made: list[Machine] = []

    def make(name: str, *, direct: bool = False) -> Machine:
        one = Machine(place, name, url)
        endpoint = ceph.endpoint if direct else network.endpoint
        one.environ.update(ceph.environment() | {"AWS_ENDPOINT_URL_S3": endpoint})
        one.environ["HOME"] = str(one.place)
        if not made:
            one.format()
        made.append(one)
        return one

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def small_disk(place: Path) -> Iterator[Callable[[str, int], Path]]:
    """small_disk(name, size): a directory on a file system of that many bytes."""
    made: list[Path] = []

    def make(name: str, size: int) -> Path:
        path = place / name
        path.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True, timeout=20
        )
        made.append(path)
        return path

    yield make
    for path in made:
        subprocess.run(["umount", "-l", path], check=False, timeout=20)
