"""The S3 driver keeps the contract of stores on a real Ceph, alone and as megafs uses it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from megafs.stores.base import ObjectStore
from megafs.stores.limit import Limited
from megafs.stores.retry import Retrying
from megafs.stores.s3.driver import S3Store
from tests.engines.ceph import Ceph
from tests.stores.contract import StoreContract

pytestmark = pytest.mark.ceph


class TestWholeBucket(StoreContract):
    @pytest.fixture
    async def store(self, ceph: Ceph, connect: Callable[..., S3Store]) -> ObjectStore:
        store = connect(ceph.fresh_name())
        await store.create()
        return store


class TestBelowAPrefix(StoreContract):
    @pytest.fixture
    async def store(self, ceph: Ceph, connect: Callable[..., S3Store]) -> ObjectStore:
        bucket = ceph.fresh_name()
        neighbour = connect(bucket, "a/prefix-2")
        await neighbour.create()
        await neighbour.put_new("packs/ab/one", b"not yours")
        return connect(bucket, "a/prefix")


class TestAsMegafsUsesIt(StoreContract):
    @pytest.fixture
    async def store(self, ceph: Ceph, connect: Callable[..., S3Store]) -> ObjectStore:
        store = Retrying(Limited(connect(ceph.fresh_name(), "v", connections=12), 4, 8))
        await store.create()
        return store
