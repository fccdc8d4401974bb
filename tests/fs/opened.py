"""Volumes for tests: formatted once for each set of parameters, in memory, opened at will.

    async with opened(tmp_path) as volume: ...          a volume of its own, empty
    store = new_store(); opened(tmp_path / "a", store)  one volume on several machines

A key file opens it, for that needs no Argon2.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from megafs.config import KIB, Parameters, Settings
from megafs.fs.filesystem import FileSystem
from megafs.fs.requests import Caller
from megafs.stores.base import ObjectStore
from megafs.stores.memory import MemoryStore
from megafs.volume.create import format_volume
from megafs.volume.header import Credential
from megafs.volume.open import open_volume
from megafs.volume.volume import Volume

CREDENTIAL = Credential(keyfile=bytes(range(64)))
ROOT = Caller(0, 0, 0, 0)
USER = Caller(1000, 1000, 0, 0)
CHUNK = 16 * KIB
#: Small pieces, so that small files cross the borders of everything.
SMALL = Parameters(chunk_size=CHUNK, pack_size=128 * KIB, inline_limit=64, quota=None)

_formatted: dict[Parameters, MemoryStore] = {}


def new_store(params: Parameters = SMALL) -> MemoryStore:
    """A store that holds a new volume.  Call it outside of trio, or use `new_store_here`."""
    if params not in _formatted:
        trio.run(_format, params)
    return copy.deepcopy(_formatted[params])


async def new_store_here(params: Parameters = SMALL) -> MemoryStore:
    """As `new_store`, from within trio."""
    if params not in _formatted:
        await _format(params)
    return copy.deepcopy(_formatted[params])


async def _format(params: Parameters) -> None:
    store = MemoryStore()
    await format_volume(store, CREDENTIAL, params, profile="low-memory")
    _formatted[params] = store


@asynccontextmanager
async def opened(
    place: Path,
    store: ObjectStore | None = None,
    params: Parameters = SMALL,
    host: str = "here",
    **settings: Any,
) -> AsyncIterator[Volume]:
    """The volume in *store*, open with its state below *place*."""
    if store is None:
        store = await new_store_here(params)
    chosen: dict[str, Any] = {"cache_min_free": 0, "stage_min_free": 0, "fsync": "local"}
    async with open_volume(
        "memory://test",
        CREDENTIAL,
        Settings(state_dir=place / "state", cache_dir=place / "cache", **(chosen | settings)),
        host=host,
        store=store,
    ) as volume:
        yield volume


async def put_file(fs: FileSystem, parent: int, name: bytes, data: bytes = b"") -> int:
    """Make a file and close it; return its inode number."""
    handle, inode = await fs.create(parent, name, 0o644, 2, ROOT)
    if data:
        await fs.write(handle, 0, data)
    await fs.flush(handle)
    await fs.release(handle)
    return inode.ino


async def contents(fs: FileSystem, ino: int) -> bytes:
    """All bytes of a file."""
    handle, _ = await fs.open(ino, 0, ROOT)
    data = bytes(await fs.read(handle, 0, fs.getattr(ino).size))
    await fs.release(handle)
    return data
