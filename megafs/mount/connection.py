"""The kernel's end of a FUSE mount, cut from outside: whoever waits for an answer gets an error.

fusectl, a filesystem of the kernel, has a directory for each connection, named for the minor number
of the mount's device, with a file `abort` that belongs to the user who mounted it.  It is usually
mounted at /sys/fs/fuse/connections; where it is not, root reaches it all the same with fsopen(2)
and fsmount(2), which mount it nowhere.  umount2(2) with MNT_FORCE is what is left: it needs root
and the mountpoint.

The guardian (guardian_process.py) imports this and is to be small: nothing else is imported here.
"""

from __future__ import annotations

import ctypes
import errno
import os

#: Where fusectl is usually mounted.
FUSECTL = "/sys/fs/fuse/connections"

_MNT_FORCE = 1
_UMOUNT_NOFOLLOW = 8
# These numbers are the same on every architecture (syscalls newer than Linux 5.0), and glibc has
# functions for them only since 2.36.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC = 1  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC
_FSCONFIG_CMD_CREATE = 6


def open_abort(number: int) -> int:
    """Return a descriptor that ends connection *number* when something is written to it.

    It stays with that connection, whose number the kernel may give to another one later, and holds
    nothing of the mount.  OSError: fusectl cannot be reached, or the connection is another user's.
    """
    name = f"{number}/abort"
    try:
        return os.open(f"{FUSECTL}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # also where /sys is there and fusectl is not mounted on it
        pass
    fusectl = _private_fusectl()
    try:
        return os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=fusectl)
    finally:
        os.close(fusectl)


def _private_fusectl() -> int:
    """Return a descriptor of a fusectl that is mounted nowhere and goes when it is closed."""
    libc = ctypes.CDLL(None, use_errno=True)
    context = _checked(libc.syscall(_FSOPEN, b"fusectl", _CLOEXEC))
    try:
        _checked(libc.syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0))
        return _checked(libc.syscall(_FSMOUNT, context, _CLOEXEC, 0))
    finally:
        os.close(context)


def force(mountpoint: str | bytes) -> bool:
    """End the connection of what is mounted at *mountpoint*; return whether that was possible.

    Only for root.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        # MNT_FORCE aborts, and then unmounts what nobody uses: we do.  O_PATH asks the mount
        # nothing, so that this does not wait for one that hangs.
        user = os.open(mountpoint, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return (
            libc.umount2(os.fsencode(mountpoint), _MNT_FORCE | _UMOUNT_NOFOLLOW) == 0
            or ctypes.get_errno() == errno.EBUSY
        )
    finally:
        os.close(user)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
