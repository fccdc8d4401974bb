"""MEGA's own ciphers: what opens its keys, names and files.  None of them seals anything of ours.

AES-128 throughout, as MEGA's white paper and SDK have it:

    keys        ECB under another key: nothing shows whether what comes out is right
    attributes  CBC with an IV of zeros; right if it begins with "MEGA{"
    contents    CTR; the whole file has a MAC of 64 bits, a part of it has none

Pure: no I/O, no clock.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any, Final

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from megafs.secret_struct import SecretStruct

Buffer = bytes | bytearray | memoryview

_BLOCK: Final = 16
_ZEROS: Final = bytes(_BLOCK)

#: The first piece of a file that has a MAC of its own; each of the next seven is so much longer.
CHUNK_STEP: Final = 128 << 10
#: Every later piece.
CHUNK_MOST: Final = 8 * CHUNK_STEP

#: A node's key: of a file, and of a folder.
FILE_KEY: Final = 32
FOLDER_KEY: Final = 16


def encode(data: bytes) -> str:
    """*data* in base64url without padding."""
    return urlsafe_b64encode(data).decode().rstrip("=")


def decode(text: object) -> bytes:
    """What *text*, base64 of either alphabet with or without padding, stands for; ValueError.

    text: as it came, so perhaps no text at all.
    """
    if not isinstance(text, str):
        raise ValueError("not a text")
    plain = text.translate(_STANDARD)
    return b64decode(plain + "=" * (-len(plain) % 4), validate=True)


_STANDARD: Final = str.maketrans({"-": "+", "_": "/", ",": None, "=": None})


def xor(one: bytes, other: bytes) -> bytes:
    """Byte by byte; both of the same length."""
    size = len(one)
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).to_bytes(size, "big")


def unwrap(key: bytes, wrapped: bytes) -> bytes:
    """Open *wrapped* keys, of a multiple of 16 bytes, with *key* of 16."""
    return Unwrapper(key)(wrapped)


class Unwrapper:
    """Opens many keys with one: ECB has no state, so one cipher serves all of them."""

    def __init__(self, key: bytes) -> None:
        self._open: CipherContext = Cipher(algorithms.AES(key), modes.ECB()).decryptor()

    def __call__(self, wrapped: bytes) -> bytes:
        if not wrapped or len(wrapped) % _BLOCK:
            raise ValueError("a wrapped key is whole blocks")
        return self._open.update(wrapped)


def wrap(key: bytes, plain: bytes) -> bytes:
    """Close *plain*, of a multiple of 16 bytes, with *key*: for the proofs that MEGA compares."""
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(plain)


class FileKey(SecretStruct, frozen=True):
    """key: of AES, 16 bytes.  nonce: 8 bytes.  mac: what the contents must give, 8 bytes."""

    key: bytes
    nonce: bytes
    mac: bytes

    @classmethod
    def of(cls, node_key: bytes) -> FileKey:
        """Take a node's key of 32 bytes apart; ValueError for another length."""
        if len(node_key) != FILE_KEY:
            raise ValueError("the key of a file has 32 bytes")
        nonce, mac = node_key[16:24], node_key[24:]
        return cls(xor(node_key[:16], nonce + mac), nonce, mac)


def attributes_key(node_key: bytes) -> bytes:
    """The 16 bytes that open a node's attributes."""
    if len(node_key) == FOLDER_KEY:
        return node_key
    return FileKey.of(node_key).key


def open_attributes(key: bytes, closed: bytes) -> dict[str, Any] | None:
    """The attributes of a node, opened with *key* of 16 bytes; None if that is not their key."""
    if not closed or len(closed) % _BLOCK:
        return None
    worker = Cipher(algorithms.AES(key), modes.CBC(_ZEROS)).decryptor()
    text = worker.update(closed)
    if not text.startswith(b"MEGA{"):
        return None
    end = text.rfind(b"}")
    try:
        found = json.loads(text[4 : end + 1].decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def mtime_of(fingerprint: object) -> int | None:
    """The time of last modification in an attribute `c`, in seconds since 1970; None if none is.

    16 bytes of checksums, then a number: its length, and so many bytes, the lowest first.
    """
    if not isinstance(fingerprint, str):
        return None
    try:
        data = decode(fingerprint)
    except ValueError:
        return None
    if len(data) < 17 or data[16] > 8 or len(data) < 17 + data[16]:
        return None
    return int.from_bytes(data[17 : 17 + data[16]], "little")


def decipherer(key: FileKey, offset: int) -> Callable[[Buffer], bytes]:
    """A function that opens the bytes of a file from *offset* on, piece by piece.

    offset: a multiple of 16.
    """
    if offset % _BLOCK:
        raise ValueError("CTR begins at a block")
    counter = key.nonce + (offset // _BLOCK).to_bytes(8, "big")
    return Cipher(algorithms.AES(key.key), modes.CTR(counter)).decryptor().update


class FileMac:
    """The MAC of a whole file, from its plain bytes in order, in pieces of any length."""

    def __init__(self, key: FileKey) -> None:
        self._key = key
        self._whole = Cipher(algorithms.AES(key.key), modes.ECB()).encryptor()
        self._mac = _ZEROS
        self._step = 1
        self._open: CipherContext | None = None  # of the chunk that has begun
        self._left = 0  # bytes until it ends
        self._last = _ZEROS  # its newest block
        self._part = b""  # bytes of a block that is not whole yet

    def update(self, plain: Buffer) -> None:
        """Take the next bytes."""
        view = memoryview(plain)
        while view:
            if self._open is None:
                self._begin()
            piece = view[: self._left]
            view = view[len(piece) :]
            self._left -= len(piece)
            self._take(piece)
            if not self._left:
                self._end()

    def digest(self) -> bytes:
        """The 8 bytes, now that all of the file was taken; to be called once."""
        if self._open is not None:
            self._end()
        mac = self._mac
        return xor(mac[0:4], mac[4:8]) + xor(mac[8:12], mac[12:16])

    def fits(self) -> bool:
        """Whether all that was taken is the file; an empty one always is (MEGA's own form)."""
        return hmac.compare_digest(self.digest(), self._key.mac)

    def _begin(self) -> None:
        iv = self._key.nonce + self._key.nonce
        self._open = Cipher(algorithms.AES(self._key.key), modes.CBC(iv)).encryptor()
        self._left = min(self._step, CHUNK_MOST // CHUNK_STEP) * CHUNK_STEP
        self._step += 1

    def _take(self, piece: memoryview) -> None:
        assert self._open is not None
        data: Buffer = self._part + bytes(piece) if self._part else piece
        whole = len(data) - len(data) % _BLOCK
        if whole:
            self._last = self._open.update(data[:whole])[-_BLOCK:]
        self._part = bytes(data[whole:])

    def _end(self) -> None:
        assert self._open is not None
        if self._part:
            self._last = self._open.update(self._part.ljust(_BLOCK, b"\0"))
        self._mac = self._whole.update(xor(self._mac, self._last))
        self._open, self._part = None, b""


# Passwords

_V1_START: Final = bytes.fromhex("93C467E37DB0C7A4D1BE3F810152CB56")


class PasswordKeys(SecretStruct, frozen=True):
    """key: opens the account's master key, 16 bytes.  proof: is sent in place of the password."""

    key: bytes
    proof: str


def password_keys_v1(mail: str, password: str) -> PasswordKeys:
    """For accounts made before 2018; mail in lower case.  Takes a tenth of a second for each 16
    bytes of the password.
    """
    data = password.encode()
    blocks = [data[at : at + _BLOCK].ljust(_BLOCK, b"\0") for at in range(0, len(data), _BLOCK)]
    ciphers = [Cipher(algorithms.AES(block), modes.ECB()).encryptor() for block in blocks]
    key = _V1_START
    for _ in range(65536):
        for cipher in ciphers:
            key = cipher.update(key)
    folded = _ZEROS
    text = mail.encode()
    for at in range(0, len(text), _BLOCK):
        folded = xor(folded, text[at : at + _BLOCK].ljust(_BLOCK, b"\0"))
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    for _ in range(16384):
        folded = cipher.update(folded)
    return PasswordKeys(key, encode(folded[0:4] + folded[8:12]))


def password_keys_v2(password: str, salt: bytes) -> PasswordKeys:
    """For every account made since; salt: as the API gives it."""
    derived = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 100_000, 32)
    return PasswordKeys(derived[:16], encode(derived[16:]))
