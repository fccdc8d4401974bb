"""Two mounts of one volume with files open: what waits in memory is kept, what is read is right."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from megafs.errors import Refused
from megafs.fs.filesystem import FileSystem
from megafs.fs.names import RENAME_WHITEOUT
from megafs.fs.requests import Invalidation
from megafs.volume.volume import Volume
from tests.fs.opened import CHUNK, ROOT, contents, new_store_here, opened, put_file
from tests.tree.invariants import check, rows


@asynccontextmanager
async def two(place: Path) -> AsyncIterator[tuple[Volume, Volume]]:
    """Two machines that look at the journal only when told to; afterwards both agree."""
    store = await new_store_here()
    quiet: dict[str, Any] = {"sync_interval": 3600.0}
    async with (
        opened(place / "one", store, host="one", **quiet) as one,
        opened(place / "two", store, host="two", **quiet) as other,
    ):
        yield one, other
        for volume in (one, other, one, other):
            await volume.drain()
            await volume.writer.catch_up()
            assert volume.writer.frozen is None
        assert rows(one.replica.tree) == rows(other.replica.tree)
        check(one.replica.tree)
        check(other.replica.tree)


async def share(one: Volume, other: Volume) -> None:
    await one.drain()
    await other.writer.catch_up()


async def files(fs: FileSystem) -> dict[bytes, bytes]:
    handle = fs.opendir(1)
    found = {}
    for name, inode, _ in fs.readdir(handle, 0, 1000):
        if inode.is_file:
            found[name] = await contents(fs, inode.ino)
    fs.releasedir(handle)
    return found


async def test_what_others_wrote_is_read_through_a_handle_opened_before(tmp_path: Path) -> None:
    async with two(tmp_path) as (one, other):
        ino = await put_file(one.fs, 1, b"f", b"old" * CHUNK)
        await share(one, other)
        told: list[Invalidation] = []
        other.fs.attach_kernel(told.extend)
        other.fs.remember(ino)
        handle, _ = await other.fs.open(ino, os.O_RDONLY, ROOT)
        assert bytes(await other.fs.read(handle, 0, 3)) == b"old"
        writer, _ = await one.fs.open(ino, os.O_WRONLY | os.O_TRUNC, ROOT)
        await one.fs.write(writer, 0, b"new")
        await one.fs.release(writer)
        await share(one, other)
        assert bytes(await other.fs.read(handle, 0, 10)) == b"new"
        assert Invalidation("inode", ino, None, False) in told
        _, keep = await other.fs.open(ino, os.O_RDONLY, ROOT)
        assert not keep  # pages that the kernel has of it are old
        _, keep = await other.fs.open(ino, os.O_RDONLY, ROOT)
        assert keep


async def test_bytes_in_memory_survive_a_change_elsewhere(tmp_path: Path) -> None:
    async with two(tmp_path) as (one, other):
        ino = await put_file(one.fs, 1, b"f", b"common")
        await share(one, other)
        theirs, _ = await one.fs.open(ino, os.O_RDWR, ROOT)
        ours, _ = await other.fs.open(ino, os.O_RDWR, ROOT)
        await one.fs.write(theirs, 0, b"one's ")
        await one.fs.flush(theirs)
        await other.fs.write(ours, 0, b"other's")  # no close yet: it waits in memory
        await share(one, other)
        found = await files(other.fs)
        assert found.pop(b"f") == b"one's "
        ((name, data),) = found.items()
        assert name.startswith(b"f (conflict from two ") and data == b"other's"
        assert any("f was changed here" in text for _, text in other.fs.errors.last)


async def test_bytes_in_memory_survive_a_removal_elsewhere(tmp_path: Path) -> None:
    async with two(tmp_path) as (one, other):
        ino = await put_file(one.fs, 1, b"f", b"common" * CHUNK)
        await share(one, other)
        ours, _ = await other.fs.open(ino, os.O_RDWR, ROOT)
        await one.fs.unlink(1, b"f", ROOT)
        await other.fs.write(ours, 2, b"MM")
        await share(one, other)
        assert bytes(await other.fs.read(ours, 0, 8)) == b"coMMonco"
        await other.fs.write(ours, 0, b"C")
        await other.fs.flush(ours)
        await share(other, one)
        expected = b"CoMMon" + b"common" * (CHUNK - 1)
        assert await files(one.fs) == await files(other.fs) == {b"f": expected}


async def test_a_file_removed_elsewhere_is_read_to_the_end_and_stale_for_writers(
    tmp_path: Path,
) -> None:
    async with two(tmp_path) as (one, other):
        ino = await put_file(one.fs, 1, b"f", b"common")
        await share(one, other)
        handle, _ = await other.fs.open(ino, os.O_RDWR, ROOT)
        await one.fs.unlink(1, b"f", ROOT)
        await share(one, other)
        assert bytes(await other.fs.read(handle, 0, 100)) == b"common"
        with pytest.raises(Refused) as no:
            await other.fs.write(handle, 0, b"x")
        assert no.value.errno == errno.ESTALE
        await other.fs.flush(handle)
        await other.fs.release(handle)
        assert other.fs.writeback.dirty == 0


async def test_a_file_removed_by_who_has_it_open_is_read_there_to_the_end(tmp_path: Path) -> None:
    async with two(tmp_path) as (one, other):
        ino = await put_file(one.fs, 1, b"f", b"common")
        await share(one, other)
        handle, _ = await one.fs.open(ino, os.O_RDWR, ROOT)
        await one.fs.unlink(1, b"f", ROOT)
        await share(one, other)
        await one.fs.write(handle, 6, b" sense")
        await one.fs.flush(handle)
        await share(one, other)
        assert bytes(await one.fs.read(handle, 0, 100)) == b"common sense"
        await one.fs.release(handle)
        await share(one, other)
        assert other.fs.used_bytes == 0


async def test_writes_to_different_files_need_no_rule(tmp_path: Path) -> None:
    async with two(tmp_path) as (one, other):
        for n in range(20):
            volume = (one, other)[n % 2]
            handle, _ = await volume.fs.create(1, b"%d" % n, 0o644, os.O_RDWR, ROOT)
            await volume.fs.write(handle, 0, b"%d" % n * CHUNK)
            if n % 3:
                await volume.fs.release(handle)
            if n % 5 == 0:
                await volume.drain()
                await (other if volume is one else one).writer.catch_up()
        await share(one, other)
        await share(other, one)
        expected = {b"%d" % n: b"%d" % n * CHUNK for n in range(20)}
        assert await files(one.fs) == expected
        assert not one.replica.conflicts() and not other.replica.conflicts()


async def test_a_strict_rename_that_is_refused_leaves_no_whiteout(tmp_path: Path) -> None:
    """Rename and whiteout are two operations of one call: neither, or both."""
    store = await new_store_here()
    quiet: dict[str, Any] = {"sync_interval": 3600.0}
    async with (
        opened(tmp_path / "one", store, host="one", **quiet) as one,
        opened(tmp_path / "two", store, host="two", consistency="strict", **quiet) as other,
    ):
        await put_file(one.fs, 1, b"a", b"text")
        await put_file(one.fs, 1, b"kept", b"text")
        await share(one, other)
        await one.fs.unlink(1, b"a", ROOT)
        await one.drain()
        with pytest.raises(Refused) as no:
            await other.fs.rename(1, b"a", 1, b"b", RENAME_WHITEOUT, ROOT)
        assert no.value.errno == errno.ENOENT
        await other.fs.rename(1, b"kept", 1, b"c", RENAME_WHITEOUT, ROOT)
        for volume in (one, other):
            await volume.drain()
            await volume.writer.catch_up()
            handle = volume.fs.opendir(1)
            assert {name for name, *_ in volume.fs.readdir(handle, 0, 10)} == {b"c", b"kept"}
            volume.fs.releasedir(handle)
            whiteout = volume.fs.lookup(1, b"kept")
            assert (whiteout.mode, whiteout.rdev) == (stat.S_IFCHR, 0)
