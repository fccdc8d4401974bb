"""The directories in which one machine keeps a volume's state and cache.

    <state>/volumes/<fsid>/   replica.db, ops-*, packs/, head, header, mount, process, boot, lock
    <state>/urls/<hash>       which volume a URL had when it was last opened here (JSON)
    <cache>/<fsid>/           the disk cache

The state directory holds what must survive a reboot; the cache directory can be deleted at any
time. Both hold ciphertext, numbers and random names only.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from pathlib import Path

from blake3 import blake3
from msgspec import Struct
from msgspec.structs import astuple

from megafs import clock
from megafs.crypto.volume_keys import FSID_SIZE
from megafs.durable import replace_file, sync_directory
from megafs.errors import Busy, Denied, Full, Stopped
from megafs.tree.mount_number import fresh_number

log = logging.getLogger(__name__)

#: The copy of the key header, in a volume's directory.
HEADER = "header"
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

    def lock(self) -> int:
        """Take the volume for this process; Busy if another one has it.  Close the fd to let go."""
        fd = os.open(self.volume / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
            return not boot or (self.volume / "boot").read_text() != boot
        except OSError:
            return True

    def note_boot(self) -> None:
        """Note that the damage of the last power cut is dealt with."""
        write_durably(self.volume / "boot", _boot_id().encode())

    def state_number(self) -> int:
        """The number of this state directory, and of all its copies; made at the first call."""
        path = self.volume / "mount"
        try:
            return int(path.read_text())
        except (FileNotFoundError, ValueError):
            number = int.from_bytes(clock.random_bytes(8), "big") >> 1 or 1
            write_durably(path, str(number).encode())
            return number

    def begin(self) -> Process:
        """Take a number for this process, and see which one it comes after; while it is locked."""
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

    def _last(self) -> _LastProcess | None:
        """The process that had the directory before, as far as it could say so."""
        try:
            number, *place = json.loads((self.volume / "process").read_bytes())
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
        fsid = bytes.fromhex(json.loads(_url_path(state_dir, url).read_text())["fsid"])
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
        replace_file(path, data)
    except OSError as exc:
        raise _failed(path, exc) from exc


def keep_durably(path: Path, data: bytes) -> None:
    """As `write_durably`, at the price of one sync of the directory if *path* holds *data* already.

    That sync is for a process that was killed between renaming the file and syncing its name.
    """
    try:
        if path.read_bytes() == data:
            sync_directory(path.parent)
            return
    except OSError:
        pass
    write_durably(path, data)


def _make(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise _failed(path, exc) from exc


def _failed(path: Path, exc: OSError) -> Stopped | Denied | Full:
    text = f"{path}: {exc.strerror}; choose another directory with --state-dir"
    if isinstance(exc, PermissionError):
        return Denied(text)
    if exc.errno in (28, 122):  # ENOSPC, EDQUOT
        return Full(text)
    return Stopped(text)
