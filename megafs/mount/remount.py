"""mount -o remount: what may be written, and the flags that the kernel keeps, of a running mount.

The kernel refuses what a read-only mount must not do before it asks us, so nothing has to be told
to the mount's process; what is staged goes on to the store.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable

from megafs.errors import BadUsage, Busy, MountFailed
from megafs.mount import control_client
from megafs.mount.control_messages import MountStatus, StatusRequest
from megafs.mount.mount_record import record_of
from megafs.mount.mountpoint import Mounted, flags_of

_MS_REMOUNT = 32
#: The options that can be changed: the flag of mount(2), and whether they set it.
_FLAGS: dict[str, tuple[int, bool]] = {
    "ro": (1, True),
    "rw": (1, False),
    "nosuid": (2, True),
    "suid": (2, False),
    "nodev": (4, True),
    "dev": (4, False),
    "noexec": (8, True),
    "exec": (8, False),
    "sync": (16, True),
    "async": (16, False),
    "dirsync": (128, True),
}
#: Flags that stay as they are.
_KEPT = {"noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21}


def remount(there: Mounted, names: Iterable[str]) -> None:
    """Change the mount *there* as the options called *names* say; the later of two wins.

    Names that are not of the kernel's flags change nothing.
    """
    flags = 0
    for name in flags_of(there):
        flag, sets = _FLAGS.get(name, (_KEPT.get(name, 0), True))
        flags |= flag if sets else 0
    for name in names:
        flag, sets = _FLAGS.get(name, (0, False))
        flags = flags | flag if sets else flags & ~flag
    if not flags & 1:
        _check_may_write(there)
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(there.mountpoint)
    if libc.mount(None, target, None, ctypes.c_ulong(_MS_REMOUNT | flags), None) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EBUSY:
        raise Busy(f"{there.mountpoint}: files are open for writing, so it cannot become read-only")
    if number == errno.EPERM:
        raise MountFailed(f"{there.mountpoint}: only root may remount")
    raise MountFailed(f"{there.mountpoint} cannot be remounted: {os.strerror(number)}")


def changes(name: str) -> bool:
    """Whether `remount` obeys an option of that name."""
    return name in _FLAGS


def _check_may_write(there: Mounted) -> None:
    """Raise a sentence if the mount's process would refuse what the kernel lets through."""
    record = record_of(there.mountpoint)
    if record is None:
        return
    status = control_client.ask(record, StatusRequest(), MountStatus, patience=5.0)
    if status.read_only:
        raise BadUsage(
            f"{there.mountpoint} was mounted with -o ro: to write, unmount it and mount it again"
        )
