"""A page of a listing, out of a directory that others may write to.

Whatever lies there, a page costs a bounded time and memory: no directory is read that is deeper
than an object's name can be long, no symbolic link is followed, BATCH names of a directory are held
at once (it is read again for those that follow), and LOOKED entries are looked at.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator

from megafs.beneath import open_beneath
from megafs.errors import StoreError
from megafs.stores.base import Entry

#: The longest name of an object.
LONGEST = 200
#: The most names of one directory in memory.
BATCH = 4096
#: The most entries that a page looks at: some 15 seconds, and what a volume with a commit a second
#: has after half a year.  A directory counts for as many as it costs to open.
LOOKED = 20_000_000
_OPENING = 20

#: What a part of an object's name looks like.
PART = re.compile(r"[A-Za-z0-9_-]+\Z")

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def entries(
    root: int, prefix: str, after: str, most: int, leave_out: Callable[[str], None]
) -> Iterator[Entry]:
    """Yield the objects below the open directory *root*, in order of name.

    prefix, after: as for `ObjectStore.list`; up to its last slash *prefix* must be a legal name.
    most: how many are wanted; no more than these have their size looked up.
    leave_out: told the path of a symbolic link that bears an object's name.
    Raises StoreError if there is no end of entries; OSError, ELOOP among them if *prefix* leads
    over a symbolic link.
    """
    top = prefix[: prefix.rfind("/") + 1]
    # What is still to come, the next one last: objects, and directories to be read ("" or ending
    # in "/"), with the key (see _Directory) beyond which they are.
    waiting: list[Entry | tuple[str, str]] = [(top, "")]
    budget = LOOKED
    while waiting:
        item = waiting.pop()
        if isinstance(item, Entry):
            yield item
            most -= 1
            continue
        path, beyond = item
        # One is open at a time: a hundred open ones for each thread would be too many.
        try:
            fd = open_beneath(root, path[:-1] or ".", _DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as exc:
            if exc.errno != errno.ELOOP or path == top:
                raise
            leave_out(str(exc.filename))  # it was a directory a moment ago
            continue
        try:
            keys, whole, looked = _keys(fd, path, beyond, prefix, after, budget, leave_out)
            found, read = _look_up(fd, len(path), keys, most)
        finally:
            os.close(fd)
        budget -= looked + _OPENING
        if budget < 0:
            raise _endless(path)
        if read < len(keys) or not whole:
            waiting.append((path, keys[read - 1]))
        waiting += reversed(found)


def _keys(
    fd: int,
    directory: str,
    beyond: str,
    prefix: str,
    after: str,
    budget: int,
    leave_out: Callable[[str], None],
) -> tuple[list[str], bool, int]:
    """Return the first keys in the directory *fd* beyond *beyond*, whether they are all, and how
    many entries were looked at.

    A key is an object's name, or that of a directory and "/": the order of the names below it,
    which is not the order of the bare names ("a-b" comes before "a/b").  Directories that cannot
    hold a wanted name are left out.
    """
    keys: list[str] = []
    last = ""  # once there were too many: none beyond this one
    looked = 0
    with os.scandir(fd) as scan:
        for entry in scan:
            looked += 1
            if looked > budget:
                raise _endless(directory)
            name = entry.name
            key = directory + name
            if entry.is_dir(follow_symlinks=False):
                key += "/"
                if len(key) >= LONGEST:  # and its own entries need a name
                    continue
                if not (key.startswith(prefix) or prefix.startswith(key)):
                    continue
                # All names below begin with `key`, so they compare to `after` as it does.
                if key <= after and not after.startswith(key):
                    continue
            else:
                if key <= after or not key.startswith(prefix) or len(key) > LONGEST:
                    continue
                if not entry.is_file(follow_symlinks=False):
                    if entry.is_symlink() and PART.match(name):
                        leave_out(key)
                    continue
            if key <= beyond or (last and key > last):
                continue
            keys.append(key)
            if len(keys) == 2 * BATCH:
                keys.sort()
                del keys[BATCH:]
                last = keys[-1]
    keys.sort()
    whole = not last and len(keys) <= BATCH
    del keys[BATCH:]
    return keys, whole, looked


def _endless(directory: str) -> StoreError:
    return StoreError(
        "a listing comes upon far more files than a volume has, at last in"
        f" {directory or 'the directory itself'}"
    )


def _look_up(
    fd: int, start: int, keys: list[str], most: int
) -> tuple[list[Entry | tuple[str, str]], int]:
    """Return what *keys* stand for, up to *most* objects, and how many keys that took.

    From *start* on each is a name in the directory *fd*.  One that no object can have stands for
    nothing.
    """
    found: list[Entry | tuple[str, str]] = []
    for i, key in enumerate(keys):
        is_directory = key.endswith("/")
        if not is_directory and most == 0:
            return found, i
        name = key[start:-1] if is_directory else key[start:]
        if not PART.match(name):
            continue
        if is_directory:
            found.append((key, ""))
            continue
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            continue  # deleted meanwhile
        if stat.S_ISREG(info.st_mode):
            found.append(Entry(key, info.st_size, info.st_mtime))
            most -= 1
    return found, len(keys)
