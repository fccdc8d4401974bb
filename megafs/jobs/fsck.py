"""Check a volume: the tree against itself, and what the tree names against the store.

    tree        every name has its inode, link counts, directories and their parents, extents, sums
    packs       every pack that a file needs lies in the store and is long enough (by a listing)
    journal     the commits since the newest checkpoint open, one following the other
    checkpoints every manifest opens, and its parts lie in the store

Contents are not read: that is what scrub does (scrub.py).

The tree is checked on a second connection that sees one moment of what is committed, in a thread; a
mount goes on meanwhile.  Repairs are operations like any other (tree/ops.py, `Mend`): each changes
one row, and only if the row is still what was seen.  Nothing that holds bytes is ever removed: what
no name leads to is put into lost+found.
"""

from __future__ import annotations

import errno as e
import stat
from collections.abc import Callable, Iterator
from typing import Any, Final

import apsw
from msgspec import Struct, field

from megafs import clock
from megafs.chunks.codec import pack_name
from megafs.concurrency import offload
from megafs.crypto.volume_keys import digest
from megafs.errors import Corrupt, Missing, Refused, TooNew
from megafs.jobs.committing import check_writable, commit_all
from megafs.jobs.messages import FsckArgs, FsckProblem, FsckResult
from megafs.journal import checkpoint, commit
from megafs.progress import OnProgress, Progress
from megafs.stores.abilities import uncached
from megafs.stores.base import list_all
from megafs.tree import ops
from megafs.tree.inode import ROOT
from megafs.tree.merge import LOST_FOUND
from megafs.tree.paths import exact, show
from megafs.tree.schema import BY_NAME, DirentRow, ExtentRow, GarbageRow, Ino, InodeRow, XattrRow
from megafs.volume.volume import Volume

#: Exit codes, as fsck(8) has them.
CLEAN: Final = 0
REPAIRED: Final = 1
LEFT: Final = 4

#: An unlinked file that a mount kept open is given up when the mount was not heard of for so long.
ORPHAN_GRACE: Final = 30 * 86400.0
#: Repairing one thing can uncover another.
_ROUNDS: Final = 6
#: Problems of one kind that are described one by one.
_SHOWN: Final = 1000

Row = tuple[Any, ...]


class Problem(Struct):
    """One thing that is wrong.

    mends: rows to put right: (table, old row, new row).
    adopt: an inode to put into lost+found; negative: one to forget, that nobody has open any more.
    Without either it cannot be repaired here.
    """

    kind: str
    text: str
    mends: list[tuple[str, Row | None, Row | None]] = field(default_factory=list)
    adopt: int = 0
    path: bytes = b""
    start: int | None = None
    end: int | None = None

    @property
    def can_mend(self) -> bool:
        return bool(self.mends or self.adopt)

    def shown(self) -> FsckProblem:
        """For the answer."""
        return FsckProblem(
            self.kind,
            self.text,
            self.can_mend,
            show(self.path),
            self.start,
            self.end,
            exact(self.path),
        )


async def fsck(volume: Volume, args: FsckArgs, on_progress: OnProgress) -> FsckResult:
    """Check the volume, and repair it if that is asked for."""
    repair = args.repair
    if repair:
        check_writable(volume, "repairing")
    found: list[Problem] = []
    repaired = [Problem("fork", text) for text in volume.settled]
    volume.settled = []
    notes: list[str] = []
    for _ in range(_ROUNDS):
        on_progress(Progress(0, 0, "checking the tree"))
        found = await _tree_problems(volume)
        if not repair or not any(problem.can_mend for problem in found):
            break
        done = await _repair(volume, found)
        repaired.extend(done)
        if not done:
            break
    found.extend(_usage_problems(volume, repair, repaired))
    if args.store:
        found.extend(await _pack_problems(volume, on_progress))
        found.extend(await _checkpoint_problems(volume, on_progress, notes))
        found.extend(await _journal_problems(volume, on_progress, notes))
    code = LEFT if found else REPAIRED if repaired else CLEAN
    tree = volume.replica.tree
    text = f"{tree.files} inodes, {tree.used} bytes, commit {volume.replica.sequence}: " + (
        "clean" if code == CLEAN else f"{len(repaired)} problems repaired, {len(found)} left"
    )
    return FsckResult(
        exit_code=code,
        text=text,
        files=tree.files,
        used_bytes=tree.used,
        sequence=volume.replica.sequence,
        problems=[problem.shown() for problem in found[:_SHOWN]],
        problem_count=len(found),
        repaired=[problem.shown() for problem in repaired[:_SHOWN]],
        repaired_count=len(repaired),
        notes=notes,
    )


# ---- the tree ----------------------------------------------------------------------------------


async def _tree_problems(volume: Volume) -> list[Problem]:
    alive = _mounts_heard_of(volume)
    reader = volume.replica.committed_reader()
    try:
        return await offload(check_tree, reader, volume.params.chunk_size, alive)
    finally:
        reader.close()


def _mounts_heard_of(volume: Volume) -> set[int]:
    """The mounts that may still hold an unlinked file open."""
    since = clock.now_ns() - int(ORPHAN_GRACE * 1e9)
    replica = volume.replica
    alive = {replica.mount}
    for mount, (beat, _) in volume.heartbeats.others.items():
        if beat.time_ns > since:
            alive.add(mount)
    for (mount,) in replica.db.execute("SELECT DISTINCT mount FROM history WHERE time>?", (since,)):
        alive.add(mount)
    return alive


def check_tree(db: apsw.Connection, longest: int, alive: set[int]) -> list[Problem]:
    """Everything that is wrong with the rows of a tree.  Blocks: for a thread.

    alive: mounts whose unlinked open files are to be kept.
    """
    found: list[Problem] = []
    for check in (_names, _links, _directories, _unreachable, _others):
        found.extend(check(db))
    found.extend(_extents(db, longest))
    found.extend(_orphans(db, alive))
    return found


def _select(table: str, alias: str = "") -> str:
    """The columns of a table, for rows that `Mend` takes."""
    before = alias + "." if alias else ""
    return ", ".join(before + column for column in BY_NAME[table].columns)


_INODES: Final = _select("inodes", "i")
_TYPE: Final = 0o170000
_DIR: Final = f"(i.mode & {_TYPE}) = {stat.S_IFDIR}"


def _rows(db: apsw.Connection, sql: str, *args: Any) -> list[Any]:
    return db.execute(sql, args).fetchall()


def _names(db: apsw.Connection) -> Iterator[Problem]:
    """Names of nothing, and names in nothing."""
    for columns in db.execute(
        f"SELECT {_select('dirents', 'd')} FROM dirents d"
        " LEFT JOIN inodes i ON i.ino = d.ino WHERE i.ino IS NULL"
    ):
        entry = DirentRow._make(columns)
        yield Problem(
            "name-of-nothing",
            f"the name {show(entry.name)} in directory {entry.parent} stands for inode"
            f" {entry.ino}, which is not there",
            [("dirents", entry, None)],
            path=_path(db, entry.parent, entry.name),
        )
    for columns in db.execute(
        f"SELECT {_select('dirents', 'd')} FROM dirents d"
        f" LEFT JOIN inodes i ON i.ino = d.parent WHERE i.ino IS NULL OR NOT {_DIR}"
    ):
        entry = DirentRow._make(columns)
        yield Problem(
            "name-in-nothing",
            f"the name {show(entry.name)} (inode {entry.ino}) lies in {entry.parent}, which is no"
            " directory",
            [("dirents", entry, None)],
        )


def _links(db: apsw.Connection) -> Iterator[Problem]:
    """Link counts of everything but directories; files that no name leads to."""
    for *columns, names, kept in db.execute(
        f"SELECT {_INODES}, (SELECT count(*) FROM dirents d WHERE d.ino = i.ino) AS names,"
        " (SELECT count(*) FROM orphans o WHERE o.ino = i.ino) AS kept"
        f" FROM inodes i WHERE NOT {_DIR} AND (i.nlink <> names OR (names = 0) <> (kept > 0))"
    ):
        inode = InodeRow._make(columns)
        ino, nlink = inode.ino, inode.nlink
        if names == 0 and (nlink or not kept):
            yield Problem(
                "lost",
                f"inode {ino} ({_kind(inode.mode)}, {inode.size} bytes) has no name",
                adopt=ino,
            )
        elif nlink != names:
            yield Problem(
                "link-count",
                f"inode {ino} has {names} names, and {nlink} are recorded",
                [("inodes", inode, inode._replace(nlink=names))],
                path=_path_of(db, ino),
            )


def _directories(db: apsw.Connection) -> Iterator[Problem]:
    """Directories: one name, the right parent, as many links as they have subdirectories."""
    if db.execute(f"SELECT 1 FROM inodes i WHERE i.ino=? AND {_DIR}", (ROOT,)).fetchone() is None:
        yield Problem("no-root", "there is no root directory")
    children: dict[int, int] = dict(
        _rows(
            db,
            "SELECT d.parent, count(*) FROM dirents d JOIN inodes i ON i.ino = d.ino"
            f" WHERE {_DIR} GROUP BY d.parent",
        )
    )
    for columns in db.execute(f"SELECT {_INODES} FROM inodes i WHERE {_DIR}"):
        inode = InodeRow._make(columns)
        ino, nlink, parent = inode.ino, inode.nlink, inode.parent
        sql = f"SELECT {_select('dirents')} FROM dirents WHERE ino=? ORDER BY parent, name"
        entries = [DirentRow._make(row) for row in db.execute(sql, (ino,))]
        right = parent
        if ino == ROOT:
            right = Ino(ROOT)
            for entry in entries:
                yield Problem(
                    "root-named",
                    f"{show(entry.name)} in directory {entry.parent} stands for the root directory",
                    [("dirents", entry, None)],
                )
        elif not entries:
            yield Problem("lost", f"directory {ino} has no name", adopt=ino)
            continue
        else:
            kept = next((entry for entry in entries if entry.parent == parent), entries[0])
            right = kept.parent
            for entry in entries:
                if entry is not kept:
                    yield Problem(
                        "two-names",
                        f"directory {ino} has a second name, {show(entry.name)} in {entry.parent}",
                        [("dirents", entry, None)],
                        path=_path(db, entry.parent, entry.name),
                    )
        links = 2 + children.get(ino, 0)
        if nlink != links or parent != right:
            yield Problem(
                "directory",
                f"directory {ino}: {nlink} links and parent {parent} are recorded, {links} and"
                f" {right} is right",
                [("inodes", inode, inode._replace(nlink=links, parent=right))],
                path=_path_of(db, ino),
            )


def _unreachable(db: apsw.Connection) -> Iterator[Problem]:
    """Directories that lie inside themselves: nothing leads there from the root."""
    above: dict[int, int] = dict(
        _rows(
            db,
            f"SELECT d.ino, min(d.parent) FROM dirents d JOIN inodes i ON i.ino = d.ino"
            f" WHERE {_DIR} GROUP BY d.ino",
        )
    )
    good = {ROOT}
    for first in above:
        trail: dict[int, None] = {}
        at = first
        while at not in good and at in above and at not in trail:
            trail[at] = None
            at = above[at]
        if at in trail:  # a circle: cut it once, at its lowest number
            circle = list(trail)[list(trail).index(at) :]
            cut = min(circle)
            row = db.execute(
                f"SELECT {_select('dirents')} FROM dirents WHERE ino=? AND parent=?",
                (cut, above[cut]),
            ).fetchone()
            yield Problem(
                "circle",
                f"directory {cut} lies inside itself ({len(circle)} directories are cut off)",
                [("dirents", row, None)],
            )
        good.update(trail)


def _extents(db: apsw.Connection, longest: int) -> Iterator[Problem]:
    """Extents: within the file, apart, no more than their chunk holds, in a pack that is known."""
    columns = _select("extents", "x")
    for row in db.execute(
        f"SELECT {columns} FROM extents x LEFT JOIN inodes i ON i.ino = x.ino WHERE i.ino IS NULL"
    ):
        extent = ExtentRow._make(row)
        yield Problem(
            "extent-of-nothing",
            f"contents of inode {extent.ino}, which is not there",
            [("extents", extent, None)],
        )
    for row in db.execute(
        f"SELECT {columns} FROM extents x LEFT JOIN packs p ON p.pack = x.pack"
        " WHERE x.pack > 0 AND p.pack IS NULL"
    ):
        extent = ExtentRow._make(row)
        yield _extent_problem(
            db, "unknown-pack", extent, f"named in pack {extent.pack}, which no commit recorded"
        )
    for row in db.execute(
        f"SELECT {columns} FROM extents x WHERE length <= 0 OR length > ? OR skip < 0"
        " OR skip + length > plain OR start < 0 OR (pack = 0) <> (data IS NOT NULL)"
        " OR (pack = 0 AND length(data) < plain)"
        " OR (pack > 0 AND (digest IS NULL OR length(digest) <> 32 OR sealed <= 0 OR offset < 0))",
        (longest,),
    ):
        yield _extent_problem(db, "extent", ExtentRow._make(row), "an extent that cannot be")
    for row in db.execute(
        "SELECT ino, start, prev_end, prev_start FROM (SELECT ino, start,"
        " lag(start + length) OVER (PARTITION BY ino ORDER BY start) AS prev_end,"
        " lag(start) OVER (PARTITION BY ino ORDER BY start) AS prev_start FROM extents)"
        " WHERE prev_end > start"
    ):
        ino, start, _, prev_start = row
        found = db.execute(
            f"SELECT {_select('extents')} FROM extents WHERE ino=? AND start=?", (ino, prev_start)
        ).fetchone()
        assert found is not None
        before = ExtentRow._make(found)
        yield Problem(
            "overlap",
            f"inode {ino}: two extents hold byte {start}",
            [("extents", before, before._replace(length=start - prev_start))],
            path=_path_of(db, ino),
            start=start,
            end=before.start + before.length,
        )
    for *row, size in db.execute(
        f"SELECT {columns}, i.size FROM extents x JOIN inodes i ON i.ino = x.ino"
        " WHERE x.start + x.length > i.size"
    ):
        extent = ExtentRow._make(row)
        left = size - extent.start
        new = extent._replace(length=left) if left > 0 else None
        yield Problem(
            "beyond-end",
            f"inode {extent.ino}: an extent ends at {extent.start + extent.length}, the file at"
            f" {size}",
            [("extents", extent, new)],
            path=_path_of(db, extent.ino),
        )
    for *row, total in db.execute(
        f"SELECT {_INODES}, coalesce((SELECT sum(length) FROM extents x WHERE x.ino = i.ino), 0)"
        " AS total FROM inodes i WHERE i.blocks <> total"
    ):
        inode = InodeRow._make(row)
        yield Problem(
            "blocks",
            f"inode {inode.ino}: {inode.blocks} bytes are recorded as allocated, {total} are",
            [("inodes", inode, inode._replace(blocks=total))],
            path=_path_of(db, inode.ino),
        )


def _extent_problem(db: apsw.Connection, kind: str, extent: ExtentRow, text: str) -> Problem:
    path = _path_of(db, extent.ino)
    end = extent.start + extent.length
    return Problem(
        kind,
        f"{show(path) or f'inode {extent.ino}'}, bytes {extent.start} to {end - 1}: {text}",
        path=path,
        start=extent.start,
        end=end,
    )


def _orphans(db: apsw.Connection, alive: set[int]) -> Iterator[Problem]:
    """Unlinked files that somebody has open."""
    for ino, mount, nlink in db.execute(
        "SELECT o.ino, o.mount, i.nlink FROM orphans o LEFT JOIN inodes i ON i.ino = o.ino"
    ):
        if nlink is None or nlink > 0:
            yield Problem(
                "orphan",
                f"inode {ino} is recorded as unlinked and open, "
                + ("but is not there" if nlink is None else f"but has {nlink} names"),
                [("orphans", (ino, mount), None)],
            )
        elif mount not in alive:
            yield Problem(
                "old-orphan",
                f"inode {ino} was unlinked and kept open by mount {mount:x}, which has not been"
                f" heard of for {ORPHAN_GRACE / 86400:g} days",
                adopt=-ino,
            )


def _others(db: apsw.Connection) -> Iterator[Problem]:
    for row in db.execute(
        f"SELECT {_select('xattrs', 'x')} FROM xattrs x LEFT JOIN inodes i ON i.ino = x.ino"
        " WHERE i.ino IS NULL"
    ):
        xattr = XattrRow._make(row)
        yield Problem(
            "xattr-of-nothing",
            f"an attribute of inode {xattr.ino}, which is not there",
            [("xattrs", xattr, None)],
        )
    for row in db.execute(
        "SELECT g.pack, g.since FROM garbage g LEFT JOIN packs p ON p.pack = g.pack"
        " WHERE p.pack IS NULL"
    ):
        mark = GarbageRow._make(row)
        yield Problem(
            "mark", f"a mark on pack {mark.pack}, which is not there", [("garbage", mark, None)]
        )
    for row in db.execute(
        f"SELECT {_INODES} FROM inodes i WHERE size < 0 OR blocks < 0 OR nlink < 0"
        f" OR ((mode & {_TYPE}) = {stat.S_IFLNK}) <> (target IS NOT NULL)"
    ):
        ino = InodeRow._make(row).ino
        yield Problem("inode", f"inode {ino} cannot be as it is", path=_path_of(db, ino))


def _usage_problems(volume: Volume, repair: bool, repaired: list[Problem]) -> list[Problem]:
    """This machine's running sums; no other machine has them, so no operation mends them."""
    tree = volume.replica.tree
    counted = (tree.used, tree.files)
    tree.recount()
    if (tree.used, tree.files) == counted:
        return []
    problem = Problem(
        "usage",
        f"{counted[0]} bytes in {counted[1]} inodes were counted here, there are {tree.used} in"
        f" {tree.files}",
    )
    if repair:
        repaired.append(problem)
        return []
    right = (tree.used, tree.files)
    tree.used, tree.files = counted
    assert right != counted
    return [problem]


# ---- repairing ---------------------------------------------------------------------------------


async def _repair(volume: Volume, found: list[Problem]) -> list[Problem]:
    """Do what can be done; returns what was."""
    done: list[Problem] = []
    changed: set[tuple[str, Row]] = set()
    made: list[ops.Operation] = []

    def record(operation: ops.Operation) -> None:
        volume.replica.record(operation)
        made.append(operation)

    for problem in found:
        if not problem.can_mend:
            continue
        keys = {
            (table, tuple((old or new or ())[: BY_NAME[table].key]))
            for table, old, new in problem.mends
        }
        if keys & changed:
            continue  # the row is another one now: next round
        try:
            for table, old, new in problem.mends:
                record(ops.Mend(table, old, new))
            if problem.adopt > 0:
                _adopt(volume, problem.adopt, record)
            elif problem.adopt < 0:
                record(ops.Reap(-problem.adopt))
        except Refused:
            continue  # changed meanwhile, by the mount's own work
        changed |= keys
        done.append(problem)
    if made:
        await commit_all(volume)
    return done


def _adopt(volume: Volume, ino: int, record: Callable[[ops.Operation], None]) -> None:
    """Give an inode without a name one in lost+found."""
    replica, tree = volume.replica, volume.replica.tree
    db = replica.db
    inode = _inode(db, ino)
    if inode is None or tree.names_of(ino):
        raise Refused(e.ESTALE)
    home = tree.child(ROOT, LOST_FOUND)
    if home is None:
        home = replica.number()
        root = tree.inode(ROOT)
        record(
            ops.Create(
                ROOT,
                LOST_FOUND,
                home,
                replica.number(),
                stat.S_IFDIR | 0o700,
                root.uid,
                root.gid,
                0,
                clock.now_ns(),
            )
        )
    tree.directory(home)
    is_dir = stat.S_ISDIR(inode.mode)
    name = f"{'directory' if is_dir else 'file'}-{ino}".encode()
    if tree.child(home, name) is not None:
        raise Refused(e.EEXIST)
    if is_dir:
        new = inode._replace(parent=Ino(home))
        above = _inode(db, home)
        assert above is not None
        record(ops.Mend("inodes", above, above._replace(nlink=above.nlink + 1)))
    else:
        new = inode._replace(nlink=1)
    if new != inode:
        record(ops.Mend("inodes", inode, new))
    record(ops.Mend("dirents", None, (home, name, ino, replica.number())))
    orphan = db.execute("SELECT ino, mount FROM orphans WHERE ino=?", (ino,)).fetchone()
    if orphan is not None:
        record(ops.Mend("orphans", orphan, None))


def _inode(db: apsw.Connection, ino: int) -> InodeRow | None:
    row = db.execute(f"SELECT {_INODES} FROM inodes i WHERE ino=?", (ino,)).fetchone()
    return None if row is None else InodeRow._make(row)


# ---- the store ---------------------------------------------------------------------------------


async def _pack_problems(volume: Volume, on_progress: OnProgress) -> list[Problem]:
    """Packs that files need and the store does not have, or not whole."""
    reader = volume.replica.committed_reader()
    try:
        needed = await offload(_needed_packs, reader)
    finally:
        reader.close()  # not held open during a long listing: the replica's log would only grow
    sizes: dict[str, int] = {}
    async for page in list_all(uncached(volume.store), "packs/"):
        for entry in page.entries:
            if entry.name in needed:
                sizes[entry.name] = entry.size
        on_progress(Progress(len(sizes), len(needed), "looking for the packs of files"))
    bad = [
        (name, number, size, sizes.get(name))
        for name, (number, size) in needed.items()
        if sizes.get(name, -1) < size
    ]
    if not bad:
        return []
    reader = volume.replica.committed_reader()
    try:
        return await offload(_files_of_packs, reader, bad)
    finally:
        reader.close()


def _needed_packs(db: apsw.Connection) -> dict[str, tuple[int, int]]:
    """By object name, of every pack that a file names: its number, and how long it must be."""
    return {
        pack_name(name): (number, size)
        for number, name, size in db.execute(
            "SELECT p.pack, p.name, x.size FROM packs p JOIN (SELECT pack, max(offset + sealed) AS"
            " size FROM extents WHERE pack > 0 GROUP BY pack) x ON x.pack = p.pack"
        )
    }


def _files_of_packs(
    db: apsw.Connection, bad: list[tuple[str, int, int, int | None]]
) -> list[Problem]:
    found = []
    for name, number, _, size in bad:
        for ino, start, length in db.execute(
            "SELECT ino, start, length FROM extents WHERE pack=? AND pack>0 AND offset+sealed>?"
            " ORDER BY ino, start",
            (number, size if size is not None else -1),
        ):
            path = _path_of(db, ino)
            what = "is not in the store" if size is None else f"has only {size} bytes"
            found.append(
                Problem(
                    "missing-pack" if size is None else "short-pack",
                    f"{show(path) or f'inode {ino}'}, bytes {start} to {start + length - 1}: {name}"
                    f" {what}",
                    path=path,
                    start=start,
                    end=start + length,
                )
            )
    return found


async def _checkpoint_problems(
    volume: Volume, on_progress: OnProgress, notes: list[str]
) -> list[Problem]:
    """Manifests that do not open, and parts that are not there."""
    store = uncached(volume.store)
    found: list[Problem] = []
    sizes: dict[str, int] = {}
    async for page in list_all(store, "checkpoints/"):
        sizes.update((entry.name, entry.size) for entry in page.entries)
    numbers = await checkpoint.newest(store)
    good = 0
    for done, sequence in enumerate(numbers):
        on_progress(Progress(done, len(numbers), "reading checkpoints"))
        try:
            manifest = await checkpoint.read_manifest(store, volume.keyring, sequence)
        except Missing:
            continue  # removed by gc since the listing
        except (Corrupt, TooNew) as exc:
            found.append(Problem("checkpoint", f"checkpoint {sequence} does not open: {exc}"))
            continue
        known = volume.replica.hash_at(sequence)
        if known is not None and known != manifest.head:
            found.append(Problem("checkpoint", f"checkpoint {sequence} is of another history"))
        missing = [
            part.object
            for parts in manifest.tables.values()
            for part in parts
            if sizes.get(part.object) != part.size
        ]
        if missing:
            found.append(
                Problem(
                    "checkpoint",
                    f"checkpoint {sequence} is not whole: {len(missing)} parts are missing or of"
                    f" another size, for example {missing[0]}",
                )
            )
        else:
            good += 1
    notes.append(f"{good} checkpoints are whole")
    return found


async def _journal_problems(
    volume: Volume, on_progress: OnProgress, notes: list[str]
) -> list[Problem]:
    """The commits since the newest checkpoint, each of which must follow the one before."""
    store = uncached(volume.store)
    last = volume.replica.sequence
    manifest = None
    try:
        manifest = await checkpoint.find_usable(store, volume.keyring, last)
    except Corrupt:
        pass  # reported already
    first = manifest.sequence if manifest is not None else 0
    hash_before = manifest.head if manifest is not None else commit.genesis(volume.fsid)
    found: list[Problem] = []
    for sequence in range(first + 1, last + 1):
        if sequence % 16 == 0:
            on_progress(Progress(sequence - first, last - first, "reading the journal"))
        name = commit.object_name(sequence)
        try:
            data = await store.get(name, 0, commit.MAX_OBJECT)
            opened = commit.open_commit(volume.keyring, sequence, data)
        except (Corrupt, Missing, TooNew) as exc:
            found.append(Problem("commit", f"{name}: {exc}"))
            hash_before = b""
            continue
        if hash_before and opened.prev != hash_before:
            found.append(Problem("commit", f"{name} does not follow the commit before it"))
        hash_before = digest(data)
        known = volume.replica.hash_at(sequence)
        if known is not None and known != hash_before:
            found.append(Problem("commit", f"{name} is not the one that was applied here"))
    if not found and last > first:
        notes.append(f"commits {first + 1} to {last} follow one another")
    return found


# ---- words -------------------------------------------------------------------------------------


def _path_of(db: apsw.Connection, ino: int) -> bytes:
    """A path of an inode, or b"" if the root is not above it."""
    row = db.execute("SELECT parent, name FROM dirents WHERE ino=? LIMIT 1", (ino,)).fetchone()
    return b"" if row is None else _path(db, *row)


def _path(db: apsw.Connection, parent: int, name: bytes) -> bytes:
    parts = [name]
    seen: set[int] = set()
    while parent != ROOT:
        row = db.execute(
            "SELECT parent, name FROM dirents WHERE ino=? LIMIT 1", (parent,)
        ).fetchone()
        if row is None or parent in seen:
            return b""
        seen.add(parent)
        parent, name = row
        parts.append(name)
    return b"/" + b"/".join(reversed(parts))


def _kind(mode: int) -> str:
    return {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "directory",
        stat.S_IFLNK: "symbolic link",
        stat.S_IFIFO: "fifo",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
    }.get(stat.S_IFMT(mode), "unknown")
