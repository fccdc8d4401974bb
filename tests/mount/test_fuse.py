"""The adapter, through a real mount, over a filesystem in memory."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from megafs.errors import Corrupt, Refused
from megafs.fs.requests import Invalidation
from megafs.mount.fuse import KernelMount, Presentation
from tests.fakes.memfs import MemoryFS

pytestmark = pytest.mark.fuse

T = TypeVar("T")


async def aside(fn: Callable[..., T], *args: Any) -> T:
    """Do something with the mount in a thread: the loop here is what answers."""
    return await trio.to_thread.run_sync(fn, *args, abandon_on_cancel=True)


class Scene:
    def __init__(self, fs: MemoryFS, path: Path, mount: KernelMount) -> None:
        self.fs = fs
        self.path = path
        self.mount = mount


@pytest.fixture
async def scene(place: Path, nursery: trio.Nursery) -> AsyncIterator[Scene]:
    fs = MemoryFS()
    async with mounted(fs, place, nursery, Presentation()) as made:
        yield made


class mounted:  # noqa: N801
    def __init__(
        self,
        fs: MemoryFS,
        place: Path,
        nursery: trio.Nursery,
        view: Presentation,
        options: tuple[str, ...] = (),
    ) -> None:
        path = place / "mnt"
        path.mkdir()
        self._nursery = nursery
        self._scene = Scene(fs, path, KernelMount(fs, str(path), view, options))  # type: ignore[arg-type]
        self._served = trio.Event()

    async def __aenter__(self) -> Scene:
        self._scene.mount.open()
        self._nursery.start_soon(self._serve)
        return self._scene

    async def _serve(self) -> None:
        await self._scene.mount.serve()
        self._served.set()

    async def __aexit__(self, *_: object) -> None:
        self._scene.mount.stop(1)
        with trio.CancelScope(shield=True), trio.fail_after(10):
            await self._served.wait()
        self._scene.mount.close(unmount=True)


async def test_what_is_written_is_read(scene: Scene) -> None:
    big = os.urandom(3 << 20)

    def work() -> None:
        file = scene.path / "a"
        file.write_bytes(big)
        assert file.read_bytes() == big
        with file.open("r+b") as f:
            f.seek(100)
            f.write(b"xyz")
            f.flush()
            os.fsync(f.fileno())
        assert file.read_bytes()[98:105] == big[98:100] + b"xyz" + big[103:105]

    await aside(work)
    assert scene.fs.calls["fsync"] == 1


async def test_every_call_arrives(scene: Scene) -> None:
    def work() -> None:
        root = scene.path
        (root / "d").mkdir(mode=0o750)
        (root / "d" / "f").write_text("text")
        os.link(root / "d" / "f", root / "hard")
        os.symlink("d/f", root / "soft")
        os.mkfifo(root / "pipe", 0o600)
        assert (root / "soft").read_text() == "text"
        assert (root / "hard").stat().st_nlink == 2
        assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
        assert stat.S_IMODE((root / "d").stat().st_mode) == 0o750
        os.chown(root / "hard", 12, 34)
        os.chmod(root / "hard", 0o4711)
        os.utime(root / "hard", ns=(1_000_000_001, -1_500_000_000))
        seen = (root / "hard").stat()
        assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (12, 34, 0o4711)
        assert (seen.st_atime_ns, seen.st_mtime_ns) == (1_000_000_001, -1_500_000_000)
        os.truncate(root / "hard", 2)
        assert (root / "soft").read_text() == "te"
        os.rename(root / "pipe", root / "d" / "pipe")
        os.unlink(root / "d" / "pipe")
        os.unlink(root / "d" / "f")
        os.rmdir(root / "d")
        assert sorted(os.listdir(root)) == ["hard", "soft"]

    await aside(work)


async def test_extended_attributes(scene: Scene) -> None:
    def work() -> None:
        path = scene.path / "x"
        path.touch()
        os.setxattr(path, "user.a", b"\0\1")
        assert os.getxattr(path, "user.a") == b"\0\1"
        assert os.listxattr(path) == ["user.a"]
        with pytest.raises(FileExistsError):
            os.setxattr(path, "user.a", b"", os.XATTR_CREATE)
        with pytest.raises(OSError) as caught:
            os.setxattr(path, "user.b", b"", os.XATTR_REPLACE)
        assert caught.value.errno == errno.ENODATA
        os.removexattr(path, "user.a")
        assert os.listxattr(path) == []

    await aside(work)


async def test_a_directory_of_any_size_is_listed_with_its_dots(scene: Scene) -> None:
    def work() -> None:
        names = [f"{i:04}-{'n' * (i % 200)}" for i in range(1500)]
        for name in names:
            os.mknod(scene.path / name)
        assert sorted(os.listdir(scene.path)) == names
        shown = subprocess.run(
            ["ls", "-a1U", scene.path], capture_output=True, text=True, check=True
        ).stdout.split()
        assert len(shown) == 1502
        assert {".", ".."} <= set(shown)

    await aside(work)


async def test_listing_holds_still_while_names_come_and_go(scene: Scene) -> None:
    def work() -> None:
        for i in range(600):
            os.mknod(scene.path / f"stays-{i}")
            os.mknod(scene.path / f"goes-{i}")
        seen = []
        for entry in os.scandir(scene.path):
            seen.append(entry.name)
            if entry.name.startswith("goes"):
                os.unlink(scene.path / entry.name)
            if len(seen) == 50:
                os.mknod(scene.path / "new")
        assert len(seen) == len(set(seen))
        assert {f"stays-{i}" for i in range(600)} <= set(seen)

    await aside(work)


async def test_dot_dot_of_a_deep_directory(scene: Scene) -> None:
    def work() -> None:
        deep = scene.path / "a" / "b"
        deep.mkdir(parents=True)
        inodes = {e.split()[1]: int(e.split()[0]) for e in _ls_inodes(deep)}
        assert inodes[".."] == (scene.path / "a").stat().st_ino
        assert inodes["."] == deep.stat().st_ino

    await aside(work)


def _ls_inodes(path: Path) -> list[str]:
    return subprocess.run(
        ["ls", "-aif", path], capture_output=True, text=True, check=True
    ).stdout.splitlines()


async def test_lookups_are_counted_so_that_all_is_forgotten(scene: Scene) -> None:
    def work() -> None:
        for i in range(50):
            (scene.path / f"d{i}").mkdir()
            (scene.path / f"d{i}" / "f").write_text("x")
            os.link(scene.path / f"d{i}" / "f", scene.path / f"l{i}")
        subprocess.run(["find", scene.path, "-ls"], check=True, capture_output=True)
        shutil.rmtree(scene.path / "d0")
        Path("/proc/sys/vm/drop_caches").write_text("2")

    await aside(work)
    for _ in range(100):
        if all(n == 0 for ino, n in scene.fs.known.items() if ino != 1):
            break
        await trio.sleep(0.05)
    assert {ino: n for ino, n in scene.fs.known.items() if n and ino != 1} == {}
    assert min(scene.fs.known.values()) >= 0


@pytest.mark.parametrize(
    ("trouble", "number"),
    [
        (Refused(errno.EDQUOT), errno.EDQUOT),
        (Corrupt("packs/00/11: damaged"), errno.EIO),
        (ZeroDivisionError("a bug"), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (ExceptionGroup("in a nursery", [Refused(errno.EFBIG)]), errno.EFBIG),
        (ExceptionGroup("a", [ExceptionGroup("b", [Corrupt("x")]), Refused(2)]), errno.EIO),
    ],
)
async def test_whatever_is_raised_becomes_an_errno_and_the_mount_lives(
    scene: Scene, trouble: Exception, number: int
) -> None:
    def write() -> None:
        (scene.path / "f").write_bytes(b"1")

    for method in ("create", "write", "flush"):
        scene.fs.fail[method] = trouble
        with pytest.raises(OSError) as caught:
            await aside(write)
        assert caught.value.errno == number
    scene.fs.fail["forget"] = trouble
    await aside(write)
    assert await aside((scene.path / "f").read_bytes) == b"1"


async def test_faults_are_logged_once_and_refusals_never(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    await aside((scene.path / "f").touch)
    for trouble in (Corrupt("packs/00/11: damaged"), Corrupt("packs/00/11: damaged"), Refused(5)):
        scene.fs.fail["open"] = trouble
        with pytest.raises(OSError):
            await aside((scene.path / "f").read_bytes)
    lines = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert lines == ["open failed: packs/00/11: damaged"]


async def test_a_request_that_waits_holds_up_no_other(scene: Scene) -> None:
    await aside((scene.path / "slow").write_bytes, b"1")
    scene.fs.keep_cache = False
    scene.fs.hold["read"] = trio.Event()
    readers: list[bytes] = []

    async def read() -> None:
        readers.append(await aside((scene.path / "slow").read_bytes))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(read)
        await trio.sleep(0.2)
        with trio.fail_after(5):
            assert await aside(os.listdir, scene.path) == ["slow"]
            assert (await aside(os.statvfs, scene.path)).f_bfree == 900
        scene.fs.hold.pop("read").set()
    assert readers == [b"1"] * 20


async def test_news_makes_the_kernel_look_again(scene: Scene) -> None:
    file = scene.path / "f"
    await aside(file.write_bytes, b"old")
    assert await aside(file.read_bytes) == b"old"
    assert (await aside(file.stat)).st_size == 3
    node = next(n for ino, n in scene.fs.nodes.items() if ino != 1)
    node.data[:] = b"newer"
    node.inode.size = 5
    assert (await aside(file.stat)).st_size == 3  # the kernel's own memory

    scene.fs.invalidate([Invalidation("inode", node.inode.ino, None, False)])
    await _until(lambda: aside(file.read_bytes), b"newer")

    root = scene.fs.nodes[1]
    root.names[b"g"] = root.names.pop(b"f")
    root.cookies[b"g"] = root.cookies.pop(b"f")
    assert await aside(file.exists)
    scene.fs.invalidate([Invalidation("entry", 1, b"f", False)])
    await _until(lambda: aside(file.exists), False)


async def _until(ask: Callable[[], Any], wanted: object) -> None:
    with trio.fail_after(5):
        while await ask() != wanted:  # noqa: ASYNC110  (it is the kernel that changes)
            await trio.sleep(0.02)


async def test_news_never_waits_for_a_request_in_the_same_directory(scene: Scene) -> None:
    scene.fs.hold["mkdir"] = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(aside, (scene.path / "d").mkdir)
        await trio.sleep(0.1)
        # The kernel holds the root's lock for mkdir, and so holds the thread that tells it this.
        scene.fs.invalidate([Invalidation("entry", 1, b"other", False)])
        await trio.sleep(0.1)
        scene.fs.hold.pop("mkdir").set()
    assert await aside(os.listdir, scene.path) == ["d"]


async def test_truncation_comes_with_open(scene: Scene) -> None:
    await aside((scene.path / "f").write_bytes, b"long")
    before = scene.fs.calls["setattr"]
    await aside((scene.path / "f").write_bytes, b"s")
    assert scene.fs.calls["setattr"] == before
    assert await aside((scene.path / "f").read_bytes) == b"s"


async def test_set_id_bits_go_with_a_new_owner_and_with_a_strangers_write(
    place: Path, nursery: trio.Nursery
) -> None:
    async with mounted(MemoryFS(), place, nursery, Presentation(), ("allow_other",)) as scene:
        file = scene.path / "f"

        def chown() -> int:
            file.touch()
            os.chmod(file, 0o6777)
            os.chown(file, 12, 34)
            return stat.S_IMODE(file.stat().st_mode)

        def write() -> int:
            os.chmod(file, 0o6777)
            os.chmod(place, 0o755)
            command = ["sh", "-c", 'printf x >> "$1"', "sh", "f"]
            # tmp_path lies below directories that only root may enter, but a fd may be inherited.
            subprocess.run(command, cwd=scene.path, user=4321, group=4321, check=True)
            return stat.S_IMODE(file.stat().st_mode)

        assert await aside(chown) == 0o777
        assert await aside(write) == 0o777


async def test_rename_flags(scene: Scene) -> None:
    def work() -> list[int]:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        a, b = (os.fsencode(scene.path / n) for n in "ab")
        Path(os.fsdecode(a)).write_text("a")
        Path(os.fsdecode(b)).write_text("b")
        outcomes = []
        for flags in (1, 2):
            done = libc.renameat2(-100, a, -100, b, flags)
            outcomes.append(ctypes.get_errno() if done else 0)
        return outcomes

    assert await aside(work) == [errno.EEXIST, 0]
    assert await aside((scene.path / "a").read_text) == "b"


async def test_shown_owner_and_mode_can_be_overridden(place: Path, nursery: trio.Nursery) -> None:
    fs = MemoryFS()
    async with mounted(fs, place, nursery, Presentation(uid=7, gid=8, umask=0o027)) as scene:
        await aside((scene.path / "f").touch)
        seen = await aside((scene.path / "f").stat)
    assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (7, 8, 0o750)
    assert fs.nodes[1 << 25].inode.uid == os.getuid()


async def test_read_only_is_the_kernels_business(place: Path, nursery: trio.Nursery) -> None:
    async with mounted(MemoryFS(), place, nursery, Presentation(), ("ro",)) as scene:
        with pytest.raises(OSError) as caught:
            await aside((scene.path / "f").touch)
    assert caught.value.errno == errno.EROFS


async def test_the_mask_is_applied_once(scene: Scene) -> None:
    def work() -> int:
        old = os.umask(0o026)
        try:
            os.close(os.open(scene.path / "f", os.O_CREAT | os.O_WRONLY, 0o666))
        finally:
            os.umask(old)
        return stat.S_IMODE((scene.path / "f").stat().st_mode)

    assert await aside(work) == 0o640


async def test_unmounted_from_outside_serving_ends(place: Path) -> None:
    path = place / "mnt"
    path.mkdir()
    mount = KernelMount(MemoryFS(), str(path), Presentation())  # type: ignore[arg-type]
    mount.open()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.serve)
            await mount.started.wait()
            await aside((path / "f").touch)
            await aside(lambda: subprocess.run(["umount", path], check=True))
    mount.close(unmount=False)
    assert not path.is_mount()


async def test_stop_does_not_wait_for_ever_for_a_request(place: Path) -> None:
    path = place / "mnt"
    path.mkdir()
    fs = MemoryFS()
    fs.hold["mkdir"] = trio.Event()
    mount = KernelMount(fs, str(path), Presentation())  # type: ignore[arg-type]
    mount.open()

    async def stuck() -> None:
        with pytest.raises(OSError):
            await aside((path / "d").mkdir)

    with trio.fail_after(10):
        async with trio.open_nursery() as callers:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mount.serve)
                await mount.started.wait()
                callers.start_soon(stuck)
                await trio.sleep(0.2)
                mount.stop(0.3)
            mount.close(unmount=True)  # aborts what waits


def test_why_it_could_not_be_mounted(place: Path) -> None:
    with pytest.raises(Exception, match=r"cannot mount at .*: .*") as caught:
        KernelMount(MemoryFS(), str(place / "absent"), Presentation()).open()  # type: ignore[arg-type]
    assert "No such file" in str(caught.value) or "failed to" in str(caught.value)
