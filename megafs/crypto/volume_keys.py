"""The keys of a volume, and how each comes from the master key.

    MK_e                      32 random bytes for each epoch e; wrapped in the key slots
    K_purpose = HKDF-Expand-SHA512(MK_e, fields("subkey:" purpose, fsid, e))
    K_pack    = HKDF-Expand-SHA512(K_chunk, fields("subkey:object", fsid, e, pack id))
    K_piece   = HKDF-Expand-SHA512(K_pack, fields("subkey:piece", offset))

`fields()` is `aead.encode_fields`.  No key ever serves two purposes: whatever needs another key
needs another purpose string.  A pack holds chunks of several files, so each chunk has a key of its
own, and a share link can hand out exactly the chunks of one file.

Purposes in the store: "keys-mac" (the volume header), "log" (commits), "ckpt" (checkpoints),
"chunk" (packs), "mount" (heartbeats), "name" (keyed hashes of contents, if deduplication is on).
On this machine: "replica", "state" (staged data).  RFC 5869 defines HKDF.

Pure: no I/O, no clock, no randomness.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NoReturn

from blake3 import blake3
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from megafs.crypto import aead
from megafs.errors import Corrupt

FSID_SIZE: Final = 16
KEY_SIZE: Final = aead.KEY_SIZE
DIGEST_SIZE: Final = 32

_SHA512: Final = SHA512()


def digest(data: aead.Buffer) -> bytes:
    """Return the BLAKE3-256 of *data*, as extents and the chain of commits hold it."""
    return blake3(data).digest()


def expand(key: bytes, *fields: bytes | int | str) -> bytes:
    """Return the 32-byte key that *key* and these fields give: HKDF-Expand with SHA-512."""
    return HKDFExpand(_SHA512, KEY_SIZE, aead.encode_fields(*fields)).derive(key)


def chunk_key(pack_key: bytes, offset: int) -> bytes:
    """Return the key of the one chunk that starts at *offset* in the pack of *pack_key*."""
    return expand(pack_key, "subkey:piece", offset)


class Keyring:
    """The master keys of one volume, and every key that comes from them.

    May be used by several threads at once.
    """

    __slots__ = ("_masters", "_subkeys", "epoch", "fsid")

    def __init__(self, fsid: bytes, masters: Mapping[int, bytes], current: int) -> None:
        """masters: the master key (32 bytes) of each epoch.  current: the epoch new data uses."""
        if len(fsid) != FSID_SIZE:
            raise ValueError(f"a volume id is {FSID_SIZE} bytes")
        if any(len(key) != KEY_SIZE for key in masters.values()):
            raise ValueError(f"a master key is {KEY_SIZE} bytes")
        if current not in masters:
            raise ValueError(f"the current epoch {current} has no master key")
        self.fsid = fsid
        self.epoch = current
        self._masters = dict(masters)
        self._subkeys: dict[tuple[str, int], bytes] = {}

    def __repr__(self) -> str:
        epochs = ", ".join(str(epoch) for epoch in sorted(self._masters))
        return f"<Keyring of {self.fsid.hex()}, epochs {epochs}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a keyring is not to be copied or stored")

    @property
    def epochs(self) -> list[int]:
        """The epochs whose data can be opened, in order."""
        return sorted(self._masters)

    def master(self, epoch: int) -> bytes:
        """Return the master key of *epoch*; Corrupt if it is not on the ring."""
        try:
            return self._masters[epoch]
        except KeyError:
            # An epoch is read from authenticated bytes or an unverified name; neither may be a
            # KeyError that nobody expects.
            raise Corrupt(f"no master key of epoch {epoch} for volume {self.fsid.hex()}") from None

    def with_master(self, epoch: int, key: bytes, *, current: bool = False) -> Keyring:
        """Return a keyring with one more epoch, the current one if asked for."""
        masters = {**self._masters, epoch: key}
        return Keyring(self.fsid, masters, epoch if current else self.epoch)

    def subkey(self, purpose: str, epoch: int | None = None) -> bytes:
        """Return the key for *purpose*, in the current epoch unless another is named."""
        if epoch is None:
            epoch = self.epoch
        key = self._subkeys.get((purpose, epoch))
        if key is None:
            key = expand(self.master(epoch), "subkey:" + purpose, self.fsid, epoch)
            self._subkeys[purpose, epoch] = key
        return key

    def pack_key(self, pack: bytes, epoch: int | None = None) -> bytes:
        """Return the key of the pack with the id *pack*: `chunk_key` gives its chunks' keys."""
        if epoch is None:
            epoch = self.epoch
        return expand(self.subkey("chunk", epoch), "subkey:object", self.fsid, epoch, pack)


def wrap(kek: bytes, context: bytes, master: bytes) -> bytes:
    """Return *master* sealed under a key-encryption key, for a key slot."""
    if len(master) != KEY_SIZE:
        raise ValueError(f"a master key is {KEY_SIZE} bytes")
    return aead.seal(kek, context, master)


def unwrap(kek: bytes, context: bytes, wrapped: bytes) -> bytes:
    """Return the master key inside *wrapped*; Corrupt if *kek* or the context is another."""
    master = aead.open_sealed(kek, context, wrapped)
    if len(master) != KEY_SIZE:
        raise Corrupt(f"the key slot holds {len(master)} bytes, not a master key")
    return master
