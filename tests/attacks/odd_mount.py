"""`megafs` with a store whose methods raise what nobody thought of, when told to.

    ODD=file python -m tests.attacks.odd_mount mount ...

The file says what: lines of LEVEL METHOD ERROR.  LEVEL "driver" is beneath retries, "store" above,
"kernel" the mount itself.
"""

from __future__ import annotations

import os
from pathlib import Path

from megafs.__main__ import main
from megafs.metrics import Registry
from megafs.mount import salvage_mount
from megafs.mount.fuse import KernelMount
from megafs.stores.base import Buffer, ObjectStore, Page
from megafs.stores.disk_cache.cache_entries import CacheEntry
from megafs.stores.disk_cache.cached_store import DiskCached
from megafs.stores.disk_cache.range_file import RangeFile
from megafs.stores.local.driver import LocalStore
from megafs.stores.stack import Traffic, open_store
from megafs.stores.wrapper import Wrapper
from megafs.volume import open as opening

METHODS = ("get", "put", "put_new", "delete", "list")


class Unheard(Exception):
    """Derives from nothing that anybody expects."""


ERRORS: dict[str, Exception] = {
    "KeyError": KeyError("odd"),
    "RecursionError": RecursionError("odd"),
    "AssertionError": AssertionError("odd"),
    "Unheard": Unheard("odd\x1b[31m"),
    "group": ExceptionGroup("odd", [ValueError("odd"), Unheard("odd")]),
    "unicode": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd"),
}


def _look(level: str, method: str) -> None:
    for line in Path(os.environ["ODD"]).read_text().splitlines():
        where, what, error = line.split()
        if (where, what) == (level, method):
            raise ERRORS[error]


class OddDriver(LocalStore):
    """A driver with a fault."""

    async def get(self, name: str, start: int, length: int) -> bytes:
        _look("driver", "get")
        return await super().get(name, start, length)

    async def put(self, name: str, data: Buffer) -> None:
        _look("driver", "put")
        await super().put(name, data)

    async def put_new(self, name: str, data: Buffer) -> None:
        _look("driver", "put_new")
        await super().put_new(name, data)

    async def delete(self, name: str) -> None:
        _look("driver", "delete")
        await super().delete(name)

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        _look("driver", "list")
        return await super().list(prefix, after, limit)


class OddStore(Wrapper):
    """Above everything that makes a store error of what a driver raises."""

    async def get(self, name: str, start: int, length: int) -> bytes:
        _look("store", "get")
        return await super().get(name, start, length)

    async def put(self, name: str, data: Buffer) -> None:
        _look("store", "put")
        await super().put(name, data)

    async def put_new(self, name: str, data: Buffer) -> None:
        _look("store", "put_new")
        await super().put_new(name, data)

    async def delete(self, name: str) -> None:
        _look("store", "delete")
        await super().delete(name)

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        _look("store", "list")
        return await super().list(prefix, after, limit)


class OddCache(DiskCached):
    """A disk cache with a fault."""

    def _keep(self, entry: CacheEntry, data: bytes | RangeFile) -> bool:
        _look("cache", "keep")
        return super()._keep(entry, data)

    async def _serve(self) -> None:
        _look("cache", "serve")
        await super()._serve()

    async def _shut(self) -> None:
        _look("cache", "serve")
        await super()._shut()


class OddKernel(KernelMount):
    """A mount that cannot be stopped."""

    def stop(self, patience: float = 5.0) -> None:
        _look("kernel", "stop")
        super().stop(patience)


def _open(url: str, options: dict[str, str], traffic: Traffic, metrics: Registry) -> ObjectStore:
    return OddStore(open_store(url, options, traffic, metrics))


if __name__ == "__main__":
    from megafs.stores.disk_cache import cached_store
    from megafs.stores.local import driver

    driver.LocalStore = OddDriver  # type: ignore[misc]
    cached_store.DiskCached = OddCache  # type: ignore[misc]
    setattr(opening, "open_store", _open)  # noqa: B010
    setattr(salvage_mount, "KernelMount", OddKernel)  # noqa: B010
    main()
