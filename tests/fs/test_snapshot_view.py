"""`.megafs/snapshots` in the root of a mount."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from megafs import clock
from megafs.errors import Corrupt, Refused
from megafs.fs.snapshot_view import FIRST_LIVE, SNAPSHOTS, TOP, attributes_may_change, in_snapshots
from megafs.mount.fuse import KernelMount, Presentation
from megafs.tree.inode import Inode, SetAttr
from megafs.tree.ops import Snapshot
from megafs.volume.volume import Volume
from tests.fs.opened import CHUNK, ROOT, contents, new_store_here, opened, put_file

T = TypeVar("T")


async def snapshot(volume: Volume, name: str) -> int:
    await volume.drain()
    sequence = volume.replica.sequence
    volume.replica.record(Snapshot(name, sequence, clock.now_ns()))
    return sequence


async def look(volume: Volume, *names: bytes) -> Inode:
    """The inode at a path, looked up as the kernel does."""
    fs = volume.fs
    inode = fs.getattr(1)
    for name in names:
        for last in (False, True):
            try:
                if in_snapshots(inode.ino):
                    await fs.load_snapshot(inode.ino, name)
                found = fs.lookup(inode.ino, name)
                break
            except Refused as no:
                if no.errno != errno.ESTALE or last:
                    raise
        inode = found
        fs.remember(inode.ino)
    return inode


async def names(volume: Volume, ino: int) -> list[bytes]:
    fs = volume.fs
    if in_snapshots(ino):
        await fs.load_snapshot(ino)
    handle = fs.opendir(ino)
    try:
        listed: list[bytes] = []
        after = 0
        while entries := fs.readdir(handle, after, 2):
            listed += [name for name, _, _ in entries]
            after = entries[-1][2]
        return listed
    finally:
        fs.releasedir(handle)


async def refused(number: int, call: Callable[..., Awaitable[Any]], *args: Any) -> None:
    with pytest.raises(Refused) as caught:
        await call(*args)
    assert caught.value.errno == number


PAST = (b".megafs", b"snapshots")


async def test_a_snapshot_shows_what_was(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        fs = volume.fs
        directory = await fs.mkdir(1, b"d", 0o755, ROOT)
        old = os.urandom(3 * CHUNK)
        ino = await put_file(fs, directory.ino, b"f", old)
        await fs.symlink(directory.ino, b"link", b"f", ROOT)
        await fs.setxattr(ino, b"user.x", b"1", 0, ROOT)
        await snapshot(volume, "before")
        handle, _ = await fs.open(ino, os.O_WRONLY, ROOT)
        await fs.write(handle, 10, b"new")
        await fs.release(handle)
        await fs.setxattr(ino, b"user.x", b"2", 0, ROOT)
        await fs.unlink(directory.ino, b"link", ROOT)
        await put_file(fs, 1, b"later", b"")

        top = await look(volume, *PAST, b"before")
        assert await names(volume, top.ino) == [b"d"]
        was = await look(volume, *PAST, b"before", b"d", b"f")
        assert was.size == len(old)
        assert in_snapshots(was.ino)
        assert await contents(fs, was.ino) == old
        assert fs.getxattr(was.ino, b"user.x") == b"1"
        assert fs.listxattr(was.ino) == [b"user.x"]
        link = await look(volume, *PAST, b"before", b"d", b"link")
        assert fs.readlink(link.ino) == b"f"
        assert (await contents(fs, ino))[10:13] == b"new"


async def test_dots_lead_back_to_the_present(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        await volume.fs.mkdir(1, b"d", 0o755, ROOT)
        await snapshot(volume, "s")
        inode = await look(volume, *PAST, b"s", b"d")
        numbers = []
        while inode.ino != 1:
            await volume.fs.load_snapshot(inode.ino)
            inode = volume.fs.lookup(inode.ino, b"..")
            numbers.append(inode.ino)
        assert numbers[1:] == [SNAPSHOTS, TOP, 1]
        assert attributes_may_change(numbers[0])


async def test_it_is_found_but_not_listed(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        assert await names(volume, 1) == []
        assert await names(volume, (await look(volume, b".megafs")).ino) == [b"snapshots"]
        assert await names(volume, (await look(volume, *PAST)).ino) == []
        for n in range(5):
            await snapshot(volume, f"s{n}")
        assert await names(volume, (await look(volume, *PAST)).ino) == [
            b"s0",
            b"s1",
            b"s2",
            b"s3",
            b"s4",
        ]


async def test_times_and_commits_can_be_named(tmp_path: Path) -> None:
    now = [clock.now_ns() + 3600 * 10**9]
    with clock.replaced(now_ns=lambda: now[0]):
        async with opened(tmp_path) as volume:
            await put_file(volume.fs, 1, b"a", b"")
            await volume.drain()
            at = b"@%d" % volume.replica.sequence
            now[0] += 3600 * 10**9
            from megafs.history.moments import show_time

            when = show_time(now[0] - 1800 * 10**9).encode()
            await put_file(volume.fs, 1, b"b", b"")
            await volume.drain()
            assert await names(volume, (await look(volume, *PAST, when)).ino) == [b"a"]
            assert await names(volume, (await look(volume, *PAST, at)).ino) == [b"a"]
            for name in (b"2099-01-01", b"nothing", b"1 h ago", b"@999", b".git", b"\xff"):
                await refused(errno.ENOENT, look, volume, *PAST, name)
            assert await names(volume, SNAPSHOTS) == []  # named, but not listed


async def test_nothing_there_can_be_changed(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        fs = volume.fs
        ino = await put_file(fs, 1, b"f", b"x")
        await fs.mkdir(1, b"d", 0o755, ROOT)
        await snapshot(volume, "s")
        top = (await look(volume, *PAST, b"s")).ino
        file = (await look(volume, *PAST, b"s", b"f")).ino
        for call in (
            (fs.mkdir, top, b"new", 0o755, ROOT),
            (fs.mkdir, SNAPSHOTS, b"new", 0o755, ROOT),
            (fs.create, top, b"new", 0o644, 2, ROOT),
            (fs.mknod, top, b"new", stat.S_IFIFO, 0, ROOT),
            (fs.symlink, top, b"new", b"t", ROOT),
            (fs.link, ino, top, b"new", ROOT),
            (fs.link, file, 1, b"new", ROOT),
            (fs.unlink, top, b"f", ROOT),
            (fs.rmdir, top, b"d", ROOT),
            (fs.rmdir, SNAPSHOTS, b"s", ROOT),
            (fs.rename, top, b"f", 1, b"g", 0, ROOT),
            (fs.rename, 1, b"f", top, b"g", 0, ROOT),
            (fs.setattr, file, SetAttr(mode=0o600), ROOT),
            (fs.setattr, file, SetAttr(size=0), ROOT),
            (fs.setxattr, file, b"user.x", b"1", 0, ROOT),
            (fs.removexattr, file, b"user.x", ROOT),
            (fs.open, file, os.O_RDWR, ROOT),
            (fs.open, file, os.O_RDONLY | os.O_TRUNC, ROOT),
            # the directory itself
            (fs.mkdir, 1, b".megafs", 0o755, ROOT),
            (fs.rmdir, 1, b".megafs", ROOT),
            (fs.rename, 1, b".megafs", 1, b"x", 0, ROOT),
            (fs.rename, 1, b"d", 1, b".megafs", 0, ROOT),
        ):
            await refused(errno.EROFS, *call)
        assert sorted(await names(volume, 1)) == [b"d", b"f"]


async def test_numbers_never_meet_those_of_the_present(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        made = await put_file(volume.fs, 1, b"f", b"")
        await snapshot(volume, "one")
        await snapshot(volume, "two")
        one = (await look(volume, *PAST, b"one", b"f")).ino
        two = (await look(volume, *PAST, b"two", b"f")).ino
        assert made >= FIRST_LIVE
        assert 1 < one < FIRST_LIVE
        assert 1 < two < FIRST_LIVE
        assert one != two
        assert (await look(volume, *PAST, b"one", b"f")).ino == one  # while the kernel knows it
        past = volume.fs.snapshots
        assert past is not None
        for number in (one, two):
            volume.fs.forget(number, 2)
        assert past._inside == {}
        assert past._numbers == {}
        await refused(errno.ESTALE, volume.fs.load_snapshot, one)


async def test_two_names_of_one_file_are_one_file_there(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        ino = await put_file(volume.fs, 1, b"a", b"")
        await volume.fs.link(ino, 1, b"b", ROOT)
        await snapshot(volume, "s")
        one, two = await look(volume, *PAST, b"s", b"a"), await look(volume, *PAST, b"s", b"b")
        assert one.ino == two.ino
        assert one.nlink == 2


async def test_a_moment_stays_usable_after_its_tree_was_put_away(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        await put_file(volume.fs, 1, b"f", b"text" * CHUNK)
        await snapshot(volume, "s")
        file = (await look(volume, *PAST, b"s", b"f")).ino
        volume.history.close()
        volume.history._views.clear()
        volume.chunks.clear()
        await volume.fs.load_snapshot(file, attributes=True)
        assert volume.fs.getattr(file).size == 4 * CHUNK
        handle, _ = await volume.fs.open(file, os.O_RDONLY, ROOT)
        volume.history.close()
        assert await volume.fs.read(handle, 4 * CHUNK - 4, 100) == b"text"
        assert await volume.fs.read(handle, 4 * CHUNK, 100) == b""
        await volume.fs.flush(handle)
        await volume.fs.release(handle)


async def test_a_snapshot_of_another_moment_under_the_same_name_is_another_directory(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as volume:
        await snapshot(volume, "s")
        first = (await look(volume, *PAST, b"s")).ino
        volume.replica.record(Snapshot("s", 0, 0))
        await refused(errno.ENOENT, look, volume, *PAST, b"s")
        await put_file(volume.fs, 1, b"f", b"")
        await snapshot(volume, "s")
        second = (await look(volume, *PAST, b"s")).ino
        assert second != first
        assert await names(volume, second) == [b"f"]
        assert await names(volume, first) == []


async def test_whoever_could_not_enter_then_is_looked_at_again(tmp_path: Path) -> None:
    """The root directory was closed, is open now; the listing of snapshots did not know."""
    async with opened(tmp_path) as volume:
        await volume.fs.setattr(1, SetAttr(mode=0o700), ROOT)
        await snapshot(volume, "closed")
        await volume.fs.setattr(1, SetAttr(mode=0o755), ROOT)
        shown = await look(volume, *PAST, b"closed")
        assert stat.S_IMODE(shown.mode) == 0o755
        # The first look inside finds out, and has the kernel ask again:
        await refused(errno.ESTALE, volume.fs.load_snapshot, shown.ino, b"x")
        assert stat.S_IMODE((await look(volume, *PAST, b"closed")).mode) == 0o700


async def test_damage_is_an_error_of_the_files_that_need_it(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path, store) as volume:
        await put_file(volume.fs, 1, b"f", os.urandom(CHUNK))
        await snapshot(volume, "s")
        file = (await look(volume, *PAST, b"s", b"f")).ino
        volume.chunks.clear()
        for name in store.objects:
            if name.startswith("packs/"):
                store.objects[name] = bytes(len(store.objects[name]))
        handle, _ = await volume.fs.open(file, os.O_RDONLY, ROOT)
        with pytest.raises(Corrupt, match=r"/\.megafs/snapshots/s/f, bytes 0 to 9"):
            await volume.fs.read(handle, 0, 10)


async def aside(fn: Callable[..., T], *args: Any) -> T:
    return await trio.to_thread.run_sync(fn, *args, abandon_on_cancel=True)


def run(script: str, path: Path, user: str | None = None) -> str:
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        cwd=path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        user=user,
        extra_groups=[] if user else None,
    )
    return done.stdout + done.stderr


@pytest.mark.fuse
async def test_through_the_kernel(tmp_path: Path) -> None:
    """Programs see it: ls, cat, find, cp -a, and the permissions of then."""
    tmp_path.chmod(0o755)
    for above in tmp_path.parents:
        if above != Path("/") and above.stat().st_mode & 0o005 != 0o005:
            above.chmod(0o755)
    async with opened(tmp_path) as volume:
        mountpoint = tmp_path / "mnt"
        mountpoint.mkdir()
        mount = KernelMount(
            volume.fs, str(mountpoint), Presentation(), ("allow_other", "default_permissions")
        )
        mount.open()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mount.serve)
                await mount.started.wait()

                async def sh(script: str, user: str | None = None) -> str:
                    return await aside(run, script, mountpoint, user)

                assert (
                    await sh("mkdir d; echo one > d/f; echo s > d/secret; chmod 600 d/secret") == ""
                )
                await snapshot(volume, "monday")
                assert await sh("echo two > d/f; rm d/secret; chmod 700 .") == ""
                await snapshot(volume, "closed")
                assert await sh("chmod 755 .") == ""
                assert await sh("ls .megafs; ls .megafs/snapshots; ls -A") == (
                    "snapshots\nclosed\nmonday\nd\n"
                )
                assert await sh("cat .megafs/snapshots/monday/d/f d/f") == "one\ntwo\n"
                assert await sh("cd .megafs/snapshots/monday && find . | sort") == (
                    ".\n./d\n./d/f\n./d/secret\n"
                )
                assert "Read-only file system" in await sh("echo x > .megafs/snapshots/monday/d/f")
                assert "Read-only file system" in await sh("mkdir .megafs/snapshots/monday/x")
                assert "File exists" in await sh("mkdir .megafs")
                # whoever may not read the original may not read its past
                assert "Permission denied" in await sh(
                    "cat .megafs/snapshots/monday/d/secret", "nobody"
                )
                assert await sh("cat .megafs/snapshots/monday/d/f", "nobody") == "one\n"
                assert "Permission denied" in await sh("cat .megafs/snapshots/closed/d/f", "nobody")
                assert "Permission denied" in await sh("ls .megafs/snapshots/closed", "nobody")
                assert await sh("cp -a .megafs/snapshots/monday/d back && cat back/secret") == "s\n"
                mount.stop()
        finally:
            mount.close(unmount=True)
