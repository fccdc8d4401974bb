"""Pins: what is pinned reads without the store, grows, and follows renames."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from megafs.config import MIB
from megafs.errors import BadUsage, Unavailable
from megafs.jobs import pins
from megafs.jobs.messages import Nothing, PinArgs
from megafs.progress import ignore
from megafs.stores.base import Buffer, ObjectStore, Page
from megafs.stores.disk_cache.cached_store import DiskCached
from megafs.stores.wrapper import Wrapper
from megafs.volume.volume import Volume
from tests.fs.opened import ROOT, new_store_here, opened


class Switchable(Wrapper):
    """A store that can be taken away."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self.away = False

    def _check(self) -> None:
        if self.away:
            raise Unavailable("taken away by the test")

    async def get(self, name: str, start: int, length: int) -> bytes:
        self._check()
        return await self.beneath.get(name, start, length)

    async def put_new(self, name: str, data: Buffer) -> None:
        self._check()
        await self.beneath.put_new(name, data)

    async def put(self, name: str, data: Buffer) -> None:
        self._check()
        await self.beneath.put(name, data)

    async def delete(self, name: str) -> None:
        self._check()
        await self.beneath.delete(name)

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        self._check()
        return await self.beneath.list(prefix, after, limit)


async def _written(volume: Volume, path: str, data: bytes) -> None:
    parent = 1
    *above, name = path.strip("/").split("/")
    for part in above:
        found = volume.replica.tree.child(parent, part.encode())
        if found is None:
            found = (await volume.fs.mkdir(parent, part.encode(), 0o755, ROOT)).ino
        parent = found
    fh, _ = await volume.fs.create(parent, name.encode(), 0o644, os.O_RDWR, ROOT)
    await volume.fs.write(fh, 0, data)
    await volume.fs.flush(fh)
    await volume.fs.release(fh)


async def _read(volume: Volume, path: str) -> bytes:
    ino = volume.replica.tree.walk(path.encode())
    fh, _ = await volume.fs.open(ino, os.O_RDONLY, ROOT)
    try:
        return bytes(await volume.fs.read(fh, 0, 16 * MIB))
    finally:
        await volume.fs.release(fh)


async def test_what_is_pinned_reads_without_the_store(tmp_path: Path) -> None:
    store = await new_store_here()
    contents = {f"/kept/{n}": os.urandom(40_000) for n in range(5)}
    async with opened(tmp_path / "writer", store) as volume:
        for path, data in contents.items():
            await _written(volume, path, data)
        await _written(volume, "/other", os.urandom(40_000))
        await volume.drain()
    switch = Switchable(store)
    cached = DiskCached(switch, tmp_path / "cache", 64 * MIB)
    async with opened(tmp_path / "reader", cached) as volume:
        result = await pins.pin(volume, PinArgs("/kept"), ignore)
        await cached.written()
        assert result.missing_bytes == 0
        switch.away = True
        for path, data in contents.items():
            assert await _read(volume, path) == data
        with pytest.raises(Unavailable):
            await _read(volume, "/other")
        (row,) = (await pins.list_pins(volume, Nothing(), ignore)).pins
        assert row.path == "/kept"
        assert row.cached_bytes == row.bytes > 200_000
        switch.away = False
    await cached.aclose()


async def test_a_pin_grows_with_what_others_put_below_and_ends_with_unpin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pins, "INTERVAL", 0.05)
    store = await new_store_here()
    switch = Switchable(store)
    cached = DiskCached(switch, tmp_path / "cache", 64 * MIB)
    new = os.urandom(50_000)
    async with (
        opened(tmp_path / "a", store) as other,
        opened(tmp_path / "b", cached) as volume,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(pins.keep, volume)  # as a mount does
        await _written(other, "/kept/first", b"x" * 5000)
        await other.drain()
        await volume.writer.catch_up()
        await pins.pin(volume, PinArgs("/kept"), ignore)
        await _written(other, "/kept/second", new)
        await other.drain()
        await volume.writer.catch_up()
        with trio.fail_after(20):
            while True:
                await trio.sleep(0.05)
                await cached.written()
                (row,) = (await pins.list_pins(volume, Nothing(), ignore)).pins
                if row.bytes >= 50_000 and row.cached_bytes == row.bytes:
                    break
        switch.away = True
        assert await _read(volume, "/kept/second") == new
        switch.away = False
        await pins.unpin(volume, PinArgs("/kept"), ignore)
        assert (await pins.list_pins(volume, Nothing(), ignore)).pins == []
        with pytest.raises(BadUsage):
            await pins.unpin(volume, PinArgs("/kept"), ignore)
        nursery.cancel_scope.cancel()
    await cached.aclose()


async def test_what_does_not_fit_the_cache_is_not_pinned(tmp_path: Path) -> None:
    store = await new_store_here()
    cached = DiskCached(store, tmp_path / "cache", 1 * MIB)
    async with opened(tmp_path / "a", cached, cache_size=1 * MIB) as volume:
        await _written(volume, "/big", os.urandom(2 * MIB))
        with pytest.raises(BadUsage, match="cache_size"):
            await pins.pin(volume, PinArgs("/big"), ignore)
        assert pins.pinned(volume) == []
    await cached.aclose()


async def test_a_command_that_opens_the_volume_pushes_nothing_pinned_out_of_the_cache(
    tmp_path: Path,
) -> None:
    store = await new_store_here()
    kept = os.urandom(300_000)
    async with opened(tmp_path / "writer", store) as volume:
        await _written(volume, "/kept", kept)
        for n in range(8):
            await _written(volume, f"/{n}", os.urandom(300_000))
        await volume.drain()
    for protected in (False, True):
        switch = Switchable(store)
        place = tmp_path / str(protected)
        cached = DiskCached(switch, place / "cache", 1 * MIB)
        async with opened(place, cached, cache_size=1 * MIB) as volume:
            await pins.pin(volume, PinArgs("/kept"), ignore)
            await cached.written()
        await cached.aclose()
        # Another process: a command, which reads more than the cache holds.
        cached = DiskCached(switch, place / "cache", 1 * MIB)
        async with opened(place, cached, cache_size=1 * MIB) as volume:
            if protected:
                await pins.protect(volume)
            for n in range(8):
                await _read(volume, f"/{n}")
                await cached.written()
            volume.chunks.clear()
            (row,) = (await pins.list_pins(volume, Nothing(), ignore)).pins
            assert (row.cached_bytes == row.bytes) is protected
        await cached.aclose()
