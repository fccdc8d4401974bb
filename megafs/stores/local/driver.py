"""Objects as files: ``file:///path``.

One file per object, named as the object is, in subdirectories, so that any program that copies
files also copies a store, to another disk or into a bucket.  (A name may therefore not be the
beginning of another up to a slash: no "a" beside "a/b".  No object of megafs is named so.)  Names
that are not object names, ".tmp" among them, are not part of the store and left alone.

A new object is written to .tmp/, fsynced, and linked to its name: link(2) fails if the name is
taken, on every local file system and on NFS, so exactly one of several writers wins and no reader
sees half an object.  Then the directory is fsynced, and any new directory above it.  File systems
without hard links (FAT, some network and FUSE ones) get renameat2(RENAME_NOREPLACE) instead, and
those without that a claim: a file created with O_EXCL that reserves the name while it is checked
and renamed to.

A temporary file is locked (flock) by its writer; those that nobody holds are removed when a store
is first written to.  Deleting is not fsynced: after a power cut a deleted object may be back.

Whoever else can write to the directory is the opponent of docs/threats.md.  So nothing beneath the
root is reached by a name that the kernel resolves (`beneath`): a symbolic link that lies in the
store, in place of an object or of any directory, is an error, and leads nowhere.  What is no plain
file is no object, and opening it does not wait.  A listing has bounds (`listing`).  In .tmp/ only
plain files are removed, and only such as bear a name that we give.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import NoReturn, TypeVar

from megafs.beneath import open_beneath, open_without_links
from megafs.clock import random_bytes
from megafs.concurrency import offload
from megafs.errors import (
    BadStore,
    Denied,
    Exists,
    Full,
    MegafsError,
    Missing,
    NoStore,
    StoreError,
    Unavailable,
)
from megafs.stores.base import Buffer, ObjectStore, Page, check_name
from megafs.stores.local import listing
from megafs.stores.local.placing import NEW, WAYS, Placing, Way, lies_in, unlink
from megafs.stores.urls import Location

T = TypeVar("T")
log = logging.getLogger(__name__)

TEMPORARY = ".tmp"

#: The most entries of .tmp/ that are looked at for what the dead have left.
CLEANED = 100_000

_OURS = re.compile(r"[0-9a-f]{32}\Z")  # what _new_temporary() names its files

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}

# O_NONBLOCK: what is no plain file is opened too, to find that out, and a FIFO would wait.
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_WAY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

# Not "disk", the threads of cache and state: the directory may be on a server that hangs, and what
# is cached must still be read.
_THREADS = "net"


def open_driver(location: Location, options: Mapping[str, str], connections: int) -> LocalStore:
    """Open file:///path: see stores/drivers.py."""
    return LocalStore(location.path)


class LocalStore(ObjectStore):
    """A directory.

    path: may be a symbolic link or lead over some: it is resolved when the store is first reached,
        and from then on it is that directory.
    """

    def __init__(self, path: Path | str) -> None:
        self._root = os.fspath(path)
        self._resolved: str | None = None
        self.url = f"file://{self._root}"
        self._temporary = f"{self._root}/{TEMPORARY}"
        # Directories whose own entry is known to be on disk, by path: (device, inode).
        self._durable: dict[str, tuple[int, int]] = {}
        self._cleaned = False
        self._link_told = False
        # How a name is taken: the first that this file system can do.
        self._ways: list[Way] = WAYS

    async def get(self, name: str, start: int, length: int) -> bytes:
        return await self._do(self._get, check_name(name), start, length)

    async def put_new(self, name: str, data: Buffer) -> None:
        await self._do(self._put, check_name(name), data, True, abandon=isinstance(data, bytes))

    async def put(self, name: str, data: Buffer) -> None:
        await self._do(self._put, check_name(name), data, False, abandon=isinstance(data, bytes))

    async def delete(self, name: str) -> None:
        await self._do(self._delete, check_name(name))

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        return await self._do(self._list, prefix, after, limit)

    async def create(self) -> None:
        try:
            await offload(self._create, kind=_THREADS, abandon=True)
        except Exception as exc:
            self._translate("", exc)

    async def _do(self, fn: Callable[..., T], *args: object, abandon: bool = True) -> T:
        """Run *fn* in a thread, with the root open.

        abandon: a disk or server that hangs holds the thread, not the caller.  Not for buffers that
            the caller may use again.
        """
        try:
            return await offload(self._in_root, fn, *args, kind=_THREADS, abandon=abandon)
        except Exception as exc:
            self._translate(str(args[0]), exc)

    def _translate(self, name: str, exc: Exception) -> NoReturn:
        """Raise the store error for whatever the disk, or what lies on it, has brought about."""
        if isinstance(exc, MegafsError):
            raise exc
        where = f"{self.url}: {name}: " if name else f"{self.url}: "
        if isinstance(exc, MemoryError):
            raise StoreError(f"{where}too large for this machine's memory") from exc
        if not isinstance(exc, OSError):
            reason = " ".join(f"{type(exc).__name__}: {exc}".split())
            raise StoreError(f"{where}{reason}") from exc
        reason = exc.strerror or str(exc)
        if exc.errno == errno.ELOOP:
            raise self._not_followed(str(exc.filename)) from exc
        if exc.errno in _FULL:
            raise Full(f"{where}{reason}; free some space there") from exc
        if exc.errno in _DENIED:
            raise Denied(f"{where}{reason}; check the owner and mode of {self._root}") from exc
        if exc.errno == errno.ENAMETOOLONG:
            raise BadStore(f"{where}{reason}") from exc
        # Anything may have been done before the disk failed.
        raise Unavailable(f"{where}{reason}", maybe_done=True) from exc

    # Below: in a thread.

    def _in_root(self, fn: Callable[..., T], *args: object) -> T:
        root = self._open_root()
        try:
            return fn(root, *args)
        finally:
            os.close(root)

    def _open_root(self) -> int:
        """Open the directory itself: anew each time, for its disk may have been away."""
        try:
            if self._resolved is not None:
                return open_without_links(self._resolved, _DIRECTORY)
            resolved = os.path.realpath(self._root)
            root = os.open(resolved, _DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            raise NoStore(
                f"{self._root} is not there (or not a directory); is its disk mounted?"
            ) from None
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                raise
            raise NoStore(
                f"{self._root} is not the directory that it was when it was first opened:"
                f" {exc.filename} is a symbolic link now; if that is meant, unmount and mount again"
                if self._resolved is not None
                else f"{self._root}: too many symbolic links, perhaps one that leads to itself"
            ) from exc
        self._resolved = resolved
        return root

    def _not_followed(self, path: str) -> StoreError:
        return StoreError(
            f"{self.url}: {path} is a symbolic link, and none is followed inside a store: remove"
            " it (a directory on another disk can be mounted there, with mount --bind)"
        )

    def _no_object(self, name: str, mode: int) -> StoreError:
        """The error for what is there and holds no bytes: a device, or the like."""
        if stat.S_ISLNK(mode):
            return self._not_followed(name)
        return StoreError(f"{self.url}: {name} is {_kind(mode)}, not a file: remove it")

    def _get(self, root: int, name: str, start: int, length: int) -> bytes:
        try:
            fd = open_beneath(root, name, _FILE)
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(name) from None
        except OSError as exc:
            if exc.errno in (errno.ENXIO, errno.ENODEV):
                raise self._no_object(name, stat.S_IFSOCK) from None
            raise
        try:
            info = os.fstat(fd)
            if stat.S_ISDIR(info.st_mode):
                raise self._missing(name)
            if not stat.S_ISREG(info.st_mode):
                raise self._no_object(name, info.st_mode)
            wanted = min(length, info.st_size - start)
            data = os.pread(fd, wanted, start) if wanted > 0 else b""
            while 0 < len(data) < wanted:
                # Beyond 2 GiB, or a file system that answers in pieces.
                more = os.pread(fd, wanted - len(data), start + len(data))
                if not more:
                    break
                data += more
            if len(data) < wanted:
                raise Unavailable(f"{self.url}: {name} ends before its size")
            return data
        finally:
            os.close(fd)

    def _missing(self, name: str) -> StoreError:
        return Missing(f"{self.url}: no object {name}")

    def _put(self, root: int, name: str, data: Buffer, new: bool) -> None:
        above, _, base = name.rpartition("/")
        held: list[int] = []
        try:
            directory = self._find(root, above)
            if directory is not None:
                held.append(directory)
                if new and lies_in(directory, base):  # the usual conflict, without writing first
                    raise self._taken(directory, base, name)
            temporary = self._open_temporary(root)
            held.append(temporary)
            if not self._cleaned:
                self._clean(temporary)
            file, fd = self._write(temporary, data)
            held.append(fd)
            try:
                if directory is None or not self._is_durable(directory, above):
                    directory = self._make_directory(root, above)
                    held.append(directory)
                if new:
                    placing = Placing(temporary, file, directory, base, self._temporary, name)
                    self._place_new(placing)
                else:
                    os.rename(file, base, src_dir_fd=temporary, dst_dir_fd=directory)
                    file = ""
                _sync(directory)
            finally:
                if file:
                    unlink(file, temporary)  # it may have been renamed to its name
        except NotADirectoryError as exc:
            raise BadStore(f"{self.url}: a part of {name}'s directory is not a directory") from exc
        except IsADirectoryError as exc:
            raise BadStore(f"{self.url}: {name} is a directory of other objects") from exc
        finally:
            for fd in held:
                os.close(fd)

    def _taken(self, directory: int, base: str, name: str) -> StoreError:
        try:
            mode = os.stat(base, dir_fd=directory, follow_symlinks=False).st_mode
        except FileNotFoundError:  # taken a moment ago
            mode = stat.S_IFREG
        if stat.S_ISDIR(mode):
            return BadStore(f"{self.url}: {name} is a directory of other objects")
        if not stat.S_ISREG(mode):
            return self._no_object(name, mode)
        # Whoever is told that it exists may rely on it, so it must not vanish in a power cut.
        _sync(directory)
        return Exists(f"{self.url}: {name} is there already")

    def _open_temporary(self, root: int) -> int:
        """Open .tmp/, made if it is not there."""
        try:
            try:
                return open_beneath(root, TEMPORARY, _DIRECTORY)
            except FileNotFoundError:
                pass
            try:
                os.mkdir(TEMPORARY, 0o700, dir_fd=root)
            except FileExistsError:
                pass
            return open_beneath(root, TEMPORARY, _DIRECTORY)
        except NotADirectoryError:
            raise StoreError(f"{self.url}: {TEMPORARY} is not a directory: remove it") from None

    def _write(self, temporary: int, data: Buffer) -> tuple[str, int]:
        """Write *data* to a new temporary file and to the disk; return its name and descriptor."""
        name, fd = self._new_temporary(temporary)
        try:
            view = memoryview(data).cast("B")
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        except BaseException:
            unlink(name, temporary)
            os.close(fd)
            raise
        return name, fd

    def _new_temporary(self, temporary: int) -> tuple[str, int]:
        """Make an empty temporary file, locked."""
        for _ in range(100):
            name = random_bytes(16).hex()
            fd = os.open(name, NEW, 0o600, dir_fd=temporary)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                ours = os.fstat(fd).st_nlink > 0
            except BlockingIOError:
                ours = False
            except OSError:  # no locks here: then nobody removes what others left, either
                ours = True
            if ours:
                return name, fd
            # Another program took it for left over in the moment before we locked it.
            os.close(fd)
        raise Unavailable(f"{self.url}: somebody removes or locks every file made in {TEMPORARY}")

    def _place_new(self, placing: Placing) -> None:
        """Give the temporary file its name, if the name is free."""
        while True:
            way = self._ways[0]
            take, not_here = way
            try:
                take(placing)
                return
            except FileExistsError:
                raise self._taken(placing.directory, placing.base, placing.name) from None
            except OSError as exc:
                if exc.errno not in not_here:
                    raise
                log.info("%s: no %s here (%s)", self.url, take.__name__[1:], exc.strerror)
                if self._ways[0] is way:  # another thread may have found out, too
                    self._ways = self._ways[1:]

    def _find(self, root: int, path: str) -> int | None:
        """Open the directory *path* ("" for the root); None if it is not there."""
        try:
            return open_beneath(root, path or ".", _DIRECTORY)
        except FileNotFoundError:
            return None

    def _is_durable(self, directory: int, path: str) -> bool:
        """Whether the open directory is one whose own entry is known to be on disk."""
        if not path:
            return True  # create() saw to it
        info = os.fstat(directory)
        return self._durable.get(path) == (info.st_dev, info.st_ino)

    def _make_directory(self, root: int, path: str) -> int:
        """Make the directory *path* and those above it, see that they stay, and open it."""
        directory = self._find(root, path)
        if directory is not None:
            if self._is_durable(directory, path):
                return directory
            os.close(directory)
        # As deep as a name can be: a hundred parts.
        higher, _, base = path.rpartition("/")
        above = self._make_directory(root, higher)
        try:
            try:
                os.mkdir(base, 0o700, dir_fd=above)
            except FileExistsError:
                pass  # perhaps just made by another program, and not on disk yet
            _sync(above)
            directory = open_beneath(root, path, _DIRECTORY)
        finally:
            os.close(above)
        info = os.fstat(directory)
        self._durable[path] = (info.st_dev, info.st_ino)
        return directory

    def _clean(self, temporary: int) -> None:
        """Remove what writers that died have left in .tmp/.

        Only files with such names as _new_temporary() gives: of a claim nothing tells whether its
        maker lives, and the rest is not ours.
        """
        self._cleaned = True
        names = []
        with os.scandir(temporary) as scan:
            for _, entry in zip(range(CLEANED), scan, strict=False):
                if _OURS.match(entry.name) and entry.is_file(follow_symlinks=False):
                    names.append(entry.name)
        for name in names:
            try:
                fd = os.open(name, _FILE, dir_fd=temporary)
            except OSError:
                continue
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(name, dir_fd=temporary)
            except OSError:  # in use, not ours to remove, or a file system without locks
                pass
            finally:
                os.close(fd)

    def _delete(self, root: int, name: str) -> None:
        above, _, base = name.rpartition("/")
        try:
            directory = open_beneath(root, above or ".", _WAY)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            os.unlink(base, dir_fd=directory)
        except (FileNotFoundError, IsADirectoryError):
            pass
        finally:
            os.close(directory)

    def _list(self, root: int, prefix: str, after: str, limit: int) -> Page:
        top, slash, _ = prefix.rpartition("/")
        if slash and not _is_name(top):
            return Page([], more=False)  # no object's name begins so
        most = limit + 1  # the last one tells whether there are more
        try:
            found = list(islice(listing.entries(root, prefix, after, most, self._left_out), most))
        except StoreError as exc:
            raise StoreError(f"{self.url}: {exc}") from None
        return Page(found[:limit], more=len(found) > limit)

    def _left_out(self, path: str) -> None:
        """A listing came upon a symbolic link; said once, for a store may hold millions."""
        if not self._link_told:
            self._link_told = True
            log.warning(
                "%s: %s is a symbolic link, and none is followed inside a store: listings leave"
                " it out",
                self.url,
                path,
            )

    def _create(self) -> None:
        missing = []
        directory = self._root
        while not os.path.isdir(directory):
            if os.path.lexists(directory):
                raise NoStore(f"{directory} is not a directory")
            missing.append(directory)
            directory = os.path.dirname(directory)
        for directory in reversed(missing):
            try:
                os.mkdir(directory, 0o700)
            except FileExistsError:
                pass
            _sync_path(os.path.dirname(directory))
        self._in_root(self._check_links)

    def _check_links(self, root: int) -> None:
        """Refuse a directory in which symbolic links bear names that a store's own parts may have.

        They are found out when they are met, but `format` shall not end half way.
        """
        with os.scandir(root) as scan:
            for _, entry in zip(range(CLEANED), scan, strict=False):
                ours = entry.name == TEMPORARY or listing.PART.match(entry.name)
                if ours and entry.is_symlink():
                    raise self._not_followed(entry.name)


def _kind(mode: int) -> str:
    """A name for a kind of file that is no plain file, for error texts."""
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something unknown")


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except MegafsError:
        return False
    return True


def _sync(directory: int) -> None:
    """Put an open directory's entries on disk."""
    try:
        os.fsync(directory)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.EROFS, errno.ENOTSUP):
            raise  # those say that this file system does not fsync directories


def _sync_path(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(fd)
    finally:
        os.close(fd)
