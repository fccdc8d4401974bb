"""Checkpoints: the whole tree at one sequence number, where a new machine starts.

    checkpoints/<sequence 16 digits>/manifest       what belongs to it, sealed
    checkpoints/<sequence 16 digits>/<32 hex>       a part: rows of one table, sealed

A part is zstd of MessagePack: an array of rows, each an array of the table's columns.  Its context
is its own random id, so parts of older checkpoints can stand in a new one; what binds them together
is the manifest, which names each with its digest.  The manifest's context is the sequence number.

The hashes of the commits before it (`history`) are a table like the others: a machine that
remembers an older head can tell whether it lies in this history.

A checkpoint is written from a second connection to the replica that sees one moment of it, in a
thread: the mount goes on meanwhile.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from itertools import chain, islice
from typing import Any, Final

import apsw
import msgspec
import trio
from msgspec import Struct

from megafs import clock, compression
from megafs.concurrency import offload, one_error_nursery
from megafs.crypto.volume_keys import Keyring, digest
from megafs.errors import Corrupt, Exists, Fault, Missing, TooLarge, TooNew, Unavailable
from megafs.journal import commit as commit_format
from megafs.journal.checkpoint_parts import Key, Part
from megafs.journal.commit import Int64, decoded, epoch_of, open_padded, seal_padded
from megafs.journal.replica import Replica
from megafs.stores.base import ObjectStore, Page, list_all
from megafs.stores.early_requests import EarlyRequests
from megafs.tree.schema import REPLICATED, SequenceNumber, Table

log = logging.getLogger(__name__)

FORMAT: Final = 1
#: Rows of one part, and the bytes of them that end it earlier.  One changed row writes its part
#: anew: some 3 CPU-microseconds a row.  A million files are some 500 parts.
PART_ROWS: Final = 4096
PART_SIZE: Final = 4 << 20
#: Rows whose size is looked at together: asking for each cost as much as reading it.
_BLOCK: Final = 64
# Objects below PREFIX: a thousand checkpoints of a thousand parts.
_MOST_LISTED: Final = 1_000_000
#: Parts that are read, or written, side by side: a store may be far away.
_AHEAD: Final = 8
MAX_PART: Final = 64 << 20
MAX_MANIFEST: Final = 64 << 20
#: How many of the newest commits' hashes a checkpoint keeps (docs/threats.md, row 20).
HASH_TAIL: Final = 65536
# Neither gets smaller than that where a store takes no large objects.
_SMALLEST_PART: Final = 32 << 10
_SMALLEST_TAIL: Final = 1024

PREFIX: Final = "checkpoints/"
_MANIFEST: Final = re.compile(r"checkpoints/(\d{16})/manifest\Z", re.ASCII)
_PART: Final = re.compile(r"checkpoints/\d{16}/[0-9a-f]{32}\Z", re.ASCII)


# What a column of a row may hold.
_CELLS: Final = frozenset((int, bytes, str, float, type(None)))


class PartEntry(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One part in a manifest.  low: the first key that may lie in it."""

    low: tuple[Any, ...]
    object: str
    digest: bytes
    size: Int64
    rows: Int64


class Manifest(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The contents of a checkpoint.

    head: hash of the commit `sequence`.  last: of that commit, its time in ns, host and mount.
    epoch: of the key that sealed the newest commits.
    tables: of each replicated table, its parts in order.
    history: the hashes of the last commits, oldest first, 32 bytes each; the last one is `head`.
    """

    sequence: SequenceNumber
    head: bytes
    last: tuple[Int64, str, Int64]
    tables: dict[str, tuple[PartEntry, ...]]
    history: bytes
    epoch: int = 0


def manifest_name(sequence: int) -> str:
    return f"checkpoints/{sequence:016d}/manifest"


async def newest(store: ObjectStore) -> list[SequenceNumber]:
    """The sequence numbers of the checkpoints in the store, newest first."""
    found: list[SequenceNumber] = []
    async for page in list_all(store, PREFIX, most=_MOST_LISTED):
        found += _manifests(page)
    return sorted(found, reverse=True)


def _manifests(page: Page) -> list[SequenceNumber]:
    # Whatever else lies there is not ours to judge: only a manifest that opens counts.
    matches = (_MANIFEST.match(entry.name) for entry in page.entries)
    return [SequenceNumber(int(match[1])) for match in matches if match is not None]


async def ask_for_newest(ahead: EarlyRequests) -> int:
    """Request, before the keys are known, the newest checkpoint's manifest.

    Returns the number of the commit that it stands at; 0 if there is no checkpoint.
    """
    page = await ahead.ask_list(PREFIX).get()
    newest = max(_manifests(page), default=0)
    if newest:
        ahead.ask(manifest_name(newest), MAX_MANIFEST + 1)
    return newest


async def read_manifest(store: ObjectStore, keyring: Keyring, sequence: int) -> Manifest:
    """Read and open one manifest; Corrupt or Missing if it is not whole, or of too old a key."""
    manifest, _ = await read_manifest_and_epoch(store, keyring, sequence)
    return manifest


async def read_manifest_and_epoch(
    store: ObjectStore, keyring: Keyring, sequence: int
) -> tuple[Manifest, int]:
    """As `read_manifest`, with the epoch of the key that sealed it."""
    name = manifest_name(sequence)
    data = await store.get(name, 0, MAX_MANIFEST + 1)
    manifest = open_manifest(keyring, sequence, data)
    epoch = epoch_of(data)
    if epoch < keyring.epoch:
        await _check_sealed(store, manifest, epoch)
    return manifest, epoch


def open_manifest(keyring: Keyring, sequence: int, data: bytes) -> Manifest:
    """The manifest in *data*; Corrupt if it is not that of checkpoint *sequence*."""
    name = manifest_name(sequence)
    body = open_padded(keyring, "ckpt", FORMAT, data, name, "manifest", sequence)
    manifest = decoded(name, compression.decompress(body, 4 * MAX_MANIFEST), Manifest)
    if manifest.sequence != sequence:
        raise Corrupt(f"{name} says it is checkpoint {manifest.sequence}")
    if manifest.epoch > epoch_of(data):
        raise Corrupt(f"{name} is sealed under the key of an earlier epoch than it names")
    for entries in manifest.tables.values():
        for entry in entries:
            if (
                _PART.match(entry.object) is None
                or entry.size < 0
                or entry.rows < 0
                or not _are_cells(entry.low)
            ):
                raise Corrupt(f"{name} names a part that no megafs writes")
    return manifest


async def _check_sealed(store: ObjectStore, manifest: Manifest, epoch: int) -> None:
    """Raise Corrupt if a key that was out of use already sealed *manifest*.

    epoch: of that key.  Whoever was locked out by the rotation still has it.  The commit that the
    manifest names tells; it may be gone, for gc folds the journal.
    """
    name = manifest_name(manifest.sequence)
    try:
        data = await store.get(
            commit_format.object_name(manifest.sequence), 0, commit_format.MAX_OBJECT + 1
        )
    except Missing:
        return
    if digest(data) != manifest.head:
        raise Corrupt(f"{name} is not of the commit {manifest.sequence} that the store has")
    if epoch_of(data) > epoch:
        raise Corrupt(
            f"{name} is sealed under the key of epoch {epoch}, though its commit is of epoch"
            f" {epoch_of(data)}: somebody who has the key from before the rotation made it"
        )


async def read_part(store: ObjectStore, keyring: Keyring, entry: PartEntry) -> list[list[Any]]:
    """The rows of one part."""
    if entry.size > MAX_PART:
        raise Corrupt(f"{entry.object}: {entry.size} bytes are too many for a part")
    data = await store.get(entry.object, 0, entry.size + 1)
    return await offload(_open_part, keyring, entry, data)


def _open_part(keyring: Keyring, entry: PartEntry, data: bytes) -> list[list[Any]]:
    if digest(data) != entry.digest:
        raise Corrupt(f"{entry.object}: not the bytes that the checkpoint names")
    if _PART.match(entry.object) is None:
        raise Corrupt(f"{entry.object}: not the name of a part")
    part_id = bytes.fromhex(entry.object.rpartition("/")[2])
    body = open_padded(keyring, "ckpt", FORMAT, data, entry.object, "part", part_id)
    rows = decoded(entry.object, compression.decompress(body, 16 * MAX_PART), list[list[Any]])
    if len(rows) != entry.rows:
        raise Corrupt(f"{entry.object}: {len(rows)} rows, not {entry.rows}")
    return rows


def check_rows(table: Table, rows: list[list[Any]]) -> None:
    """Raise Corrupt unless each of *rows* has the columns of *table*, with values that fit."""
    columns = len(table.columns)
    if any(len(row) != columns for row in rows) or not _are_cells(chain.from_iterable(rows)):
        raise Corrupt(f"a part of a checkpoint has rows that the table {table.name} has not")


def _are_cells(found: Iterable[Any]) -> bool:
    return _CELLS.issuperset(map(type, found))


async def load_newest(
    store: ObjectStore,
    replica: Replica,
    say: Callable[[str], None] = lambda text: None,
    least_epoch: int = 0,
) -> None:
    """Fill an empty replica from the newest checkpoint that is whole; none, if there is none at
    all.

    say: called with how far it is.
    least_epoch: a checkpoint that a key of an earlier epoch sealed is not taken, for whoever was
        locked out by the rotation has that key.  Without another one the whole journal is read,
        which later commits vouch for.
    Raises Corrupt if there are checkpoints and none is whole.
    """
    broken: Fault | TooNew | None = None
    old = 0
    for sequence in await newest(store):
        try:
            manifest, epoch = await read_manifest_and_epoch(store, replica.keyring, sequence)
            if epoch < least_epoch:
                log.warning("checkpoint %d is of epoch %d: it is not taken", sequence, epoch)
                old = old or sequence
                continue
            text = f"reading the tree as of commit {sequence}"

            def progress(done: int, total: int, text: str = text) -> None:
                say(f"{text}: {done} of {total} parts")

            await load(store, replica, manifest, progress)
            replica.note_checkpoint_epoch(epoch)
            return
        except (Corrupt, Missing, TooNew) as exc:
            log.warning("checkpoint %d is damaged, trying the one before: %s", sequence, exc)
            broken = broken or exc
            replica.reset()
    if old:
        page = await store.list("commits/", limit=1)
        if page.entries and page.entries[0].name == commit_format.object_name(1):
            return
        raise Corrupt(
            f"the newest whole checkpoint, {old}, is sealed under a key from before the last"
            f" rotation (epoch {least_epoch}), and the journal does not reach back to its"
            " beginning: somebody who was locked out may have made it. Mount on a machine that"
            " knows the volume, which writes a new checkpoint, or mount with -o accept_state"
        )
    if broken is not None:
        raise Corrupt(f"no checkpoint in the store is whole: {broken}") from broken


async def load(
    store: ObjectStore,
    replica: Replica,
    manifest: Manifest,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fill an empty replica from a checkpoint, a few parts in memory at a time.

    progress: called with (parts done, parts in all).
    """
    names = {table.name for table in REPLICATED}
    if not manifest.tables.keys() <= names:
        raise Corrupt(f"checkpoint {manifest.sequence} has tables this megafs does not know")
    jobs = [(table, entry) for table in REPLICATED for entry in manifest.tables.get(table.name, ())]
    total = len(jobs)
    done = 0
    async with aclosing(_fetched(store, replica.keyring, jobs)) as fetched:
        async for table, rows in fetched:
            marks = ",".join("?" * len(table.columns))
            check_rows(table, rows)
            try:
                replica.insert_rows(f"INSERT INTO {table.name} VALUES({marks})", rows)
            except (apsw.ConstraintError, apsw.MismatchError, apsw.SQLError, OverflowError) as exc:
                raise Corrupt(
                    f"checkpoint {manifest.sequence} has rows that no megafs writes: {exc}"
                ) from exc
            done += 1
            if progress is not None:
                progress(done, total)
    tables = {
        name: [Part(tuple(p.low), p.object, p.digest, p.size, p.rows) for p in parts]
        for name, parts in manifest.tables.items()
    }
    replica.raise_epoch(manifest.epoch)
    replica.finish_load(manifest.sequence, manifest.head, manifest.history, manifest.last, tables)


async def _fetched(
    store: ObjectStore, keyring: Keyring, jobs: list[tuple[Any, PartEntry]]
) -> AsyncGenerator[tuple[Any, list[list[Any]]], None]:
    """Fetch parts, a group at a time, and give them in order, so that inserts append."""
    for group in _groups(jobs):
        rows: list[list[list[Any]]] = [[] for _ in group]

        async def fetch(number: int, entry: PartEntry, into: list[list[list[Any]]]) -> None:
            into[number] = await read_part(store, keyring, entry)

        async with one_error_nursery() as nursery:
            for number, (_, entry) in enumerate(group):
                nursery.start_soon(fetch, number, entry, rows)
        for (table, _), got in zip(group, rows, strict=True):
            yield table, got


def _groups(jobs: list[tuple[Any, PartEntry]]) -> Iterator[list[tuple[Any, PartEntry]]]:
    """Parts that are in memory together: the rows of four full ones, however many they are.

    A small tree is a part or two for each table: one round trip for all of them.
    """
    group: list[tuple[Any, PartEntry]] = []
    rows = 0
    for job in jobs:
        more = max(job[1].rows, PART_ROWS * job[1].size // PART_SIZE)
        if group and (rows + more > 4 * PART_ROWS or len(group) == 32):
            yield group
            group, rows = [], 0
        group.append(job)
        rows += more
    if group:
        yield group


class _Plan(Struct):
    """The parts of the next checkpoint: those that are kept, and runs of rows to write anew."""

    sequence: SequenceNumber
    head: bytes
    history: bytes
    last: tuple[int, str, int]
    keep: dict[str, list[Part]]
    runs: dict[str, list[tuple[Key, Key | None]]]


class Checkpointer:
    """Writes checkpoints of one replica.

    part_size: bytes of rows that end a part.
    """

    def __init__(
        self, replica: Replica, store: ObjectStore, keyring: Keyring, part_size: int = PART_SIZE
    ) -> None:
        self._part_size = part_size
        self._tail = HASH_TAIL
        self._replica = replica
        self._store = store
        self._keyring = keyring
        self._lock = trio.Lock()

    async def write(self) -> int:
        """Write a checkpoint of the committed tree; return its sequence number."""
        async with self._lock:
            if self._replica.sequence and self._replica.checkpoint == self._replica.sequence:
                return self._replica.sequence  # no commit since: it would be the same one
            while True:
                try:
                    return await self._write()
                except TooLarge:
                    self._replica.parts.reload()
                    if not self._make_smaller():
                        raise
                except BaseException:
                    self._replica.parts.reload()  # what the plan took as done is still to be done
                    raise

    def _make_smaller(self) -> bool:
        """The store, or a proxy on the way, takes no object that large; False if that is no help.

        The parts get fewer rows, and the manifest fewer hashes of old commits, which nobody but a
        machine that was away for longer than they reach back could miss.
        """
        if self._part_size <= _SMALLEST_PART and self._tail <= _SMALLEST_TAIL:
            return False
        self._part_size = max(_SMALLEST_PART, self._part_size // 2)
        self._tail = max(_SMALLEST_TAIL, self._tail // 2)
        log.info("checkpoints are made of smaller objects, for the store takes none that large")
        return True

    async def _write(self) -> int:
        base = self._replica.checkpoint
        if base and not await self._is_there(base):
            # gc has removed it, and may have removed parts of it that this one would name again.
            self._replica.parts.forget()
            base = 0
        reader = self._replica.committed_reader()
        try:
            plan = self._plan()
            parts = await self._write_parts(reader, plan)
        finally:
            reader.close()
        manifest = Manifest(
            plan.sequence,
            plan.head,
            plan.last,
            {
                table: tuple(PartEntry(p.low, p.object, p.digest, p.size, p.rows) for p in kept)
                for table, kept in parts.items()
            },
            plan.history,
            self._replica.epoch,
        )
        await self._publish(manifest)
        if base and not await self._is_there(base):
            # It went while we wrote; gc may not have seen in time that we name parts of it.
            await self._store.delete(manifest_name(plan.sequence))
            raise Unavailable(f"checkpoint {base} was removed meanwhile; the next one is whole")
        self._replica.adopt_parts(parts, plan.sequence)
        self._replica.note_checkpoint_epoch(self._keyring.epoch)
        return plan.sequence

    async def _is_there(self, sequence: int) -> bool:
        try:
            await self._store.get(manifest_name(sequence), 0, 1)
        except Missing:
            return False
        return True

    def _plan(self) -> _Plan:
        replica = self._replica
        keep: dict[str, list[Part]] = {}
        runs: dict[str, list[tuple[Key, Key | None]]] = {}
        replica.parts.blind.clear()
        for table in REPLICATED:
            parts = replica.parts.of(table.name)
            if not parts:
                keep[table.name], runs[table.name] = [], [((), None)]
                continue
            keep[table.name] = [part for part in parts if not part.dirty]
            runs[table.name] = [
                (part.low, parts[n + 1].low if n + 1 < len(parts) else None)
                for n, part in enumerate(parts)
                if part.dirty
            ]
            for part in parts:
                part.dirty = False  # what changes from here on is for the next one
        history = replica.hash_tail(self._tail)
        return _Plan(replica.sequence, replica.head, history, replica.last_commit(), keep, runs)

    async def _write_parts(self, reader: apsw.Connection, plan: _Plan) -> dict[str, list[Part]]:
        result = {table: list(parts) for table, parts in plan.keep.items()}
        room = trio.CapacityLimiter(_AHEAD)

        async def put(table: str, low: Key, rows: list[tuple[Any, ...]], holder: object) -> None:
            try:
                result[table].append(await self._put_part(plan.sequence, low, rows))
            finally:
                room.release_on_behalf_of(holder)

        async with one_error_nursery() as nursery:
            for table in REPLICATED:
                for low, high in plan.runs[table.name]:
                    async with aclosing(
                        _run(reader, table, low, high, self._part_size)
                    ) as parts_of_run:
                        async for begin, rows in parts_of_run:
                            holder = object()
                            await room.acquire_on_behalf_of(holder)
                            nursery.start_soon(put, table.name, begin, rows, holder)
        for parts in result.values():
            parts.sort(key=lambda part: part.low)
            if parts:
                parts[0].low = ()
        return result

    async def _put_part(self, sequence: int, low: Key, rows: list[tuple[Any, ...]]) -> Part:
        part_id = clock.random_bytes(16)
        sealed = await offload(_seal_part, self._keyring, part_id, rows)
        name = f"checkpoints/{sequence:016d}/{part_id.hex()}"
        await self._store.put_new(name, sealed)
        return Part(low, name, digest(sealed), len(sealed), len(rows))

    async def _publish(self, manifest: Manifest) -> None:
        body = compression.compress(msgspec.msgpack.encode(manifest))
        sealed = seal_padded(self._keyring, "ckpt", FORMAT, body, "manifest", manifest.sequence)
        try:
            await self._store.put_new(manifest_name(manifest.sequence), sealed)
        except Exists:
            # Another mount wrote one of the same moment: as good as ours.
            log.info("checkpoint %d was written by another mount", manifest.sequence)
            raise


def _seal_part(keyring: Keyring, part_id: bytes, rows: list[tuple[Any, ...]]) -> bytes:
    body = compression.compress(msgspec.msgpack.encode(rows))
    return seal_padded(keyring, "ckpt", FORMAT, body, "part", part_id)


async def _run(
    reader: apsw.Connection, table: Any, low: Key, high: Key | None, part_size: int
) -> AsyncGenerator[tuple[Key, list[tuple[Any, ...]]], None]:
    """The rows with low <= key < high, in parts: (where it begins, its rows)."""
    after: Key | None = None
    while True:
        rows, more = await offload(
            _rows,
            reader,
            table,
            low if after is None else after,
            high,
            after is not None,
            part_size,
        )
        if rows:
            # The first part of a run begins where the run does, so that no key falls between two
            # parts.
            yield low if after is None else tuple(rows[0][: table.key]), rows
        if not more:
            return
        after = tuple(rows[-1][: table.key])


def _rows(
    reader: apsw.Connection,
    table: Any,
    low: Key,
    high: Key | None,
    exclusive: bool,
    part_size: int,
) -> tuple[list[tuple[Any, ...]], bool]:
    """Up to PART_ROWS rows with low <= key < high (or low < key), and whether more may follow."""
    key = ", ".join(table.columns[: table.key])
    marks = ", ".join("?" * table.key)
    where: list[str] = []
    args: list[Any] = []
    if low:
        where.append(f"({key}) {'>' if exclusive else '>='} ({marks})")
        args.extend(low)
    if high is not None:
        where.append(f"({key}) < ({marks})")
        args.extend(high)
    sql = f"SELECT {', '.join(table.columns)} FROM {table.name}"
    if where:
        sql += " WHERE " + " AND ".join(where)
    sql += f" ORDER BY {key}"
    rows: list[tuple[Any, ...]] = []
    size = 0
    cursor = reader.execute(sql, args)
    while block := list(islice(cursor, min(_BLOCK, PART_ROWS - len(rows)))):
        rows.extend(block)
        size += len(msgspec.msgpack.encode(block))
        if len(rows) >= PART_ROWS or size >= part_size:
            return rows, True
    return rows, False


async def find_usable(
    store: ObjectStore,
    keyring: Keyring,
    not_above: int | None = None,
    least_epoch: int = 0,
) -> Manifest | None:
    """The newest manifest that opens, or None if there is no checkpoint at all.

    least_epoch: those that a key of an earlier epoch sealed are left out.
    Raises Corrupt if there are checkpoints and none opens.
    """
    broken: Corrupt | Missing | TooNew | None = None
    for sequence in await newest(store):
        if not_above is not None and sequence > not_above:
            continue
        try:
            manifest, epoch = await read_manifest_and_epoch(store, keyring, sequence)
            if epoch >= least_epoch:
                return manifest
        except (Corrupt, Missing, TooNew) as exc:
            log.warning("checkpoint %d is damaged, trying the one before: %s", sequence, exc)
            broken = broken or exc
    if broken is not None:
        raise Corrupt(f"no checkpoint in the store is whole: {broken}") from broken
    return None
