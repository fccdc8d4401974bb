"""The log of sealed operations in the state directory: what must survive until it is committed.

The replica can be rebuilt from the store at any time; what only this machine knows cannot.  So
every operation is also written here, sealed, before a close(2) that needs it returns.  Files
`ops-<8 digits>` hold frames:

    length u32 big-endian | batch u64 | epoch u32 | first u32 | sealed

with the state key of the epoch and the context ("oplog", mount, batch, first).  What is sealed is
operations as MessagePack (tree/ops.py): those of the batch from number *first* on, so that a batch
that is still open is written piece by piece.  A frame takes the place of all that were written
before for the same batch from there on.  A frame that is cut short or does not open ends the log:
nothing behind it was ever promised to anyone.  A file goes when all its batches are in the journal.

Small chunks that operations name come along, in frames of their own before them, so that a close(2)
needs one sync and not a second one for the pack (docs/decisions/0008).  There `first` is 2**32-1,
and instead of what is sealed stands

    pack u64 | offset u64 | digest | the chunk, as it was sealed for its pack

After a power cut they are written into the pack once more.

A number alone does not say which batch it is: two machines may run from copies of one state
directory, so what stands before the operations of a process is a note: a frame with `first`
2**32-2, whose sealed part is the MessagePack array

    [origin, key, strict]

origin: the number of the mount that logged the batches which follow first.  key: what the batch
that follows is known by (identity.py), if its operations are not as they were logged first any
more; else 0.  strict: the numbers of the operations of the next frame that are done as they are or
not at all.  Where no note stands, the origin is the number of the state directory: so it was before
there were notes.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from megafs.crypto import aead
from megafs.crypto.volume_keys import DIGEST_SIZE, Keyring, digest
from megafs.durable import replace_file, sync_directory
from megafs.errors import Corrupt
from megafs.private_files import DAMAGED, expect_file, open_private, read_private

log = logging.getLogger(__name__)

_FRAME = struct.Struct(">IQII")
_PIECE = struct.Struct(">QQ")
_IS_PIECE = 0xFFFFFFFF
_IS_NOTE = 0xFFFFFFFE
_SEGMENT_SIZE = 8 << 20
_NAME = re.compile(r"ops-[0-9]{8}")


#: (pack, offset, sealed bytes): a chunk that an operation names.
Piece = tuple[int, int, bytes]
Restore = Callable[[int, int, memoryview], None]


class Note(msgspec.Struct, array_like=True, frozen=True):
    """What is known of the operations that follow it in the log; see above."""

    origin: int
    key: int = 0
    strict: tuple[int, ...] = ()


class LoggedFrame(NamedTuple):
    """Operations as they were logged at once.  first: how many of the batch come before them."""

    first: int
    operations: bytes
    note: Note


class OperationLog:
    """Appends batches, makes them durable, forgets those that are committed.

    directory: exists, ours alone.  state_number: the number of the state directory.
    """

    def __init__(self, directory: Path, keyring: Keyring, state_number: int) -> None:
        self._directory = directory
        self._keyring = keyring
        self._state_number = state_number
        self._unnoted = Note(state_number)
        self._noted = self._unnoted  # what stands in the current file
        # number of the file -> the last batch in it
        self._segments: dict[int, int] = {}
        self._fd = -1
        self._current = 0
        self._size = 0
        # Frames that the disk would not take; `sync` tries again, and fails if it must.
        self._unwritten: list[bytes] = []
        self._lock = threading.Lock()
        #: Whether there was more here than `read` could take up.
        self.is_damaged = False
        #: How many frames were appended by this process; see `sync`.
        self.position = 0

    def read(
        self, restore: Restore | None = None, *, power_cut: bool = False
    ) -> list[tuple[int, list[LoggedFrame]]]:
        """Read the log: (a batch's number, its frames in order) for each batch, by number.

        Call before `append`.
        restore: given every chunk that came along: its pack, its offset there, its bytes.
        power_cut: one may have taken the end of the log, which no sync had covered.
        """
        found: dict[int, dict[int, LoggedFrame]] = {}
        paths = sorted(self._directory.glob("ops-*"))
        for path in paths:
            if not _NAME.fullmatch(path.name):
                continue  # an editor's copy
            number = int(path.name[4:])
            if not expect_file(path):
                self.is_damaged = True
                self._current = max(self._current, number)
                continue
            self._current = max(self._current, number)
            last = 0
            note = self._unnoted
            may_be_torn = power_cut and path == paths[-1]
            for batch, first, ops in self._frames(path, restore, may_be_torn):
                last = max(last, batch)
                if first == _IS_PIECE:
                    continue
                if first == _IS_NOTE:
                    note = _decoded(ops, path.name)
                    continue
                kept = found.get(batch, {})
                # `keep_only` and `Replica.recover` may have written it once more.
                found[batch] = {at: kept[at] for at in kept if at < first} | {
                    first: LoggedFrame(first, ops, note)
                }
            self._segments[number] = last
        return [(batch, list(frames.values())) for batch, frames in sorted(found.items())]

    def sync_read(self) -> None:
        """Make durable what `read` found: a process that was killed may not have got to it."""
        for number, last in self._segments.items():
            if last:
                fd = open_private(self._path(number), os.O_RDONLY)
                try:
                    os.fdatasync(fd)
                finally:
                    os.close(fd)

    def _frames(
        self, path: Path, restore: Restore | None, may_be_torn: bool
    ) -> list[tuple[int, int, bytes]]:
        """The frames of a file.

        may_be_torn: a power cut may have taken its end, which no sync had covered.
        """
        data = read_private(path)
        if not data and not may_be_torn:
            self.is_damaged = True  # a process that is killed hardly ever leaves it like that
        at = end = 0
        frames = []
        while at + _FRAME.size <= len(data):
            size, batch, epoch, first = _FRAME.unpack_from(data, at)
            at += _FRAME.size
            if size == 0 or at + size > len(data):
                break
            body = memoryview(data)[at : at + size]
            try:
                if first == _IS_PIECE:
                    _take_piece(body, restore)
                    ops = b""
                else:
                    ops = aead.open_sealed(
                        self._keyring.subkey("state", epoch),
                        self._context(epoch, batch, first),
                        body,
                        path.name,
                    )
            except Corrupt:
                break
            frames.append((batch, first, ops))
            at += size
            end = at
        left = len(data) - end
        if may_be_torn:
            if left:
                log.warning("%s: its end is not whole; what lies there was never promised", path)
        elif any(data[end:]):
            self._keep(path, left)
        return frames

    def _keep(self, path: Path, size: int) -> None:
        """Keep a copy of a file whose last *size* bytes cannot be read: it is removed in the end.

        A process that was killed in the middle of a write leaves such an end, of a frame that
        nobody was told of, and so does one whose directory is copied meanwhile; so does a disk that
        loses bytes, of frames that were promised.
        """
        self.is_damaged = True
        log.error(
            "%s: the last %d bytes are not whole and cannot be taken up: what they held is not"
            " in the store, unless nobody was told yet that it was kept; a copy lies in %s",
            path,
            size,
            _copy(path),
        )

    def keep_copies(self) -> None:
        """Keep a copy of every file that `read` found, in `damaged/`."""
        for number in self._segments:
            _copy(self._path(number))

    def append(
        self,
        batch: int,
        ops: bytes,
        first: int = 0,
        pieces: Iterable[Piece] = (),
        note: Note | None = None,
    ) -> None:
        """Write operations of a batch; durable only after `sync`, which says so if it cannot be.

        first: how many operations of the batch come before these.
        pieces: chunks they name whose packs are not synced.
        note: what is known of them, if there is more than the number of the state directory.
        """
        note = note or self._unnoted
        epoch = self._keyring.epoch
        sealed = self._sealed(batch, first, ops)
        with self._lock:
            self.position += 1
            for pack, offset, chunk in pieces:
                body = _PIECE.pack(pack, offset) + digest(chunk) + chunk
                self._unwritten.append(_FRAME.pack(len(body), batch, epoch, _IS_PIECE) + body)
            try:
                if self._fd < 0 or self._size > _SEGMENT_SIZE:
                    self._next_file()
            except OSError as exc:
                log.error("the log of operations cannot be written: %s", exc)
            if note != self._noted:
                noted = self._sealed(batch, _IS_NOTE, msgspec.msgpack.encode(note))
                self._unwritten.append(_FRAME.pack(len(noted), batch, epoch, _IS_NOTE) + noted)
                self._noted = note
            self._unwritten.append(_FRAME.pack(len(sealed), batch, epoch, first) + sealed)
            if self._fd < 0:
                return
            try:
                self._segments[self._current] = batch
                self._write()
            except OSError as exc:
                log.error("the log of operations cannot be written: %s", exc)

    def _write(self) -> None:
        while self._unwritten:
            frame = self._unwritten[0]
            written = 0
            try:
                while written < len(frame):
                    written += os.write(self._fd, frame[written:])
            except OSError:
                # Half a frame would end the log for whoever reads it.
                os.ftruncate(self._fd, self._size)
                raise
            self._size += len(frame)
            del self._unwritten[0]

    def sync(self) -> None:
        """Make every frame durable that was appended until now.  May run in a thread beside
        `append`.

        Raises OSError if it is not.
        """
        with self._lock:
            if self._unwritten:
                if self._fd < 0:
                    self._next_file()
                self._write()
            if self._fd < 0:
                return
            fd = os.dup(self._fd)  # the file may be finished, and closed, meanwhile
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def keep_only(
        self, batches: Iterable[tuple[int, bytes]], notes: Mapping[int, Note] | None = None
    ) -> None:
        """Make the log hold exactly these batches, durably.  notes: of a batch, by its number."""
        notes = notes or {}
        old = list(self._segments)
        with self._lock:
            self._unwritten.clear()
            self._next_file()
        for batch, ops in batches:
            self.append(batch, ops, note=notes.get(batch))
        self.sync()
        for number in old:
            self._segments.pop(number, None)
            self._path(number).unlink(missing_ok=True)

    def forget(self, committed: int) -> None:
        """Remove the files whose batches are all in the journal."""
        for number, last in list(self._segments.items()):
            if last <= committed and number != self._current:
                del self._segments[number]
                self._path(number).unlink(missing_ok=True)
        if self._segments.get(self._current, 0) <= committed and self._size > 1 << 20:
            with self._lock:
                self._next_file()

    def close(self, committed: int) -> None:
        """Give the file back; remove everything if all of it is committed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        for number, last in list(self._segments.items()):
            if last <= committed:
                self._path(number).unlink(missing_ok=True)

    def _next_file(self) -> None:
        if self._fd >= 0:
            os.fdatasync(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._current += 1
        self._fd = os.open(
            self._path(self._current),
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
        )
        self._size = 0
        self._noted = self._unnoted
        self._segments[self._current] = 0
        sync_directory(self._directory)

    def _path(self, number: int) -> Path:
        return self._directory / f"ops-{number:08d}"

    def _sealed(self, batch: int, first: int, body: bytes) -> bytes:
        epoch = self._keyring.epoch
        context = self._context(epoch, batch, first)
        return aead.seal(self._keyring.subkey("state", epoch), context, body)

    def _context(self, epoch: int, batch: int, first: int) -> bytes:
        return aead.context("oplog", self._keyring.fsid, epoch, self._state_number, batch, first)


def _copy(path: Path) -> Path:
    """Keep a copy of a file of the log in `damaged/`; return where."""
    data = read_private(path)
    home = path.parent / DAMAGED
    home.mkdir(mode=0o700, exist_ok=True)
    to = home / f"{path.name}-{digest(data).hex()[:16]}"
    if not to.exists():  # it may lie here for many mounts, if nothing can be committed
        replace_file(to, data)
    return to


def _decoded(body: bytes, name: str) -> Note:
    try:
        return msgspec.msgpack.decode(body, type=Note)
    except msgspec.MsgspecError as exc:
        raise Corrupt(f"{name}: {exc}") from exc


def _take_piece(body: memoryview, restore: Restore | None) -> None:
    start = _PIECE.size + DIGEST_SIZE
    if len(body) < start or digest(body[start:]) != body[_PIECE.size : start]:
        raise Corrupt("a chunk that is not whole")
    if restore is not None:
        pack, offset = _PIECE.unpack_from(body)
        restore(pack, offset, body[start:])
