"""Talk to a running mount: where its socket lies, what is said over it, and the client.

Every mount listens on a unix socket in a directory that only its user can enter:

    /run/megafs                 for root
    $XDG_RUNTIME_DIR/megafs     for others, else /tmp/megafs-UID, if that is theirs and closed
    $MEGAFS_RUNTIME_DIR         instead, if set

`<hash of the mountpoint>.sock`, and beside it `<hash>.json` with mountpoint, URL and pid, so that a
mount that does not answer can be named all the same.

One request per connection, lines of JSON.  The client sends {"op": NAME, ...}; the mount answers
any number of {"progress": {...}} and then one {"result": {...}} or {"error": {...}}, which holds
text, exit_code and kind.  The client needs no trio, so `megafs status` starts quickly.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import select
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from megafs import errors
from megafs.errors import BadUsage, Busy, MegafsError, MountFailed

#: The longest line either side reads.
LINE_LIMIT = 4 << 20

Message = dict[str, Any]


class MountRecord(Struct, frozen=True):
    """What is known of a mount without asking it."""

    mountpoint: str
    url: str
    pid: int
    name: str = ""  # of its files, without suffix
    directory: str = ""

    @property
    def socket_path(self) -> Path:
        return Path(self.directory) / f"{self.name}.sock"


def runtime_dir(environ: Mapping[str, str] | None = None, uid: int | None = None) -> Path:
    """Return the directory of the sockets of user *uid*, ours if not given."""
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


def name_of(mountpoint: str) -> str:
    """The name of a mountpoint's files."""
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]


def cards(directory: Path) -> list[MountRecord]:
    """Return the mounts that have left their card in *directory*, by mountpoint."""
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
    return sorted(found, key=lambda card: card.mountpoint)


def card_of(mountpoint: str, uid: int | None = None) -> MountRecord | None:
    """Return the card of the mount at *mountpoint* (canonical), if there is one."""
    directory = runtime_dir(uid=uid)
    name = name_of(mountpoint)
    return next((card for card in cards(directory) if card.name == name), None)


def leave_card(card: MountRecord) -> None:
    """Write *card* beside its socket."""
    fields = asdict(card)
    del fields["name"], fields["directory"]
    path = Path(card.directory) / f"{card.name}.json"
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(fields))
    temporary.replace(path)


def remove_card(card: MountRecord) -> None:
    """Take *card* and its socket away."""
    for path in (card.socket_path, Path(card.directory) / f"{card.name}.json"):
        path.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether process *pid* is there and has not ended (a zombie has)."""
    return not wait_for_end(pid, 0)


def wait_for_end(pid: int, patience: float) -> bool:
    """Wait until process *pid* has ended; return whether it has."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    try:
        return has_ended(fd, patience)
    finally:
        os.close(fd)


def has_ended(process: int, patience: float) -> bool:
    """Wait until the process of a pidfd has ended; return whether it has."""
    waiter = select.poll()  # select() takes no descriptor above 1023
    waiter.register(process, select.POLLIN)
    return bool(waiter.poll(patience * 1000))


class NotAnswering(Busy):
    """The mount's process lives, but did not answer in time."""


def call(
    card: MountRecord,
    op: str,
    *,
    patience: float = 10.0,
    progress: Callable[[Message], None] | None = None,
    **arguments: Any,
) -> Message:
    """Ask the mount of *card* for *op* and return its result.

    patience: seconds between two lines from the mount.  progress: called with each one's contents.
    Raises what the mount answered, MountFailed if nobody listens, NotAnswering.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(patience)
            connection.connect(str(card.socket_path))
            try:
                connection.sendall(json.dumps({"op": op, **arguments}).encode() + b"\n")
            except BrokenPipeError:
                pass  # it has answered already: it does not talk to us
            with connection.makefile("rb") as lines:
                while line := lines.readline(LINE_LIMIT):
                    message = json.loads(line)
                    if "progress" in message:
                        if progress is not None:
                            progress(message["progress"])
                    elif "error" in message:
                        raise told(message["error"])
                    else:
                        return dict(message["result"])
    except TimeoutError:
        raise NotAnswering(
            f"the mount at {card.mountpoint} (process {card.pid}) does not answer"
        ) from None
    except OSError as exc:
        if exc.errno == errno.EACCES:
            raise BadUsage(f"the mount at {card.mountpoint} is another user's") from exc
        raise MountFailed(f"no mount answers for {card.mountpoint}: {exc.strerror}") from exc
    except ValueError as exc:
        raise MountFailed(f"the mount at {card.mountpoint} answered nonsense: {exc}") from exc
    raise MountFailed(f"the mount at {card.mountpoint} ended without an answer")


def error_message(exc: BaseException) -> Message:
    """Return what is said over the socket about *exc*."""
    cause = errors.leaf(exc)
    code = cause.exit_code if isinstance(cause, MegafsError) else MegafsError.exit_code
    text = str(cause) if isinstance(cause, MegafsError) else f"{type(cause).__name__}: {cause}"
    return {"text": text, "exit_code": code, "kind": type(cause).__name__}


def told(message: Message) -> MegafsError:
    """Return the error that `error_message` described, as the same type if it is one of ours."""
    kind = getattr(errors, str(message.get("kind")), MegafsError)
    if not (isinstance(kind, type) and issubclass(kind, MegafsError)):
        kind = MegafsError
    if issubclass(kind, errors.Refused):
        kind = MegafsError
    made: MegafsError = kind(str(message.get("text")))
    made.exit_code = int(message.get("exit_code", 1))
    return made
