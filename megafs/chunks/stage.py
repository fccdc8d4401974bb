"""Packs on their way to the store: sealed chunks collect in files of the state directory.

A pack file `<number>-<random id>-<epoch>` (hex) grows as chunks are sealed into it.  At its target
size, or when a commit needs its chunks, it is cut: padded, and uploaded whole in one put.  The file
stays until a commit names the pack, for two reasons: reads of its chunks are answered from it, and
if this machine is away so long that another one's gc removes the pack, it is uploaded again.

Pack files hold no plaintext.  They survive kill -9, and a power cut after `sync`.  Small chunks
need no sync of their pack: the log of operations carries them beside the operation that names them
(unlogged.py), and they are written back into the pack from there (`restore`).

Order: a pack is in the store before any commit names it (docs/ordering.md); `blocked` tells the
writer which packs are not.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio
from msgspec import Struct

from megafs import clock, supervisor
from megafs.chunks import codec as chunk_format
from megafs.chunks.pack_size import PackSize
from megafs.chunks.unlogged import UnloggedChunks
from megafs.concurrency import offload, one_error_nursery
from megafs.config import Parameters, Settings
from megafs.crypto import aead
from megafs.crypto.volume_keys import Keyring, digest
from megafs.durable import replace_file, sync_directory
from megafs.errors import (
    Corrupt,
    Exists,
    Fault,
    Full,
    Missing,
    StoreError,
    TooLarge,
    Unavailable,
)
from megafs.private_files import open_private, place_aside, read_private, set_aside
from megafs.stores.abilities import LineAdvice, NoLineAdvice
from megafs.stores.base import ObjectStore
from megafs.tree.tree import Extent

log = logging.getLogger(__name__)

T = TypeVar("T")

#: From here on sealing leaves the event loop (a hop costs 90 to 170 us, sealing 64 KiB some 150).
_OFFLOAD_FROM = 64 << 10
#: The longest pause after a failed upload.  Overload and outages are the business of what lies
#: below (stores/retry.py), which fails at once while a store is down.
_PAUSE = 5.0
#: Seconds that the disk cache may take to take over a pack.
_ADOPTION = 10.0
#: What is worth a put of its own when nothing else is on its way to the store.
_WORTH = 2 << 20
#: Bytes after which the disk is asked again how much is free: a statvfs(2) takes 4 us on a local
#: disk and may take far longer on others, beside the 20 us of a small write.
_ROOM_STEP = 4 << 20
#: The first bytes of a pack, by which two lengths of one are known: its first salt and commitment.
_BEGINNING = 56
#: What was not written yet when the file was copied; sealed bytes hold so many zeros in a row once
#: in 2**110 packs.
_HOLE = bytes(16)
# What sealing adds to a chunk is less.
_SEAL = 64


class Adopter(Protocol):
    """Takes over the bytes of a pack that the store now has: the disk cache."""

    async def __call__(self, name: str, path: Path, size: int) -> None: ...


# A staged pack's file: number, random id, epoch.
_FILE: Final = re.compile(r"([0-9a-f]{16})-([0-9a-f]{32})-([0-9]{1,9})\Z", re.ASCII)


class StagedPack(Struct):
    """One pack file.  size: bytes given out to chunks; promised: the most that what is being sealed
    can add to them; busy: puts that may still write into it.

    stored: when the store took it, in seconds since 1970.  adopted: being taken over by the cache,
    which wants the file.  inherited: an earlier process began it; there may be copies of its state
    directory, so other machines may bring other lengths of it to the store.
    """

    number: int
    name: bytes
    epoch: int
    path: Path
    fd: int
    key: bytes
    size: int = 0
    promised: int = 0
    busy: int = 0
    cut: bool = False
    stored: float = 0.0
    adopted: bool = False
    inherited: bool = False

    # Without the key (see secret_struct.py; this one is not frozen).
    def __repr__(self) -> str:
        return f"StagedPack({self.number}, size={self.size})"

    def __rich_repr__(self) -> list[tuple[str, int]]:
        return [("number", self.number), ("size", self.size)]


class PackRegistry(Protocol):
    """Gives packs their numbers, and hears of each new one: the replica."""

    def number(self) -> int:
        """A number that no other pack has."""

    def announce_pack(self, number: int, name: bytes, epoch: int) -> None:
        """Called before anything names the pack; name: its random id."""

    def chunks_of(self, number: int) -> list[Extent]:
        """The chunks of a pack that files hold, each as often as it is held."""


class StageLimits(Struct, frozen=True):
    """How packs are made, and how much of the machine they may take.  Sizes in bytes.

    pack_size: at which a pack is cut.  compress: chunks, where that helps.
    staged: packs that may wait for the store.  min_free: what must stay free on the disk.
    uploads: packs that may be in memory at once, on their way.
    may_overwrite: the store writes over an object where it was told to create it.
    """

    pack_size: PackSize
    compress: bool
    staged: int
    min_free: int
    uploads: int
    may_overwrite: bool = False

    @classmethod
    def of(
        cls, params: Parameters, settings: Settings, pack_size: PackSize, *, may_overwrite: bool
    ) -> StageLimits:
        return cls(
            pack_size,
            params.compression == "zstd",
            settings.stage_limit,
            settings.stage_min_free,
            settings.uploads,
            may_overwrite,
        )


class Stage:
    """Seals pieces of files into packs and brings the packs to the store.

    directory: exists, ours alone.
    unlogged: given the small chunks, which the log of operations is to take.
    adopt: takes over the bytes of a pack that the store now has; None without a disk cache.
    """

    def __init__(
        self,
        directory: Path,
        store: ObjectStore,
        keyring: Keyring,
        registry: PackRegistry,
        unlogged: UnloggedChunks,
        limits: StageLimits,
        adopt: Adopter | None = None,
    ) -> None:
        self._directory = directory
        self._store = store
        self._line = LineAdvice.of(store) or NoLineAdvice()
        self._keyring = keyring
        self._registry = registry
        self._unlogged = unlogged
        self._limits = limits
        self._adopt = adopt
        self._packs: dict[int, StagedPack] = {}
        self._uploaded: dict[int, StagedPack] = {}
        self._open: StagedPack | None = None
        self._queue: list[StagedPack] = []
        self._wake = trio.Event()
        self._changed = trio.Event()
        self._spent: list[int] = []  # to be closed
        self._leaving: set[Path] = set()  # to be removed when the disk cache has them
        self._unsynced: set[int] = set()
        self._restoring: dict[int, int] = {}
        self._new_files = False
        # Sealed bytes that packs were given so far, and up to how many there is room for them.
        self._allotted = 0
        self._room_until = 0
        self._allotting = threading.Lock()
        self.uploading = 0
        # Why the last try failed to bring a pack to the store, for each that is still tried.
        self._failing: dict[int, Fault] = {}

    # ---- what lies here ---------------------------------------------------------------------

    @property
    def last_error(self) -> Fault | None:
        """Why a pack does not get into the store, of the one that waits longest; None if all do."""
        return next(iter(self._failing.values()), None)

    @property
    def staged_bytes(self) -> int:
        """Bytes of packs that the store does not have yet."""
        return sum(pack.size for pack in self._packs.values())

    @property
    def unsynced(self) -> bool:
        """Whether there is anything for `sync` to do."""
        return bool(self._unsynced) or self._new_files

    @property
    def blocked(self) -> set[int]:
        """The packs that the store does not have yet."""
        return set(self._packs)

    def restore(self, number: int, offset: int, sealed: memoryview) -> None:
        """Write a chunk from the log into its pack, if that lies here, before `take_up`."""
        try:
            fd = self._restoring.get(number)
            if fd is None:
                path = next(self._directory.glob(f"{number:016x}-*"), None)
                fd = -1 if path is None else open_private(path, os.O_WRONLY)
                self._restoring[number] = fd
            if fd >= 0:
                _write_at(fd, sealed, offset)
        except OSError as exc:
            raise Full(f"{self._directory}: {exc.strerror}") from exc

    def take_up(self, wanted: Callable[[int], bool], *, is_all_known: bool = True) -> None:
        """Queue the packs that an earlier process left; remove those that nothing names.

        is_all_known: the log of operations could be read to its end.  Else what it named may be
            among them, so they are set aside.
        """
        for restored in self._restoring.values():
            if restored >= 0:
                os.close(restored)
        self._restoring.clear()
        for path in sorted(self._directory.iterdir()):
            identity = _identity_of(path.name)
            if identity is None:
                continue
            pack_number, pack_name, pack_epoch = identity
            if not wanted(pack_number):
                if is_all_known:
                    path.unlink(missing_ok=True)
                else:
                    log.error(
                        "%s: staged, and nothing that could be read names it: moved to %s",
                        path.name,
                        set_aside(path, self._directory.parent),
                    )
                continue
            fd = open_private(path, os.O_RDWR)
            pack = StagedPack(
                pack_number,
                pack_name,
                pack_epoch,
                path,
                fd,
                self._keyring.pack_key(pack_name, pack_epoch),
                os.fstat(fd).st_size,
                cut=True,
                inherited=True,
            )
            self._packs[pack_number] = pack
            self._queue.append(pack)
            # That process may have ended before it synced this one; what is promised from here on
            # stands on it.
            self._unsynced.add(pack_number)

    def path_of(self, number: int) -> Path:
        """The file of a pack that lies here."""
        return self._packs[number].path

    def holds(
        self, extent: Extent, *, must_be_here: bool = False, only_length: bool = False
    ) -> bool:
        """Whether the chunk of *extent* is whole; of one whose pack does not lie here, the caller
        knows whether it should.

        only_length: whether its bytes are there, whatever they are.
        """
        pack = self._packs.get(extent.pack)
        if pack is None:
            return not must_be_here
        if only_length:
            return extent.offset + extent.sealed <= pack.size
        sealed = os.pread(pack.fd, extent.sealed, extent.offset)
        return extent.digest is None or digest(sealed) == extent.digest

    def lacks(self, extent: Extent, *, must_be_here: bool) -> bool:
        """Whether bytes of the chunk of *extent* have not got here, as in a copy of a directory
        that was in use; bytes that are here and wrong are the disk's doing.

        must_be_here: see `holds`.
        """
        pack = self._packs.get(extent.pack)
        if pack is None:
            return must_be_here
        sealed = os.pread(pack.fd, extent.sealed, extent.offset)
        return len(sealed) < extent.sealed or (_HOLE in sealed and not self.holds(extent))

    def keep_copy(self, number: int, *, is_named: bool) -> None:
        """Keep the file of a pack of an earlier process in `damaged/`, whatever becomes of it here.

        is_named: operations that stay name it, so it goes to the store.  Else it does not.
        """
        pack = self._packs[number]
        if is_named:
            kept = place_aside(pack.path, self._directory.parent)
            replace_file(kept, read_private(pack.path))
            return
        set_aside(pack.path, self._directory.parent)
        del self._packs[number]
        self._queue.remove(pack)
        self._unsynced.discard(number)
        self._spent.append(pack.fd)

    def check_room(self, size: int) -> None:
        """Raise Full if *size* more bytes must not be staged now.

        Every write asks.  The disk is asked once for every `_ROOM_STEP` bytes that are staged, and
        every time while there is no room.
        """
        if self._allotted + size <= self._room_until:
            return
        self._room_until = 0
        staged = self.staged_bytes
        if staged + size > self._limits.staged:
            raise Full(f"{staged >> 20} MiB wait for the store, and stage_limit allows no more")
        vfs = os.statvfs(self._directory)
        free = vfs.f_bavail * vfs.f_frsize - self._limits.min_free
        if free < size:
            raise Full(f"less than stage_min_free is left on the disk of {self._directory}")
        self._room_until = self._allotted + min(
            free, self._limits.staged - staged, size + _ROOM_STEP
        )

    # ---- sealing ----------------------------------------------------------------------------

    async def put(self, pieces: list[bytes | bytearray | memoryview]) -> list[Extent]:
        """Seal pieces, each at most a chunk long, into packs.

        Returns where each lies, as an extent with start 0.  In the state directory when it returns,
        but not yet synced.
        """
        results: list[Extent] = []
        first = 0
        group = self._limits.pack_size.group
        while first < len(pieces):
            last, size = first, 0
            while last < len(pieces) and (last == first or size < group):
                size += len(pieces[last])
                last += 1
            results.extend(await self._put_group(pieces[first:last], size))
            first = last
        return results

    async def _put_group(
        self, pieces: list[bytes | bytearray | memoryview], size: int
    ) -> list[Extent]:
        """Seal pieces, *size* bytes in all, into the open pack."""
        most = size + len(pieces) * _SEAL
        pack = self._ready(most)
        pack.promised += most
        pack.busy += 1  # from here on an upload of this pack waits for us
        try:
            if size < _OFFLOAD_FROM:
                return [self._put(pack, piece, to_log=True) for piece in pieces]
            if len(pieces) == 1:
                return [await offload(self._put, pack, pieces[0])]
            plains: list[bytes] = await _shared(
                lambda n: chunk_format.encode(pieces[n], self._limits.compress), len(pieces)
            )
            # Offsets are given in the order of the file, which two threads that go their own ways
            # do not keep: what follows in the file follows in the pack, and one get brings it.
            offsets = [self._allot(pack, len(plain)) for plain in plains]
            return await _shared(
                lambda n: self._seal(pack, offsets[n], plains[n], len(pieces[n])), len(pieces)
            )
        finally:
            pack.busy -= 1
            pack.promised -= most  # compressed, it may have become far less
            if self._open is pack and pack.size >= self._wanted():
                self.cut()

    def _wanted(self) -> int:
        """The size at which the open pack is cut: less while the line would only wait for it."""
        idle = not self.uploading and not self._queue
        size = self._limits.pack_size.size
        return min(size, _WORTH) if idle else size

    def _ready(self, size: int) -> StagedPack:
        """The open pack, a new one if need be, with room for *size* bytes more."""
        pack = self._open
        if pack is not None:
            limit = self._limits.pack_size.size + self._limits.pack_size.group
            if pack.size + pack.promised + size > limit:
                self.cut()
                pack = None
        if pack is None:
            number = self._registry.number()
            name = clock.random_bytes(16)
            epoch = self._keyring.epoch
            path = self._directory / f"{number:016x}-{name.hex()}-{epoch}"
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except OSError as exc:
                raise Full(f"{self._directory}: {exc.strerror}") from exc
            pack = StagedPack(number, name, epoch, path, fd, self._keyring.pack_key(name, epoch))
            self._new_files = True
            self._registry.announce_pack(number, name, epoch)
            self._packs[number] = pack
            self._open = pack
        return pack

    def _put(
        self, pack: StagedPack, piece: bytes | bytearray | memoryview, to_log: bool = False
    ) -> Extent:
        plain = chunk_format.encode(piece, self._limits.compress)
        return self._seal(pack, self._allot(pack, len(plain)), plain, len(piece), to_log)

    def _allot(self, pack: StagedPack, size: int) -> int:
        """The offset in the pack at which a chunk of *size* bytes of plaintext goes."""
        sealed = aead.sealed_size(size)
        with self._allotting:
            offset = pack.size
            pack.size += sealed
            self._allotted += sealed
        return offset

    def _seal(
        self, pack: StagedPack, offset: int, plain: bytes, length: int, to_log: bool = False
    ) -> Extent:
        sealed = chunk_format.seal(
            pack.key, self._keyring.fsid, pack.epoch, pack.name, offset, plain
        )
        size = len(sealed)
        try:
            _write_at(pack.fd, memoryview(sealed), offset)
        except OSError as exc:
            raise Full(f"{self._directory}: {exc.strerror}") from exc
        if to_log:
            self._unsynced.update(self._unlogged.add(pack.number, offset, sealed))
        else:
            self._unsynced.add(pack.number)
        return Extent(0, length, pack.number, offset, size, length, 0, digest(sealed), None)

    def sync(self) -> None:
        """Make durable against a power cut what was put and is not in the log; runs in a thread."""
        for number in list(self._unsynced):
            self._unsynced.discard(number)
            # One that the store has counts too: until a commit names it, what lies here decides
            # after a power cut whether its batch is whole.
            pack = self._packs.get(number) or self._uploaded.get(number)
            if pack is not None:
                try:
                    os.fdatasync(pack.fd)
                except OSError:
                    if number not in self._packs and number not in self._uploaded:
                        continue  # committed and closed meanwhile
                    self._unsynced.add(number)
                    raise
        if self._new_files:
            self._new_files = False
            try:
                sync_directory(self._directory)
            except OSError:
                self._new_files = True
                raise

    def has(self, number: int) -> bool:
        """Whether that pack lies here."""
        return number in self._packs or number in self._uploaded

    def read(self, extent: Extent) -> bytes | None:
        """The sealed chunk, if it lies here."""
        return self.read_part(extent.pack, extent.offset, extent.sealed)

    def read_part(self, number: int, offset: int, length: int) -> bytes | None:
        """Sealed bytes of a pack, if they lie here; written lately, so they are in memory.

        In a copied state directory a pack may end before chunks that the original put into it and
        has brought to the store.
        """
        pack = self._packs.get(number) or self._uploaded.get(number)
        if pack is None or offset + length > pack.size:
            return None
        return os.pread(pack.fd, length, offset)

    # ---- bringing it to the store -----------------------------------------------------------

    def cut(self) -> None:
        """Send the open pack, if there is anything in it, as soon as its chunks are written."""
        pack = self._open
        if pack is None or not (pack.size or pack.busy):
            return
        pack.cut = True
        self._open = None
        self._queue.append(pack)
        self._wake.set()

    async def wait_change(self) -> None:
        """Return when a pack has reached the store, or has failed to."""
        await self._changed.wait()

    async def wait_below(self, size: int) -> None:
        """Return when less than *size* bytes lie here."""
        while self.staged_bytes >= size:
            await self._changed.wait()

    async def run(self) -> None:
        """Upload packs as they are cut, several at once; never returns."""
        async with trio.open_nursery() as nursery:
            while True:
                while self._queue and self.uploading < self._at_once():
                    pack = self._queue.pop(0)
                    self.uploading += 1
                    nursery.start_soon(self._upload, pack)
                if self._spent:
                    # Closing the last name of 8 MiB takes 5 ms, which a reader should not wait for.
                    spent, self._spent = self._spent, []
                    nursery.start_soon(_close, spent)
                await self._wake.wait()
                self._wake = trio.Event()

    def _at_once(self) -> int:
        """Uploads to begin: one more than the store has use for, so that it never waits for us.

        Not all: who waits there waits with a pack in memory.
        """
        useful = self._line.useful_uploads()
        return min(self._limits.uploads, useful + 1) if useful else self._limits.uploads

    async def _upload(self, pack: StagedPack) -> None:
        pause = 1.0
        try:
            while True:
                try:
                    await self._upload_once(pack)
                    break
                except (StoreError, Corrupt) as exc:
                    if not self._failing:
                        log.warning("cannot bring a pack to the store, will go on trying: %s", exc)
                    self._failing[pack.number] = exc
                    self._tell()
                except Exception as exc:
                    if supervisor.raises():
                        raise
                    # The pack must get there all the same, and the others not wait for it.
                    if not self._failing:
                        log.exception("cannot bring a pack to the store; this is a bug")
                    self._failing[pack.number] = Unavailable(f"{type(exc).__name__}: {exc}")
                    self._tell()
                await trio.sleep(clock.uniform(pause / 2, pause))
                pause = min(_PAUSE, pause * 2)
        finally:
            self._failing.pop(pack.number, None)
            self.uploading -= 1
            self._wake.set()
        await self._hand_over(pack)

    async def _upload_once(self, pack: StagedPack) -> None:
        while pack.busy:  # noqa: ASYNC110  (a thread is writing a chunk: milliseconds)
            await trio.sleep(0.001)
        data = await offload(_padded, pack, kind="disk")
        name = chunk_format.pack_name(pack.name)
        # One that an earlier process began may lie there in another length than here.
        look = pack.inherited and self._limits.may_overwrite
        is_new = not look or await self._get_stored(name, pack.size) is None
        if is_new:
            try:
                await self._store.put_new(name, data)
            except Exists:
                is_new = False
            except TooLarge:
                self._limits.pack_size.refused(len(data))
                raise
        if not is_new:
            await self._compare(pack, name, data)
        pack.stored = clock.now()
        pack.adopted = self._adopt is not None
        self._uploaded[pack.number] = pack
        self._packs.pop(pack.number, None)
        self._tell()

    async def _compare(self, pack: StagedPack, name: str, data: bytes) -> None:
        """The store has a pack of this name: see that all chunks are in it that files here hold.

        An earlier process may have stored it and died before it could note that.  Or the state
        directory was copied while the pack grew, and the copy stored what it has of it: then one of
        the two is the beginning of the other, up to the padding, which is random, and to a chunk
        that was being written.  The one that holds more chunks stays.
        """
        there = await self._get_stored(name, len(data)) or b""
        if there[: pack.size] == data[: pack.size]:
            return
        if pack.inherited:
            chunks = self._registry.chunks_of(pack.number)
            if all(_is_in(there, chunk) for chunk in chunks if chunk.offset < pack.size):
                return
            ours = all(_is_in(data, chunk) for chunk in chunks)
        else:
            ours = there[:_BEGINNING] == data[:_BEGINNING]
        if not ours:
            raise Corrupt(f"{name}: the store holds other bytes than were staged")
        log.warning(
            "%s: the store has the beginning of this pack alone: this state directory was copied",
            name,
        )
        await self._store.put(name, data)

    async def _get_stored(self, name: str, size: int) -> bytes | None:
        """The first *size* bytes of an object, as far as it goes; None if there is none."""
        try:
            return await self._store.get(name, 0, size)
        except Missing:
            return None

    async def _hand_over(self, pack: StagedPack) -> None:
        """Let the disk cache have the file, beside the commit that names it.

        Linked, not copied (1 ms/MiB): so `release` leaves it there until the cache has it.
        """
        if self._adopt is None:
            return
        try:
            with trio.move_on_after(_ADOPTION):
                await self._adopt(chunk_format.pack_name(pack.name), pack.path, pack.size)
        except Exception:
            # The other uploads, which would be cancelled with this one, must not pay for it.
            if supervisor.raises():
                raise
            log.exception("the disk cache did not take a pack; this is a bug")
        finally:
            pack.adopted = False
            if pack.path in self._leaving:
                self._leaving.remove(pack.path)
                pack.path.unlink(missing_ok=True)

    def doubt(self, older_than: float) -> None:
        """Send the packs again that the store took so many seconds ago and no commit names yet.

        After a long time away gc may have taken them for nobody's; the store has most of them, and
        says so.
        """
        now = clock.now()
        for number, pack in list(self._uploaded.items()):
            if not 0 <= now - pack.stored <= older_than:
                self._packs[number] = self._uploaded.pop(number)
                self._room_until = 0  # they count as staged again
                self._queue.append(pack)
                self._wake.set()

    def release(self, named: Collection[int]) -> None:
        """Remove the packs that the store has, but for those that uncommitted batches name."""
        for number in [n for n in self._uploaded if n not in named]:
            pack = self._uploaded.pop(number)
            if pack.adopted:
                self._leaving.add(pack.path)
            else:
                pack.path.unlink(missing_ok=True)
            self._spent.append(pack.fd)
        if self._spent:
            self._wake.set()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def close(self) -> None:
        """Give the files back; what is not in the store stays for the next process."""
        for pack in (*self._packs.values(), *self._uploaded.values()):
            os.close(pack.fd)
        for fd in self._spent:
            os.close(fd)
        self._spent = []
        for path in self._leaving:
            path.unlink(missing_ok=True)
        self._leaving.clear()
        self._packs.clear()
        self._uploaded.clear()


async def _shared(work: Callable[[int], T], count: int) -> list[T]:
    """The results of *work* for 0 to *count* - 1, in two threads: more gain nothing."""
    made: dict[int, T] = {}

    def some(first: int) -> None:
        for n in range(first, count, 2):
            made[n] = work(n)

    async with one_error_nursery() as nursery:
        for first in (0, 1):
            nursery.start_soon(offload, some, first)
    return [made[n] for n in range(count)]


def _is_in(pack: bytes, chunk: Extent) -> bool:
    """Whether the bytes of a pack hold that chunk."""
    return digest(pack[chunk.offset : chunk.offset + chunk.sealed]) == chunk.digest


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


async def _close(fds: list[int]) -> None:
    def close() -> None:
        for fd in fds:
            os.close(fd)

    # Not begun if the mount ends first: the process gives them back, too.
    await offload(close, kind="disk")


def _identity_of(file_name: str) -> tuple[int, bytes, int] | None:
    """The number, random id and epoch of the pack in a staged file; None if it is no such file."""
    match = _FILE.match(file_name)
    if match is None:
        return None
    number, epoch = int(match[1], 16), int(match[3])
    return (number, bytes.fromhex(match[2]), epoch) if 0 < number < 2**63 else None


def staged_ids(directory: Path) -> dict[int, tuple[bytes, int]]:
    """The packs that lie in *directory*: by number, the random id and the epoch."""
    found = {}
    for path in directory.iterdir():
        identity = _identity_of(path.name)
        if identity is not None:
            number, name, epoch = identity
            found[number] = (name, epoch)
    return found


def _padded(pack: StagedPack) -> bytes:
    """The bytes of a pack object."""
    data = bytearray(aead.padme(pack.size))
    view = memoryview(data)
    done = 0
    while done < pack.size:
        got = os.preadv(pack.fd, [view[done : pack.size]], done)
        if got == 0:
            break  # a chunk whose sealing failed left a hole at the end
        done += got
    view[pack.size :] = clock.random_bytes(len(data) - pack.size)
    view.release()
    return bytes(data) if len(data) < 1 << 16 else data  # type: ignore[return-value]
