"""The directory of the read cache, from one thread at a time: the one importer of diskcache.

In the directory, which is ours alone (mode 0700, locked):

    lock            flocked by the mount that uses the cache
    cache.db        diskcache's table; a row's key is "packs/ab/0123:start:length"
    0/ ... f/       one file for each range, named by a hash of its key

diskcache keeps the table, and writes and removes the files in step with it; why no more than that
is in docs/decisions/0010-diskcache.md.  It is used through its documented interface: a `Disk` of
our own, iteration, `set`, `delete` and `transact`.  What it does not tell there is kept where we
can see it: a range's size in its key, and when it was last used in its file's modification time.

diskcache unpickles what it finds (CVE-2025-69872: an entry planted in the directory runs code), and
executes settings that it finds as pragmas.  `BytesDisk` knows neither how to pickle nor how to
unpickle, and a table that holds anything but what we write is begun anew before diskcache sees it.

Everything here blocks and raises OSError, sqlite3.Error or diskcache.Timeout.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import sqlite3
from pathlib import Path
from typing import Any

import diskcache
from msgspec import Struct

from megafs.private_files import (
    check_directory,
    expect_directory,
    expect_file,
    make_directories,
    open_private,
)
from megafs.stores.disk_cache.cache_entries import CacheEntry, parse_key
from megafs.stores.disk_cache.range_file import RangeFile

log = logging.getLogger(__name__)

#: The objects whose ranges are kept.
PREFIX = "packs/"

_DIRECTORIES = "0123456789abcdef"

#: diskcache's table.
TABLE = "cache.db"
_SUFFIXES = ("", "-wal", "-shm", "-journal")
# What diskcache calls a value that is bytes in a file; it passes this on to `BytesDisk.fetch`.
_IN_FILE = 2
# What it keeps among its settings besides those that can be given.
_COUNTERS = ("count", "size", "hits", "misses")


class BytesDisk(diskcache.Disk):  # type: ignore[misc]
    """How diskcache keeps our values: bytes, in files, named after their keys.  No pickle."""

    def __init__(self, directory: str, **settings: Any) -> None:
        super().__init__(directory, **settings)
        self.directory = directory

    def put(self, key: object) -> tuple[str, bool]:
        if parse_key(key) is None:
            raise TypeError(f"not a key of this cache: {key!r}")
        return str(key), True

    def get(self, key: object, raw: object) -> str:
        if not raw or parse_key(key) is None:
            raise TypeError("not a key of this cache")
        return str(key)

    def store(self, value: object, read: bool, key: object = None) -> tuple[int, int, str, None]:
        """Write *value*, bytes or an `RangeFile`."""
        name = file_name(str(key))
        path = os.path.join(self.directory, name)
        if isinstance(value, RangeFile) and value.link_to(path):
            os.utime(path)  # used now, whenever it was written
            return value.size, _IN_FILE, name, None
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path, flags, 0o600)
        try:
            if isinstance(value, RangeFile):
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
        return size, _IN_FILE, name, None

    def fetch(self, mode: int, filename: object, value: object, read: bool) -> bytes:
        raise TypeError("values are read from their files, not through diskcache")

    def filename(self, key: object = None, value: object = None) -> tuple[str, str]:
        name = file_name(str(key))
        return name, os.path.join(self.directory, name)

    def remove(self, file_path: str) -> None:
        """Remove a value's file; nothing but such a file is ever removed."""
        if is_file_name(file_path):
            try:
                os.unlink(os.path.join(self.directory, file_path))
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

    def open(self) -> list[CacheEntry]:
        """Lock the directory, made if need be; return what it holds, least recently used first."""
        if os.path.expandvars(os.path.expanduser(self.directory)) != self.directory:
            # diskcache would expand it and use another one.
            raise OSError(errno.EINVAL, "its path must not hold $ or begin with ~")
        home = Path(self.directory)
        make_directories(home)
        check_directory(home, instead="choose another with --cache-dir")
        info = os.stat(home)
        if info.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "belongs to another user")
        os.chmod(home, 0o700)
        expect_file(home / "lock")
        self._lock = open_private(home / "lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(errno.EWOULDBLOCK, "another mount uses it") from None
        for name in (TABLE + suffix for suffix in _SUFFIXES):
            expect_file(home / name)
        for name in _DIRECTORIES:
            expect_directory(home / name)
            (home / name).mkdir(0o700, exist_ok=True)
        self.block = max(512, os.statvfs(self.directory).f_frsize)
        try:
            return self._load()
        except (sqlite3.Error, ValueError, TypeError) as exc:
            if isinstance(exc, sqlite3.Error) and not _is_damage(exc):
                raise  # a disk that is full or broken: what is there may be good
            log.info("cache %s: damaged (%s), begun anew", self.directory, exc)
            self._wipe()
            return self._load()

    def _load(self) -> list[CacheEntry]:
        self._inspect()
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
        listed: dict[str, CacheEntry] = {}
        foreign: list[str] = []
        for key in self._cache:  # in the order of insertion, a hundred rows at a time
            entry = _entry_of(key)
            if entry is None:
                foreign.append(key)
            else:
                listed[file_name(key)] = entry
        found = self._sweep(listed)
        kept = [entry for name, entry in listed.items() if name in found]
        lost = [entry.key for name, entry in listed.items() if name not in found]
        with self._cache.transact(retry=True):
            for key in (*foreign, *lost):
                self._cache.delete(key, retry=True)
        for entry in kept:
            entry.cost = self.cost(entry.size)
            entry.on_disk = True
        kept.sort(key=lambda entry: entry.access)
        return kept

    def _inspect(self) -> None:
        """Refuse a table that is damaged, or that holds what we did not write.

        It is read before diskcache opens it, which would execute its settings.
        """
        path = os.path.join(self.directory, TABLE)
        if not os.path.exists(path):
            return
        known = {*diskcache.DEFAULT_SETTINGS, *_COUNTERS}
        known |= {"sqlite_wal_autocheckpoint", "sqlite_journal_size_limit"}
        connection = sqlite3.connect(path)
        try:
            ((verdict,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
            if verdict != "ok":
                raise ValueError(verdict)
            for (key,) in connection.execute("SELECT key FROM Settings"):
                if key not in known:
                    raise ValueError(f"unknown setting {key!r}")
            planted = "raw IS NOT 1 OR mode IS NOT ? OR filename IS NULL OR value IS NOT NULL"
            if connection.execute(f"SELECT 1 FROM Cache WHERE {planted}", (_IN_FILE,)).fetchone():
                raise ValueError("a row that is not ours")
        finally:
            connection.close()

    def _sweep(self, listed: dict[str, CacheEntry]) -> set[str]:
        """Return the files that are as long as their rows say, and remove the others of ours.

        Tells each entry when it was last used.
        """
        found: set[str] = set()
        for letter in _DIRECTORIES:
            with os.scandir(os.path.join(self.directory, letter)) as scan:
                for file in scan:
                    name = f"{letter}/{file.name}"
                    if not is_file_name(name) or not file.is_file(follow_symlinks=False):
                        continue  # not ours
                    entry = listed.get(name)
                    info = file.stat(follow_symlinks=False)
                    if entry is not None and info.st_size == entry.size:
                        entry.access = info.st_mtime
                        found.add(name)
                    else:
                        os.unlink(file.path)
        return found

    def _wipe(self) -> None:
        """Remove everything of ours."""
        self._close_cache()
        for suffix in _SUFFIXES:
            try:
                os.unlink(os.path.join(self.directory, TABLE + suffix))
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
        names += [TABLE + suffix for suffix in ("", "-wal", "-shm")]
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
        drops: list[tuple[str, RangeFile | None]],
        writes: list[tuple[str, bytes | RangeFile]],
        touched: list[tuple[float, str]],
    ) -> list[OSError | None]:
        """Drop and then write values; return for each write why it failed, or None.

        touched: when ranges were last used, in seconds since 1970, and their keys.

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
                    self._cache.set(key, value, read=isinstance(value, RangeFile), retry=True)
                    results.append(None)
                except OSError as exc:
                    if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    results.append(exc)
        for when, key in touched:
            try:
                os.utime(os.path.join(self.directory, file_name(key)), (when, when))
            except FileNotFoundError:  # thrown out since
                pass
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
    try:
        code = exc.sqlite_errorcode & 0xFF
    except AttributeError:  # from Python's sqlite3 itself: SQL that does not fit, too
        code = sqlite3.SQLITE_ERROR
    # SQLITE_ERROR: SQL that does not fit, for want of a table or column.
    return code in (
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_CONSTRAINT,
    )


def _entry_of(key: str) -> CacheEntry | None:
    """Return what the row of this key describes, or None if it is not one of ours."""
    parsed = parse_key(key)
    if parsed is None:
        return None
    name, start, asked, size = parsed
    if not name.startswith(PREFIX) or not 0 < size <= asked:
        return None
    return CacheEntry(name, start, asked, size)
