"""The work that MEGA's API asks for before it answers: a number whose hash is small enough."""

from __future__ import annotations

import hashlib
import os
import threading
from typing import Final

import trio
from msgspec import Struct

from megafs.concurrency import offload
from megafs.errors import Denied, Unavailable
from megafs.mega.ciphers import decode, encode

#: So often the token stands in what is hashed: 12 MiB.
_REPEATS: Final = 262_144
_TOKEN: Final = 48
#: Threads at work; hashing lets go of the interpreter.
_THREADS: Final = min(8, os.cpu_count() or 1)
#: Seconds after which the task no longer counts at MEGA (the SDK's own limit).
GIVES_UP_AFTER: Final = 300.0


class WorkChallenge(Struct, frozen=True):
    """easiness: 0 to 255; 192 takes some 256 tries of 12 MiB.  token: 48 bytes."""

    easiness: int
    token: bytes

    @classmethod
    def parse(cls, header: str) -> WorkChallenge:
        """Read "1:EASINESS:TIME:TOKEN"; Denied if it is anything else."""
        parts = header.split(":")
        try:
            if len(parts) != 4 or parts[0] != "1" or not parts[1].isascii():
                raise ValueError
            easiness, token = int(parts[1]), decode(parts[3])
            if not 0 <= easiness <= 255 or len(token) != _TOKEN:
                raise ValueError
        except ValueError:
            raise Denied(
                "MEGA asks for proof of work of a kind that is not known here: is there a newer"
                " megafs?"
            ) from None
        return cls(easiness, token)

    @property
    def limit(self) -> int:
        """The largest beginning of a hash, as a number of 32 bits, that will do."""
        return (((self.easiness & 63) << 1) + 1) << ((self.easiness >> 6) * 7 + 3)

    def answer(self, nonce: bytes) -> str:
        """The header that shows that the work was done."""
        return f"1:{encode(self.token)}:{encode(nonce)}"


async def solve(challenge: WorkChallenge) -> str:
    """Do the work in threads and return the header to send; ends when cancelled.

    Raises Unavailable after GIVES_UP_AFTER seconds.
    """
    stop, found = threading.Event(), trio.Event()
    nonces: list[bytes] = []
    text = challenge.token * _REPEATS

    async def work(first: int) -> None:
        # Not with the ciphers' threads: reading goes on meanwhile.
        nonce = await offload(_search, text, challenge.limit, first, stop, kind="net")
        if nonce is not None:
            nonces.append(nonce)
            found.set()

    with trio.move_on_after(GIVES_UP_AFTER):
        async with trio.open_nursery() as nursery:
            for first in range(_THREADS):
                nursery.start_soon(work, first)
            try:
                await found.wait()
            finally:
                stop.set()  # a thread ends with its next try, also when we are cancelled
    if not nonces:
        raise Unavailable(
            f"MEGA asked for proof of work that took more than {GIVES_UP_AFTER:.0f} s here"
        )
    return challenge.answer(nonces[0])


def _search(text: bytes, limit: int, first: int, stop: threading.Event) -> bytes | None:
    """Try every _THREADS-th number from *first*; None once *stop* is set."""
    number = first
    while not stop.is_set():
        nonce = number.to_bytes(4, "big")
        tried = hashlib.sha256(nonce)
        tried.update(text)
        if int.from_bytes(tried.digest()[:4], "big") <= limit:
            return nonce
        number += _THREADS
    return None
