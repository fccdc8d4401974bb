"""One commit: what one mount changed in the tree, as one sealed object.

`commits/<16 digits>` is, in bytes:

    format u8 = 1 | epoch u32 big-endian | sealed(log key of the epoch, context("log", 1, sequence))

and what is sealed is:  length u32 big-endian | body | zeros, up to a Padmé size of the object.
The format is in the context too.  The body is MessagePack: an array of the fields of `Commit`, in
that order.

A commit carries the BLAKE3-256 of the object before it, so the journal is one chain: nothing can be
left out, put in or exchanged.  The changeset is SQLite's (session extension), compressed with zstd.
`sig` is kept free for signatures of single writers.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import msgspec

from megafs import compression
from megafs.crypto import aead
from megafs.crypto.volume_keys import Keyring, digest
from megafs.errors import Corrupt, TooNew
from megafs.tree.changeset import Changes
from megafs.tree.schema import SequenceNumber

T = TypeVar("T")

FORMAT: Final = 1
#: The largest object that is read as a commit; the writer stays far below.
MAX_OBJECT: Final = 64 << 20
MAX_CHANGESET: Final = 256 << 20
_HEAD: Final = 5
#: So many bytes tell one commit from another: format, epoch, salt and commitment.
BEGINNING: Final = 61


#: What SQLite stores; MessagePack can say more.
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Commit(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One entry of the journal.

    prev: hash of the object before it.  mount, host: who wrote it.  commit_id: 16 random bytes.
    first_batch, last_batch: the mount's own numbers of what it holds, for exactly-once after a
        crash.
    time_ns: the writer's clock.  generation: of the key header the writer had.
    changeset: zstd of a SQLite changeset over the replicated tables.
    """

    prev: bytes
    mount: Int64
    host: str
    commit_id: bytes
    first_batch: Int64
    last_batch: Int64
    time_ns: Int64
    generation: Int64
    operations: Int64
    changeset: bytes
    sig: bytes | None = None


class VerifiedCommit(msgspec.Struct):
    """A commit that was read from the store, opens, and follows the one before it.

    hash: of its object, which the next commit names.
    """

    sequence: SequenceNumber
    hash: bytes
    commit: Commit
    _changes: Changes | None = None

    @property
    def changes(self) -> Changes:
        """Its changes to the tree: decompressed and decoded once, until `forget_changes`."""
        if self._changes is None:
            self._changes = Changes.of(unpack_changeset(self.commit))
        return self._changes

    def forget_changes(self) -> None:
        """They are applied: give the memory back (several times the size of the object)."""
        self._changes = None


#: What the names of commits begin with.
PREFIX = "commits/"


def object_name(sequence: int) -> str:
    """The name of the commit with that number; numbers begin at 1."""
    return f"{PREFIX}{sequence:016d}"


def sequence_of(name: str) -> SequenceNumber:
    """The number in a commit's name; Corrupt if it is not one."""
    prefix, _, digits = name.partition("/")
    if prefix != "commits" or len(digits) != 16 or not digits.isdecimal():
        raise Corrupt(f"{name}: not the name of a commit")
    return SequenceNumber(int(digits))


def genesis(fsid: bytes) -> bytes:
    """The hash that the first commit names as the one before it."""
    return digest(aead.encode_fields("genesis", fsid))


def seal(keyring: Keyring, sequence: int, commit: Commit) -> bytes:
    """Return the object that holds *commit* as number *sequence*."""
    body = msgspec.msgpack.encode(commit)
    return seal_padded(keyring, "log", FORMAT, body, sequence)


def open_commit(keyring: Keyring, sequence: int, data: bytes) -> Commit:
    """Return the commit that the object *data* holds; Corrupt if it is not commit *sequence*."""
    name = object_name(sequence)
    body = open_padded(keyring, "log", FORMAT, data, name, sequence)
    return decoded(name, body, Commit)


def decoded(name: str, body: bytes, kind: type[T]) -> T:
    """The value of type *kind* that the MessagePack *body* of an object holds; else Corrupt.

    The bytes are authentic, but a writer may have a fault, or be one who has the key.
    """
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as exc:
        raise Corrupt(f"{name}: {exc}") from exc


def epoch_of(data: bytes) -> int:
    """The epoch that a sealed object says it is of; true only if it opens."""
    return int.from_bytes(data[1:5], "big")


def pack_changeset(changeset: bytes) -> bytes:
    return compression.compress(changeset)


def unpack_changeset(commit: Commit) -> bytes:
    return compression.decompress(commit.changeset, MAX_CHANGESET)


def seal_padded(
    keyring: Keyring, purpose: str, version: int, body: bytes, *place: bytes | int | str
) -> bytes:
    """Seal *body* for its place so that the object's size is a Padmé size."""
    plain_size = aead.padded_size(4 + len(body), _HEAD)
    epoch = keyring.epoch
    plain = len(body).to_bytes(4, "big") + body + bytes(plain_size - 4 - len(body))
    context = aead.context(purpose, keyring.fsid, epoch, version, *place)
    sealed = aead.seal(keyring.subkey(purpose, epoch), context, plain)
    return bytes((version,)) + epoch.to_bytes(4, "big") + sealed


def open_padded(
    keyring: Keyring, purpose: str, version: int, data: bytes, name: str, *place: bytes | int | str
) -> bytes:
    """Return the body that `seal_padded` sealed for that place."""
    if len(data) < _HEAD:
        raise Corrupt(f"{name}: only {len(data)} bytes")
    if data[0] > version:
        # Nothing vouches for that byte: the format is in the context, so whoever does not know it
        # cannot open what is sealed.
        raise TooNew(
            f"{name} begins as format {data[0]} would, and this megafs knows up to {version}:"
            " either it is damaged, or a newer megafs wrote it"
        )
    if data[0] != version:
        raise Corrupt(f"{name}: unknown format {data[0]}")
    epoch = int.from_bytes(data[1:5], "big")
    context = aead.context(purpose, keyring.fsid, epoch, version, *place)
    if epoch not in keyring.epochs:
        raise Corrupt(
            f"{name} is sealed under the key of epoch {epoch}, which was not there when the volume"
            " was opened here. If its key was rotated: unmount and mount again, what is staged here"
            " is kept. Else the object is damaged"
        )
    plain = aead.open_sealed(
        keyring.subkey(purpose, epoch), context, memoryview(data)[_HEAD:], name
    )
    size = int.from_bytes(plain[:4], "big")
    if size > len(plain) - 4:
        raise Corrupt(f"{name}: says it holds {size} bytes, has {len(plain) - 4}")
    return plain[4 : 4 + size]
