"""The record that each running mount keeps of itself, so that commands find its socket.

Sockets and records lie in a directory that only its user can enter, the runtime directory:

    /run/megafs                 for root
    $XDG_RUNTIME_DIR/megafs     for others, else /tmp/megafs-UID, if that is theirs and closed
    $MEGAFS_RUNTIME_DIR         instead, if set

Each mount has `<hash of the mountpoint>.sock`, on which it answers, and `<hash>.json`, its record:
mountpoint, URL and pid, so that a mount that does not answer can be named all the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct
from msgspec.structs import asdict

from megafs.errors import MountFailed


class MountRecord(Struct, frozen=True):
    """What is known of a mount without asking it.

    name: of its files, without suffix.  directory: the runtime directory that they lie in.
    """

    mountpoint: str
    url: str
    pid: int
    name: str = ""
    directory: str = ""

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


def records(directory: Path) -> list[MountRecord]:
    """Return the records in *directory*, by mountpoint; skip what is not one."""
    found = []
    try:
        paths = sorted(directory.glob("*.json"))
    except OSError:
        return []
    for path in paths:
        try:
            fields = json.loads(path.read_text())
            found.append(MountRecord(**fields, name=path.stem, directory=str(directory)))
        except (OSError, ValueError, TypeError):
            continue
    return sorted(found, key=lambda record: record.mountpoint)


def record_of(mountpoint: str, uid: int | None = None) -> MountRecord | None:
    """Return the record of user *uid*'s mount at *mountpoint* (canonical), if there is one."""
    directory = runtime_dir(uid=uid)
    name = file_name(mountpoint)
    return next((record for record in records(directory) if record.name == name), None)


def write_record(record: MountRecord) -> None:
    """Write *record* beside its socket."""
    fields = asdict(record)
    del fields["name"], fields["directory"]
    path = Path(record.directory) / f"{record.name}.json"
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(fields))
    temporary.replace(path)


def remove_record(record: MountRecord) -> None:
    """Remove *record* and its socket."""
    for path in (record.socket_path, Path(record.directory) / f"{record.name}.json"):
        path.unlink(missing_ok=True)
