"""How a file that was written elsewhere gets its name, if the name is free.

Three ways, the best one first; each raises FileExistsError where the name is taken, and another
OSError, of the numbers beside it in `WAYS`, on a file system that cannot do it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import NamedTuple

from megafs.errors import Unavailable

_RENAME_NOREPLACE = 1

#: How a file is made anew, in a directory that others may write to.
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Placing(NamedTuple):
    """A temporary file that is to become an object.

    temporary, directory: the directory it lies in and that of the object, open.
    file, base: its name in the one and in the other.
    temporary_path, name: of the temporary directory and of the object, for people.
    """

    temporary: int
    file: str
    directory: int
    base: str
    temporary_path: str
    name: str


def by_link(placing: Placing) -> None:
    """link(2): on every local file system and on NFS."""
    os.link(
        placing.file,
        placing.base,
        src_dir_fd=placing.temporary,
        dst_dir_fd=placing.directory,
        follow_symlinks=False,
    )


def by_rename(placing: Placing) -> None:
    """renameat2(2) that does not replace: where there are no hard links."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if renameat2(
        placing.temporary,
        os.fsencode(placing.file),
        placing.directory,
        os.fsencode(placing.base),
        _RENAME_NOREPLACE,
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), placing.name)


def by_claim(placing: Placing) -> None:
    """A file made with O_EXCL that reserves the name while it is looked at and renamed to.

    Nothing tells whether the maker of a claim lives, so that one which is left must be removed by
    hand: the text says which.
    """
    claim = "claim-" + placing.name.replace("/", "+")
    try:
        os.close(os.open(claim, NEW, 0o600, dir_fd=placing.temporary))
    except FileExistsError:
        if lies_in(placing.directory, placing.base):
            raise
        raise Unavailable(
            f"{placing.temporary_path}: somebody is creating {placing.name}; if this stays and no"
            f" other machine writes here, remove {placing.temporary_path}/{claim}"
        ) from None
    try:
        if lies_in(placing.directory, placing.base):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), placing.name)
        os.rename(
            placing.file,
            placing.base,
            src_dir_fd=placing.temporary,
            dst_dir_fd=placing.directory,
        )
    finally:
        unlink(claim, placing.temporary)


def lies_in(directory: int, base: str) -> bool:
    """Whether anything has that name, be it a symbolic link that leads nowhere."""
    try:
        os.stat(base, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def unlink(name: str, directory: int) -> None:
    """Remove a name, if it is there."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass


# What link(2) and renameat2(2) say where they do not exist.  No more than that: who claims a name
# is not safe from somebody who links to it.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_RENAME = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}

Way = tuple[Callable[[Placing], None], set[int]]
WAYS: list[Way] = [(by_link, _NO_LINKS), (by_rename, _NO_RENAME), (by_claim, set())]
