"""The messages on a mount's control socket.

One request per connection.  Each message is one line of JSON; `op` names the request:

    -> {"op": "umount", "version": 1, "how": "wait"}
    <- {"progress": {"staged_bytes": 8388608, "pending_operations": 12, "error": ""}}   any number
    <- {"result": {...}}  or  {"error": {"text": ..., "exit_code": ..., "kind": ...}}   one, last

The command and the mount may be of different releases, for a mount goes on while megafs is
upgraded.  A new field needs a default, and either side ignores fields that it does not know;
`VERSION` grows when that is not enough.  What the megafs of 0.1.0 says, without a version, is
version 1.

The JSON is the standard library's: a name that is not UTF-8 travels with its bytes as lone
surrogates (os.fsdecode), which msgspec.json refuses.
"""

from __future__ import annotations

import json
from typing import Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from megafs import errors
from megafs.errors import BadUsage, MegafsError

#: Of the protocol, not of megafs.
VERSION: Final = 1
#: The longest request that a mount reads, in bytes.
REQUEST_LIMIT: Final = 64 << 10
#: The longest reply that a command reads, in bytes.
REPLY_LIMIT: Final = 4 << 20

T = TypeVar("T")

#: An object of JSON as the json module gives it; its reader converts it to a Struct.
JsonObject = dict[str, object]


# -- requests


class _Request(Struct, frozen=True, kw_only=True, tag_field="op"):
    """version: of the protocol that the command speaks."""

    version: int = VERSION


class StatusRequest(_Request, frozen=True, tag="status"):
    """How is the mount?  The result is what `megafs status --json` prints; see `MountStatus`."""


#: "wait": drain, then unmount.  "lazy": detach now, and drain after the last user has left.
#: "force": end now; what is staged stays in the state directory.
UmountMode = Literal["wait", "lazy", "force"]


class UmountRequest(_Request, frozen=True, tag="umount"):
    """Unmount.  Progress is `DrainProgress`, the result `UmountResult`."""

    how: UmountMode = "wait"


class FlushRequest(_Request, frozen=True, tag="flush"):
    """Bring everything to the store.  Progress and result are `DrainProgress`."""


class CacheClearRequest(_Request, frozen=True, tag="cache-clear"):
    """Forget what is cached.  The result is `CacheClearResult`."""


class MetricsRequest(_Request, frozen=True, tag="metrics"):
    """The mount's numbers.  The result is `MetricsResult`."""


class JobRequest(_Request, frozen=True, tag="job"):
    """Run the job called *job* (jobs/registry.py), whose module defines args, progress, result."""

    job: str
    args: JsonObject = {}


Request = (
    StatusRequest | UmountRequest | FlushRequest | CacheClearRequest | MetricsRequest | JobRequest
)


class _Heading(Struct, frozen=True):
    """The fields of a request in every version of the protocol."""

    op: str
    version: int = 1


def encode_request(request: Request) -> bytes:
    """Return *request* as its line."""
    return _line(request)


def decode_request(line: bytes) -> Request:
    """Return the request that *line* holds; BadUsage, for the one who asked, if there is none."""
    try:
        message = json.loads(line)
        heading = msgspec.convert(message, _Heading)
    except (ValueError, RecursionError, msgspec.ValidationError):
        raise BadUsage("not a request") from None
    if heading.version != VERSION:
        raise BadUsage(
            f"this mount understands version {VERSION} of the control protocol, not"
            f" {heading.version}: use the megafs that made the mount, or unmount it with umount(8)"
            " and mount it again"
        )
    if heading.op not in _OPERATIONS:
        raise BadUsage(f"this mount knows no operation {heading.op!r}")
    try:
        decoded: Request = msgspec.convert(message, Request)
    except msgspec.ValidationError as exc:
        raise BadUsage(f"not a request: {exc}") from None
    return decoded


_OPERATIONS: Final = frozenset({"status", "umount", "flush", "cache-clear", "metrics", "job"})


# -- progress and results


class DrainProgress(Struct, frozen=True):
    """The amount that is not in the store yet.  error: why it does not get there, or ""."""

    staged_bytes: int
    pending_operations: int
    error: str = ""


class UmountResult(Struct, frozen=True):
    """How a mount ended.

    pid: of its process, None if that was gone before.  staged_bytes, pending_operations, error: as
    in `DrainProgress`.  left: what the user should know of data that is not in the store, or "".
    held: who still had it in another mount namespace, as a sentence, or "".
    Unset is what nobody is there to tell.
    """

    pid: int | None
    staged_bytes: int | None
    pending_operations: int | UnsetType = UNSET
    error: str | UnsetType = UNSET
    left: str | UnsetType = UNSET
    held: str | UnsetType = UNSET


class CacheClearResult(Struct, frozen=True):
    """Bytes in the disk cache before and after."""

    before: int
    after: int


class MetricsResult(Struct, frozen=True):
    """text: in Prometheus' exposition format."""

    text: str


class TimedText(Struct, frozen=True):
    """A line of the status with its time, in seconds since 1970."""

    text: str
    time: float | None = None


class StoreStatus(Struct, frozen=True):
    """How the store answers: state is "ok", or what is wrong.

    requests: sent since the mount.  limit: of the service, that holds just now; "" for none.
    """

    state: str = "unknown"
    requests: int = 0
    last_error: str | None = None
    limit: str = ""


class MountedElsewhere(Struct, frozen=True):
    """A mount of the same volume.  this: it is the one that was asked."""

    host: str
    this: bool = False


class MountStatus(Struct, frozen=True):
    """The part of a mount's status that commands read; `megafs status --json` prints more.

    Times in seconds since 1970, uptime in seconds; requests_waiting: by FUSE operation, for how
    many seconds the oldest has waited.  sequence is None of a mount that could not be asked.
    facts: of a mount of files that are no volume: what to say instead of head, staged and volume.
    """

    mountpoint: str
    url: str
    pid: int
    state: str
    volume: str = ""
    sequence: int | None = None
    head_words: str = ""
    head_time: float | None = None
    head_host: str = ""
    head_is_ours: bool = False
    read_only: bool = False
    frozen: str | None = None
    offline: bool = False
    uptime: float = 0.0
    staged_bytes: int = 0
    pending_operations: int = 0
    dirty_bytes: int = 0
    memory_cache_bytes: int | None = None
    cache_bytes: int = 0
    cache_limit: int = 0
    facts: tuple[tuple[str, str], ...] = ()
    cache: JsonObject = {}
    cache_dir: str = ""
    state_dir: str = ""
    used_bytes: int = 0
    quota: int | None = None
    account_left: int | None = None
    files: int = 0
    store: StoreStatus = StoreStatus()
    mounts: tuple[MountedElsewhere, ...] = ()
    conflicts: tuple[TimedText, ...] = ()
    errors: tuple[TimedText, ...] = ()
    requests_waiting: dict[str, float] = {}


# -- replies


class ErrorReply(Struct, frozen=True):
    """An error as the command tells it.  kind: the name of its class."""

    text: str
    exit_code: int = MegafsError.exit_code
    kind: str = ""

    @classmethod
    def of(cls, exc: BaseException) -> ErrorReply:
        """Describe the cause of *exc*."""
        cause = errors.leaf(exc)
        kind = type(cause).__name__
        known = cause if isinstance(cause, MegafsError) else errors.of_this_machine(cause)
        if known is not None:
            return cls(str(known), known.exit_code, type(known).__name__)
        return cls(f"{kind}: {cause}", MegafsError.exit_code, kind)

    def exception(self) -> MegafsError:
        """Return the error to be raised here: of the same class, if that is one of `_KINDS`."""
        made = _KINDS.get(self.kind, MegafsError)(self.text)
        made.exit_code = self.exit_code  # also of a class that only the other release has
        return made


#: Every error that a text alone can make again.  Refused needs an errno, and is for the kernel.
_KINDS: Final[dict[str, type[MegafsError]]] = {
    kind.__name__: kind
    for kind in (
        errors.Fault,
        errors.Corrupt,
        errors.Rollback,
        errors.StoreError,
        errors.Missing,
        errors.Exists,
        errors.Denied,
        errors.Full,
        errors.TooLarge,
        errors.Unavailable,
        errors.NoStore,
        errors.BadStore,
        errors.Stopped,
        errors.BadUsage,
        errors.NotAVolume,
        errors.TooNew,
        errors.BadPassphrase,
        errors.AlreadyThere,
        errors.Busy,
        errors.MountFailed,
    )
}


class Reply(Struct, frozen=True, omit_defaults=True):
    """One line from the mount: exactly one of the three is set.

    progress, result: a Struct where it is sent, plain data where it is received.
    """

    progress: object = UNSET
    result: object = UNSET
    error: ErrorReply | UnsetType = UNSET


def encode_reply(reply: Reply) -> bytes:
    """Return *reply* as its line."""
    return _line(reply)


def decode_reply(line: bytes) -> Reply:
    """Return the reply that *line* holds; ValueError if it is none."""
    try:
        reply = msgspec.convert(json.loads(line), Reply)
    except (RecursionError, msgspec.ValidationError) as exc:
        raise ValueError(str(exc)) from exc
    if (reply.progress, reply.result, reply.error).count(UNSET) != 2:
        raise ValueError("neither progress nor result nor error")
    return reply


def converted(data: object, kind: type[T]) -> T:
    """Return plain *data* as a *kind*; ValueError if it is none."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as exc:
        raise ValueError(str(exc)) from exc


def _line(message: Struct) -> bytes:
    return json.dumps(msgspec.to_builtins(message)).encode() + b"\n"
