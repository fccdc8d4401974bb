"""What POSIX and docs/semantics.md promise of a mount, below FUSE."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
import trio

from megafs import clock, concurrency
from megafs.config import KIB, MIB, Parameters
from megafs.errors import Refused
from megafs.fs.filesystem import FileSystem
from megafs.fs.requests import Caller
from megafs.journal.operation_log import OperationLog
from megafs.tree.inode import FILE_SIZE_MAX, SetAttr
from megafs.tree.tree import Extent
from tests.fs.opened import CHUNK, ROOT, SMALL, USER, contents, new_store_here, opened, put_file
from tests.tree.invariants import check

QUOTA = 40 * CHUNK
LIMITED = Parameters(chunk_size=CHUNK, pack_size=128 * KIB, inline_limit=64, quota=QUOTA)


async def refused(call: Awaitable[Any]) -> str:
    """The name of the errno that a call is answered with."""
    with pytest.raises(Refused) as no:
        await call
    return errno.errorcode[no.value.errno or 0]


def names(fs: FileSystem, ino: int, page: int = 100) -> list[bytes]:
    handle = fs.opendir(ino)
    found: list[bytes] = []
    after = 0
    while entries := fs.readdir(handle, after, page):
        found.extend(name for name, _, _ in entries)
        after = entries[-1][2]
    fs.releasedir(handle)
    return found


# ---- room -----------------------------------------------------------------------------------


async def test_a_full_volume_refuses_more_and_still_takes_what_needs_no_room(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, params=LIMITED) as volume:
        fs = volume.fs
        handle, inode = await fs.create(1, b"f", 0o644, os.O_RDWR, ROOT)
        await fs.write(handle, 0, os.urandom(QUOTA - CHUNK))
        assert await refused(fs.write(handle, QUOTA - CHUNK, os.urandom(2 * CHUNK))) == "ENOSPC"
        await fs.write(handle, QUOTA - CHUNK, os.urandom(CHUNK))
        assert await refused(fs.write(handle, QUOTA, b"x")) == "ENOSPC"
        # Overwriting in place works, and what was written before is untouched.
        await fs.write(handle, 100, b"over" * 1000)
        await fs.flush(handle)
        assert bytes(await fs.read(handle, 100, 8)) == b"overover"
        assert fs.statfs().bfree == 0
        # A file may be removed, or cut, and then there is room again.
        await fs.setattr(inode.ino, SetAttr(size=CHUNK), ROOT)
        room = fs.statfs()
        assert room.bfree * room.frsize == QUOTA - CHUNK
        await fs.write(handle, CHUNK, os.urandom(CHUNK))
        check(volume.replica.tree)


async def test_df_shows_the_quota_and_what_is_used_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path, params=LIMITED) as volume:
        fs = volume.fs
        before = fs.statfs()
        assert before.blocks * before.frsize == QUOTA and before.bfree == before.blocks
        handle, _ = await fs.create(1, b"f", 0o644, os.O_RDWR, ROOT)
        await fs.write(handle, 0, os.urandom(5 * 4096))
        now = fs.statfs()
        assert before.bfree - now.bfree == 5  # counted before it is staged
        assert before.ffree - now.ffree == 1
        await fs.flush(handle)
        assert fs.statfs() == now
        await fs.release(handle)
        await fs.unlink(1, b"f", ROOT)
        assert fs.statfs() == before


async def test_holes_need_no_room(tmp_path: Path) -> None:
    async with opened(tmp_path, params=LIMITED) as volume:
        fs = volume.fs
        handle, inode = await fs.create(1, b"f", 0o644, os.O_RDWR, ROOT)
        await fs.setattr(inode.ino, SetAttr(size=1 << 50), ROOT)
        await fs.write(handle, 1 << 40, b"in the middle")
        await fs.flush(handle)
        assert fs.getattr(inode.ino).size == 1 << 50
        assert fs.getattr(inode.ino).blocks == 13
        assert bytes(await fs.read(handle, (1 << 40) - 2, 20)) == b"\0\0in the middle" + bytes(5)
        assert fs.used_bytes == 13


async def test_files_end_where_offsets_do(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        fs = volume.fs
        handle, inode = await fs.create(1, b"f", 0o644, os.O_RDWR, ROOT)
        assert await refused(fs.write(handle, FILE_SIZE_MAX - 1, b"xx")) == "EFBIG"
        change = SetAttr(size=FILE_SIZE_MAX + 1)
        assert await refused(fs.setattr(inode.ino, change, ROOT)) == "EFBIG"
        await fs.write(handle, FILE_SIZE_MAX - 2, b"xx")
        await fs.flush(handle)
        assert bytes(await fs.read(handle, FILE_SIZE_MAX - 3, 100)) == b"\0xx"


# ---- set-id bits and groups -------------------------------------------------------------------


async def test_writing_takes_set_id_bits_away_but_not_from_root(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        fs = volume.fs
        ino = await put_file(fs, 1, b"f", b"program")
        theirs, _ = await fs.open(ino, os.O_RDWR, USER)
        roots, _ = await fs.open(ino, os.O_RDWR, ROOT)
        await fs.setattr(ino, SetAttr(mode=0o6755), ROOT)
        await fs.write(roots, 0, b"x")
        assert fs.getattr(ino).mode & 0o7777 == 0o6755
        await fs.write(theirs, 0, b"y")
        assert fs.getattr(ino).mode & 0o7777 == 0o755
        # Set again while written bytes still wait in memory: the next write takes them again.
        await fs.setattr(ino, SetAttr(mode=0o4755), ROOT)
        await fs.write(theirs, 1, b"z")
        assert fs.getattr(ino).mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    ("caller", "mode"), [(Caller(1000, 0, 0, 0), 0o2644), (Caller(1000, 1000, 0, 0), 0o644)]
)
async def test_mandatory_locking_is_no_set_id_bit_to_the_files_group(
    tmp_path: Path, caller: Caller, mode: int
) -> None:
    """As Linux does: tests/programs/test_attributes.py compares."""
    async with opened(tmp_path) as volume:
        fs = volume.fs
        ino = await put_file(fs, 1, b"f", b"x")
        handle, _ = await fs.open(ino, os.O_RDWR, caller)
        await fs.setattr(ino, SetAttr(mode=0o2644), ROOT)
        await fs.write(handle, 0, b"y")
        assert fs.getattr(ino).mode & 0o7777 == mode


async def test_writing_and_giving_away_take_capabilities_away(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        fs = volume.fs
        ino = await put_file(fs, 1, b"f", b"x")
        handle, _ = await fs.open(ino, os.O_RDWR, ROOT)
        for act in ("write", "chown"):
            await fs.setxattr(ino, b"security.capability", b"\1", 0, ROOT)
            if act == "write":
                await fs.write(handle, 0, b"y")
            else:
                await fs.setattr(ino, SetAttr(uid=5), ROOT)
            assert fs.listxattr(ino) == []


async def test_a_set_gid_directory_hands_its_group_down(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        fs = volume.fs
        top = await fs.mkdir(1, b"top", 0o755, ROOT)
        await fs.setattr(top.ino, SetAttr(gid=7, mode=0o2775), ROOT)
        directory = await fs.mkdir(top.ino, b"d", 0o755, USER)
        assert (directory.gid, directory.mode & 0o7777) == (7, 0o2755)
        _, file = await fs.create(directory.ino, b"f", 0o644, os.O_RDWR, USER)
        assert (file.uid, file.gid, file.mode & 0o7777) == (1000, 7, 0o644)
        link = await fs.symlink(directory.ino, b"l", b"f", USER)
        assert (link.gid, oct(link.mode)) == (7, oct(stat.S_IFLNK | 0o777))


# ---- times ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "after_one", "after_two"),
    [("noatime", False, False), ("relatime", True, False), ("strictatime", True, True)],
)
async def test_reading_sets_the_access_time_as_the_mount_option_says(
    tmp_path: Path, policy: str, after_one: bool, after_two: bool
) -> None:
    async with opened(tmp_path, atime=policy) as volume:
        fs = volume.fs
        ino = await put_file(fs, 1, b"f", b"x" * 100)
        made = fs.getattr(ino).atime_ns
        await contents(fs, ino)
        one = fs.getattr(ino).atime_ns
        await contents(fs, ino)
        two = fs.getattr(ino).atime_ns
        assert (one > made, two > one) == (after_one, after_two)
        if policy == "relatime":
            with clock.replaced(now_ns=lambda: time.time_ns() + 90_000 * 10**9):
                await contents(fs, ino)
            assert fs.getattr(ino).atime_ns > two + 80_000 * 10**9


async def test_times_are_kept_to_the_nanosecond_and_follow_writes(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path / "a", store) as volume:
        fs = volume.fs
        handle, inode = await fs.create(1, b"f", 0o644, os.O_RDWR, ROOT)
        ino = inode.ino
        await fs.write(handle, 0, b"x")
        later = time.time_ns() + 10**15
        await fs.setattr(ino, SetAttr(atime_ns=123456789, mtime_ns=later), ROOT)
        await fs.flush(handle)
        assert fs.getattr(ino).mtime_ns == later
        # A write is newer than a time in the future that was set before it.
        await fs.write(handle, 0, b"y")
        assert fs.getattr(ino).mtime_ns < later
        await fs.flush(handle)
        assert fs.getattr(ino).mtime_ns < later
        await fs.setattr(ino, SetAttr(mtime_ns=-5), ROOT)
        await fs.release(handle)
        await volume.drain()
    async with opened(tmp_path / "b", store) as volume:
        inode = volume.fs.lookup(1, b"f")
        assert (inode.atime_ns, inode.mtime_ns) == (123456789, -5)


# ---- open files and names ---------------------------------------------------------------------


async def test_an_unlinked_file_lives_until_its_last_close(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path / "a", store) as volume:
        fs = volume.fs
        handle, inode = await fs.create(1, b"f", 0o644, os.O_RDWR, ROOT)
        second, _ = await fs.open(inode.ino, os.O_RDONLY, ROOT)
        fs.remember(inode.ino)
        await fs.write(handle, 0, b"before")
        await fs.unlink(1, b"f", ROOT)
        await fs.write(handle, 6, b" and after" + bytes(CHUNK))
        await fs.fsync(handle, False)
        await fs.setattr(inode.ino, SetAttr(mode=0o600), ROOT)
        assert fs.getattr(inode.ino).nlink == 0
        await fs.release(handle)
        assert bytes(await fs.read(second, 0, 16)) == b"before and after"
        await fs.release(second)
        assert volume.replica.tree.find(inode.ino) is None
        assert fs.getattr(inode.ino).nlink == 0  # the kernel may still ask
        fs.forget(inode.ino, 1)
        with pytest.raises(Refused):
            fs.getattr(inode.ino)
        assert fs.used_bytes == 0
        await volume.drain()
    async with opened(tmp_path / "b", store) as volume:
        assert names(volume.fs, 1) == []
        check(volume.replica.tree)


async def test_what_a_crash_left_open_and_unlinked_goes_at_the_next_mount(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path, store) as volume:
        handle, _ = await volume.fs.create(1, b"f", 0o644, os.O_RDWR, ROOT)
        await volume.fs.write(handle, 0, os.urandom(CHUNK))
        await volume.fs.flush(handle)
        await volume.fs.unlink(1, b"f", ROOT)
        await volume.drain()
    async with opened(tmp_path, store) as volume:
        assert volume.fs.used_bytes == 0
        check(volume.replica.tree)


async def test_a_file_replaced_by_rename_is_still_read_by_who_has_it_open(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        fs = volume.fs
        old = await put_file(fs, 1, b"f", b"old")
        handle, _ = await fs.open(old, os.O_RDONLY, ROOT)
        await put_file(fs, 1, b"g", b"new")
        await fs.rename(1, b"g", 1, b"f", 0, ROOT)
        assert bytes(await fs.read(handle, 0, 10)) == b"old"
        assert await contents(fs, fs.lookup(1, b"f").ino) == b"new"
        assert names(fs, 1) == [b"f"]
        await fs.release(handle)
        check(volume.replica.tree)


async def test_all_names_of_a_file_are_one_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        fs = volume.fs
        ino = await put_file(fs, 1, b"a", b"one")
        directory = await fs.mkdir(1, b"d", 0o755, ROOT)
        linked = await fs.link(ino, directory.ino, b"b", ROOT)
        assert (linked.ino, linked.nlink) == (ino, 2)
        handle, _ = await fs.open(fs.lookup(directory.ino, b"b").ino, os.O_RDWR, ROOT)
        await fs.write(handle, 0, b"two")
        assert await contents(fs, ino) == b"two"
        await fs.rename(1, b"a", directory.ino, b"b", 0, ROOT)  # does nothing, says rename(2)
        assert fs.getattr(ino).nlink == 2
        await fs.unlink(1, b"a", ROOT)
        assert fs.getattr(ino).nlink == 1
        await fs.release(handle)
        assert await contents(fs, ino) == b"two"


async def test_handles_do_what_they_were_opened_for(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        fs = volume.fs
        ino = await put_file(fs, 1, b"f", b"x")
        reader, _ = await fs.open(ino, os.O_RDONLY, ROOT)
        writer, _ = await fs.open(ino, os.O_WRONLY, ROOT)
        assert await refused(fs.write(reader, 0, b"y")) == "EBADF"
        assert await refused(fs.read(writer, 0, 1)) == "EBADF"
        await fs.release(reader)
        assert await refused(fs.read(reader, 0, 1)) == "EBADF"


async def test_a_read_only_mount_changes_nothing(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path / "a", store) as volume:
        ino = await put_file(volume.fs, 1, b"f", b"x" * 100)
        await volume.drain()
    before = dict(store.objects)
    async with opened(tmp_path / "b", store, read_only=True, atime="strictatime") as volume:
        fs = volume.fs
        assert await contents(fs, ino) == b"x" * 100
        assert await refused(fs.open(ino, os.O_RDWR, ROOT)) == "EROFS"
        assert await refused(fs.open(ino, os.O_RDONLY | os.O_TRUNC, ROOT)) == "EROFS"
        assert await refused(fs.mkdir(1, b"d", 0o755, ROOT)) == "EROFS"
        assert await refused(fs.unlink(1, b"f", ROOT)) == "EROFS"
        assert await refused(fs.setattr(ino, SetAttr(mode=0), ROOT)) == "EROFS"
        assert await refused(fs.setxattr(ino, b"user.a", b"", 0, ROOT)) == "EROFS"
        assert names(fs, 1) == [b"f"]
    assert store.objects == before


async def test_xattrs_have_the_limits_of_linux(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        fs = volume.fs
        ino = await put_file(fs, 1, b"f")
        assert await refused(fs.setxattr(ino, b"user." + b"x" * 251, b"", 0, ROOT)) == "ERANGE"
        assert await refused(fs.setxattr(ino, b"user.a", bytes(65537), 0, ROOT)) == "E2BIG"
        assert await refused(fs.setxattr(ino, b"other.a", b"", 0, ROOT)) == "ENOTSUP"
        assert await refused(fs.setxattr(ino, b"user.a", b"", 2, ROOT)) == "ENODATA"
        await fs.setxattr(ino, b"user.a", bytes(65536), 1, ROOT)
        assert await refused(fs.setxattr(ino, b"user.a", b"", 1, ROOT)) == "EEXIST"
        assert fs.getxattr(ino, b"user.a") == bytes(65536)
        assert await refused(fs.removexattr(ino, b"user.b", ROOT)) == "ENODATA"


async def test_symbolic_links_say_up_to_4095_bytes(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        fs = volume.fs
        link = await fs.symlink(1, b"l", b"\xff" * 4095, ROOT)
        assert fs.readlink(link.ino) == b"\xff" * 4095 and link.size == 4095
        assert await refused(fs.symlink(1, b"m", b"x" * 4096, ROOT)) == "ENAMETOOLONG"


# ---- directories ------------------------------------------------------------------------------


async def test_a_listing_ends_though_every_name_found_makes_another(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        fs = volume.fs
        for n in range(30):
            await put_file(fs, 1, b"old%d" % n)
        handle = fs.opendir(1)
        found: list[bytes] = []
        after = 0
        while entries := fs.readdir(handle, after, 3):
            for name, _, after in entries:  # noqa: B007
                found.append(name)
                await put_file(fs, 1, name + b".new")
                if len(found) % 2:
                    await fs.rename(1, name, 1, name + b".moved", 0, ROOT)
            assert len(found) < 100
        assert sorted(found) == sorted(b"old%d" % n for n in range(30))
        # rewinddir(3) sees what is there now.
        again: list[bytes] = []
        after = 0
        while entries := fs.readdir(handle, after, 7):
            again.extend(name for name, _, _ in entries)
            after = entries[-1][2]
        assert len(again) == len(set(again)) == 60


async def test_a_listing_shows_what_another_mount_made_before_it(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path / "a", store) as one, opened(tmp_path / "b", store) as two:
        for n in range(10):
            await put_file(one.fs, 1, b"one%d" % n)
            await put_file(two.fs, 1, b"two%d" % n)
        await one.drain()
        await two.drain()
        await one.writer.catch_up()
        assert sorted(names(one.fs, 1, 3)) == sorted(names(two.fs, 1, 4))
        assert len(names(one.fs, 1)) == 20


async def test_a_directory_of_ten_thousand_files_on_another_machine(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path / "a", store) as volume:
        for n in range(10_000):
            await volume.fs.mknod(1, b"%d" % n, stat.S_IFREG | 0o644, 0, ROOT)
        await volume.drain()
    async with opened(tmp_path / "b", store) as volume:
        assert sorted(names(volume.fs, 1, 333)) == sorted(b"%d" % n for n in range(10_000))
        assert volume.fs.statfs().files - volume.fs.statfs().ffree == 10_001


# ---- durability -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "fsync"])
async def test_what_was_closed_is_there_after_the_process_died(tmp_path: Path, how: str) -> None:
    """The tasks end where they are, nothing is drained: as after kill -9."""
    store = await new_store_here()
    data = os.urandom(3 * CHUNK)
    async with opened(tmp_path, store, sync_interval=3600.0) as volume:
        fs = volume.fs
        handle, inode = await fs.create(1, b"f", 0o644, os.O_RDWR, ROOT)
        await fs.write(handle, 0, data)
        await (fs.flush(handle) if how == "close" else fs.fsync(handle, False))
    assert not [name for name in store.objects if name.startswith("packs/")]
    async with opened(tmp_path, store) as volume:
        assert await contents(volume.fs, inode.ino) == data
        await volume.drain()
    async with opened(tmp_path / "elsewhere", store) as volume:
        assert await contents(volume.fs, inode.ino) == data


async def test_fsync_to_the_store_is_in_the_store_when_it_returns(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path / "a", store, fsync="store", sync_interval=3600.0) as volume:
        handle, inode = await volume.fs.create(1, b"f", 0o644, os.O_RDWR, ROOT)
        await volume.fs.write(handle, 0, b"x" * CHUNK)
        await volume.fs.fsync(handle, False)
        async with opened(tmp_path / "b", store, read_only=True) as other:
            assert await contents(other.fs, inode.ino) == b"x" * CHUNK


async def test_only_a_disk_that_was_quick_is_waited_for_on_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = threading.get_ident()
    here: list[bool] = []
    pause = reading = 0.0

    def sync(log: OperationLog) -> None:
        nonlocal reading
        here.append(threading.get_ident() == loop)
        reading += pause

    # Time that a busy machine cannot add to.
    with clock.replaced(stopwatch=lambda: reading):
        async with opened(tmp_path, sync_interval=3600.0) as volume:
            monkeypatch.setattr(OperationLog, "sync", sync)

            async def closes(count: int) -> list[bool]:
                here.clear()
                for n in range(count):
                    await put_file(volume.fs, 1, b"%d %d" % (time.monotonic_ns(), n), b"small" * 50)
                return here

            assert not any((await closes(16))[:16])
            assert all(await closes(20))
            pause = concurrency.QUICK * 1.5
            assert (await closes(3)) == [True, False, False]
            pause = 0.0
            await closes(10)
            pause = concurrency.QUICK * 10
            await closes(1)  # in a thread, but not for want of the interpreter
            pause = 0.0
            assert (await closes(17)) == [False] * 16 + [True]
            # What is large has its pack synced first, which may take long.
            await put_file(volume.fs, 1, b"large", os.urandom(80_000))
            assert here[-1] is False


async def test_memory_that_waits_is_bounded(tmp_path: Path) -> None:
    limit = 20 * CHUNK
    async with opened(tmp_path, dirty_limit=limit) as volume:
        fs = volume.fs
        handle, inode = await fs.create(1, b"f", 0o644, os.O_RDWR, ROOT)
        data = os.urandom(CHUNK)
        for n in range(100):
            with trio.fail_after(10):
                await fs.write(handle, n * CHUNK, data)
            assert fs.writeback.dirty <= limit
        await fs.release(handle)
        assert await contents(fs, inode.ino) == data * 100


async def test_inline_and_packed_bytes_mix(tmp_path: Path) -> None:
    store = await new_store_here(SMALL)
    async with opened(tmp_path / "a", store) as volume:
        fs = volume.fs
        ino = await put_file(fs, 1, b"f", b"p" * 1000)
        handle, _ = await fs.open(ino, os.O_RDWR, ROOT)
        await fs.write(handle, 10, b"inline")
        await fs.release(handle)
        assert {x.pack == 0 for x in volume.replica.tree.all_extents(ino)} == {True, False}
        await volume.drain()
    async with opened(tmp_path / "b", store) as volume:
        assert await contents(volume.fs, ino) == b"p" * 10 + b"inline" + b"p" * 984


async def test_equal_chunks_are_stored_once_if_the_volume_says_so(tmp_path: Path) -> None:
    params = Parameters(chunk_size=CHUNK, pack_size=128 * KIB, inline_limit=64, deduplication=True)
    data = os.urandom(4 * CHUNK)
    async with opened(tmp_path, params=params) as volume:
        one = await put_file(volume.fs, 1, b"one", data)
        staged = volume.stage.staged_bytes
        two = await put_file(volume.fs, 1, b"two", data)
        assert volume.stage.staged_bytes == staged
        volume.chunks.clear()
        assert await contents(volume.fs, one) == await contents(volume.fs, two) == data
        check(volume.replica.tree)


async def test_a_flush_of_many_fragmented_blocks_takes_little_memory(tmp_path: Path) -> None:
    """A page in a block with many extents makes the whole block to seal; not all at once."""
    large = Parameters(chunk_size=256 * KIB, pack_size=8 * MIB, inline_limit=64, quota=None)
    async with opened(tmp_path, params=large) as volume:
        fs = volume.fs
        blocks, chunk = 120, 256 * KIB
        handle, inode = await fs.create(1, b"f", 0o644, os.O_RDWR, ROOT)
        for page in range(8):
            for block in range(blocks):
                await fs.write(handle, block * chunk + page * 8 * KIB, b"%d" % page * 100)
            await fs.flush(handle)
        put, sizes = volume.stage.put, []

        async def measured(pieces: list[bytes | bytearray | memoryview]) -> list[Extent]:
            sizes.append(sum(map(len, pieces)))
            return await put(pieces)

        volume.stage.put = measured  # type: ignore[method-assign]
        for block in range(blocks):
            await fs.write(handle, block * chunk + 200 * KIB, b"x" * 100)
        await fs.flush(handle)
        await fs.release(handle)
        assert sum(sizes) >= (blocks - 1) * 200 * KIB, "the blocks were not sealed as a whole"
        assert max(sizes) <= 9 * MIB
        found = await contents(fs, inode.ino)
        assert len(found) == (blocks - 1) * chunk + 200 * KIB + 100
        for block in range(blocks):
            assert found[block * chunk + 200 * KIB :][:100] == b"x" * 100
            assert found[block * chunk + 8 * KIB :][:100] == b"1" * 100
