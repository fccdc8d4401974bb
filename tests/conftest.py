"""What tests of more than one part share: real engines, started when first asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.ceph import Ceph


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    """A real Ceph cluster with an S3 gateway, one for the whole run; in memory."""
    with Ceph() as cluster:
        yield cluster
