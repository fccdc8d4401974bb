"""Who uses a mount: programs, other mounts of the same filesystem, other mount namespaces.

Only /proc is read, and the mount is asked nothing, for it may hang: an open file, a current or root
directory is known by the number of its mount (fdinfo, proc(5)), and opening one with O_PATH sends
no request.  A user other than root sees only their own processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from megafs.errors import Busy
from megafs.mount import mountpoint
from megafs.mount.mountpoint import Mounted, mounts
from megafs.printable import printable

#: So many are named; of the others it is said how many they are.
NAMED = 3

_PROC = Path("/proc")


class Holder(Struct, frozen=True):
    """A process.  name: as it calls itself, which may be anything."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"process {self.pid} ({printable(self.name)})"


def users(at: Mounted) -> list[Holder]:
    """Return the processes that use the mount *at* of our mount namespace."""
    return [holder for holder in _processes() if _uses(holder.pid, at)]


def check_unused(at: Mounted) -> None:
    """Raise Busy, with who uses it, if the mount *at* cannot be unmounted now, as far as we can
    see.
    """
    used = mountpoint.is_used(at.mountpoint)
    others = other_mountpoints(at)
    if used is False and not others:
        return
    using = users(at)
    if used or using or others:
        raise Busy(_why(at, using, others))


def why_busy(at: Mounted) -> str:
    """Return why the kernel refuses to unmount *at*, as a sentence."""
    return _why(at, users(at), other_mountpoints(at))


def _why(at: Mounted, using: list[Holder], others: list[str]) -> str:
    path = printable(at.mountpoint)
    if others:
        other = printable(others[0])
        same = any(its.mountpoint == others[0] and its.device == at.device for its in mounts())
        how = "the same files are mounted at" if same else "something is mounted in it, at"
        return f"{path} is in use: {how} {other}; umount {other} first"
    by = f" by {listed(using)}" if using else f" (fuser -vm {path} shows by whom)"
    return (
        f"{path} is in use{by}: leave it, or say --lazy to take it away now and let the mount"
        " finish behind"
    )


def other_mountpoints(at: Mounted) -> list[str]:
    """Return where else in our namespace the filesystem is mounted, and what is mounted in it."""
    below = at.mountpoint.rstrip("/") + "/"
    return [
        its.mountpoint
        for its in mounts()
        if its.number != at.number and (its.device == at.device or its.mountpoint.startswith(below))
    ]


def elsewhere(device: str) -> list[Holder]:
    """Return a process of each other mount namespace in which *device* ("major:minor") is mounted.

    A namespace without a process cannot be looked into.
    """
    looked_at = {"", _namespace("self")}
    found = []
    for holder in _processes():
        namespace = _namespace(str(holder.pid))
        if namespace in looked_at:
            continue
        looked_at.add(namespace)
        try:
            table = (_PROC / str(holder.pid) / "mountinfo").read_bytes()
        except OSError:
            continue
        if any(line.split(b" ", 3)[2] == device.encode() for line in table.splitlines()):
            found.append(holder)
    return found


def listed(holders: list[Holder]) -> str:
    """Return *holders* as the end of a sentence."""
    text = ", ".join(str(holder) for holder in holders[:NAMED])
    more = len(holders) - NAMED
    return f"{text} and {more} more" if more > 0 else text


def _processes() -> Iterator[Holder]:
    for name in os.listdir(_PROC):
        if name.isdecimal():
            try:
                called = (_PROC / name / "comm").read_bytes()
            except OSError:  # it has ended
                continue
            yield Holder(int(name), os.fsdecode(called.removesuffix(b"\n")))


def _namespace(process: str) -> str:
    try:
        return os.readlink(_PROC / process / "ns" / "mnt")
    except OSError:  # another user's, or it has ended
        return ""


def _uses(pid: int, at: Mounted) -> bool:
    process = _PROC / str(pid)
    return any(_lies_in(process / name, at) for name in ("cwd", "root")) or _has_open(process, at)


def _lies_in(link: Path, at: Mounted) -> bool:
    try:
        fd = os.open(link, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _mount_number(Path(f"/proc/self/fdinfo/{fd}")) == at.number
    finally:
        os.close(fd)


def _has_open(process: Path, at: Mounted) -> bool:
    try:
        infos = list((process / "fdinfo").iterdir())
    except OSError:
        return False
    return any(_mount_number(info) == at.number for info in infos) or _has_mapped(process, at)


def _has_mapped(process: Path, at: Mounted) -> bool:
    """Whether a file of *at* is mapped, a running program's for example: mappings need no open
    file.
    """
    major, minor = (int(part) for part in at.device.split(":"))
    device = b"%02x:%02x" % (major, minor)
    try:
        with (process / "maps").open("rb") as lines:
            return any(line.split(None, 4)[3] == device for line in lines)
    except OSError:
        return False


def _mount_number(info: Path) -> int | None:
    try:
        for line in info.read_bytes().splitlines():
            if line.startswith(b"mnt_id:"):
                return int(line.split()[1])
    except OSError:
        pass
    return None
