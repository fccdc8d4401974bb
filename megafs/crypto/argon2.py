"""Argon2id alone (RFC 9106): the one slow step from a passphrase to a key.

OpenSSL works on the lanes in threads of their own: on two idle cores the default cost takes 1 s of
CPU and 0.6 s of time.

Pure: no I/O, no clock, no randomness.  Imports next to nothing, for the process that does this work
alone (volume/kdf_child.py) must start quickly.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id


def argon2id(
    data: bytes,
    salt: bytes,
    *,
    time: int,
    memory: int,
    lanes: int,
    length: int,
    secret: bytes | None = None,
) -> bytes:
    """Return *length* bytes.  time: passes.  memory: KiB.

    Checks no bounds: that was done before (`kdf.check_cost`).  Raises MemoryError.
    """
    return Argon2id(
        salt=salt,
        length=length,
        iterations=time,
        lanes=lanes,
        memory_cost=memory,
        secret=secret,
    ).derive(data)
