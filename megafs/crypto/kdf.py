"""From what a person has (a passphrase, a file, a recovery key) to the key that opens a key slot.

    passphrase             Argon2id(NFC, UTF-8; salt 16; t, m, p)                     RFC 9106
    passphrase + key file  the same with secret = SHA-512("megafs/1 key file\\0" file)
    key file alone         HKDF-SHA512(salt, the same hash)                           RFC 5869
    recovery key           HKDF-Expand-SHA512(its 256 random bits)

The cost of Argon2id is read from the store, so it has hard bounds, looked at before any work: a
lower one, because a store that could lower the cost would make guessing cheap for a slot it crafts;
an upper one, because it would otherwise take all our time and memory.

Pure: no I/O, no clock, no randomness.  Slow on purpose: call it in a thread.
"""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from typing import Final

from msgspec import Struct

from megafs.crypto import volume_keys
from megafs.crypto.argon2 import argon2id
from megafs.errors import BadPassphrase, BadUsage, Corrupt, Stopped
from megafs.secret_struct import SecretStruct

SALT_SIZE: Final = 16
KEY_SIZE: Final = volume_keys.KEY_SIZE
RECOVERY_SIZE: Final = 32

_MIB: Final = 1 << 10  # in KiB, the unit of Argon2
_GIB: Final = 1 << 20

#: Bounds of what is read from a store.  The floor is the memory of RFC 9106's second choice.
MEMORY_FLOOR: Final = 64 * _MIB
MEMORY_CEILING: Final = 4 * _GIB
TIME_CEILING: Final = 16
LANES_CEILING: Final = 16

KEYFILE_MIN: Final = 16
KEYFILE_ALONE_MIN: Final = 32
KEYFILE_MAX: Final = 1 << 20
PASSPHRASE_MAX: Final = 1024


class Cost(Struct, frozen=True):
    """The cost of one guess.  time: passes over the memory.  memory: KiB.  lanes: threads."""

    time: int
    memory: int
    lanes: int

    @property
    def work(self) -> int:
        """KiB filled, all passes together: what the run time follows."""
        return self.time * self.memory


#: By name, for `format` and `key`.  CPU seconds of one guess on a 2.5 GHz Xeon: 1.1, 4.1, 0.25.
PROFILES: Final = {
    "default": Cost(time=3, memory=256 * _MIB, lanes=4),
    "rfc9106": Cost(time=1, memory=2 * _GIB, lanes=4),
    "low-memory": Cost(time=3, memory=64 * _MIB, lanes=4),
}


def profile(name: str) -> Cost:
    """Return the cost of that name; BadUsage if there is none."""
    try:
        return PROFILES[name]
    except KeyError:
        raise BadUsage(
            f"no such key derivation profile: {name} (there are {', '.join(PROFILES)})"
        ) from None


def check_cost(cost: Cost) -> Cost:
    """Return *cost*, or raise Corrupt if it is outside the bounds.  Does no other work."""
    if not MEMORY_FLOOR <= cost.memory <= MEMORY_CEILING:
        raise Corrupt(
            f"a key slot asks for {cost.memory} KiB of memory; "
            f"{MEMORY_FLOOR} to {MEMORY_CEILING} KiB are accepted"
        )
    if not 1 <= cost.time <= TIME_CEILING:
        raise Corrupt(f"a key slot asks for {cost.time} passes; 1 to {TIME_CEILING} are accepted")
    if not 1 <= cost.lanes <= LANES_CEILING:
        raise Corrupt(f"a key slot asks for {cost.lanes} lanes; 1 to {LANES_CEILING} are accepted")
    return cost


def normalised(passphrase: str) -> bytes:
    """Return the bytes that stand for a passphrase: Unicode NFC, then UTF-8.

    The same passphrase typed on a Mac and on a PC may differ in how accents are composed; NFC makes
    them one (as RFC 8265 does for passwords).  Nothing else is changed, not spaces, not case.

    Raises BadUsage if it is empty, too long, or not text.
    """
    if not passphrase:
        raise BadUsage("the passphrase is empty")
    if len(passphrase) > PASSPHRASE_MAX:
        raise BadUsage(
            f"the passphrase is longer than {PASSPHRASE_MAX} characters; use a key file for more"
        )
    try:
        return unicodedata.normalize("NFC", passphrase).encode()
    except UnicodeEncodeError:
        # From an environment or a file that is not UTF-8; the error would show the passphrase.
        raise BadUsage("the passphrase is not UTF-8 text") from None


class Task(SecretStruct, frozen=True):
    """The arguments of Argon2id for one guess, checked."""

    data: bytes
    salt: bytes
    cost: Cost
    secret: bytes | None

    _shown = ("salt", "cost")


def task(passphrase: str, salt: bytes, cost: Cost, keyfile: bytes | None = None) -> Task:
    """Return what is to be derived for a passphrase, and the contents of a key file if there is
    one.

    With a key file, whoever holds the whole store cannot even begin to guess.

    Raises Corrupt if *cost* is out of bounds; BadUsage for a passphrase or key file that cannot be.
    """
    check_cost(cost)
    data = normalised(passphrase)
    return Task(data, salt, cost, None if keyfile is None else keyfile_digest(keyfile))


def derive(task: Task) -> bytes:
    """Return the 32-byte key; Stopped if the memory cannot be had."""
    cost = task.cost
    try:
        return argon2id(
            task.data,
            task.salt,
            time=cost.time,
            memory=cost.memory,
            lanes=cost.lanes,
            length=KEY_SIZE,
            secret=task.secret,
        )
    except MemoryError:
        raise Stopped(no_memory(cost)) from None


def no_memory(cost: Cost) -> str:
    """The error text for a key that cannot be derived for want of memory."""
    return (
        f"the key slot needs {cost.memory >> 10} MiB of memory to open, and this machine "
        "cannot give them now; add a slot with the low-memory profile elsewhere"
    )


def from_passphrase(
    passphrase: str, salt: bytes, cost: Cost, keyfile: bytes | None = None
) -> bytes:
    """Return the 32-byte key of a passphrase: `task` and `derive`, with the errors of both."""
    return derive(task(passphrase, salt, cost, keyfile))


def keyfile_digest(content: bytes, least: int = KEYFILE_MIN) -> bytes:
    """Return the 64 bytes that stand for a key file's contents.

    Raises BadUsage unless it is *least* bytes to 1 MiB, and not a few bytes over and over.
    """
    if len(content) < least:
        raise BadUsage(f"the key file has {len(content)} bytes; at least {least} are needed")
    if len(content) > KEYFILE_MAX:
        raise BadUsage(f"the key file is larger than {KEYFILE_MAX >> 20} MiB")
    if len(set(content)) < 8:
        raise BadUsage(
            "the key file holds fewer than 8 different bytes: anyone could guess it "
            "(head -c 64 /dev/urandom > FILE makes a good one)"
        )
    return hashlib.sha512(b"megafs/1 key file\0" + content).digest()


def from_keyfile(content: bytes, salt: bytes) -> bytes:
    """Return the 32-byte key of a key file that opens a slot on its own.

    Its contents must be random: nothing slows down guessing here.
    """
    digest = keyfile_digest(content, KEYFILE_ALONE_MIN)
    return volume_keys.expand(hmac.digest(salt, digest, "sha512"), "kek:keyfile")


def from_recovery(recovery: str) -> bytes:
    """Return the 32-byte key of a recovery key as printed; BadPassphrase if it is mistyped."""
    return volume_keys.expand(parse_recovery(recovery), "kek:recovery")


# Crockford's base 32: no I, L, O or U, so that what is read from paper can be put right.
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_CONFUSED: Final = str.maketrans("OILU", "011V", " -_.\t\r\n\u2010\u2011\u2012\u2013\u2014")
_CHECK_SIZE: Final = 3
_LETTERS: Final = (RECOVERY_SIZE + _CHECK_SIZE) * 8 // 5
_GROUP: Final = 4


def format_recovery(secret: bytes) -> str:
    """Return a recovery key of 32 random bytes as people copy it: 14 groups of 4 characters.

    52 characters carry the key and the last 4 (with 4 spare bits of the 52nd) a checksum.
    """
    if len(secret) != RECOVERY_SIZE:
        raise ValueError(f"a recovery key is {RECOVERY_SIZE} bytes")
    number = int.from_bytes(secret + _check(secret), "big")
    letters = "".join(_ALPHABET[number >> 5 * i & 31] for i in reversed(range(_LETTERS)))
    return "-".join(letters[i : i + _GROUP] for i in range(0, _LETTERS, _GROUP))


def parse_recovery(text: str) -> bytes:
    """Return the 32 bytes of a recovery key typed by a person.

    Case, spaces and dashes do not matter; O is read as 0, I and L as 1, U as V.

    Raises BadPassphrase, saying what is wrong but not what was typed.
    """
    letters = text.upper().translate(_CONFUSED)
    strange = sorted({c for c in letters if c not in _ALPHABET})
    if strange:
        raise BadPassphrase(
            "the recovery key contains characters that none has: " + " ".join(map(repr, strange))
        )
    if len(letters) != _LETTERS:
        raise BadPassphrase(
            f"the recovery key has {len(letters)} characters without its dashes; "
            f"it should have {_LETTERS}"
        )
    number = 0
    for c in letters:
        number = number << 5 | _ALPHABET.index(c)
    data = number.to_bytes(RECOVERY_SIZE + _CHECK_SIZE, "big")
    secret, check = data[:RECOVERY_SIZE], data[RECOVERY_SIZE:]
    if not hmac.compare_digest(check, _check(secret)):
        raise BadPassphrase(
            "the recovery key is mistyped somewhere: its last characters, which check the others, "
            "do not fit"
        )
    return secret


def _check(secret: bytes) -> bytes:
    return hashlib.sha512(b"megafs/1 recovery check\0" + secret).digest()[:_CHECK_SIZE]
