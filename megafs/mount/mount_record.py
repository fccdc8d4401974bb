"""The record that each running mount keeps of itself, so that commands find its socket.

Sockets and records lie in a directory that only its user can enter, the runtime directory:

    /run/megafs                 for root
    $XDG_RUNTIME_DIR/megafs     for others, else /tmp/megafs-UID, if that is theirs and closed
    $MEGAFS_RUNTIME_DIR         instead, if set

Each mount has `<hash of the mountpoint>.sock`, on which it answers, and `<hash>.json`, its record:
mountpoint, URL and pid, so that a mount that does not answer can be named all the same.

Nothing is believed of a directory or a record that another user could have written: a command of
root would end the process that it names.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct, field
from msgspec.structs import asdict, replace

from megafs.errors import MountFailed
from megafs.mount.processes import is_running, start_time

#: No pid is larger (PID_MAX_LIMIT, proc(5)).
PID_LIMIT = 1 << 22
#: No record is longer, in bytes.
RECORD_LIMIT = 64 << 10


class MountRecord(Struct, frozen=True):
    """The facts about a mount that are known without asking it.

    name: of its files, without suffix.  directory: the runtime directory that they lie in.
    started: when the process was started, in clock ticks since boot (proc(5)): another one may have
    its pid by now; 0 if not known.  uid: of the user whose directory it is, ours if not given.
    """

    mountpoint: str
    url: str
    pid: int
    name: str = ""
    directory: str = ""
    started: int = 0
    uid: int = field(default_factory=os.geteuid)

    @property
    def socket_path(self) -> Path:
        return Path(self.directory) / f"{self.name}.sock"


def runtime_dir(environ: Mapping[str, str] | None = None, uid: int | None = None) -> Path:
    """Return the runtime directory of user *uid*, ours if not given."""
    environ = os.environ if environ is None else environ
    own = os.geteuid()
    uid = own if uid is None else uid
    if uid == own and environ.get("MEGAFS_RUNTIME_DIR"):
        return Path(environ["MEGAFS_RUNTIME_DIR"]).absolute()
    if uid == 0:
        return Path("/run/megafs")
    base = environ.get("XDG_RUNTIME_DIR", "") if uid == own else f"/run/user/{uid}"
    if base.startswith("/") and Path(base).is_dir():
        return Path(base) / "megafs"
    return Path(f"/tmp/megafs-{uid}")


def make_runtime_dir(path: Path) -> None:
    """Make *path*, closed to others; MountFailed if somebody else's directory is in its place."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
            if stat.S_IMODE(found.st_mode) & 0o077:
                path.chmod(0o700)
            return
    except OSError as exc:
        raise MountFailed(f"{path} cannot be made: {exc.strerror}") from exc
    # In /tmp anyone may be there first.
    raise MountFailed(f"{path} is not a directory of yours: remove it, or set MEGAFS_RUNTIME_DIR")


def file_name(mountpoint: str) -> str:
    """Return the name, without suffix, of a mountpoint's socket and record."""
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]


def records(directory: Path, uid: int | None = None) -> list[MountRecord]:
    """Return the records in the runtime directory of user *uid*, ours if not given, by mountpoint;
    skip what is not one.

    Raises MountFailed if the directory is not that user's alone.
    """
    found = []
    uid = os.geteuid() if uid is None else uid
    try:
        names = _names(directory, uid)
    except FileNotFoundError:
        return []
    for name in names:
        try:
            found.append(_read(directory, name, uid))
        except (OSError, MountFailed):
            continue
    return sorted(found, key=lambda record: record.mountpoint)


def record_of(mountpoint: str, uid: int | None = None) -> MountRecord | None:
    """Return the record of user *uid*'s mount at *mountpoint* (canonical), if there is one.

    Raises MountFailed if the directory is not that user's alone, or the record cannot be read.
    """
    directory = runtime_dir(uid=uid)
    uid = os.geteuid() if uid is None else uid
    name = file_name(mountpoint)
    try:
        return _read(directory, name, uid) if name in _names(directory, uid) else None
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise MountFailed(f"{directory}/{name}.json cannot be read: {exc.strerror}") from exc


def _names(directory: Path, uid: int) -> list[str]:
    """Return the names of the records in *directory*, which must be user *uid*'s alone."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as exc:
        if exc.errno == errno.EACCES and uid != os.geteuid():
            return []
        raise MountFailed(f"{directory} is not a directory to be read: {exc.strerror}") from exc
    try:
        found = os.fstat(fd)
        if found.st_uid != uid or found.st_mode & 0o022:
            raise MountFailed(
                f"{directory} is not user {uid}'s alone (it is user {found.st_uid}'s, mode"
                f" {stat.S_IMODE(found.st_mode):o}), so what it says of mounts is not believed:"
                " remove it, or set MEGAFS_RUNTIME_DIR"
            )
        names = os.listdir(fd)
    finally:
        os.close(fd)
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def _read(directory: Path, name: str, uid: int) -> MountRecord:
    path = directory / f"{name}.json"
    # O_NONBLOCK: a FIFO has nobody at its other end.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != uid or found.st_mode & 0o022:
            raise MountFailed(f"{path} is not a file of user {uid} alone: remove it")
        text = os.read(fd, RECORD_LIMIT)
    finally:
        os.close(fd)
    try:
        record = msgspec.convert(json.loads(text), MountRecord)
    except (ValueError, RecursionError) as exc:
        raise MountFailed(f"{path} is not the record of a mount: remove it") from exc
    if file_name(record.mountpoint) != name or not 1 <= record.pid <= PID_LIMIT:
        raise MountFailed(f"{path} is not the record of a mount: remove it")
    return replace(record, name=name, directory=str(directory), uid=uid)


def is_alive(record: MountRecord) -> bool:
    """Whether the process of *record* runs, and is the one that wrote it."""
    if not is_running(record.pid):
        return False
    return not record.started or start_time(record.pid) == record.started


def write_record(record: MountRecord) -> None:
    """Write *record* beside its socket."""
    fields = asdict(record)
    del fields["name"], fields["directory"], fields["uid"]
    path = Path(record.directory) / f"{record.name}.json"
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        json.dump(fields, file)
    temporary.replace(path)


def remove_record(record: MountRecord) -> None:
    """Remove *record* and its socket, unless they are another mount's by now."""
    path = Path(record.directory) / f"{record.name}.json"
    try:
        if _read(Path(record.directory), record.name, record.uid).pid != record.pid:
            return
    except (OSError, MountFailed):
        pass
    for each in (record.socket_path, path):
        each.unlink(missing_ok=True)
