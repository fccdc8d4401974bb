"""Files and directories that this user alone changes: state, cache, logs.

Two guards, for what somebody put into the directory while it was open to others, and for what
somebody may still do:

    check_directory    once, when a directory is taken into use: it is nobody else's, and others may
                       neither write into it nor swap it for another one
    open_private       each file: a regular file, never through a symbolic link; a FIFO that lies in
                       its place keeps nobody waiting

What has a name of ours and cannot be what we made is set aside, not removed (`set_aside`).
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from megafs.errors import Denied

log = logging.getLogger(__name__)

#: Where `set_aside` puts things.
DAMAGED: Final = "damaged"
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def open_private(path: str | Path, flags: int, mode: int = 0o600) -> int:
    """Open the regular file *path*; return a descriptor.

    flags: as for open(2); what keeps links and FIFOs out, and O_CLOEXEC, are added.
    Raises OSError as open(2) does: ELOOP for a symbolic link, EISDIR for a directory, EINVAL for
    anything else that is no regular file.
    """
    # O_NONBLOCK: open(2) would wait for the other end of a FIFO; it means nothing for a file.
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    kind = os.fstat(fd).st_mode
    if stat.S_ISREG(kind):
        return fd
    os.close(fd)
    number = errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL
    raise OSError(number, f"{_kind(kind)}, not a file", str(path))


def read_private(path: str | Path, limit: int | None = None) -> bytes:
    """Return what *path* holds, at most *limit* bytes of it; raises as `open_private`."""
    fd = open_private(path, os.O_RDONLY)
    with open(fd, "rb") as file:
        return file.read(-1 if limit is None else limit)


def set_aside(path: Path, below: Path | None = None) -> Path:
    """Move *path*, whatever it is, to the directory `damaged` beside it, or in *below*.

    Returns where it is now.  For what cannot be used and may yet be wanted: nothing that a user
    could miss is removed.
    """
    to = place_aside(path, below or path.parent)
    path.rename(to)
    return to


def place_aside(path: Path, below: Path) -> Path:
    """Where `set_aside` would move *path*, in the directory `damaged`, which is made."""
    home = below / DAMAGED
    home.mkdir(mode=0o700, exist_ok=True)
    number = 1
    while os.path.lexists(to := home / f"{path.name}-{number}"):
        number += 1
    return to


def expect_file(path: Path) -> bool:
    """Set aside, and log, what has the name of a file of ours and is none; False if it was."""
    return _expect(path, stat.S_ISREG, "a regular file")


def expect_directory(path: Path) -> bool:
    """Set aside, and log, what has the name of a directory of ours and is none; False if it was."""
    return _expect(path, stat.S_ISDIR, "a directory")


def _expect(path: Path, is_kind: Callable[[int], bool], what: str) -> bool:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return True
    if is_kind(mode):
        return True
    log.warning("%s is %s, not %s: moved to %s", path, _kind(mode), what, set_aside(path))
    return False


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a directory",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def make_directories(path: Path) -> None:
    """Make *path* and what is missing above it, each for the owner alone, whatever the umask."""
    missing = []
    at = path
    while not at.exists() and at != at.parent:
        missing.append(at)
        at = at.parent
    for directory in reversed(missing):
        directory.mkdir(mode=0o700, exist_ok=True)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


def check_directory(path: Path, *, instead: str) -> None:
    """Raise Denied, which says what to do, if others may change what lies in *path*.

    One that is ours and open to a group or to everybody is closed to them: that is what a umask of
    000 left behind.

    instead: how to choose another directory, for the error.
    """
    _check_ways(path, instead)
    found = os.stat(path)
    ours = found.st_uid == os.geteuid()
    # Root may use what a user keeps (sudo, a backup of homes); nobody else's is ours.
    if not ours and os.geteuid() != 0:
        raise Denied(
            f"{path} belongs to user {found.st_uid}, who could change what lies there: chown it"
            f" to user {os.geteuid()}, or {instead}"
        )
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            raise Denied(f"{path} is on a file system that is mounted read-only: {instead}")
        raise Denied(f"{path}: {os.strerror(errno.EACCES)}; chmod u+rwx {path}, or {instead}")
    if ours and found.st_mode & _OTHERS:
        os.chmod(path, stat.S_IMODE(found.st_mode) & ~_OTHERS)


def _check_ways(path: Path, instead: str) -> None:
    """Raise Denied if others may swap *path*, or a directory above it, for another one.

    In a directory with the sticky bit, such as /tmp, everybody can only remove what is theirs: so
    what counts there is whose a name is, be it a directory's or a symbolic link's.
    """
    us = (os.geteuid(), 0)
    way = Path(os.path.abspath(path))
    for _ in range(40):  # as many symbolic links as the kernel follows
        for part in [*reversed(way.parents), way][1:]:
            above = os.stat(part.parent)
            if not above.st_mode & stat.S_IWOTH:
                continue
            if not above.st_mode & stat.S_ISVTX:
                raise Denied(
                    f"everybody may write to {part.parent}, and so put another directory in the"
                    f" place of {path}: chmod o-w {part.parent}, or {instead}"
                )
            if (owner := os.lstat(part).st_uid) not in us and os.geteuid() != 0:
                raise Denied(f"{part} belongs to user {owner}, who could change it: {instead}")
            if part.is_symlink() and owner not in us:
                raise Denied(f"{part} is a link that user {owner} made: remove it, or {instead}")
        link = next((p for p in [*reversed(way.parents), way] if p.is_symlink()), None)
        if link is None:
            return
        target = Path(os.path.normpath(link.parent / os.readlink(link)))
        way = target / way.relative_to(link)
    raise Denied(f"{path}: too many symbolic links; {instead}")


def others_may_write(directory: str | Path) -> bool:
    """Whether somebody else may make files in *directory*."""
    found = os.stat(directory)
    return bool(found.st_mode & stat.S_IWOTH) or found.st_uid not in (os.geteuid(), 0)
