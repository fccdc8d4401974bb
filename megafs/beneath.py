"""Open what lies beneath a directory that others may write to, and nothing that lies elsewhere.

A path that the kernel walks by name goes wherever a symbolic link in it points, and somebody may
put one there between two calls.  Here a walk begins at an open directory and ends with ELOOP at the
first symbolic link, the last part included; what it returns is a descriptor, which no later change
of a name can turn into another file.

openat2(2) walks in one call (Linux 5.6; about 2 microseconds).  Where it is missing or a sandbox
forbids it, each part is opened by itself with O_NOFOLLOW.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

_AT_FDCWD = -100
# The same on every architecture that Python's packages are built for.
_SYS_OPENAT2 = ctypes.c_long(437)
_NO_LINKS = 0x02 | 0x04  # RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
_BENEATH = 0x08 | _NO_LINKS  # RESOLVE_BENEATH
_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _OpenHow(ctypes.Structure):
    """openat2(2)'s struct open_how: 24 bytes."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_SIZE = ctypes.c_size_t(ctypes.sizeof(_OpenHow))
# CDLL, which lets go of the interpreter: a walk may wait for a disk or a server.
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
# What is asked for, by flags and `resolve`: making it anew each time costs as much as the call.
_hows: dict[tuple[int, int], _OpenHow] = {}


def open_beneath(directory: int, path: str, flags: int) -> int:
    """Open *path*, walked from the open *directory*; return a descriptor.

    path: parts between single slashes, none of them ".."; "." is the directory itself.
    flags: as for open(2), without O_CREAT, and with O_PATH only beside O_DIRECTORY; O_CLOEXEC is
        added.
    Raises OSError: ELOOP where a part is a symbolic link, with the path up to that part as its
    `filename`; ENOENT and ENOTDIR as open(2) does.
    """
    return _open(directory, path, flags, _BENEATH)


def open_without_links(path: str, flags: int) -> int:
    """Open the absolute *path*, in which no part is a symbolic link, as `open_beneath` does."""
    return _open(_AT_FDCWD, path, flags, _NO_LINKS)


def _open(directory: int, path: str, flags: int, resolve: int) -> int:
    flags |= os.O_CLOEXEC
    if not _HAS_OPENAT2:
        return _walk(directory, path, flags)
    try:
        # O_NOFOLLOW would call a symbolic link no directory; `resolve` forbids it as well.
        return _openat2(directory, path, flags & ~os.O_NOFOLLOW, resolve)
    except OSError as exc:
        if exc.errno != errno.ELOOP:
            raise
    return _walk(directory, path, flags)  # finds out which part it is


def _openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    how = _hows.get((flags, resolve))
    if how is None:
        how = _hows[flags, resolve] = _OpenHow(flags, 0, resolve)
    encoded = os.fsencode(path)
    while True:
        fd: int = _syscall(_SYS_OPENAT2, directory, encoded, ctypes.byref(how), _SIZE)
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), path)


def _walk(directory: int, path: str, flags: int) -> int:
    """Open *path* part by part."""
    parts = path.split("/")
    held = -1  # the directory reached, where it is not the one we were given
    if path.startswith("/"):
        parts = path.strip("/").split("/") if path.strip("/") else ["."]
        directory = held = os.open("/", _STEP)
    try:
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            try:
                fd = os.open(part, flags | os.O_NOFOLLOW if last else _STEP, dir_fd=directory)
            except OSError as exc:
                so_far = "/" * path.startswith("/") + "/".join(parts[: i + 1])
                # With O_DIRECTORY a symbolic link is called no directory.
                number = errno.ELOOP if _is_link(part, directory) else exc.errno or errno.EIO
                raise OSError(number, os.strerror(number), so_far) from None
            if last:
                return fd
            if held >= 0:
                os.close(held)
            directory = held = fd
    finally:
        if held >= 0:
            os.close(held)
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)  # a path without parts


def _is_link(name: str, directory: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _has_openat2() -> bool:
    """Whether this kernel, and the sandbox we may be in, lets us call openat2(2)."""
    try:
        os.close(_openat2(_AT_FDCWD, "/", _STEP, _NO_LINKS))
    except OSError:
        return False
    return True


_HAS_OPENAT2 = _has_openat2()
