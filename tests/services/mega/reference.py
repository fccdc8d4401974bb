"""What a client of MEGA enciphers and derives, for the tests: slow, plain, and apart from megafs.

Follows MEGA's white paper and SDK; the known answers in tests/mega/test_ciphers.py and the clients
in test_clients.py check it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import struct
from functools import cache
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def unb64(text: str) -> bytes:
    text = text.replace("+", "-").replace("/", "_").replace(",", "")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def ecb(key: bytes, data: bytes, *, opening: bool = False) -> bytes:
    cipher = Cipher(algorithms.AES(key), modes.ECB())
    worker = cipher.decryptor() if opening else cipher.encryptor()
    return worker.update(data) + worker.finalize()


def cbc(key: bytes, data: bytes, iv: bytes = bytes(16)) -> bytes:
    worker = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    return worker.update(data) + worker.finalize()


def xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 16)


def chunk_ends(size: int) -> list[int]:
    """Where the pieces of a file end that have a MAC of their own."""
    ends, at, step = [], 0, 1
    while at < size:
        at += min(step, 8) * 0x20000
        step += 1
        ends.append(min(at, size))
    return ends


class EncryptedFile(NamedTuple):
    """data: ciphertext.  node_key: 32 bytes, as a link shows it."""

    data: bytes
    node_key: bytes


def encrypt_file(plain: bytes, key: bytes, nonce: bytes) -> EncryptedFile:
    """key: 16 bytes.  nonce: 8."""
    mac, start = bytes(16), 0
    for end in chunk_ends(len(plain)):
        piece = cbc(key, padded(plain[start:end]), nonce + nonce)[-16:]
        mac = ecb(key, xor(mac, piece))
        start = end
    meta = xor(mac[0:4], mac[4:8]) + xor(mac[8:12], mac[12:16])
    worker = Cipher(algorithms.AES(key), modes.CTR(nonce + bytes(8))).encryptor()
    rest = nonce + meta
    return EncryptedFile(worker.update(plain), xor(key, rest) + rest)


def attributes(name: str, key: bytes, mtime: int | None = None, **more: object) -> str:
    """The attributes of a node as they lie at the server; key: of 16 bytes."""
    fields: dict[str, object] = {"n": name, **more}
    if mtime is not None:
        fields["c"] = fingerprint(mtime)
    text = "MEGA" + json.dumps(fields, separators=(",", ":"))
    return b64(cbc(key, padded(text.encode())))


def fingerprint(mtime: int) -> str:
    """Four checksums, which nobody here checks, and the time."""
    low = mtime.to_bytes(8, "little").rstrip(b"\0")
    return b64(bytes(16) + bytes([len(low)]) + low)


# Passwords


def password_key_v1(password: str) -> bytes:
    data = padded(password.encode())
    key = bytes.fromhex("93C467E37DB0C7A4D1BE3F810152CB56")
    workers = [
        Cipher(algorithms.AES(data[at : at + 16]), modes.ECB()).encryptor()
        for at in range(0, len(data), 16)
    ]
    for _ in range(65536):
        for worker in workers:
            key = worker.update(key)
    return key


def user_hash_v1(mail: str, key: bytes) -> str:
    folded = bytes(16)
    data = padded(mail.encode())
    for at in range(0, len(data), 16):
        folded = xor(folded, data[at : at + 16])
    worker = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    for _ in range(16384):
        folded = worker.update(folded)
    return b64(folded[0:4] + folded[8:12])


def password_keys_v2(password: str, salt: bytes) -> tuple[bytes, str]:
    """The password's key and the proof that is sent for it."""
    derived = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 100_000, 32)
    return derived[:16], b64(derived[16:])


def totp(secret: bytes, now: float) -> str:
    """RFC 6238 with SHA-1, six digits, thirty seconds."""
    digest = hmac.digest(secret, struct.pack(">Q", int(now) // 30), "sha1")
    at = digest[-1] & 15
    return f"{(int.from_bytes(digest[at : at + 4], 'big') & 0x7FFFFFFF) % 1_000_000:06}"


def password_link(kind: int, handle: str, key: bytes, password: str, *, algorithm: int = 2) -> str:
    """kind: 0 for a folder, 1 for a file."""
    salt = os.urandom(32)
    derived = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 100_000, 64)
    body = bytes([algorithm, kind]) + unb64(handle) + salt + xor(key, derived[: len(key)])
    secret = derived[32:]
    proof = (
        hmac.digest(body, secret, "sha256")
        if algorithm == 1
        else hmac.digest(secret, body, "sha256")
    )
    return "https://mega.nz/#P!" + b64(body + proof)


# RSA


class PrivateKey(NamedTuple):
    n: int
    e: int
    p: int
    q: int
    d: int


@cache
def private_key() -> PrivateKey:
    """One for all accounts of a test run."""
    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    numbers = made.private_numbers()
    public = numbers.public_numbers
    return PrivateKey(public.n, public.e, numbers.p, numbers.q, numbers.d)


def mpi(number: int) -> bytes:
    bits = number.bit_length()
    return struct.pack(">H", bits) + number.to_bytes((bits + 7) // 8, "big")


def packed_private_key(key: PrivateKey) -> bytes:
    inverse = pow(key.p, -1, key.q)
    return padded(b"".join(map(mpi, (key.p, key.q, key.d, inverse))))


def sealed_session(session: bytes, key: PrivateKey) -> str:
    """The 43 bytes of a session id, for the owner of *key*."""
    room = (key.n.bit_length() + 7) // 8 - 1 - len(session)
    number = int.from_bytes(session + os.urandom(room), "big")
    return b64(mpi(pow(number, key.e, key.n)))


def easy_enough(token: bytes, nonce: bytes, easiness: int) -> bool:
    """Whether the work that the API asks for was done."""
    limit = (((easiness & 63) << 1) + 1) << ((easiness >> 6) * 7 + 3)
    digest = hashlib.sha256(nonce + token * 262_144).digest()
    return int.from_bytes(digest[:4], "big") <= limit


Json = Any
