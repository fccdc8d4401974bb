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
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from megafs.clock import random_bytes
from megafs.concurrency import offload
from megafs.errors import (
    BadStore,
    Denied,
    Exists,
    Full,
    Missing,
    NoStore,
    StoreError,
    Unavailable,
)
from megafs.stores.base import Buffer, Entry, ObjectStore, Page, check_name
from megafs.stores.urls import Location

T = TypeVar("T")
log = logging.getLogger(__name__)

TEMPORARY = ".tmp"

# What link(2) and renameat2(2) say where they do not exist.  No more than that: who claims a name
# is not safe from somebody who links to it.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_RENAME = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100

# Not "disk", the threads of cache and state: the directory may be on a server that hangs, and what
# is cached must still be read.
_THREADS = "net"


def open_driver(location: Location, options: Mapping[str, str], connections: int) -> LocalStore:
    """Open file:///path: see stores/drivers.py."""
    return LocalStore(location.path)


class LocalStore(ObjectStore):
    """A directory."""

    def __init__(self, path: Path | str) -> None:
        self._root = os.fspath(path)
        self.url = f"file://{self._root}"
        self._temporary = os.path.join(self._root, TEMPORARY)
        # Directories whose own entry is known to be on disk, by path: (device, inode).
        self._durable: dict[str, tuple[int, int]] = {}
        self._cleaned = False
        # How a name is taken: the first that this file system can do.
        self._ways: list[tuple[Callable[[str, str], None], set[int]]] = [
            (_by_link, _NO_LINKS),
            (_by_rename, _NO_RENAME),
            (self._by_claim, set()),
        ]

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
        await self._do(self._create)

    async def _do(self, fn: Callable[..., T], *args: object, abandon: bool = True) -> T:
        """Run *fn* in a thread.

        abandon: a disk or server that hangs holds the thread, not the caller.  Not for buffers that
            the caller may use again.
        """
        with self._translated(str(args[0]) if args else ""):
            return await offload(fn, *args, kind=_THREADS, abandon=abandon)

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            where = f"{self.url}: {name}: " if name else f"{self.url}: "
            reason = exc.strerror or str(exc)
            if exc.errno in _FULL:
                raise Full(f"{where}{reason}; free some space there") from exc
            if exc.errno in _DENIED:
                raise Denied(f"{where}{reason}; check the owner and mode of {self._root}") from exc
            if exc.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                raise BadStore(f"{where}{reason}") from exc
            # Anything may have been done before the disk failed.
            raise Unavailable(f"{where}{reason}", maybe_done=True) from exc

    # Below: in a thread.

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _absent(self, name: str) -> StoreError:
        """The error for a file that is not there: is it the file, or the store?"""
        if not os.path.isdir(self._root):
            return NoStore(
                f"{self._root} is not there (or not a directory);"
                f" is its disk mounted? `megafs format` makes a new one"
            )
        return Missing(f"{self.url}: no object {name}")

    def _get(self, name: str, start: int, length: int) -> bytes:
        try:
            fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise self._absent(name) from None
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise self._absent(name)
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

    def _put(self, name: str, data: Buffer, new: bool) -> None:
        path = self._path(name)
        if new and os.path.lexists(path):  # the usual case of a conflict, without writing first
            raise self._taken(name)
        if not self._cleaned:
            self._clean()
        temporary, fd = self._write(data)
        try:
            self._make_directories(os.path.dirname(path))
            if new:
                self._place_new(temporary, path, name)
            else:
                os.rename(temporary, path)
                temporary = ""
            _sync(os.path.dirname(path))
        except NotADirectoryError as exc:
            raise BadStore(f"{self.url}: an object's name begins {name}'s directory") from exc
        except IsADirectoryError as exc:
            raise BadStore(f"{self.url}: {name} is a directory of other objects") from exc
        finally:
            if temporary:
                try:
                    os.unlink(temporary)
                except FileNotFoundError:  # renamed to its name
                    pass
            os.close(fd)

    def _taken(self, name: str) -> StoreError:
        path = self._path(name)
        if os.path.isdir(path):
            return BadStore(f"{self.url}: {name} is a directory of other objects")
        # Whoever is told that it exists may rely on it, so it must not vanish in a power cut.
        _sync(os.path.dirname(path))
        return Exists(f"{self.url}: {name} is there already")

    def _write(self, data: Buffer) -> tuple[str, int]:
        """Write *data* to a new temporary file and to the disk; return its path and descriptor."""
        path, fd = self._new_temporary()
        try:
            view = memoryview(data).cast("B")
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        except BaseException:
            os.unlink(path)
            os.close(fd)
            raise
        return path, fd

    def _new_temporary(self) -> tuple[str, int]:
        """Make an empty temporary file, locked."""
        while True:
            path = f"{self._temporary}/{random_bytes(16).hex()}"
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                try:
                    os.mkdir(self._temporary, 0o700)
                except FileExistsError:
                    pass
                except FileNotFoundError:
                    raise self._absent("") from None
                continue
            except NotADirectoryError:
                raise self._absent("") from None
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                ours = os.fstat(fd).st_nlink > 0
            except BlockingIOError:
                ours = False
            except OSError:  # no locks here: then nobody removes what others left, either
                ours = True
            if ours:
                return path, fd
            # Another program took it for left over in the moment before we locked it.
            os.close(fd)

    def _place_new(self, temporary: str, path: str, name: str) -> None:
        """Give the temporary file its name, if the name is free."""
        while True:
            way = self._ways[0]
            take, not_here = way
            try:
                take(temporary, path)
                return
            except FileExistsError:
                raise self._taken(name) from None
            except OSError as exc:
                if exc.errno not in not_here:
                    raise
                log.info("%s: no %s here (%s)", self.url, take.__name__[1:], exc.strerror)
                if self._ways[0] is way:  # another thread may have found out, too
                    self._ways = self._ways[1:]

    def _by_claim(self, temporary: str, path: str) -> None:
        claim = f"{self._temporary}/claim-" + path[len(self._root) + 1 :].replace("/", "+")
        try:
            os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            if os.path.lexists(path):
                raise
            raise Unavailable(
                f"{self.url}: somebody is creating {path};"
                f" if this stays and no other machine writes here, remove {claim}"
            ) from None
        try:
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            os.rename(temporary, path)
        finally:
            os.unlink(claim)

    def _make_directories(self, directory: str) -> None:
        """Make *directory* and those above it up to the root, and see that they stay."""
        try:
            info = os.stat(directory)
            known = self._durable.get(directory)
            if known == (info.st_dev, info.st_ino):
                return
        except FileNotFoundError:
            if directory == self._root:
                raise self._absent("") from None
        if directory == self._root:
            return  # made durable by create()
        above = os.path.dirname(directory)
        self._make_directories(above)
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass  # perhaps just made by another program, and not on disk yet
        _sync(above)
        info = os.stat(directory)
        if not stat.S_ISDIR(info.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), directory)
        self._durable[directory] = (info.st_dev, info.st_ino)

    def _clean(self) -> None:
        """Remove what writers that died have left in .tmp/."""
        self._cleaned = True
        try:
            names = os.listdir(self._temporary)
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in names:
            if name.startswith("claim-"):
                continue  # nothing tells whether its maker lives
            path = f"{self._temporary}/{name}"
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            except OSError:  # in use, not ours to remove, or a file system without locks
                pass
            finally:
                os.close(fd)

    def _delete(self, name: str) -> None:
        try:
            os.unlink(self._path(name))
        except (FileNotFoundError, NotADirectoryError):
            missing = self._absent(name)
            if isinstance(missing, NoStore):
                raise missing from None
        except IsADirectoryError:
            pass

    def _list(self, prefix: str, after: str, limit: int) -> Page:
        top = prefix.rpartition("/")[0]
        if top and not _is_name(top):
            top = ""  # no object's name begins so; and ".." must not lead out of the store
        if not os.path.isdir(self._root):
            raise self._absent("")
        names = self._names(top and top + "/", prefix, after)
        entries: list[Entry] = []
        for name in names:
            try:
                info = os.stat(self._path(name))
            except FileNotFoundError:
                continue  # deleted meanwhile
            if len(entries) == limit:
                return Page(entries, more=True)
            entries.append(Entry(name, info.st_size, info.st_mtime))
        return Page(entries, more=False)

    def _names(self, directory: str, prefix: str, after: str) -> Iterator[str]:
        """Yield the objects' names below *directory* ("" or ending in "/"), in order.

        A directory sorts as its name and "/": the order of the names below it, which is not the
        order of the bare names ("a-b" comes before "a/b").  Directories that cannot hold a wanted
        name are not read.
        """
        try:
            with os.scandir(self._path(directory)) as scan:
                found = []
                for entry in scan:
                    if "." in entry.name:
                        continue
                    name = directory + entry.name
                    if entry.is_dir():
                        name += "/"
                        wanted = name.startswith(prefix) or prefix.startswith(name)
                        # All names below begin with `name`, so they compare to `after` as it does.
                        wanted = wanted and (name > after or after.startswith(name))
                    else:
                        wanted = name.startswith(prefix) and name > after and entry.is_file()
                    if wanted:
                        found.append(name)
        except (FileNotFoundError, NotADirectoryError):
            return
        found.sort()
        for name in found:
            if name.endswith("/"):
                yield from self._names(name, prefix, after)
            elif _is_name(name):
                yield name

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
            _sync(os.path.dirname(directory))


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except Exception:
        return False
    return True


def _sync(directory: str) -> None:
    """Put a directory's entries on disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.EROFS, errno.ENOTSUP):
            raise  # those say that this file system does not fsync directories
    finally:
        os.close(fd)


def _by_link(temporary: str, path: str) -> None:
    os.link(temporary, path)


def _by_rename(temporary: str, path: str) -> None:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if renameat2(
        _AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(path), _RENAME_NOREPLACE
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
