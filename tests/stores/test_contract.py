"""Every driver and wrapper that needs no server keeps the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from megafs.metrics import Registry
from megafs.stores.base import ObjectStore
from megafs.stores.disk_cache.cached_store import DiskCached
from megafs.stores.early_requests import EarlyRequests
from megafs.stores.limit import Limited
from megafs.stores.local import placing
from megafs.stores.local.driver import LocalStore
from megafs.stores.memory import MemoryStore
from megafs.stores.retry import Retrying
from megafs.stores.stack import cached, open_store
from tests.fakes.faulty import Faulty
from tests.stores.contract import StoreContract


class TestMemory(StoreContract):
    @pytest.fixture
    async def store(self) -> ObjectStore:
        return MemoryStore()


class TestLocal(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> ObjectStore:
        store = LocalStore(tmp_path / "deep" / "store")
        await store.create()
        return store


class TestLocalWithoutHardLinks(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> ObjectStore:
        store = LocalStore(tmp_path)
        store._ways = store._ways[1:]
        assert store._ways[0][0] is placing.by_rename
        return store


class TestLocalWithClaims(StoreContract):
    """A file system with neither hard links nor renames that refuse to replace."""

    @pytest.fixture
    async def store(self, tmp_path: Path) -> ObjectStore:
        store = LocalStore(tmp_path)
        store._ways = store._ways[2:]
        # A loser may meet a claim that is just being made good: that is worth another try.
        return Retrying(store)


class TestLimited(StoreContract):
    @pytest.fixture
    async def store(self) -> ObjectStore:
        return Limited(MemoryStore(), 2, 3)


class TestRetrying(StoreContract):
    @pytest.fixture
    async def store(self) -> ObjectStore:
        return Retrying(MemoryStore())


class TestAhead(StoreContract):
    @pytest.fixture
    async def store(self) -> ObjectStore:
        return EarlyRequests(MemoryStore())


class TestFaultyWithoutFaults(StoreContract):
    @pytest.fixture
    async def store(self) -> ObjectStore:
        return Faulty(MemoryStore())


class TestCached(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[ObjectStore]:
        store = DiskCached(MemoryStore(), tmp_path / "cache", 16 << 20)
        yield store
        await store.aclose()


class TestCachedWithoutRoom(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[ObjectStore]:
        store = DiskCached(MemoryStore(), tmp_path / "cache", 0)
        yield store
        await store.aclose()


class TestCachedOnNothing(StoreContract):
    """A directory that cannot be made."""

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[ObjectStore]:
        (tmp_path / "file").write_bytes(b"in the way")
        store = DiskCached(MemoryStore(), tmp_path / "file" / "cache", 16 << 20)
        yield store
        await store.aclose()


class TestFullStack(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[ObjectStore]:
        store = cached(
            open_store(f"file://{tmp_path}/store"), tmp_path / "cache", 1 << 30, 0, Registry()
        )
        await store.create()
        yield store
        await store.aclose()
