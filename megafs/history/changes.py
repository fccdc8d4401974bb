"""What happened to files: the journal read backwards (`megafs log`, `megafs undelete`).

A commit holds the rows it changed, old and new, but names only by (directory, name), and an inode's
row does not say where it lies.  So the journal is read from its end, and the names are taken back
commit by commit: `Rewind` knows every name as it was after the commit that is being looked at.
It keeps only what differs from the present, in a scratch database of its own.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import apsw
import trio
from msgspec import Struct, field

from megafs.concurrency import offload
from megafs.errors import AlreadyThere, BadUsage, Missing, Refused
from megafs.history.moments import parse_moment, scratch
from megafs.jobs import restore as restoring
from megafs.jobs.registry import Args, Progress, Result, settle
from megafs.jobs.restore import clean, show
from megafs.journal.commit import Commit, unpack_changeset
from megafs.tree.inode import ROOT
from megafs.tree.tree import Tree
from megafs.volume.open import Volume

T = TypeVar("T")

#: Commits read ahead while those before are looked at.
_WINDOW: Final = 64
#: Changesets larger than this (packed) are gone through in a thread.
_LARGE: Final = 64 << 10
#: So are commits that change more inodes than this.
_MANY: Final = 50
#: The most events, commits or removals of one answer.
MOST: Final = 10_000
#: What was removed below a directory without a longer pause went together with it.
TOGETHER_NS: Final = 60 * 10**9

# Within one commit nobody knows what came first; this order reads well, newest first.
_ORDER: Final = (
    "xattr",
    "attributes",
    "contents",
    "renamed",
    "unlinked",
    "linked",
    "removed",
    "created",
)

# Columns of `inodes`.
_MODE, _NLINK, _UID, _GID, _SIZE, _MTIME, _VERSION = 1, 2, 3, 4, 6, 9, 13


class Event(Struct):
    """One thing that a commit did to one inode.

    what: "created", "contents", "renamed", "linked", "unlinked", "removed", "attributes", "xattr".
    path: afterwards; of what was removed, before.  was: the path before, of what was renamed.
    """

    sequence: int
    time_ns: int
    host: str
    ino: int
    what: str
    path: bytes
    was: bytes | None = None
    size: int | None = None
    old_size: int | None = None
    text: str = ""

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        made: dict[str, Any] = {
            "sequence": self.sequence,
            "time": self.time_ns / 1e9,
            "host": self.host,
            "what": self.what,
            "path": show(self.path),
        }
        if self.was is not None:
            made["was"] = show(self.was)
        if self.size is not None:
            made["size"] = self.size
        if self.old_size is not None:
            made["old_size"] = self.old_size
        if self.text:
            made["text"] = self.text
        return made


class _Touched(Struct):
    """What one commit did to one inode, in rows.

    old, new: its row before and after; None if there was none, `no_change` in columns that stayed.
    gone, come: names that stood for it before and after, each (directory, name).
    xattrs: (name, whether it was there before, whether it is afterwards).
    """

    is_changed: bool = False
    old: tuple[Any, ...] | None = None
    new: tuple[Any, ...] | None = None
    gone: list[tuple[int, bytes]] = field(default_factory=list)
    come: list[tuple[int, bytes]] = field(default_factory=list)
    xattrs: list[tuple[bytes, bool, bool]] = field(default_factory=list)


_Name = tuple[int, bytes, int | None, int | None]  # directory, name, inode before, inode after


def _rows_of(commit: Commit) -> tuple[dict[int, _Touched], list[_Name]]:
    """The inodes and the names that a commit changed."""
    inodes: dict[int, _Touched] = {}
    names: list[_Name] = []

    def of(ino: int) -> _Touched:
        found = inodes.get(ino)
        if found is None:
            found = inodes[ino] = _Touched()
        return found

    changeset = unpack_changeset(commit)
    if not changeset:
        return inodes, names
    for change in apsw.Changeset.iter(changeset):
        old: Any = change.old
        new: Any = change.new
        row = old if old is not None else new
        if change.name == "inodes":
            touched = of(row[0])
            touched.is_changed, touched.old, touched.new = True, old, new
        elif change.name == "xattrs":
            of(row[0]).xattrs.append((row[1], old is not None, new is not None))
        elif change.name == "dirents":
            before = old[2] if old is not None and isinstance(old[2], int) else None
            after = new[2] if new is not None and isinstance(new[2], int) else None
            if before == after:  # only the cookie changed
                continue
            names.append((row[0], row[1], before, after))
            if before is not None:
                of(before).gone.append((row[0], row[1]))
            if after is not None:
                of(after).come.append((row[0], row[1]))
    return inodes, names


class Rewind:
    """Names and sizes, going back in time.

    base: the committed tree to begin with.  db: a scratch database.
    """

    def __init__(self, base: Tree, db: apsw.Connection) -> None:
        self._base = base
        self._db = db
        db.execute(
            "CREATE TABLE names(parent INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER,"
            " PRIMARY KEY(parent, name)) WITHOUT ROWID"
        )
        db.execute("CREATE INDEX names_by_ino ON names(ino)")
        db.execute("CREATE TABLE rows(ino INTEGER PRIMARY KEY, mode INTEGER, size INTEGER, mtime)")
        self._paths: dict[int, bytes | None] = {}

    def child(self, parent: int, name: bytes) -> int | None:
        """What a name stood for."""
        row = self._db.execute(
            "SELECT ino FROM names WHERE parent=? AND name=?", (parent, name)
        ).fetchone()
        return self._base.child(parent, name) if row is None else row[0]

    def places(self, ino: int) -> list[tuple[int, bytes]]:
        """Every (directory, name) that stood for an inode."""
        found: list[Any] = self._db.execute(
            "SELECT parent, name FROM names WHERE ino=?", (ino,)
        ).fetchall()
        for parent, name in self._base.places(ino):
            there = self._db.execute(
                "SELECT 1 FROM names WHERE parent=? AND name=?", (parent, name)
            ).fetchone()
            if there is None:
                found.append((parent, name))
        return found

    def path(self, ino: int) -> bytes | None:
        """A path from the root, or None if the inode had no name."""
        if ino == ROOT:
            return b""
        if ino in self._paths:
            return self._paths[ino]
        self._paths[ino] = None  # a loop ends here
        places = self.places(ino)
        found = None
        if places:
            above = self.path(places[0][0])
            found = None if above is None else above + b"/" + places[0][1]
        self._paths[ino] = found
        return found

    def join(self, parent: int, name: bytes) -> bytes:
        """The path of a name."""
        return (self.path(parent) or b"") + b"/" + name

    def walk(self, path: bytes) -> int | None:
        """What a path stood for."""
        ino: int | None = ROOT
        for name in path.split(b"/"):
            if name and ino is not None:
                ino = self.child(ino, name)
        return ino

    def undo(self, names: Iterable[_Name]) -> None:
        """Go back before a commit that changed these names."""
        self._db.executemany(
            "INSERT OR REPLACE INTO names VALUES(?,?,?)",
            ((parent, name, before) for parent, name, before, _ in names),
        )
        self._paths.clear()

    # ---- attributes -------------------------------------------------------------------------

    def known(self, ino: int) -> tuple[int, int, int]:
        """(mode, size, mtime) of an inode; zeros if nothing is known."""
        row = self._db.execute("SELECT mode, size, mtime FROM rows WHERE ino=?", (ino,)).fetchone()
        if row is not None:
            return int(row[0]), int(row[1]), int(row[2])
        found = self._base.find(ino)
        return (0, 0, 0) if found is None else (found.mode, found.size, found.mtime_ns)

    def undo_row(self, ino: int, old: tuple[Any, ...] | None) -> None:
        """Go back before a change of an inode's row."""
        if old is None:
            return
        now = self.known(ino)
        mode, size, mtime = (
            value if isinstance(value, int) else have
            for value, have in zip((old[_MODE], old[_SIZE], old[_MTIME]), now, strict=True)
        )
        if (mode, size, mtime) != now:
            self._db.execute(
                "INSERT OR REPLACE INTO rows VALUES(?,?,?,?)", (ino, mode, size, mtime)
            )


class Step(Struct):
    """One commit, with the names as they are right after it."""

    sequence: int
    commit: Commit
    inodes: dict[int, _Touched]
    names: list[_Name]


class Backwards:
    """The commits of a volume, newest first; stops where the store has no more.

    `rewind` knows the names after the commit that was given last, and before it once `back` was
    called for it.
    """

    def __init__(self, volume: Volume, progress: Progress, since: int = 1) -> None:
        self._volume = volume
        self._progress = progress
        self._since = max(1, since)
        self._reader = volume.replica.committed_reader()
        self._head = self._last = volume.replica.sequence
        self._waiting: list[tuple[int, Commit]] = []
        self._db = scratch(volume.history.directory)
        self.rewind = Rewind(Tree(self._reader, volume.params.chunk_size), self._db)
        self._db.execute("BEGIN")
        #: The journal ended before `since`.
        self.cut_short = False

    def close(self) -> None:
        self._reader.close()
        self._db.close()

    async def next(self) -> Step | None:
        """The next commit, or None after the last; take the one before `back` first."""
        if not self._waiting:
            if self._last < self._since or self.cut_short:
                return None
            first = max(self._since, self._last - _WINDOW + 1)
            try:
                commits = await self._volume.history.commits(first, self._last)
            except Missing:
                first, commits = await self._rest(first, self._last)
            self._waiting = list(enumerate((commit for _, commit in commits), first))
            self._last = first - 1
            self._progress(
                {
                    "done": self._head - self._last,
                    "total": self._head - self._since + 1,
                    "text": "reading the journal",
                }
            )
            if not self._waiting:
                return None
        sequence, commit = self._waiting.pop()
        if len(commit.changeset) > _LARGE:
            inodes, names = await offload(_rows_of, commit)
        else:
            inodes, names = _rows_of(commit)
        return Step(sequence, commit, inodes, names)

    async def _rest(self, first: int, last: int) -> tuple[int, list[tuple[bytes, Commit]]]:
        """The newest of these commits, down to the first one that is missing."""
        self.cut_short = True
        found: list[tuple[bytes, Commit]] = []
        for sequence in range(last, first - 1, -1):
            try:
                found.insert(0, await self._volume.history.commit(sequence))
            except Missing:
                return sequence + 1, found
        return first, found

    async def work(self, step: Step, look: Callable[[Step], list[T]]) -> list[T]:
        """What *look* finds in a commit; of a large one, in a thread.

        The connections below are used by nobody else meanwhile.
        """
        if len(step.inodes) > _MANY:
            return await offload(look, step)
        await trio.lowlevel.checkpoint()
        return look(step)

    def back(self, step: Step) -> None:
        """Take the names and rows of a commit back."""
        self.rewind.undo(step.names)
        for ino, touched in step.inodes.items():
            if touched.is_changed:
                self.rewind.undo_row(ino, touched.old)


class _Draft(Struct):
    """An inode that a commit changed, with what was true right after it."""

    ino: int
    touched: _Touched
    path: bytes | None
    come: list[bytes]
    has_name: bool
    mode: int
    size: int


def _drafts(step: Step, wanted: set[int] | None, rewind: Rewind) -> list[_Draft]:
    """The inodes that a commit changed, of those that are wanted; *rewind* is after it."""
    drafts = []
    for ino, touched in step.inodes.items():
        if wanted is None or ino in wanted:
            mode, size, _ = rewind.known(ino)
            come = [rewind.join(*place) for place in touched.come]
            named = ino == ROOT or bool(rewind.places(ino))
            drafts.append(_Draft(ino, touched, rewind.path(ino), come, named, mode, size))
    return drafts


def _finished(step: Step, draft: _Draft, rewind: Rewind) -> list[Event]:
    """The events of one inode; *rewind* is before the commit."""
    touched, commit = draft.touched, step.commit
    old, new = touched.old, touched.new
    before = rewind.path(draft.ino)
    here = (draft.path if draft.path is not None else before) or b"/"
    mode, old_size, _ = rewind.known(draft.ino)
    is_dir = stat.S_ISDIR(draft.mode or mode)
    made: list[Event] = []

    def add(what: str, path: bytes, **more: Any) -> None:
        made.append(
            Event(step.sequence, commit.time_ns, commit.host, draft.ino, what, path, **more)
        )

    if touched.is_changed and old is None and new is not None:
        add("created", here, size=None if is_dir else draft.size)
        return made
    if touched.gone or touched.come:
        gone = [rewind.join(*place) for place in touched.gone]
        come = list(draft.come)
        if not draft.has_name:
            add("removed", gone[0] if gone else here, size=None if is_dir else old_size)
            return made
        while gone and come:
            add("renamed", come.pop(), was=gone.pop())
        for path in gone:
            add("unlinked", path, text=f"still there as {show(here)}")
        for path in come:
            add("linked", path)
    if touched.is_changed and old is not None and new is not None:
        if isinstance(new[_VERSION], int) or isinstance(new[_SIZE], int):
            add("contents", here, size=draft.size, old_size=old_size)
        changes = []
        if isinstance(new[_MODE], int):
            changes.append(f"mode {stat.S_IMODE(old[_MODE]):o} to {stat.S_IMODE(new[_MODE]):o}")
        for column, name in ((_UID, "owner"), (_GID, "group")):
            if isinstance(new[column], int):
                changes.append(f"{name} {old[column]} to {new[column]}")
        if (
            not changes
            and not is_dir
            and isinstance(new[_MTIME], int)
            and not any(event.what == "contents" for event in made)
        ):
            changes.append("time")
        if changes:
            add("attributes", here, text=", ".join(changes))
    for attribute, was, is_there in touched.xattrs:
        how = "removed" if not is_there else "changed" if was else "set"
        add("xattr", here, text=f"{show(attribute)} {how}")
    return made


# ---- log ----------------------------------------------------------------------------------------


async def log(volume: Volume, args: Args, progress: Progress) -> Result:
    """args: path ("/" without recursive: the commits themselves), recursive, since, limit."""
    path = clean(str(args.get("path") or "/"))
    limit = _limit(args)
    await _bring_in(volume)
    since = await _since(volume, args.get("since"))
    if path == b"/" and not args.get("recursive"):
        return await _commits(volume, since, limit, progress)
    events: list[Event] = []
    backwards = Backwards(volume, progress, since)
    try:

        def take(event: Event) -> bool:
            events.append(event)
            return len(events) <= limit

        await _path_events(backwards, path, bool(args.get("recursive")), take)
        if not events and backwards.rewind.walk(path) is None:
            raise BadUsage(f"{show(path)}: no such file now, nor as far back as the journal goes")
        return {
            "path": show(path),
            "events": [event.as_json() for event in events[:limit]],
            "more": len(events) > limit,
            "cut_short": backwards.cut_short,
        }
    finally:
        backwards.close()


def _limit(args: Args) -> int:
    """The most lines that are wanted: the answer of a mount must stay below control.LINE_LIMIT."""
    return max(1, min(int(args.get("limit") or MOST), MOST))


async def _bring_in(volume: Volume) -> None:
    """Commit what was done here, if that is possible, so that it is shown."""
    if not volume.settings.read_only and volume.writer.frozen is None:
        await volume.fs.writeback.flush_all()
        await settle(volume)


async def _since(volume: Volume, text: Any) -> int:
    """The first commit that is wanted."""
    if not text:
        return 1
    moment = parse_moment(str(text), 0)
    if moment.sequence is not None:
        return moment.sequence
    try:
        return await volume.history.resolve(str(text)) + 1
    except BadUsage as exc:
        if "the journal begins at" in str(exc):
            return 1
        raise


async def _commits(volume: Volume, since: int, limit: int, progress: Progress) -> Result:
    commits: list[dict[str, Any]] = []
    history = volume.history
    cut_short = more = False
    for sequence in range(volume.replica.sequence, since - 1, -1):
        if len(commits) >= limit:
            more = True
            break
        row: Any = volume.replica.tree.db.execute(
            "SELECT hash, mount, host, time, operations FROM history WHERE seq=? AND time>0",
            (sequence,),
        ).fetchone()
        if row is None:
            try:
                made, commit = await history.commit(sequence)
            except Missing:
                cut_short = True
                break
            row = (made, commit.mount, commit.host, commit.time_ns, commit.operations)
        digest, mount, host, time_ns, operations = row
        commits.append(
            {
                "sequence": sequence,
                "time": time_ns / 1e9,
                "host": host,
                "this": mount == volume.replica.mount,
                "operations": operations,
                "hash": bytes(digest).hex(),
            }
        )
    return {"commits": commits, "more": more, "cut_short": cut_short}


async def _path_events(
    backwards: Backwards, path: bytes, recursive: bool, take: Callable[[Event], bool]
) -> None:
    """Give *take* the events of one path, newest first, through renames, until it returns False.

    recursive: also those of everything below it.
    """
    rewind = backwards.rewind
    leaf = path.rpartition(b"/")[2]
    here = rewind.walk(path)
    tracked = set() if here is None else {here}

    def look(step: Step) -> list[Event]:
        # Whoever had the name before a rename over it, or before it was removed, counts, too.
        before = {ino for _, name, ino, _ in step.names if name == leaf and ino is not None}
        drafts = _drafts(step, None if recursive else tracked | before, rewind)
        tops = _tops(rewind, path, tracked)
        backwards.back(step)
        if step.names:
            was = rewind.walk(path)
            if was is not None:
                tracked.add(was)
            tops |= _tops(rewind, path, tracked)
        events: list[Event] = []
        for draft in drafts:
            if draft.ino in tracked:
                events += _finished(step, draft, rewind)
            elif recursive:
                events += [x for x in _finished(step, draft, rewind) if _is_below(x, tops)]
        events.sort(key=lambda event: (_ORDER.index(event.what), event.path))
        return events

    while (step := await backwards.next()) is not None:
        for event in await backwards.work(step, look):
            if not take(event):
                return


def _tops(rewind: Rewind, path: bytes, tracked: set[int]) -> set[bytes]:
    """Where what is followed lies at this moment, each with a / behind it."""
    found = {b"/" if path == b"/" else path + b"/"}
    for ino in tracked:
        there = rewind.path(ino)
        if there is not None:
            found.add(there + b"/")
    return found


def _is_below(event: Event, tops: set[bytes]) -> bool:
    starts = tuple(tops)
    return event.path.startswith(starts) or (event.was is not None and event.was.startswith(starts))


# ---- undelete -----------------------------------------------------------------------------------


async def undelete(volume: Volume, args: Args, progress: Progress) -> Result:
    """args: path, list (bool), since, limit, to, all.

    Lists what was removed below the path, or, if the path itself is gone, brings it back.
    """
    path = clean(str(args.get("path") or "/"))
    to = clean(str(args["to"])) if args.get("to") else None
    await _bring_in(volume)
    try:
        there = volume.replica.tree.inode(volume.replica.tree.walk(path))
    except Refused:
        there = None
    if args.get("list") or (there is not None and there.is_dir and to is None):
        return await _list_removed(volume, path, args, progress)
    if there is not None and to is None:
        raise AlreadyThere(
            f"{show(path)} exists; to have what was there before, give --to, or restore it with"
            " megafs restore --at"
        )
    sequence = await _removal(volume, path, progress, await _since(volume, args.get("since")))
    return await restoring.restore(volume, path, sequence - 1, to=to, progress=progress)


class Removal(Struct):
    """A file or directory that lost its last name."""

    sequence: int
    time_ns: int
    host: str
    path: bytes
    is_dir: bool
    size: int
    mtime_ns: int
    files: int = 0
    below: bytes | None = None


async def _removals(
    backwards: Backwards,
    path: bytes,
    take: Callable[[Removal], bool],
    changed: Callable[[int, bytes], None],
    watching: Callable[[], bool],
) -> None:
    """Give *take* what was removed at *path* or below, newest first, until it returns False.

    changed: told first, while *watching*, of what a commit made or wrote to: (sequence, path).
    """
    rewind = backwards.rewind
    prefix = b"" if path == b"/" else path

    def look(step: Step) -> list[Removal]:
        if watching():
            for ino, touched in step.inodes.items():
                new = touched.new
                if new is not None and (touched.old is None or isinstance(new[_VERSION], int)):
                    changed(step.sequence, rewind.path(ino) or b"")
        gone = [
            (ino, touched.gone)
            for ino, touched in step.inodes.items()
            if touched.gone and not rewind.places(ino)
        ]
        backwards.back(step)
        found = []
        for ino, places in gone:
            where = rewind.join(*places[0])
            if where == prefix or where.startswith(prefix + b"/"):
                mode, size, mtime = rewind.known(ino)
                is_dir = stat.S_ISDIR(mode)
                found.append(
                    Removal(
                        step.sequence,
                        step.commit.time_ns,
                        step.commit.host,
                        where,
                        is_dir,
                        0 if is_dir else size,
                        mtime,
                    )
                )
        # Of one commit, directories first: what lay in them belongs to them.
        found.sort(key=lambda removal: removal.path)
        return found

    while (step := await backwards.next()) is not None:
        for removal in await backwards.work(step, look):
            if not take(removal):
                return


class _Gathering:
    """Directories that went, each with what went with it, while the journal is read backwards.

    What was removed below one goes with it if there was no longer pause in between, and nothing was
    made or written there meanwhile: then it was one `rm -r`, not two decisions.
    """

    def __init__(self) -> None:
        self._open: dict[bytes, tuple[Removal, list[int]]] = {}

    def watching(self) -> bool:
        """Whether there is a directory to which something might belong."""
        return bool(self._open)

    def changed(self, sequence: int, path: bytes) -> None:
        """Something was made or written to at *path*."""
        for above in _above(path):
            found = self._open.get(above)
            if found is not None and found[0].sequence != sequence:
                del self._open[above]

    def home(self, removal: Removal) -> Removal | None:
        """The removed directory that *removal* went with, the topmost one, or None."""
        for above in _above(removal.path):
            found = self._open.get(above)
            if found is None:
                continue
            top, latest = found
            if latest[0] - removal.time_ns > TOGETHER_NS:
                del self._open[above]
                continue
            latest[0] = removal.time_ns
            return top
        return None

    def add(self, removal: Removal) -> None:
        """A directory went that belongs to no other."""
        self._open[removal.path] = (removal, [removal.time_ns])


def _above(path: bytes) -> list[bytes]:
    """The directories above a path but the root, topmost first."""
    parts = path.split(b"/")
    return [b"/".join(parts[:count]) for count in range(2, len(parts))]


async def _list_removed(volume: Volume, path: bytes, args: Args, progress: Progress) -> Result:
    limit = _limit(args)
    everything = bool(args.get("all"))
    backwards = Backwards(volume, progress, await _since(volume, args.get("since")))
    found: list[Removal] = []
    gathering = _Gathering()
    more = False
    try:

        def take(removal: Removal) -> bool:
            nonlocal more
            home = gathering.home(removal)
            if home is not None:
                home.files += 1
                home.size += removal.size
                removal.below = home.path
                if not everything:
                    return True
            if len(found) >= limit:
                more = True
                return False
            if home is None and removal.is_dir:
                gathering.add(removal)
            found.append(removal)
            return True

        await _removals(backwards, path, take, gathering.changed, gathering.watching)
        cut_short = backwards.cut_short
    finally:
        backwards.close()
    return {
        "path": show(path),
        "removed": [
            {
                "path": show(removal.path),
                "sequence": removal.sequence,
                "time": removal.time_ns / 1e9,
                "host": removal.host,
                "directory": removal.is_dir,
                "size": removal.size,
                "mtime": removal.mtime_ns / 1e9,
                "files": removal.files,
                "with": None if removal.below is None else show(removal.below),
                "exists": _exists(volume, removal.path),
            }
            for removal in found
        ],
        "more": more,
        "cut_short": cut_short,
    }


def _exists(volume: Volume, path: bytes) -> bool:
    try:
        volume.replica.tree.walk(path)
    except Refused:
        return False
    return True


async def _removal(volume: Volume, path: bytes, progress: Progress, since: int) -> int:
    """The commit before which *path* was whole: it, or the first of what lay below, went then."""
    backwards = Backwards(volume, progress, since)
    gathering = _Gathering()
    first: Removal | None = None

    def take(removal: Removal) -> bool:
        nonlocal first
        if first is None:
            if removal.path == path:
                first = removal
                gathering.add(removal)
            return first is None or removal.is_dir
        if removal.path == path:
            return False  # an earlier life of the same path
        if gathering.home(removal) is None:
            return False
        first = removal
        return True

    try:
        await _removals(backwards, path, take, gathering.changed, gathering.watching)
    finally:
        backwards.close()
    if first is None:
        raise BadUsage(
            f"nothing named {show(path)} was removed as far back as the journal goes;"
            " megafs undelete lists what was"
        )
    return first.sequence
