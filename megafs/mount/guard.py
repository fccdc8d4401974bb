"""A guarded mountpoint: while nothing is mounted there, nobody writes into it by accident.

Programs that go on when a volume is unmounted would fill the bare directory below, in plaintext and
on the wrong disk.  So the directory is made immutable where its filesystem and our rights allow it
(ioctl_iflags(2); chattr -i DIR undoes it), and else gets mode 000, which stops everybody but root
(chmod 755 DIR undoes it).

Mounting on such a directory works all the same: the kernel mounts over an immutable one, and for
fusermount3, which wants a directory that its user may write to, mode 000 is lifted meanwhile.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from megafs.mount.mountpoint import Directory

log = logging.getLogger(__name__)

# linux/fs.h; the kernel reads an int, whatever the number says.
_GETFLAGS = 0x80086601
_SETFLAGS = 0x40086602
_IMMUTABLE = 0x10


@contextmanager
def lifted(path: str) -> Iterator[None]:
    """Give the user's own directory of mode 000 at *path* back to its user for the block."""
    if os.geteuid() == 0:
        yield
        return
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        if not _is_locked(fd):
            yield
            return
        name = f"/proc/self/fd/{fd}"  # of this very directory, also once a mount lies on it
        os.chmod(name, 0o700)
        try:
            yield
        finally:
            os.chmod(name, 0)
    finally:
        os.close(fd)


def _is_locked(fd: int) -> bool:
    """Whether *fd* is a directory of our own with mode 000."""
    try:
        found = os.fstat(fd)
    except OSError:  # a mount lies there whose process was killed
        return False
    locked = stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode)
    return locked and found.st_uid == os.geteuid()


@contextmanager
def guarding(path: str, seen: Directory) -> Iterator[None]:
    """Guard the directory *seen* at *path*, on which the block mounts; the log says how.

    What cannot be guarded is a warning: the mount is there all the same.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        log.warning("%s cannot be guarded: %s", path, exc.strerror)
        yield
        return
    try:
        yield
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != (seen.device, seen.inode):
            log.warning("%s cannot be guarded: it was replaced", path)
            return
        try:
            _guard(fd, path)
        except OSError as exc:
            log.warning("%s cannot be guarded: %s", path, exc.strerror)
    finally:
        os.close(fd)


def _guard(fd: int, path: str) -> None:
    try:
        flags = struct.unpack("i4x", fcntl.ioctl(fd, _GETFLAGS, bytes(8)))[0]
        if not flags & _IMMUTABLE:
            fcntl.ioctl(fd, _SETFLAGS, struct.pack("i4x", flags | _IMMUTABLE))
        log.info("%s is guarded: it is immutable while nothing is mounted there", path)
        return
    except OSError as exc:
        why = exc.strerror
    os.fchmod(fd, 0)
    log.warning(
        "%s is guarded by mode 000 alone, for it cannot be made immutable (%s): root can write into"
        " it all the same",
        path,
        why,
    )
