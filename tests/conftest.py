"""What tests of more than one part share: real engines, started when first asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from trio.testing import MockClock

from megafs import concurrency
from megafs.stores.s3.credentials import Fixed
from megafs.stores.s3.driver import S3Store
from megafs.stores.s3.options import S3Settings
from megafs.stores.s3.sigv4 import Credentials
from megafs.supervisor import unexpected_is_raised
from tests.engines.ceph import Ceph
from tests.fakes.proxy import Proxy, proxying


@pytest.fixture(autouse=True)
def unexpected() -> Iterator[None]:
    """What a mount in this process would outlive fails the test."""
    with unexpected_is_raised():
        yield


@pytest.fixture
def autojump_clock() -> Iterator[MockClock]:
    """A clock that jumps ahead while nothing runs: no thread does, for it would jump over that."""
    with concurrency.in_place():
        yield MockClock(autojump_threshold=0)


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    """A real Ceph cluster with an S3 gateway, one for the whole run; in memory."""
    with Ceph() as cluster:
        yield cluster


@pytest.fixture
async def proxy(ceph: Ceph) -> AsyncIterator[Proxy]:
    """A proxy in front of Ceph that breaks requests as it is told."""
    async with proxying(ceph.endpoint) as running:
        yield running


@pytest.fixture
async def connect(ceph: Ceph) -> AsyncIterator[Callable[..., S3Store]]:
    """connect(bucket, prefix="", credentials=, connections=, fields of S3Settings): an S3Store.

    On Ceph, and closed after the test.
    """
    opened: list[S3Store] = []

    def make(bucket: str, prefix: str = "", **options: Any) -> S3Store:
        credentials = options.pop("credentials", Fixed(Credentials(ceph.access, ceph.secret)))
        connections = options.pop("connections", 16)
        settings = S3Settings(**({"endpoint": ceph.endpoint, "region": ceph.region} | options))
        opened.append(S3Store(bucket, prefix, credentials, settings, connections=connections))
        return opened[-1]

    yield make
    for store in opened:
        await store.aclose()
