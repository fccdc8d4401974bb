"""The manifest of a link: which files it gives out, where their sealed chunks lie, and their keys.

    format u8 = 1 | flags u8 | salt 16 | sealed( length u32 | JSON | zeros )

flags: 1 if a password is needed as well; other bits are 0.  The key is

    without   HMAC-SHA256(secret, "megafs share v1")
    with      HMAC-SHA256(secret, "megafs share v1 password" | PBKDF2-SHA256(password, salt))

with the secret of the link, the password in NFC and UTF-8, and 600,000 rounds.  Not Argon2id: no
browser has it; and the store lacks the secret, and so cannot even begin to guess.  The
context is `encode_fields("share", id, format, flags, salt)`.  The zeros bring the object to a Padmé
size.  docs/format.md has the fields of the JSON; the page (web/) reads the same vectors.

Pure but for the salt: no I/O, no clock.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import unicodedata
from typing import Final

import msgspec
from msgspec import Struct

from megafs.crypto import aead
from megafs.errors import BadPassphrase, BadUsage, Corrupt, TooNew
from megafs.secret_struct import SecretStruct

FORMAT: Final = 1
_PASSWORD: Final = 1
SALT_SIZE: Final = 16
_HEAD: Final = struct.Struct(">BB16s")
_LENGTH: Final = struct.Struct(">I")
ROUNDS: Final = 600_000
PASSWORD_MAX: Final = 1024
#: The largest manifest, in bytes: some 100 GiB of files in chunks of 256 KiB.
LARGEST: Final = 128 << 20


class SharedObject(Struct, frozen=True):
    """An object that holds chunks.

    url: from which its bytes come by ranged GETs; absolute, or relative to the manifest's.
    id: the random id of the pack that the chunks were sealed for, in hex.  epoch: of the key.
    """

    url: str
    id: str
    epoch: int


class SharedChunk(Struct, frozen=True, array_like=True):
    """Bytes [start, start+length) of a file are [skip, skip+length) of a chunk.

    object: in the manifest's list.  at: where the sealed chunk begins there.  offset: where it lay
    in its pack, which its key and context name.  sealed, plain: its size so, and opened.
    key: of this chunk alone, 32 bytes.  digest: BLAKE3-256 of the sealed bytes.
    """

    start: int
    length: int
    object: int
    at: int
    offset: int
    sealed: int
    plain: int
    skip: int
    key: bytes
    digest: bytes


class SharedBytes(Struct, frozen=True, array_like=True):
    """Bytes of a file from *start* on, here in the manifest."""

    start: int
    data: bytes


class SharedFile(Struct, frozen=True, omit_defaults=True):
    """A file or directory.

    path: parts joined by "/", relative to the folder that is shared; "" for a single file.
    path_b64: its bytes where they are not UTF-8.  modified: seconds since 1970.
    What neither a chunk nor bytes here cover is zeros.
    """

    path: str
    size: int = 0
    modified: float = 0.0
    folder: bool = False
    executable: bool = False
    chunks: tuple[SharedChunk, ...] = ()
    inline: tuple[SharedBytes, ...] = ()
    path_b64: str = ""


class LinkManifest(SecretStruct, frozen=True, omit_defaults=True):
    """What a link gives out.

    volume: the id of the volume, 32 hex digits, which the chunks' contexts name.
    created, expires: seconds since 1970; expires 0 if it does not end.
    left_out: how many entries of the folder it does not give out (links, devices).
    """

    version: int
    name: str
    folder: bool
    volume: str
    created: int
    expires: int
    objects: tuple[SharedObject, ...]
    files: tuple[SharedFile, ...]
    left_out: int = 0

    _shown = ("version", "folder")


def password_key(password: str, salt: bytes) -> bytes:
    """The 32 bytes that a password comes to: a tenth of a second of work.  For a thread."""
    text = unicodedata.normalize("NFC", password).encode()
    if not text or len(text) > PASSWORD_MAX:
        raise BadUsage(f"the password of a link has 1 to {PASSWORD_MAX} bytes")
    return hashlib.pbkdf2_hmac("sha256", text, salt, ROUNDS)


def _key(secret: bytes, of_password: bytes) -> bytes:
    if of_password:
        return hmac.digest(secret, b"megafs share v1 password" + of_password, "sha256")
    return hmac.digest(secret, b"megafs share v1", "sha256")


def _context(link: str, flags: int, salt: bytes) -> bytes:
    return aead.encode_fields("share", link, FORMAT, flags, salt)


def seal(
    manifest: LinkManifest, link: str, secret: bytes, of_password: bytes, salt: bytes
) -> bytes:
    """The object of a manifest.  of_password: `password_key` with the same salt; b"" without."""
    flags = _PASSWORD if of_password else 0
    body = msgspec.json.encode(manifest)
    inner = _LENGTH.pack(len(body)) + body
    inner = inner.ljust(aead.padded_size(len(inner), _HEAD.size), b"\0")
    if _HEAD.size + aead.sealed_size(len(inner)) > LARGEST:
        raise BadUsage(
            f"a link to so much would have a manifest of {len(inner) >> 20} MiB, of at most"
            f" {LARGEST >> 20}: share parts of it"
        )
    sealed = aead.seal(_key(secret, of_password), _context(link, flags, salt), inner)
    return _HEAD.pack(FORMAT, flags, salt) + sealed


class ManifestHead(Struct, frozen=True):
    """The part of a manifest that is not sealed.  salt: for the password, if one is needed."""

    needs_password: bool
    salt: bytes


def read_head(data: bytes) -> ManifestHead:
    """Read what stands before the sealed part."""
    if len(data) < _HEAD.size + aead.HEADER_SIZE:
        raise Corrupt("there is no link here: the answer is too short")
    version, flags, salt = _HEAD.unpack_from(data)
    if version != FORMAT or flags & ~_PASSWORD:
        # It is not authenticated: so not "install a newer megafs" for sure.
        raise TooNew("there is no link here, or it needs a newer megafs")
    return ManifestHead(bool(flags & _PASSWORD), salt)


def open_manifest(data: bytes, link: str, secret: bytes, of_password: bytes) -> LinkManifest:
    """The manifest in an object.

    Raises BadPassphrase if the password is another one, Corrupt if the bytes are damaged or of
    another link.
    """
    head = read_head(data)
    if head.needs_password != bool(of_password):
        raise BadPassphrase("the link needs a password" if head.needs_password else "damaged link")
    key = _key(secret, of_password)
    context = _context(link, int(head.needs_password), head.salt)
    sealed = memoryview(data)[_HEAD.size :]
    if head.needs_password:
        _check_password(key, context, sealed)
    plain = aead.open_sealed(key, context, sealed, "the link's manifest")
    if len(plain) < _LENGTH.size:
        raise Corrupt("the link's manifest holds nothing")
    (length,) = _LENGTH.unpack_from(plain)
    body = memoryview(plain)[_LENGTH.size : _LENGTH.size + length]
    if len(body) != length:
        raise Corrupt("the link's manifest is cut short")
    try:
        manifest = msgspec.json.decode(body, type=LinkManifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise Corrupt(f"the link's manifest cannot be read: {exc}") from None
    _check(manifest)
    return manifest


def _check_password(key: bytes, context: bytes, sealed: memoryview) -> None:
    """The commitment in the head of what is sealed shows a wrong key, before any tag does."""
    try:
        aead.PartOpener(key, context, sealed[: aead.HEADER_SIZE], len(sealed))
    except Corrupt:
        raise BadPassphrase(
            "that is not the password of this link (or the link is damaged)"
        ) from None


def _check(manifest: LinkManifest) -> None:
    """Look at what a recipient relies on; whoever made the link may have made it to do harm."""
    if manifest.version != FORMAT:
        raise TooNew(
            f"the link has a manifest of version {manifest.version}: install a newer megafs"
        )
    try:
        whole = len(bytes.fromhex(manifest.volume)) == 16 and all(
            len(bytes.fromhex(item.id)) == 16 and 0 <= item.epoch < 1 << 32
            for item in manifest.objects
        )
    except ValueError:
        whole = False
    if not whole or not manifest.name or (not manifest.folder and len(manifest.files) != 1):
        raise Corrupt("the link's manifest does not hold together")
    for file in manifest.files:
        _check_file(file, len(manifest.objects))


def _check_file(file: SharedFile, objects: int) -> None:
    pieces = sorted(
        [(chunk.start, chunk.length) for chunk in file.chunks]
        + [(piece.start, len(piece.data)) for piece in file.inline]
    )
    end = 0
    for start, length in pieces:
        if start < end or length <= 0 or start + length > file.size:
            raise Corrupt("the link's manifest names bytes twice, or beyond a file's end")
        end = start + length
    for chunk in file.chunks:
        if (
            not 0 <= chunk.object < objects
            or len(chunk.key) != aead.KEY_SIZE
            or len(chunk.digest) != 32
            or min(chunk.at, chunk.offset, chunk.skip) < 0
            or not 0 < chunk.plain <= _CHUNK_MAX
            or not 0 < chunk.sealed <= 2 * _CHUNK_MAX
            or chunk.skip + chunk.length > chunk.plain
        ):
            raise Corrupt("the link's manifest holds a chunk that cannot be")


_CHUNK_MAX: Final = 1 << 20
