"""Files that must survive a power cut: a directory's names, and a file replaced as a whole.

Everything here blocks for a sync or two: call it through `concurrency.offload` on a hot path.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Make the names of new files durable: a power cut may take a name and leave the bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, data: bytes) -> None:
    """Replace *path* by *data*, for the owner alone, atomically; synced with its directory.

    What is written first is called *path* and ".new".  Whatever has that name is removed: a crash
    has left it, or somebody has put a symbolic link, a hard link or a FIFO there.
    """
    temporary = path.with_name(path.name + ".new")
    for _ in range(10):
        try:
            _write_new(temporary, data)
            temporary.replace(path)
        except (FileExistsError, FileNotFoundError):
            if not path.parent.is_dir():
                raise
            continue  # another process replaces the same file
        sync_directory(path.parent)
        return
    raise FileExistsError(errno.EEXIST, "somebody makes it again and again", str(temporary))


def _write_new(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
