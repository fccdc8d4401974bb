"""A second reader of sealed bytes, written from the specification on AES-GCM and HMAC alone.

It takes the hash as a parameter, because the vectors published with `cryptography` are made with
SHA-256 and megafs (as every Cobblestone-256) uses SHA-512.  The vectors prove this reader; this
reader then proves what megafs seals.  c2sp.org/chunked-encryption.
"""

from __future__ import annotations

import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SEGMENT = 16384
LABEL = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0"


def derive(key: bytes, salt: bytes, context: bytes, hash_name: str) -> tuple[bytes, bytes, bytes]:
    """Return (AES key, base nonce, commitment)."""
    out, block = b"", b""
    for counter in (1, 2, 3):
        block = hmac.digest(key, block + LABEL + salt + context + bytes([counter]), hash_name)
        out += block
    return out[:32], out[32:44], out[44:76]


def read(key: bytes, context: bytes, sealed: bytes, hash_name: str) -> bytes:
    """Return the plaintext, or raise InvalidTag."""
    if len(key) != 32 or len(sealed) < 56:
        raise InvalidTag
    aes_key, base, commitment = derive(key, sealed[:24], context, hash_name)
    if commitment != sealed[24:56]:
        raise InvalidTag
    body, plaintext, index = sealed[56:], b"", 0
    while True:
        segment = body[index * (SEGMENT + 16) : (index + 1) * (SEGMENT + 16)]
        nonce = (int.from_bytes(base, "big") ^ index).to_bytes(12, "big")
        plaintext += AESGCM(aes_key).decrypt(nonce, segment, None)
        if len(segment) < SEGMENT + 16:
            break
        index += 1
    if 56 + index * (SEGMENT + 16) + len(segment) != len(sealed):
        raise InvalidTag
    return plaintext


def write(key: bytes, context: bytes, plaintext: bytes, salt: bytes) -> bytes:
    """Return *plaintext* sealed with this salt, with SHA-512."""
    aes_key, base, commitment = derive(key, salt, context, "sha512")
    sealed = salt + commitment
    for index in range(len(plaintext) // SEGMENT + 1):
        nonce = (int.from_bytes(base, "big") ^ index).to_bytes(12, "big")
        segment = plaintext[index * SEGMENT : (index + 1) * SEGMENT]
        sealed += AESGCM(aes_key).encrypt(nonce, segment, None)
    return sealed
