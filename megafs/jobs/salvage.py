"""Get out of a damaged store what can still be read and verified.  Writes nothing to the store.

    keys       the newest key header that opens, or the copy that this machine keeps
    tree       the newest checkpoint that is whole, and the commits after it as far as they go on;
               without one, the journal from its beginning; without that, what is left of the newest
               checkpoint that opens
    files      exported with modes, owners, times, links, attributes; only what verifies

Bytes that cannot be had are left as a hole, and the report names the file and the range.  Files
without a name go to `lost+found`, and the report names them too.  Nothing unverified is written
out.  The tree lies in a scratch database (sealed, without a name) while this runs.

The report is JSON, beside the exported directory: `salvage-report.json`.
"""

from __future__ import annotations

import errno as e
import json
import logging
import os
import stat
from collections import deque
from functools import partial
from pathlib import Path
from typing import Final

import apsw
import trio
from msgspec import Struct, field
from msgspec.structs import asdict, replace

from megafs.chunks import codec as chunk_format
from megafs.chunks import ranges
from megafs.concurrency import offload
from megafs.config import Settings
from megafs.crypto.volume_keys import Keyring, digest
from megafs.durable import replace_file
from megafs.errors import (
    AlreadyThere,
    BadUsage,
    Corrupt,
    Full,
    MegafsError,
    Missing,
    NotAVolume,
    Refused,
    StoreError,
    TooNew,
)
from megafs.history.scratch import scratch
from megafs.jobs.messages import Damage, SalvageResult, as_message
from megafs.journal import checkpoint
from megafs.journal import commit as commit_format
from megafs.journal.checkpoint import Manifest
from megafs.journal.commit import Commit, unpack_changeset
from megafs.private_files import check_directory, make_directories, read_private
from megafs.progress import OnProgress, Progress, ignore
from megafs.stores.base import ObjectStore
from megafs.tree import queries_inodes, rebuild
from megafs.tree.inode import ROOT, Inode
from megafs.tree.paths import exact, show
from megafs.tree.schema import REPLICATED
from megafs.tree.tree import Extent, Tree
from megafs.volume import header as headers
from megafs.volume import header_store, isolated_unlock
from megafs.volume.header import Credential, Unlocked
from megafs.volume.state_directory import HEADER, directory_of, remembered_fsid

log = logging.getLogger(__name__)

# What SQLite raises for rows that no megafs writes.
_MISFITS = (apsw.ConstraintError, apsw.MismatchError, apsw.SQLError, OverflowError)

#: Exit codes.
WHOLE: Final = 0
DAMAGED: Final = 4

REPORT: Final = "salvage-report.json"
_LOST: Final = b"lost+found"
#: Files that are read side by side.
_WORKERS: Final = 4
_RANGE: Final = 4 << 20
_GAP: Final = 64 << 10


class SalvageReport(Struct):
    """The outcome of a salvage.

    damaged: bytes of files that could not be had.  lost: files without a
    name, as they are called in lost+found.  problems: what was wrong besides.
    """

    header: str = ""
    checkpoint: int = 0
    sequence: int = 0
    stopped: str = ""
    partial: bool = False
    files: int = 0
    directories: int = 0
    others: int = 0
    bytes: int = 0
    damaged: list[Damage] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def result(self) -> SalvageResult:
        """For --json and for the file beside the exported directory."""
        bad = bool(self.damaged or self.problems or self.lost or self.stopped or self.partial)
        text = (
            f"{self.files} files ({self.bytes} bytes), {self.directories} directories and"
            f" {self.others} others exported, as of commit {self.sequence}"
        )
        if self.damaged:
            files = len({damage.path for damage in self.damaged})
            text += f"; {len(self.damaged)} places in {files} files could not be had"
        if self.stopped:
            text += f"; the journal could be followed no further: {self.stopped}"
        return SalvageResult(exit_code=DAMAGED if bad else WHOLE, text=text, **asdict(self))


async def salvage(
    store: ObjectStore,
    url: str,
    credential: Credential,
    settings: Settings,
    to: Path,
    *,
    at: int | None = None,
    on_progress: OnProgress = ignore,
) -> SalvageResult:
    """Export the volume in *store* to the new directory *to*; return the report.

    at: the tree as of that commit instead of the newest one.
    """
    _check_target(to)
    report = SalvageReport()
    unlocked = await unlock(store, url, credential, settings, report)
    db = await offload(scratch, settings.cache_dir / "salvage", 64 << 10)
    try:
        tree = await find_tree(store, unlocked, db, at, report, on_progress)
        export = _Export(store, unlocked.keyring, tree, to, report, on_progress)
        await export.run()
    finally:
        db.close()
    result = report.result()
    path = to.parent / REPORT
    await offload(_write_report, path, result, kind="disk")
    return replace(result, report=str(path), to=str(to))


def _check_target(to: Path) -> None:
    try:
        make_directories(to)
        check_directory(to, instead="choose another with --to")
        if any(to.iterdir()):
            raise AlreadyThere(f"{to} is not empty: choose a new directory")
    except NotADirectoryError as exc:
        raise BadUsage(f"{to} is not a directory") from exc
    except OSError as exc:
        raise BadUsage(f"{to}: {exc.strerror}") from exc


def _write_report(path: Path, result: SalvageResult) -> None:
    # For the owner alone: it names files.
    replace_file(path, json.dumps(as_message(result), indent=2).encode() + b"\n")


# ---- the keys ----------------------------------------------------------------------------------


async def unlock(
    store: ObjectStore,
    url: str,
    credential: Credential,
    settings: Settings,
    report: SalvageReport,
) -> Unlocked:
    """Open the newest key header that opens, wherever it is."""
    why: MegafsError | None = None
    found: list[tuple[str, bytes]] = []
    try:
        page = await store.list(header_store.PREFIX)
        names = [n.name for n in page.entries if headers.generation_of(n.name) is not None]
        for name in reversed(names):
            try:
                found.append((name, await store.get(name, 0, headers.SIZE_LIMIT + 1)))
            except Missing:
                continue
    except StoreError as exc:
        why = exc
    fsid = remembered_fsid(settings.state_dir, url)
    if fsid is not None:
        path = directory_of(settings.state_dir, fsid) / HEADER
        try:
            found.append((str(path), read_private(path)))
        except OSError:
            pass
    for name, data in found:
        try:
            unlocked = await isolated_unlock.unlock(headers.parse_copy(data, name), credential)
        except (Corrupt, NotAVolume, TooNew) as exc:
            report.problems.append(f"{name}: {exc}")
            why = exc
            continue
        report.header = name
        return unlocked
    if why is not None:
        raise why
    raise NotAVolume("there is no key header: without a copy of one nobody can open the volume")


# ---- the tree ----------------------------------------------------------------------------------


async def find_tree(
    store: ObjectStore,
    unlocked: Unlocked,
    db: apsw.Connection,
    at: int | None,
    report: SalvageReport,
    on_progress: OnProgress,
) -> Tree:
    """The newest tree that can be had, in *db*."""
    keyring = unlocked.keyring
    manifests: list[Manifest] = []
    for sequence in await checkpoint.newest(store):
        if at is not None and sequence > at:
            continue
        try:
            manifests.append(await checkpoint.read_manifest(store, keyring, sequence))
        except (Corrupt, Missing, TooNew) as exc:
            report.problems.append(f"checkpoint {sequence}: {exc}")
    await offload(rebuild.create_tables, db)
    for manifest in manifests:
        problems = await _load(store, keyring, db, manifest, on_progress)
        if not problems:
            report.checkpoint = manifest.sequence
            await _replay(
                store,
                keyring,
                db,
                manifest.sequence,
                manifest.head,
                at,
                report,
                on_progress,
                epoch=manifest.epoch,
            )
            return await _finished(db, unlocked)
        report.problems.extend(problems)
        await offload(rebuild.delete_rows, db)
    # No checkpoint is whole: perhaps the journal is, from its beginning.
    stopped_before = len(report.problems)
    genesis = commit_format.genesis(keyring.fsid)
    await _replay(store, keyring, db, 0, genesis, at, report, on_progress)
    newest = manifests[0].sequence if manifests else 0
    if report.sequence >= newest and report.sequence:
        return await _finished(db, unlocked)
    if not manifests:
        if report.sequence:
            return await _finished(db, unlocked)
        raise Corrupt(
            "neither a checkpoint nor the first commit can be read: there is no tree to export"
        )
    # What is left of the newest checkpoint says more than a journal that ends before it.
    del report.problems[stopped_before:]
    await offload(rebuild.delete_rows, db)
    await _load(store, keyring, db, manifests[0], on_progress)
    report.partial = True
    report.checkpoint = report.sequence = manifests[0].sequence
    await _replay(
        store,
        keyring,
        db,
        manifests[0].sequence,
        manifests[0].head,
        at,
        report,
        on_progress,
        lenient=True,
        epoch=manifests[0].epoch,
    )
    return await _finished(db, unlocked)


async def _finished(db: apsw.Connection, unlocked: Unlocked) -> Tree:
    def finish() -> Tree:
        rebuild.create_indexes(db)
        return Tree(db, unlocked.header.parameters.chunk_size)

    return await offload(finish)


async def _load(
    store: ObjectStore,
    keyring: Keyring,
    db: apsw.Connection,
    manifest: Manifest,
    on_progress: OnProgress,
) -> list[str]:
    """Fill the tables from a checkpoint; returns what could not be read."""
    problems = []
    wanted = [(table, part) for table in REPLICATED for part in manifest.tables.get(table.name, ())]
    for done, (table, part) in enumerate(wanted):
        on_progress(Progress(done, len(wanted), f"checkpoint {manifest.sequence}"))
        try:
            rows = await checkpoint.read_part(store, keyring, part)
            checkpoint.check_rows(table, rows)
            await offload(partial(rebuild.insert_rows, db, table.name, rows, skip_known=True))
        except (Corrupt, Missing, TooNew, *_MISFITS) as exc:
            problems.append(
                f"checkpoint {manifest.sequence}: {part.rows} rows of {table.name} are lost: {exc}"
            )
    return problems


async def _replay(
    store: ObjectStore,
    keyring: Keyring,
    db: apsw.Connection,
    sequence: int,
    head: bytes,
    at: int | None,
    report: SalvageReport,
    on_progress: OnProgress,
    lenient: bool = False,
    epoch: int = 0,
) -> None:
    """Apply the commits after *sequence*, as long as each follows the one before it.

    lenient: onto a tree with holes; changes of rows that are not there are left out.
    epoch: that of the checkpoint; no commit of an earlier one may follow.
    """
    report.sequence, report.stopped = sequence, ""
    while at is None or sequence < at:
        name = commit_format.object_name(sequence + 1)
        try:
            data = await store.get(name, 0, commit_format.MAX_OBJECT + 1)
        except Missing:
            later = await store.list("commits/", name, 1)
            if later.entries:
                report.stopped = f"{name} is missing although {later.entries[0].name} is there"
            return
        try:
            commit = commit_format.open_commit(keyring, sequence + 1, data)
            if commit.prev != head:
                raise Corrupt(f"{name} does not follow the commit before it")
            if commit_format.epoch_of(data) < epoch:
                raise Corrupt(f"{name} is of an earlier epoch than the commit before it")
            epoch = commit_format.epoch_of(data)
            await offload(_apply, db, sequence + 1, commit, lenient)
        except (Corrupt, TooNew) as exc:
            report.stopped = str(exc)
            return
        sequence, head = sequence + 1, digest(data)
        report.sequence = sequence
        if sequence % 16 == 0:
            on_progress(Progress(sequence, 0, "commits"))


def _apply(db: apsw.Connection, sequence: int, commit: Commit, lenient: bool) -> None:
    rebuild.apply_changesets(db, [(sequence, unpack_changeset(commit))], lenient=lenient)


# ---- the files ---------------------------------------------------------------------------------


class _Export:
    """Writes a tree to a directory."""

    def __init__(
        self,
        store: ObjectStore,
        keyring: Keyring,
        tree: Tree,
        to: Path,
        report: SalvageReport,
        on_progress: OnProgress,
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._tree = tree
        self._to = os.fsencode(to)
        self._report = report
        self._on_progress = on_progress
        self._done: dict[int, bytes] = {}
        self._directories: list[tuple[bytes, Inode]] = []
        self._files: deque[tuple[bytes, Inode]] = deque()
        self._total = 0
        self._plain: set[str] = set()

    async def run(self) -> None:
        root = self._tree.find(ROOT)
        if root is not None:
            self._directories.append((self._to, root))
            await self._names(self._to, ROOT)
        else:
            self._report.problems.append("there is no root directory: all files are in lost+found")
        await self._nameless()
        self._total = len(self._files)
        async with trio.open_nursery() as nursery:
            for _ in range(_WORKERS):
                nursery.start_soon(self._worker)
        # Last and from the leaves up, so that writing into them does not change their times.
        for path, inode in reversed(self._directories):
            self._dress(path, inode)
        self._report.directories = len(self._directories)

    async def _names(self, above: bytes, directory: int) -> None:
        """Make everything below a directory, files still empty."""
        waiting = [(above, directory)]
        while waiting:
            path, ino = waiting.pop()
            for entry in list(self._tree.names(ino)):
                if entry.name in (b"", b".", b"..") or b"/" in entry.name or b"\0" in entry.name:
                    self._report.problems.append(f"a name that cannot be in {show(path)}")
                    continue
                inode = self._tree.find(entry.ino)
                target = path + b"/" + entry.name
                if inode is None:
                    self._problem(target, "the file of this name is not there")
                elif self._make(target, inode) and inode.is_dir:
                    waiting.append((target, inode.ino))
            await trio.lowlevel.checkpoint()

    async def _nameless(self) -> None:
        """Put what no name leads to into lost+found."""
        home = self._to + b"/" + _LOST
        for ino, nlink in queries_inodes.link_counts(self._tree.db):
            if ino in self._done or ino == ROOT or nlink == 0:
                continue
            parent = self._tree.names_of(ino)
            if parent and self._tree.find(parent[0][0]) is not None:
                continue  # it comes with what it lies in
            if not self._report.lost:
                os.makedirs(home, mode=0o700, exist_ok=True)
            inode = self._tree.inode(ino)
            name = f"{'directory' if inode.is_dir else 'file'}-{ino}".encode()
            self._report.lost.append(f"/{show(_LOST + b'/' + name)}")
            if self._make(home + b"/" + name, inode) and inode.is_dir:
                await self._names(home + b"/" + name, ino)

    def _make(self, path: bytes, inode: Inode) -> bool:
        """Make one node; contents come later."""
        before = self._done.get(inode.ino)
        try:
            if before is not None:
                if inode.is_dir:
                    self._problem(path, "a second name of a directory")
                    return False
                os.link(before, path, follow_symlinks=False)
                return True
            self._done[inode.ino] = path
            if inode.is_dir:
                os.mkdir(path, 0o700)
                self._directories.append((path, inode))
            elif inode.is_symlink:
                os.symlink(self._tree.target(inode.ino), path)
                self._report.others += 1
                self._dress(path, inode)
            elif inode.is_file:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                self._files.append((path, inode))
            else:
                os.mknod(path, stat.S_IFMT(inode.mode) | 0o600, inode.rdev)
                self._report.others += 1
                self._dress(path, inode)
        except OSError as exc:
            self._failed(path, exc)
            return False
        except Refused:
            self._problem(path, "what the symbolic link says is lost")
            return False
        return True

    async def _worker(self) -> None:
        while self._files:
            path, inode = self._files.popleft()
            await self._file(path, inode)
            self._report.files += 1
            done = self._report.files
            self._on_progress(Progress(done, self._total, "files"))

    async def _file(self, path: bytes, inode: Inode) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, inode.size)
            extents = self._tree.all_extents(inode.ino)
            self._check_sum(path, inode, extents)
            for group in ranges.runs(extents, gap=_GAP, longest=_RANGE):
                for extent, data in await self._read(path, group):
                    part = memoryview(data)[extent.skip : extent.skip + extent.length]
                    await offload(_write, fd, part, extent.start, kind="disk")
                    self._report.bytes += len(part)
        except OSError as exc:
            self._failed(path, exc)
        finally:
            os.close(fd)
        self._dress(path, inode)

    def _check_sum(self, path: bytes, inode: Inode, extents: list[Extent]) -> None:
        """A tree with holes may have lost extents: then zeros must not pass for contents."""
        there = sum(extent.length for extent in extents)
        if there != inode.blocks:
            self._report.damaged.append(
                Damage(
                    path=self._inner(path),
                    path_b64=exact(self._within(path)),
                    start=0,
                    end=inode.size,
                    text=f"{inode.blocks - there} bytes of it are not known any more",
                )
            )

    async def _read(
        self, path: bytes, group: list[Extent]
    ) -> list[tuple[Extent, bytes | memoryview]]:
        """The chunks of neighbouring extents; what cannot be had is reported and left out."""
        if group[0].pack == 0:
            return [(x, x.data) for x in group if x.data is not None]
        try:
            pack = self._tree.pack(group[0].pack)
        except Corrupt as exc:
            for extent in group:
                self._lost(path, extent, exc)
            return []
        start, length = ranges.span(group)
        name = chunk_format.pack_name(pack.name)
        try:
            body = memoryview(await self._store.get(name, start, length))
        except StoreError as exc:
            for extent in group:
                self._lost(path, extent, exc)
            return []
        key = self._keyring.pack_key(pack.name, pack.epoch)
        fsid = self._keyring.fsid

        def open_all() -> list[tuple[Extent, bytes | memoryview | Corrupt]]:
            made: list[tuple[Extent, bytes | memoryview | Corrupt]] = []
            for extent in group:
                part = body[extent.offset - start : extent.offset - start + extent.sealed]
                try:
                    if extent.digest is not None and digest(part) != extent.digest:
                        raise Corrupt(f"{name} at {extent.offset}: not the bytes that were stored")
                    data = chunk_format.open_chunk(key, fsid, pack.epoch, pack.name, extent, part)
                    made.append((extent, data))
                except Corrupt as exc:
                    made.append((extent, exc))
            return made

        good = []
        for extent, data in await offload(open_all):
            if isinstance(data, Corrupt):
                self._lost(path, extent, data)
            else:
                good.append((extent, data))
        return good

    def _lost(self, path: bytes, extent: Extent, why: object) -> None:
        self._report.damaged.append(
            Damage(
                path=self._inner(path),
                path_b64=exact(self._within(path)),
                start=extent.start,
                end=extent.end,
                text=str(why),
            )
        )

    def _dress(self, path: bytes, inode: Inode) -> None:
        """Owner, mode, attributes, times; what this system or user cannot set is said once."""
        try:
            if os.geteuid() == 0:
                os.chown(path, inode.uid, inode.gid, follow_symlinks=False)
            if not inode.is_symlink:
                os.chmod(path, stat.S_IMODE(inode.mode))
            for name, value in self._tree.xattrs(inode.ino):
                try:
                    os.setxattr(path, name, value, follow_symlinks=False)
                except OSError as exc:
                    kind = name.partition(b".")[0].decode("utf-8", "replace")
                    self._once(f"{kind}.* attributes cannot all be set here: {exc.strerror}")
            os.utime(path, ns=(inode.atime_ns, inode.mtime_ns), follow_symlinks=False)
        except OSError as exc:
            self._once(f"modes, owners or times cannot all be set here: {exc.strerror}")

    def _once(self, text: str) -> None:
        if text not in self._plain:
            self._plain.add(text)
            self._report.problems.append(text)

    def _inner(self, path: bytes) -> str:
        return show(self._within(path))

    def _within(self, path: bytes) -> bytes:
        return path[len(self._to) :]

    def _problem(self, path: bytes, text: str) -> None:
        self._report.problems.append(f"{self._inner(path)}: {text}")

    def _failed(self, path: bytes, exc: OSError) -> None:
        if exc.errno in (e.ENOSPC, e.EDQUOT):
            raise Full(f"{show(path)}: {exc.strerror}") from exc
        self._problem(path, exc.strerror or str(exc))


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
