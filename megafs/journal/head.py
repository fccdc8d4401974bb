"""The head that this machine remembers: the newest commit it has seen, and the key header it used.

`head` in the state directory, apart from the replica, so that a lost replica does not turn a known
machine into a new one.  It is written, durably, before any fsync(2) that needs the commit returns,
so a write must be cheap: the file holds two records of 512 bytes, each a line of JSON with digest,
and the one that is not the newest is overwritten and synced, which is one sync of bytes in place
(0.7 ms) and not two of new names (4.9 ms).  A power cut tears at most the record that was being
written, and then the other one counts.  It holds numbers and hashes, no secret and no name.  A
store that serves less, or another history, is refused (docs/threats.md).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

import msgspec
from blake3 import blake3
from msgspec import Struct
from msgspec.structs import asdict

from megafs.concurrency import Syncs
from megafs.durable import replace_file
from megafs.errors import Corrupt, Denied, Full
from megafs.private_files import open_private, read_private

_SIZE: Final = 512


class RememberedHead(Struct, frozen=True):
    """sequence, hash: of the newest commit.  generation: of the key header.  slot: which opened.

    epoch: of that header; None in a file of a megafs that did not keep it.  header: the hash of its
        object, or "".
    rotating: the epoch that a rotation on this machine begins, as long as no commit of it was seen;
        else 0.
    """

    fsid: str
    sequence: int
    hash: str
    generation: int
    slot: str = ""
    epoch: int | None = None
    header: str = ""
    rotating: int = 0


class _Record(RememberedHead, frozen=True, kw_only=True):
    """One of the two records of the file.  turn: the greater one is the newer."""

    turn: int


class OpenedHeader(Struct, frozen=True):
    """The key header that a mount opened the volume with, as `RememberedHead` keeps it."""

    fsid: str
    generation: int
    slot: str
    epoch: int
    digest: str


def read(directory: Path) -> RememberedHead | None:
    """Return the remembered head; None on a machine that has not seen the volume."""
    path = directory / "head"
    try:
        data = read_private(path, 2 * _SIZE + 1)
    except FileNotFoundError:
        return None
    except PermissionError as exc:
        raise Denied(f"{path}: {exc.strerror}; chmod u+rw {path}") from exc
    except OSError as exc:
        raise _unreadable(path, exc.strerror or str(exc)) from exc
    newest = max(_records(data), default=None, key=lambda record: record[0])
    if newest is None:
        raise _unreadable(path, "nothing in it is whole")
    return newest[2]


def write(directory: Path, seen: RememberedHead) -> None:
    """Remember *seen*, durably; blocks for a sync.  Not for two threads at once."""
    path = directory / "head"
    try:
        fd = open_private(path, os.O_RDWR)
    except FileNotFoundError:
        replace_file(path, _line(1, seen) + b" " * _SIZE)
        return
    try:
        data = os.pread(fd, 2 * _SIZE + 1, 0)
        records = _records(data)
        if len(data) != 2 * _SIZE or not records:
            replace_file(path, _line(1, seen) + b" " * _SIZE)
            return
        turn, number, _ = max(records, key=lambda record: record[0])
        os.pwrite(fd, _line(turn + 1, seen), (1 - number) * _SIZE)
        os.fdatasync(fd)
    finally:
        os.close(fd)


class HeadKeeper:
    """Remembers the newest commit for a mount, which has opened the volume with one key header.

    rotating: as in `RememberedHead`; 0 from the first commit of that epoch on.
    """

    def __init__(self, directory: Path, opened: OpenedHeader, rotating: int = 0) -> None:
        self._directory = directory
        self._opened = opened
        self._rotating = rotating
        self._syncs = Syncs()

    def at(self, sequence: int, newest: bytes, epoch: int) -> RememberedHead:
        """The head to remember at a commit.  newest: its hash.  epoch: the journal's highest."""
        if epoch >= self._rotating:
            self._rotating = 0
        opened = self._opened
        return RememberedHead(
            opened.fsid,
            sequence,
            newest.hex(),
            opened.generation,
            opened.slot,
            opened.epoch,
            opened.digest,
            self._rotating,
        )

    async def remember(self, sequence: int, newest: bytes, epoch: int) -> None:
        """Remember a commit (see `at`), durably; Full if it cannot be written."""
        try:
            await self._syncs.run(write, self._directory, self.at(sequence, newest, epoch))
        except OSError as exc:
            raise Full(f"{self._directory}/head cannot be written: {exc.strerror}") from exc


def _line(turn: int, seen: RememberedHead) -> bytes:
    text = json.dumps({"turn": turn, **asdict(seen)}).encode()
    return (text + b" " + _check(text)).ljust(_SIZE - 1) + b"\n"


def _check(text: bytes) -> bytes:
    """Tells a record that was torn in the middle of a number, which is good JSON, too."""
    return blake3(text).hexdigest(8).encode()


def _records(data: bytes) -> list[tuple[int, int, RememberedHead]]:
    """The records that are whole: (turn, its number, what it says)."""
    found = []
    for number in (0, 1):
        text, _, check = data[number * _SIZE : (number + 1) * _SIZE].rstrip().rpartition(b" ")
        if check != _check(text):
            continue
        try:
            record = msgspec.json.decode(text, type=_Record)
        except msgspec.MsgspecError:
            continue
        fields = asdict(record)
        found.append((fields.pop("turn"), number, RememberedHead(**fields)))
    return found


def _unreadable(path: Path, why: str) -> Corrupt:
    return Corrupt(
        f"{path} cannot be read ({why}): it remembers how far this machine has seen the volume."
        " If you are sure the store is right, remove the file"
    )


def words(digest: bytes) -> str:
    """Four words for a hash, to compare by eye or on the telephone.

    Each stands for 11 bits, two letter pairs from a fixed table: 44 bits in all, enough to notice a
    different head, too few to prove an equal one.
    """
    number = int.from_bytes(digest[:8], "big") >> 20
    made = []
    for _ in range(4):
        number, part = number >> 11, number & 0x7FF
        made.append(_syllables(part))
    return " ".join(reversed(made))


_CONSONANTS = "bdfghjklmnprstvz"
_VOWELS = "aiou"


def _syllables(part: int) -> str:
    """Eleven bits as consonant-vowel-consonant-vowel, pronounceable in most languages."""
    text = ""
    for bits, letters in ((4, _CONSONANTS), (2, _VOWELS), (4, _CONSONANTS), (1, "ae")):
        text += letters[part & ((1 << bits) - 1)]
        part >>= bits
    return text
