"""megafs and a directory of this machine are told the same and must answer the same.

The other side is whatever filesystem the temporary directory lies on.  What the kernel decides
before it asks a filesystem (permissions, O_APPEND's offset, trailing slashes) is left out.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from megafs.errors import Refused
from megafs.fs.filesystem import FileSystem
from megafs.fs.names import RENAME_EXCHANGE, RENAME_NOREPLACE
from megafs.tree.inode import Inode, SetAttr
from tests.fakes.machine import live_file
from tests.fs.opened import CHUNK, ROOT, new_store
from tests.model.loop import Machine
from tests.tree.invariants import check

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="chown and mknod need root"),
    pytest.mark.timeout(900),  # a failure is made small, which takes minutes
]

#: Times that the tests set lie before this one, times that an operation sets behind it.
_YEAR_2010 = 1262304000 * 10**9
_SEE = 6 * CHUNK

_libc = ctypes.CDLL(None, use_errno=True)

NAMES = (b"a", b"b", b"c", b"a", b"b", b"\xff\xfe", "ü.txt".encode(), b"x" * 255, b"y" * 256)
names = st.sampled_from(NAMES)
places = st.lists(st.sampled_from((b"a", b"b")), max_size=2).map(tuple)
offsets = st.one_of(
    st.integers(0, 200),
    st.builds(lambda n, d: max(0, n * CHUNK + d), st.integers(0, 4), st.integers(-3, 3)),
    st.integers(0, 5 * CHUNK),
)
datas = st.one_of(
    st.binary(min_size=1, max_size=100),
    st.builds(
        lambda b, n: (b * n)[:n], st.binary(min_size=1, max_size=7), st.integers(1, 3 * CHUNK)
    ),
)
times = st.integers(0, _YEAR_2010 - 1)
modes = st.sampled_from((0o644, 0o755, 0o600, 0o4755, 0o2755, 0o2644, 0o1777, 0o7777, 0))
Place = tuple[bytes, ...]


@dataclass
class Open:
    ours: int
    real: int
    ino: int


class Real:
    """The directory of this machine; paths are walked without following symbolic links."""

    def __init__(self) -> None:
        self.base = tempfile.mkdtemp(prefix="megafs-real-").encode()
        os.chmod(self.base, 0o755)
        self._fds: list[int] = []

    def at(self, place: Place, name: bytes) -> bytes:
        fd = os.open(self.base, os.O_PATH | os.O_DIRECTORY)
        for part in place:
            self._fds.append(fd)
            fd = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        self._fds.append(fd)
        return b"/proc/self/fd/%d/%s" % (fd, name)

    def done(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


def answer(function: Callable[[], Any]) -> Any:
    """What a call gives: a value, or the errno."""
    try:
        return function()
    except (OSError, Refused) as exc:
        return f"errno {errno.errorcode[exc.errno or 0]}"


class AgainstDirectory(RuleBasedStateMachine):
    options: ClassVar[dict[str, Any]] = {}

    @initialize()
    def start(self) -> None:
        self.machine = Machine(new_store(), **self.options)
        self.real = Real()
        self.opens: list[Open] = []

    def teardown(self) -> None:
        if not hasattr(self, "machine"):
            return
        try:
            self.compare()
            self.close_all()
            self.machine.reopen(empty=True)
            self.compare()
        finally:
            for each in self.opens:
                os.close(each.real)
            shutil.rmtree(self.real.base)
            self.machine.close()

    # ---- both sides -------------------------------------------------------------------------

    @property
    def fs(self) -> FileSystem:
        return self.machine.volume.fs

    def walk(self, place: Place) -> int:
        ino = 1
        for part in place:
            found = self.machine.now(self.fs.lookup, ino, part)
            if not found.is_dir:
                raise Refused(errno.ENOTDIR)
            ino = found.ino
        return ino

    def find(self, place: Place, name: bytes) -> Inode:
        return self.machine.now(self.fs.lookup, self.walk(place), name)

    def same(
        self, real: Callable[[], Any], ours: Callable[[], Any], also: tuple[str, ...] = ()
    ) -> Any:
        there, here = answer(real), answer(ours)
        self.real.done()
        assert here == there or here in also, f"here {here!r}, there {there!r}"
        return here

    # ---- names ------------------------------------------------------------------------------

    @rule(place=places, name=names, mode=modes)
    def create(self, place: Place, name: bytes, mode: int) -> None:
        made: list[int] = []
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL

        def real() -> None:
            made.append(os.open(self.real.at(place, name), flags | os.O_NOATIME, mode))

        def ours() -> None:
            parent = self.walk(place)
            fh, inode = self.machine.call(self.fs.create, parent, name, mode, flags, ROOT)
            made.extend((fh, inode.ino))

        self.same(real, ours)
        if made:
            self.opens.append(Open(made[1], made[0], made[2]))

    @rule(place=places, name=names, mode=modes)
    def mkdir(self, place: Place, name: bytes, mode: int) -> None:
        def ours() -> None:
            self.machine.call(self.fs.mkdir, self.walk(place), name, mode & 0o1777, ROOT)

        self.same(lambda: os.mkdir(self.real.at(place, name), mode & 0o1777), ours)

    @rule(
        place=places,
        name=names,
        mode=modes,
        kind=st.sampled_from((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG, stat.S_IFCHR)),
    )
    def mknod(self, place: Place, name: bytes, mode: int, kind: int) -> None:
        rdev = os.makedev(1, 3) if kind == stat.S_IFCHR else 0

        def ours() -> None:
            self.machine.call(self.fs.mknod, self.walk(place), name, kind | mode, rdev, ROOT)

        self.same(lambda: os.mknod(self.real.at(place, name), kind | mode, rdev), ours)

    @rule(place=places, name=names, to=st.sampled_from((b"a", b"../b", b"nowhere", b"z" * 300)))
    def symlink(self, place: Place, name: bytes, to: bytes) -> None:
        def ours() -> None:
            self.machine.call(self.fs.symlink, self.walk(place), name, to, ROOT)

        self.same(lambda: os.symlink(to, self.real.at(place, name)), ours)

    @rule(place=places, name=names, new_place=places, new_name=names)
    def link(self, place: Place, name: bytes, new_place: Place, new_name: bytes) -> None:
        def real() -> None:
            old = self.real.at(place, name)
            os.lstat(old)
            os.link(old, self.real.at(new_place, new_name), follow_symlinks=False)

        def ours() -> None:
            ino = self.find(place, name).ino
            self.machine.call(self.fs.link, ino, self.walk(new_place), new_name, ROOT)

        self.same(real, ours)

    @rule(place=places, name=names)
    def unlink(self, place: Place, name: bytes) -> None:
        self.same(
            lambda: os.unlink(self.real.at(place, name)),
            lambda: self.machine.call(self.fs.unlink, self.walk(place), name, ROOT),
        )

    @rule(place=places, name=names)
    def rmdir(self, place: Place, name: bytes) -> None:
        self.same(
            lambda: os.rmdir(self.real.at(place, name)),
            lambda: self.machine.call(self.fs.rmdir, self.walk(place), name, ROOT),
        )

    @rule(
        place=places,
        name=names,
        new_place=places,
        new_name=names,
        flags=st.sampled_from((0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, 3)),
    )
    def rename(
        self, place: Place, name: bytes, new_place: Place, new_name: bytes, flags: int
    ) -> None:
        def real() -> None:
            old, new = self.real.at(place, name), self.real.at(new_place, new_name)
            if _libc.renameat2(-100, old, -100, new, flags):
                raise OSError(ctypes.get_errno(), "renameat2")

        def ours() -> None:
            parent, new_parent = self.walk(place), self.walk(new_place)
            self.machine.call(self.fs.rename, parent, name, new_parent, new_name, flags, ROOT)

        # The kernel looks for loops before it looks at types; we never see those.
        target = (*new_place, new_name)
        above = (*place, name)[: len(target)] == target
        self.same(real, ours, ("errno EISDIR",) if above else ())

    # ---- attributes -------------------------------------------------------------------------

    def attributes(self, place: Place, name: bytes, change: SetAttr) -> None:
        inode = self.find(place, name)
        self.machine.call(self.fs.setattr, inode.ino, change, ROOT)

    @rule(place=places, name=names, mode=modes)
    def chmod(self, place: Place, name: bytes, mode: int) -> None:
        if self.is_symlink(place, name):
            return
        self.same(
            lambda: os.chmod(self.real.at(place, name), mode),
            lambda: self.attributes(place, name, SetAttr(mode=mode)),
        )

    @rule(
        place=places,
        name=names,
        uid=st.sampled_from((None, 0, 1000)),
        gid=st.sampled_from((None, 0, 7)),
    )
    def chown(self, place: Place, name: bytes, uid: int | None, gid: int | None) -> None:
        if uid is None and gid is None:
            return

        def real() -> None:
            os.lchown(
                self.real.at(place, name), -1 if uid is None else uid, -1 if gid is None else gid
            )

        self.same(real, lambda: self.attributes(place, name, SetAttr(uid=uid, gid=gid)))

    @rule(place=places, name=names, atime=times, mtime=times)
    def utimens(self, place: Place, name: bytes, atime: int, mtime: int) -> None:
        def real() -> None:
            os.utime(self.real.at(place, name), ns=(atime, mtime), follow_symlinks=False)

        self.same(
            real, lambda: self.attributes(place, name, SetAttr(atime_ns=atime, mtime_ns=mtime))
        )

    @rule(place=places, name=names, size=offsets)
    def truncate(self, place: Place, name: bytes, size: int) -> None:
        if self.is_symlink(place, name):
            return
        self.same(
            lambda: os.truncate(self.real.at(place, name), size),
            lambda: self.attributes(place, name, SetAttr(size=size)),
        )

    def is_symlink(self, place: Place, name: bytes) -> bool:
        try:
            return os.path.islink(self.real.at(place, name))
        except OSError:
            return False
        finally:
            self.real.done()

    @rule(
        place=places,
        name=names,
        key=st.sampled_from((b"user.a", b"user.b")),
        value=st.binary(max_size=50),
        flags=st.sampled_from((0, 0, 1, 2)),
    )
    def setxattr(self, place: Place, name: bytes, key: bytes, value: bytes, flags: int) -> None:
        if not self.has_user_xattrs(place, name):
            return

        def ours() -> None:
            ino = self.find(place, name).ino
            self.machine.call(self.fs.setxattr, ino, key, value, flags, ROOT)

        self.same(
            lambda: os.setxattr(
                self.real.at(place, name), key, value, flags, follow_symlinks=False
            ),
            ours,
        )

    @rule(place=places, name=names, key=st.sampled_from((b"user.a", b"user.b")))
    def removexattr(self, place: Place, name: bytes, key: bytes) -> None:
        if not self.has_user_xattrs(place, name):
            return

        def ours() -> None:
            self.machine.call(self.fs.removexattr, self.find(place, name).ino, key, ROOT)

        self.same(
            lambda: os.removexattr(self.real.at(place, name), key, follow_symlinks=False), ours
        )

    def has_user_xattrs(self, place: Place, name: bytes) -> bool:
        try:
            mode = os.lstat(self.real.at(place, name)).st_mode
        except OSError:
            return True  # both will say so
        finally:
            self.real.done()
        return stat.S_ISREG(mode) or stat.S_ISDIR(mode)

    # ---- open files -------------------------------------------------------------------------

    @rule(
        place=places,
        name=names,
        flags=st.sampled_from((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC)),
    )
    def open(self, place: Place, name: bytes, flags: int) -> None:
        try:
            if not stat.S_ISREG(os.lstat(self.real.at(place, name)).st_mode):
                return
        except OSError:
            pass
        finally:
            self.real.done()
        made: list[int] = []

        def real() -> None:
            made.append(os.open(self.real.at(place, name), flags | os.O_NOATIME))

        def ours() -> None:
            ino = self.find(place, name).ino
            made.extend((self.machine.call(self.fs.open, ino, flags, ROOT)[0], ino))

        self.same(real, ours)
        if made:
            self.opens.append(Open(made[1], made[0], made[2]))

    @precondition(lambda self: self.opens)
    @rule(which=st.integers(0, 100), offset=offsets, data=datas)
    def write(self, which: int, offset: int, data: bytes) -> None:
        handle = self.opens[which % len(self.opens)]
        self.same(
            lambda: os.pwrite(handle.real, data, offset),
            lambda: self.machine.call(self.fs.write, handle.ours, offset, data),
        )

    @precondition(lambda self: self.opens)
    @rule(which=st.integers(0, 100), offset=offsets, size=st.integers(1, 3 * CHUNK))
    def read(self, which: int, offset: int, size: int) -> None:
        handle = self.opens[which % len(self.opens)]
        self.same(
            lambda: os.pread(handle.real, size, offset),
            lambda: bytes(self.machine.call(self.fs.read, handle.ours, offset, size)),
        )

    @precondition(lambda self: self.opens)
    @rule(which=st.integers(0, 100), size=offsets)
    def ftruncate(self, which: int, size: int) -> None:
        handle = self.opens[which % len(self.opens)]
        if not live_file(self.fs, handle.ours).writable:
            return

        def ours() -> None:
            self.machine.call(self.fs.setattr, handle.ino, SetAttr(size=size), ROOT, handle.ours)

        self.same(lambda: os.ftruncate(handle.real, size), ours)

    @precondition(lambda self: self.opens)
    @rule(which=st.integers(0, 100))
    def fstat(self, which: int) -> None:
        handle = self.opens[which % len(self.opens)]
        ours = shown(self.machine.now(self.fs.getattr, handle.ino))
        assert ours == shown_real(os.fstat(handle.real), ours)

    @precondition(lambda self: self.opens)
    @rule(which=st.integers(0, 100), how=st.sampled_from(("flush", "fsync")))
    def flush(self, which: int, how: str) -> None:
        handle = self.opens[which % len(self.opens)]
        if how == "flush":
            self.machine.call(self.fs.flush, handle.ours)
        else:
            self.machine.call(self.fs.fsync, handle.ours, False)

    @precondition(lambda self: self.opens)
    @rule(which=st.integers(0, 100))
    def close(self, which: int) -> None:
        handle = self.opens.pop(which % len(self.opens))
        os.close(handle.real)
        self.machine.call(self.fs.flush, handle.ours)
        self.machine.call(self.fs.release, handle.ours)

    def close_all(self) -> None:
        while self.opens:
            self.close(0)

    # ---- the whole --------------------------------------------------------------------------

    @rule()
    def flush_everything(self) -> None:
        self.machine.call(self.fs.writeback.flush_all)
        self.machine.now(check, self.machine.volume.replica.tree)

    @rule(empty=st.booleans())
    def mount_again(self, empty: bool) -> None:
        self.close_all()
        self.machine.reopen(empty=empty)
        self.compare()

    @rule()
    def compare(self) -> None:
        tree = self.machine.call(self.listing, 1)
        real = self.real_listing(self.real.base, tree)
        assert tree == real
        self.machine.now(check, self.machine.volume.replica.tree)

    async def listing(self, ino: int, prefix: bytes = b"") -> dict[bytes, Any]:
        fs = self.fs
        found: dict[bytes, Any] = {}
        handle = fs.opendir(ino)
        after = 0
        while True:
            page = fs.readdir(handle, after, 2)
            if not page:
                break
            for name, inode, after in page:  # noqa: B007
                assert prefix + name not in found
                extra: dict[bytes, Any] = {}
                data = b""
                if inode.is_dir:
                    found.update(await self.listing(inode.ino, prefix + name + b"/"))
                elif inode.is_file:
                    fh, _ = await fs.open(inode.ino, os.O_RDONLY, ROOT)
                    data = bytes(await fs.read(fh, 0, _SEE))
                    await fs.release(fh)
                elif inode.is_symlink:
                    data = fs.readlink(inode.ino)
                if inode.is_dir or inode.is_file:
                    extra = {key: fs.getxattr(inode.ino, key) for key in fs.listxattr(inode.ino)}
                found[prefix + name] = (shown(fs.getattr(inode.ino)), data, extra)
        fs.releasedir(handle)
        return found

    def real_listing(
        self, base: bytes, ours: dict[bytes, Any], prefix: bytes = b""
    ) -> dict[bytes, Any]:
        found: dict[bytes, Any] = {}
        with os.scandir(base) as entries:
            for entry in entries:
                name, path = prefix + entry.name, entry.path
                info = entry.stat(follow_symlinks=False)
                extra: dict[bytes, Any] = {}
                data = b""
                if stat.S_ISDIR(info.st_mode):
                    found.update(self.real_listing(path, ours, name + b"/"))
                elif stat.S_ISREG(info.st_mode):
                    fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
                    data = os.pread(fd, _SEE, 0)
                    os.close(fd)
                elif stat.S_ISLNK(info.st_mode):
                    data = os.readlink(path)
                if stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode):
                    extra = {
                        os.fsencode(key): os.getxattr(path, key)
                        for key in os.listxattr(path)
                        if key.startswith("user.")
                    }
                found[name] = (shown_real(info, ours[name][0] if name in ours else {}), data, extra)
        return found


def shown(inode: Inode) -> dict[str, Any]:
    """What stat(2) shows and both sides must agree on."""
    found: dict[str, Any] = {
        "mode": oct(inode.mode),
        "nlink": inode.nlink,
        "uid": inode.uid,
        "gid": inode.gid,
        "rdev": inode.rdev,
    }
    if not inode.is_dir:
        found["size"] = inode.size
    found["mtime"] = inode.mtime_ns if inode.mtime_ns < _YEAR_2010 else "by an operation"
    found["atime"] = inode.atime_ns if inode.atime_ns < _YEAR_2010 else "by an operation"
    return found


def shown_real(info: os.stat_result, ours: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "mode": oct(info.st_mode),
        "nlink": info.st_nlink,
        "uid": info.st_uid,
        "gid": info.st_gid,
        "rdev": info.st_rdev,
    }
    if not stat.S_ISDIR(info.st_mode):
        found["size"] = info.st_size
    found["mtime"] = info.st_mtime_ns if info.st_mtime_ns < _YEAR_2010 else "by an operation"
    found["atime"] = info.st_atime_ns if info.st_atime_ns < _YEAR_2010 else "by an operation"
    # readlink(2) and opendir(3) of the test itself may touch these on the other side.
    if not stat.S_ISREG(info.st_mode) and "atime" in ours:
        found["atime"] = ours["atime"]
    return found


@pytest.fixture(scope="module", autouse=True)
def _every_mode_bit() -> Any:
    old = os.umask(0)
    yield
    os.umask(old)


TestAgainstDirectory = AgainstDirectory.TestCase
TestAgainstDirectory.settings = settings(
    max_examples=120,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class StrictAgainstDirectory(AgainstDirectory):
    """The same when every name is committed before it is answered."""

    options: ClassVar[dict[str, Any]] = {"consistency": "strict", "fsync": "store"}


TestStrictAgainstDirectory = StrictAgainstDirectory.TestCase
TestStrictAgainstDirectory.settings = settings(
    max_examples=25,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
