"""The directory of the read cache, from one thread at a time: the one importer of diskcache.

In the directory, which is ours alone (mode 0700, locked):

    lock            flocked by the mount that uses the cache
    cache.db        diskcache's table; a row's key is "packs/ab/0123:start:length"
    0/ ... f/       one file for each range, named by a hash of its key

diskcache keeps the table, and writes and removes the files in step with it.  What it is not used
for, and why: a get of 1 MiB takes it 0.3 ms and one of 4 KiB hardly less, so files are read
directly; its eviction overshoots its limit and pauses, so the caller chooses what goes; and it
unpickles what it finds (CVE-2025-69872: an entry planted in the directory runs code).  `BytesDisk`
knows neither how to pickle nor how to unpickle, and rows that are not ours are thrown out unread.

Everything here blocks and raises OSError, sqlite3.Error or diskcache.Timeout.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import logging
import os
import sqlite3
import stat
from typing import Any

import diskcache
from diskcache.core import DBNAME, DEFAULT_SETTINGS, METADATA, MODE_BINARY
from msgspec import Struct

from megafs.stores.disk_cache.segments import Segment, parse_key

log = logging.getLogger(__name__)

#: The objects whose ranges are kept.
PREFIX = "packs/"

_DIRECTORIES = "0123456789abcdef"

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class _OpenHow(ctypes.Structure):
    """openat2(2)'s struct open_how: 24 bytes."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_AT_FDCWD = -100
_SYS_OPENAT2 = 437  # the same on every architecture that Python's packages are built for
_CACHED = _OpenHow(_READ, 0, 0x20)  # RESOLVE_CACHED
# PyDLL: it does not wait, so it need not let go of the interpreter either.
_openat2 = ctypes.PyDLL(None).syscall
_openat2.restype = ctypes.c_long


class BytesDisk(diskcache.Disk):  # type: ignore[misc]
    """How diskcache keeps our values: bytes, in files, named after their keys.  No pickle."""

    def put(self, key: object) -> tuple[str, bool]:
        if parse_key(key) is None:
            raise TypeError(f"not a key of this cache: {key!r}")
        return str(key), True

    def get(self, key: object, raw: object) -> str:
        if not raw or parse_key(key) is None:
            raise TypeError("not a key of this cache")
        return str(key)

    def store(self, value: object, read: bool, key: object = None) -> tuple[int, int, str, None]:
        """Write *value*, bytes or an `Open` file of a known size."""
        name = file_name(str(key))
        path = os.path.join(self._directory, name)
        if isinstance(value, Open) and value.link_to(path):
            return value.size, MODE_BINARY, name, None
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path, flags, 0o600)
        try:
            if isinstance(value, Open):
                size = value.copy_to(fd)
            elif isinstance(value, bytes):
                view = memoryview(value)
                while view:
                    view = view[os.write(fd, view) :]
                size = len(value)
            else:
                raise TypeError("not bytes")
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        return size, MODE_BINARY, name, None

    def fetch(self, mode: int, filename: object, value: object, read: bool) -> bytes:
        raise TypeError("values are read from their files, not through diskcache")

    def filename(self, key: object = None, value: object = None) -> tuple[str, str]:
        name = file_name(str(key))
        return name, os.path.join(self._directory, name)

    def remove(self, file_path: str) -> None:
        """Remove a value's file; nothing but such a file is ever removed."""
        if is_file_name(file_path):
            try:
                os.unlink(os.path.join(self._directory, file_path))
            except FileNotFoundError:
                pass


def file_name(key: str) -> str:
    """Return where the value of *key* lies, relative to the cache's directory."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    return f"{digest[0]}/{digest[1:]}"


def is_file_name(name: object) -> bool:
    """Whether *name* is one that file_name() may return."""
    return (
        isinstance(name, str)
        and len(name) == 33
        and name[1] == "/"
        and all(letter in _DIRECTORIES for letter in name[0] + name[2:])
    )


class Open:
    """An open file, closed when the last reader lets go of it."""

    __slots__ = ("fd", "size")

    def __init__(self, path: str) -> None:
        self._take(os.open(path, _READ))

    @classmethod
    def at_hand(cls, path: str) -> Open | None:
        """The file, if the kernel has all that opening it takes in memory: no disk is waited for.

        7 microseconds, where a hop to a thread and back takes 150.
        """
        fd = _openat2(_SYS_OPENAT2, _AT_FDCWD, os.fsencode(path), ctypes.byref(_CACHED), 24)
        if fd < 0:  # EAGAIN; ENOSYS or EINVAL before Linux 5.12; or what the real open will meet
            return None
        opened = cls.__new__(cls)
        opened._take(fd)
        return opened

    def _take(self, fd: int) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size

    def __del__(self) -> None:
        fd = getattr(self, "fd", -1)  # not there if it could not be opened
        if fd >= 0:
            os.close(fd)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.fd, size, offset)

    def read_in_place(self, offset: int, size: int, scratch: memoryview) -> bytes | None:
        """Return the bytes if the kernel has them in memory, None if it would have to wait.

        scratch: overwritten.  (A fresh buffer of 256 KiB for each read costs 250 microseconds in
            page faults; one that is used again, 10.)
        """
        buffer = scratch[:size]
        try:
            if os.preadv(self.fd, [buffer], offset, os.RWF_NOWAIT) == size:
                return bytes(buffer)
        except OSError:  # EAGAIN; or EOPNOTSUPP on tmpfs and some others
            pass
        return None

    def link_to(self, path: str) -> bool:
        """Give the file *path* as one more name, if it has one and both are on one file system.

        A pack that was just uploaded need not be copied then, 1 ms/MiB: nobody writes to it again.
        """
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        try:
            # Only with a directory does Python ask for links to be followed, and the path, which is
            # absolute, makes no use of it.
            os.link(f"/proc/self/fd/{self.fd}", path, src_dir_fd=self.fd, follow_symlinks=True)
        except OSError:
            return False
        return True

    def copy_to(self, fd: int) -> int:
        """Copy the whole file to *fd*; return its size."""
        done = 0
        while done < self.size:
            piece = os.pread(self.fd, min(1 << 20, self.size - done), done)
            if not piece:
                raise OSError(errno.EIO, "the file became shorter")
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]
            done += len(piece)
        return done


class Measured(Struct):
    """overhead: bytes of the directory that are not values.  free: of the file system."""

    overhead: int
    free: int


class CacheDirectory:
    """The directory.  Not for two threads at once."""

    def __init__(self, directory: str, size_limit: int) -> None:
        self.directory = directory
        self._limit = size_limit
        self._lock = -1
        self._cache: Any = None
        self.block = 4096

    def open(self) -> list[Segment]:
        """Lock the directory, made if need be; return what it holds, least recently used first."""
        if os.path.expandvars(os.path.expanduser(self.directory)) != self.directory:
            # diskcache would expand it and use another one.
            raise OSError(errno.EINVAL, "its path must not hold $ or begin with ~")
        os.makedirs(self.directory, 0o700, exist_ok=True)
        info = os.stat(self.directory)
        if info.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "belongs to another user")
        os.chmod(self.directory, 0o700)
        self._lock = os.open(
            os.path.join(self.directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(errno.EWOULDBLOCK, "another mount uses it") from None
        for name in _DIRECTORIES:
            os.makedirs(os.path.join(self.directory, name), 0o700, exist_ok=True)
        self.block = max(512, os.statvfs(self.directory).f_frsize)
        try:
            return self._load()
        except (sqlite3.Error, ValueError, TypeError) as exc:
            if isinstance(exc, sqlite3.Error) and not _is_damage(exc):
                raise  # a disk that is full or broken: what is there may be good
            log.info("cache %s: damaged (%s), begun anew", self.directory, exc)
            self._wipe()
            return self._load()

    def _load(self) -> list[Segment]:
        self._check_settings()
        pages = max(16, min(1000, self._limit // (64 * 4096)))
        self._cache = diskcache.Cache(
            self.directory,
            timeout=10,
            disk=BytesDisk,
            # We evict, and count; diskcache only keeps the table.
            eviction_policy="none",
            cull_limit=0,
            statistics=0,
            tag_index=0,
            size_limit=1 << 62,
            sqlite_auto_vacuum=1,
            sqlite_cache_size=1024,
            sqlite_journal_mode="wal",
            sqlite_mmap_size=0,
            sqlite_synchronous=1,
            sqlite_wal_autocheckpoint=pages,
            sqlite_journal_size_limit=pages * 4096,
        )
        sql = self._cache._sql
        ((verdict,),) = sql("PRAGMA quick_check(1)").fetchall()
        if verdict != "ok":
            raise ValueError(verdict)
        # One query instead of diskcache's calls, which read a row at a time.
        rows = sql("SELECT rowid, key, raw, mode, filename, size, access_time FROM Cache")
        good: dict[str, tuple[float, Segment]] = {}
        bad: list[int] = []
        for rowid, key, raw, mode, filename, size, access in rows.fetchall():
            segment = _segment_of(key, raw, mode, filename, size, access)
            if segment is None:
                bad.append(rowid)
            else:
                good[filename] = (rowid, segment)
        found = self._sweep(good)
        kept: list[Segment] = []
        for filename, (rowid, segment) in good.items():
            if filename in found:
                segment.cost = self.cost(segment.size)
                segment.on_disk = True
                kept.append(segment)
            else:
                bad.append(int(rowid))
        with self._cache.transact(retry=True):
            for rowid in bad:
                sql("DELETE FROM Cache WHERE rowid = ?", (rowid,))
        kept.sort(key=lambda segment: segment.access)
        return kept

    def _check_settings(self) -> None:
        """Refuse a table whose settings are not diskcache's: it would execute them as pragmas."""
        path = os.path.join(self.directory, DBNAME)
        if not os.path.lexists(path):
            return
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise ValueError("not a file")
        known = {*DEFAULT_SETTINGS, *METADATA}
        known |= {"sqlite_wal_autocheckpoint", "sqlite_journal_size_limit"}
        connection = sqlite3.connect(path)
        try:
            for (key,) in connection.execute("SELECT key FROM Settings"):
                if key not in known:
                    raise ValueError(f"unknown setting {key!r}")
        finally:
            connection.close()

    def _sweep(self, good: dict[str, tuple[float, Segment]]) -> set[str]:
        """Return the files that are as their rows say, and remove those without a row."""
        found: set[str] = set()
        for letter in _DIRECTORIES:
            with os.scandir(os.path.join(self.directory, letter)) as scan:
                for entry in scan:
                    name = f"{letter}/{entry.name}"
                    if not is_file_name(name) or not entry.is_file(follow_symlinks=False):
                        continue  # not ours
                    known = good.get(name)
                    if known and entry.stat(follow_symlinks=False).st_size == known[1].size:
                        found.add(name)
                    else:
                        os.unlink(entry.path)
        return found

    def _wipe(self) -> None:
        """Remove everything of ours."""
        self._close_cache()
        for suffix in ("", "-wal", "-shm", "-journal"):
            try:
                os.unlink(os.path.join(self.directory, DBNAME + suffix))
            except FileNotFoundError:
                pass
        self._sweep({})

    def cost(self, size: int) -> int:
        """Bytes of disk that a value takes; a large file's map of blocks takes one more."""
        blocks = -(-size // self.block) + (size > 1 << 20)
        return blocks * self.block

    def measure(self) -> Measured:
        info = os.statvfs(self.directory)
        names = ["", "lock", *_DIRECTORIES]
        names += [DBNAME + suffix for suffix in ("", "-wal", "-shm")]
        overhead = 0
        for name in names:
            try:
                overhead += os.stat(os.path.join(self.directory, name)).st_blocks * 512
            except FileNotFoundError:
                if name in _DIRECTORIES:
                    raise
        return Measured(overhead, info.f_bavail * info.f_frsize)

    def apply(
        self,
        drops: list[tuple[str, Open | None]],
        writes: list[tuple[str, bytes | Open]],
        touched: list[tuple[float, str]],
    ) -> list[OSError | None]:
        """Drop and then write values; return for each write why it failed, or None.

        Only a full disk fails single writes; anything else is raised.
        """
        with self._cache.transact(retry=True):
            for i, (key, _) in enumerate(drops):
                self._cache.delete(key, retry=True)
                self._cache.disk.remove(file_name(key))  # even if its row is lost
                drops[i] = (key, None)  # closes the file, and so frees its blocks, here
        results: list[OSError | None] = []
        with self._cache.transact(retry=True):
            for key, value in writes:
                try:
                    self._cache.set(key, value, read=isinstance(value, Open), retry=True)
                    results.append(None)
                except OSError as exc:
                    if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    results.append(exc)
            if touched:
                self._cache._con.executemany(
                    "UPDATE Cache SET access_time = ? WHERE key = ? AND raw = 1", touched
                )
        return results

    def close(self) -> None:
        self._close_cache()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _close_cache(self) -> None:
        if self._cache is not None:
            self._cache.close()
            self._cache = None


def _is_damage(exc: sqlite3.Error) -> bool:
    """Whether the table is not what it should be, rather than the disk below it."""
    code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    # SQLITE_ERROR: SQL that does not fit, for want of a table or column.
    return code in (
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_CONSTRAINT,
    )


def _segment_of(
    key: object, raw: object, mode: object, filename: object, size: object, access: object
) -> Segment | None:
    """Return what a row of the table describes, or None if it is not one of ours."""
    parsed = parse_key(key)
    if parsed is None or raw != 1 or mode != MODE_BINARY or filename != file_name(str(key)):
        return None
    name, start, asked = parsed
    if not name.startswith(PREFIX) or not isinstance(size, int) or not 0 < size <= asked:
        return None
    return Segment(name, start, asked, size, float(access) if isinstance(access, float) else 0.0)
