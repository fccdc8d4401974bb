"""The arguments and results of each job.

The same fields go over a mount's control socket and into --json (docs/maintenance.md): a new one
needs a default, for the command and the mount may be of different releases.  Only msgspec is
imported here, so that a command which asks a mount starts quickly.

exit_code is what the shell gets, text what people read.  Sizes are in bytes, times in seconds since
1970 (durations: in seconds), paths inside the volume begin with a slash.  A field whose name ends
in _b64 holds the bytes of the one before it, in base64, where they are not UTF-8.
"""

from __future__ import annotations

from typing import Any, Final, Generic, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from megafs.errors import BadUsage, Fault

A = TypeVar("A", bound=Struct)
R = TypeVar("R", bound=Struct)

#: The most events, commits or removals of one answer, which must fit into a line of the socket.
MOST: Final = 10_000


class JobKind(Generic[A, R]):
    """A job by name, with the types of what it is asked and of what it answers.

    results: the types that an answer can have, told apart by the fields they must have.
    """

    def __init__(self, name: str, args: type[A], *results: type[R]) -> None:
        self.name = name
        self._args = args
        self._results = results

    def args_of(self, message: dict[str, Any]) -> A:
        """The arguments in *message*; BadUsage if a field has a wrong type or value."""
        try:
            return msgspec.convert(message, self._args)
        except msgspec.ValidationError as exc:
            raise BadUsage(f"{self.name}: {exc}") from None

    def result_of(self, message: dict[str, Any]) -> R:
        """The answer that *message* holds; Fault if it is none, as another release may send."""
        why: msgspec.ValidationError | None = None
        for kind in self._results:
            try:
                return msgspec.convert(message, kind)
            except msgspec.ValidationError as exc:
                why = exc
        raise Fault(f"the answer of {self.name} is not understood: {why}")


def as_message(value: Struct) -> dict[str, Any]:
    """Return *value* as its JSON object."""
    made: dict[str, Any] = msgspec.to_builtins(value)
    return made


def limited(limit: int | None) -> int:
    """How many lines an answer may have, of those that were asked for."""
    return max(1, min(limit or MOST, MOST))


class Nothing(Struct, frozen=True):
    """For jobs that need not be told anything."""


# ---- fsck and scrub ----------------------------------------------------------------------------


class FsckArgs(Struct, frozen=True):
    """repair: put right what can be.  store: ask the store, too."""

    repair: bool = False
    store: bool = True


class FsckProblem(Struct, frozen=True, omit_defaults=True):
    """One thing that is wrong.  path, start, end: the bytes of a file that it concerns, if any."""

    kind: str
    text: str
    can_repair: bool
    path: str = ""
    start: int | None = None
    end: int | None = None
    path_b64: str | UnsetType = UNSET


class FsckResult(Struct, frozen=True):
    """problems: those that are left.  Of both lists the first 1000; the counts are of all."""

    exit_code: int
    text: str
    files: int
    used_bytes: int
    sequence: int
    problems: list[FsckProblem]
    problem_count: int
    repaired: list[FsckProblem]
    repaired_count: int
    notes: list[str]


class ScrubArgs(Struct, frozen=True):
    """rate: bytes per second.  limit: stop after so many bytes.  restart: begin anew."""

    rate: float | None = None
    limit: int | None = None
    restart: bool = False


class Damage(Struct, frozen=True, kw_only=True):
    """Bytes of a file (start to end, exclusive) or a whole object that cannot be had or is wrong.

    path: None if the inode has no name.
    """

    path: str | UnsetType | None = UNSET
    path_b64: str | UnsetType = UNSET
    inode: int | UnsetType = UNSET
    start: int | UnsetType = UNSET
    end: int | UnsetType = UNSET
    object: str | UnsetType = UNSET
    text: str


class UnnamedObject(Struct, frozen=True):
    """An object that nothing in the volume names."""

    object: str
    size: int
    modified: float


class ScrubResult(Struct, frozen=True):
    """complete: all was read.  resumed: this went on where an earlier run was interrupted.

    chunks, bytes: since the beginning.  objects: gets of this run.
    """

    exit_code: int
    text: str
    complete: bool
    resumed: bool
    chunks: int
    bytes: int
    objects: int
    damaged: list[Damage]
    damaged_count: int
    unnamed: list[UnnamedObject]
    unnamed_count: int
    unnamed_bytes: int


# ---- gc and reencrypt --------------------------------------------------------------------------


class GcArgs(Struct, frozen=True):
    """None stands for the default (jobs/gc.py).  threshold: 0 to 1.  rate: bytes per second."""

    dry_run: bool = False
    retention: float | None = None
    grace: float | None = None
    unknown_grace: float | None = None
    threshold: float | None = None
    compact_age: float | None = None
    no_compact: bool = False
    no_fold: bool = False
    rate: float | None = None


class GcResult(Struct, frozen=True):
    """The work of a run, or of a dry run.  waiting: objects that another mount may need."""

    exit_code: int
    text: str
    marked: int
    unmarked: int
    dropped: int
    deleted: int
    deleted_bytes: int
    waiting: int
    compacted_packs: int
    moved_bytes: int
    folded_commits: int
    removed_checkpoints: int
    removed_parts: int
    removed_beats: int
    notes: list[str]
    removed_shares: int = 0


class ReencryptArgs(Struct, frozen=True):
    """rate: bytes per second.  limit: stop after so many bytes."""

    rate: float | None = None
    limit: int | None = None


class ReencryptResult(Struct, frozen=True):
    """packs, moved_bytes: sealed again.  left: packs of earlier epochs that files still need."""

    exit_code: int
    text: str
    epoch: int
    packs: int
    moved_bytes: int
    left: int
    notes: list[str]


# ---- the past ----------------------------------------------------------------------------------


class LogArgs(Struct, frozen=True):
    """Of the path "/" the commits are listed, unless it is recursive.

    since: a moment (history/moments.py).
    """

    path: str | None = "/"
    recursive: bool = False
    since: str | None = None
    limit: int | None = None


class LogCommit(Struct, frozen=True):
    """this: it was made by this machine."""

    sequence: int
    time: float
    host: str
    this: bool
    operations: int
    hash: str


class LogOfCommits(Struct, frozen=True):
    """Newest first.  more: the limit ended it.  cut_short: the journal goes no further back."""

    commits: list[LogCommit]
    more: bool
    cut_short: bool


class LogEvent(Struct, frozen=True, omit_defaults=True):
    """One thing that a commit did to one inode (history/file_events.py)."""

    sequence: int
    time: float
    host: str
    what: str
    path: str
    was: str | None = None
    size: int | None = None
    old_size: int | None = None
    text: str = ""
    path_b64: str | UnsetType = UNSET
    was_b64: str | UnsetType = UNSET


class LogOfPath(Struct, frozen=True):
    """Newest first.  more, cut_short: as of `LogOfCommits`."""

    path: str
    events: list[LogEvent]
    more: bool
    cut_short: bool
    path_b64: str | UnsetType = UNSET


class RestoreArgs(Struct, frozen=True):
    """at: a moment (history/moments.py).  to: another path than before."""

    path: str
    at: str
    to: str | None = None
    replace: bool = False


class RestoreResult(Struct, frozen=True):
    """The restored tree: where to, where from, as of which commit and its time."""

    path: str
    source: str = field(name="from")
    sequence: int
    time: float
    files: int
    directories: int
    bytes: int
    text: str
    path_b64: str | UnsetType = UNSET
    source_b64: str | UnsetType = field(name="from_b64", default=UNSET)


class UndeleteArgs(Struct, frozen=True):
    """list: only list.  all: list also each file of a removed directory."""

    path: str | None = "/"
    list: bool = False
    all: bool = False
    to: str | None = None
    since: str | None = None
    limit: int | None = None


class RemovedFile(Struct, frozen=True):
    """files, size: of a directory, with what went with it.  above: the directory it went with."""

    path: str
    sequence: int
    time: float
    host: str
    directory: bool
    size: int
    mtime: float
    files: int
    above: str | None = field(name="with")
    exists: bool
    path_b64: str | UnsetType = UNSET
    above_b64: str | UnsetType = field(name="with_b64", default=UNSET)


class RemovedFiles(Struct, frozen=True):
    """Newest first.  more, cut_short: as of `LogOfCommits`."""

    path: str
    removed: list[RemovedFile]
    more: bool
    cut_short: bool
    path_b64: str | UnsetType = UNSET


class SnapshotArgs(Struct, frozen=True):
    """name: of the snapshot to make or to delete."""

    name: str


class SnapshotCreated(Struct, frozen=True):
    """name: another than was asked for if another machine had it first."""

    name: str
    sequence: int
    time: float
    text: str


class ListedSnapshot(Struct, frozen=True):
    """A snapshot: its last commit, and when it was made."""

    name: str
    sequence: int
    time: float


class SnapshotList(Struct, frozen=True):
    """Oldest first."""

    snapshots: list[ListedSnapshot]


class SnapshotDeleted(Struct, frozen=True):
    """The commit that it named."""

    name: str
    sequence: int
    text: str


# ---- pins --------------------------------------------------------------------------------------


class PinArgs(Struct, frozen=True):
    """path: the top of the subtree."""

    path: str


class PinResult(Struct, frozen=True):
    """bytes: in the cache now.  missing_bytes: could not be fetched and will be later."""

    exit_code: int
    text: str
    bytes: int
    missing_bytes: int


class UnpinResult(Struct, frozen=True):
    """Nothing but that it was done."""

    exit_code: int
    text: str


class PinRow(Struct, frozen=True):
    """A pinned subtree, and how much of it is in the cache."""

    path: str
    bytes: int
    cached_bytes: int
    directory: bool
    path_b64: str | UnsetType = UNSET


class PinList(Struct, frozen=True):
    """The pinned subtrees of this machine."""

    exit_code: int
    pins: list[PinRow]


# ---- salvage, which needs no open volume -------------------------------------------------------


class SalvageResult(Struct, frozen=True):
    """The result of an export.

    header: the key header that opened.  checkpoint, sequence: where the tree began and ended.
    stopped: why the journal could be followed no further, or "".  partial: rows of the tree are
    lost.  lost: files without a name, as they are called in lost+found.  problems: what was wrong
    besides.  report: the file that holds this, too.  to: the directory.
    """

    exit_code: int
    text: str
    header: str
    checkpoint: int
    sequence: int
    stopped: str
    partial: bool
    files: int
    directories: int
    others: int
    bytes: int
    damaged: list[Damage]
    lost: list[str]
    problems: list[str]
    report: str | UnsetType = UNSET
    to: str | UnsetType = UNSET


FSCK: Final = JobKind("fsck", FsckArgs, FsckResult)
SCRUB: Final = JobKind("scrub", ScrubArgs, ScrubResult)
GC: Final = JobKind("gc", GcArgs, GcResult)
REENCRYPT: Final = JobKind("reencrypt", ReencryptArgs, ReencryptResult)
LOG: Final = JobKind[LogArgs, LogOfCommits | LogOfPath]("log", LogArgs, LogOfCommits, LogOfPath)
UNDELETE: Final = JobKind[UndeleteArgs, RemovedFiles | RestoreResult](
    "undelete", UndeleteArgs, RemovedFiles, RestoreResult
)
RESTORE: Final = JobKind("restore", RestoreArgs, RestoreResult)
PIN: Final = JobKind("pin", PinArgs, PinResult)
UNPIN: Final = JobKind("unpin", PinArgs, UnpinResult)
PIN_LIST: Final = JobKind("pin-list", Nothing, PinList)
SNAPSHOT_CREATE: Final = JobKind("snapshot-create", SnapshotArgs, SnapshotCreated)
SNAPSHOT_LIST: Final = JobKind("snapshot-list", Nothing, SnapshotList)
SNAPSHOT_DELETE: Final = JobKind("snapshot-delete", SnapshotArgs, SnapshotDeleted)
