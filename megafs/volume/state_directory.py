"""The directories in which one machine keeps a volume's state and cache.

    <state>/volumes/<fsid>/   replica.db, ops-*, packs/, kept/, head, header, mount, process, boot,
                              reserve, lock
    <state>/urls/<hash>       which volume a URL had when it was last opened here (JSON)
    <cache>/<fsid>/           the disk cache

The state directory holds what must survive a reboot; the cache directory can be deleted at any
time. Both hold ciphertext, numbers and random names only.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
from pathlib import Path

from blake3 import blake3
from msgspec import Struct
from msgspec.structs import astuple

from megafs import clock
from megafs.crypto.volume_keys import FSID_SIZE
from megafs.durable import replace_file, sync_directory
from megafs.errors import Busy, Corrupt, Denied, Full, Stopped
from megafs.private_files import (
    check_directory,
    expect_file,
    make_directories,
    open_private,
    read_private,
)
from megafs.tree.mount_number import fresh_number

log = logging.getLogger(__name__)

#: What a start needs on a disk that is full: SQLite's shared memory, and a few pages of its log.
_RESERVE = 512 << 10
#: The copy of the key header, in a volume's directory.
HEADER = "header"
#: The newest commit that this machine has seen (journal/head.py).
HEAD = "head"
#: What a file of ours may be called in a volume's directory.
_OURS = re.compile(
    r"replica\.db(-wal|-shm)?|ops-[0-9]{8}|head|header|mount|mount-copy|process|boot|lock|pins|scrub"
    r"|store-limits|reserve"
)
_PACK = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}-[0-9]+")
_URL_LIMIT = 4096
_INSTEAD = "choose another directory with --state-dir"
#: What the store takes from this machine (chunks/pack_size.py).
STORE_LIMITS = "store-limits"


def directory_of(state_dir: Path, fsid: bytes) -> Path:
    """The directory of a volume's state."""
    return state_dir / "volumes" / fsid.hex()


class StateDirectory(Struct, frozen=True):
    """The directories of one volume on this machine."""

    volume: Path
    packs: Path
    cache: Path

    @classmethod
    def of(cls, state_dir: Path, cache_dir: Path, fsid: bytes) -> StateDirectory:
        """Name them, and make what is missing, for the owner alone."""
        volume = directory_of(state_dir, fsid)
        made = cls(volume, volume / "packs", cache_dir / fsid.hex())
        for path in (state_dir, state_dir / "volumes", volume, made.packs):
            _make(path)
        return made

    def inspect(self) -> None:
        """Set aside what has the name of a file of ours and is none; call while it is locked.

        Raises Denied if a file may not be read and written.  A `head` that is no file is left for
        `head.read` to refuse: without it this machine would believe any state of the store.
        """
        try:
            for entry in [*os.scandir(self.volume), *os.scandir(self.packs)]:
                path = Path(entry.path)
                ours = _OURS if path.parent == self.volume else _PACK
                if not ours.fullmatch(entry.name):
                    continue
                if entry.name != HEAD and not entry.name.startswith("ops-"):  # see OperationLog
                    expect_file(path)
                if path.exists() and not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
                    raise Denied(
                        f"{path}: {os.strerror(errno.EACCES)}; chmod u+rw {path}, for it may hold"
                        " what is not in the store yet"
                    )
        except OSError as exc:
            raise _failed(self.volume, exc) from exc

    def lock(self) -> int:
        """Take the volume for this process; Busy if another one has it.  Close the fd to let go."""
        path = self.volume / "lock"
        try:
            expect_file(path)
            fd = open_private(path, os.O_RDWR | os.O_CREAT)
        except OSError as exc:
            raise _failed(path, exc) from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = os.pread(fd, 4096, 0).decode("utf-8", "replace").strip()
            os.close(fd)
            raise Busy(
                f"this volume is in use by {holder or 'another megafs'} with the same state"
                " directory; unmount it there, or mount with another --state-dir"
            ) from exc
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()}".encode(), 0)
        return fd

    def rebooted(self) -> bool:
        """Whether the machine started anew since `note_boot`: bytes may be lost that no sync had
        covered.  Within one boot the kernel keeps what was written."""
        boot = _boot_id()
        try:
            return not boot or read_private(self.volume / "boot", 100) != boot.encode()
        except OSError:
            return True

    def note_boot(self) -> None:
        """Note that the damage of the last power cut is dealt with."""
        write_durably(self.volume / "boot", _boot_id().encode())

    def state_number(self) -> int:
        """The number of this state directory, and of all its copies; made at the first call."""
        path, copy = self.volume / "mount", self.volume / "mount-copy"
        number, kept = _number_in(path), _number_in(copy)
        if kept is not None and kept != number:
            log.warning("%s could not be read: taken from %s", path, copy)
            write_durably(path, str(kept).encode())
            return kept
        if number is None:
            if path.exists() and any(self.volume.glob("ops-*")):
                # Under another number nothing of the log opens.
                raise Corrupt(
                    f"{path} cannot be read: without the number in it what is not in the store yet"
                    " cannot be taken up. Put the file back from a copy; or, to go on without that,"
                    f" move {self.volume} away"
                )
            number = int.from_bytes(clock.random_bytes(8), "big") >> 1 or 1
            write_durably(path, str(number).encode())
        if kept is None:
            write_durably(copy, _checked(number))
        return number

    def begin(self) -> Process:
        """Take a number for this process, and see which one it comes after; while it is locked."""
        self.use_reserve()
        state_number = self.state_number()
        place = Place.of(self.volume)
        before = self._last()
        # One that says nothing of itself is of a megafs that had one number for all.
        made = Process(state_number, fresh_number(state_number), state_number)
        if before is not None:
            made.predecessor = before.number
            made.is_dead = place.surely_same(before.place)
            made.moved = place.machine != before.place.machine or (
                place.inode != before.place.inode
            )
        try:
            replace_file(
                self.volume / "process", json.dumps([made.number, *astuple(place)]).encode()
            )
        except OSError as exc:  # a full disk: then the next process takes ours for one more copy
            log.debug("%s: %s", self.volume, exc)
        return made

    def keep_reserve(self) -> None:
        """Keep some room on the disk for the next start, if there is any; blocks."""
        path = self.volume / "reserve"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, _RESERVE)
            finally:
                os.close(fd)
        except OSError as exc:
            log.debug("no room is kept on the disk of %s: %s", self.volume, exc)
            path.unlink(missing_ok=True)

    def use_reserve(self) -> None:
        """Give the room that was kept, if the disk is so full that nothing could be opened."""
        room = os.statvfs(self.volume)
        if room.f_bavail * room.f_frsize < _RESERVE:
            (self.volume / "reserve").unlink(missing_ok=True)

    def _last(self) -> _LastProcess | None:
        """The process that had the directory before, as far as it could say so."""
        try:
            number, *place = json.loads(read_private(self.volume / "process"))
            return _LastProcess(int(number), Place(*place))
        except (OSError, ValueError, TypeError):
            return None


class Place(Struct, frozen=True):
    """Where a state directory is.  Two equal ones are one directory in one boot of a machine."""

    machine: str
    boot: str
    device: int
    inode: int

    @classmethod
    def of(cls, directory: Path) -> Place:
        """That of *directory*, here and now."""
        about = directory.stat()
        return cls(_machine_id(), _boot_id(), about.st_dev, about.st_ino)

    def surely_same(self, other: Place) -> bool:
        """Whether it is one directory, so that its lock keeps two processes apart."""
        return bool(self.boot) and self == other


class _LastProcess(Struct, frozen=True):
    """What the file `process` says."""

    number: int
    place: Place


class Process(Struct):
    """One process's time with a state directory.

    state_number: of the directory.  number: of this process among the volume's mounts.
    predecessor: of the process before.  is_dead: that one cannot live any more, for we have
        its lock.  moved: the directory is at another place than it was then.
    """

    state_number: int
    number: int
    predecessor: int
    is_dead: bool = False
    moved: bool = False


def _checked(number: int) -> bytes:
    """A number as `mount-copy` holds it: the copy counts where the two differ."""
    return b"%d %s" % (number, blake3(b"%d" % number).hexdigest(8).encode())


def _number_in(path: Path) -> int | None:
    """The number in `mount` or `mount-copy`, None if there is none that can be read."""
    try:
        data = read_private(path, 100)
        digits = data.split()[0]
        number = int(digits) if digits.isdigit() else 0
    except (OSError, IndexError):
        return None
    good = data == _checked(number) if path.name == "mount-copy" else data.strip() == digits
    return number if good and 0 < number < 1 << 63 else None


def _machine_id() -> str:
    """What tells this machine from others, hashed; "" where there is none."""
    try:
        found = Path("/etc/machine-id").read_bytes().strip()
    except OSError:
        return ""
    return blake3(b"megafs place" + found).hexdigest()[:32] if found else ""


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def remembered_fsid(state_dir: Path, url: str) -> bytes | None:
    """The volume that *url* had when it was last opened here."""
    try:
        found = json.loads(read_private(_url_path(state_dir, url), _URL_LIMIT))
        fsid = bytes.fromhex(found["fsid"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return fsid if len(fsid) == FSID_SIZE else None


def remember_fsid(state_dir: Path, url: str, fsid: bytes) -> None:
    _make(state_dir)
    _make(state_dir / "urls")
    keep_durably(_url_path(state_dir, url), json.dumps({"fsid": fsid.hex()}).encode())


def _url_path(state_dir: Path, url: str) -> Path:
    return state_dir / "urls" / blake3(url.encode()).hexdigest()[:32]


def write_durably(path: Path, data: bytes) -> None:
    """Replace *path* atomically, and sync it and its directory."""
    try:
        expect_file(path)
        replace_file(path, data)
    except OSError as exc:
        raise _failed(path, exc) from exc


def keep_durably(path: Path, data: bytes) -> None:
    """As `write_durably`, at the price of one sync of the directory if *path* holds *data* already.

    That sync is for a process that was killed between renaming the file and syncing its name.
    """
    try:
        if read_private(path, len(data) + 1) == data:
            sync_directory(path.parent)
            return
    except OSError:
        pass
    write_durably(path, data)


def _make(path: Path) -> None:
    try:
        make_directories(path)
        check_directory(path, instead=_INSTEAD)
    except OSError as exc:
        raise _failed(path, exc) from exc


def _failed(path: Path, exc: OSError) -> Stopped | Denied | Full:
    text = f"{exc.filename or path}: {exc.strerror}; {_INSTEAD}"
    if isinstance(exc, PermissionError):
        return Denied(text)
    if exc.errno in (28, 122):  # ENOSPC, EDQUOT
        return Full(text)
    return Stopped(text)
