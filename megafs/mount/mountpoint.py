"""The directory a volume is mounted at: may it be, is it, was it; and taking it away again.

What is mounted is read from /proc/self/mountinfo (proc(5)): a mountpoint whose process has died or
hangs cannot be asked anything, and must not be.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from megafs.errors import AlreadyThere, BadUsage, Busy, MegafsError, MountFailed
from megafs.mount import connection, source
from megafs.side_thread import start_thread

FSTYPE = "fuse.megafs"
FUSE_DEVICE = "/dev/fuse"
FUSE_CONF = "/etc/fuse.conf"

_MNT_DETACH = 2
_MNT_EXPIRE = 4
_UMOUNT_NOFOLLOW = 8

T = TypeVar("T")


class Mounted(Struct, frozen=True):
    """One line of mountinfo.

    device: "major:minor", whose minor names the FUSE connection.  number: of the mount, which no
    other has while it is there.  uid: of the user who mounted it, if it is a FUSE filesystem.
    options: of the mount and of the filesystem, "rw,nosuid" for example.
    """

    mountpoint: str
    fstype: str
    source: str
    device: str
    number: int
    uid: int | None = None
    options: str = ""

    @property
    def connection(self) -> int:
        """The number below /sys/fs/fuse/connections."""
        return int(self.device.partition(":")[2])


def mounts() -> list[Mounted]:
    """Return everything mounted in our namespace, in the order it was mounted."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file.read().splitlines():
            left, _, right = line.partition(b" - ")
            before, after = left.split(b" "), right.split(b" ")
            found.append(
                Mounted(
                    mountpoint=_unescaped(before[4]),
                    fstype=_unescaped(after[0]),
                    source=_unescaped(after[1]),
                    device=_unescaped(before[2]),
                    number=int(before[0]),
                    uid=_user_id(after[2]) if len(after) > 2 else None,
                    options=_unescaped(b",".join([before[5], *after[2:3]])),
                )
            )
    return found


class Directory(Struct, frozen=True):
    """Which directory it is, whatever its name: st_dev and st_ino."""

    device: int
    inode: int


class MountTable:
    """Tells whether anything was mounted or unmounted in our namespace, without reading it all."""

    def __init__(self) -> None:
        self._file = open("/proc/self/mountinfo", "rb")  # noqa: SIM115
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLPRI)

    def has_changed(self) -> bool:
        """Whether it has since the last call."""
        return bool(self._poll.poll(0))


def _user_id(options: bytes) -> int | None:
    for option in options.split(b","):
        name, _, value = option.partition(b"=")
        if name == b"user_id" and value.isdigit():
            return int(value)
    return None


def _unescaped(text: bytes) -> str:
    for char in b" \t\n\\#":
        text = text.replace(b"\\%03o" % char, b"\0%c" % char)
    return os.fsdecode(text.replace(b"\0", b""))


def flags_of(mounted: Mounted) -> list[str]:
    """The options of a mount without a value; "ro" of either the mount or the filesystem."""
    names = [name for name in mounted.options.split(",") if "=" not in name]
    return [name for name in names if name != "rw" or "ro" not in names]


def find(mountpoint: str) -> Mounted | None:
    """Return what is mounted at exactly *mountpoint*, the topmost if several are."""
    return next((m for m in reversed(mounts()) if m.mountpoint == mountpoint), None)


def canonical(path: str | os.PathLike[str]) -> str:
    """Return the one name of a mountpoint: absolute, links resolved.

    The mountpoint itself is asked nothing if something of ours is mounted there, since it may hang.
    """
    parent, name = os.path.split(os.path.abspath(os.fspath(path)))
    whole = os.path.join(os.path.realpath(parent), name) if name else parent
    at = find(whole)
    if at is not None and at.fstype.startswith("fuse"):
        return whole
    return os.path.realpath(whole)


def check(mountpoint: str, *, nonempty: bool, patience: float = 10.0) -> Directory:
    """Return which directory *mountpoint* is; raise MegafsError if nothing can be mounted there.
    Cleans up after a dead mount.

    mountpoint: as `canonical` returns it.
    """
    at = find(mountpoint)
    if at is not None and at.fstype == FSTYPE:
        _clear_if_dead(at, patience)
        at = find(mountpoint)
    try:
        found = os.stat(mountpoint)
    except FileNotFoundError:
        raise MountFailed(f"{mountpoint} does not exist: mkdir {mountpoint}") from None
    except OSError as exc:
        if exc.errno == errno.ENOTCONN:  # of another FUSE program
            raise MountFailed(
                f"a dead FUSE mount lies at {mountpoint}: fusermount3 -u {mountpoint}"
            ) from None
        raise MountFailed(f"{mountpoint} cannot be used: {exc.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise MountFailed(f"{mountpoint} is not a directory")
    # Below autofs looking inside would wait for the very mount that is being made.
    automounted = at is not None and at.fstype == "autofs"
    if not nonempty and not automounted:
        try:
            with os.scandir(mountpoint) as entries:
                empty = next(entries, None) is None
        except OSError as exc:
            raise MountFailed(f"{mountpoint} cannot be read: {exc.strerror}") from None
        if not empty:
            raise MountFailed(
                f"{mountpoint} is not empty, and what is in it would be hidden:"
                " choose another directory, or say -o nonempty"
            )
    if os.geteuid() != 0 and not os.access(mountpoint, os.W_OK):
        raise MountFailed(f"{mountpoint} is not yours to write, so you may not mount there")
    return Directory(found.st_dev, found.st_ino)


@contextmanager
def pinned(mountpoint: str, seen: Directory, source: str) -> Iterator[str]:
    """For mounting *source* in the block: give a name of the directory *seen* that `check` saw at
    *mountpoint*.

    Between `check` and the mount somebody may type a passphrase, and who may write to a directory
    above can put another one in its place.  So root mounts through a descriptor.  fusermount3 takes
    a name, but mounts only where its user may write.  A mount that is not where it should be is
    detached.  Raises MountFailed.
    """
    replaced = f"{mountpoint} was replaced while the mount was being made: nothing is mounted there"
    before = {its.number for its in mounts()}
    try:
        # Without O_DIRECTORY, with which autofs would wait for the mount that is being made.
        fd = os.open(mountpoint, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        raise MountFailed(f"{mountpoint} cannot be used: {exc.strerror}") from None
    try:
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != (seen.device, seen.inode):
            raise MountFailed(replaced)
        yield f"/proc/self/fd/{fd}" if os.geteuid() == 0 else mountpoint
        there = find(mountpoint)
        is_ours = there is not None and there.number not in before and there.fstype == FSTYPE
        if is_ours and os.readlink(f"/proc/self/fd/{fd}") == mountpoint:
            return
        for its in mounts():
            if its.number not in before and (its.fstype, its.source) == (FSTYPE, source):
                detach(its.mountpoint)
        raise MountFailed(replaced)
    finally:
        os.close(fd)


def check_fuse(*, allow_other: bool) -> None:
    """Raise MegafsError, with the reason, if this machine or user cannot mount FUSE filesystems."""
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise MountFailed(
            f"{FUSE_DEVICE} is missing: load the kernel's FUSE module (modprobe fuse); in a"
            " container, start it with --device /dev/fuse --cap-add SYS_ADMIN"
        ) from None
    except OSError as exc:
        raise MountFailed(
            f"{FUSE_DEVICE} cannot be opened: {exc.strerror}; mounting as this user is not allowed"
        ) from None
    if os.geteuid() == 0:
        return
    if shutil.which("fusermount3") is None:
        raise MountFailed(
            "fusermount3 is missing, which mounts for users other than root: install fuse3"
        )
    if allow_other and not _conf_allows():
        raise MountFailed(
            f"allow_other is only for root unless {FUSE_CONF} has the line user_allow_other"
        )


def _conf_allows() -> bool:
    try:
        lines = Path(FUSE_CONF).read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def _clear_if_dead(at: Mounted, patience: float) -> None:
    try:
        # Not stat(2), which the kernel may answer from memory although nobody serves any more.
        _in_time(lambda: os.statvfs(at.mountpoint), patience)
    except TimeoutError:
        raise Busy(
            f"a megafs mount at {at.mountpoint} does not answer:"
            f" end it with megafs umount --force {at.mountpoint}"
        ) from None
    except OSError as exc:
        if exc.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
            # EACCES for example: it lives, and is somebody else's.
            raise AlreadyThere(_taken(at)) from None
    else:
        raise AlreadyThere(_taken(at))
    detach(at.mountpoint)


def _taken(at: Mounted) -> str:
    url = source.to_url(at.source)
    return f"{at.mountpoint} is mounted already ({url}): see megafs status {at.mountpoint}"


def _in_time(ask: Callable[[], T], patience: float) -> T:
    """Return what *ask* returns, or raise TimeoutError and leave its thread behind."""
    outcome: list[T | Exception] = []
    done = threading.Event()

    def run() -> None:
        try:
            outcome.append(ask())
        except Exception as exc:
            outcome.append(exc)
        done.set()

    try:
        start_thread(run)
    except RuntimeError:  # there is no room for another one
        raise TimeoutError from None
    if not done.wait(patience):
        raise TimeoutError
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def responds(mountpoint: str, patience: float) -> bool:
    """Whether a statvfs(2) of *mountpoint* comes back in time and well."""
    try:
        _in_time(lambda: os.statvfs(mountpoint), patience)
    except (TimeoutError, OSError):
        return False
    return True


def is_dead(mountpoint: str, patience: float = 5.0) -> bool | None:
    """Whether nobody serves the mount any more; None if it does not answer in time."""
    try:
        _in_time(lambda: os.statvfs(mountpoint), patience)
    except TimeoutError:
        return None
    except OSError as exc:
        return exc.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def detach(mountpoint: str) -> None:
    """Take the mount away at once; files that are open stay usable while its process lives."""
    if os.geteuid() == 0:
        _umount2(mountpoint, _MNT_DETACH | _UMOUNT_NOFOLLOW)
    else:
        _fusermount("-uz", mountpoint)


def detach_in_time(mountpoint: str, patience: float) -> None:
    """Try to `detach`, for at most *patience* seconds, without an error."""
    try:
        _in_time(lambda: detach(mountpoint), patience)
    except (TimeoutError, MegafsError):
        pass


def unmount(mountpoint: str) -> None:
    """Take the mount away if nobody uses it; raises Busy if somebody does.

    Blocks until the kernel has written back what programs changed through mmap, so the mount has to
    be served meanwhile.
    """
    if os.geteuid() == 0:
        _umount2(mountpoint, _UMOUNT_NOFOLLOW)
    else:
        _fusermount("-u", mountpoint)


def is_used(mountpoint: str) -> bool | None:
    """Whether `unmount` would be refused now; None where that cannot be told, as for others than
    root.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(mountpoint)
    # MNT_EXPIRE refuses what is used and marks what is not; what it finds marked it unmounts.  The
    # mark goes when somebody uses the mount, which opening it without a request is.
    _touch(mountpoint)
    try:
        if libc.umount2(path, _MNT_EXPIRE | _UMOUNT_NOFOLLOW) == 0:
            return False
        number = ctypes.get_errno()
    finally:
        _touch(mountpoint)
    return {errno.EAGAIN: False, errno.EBUSY: True}.get(number)


def _touch(mountpoint: str) -> None:
    try:
        os.close(os.open(mountpoint, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError:
        pass


def _umount2(mountpoint: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), flags) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EBUSY:
        raise Busy(_busy(mountpoint))
    if number == errno.EINVAL:
        raise BadUsage(f"nothing is mounted at {mountpoint}")
    raise MountFailed(f"cannot unmount {mountpoint}: {os.strerror(number)}")


def _fusermount(flag: str, mountpoint: str) -> None:
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        raise MountFailed("fusermount3 is missing, which unmounts for users other than root")
    done = subprocess.run(
        [program, flag, "--", mountpoint],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd="/",
    )
    if done.returncode == 0:
        return
    if "busy" in done.stderr:
        raise Busy(_busy(mountpoint))
    if "not found in" in done.stderr:
        raise BadUsage(f"nothing of yours is mounted at {mountpoint}")
    raise MountFailed(f"cannot unmount {mountpoint}: {done.stderr.strip()}")


def _busy(mountpoint: str) -> str:
    return (
        f"{mountpoint} is in use (fuser -vm {mountpoint} shows by whom):"
        " leave it, or say --lazy to take it away now and let the mount finish behind"
    )


def abort(at: Mounted) -> bool:
    """Abort the kernel's connection: every request that waits fails at once, and so does every
    later one.  The mount stays where it is.

    Returns whether that was possible: it takes root, or the mount's owner and a mounted fusectl.
    """
    try:
        file = connection.open_abort(at.connection)
    except OSError:
        return _force(at)
    try:
        # The file stays with its connection, and a number with its mount: now they are the same.
        if not _is_mounted(at):
            return False
        os.write(file, b"1")
    except OSError:
        return _force(at)
    finally:
        os.close(file)
    return True


def _is_mounted(at: Mounted) -> bool:
    return any(it.device == at.device for it in mounts())


def _force(at: Mounted) -> bool:
    topmost = find(at.mountpoint)
    return topmost is not None and topmost.device == at.device and connection.force(at.mountpoint)


def tune(at: Mounted, readahead: int) -> None:
    """Let the kernel read ahead *readahead* bytes; silently nothing where that is not allowed."""
    try:
        Path(f"/sys/class/bdi/{at.device}/read_ahead_kb").write_text(str(readahead >> 10))
    except OSError:
        pass
