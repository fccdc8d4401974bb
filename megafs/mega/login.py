"""Log in to MEGA, and out: the functions that `megafs login` calls (stores/login/session_login.py).

What a hostile server could learn from a client that answers it is kept from it: the private key is
checked before it is used, the session must name the account, and whatever does not fit is one error
("MEGA: Malleable Encryption Goes Awry", 2022; "Caveat Implementor!", 2023).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from megafs.concurrency import offload
from megafs.errors import Denied, Missing, StoreError
from megafs.mega.api import ApiChannel
from megafs.mega.ciphers import (
    PasswordKeys,
    decode,
    encode,
    password_keys_v1,
    password_keys_v2,
    unwrap,
)
from megafs.mega.errors import MfaRequired
from megafs.mega.options import read_options
from megafs.mega.session import MegaSession
from megafs.stores.login.session_login import Ask
from megafs.stores.urls import Location

_SESSION: Final = 43
#: Where in a session's id the account's handle stands, as text.
_HANDLE: Final = slice(16, 27)
#: Bits of each of the two primes: half of an RSA key of 1024 to 4096 bits.
_PRIME_BITS: Final = range(500, 2060)
_EFAILED: Final = "EFAILED"


class LoginRefused(Denied):
    """MEGA's answer does not fit the password: one error, wherever it does not."""

    def __init__(self) -> None:
        super().__init__("MEGA does not take this mail, password and code, or its answer is wrong")


async def log_in(location: Location, options: Mapping[str, str], ask: Ask) -> str:
    """Ask for mail, password and, if the account wants it, a code; return the session."""
    chosen = read_options(options)
    mail = (chosen.account or await ask("Mail address of the MEGA account: ")).strip().lower()
    password = await ask("Password: ", secret=True)
    api = ApiChannel(chosen.api)
    try:
        keys = await _password_keys(api, mail, password)
        answer = await _answer(api, mail, keys, ask)
        return (await offload(opened_session, answer, keys, mail)).text()
    finally:
        await api.aclose()


async def log_out(location: Location, options: Mapping[str, str], session: str) -> None:
    """End the session at MEGA."""
    chosen = read_options(options)
    api = ApiChannel(chosen.api, {"sid": MegaSession.parse(session).sid})
    try:
        await api.call({"a": "sml"})
    finally:
        await api.aclose()


async def _password_keys(api: ApiChannel, mail: str, password: str) -> PasswordKeys:
    found = await api.call({"a": "us0", "user": mail})
    version = found.get("v") if isinstance(found, dict) else None
    if version == 1:
        return await offload(password_keys_v1, mail, password)
    salt = found.get("s") if isinstance(found, dict) else None
    if version == 2 and isinstance(salt, str):
        try:
            return await offload(password_keys_v2, password, decode(salt))
        except ValueError:
            pass
    raise StoreError("MEGA asks for a kind of login that is not known here: is there a newer one?")


async def _answer(api: ApiChannel, mail: str, keys: PasswordKeys, ask: Ask) -> Any:
    command = {"a": "us", "user": mail, "uh": keys.proof}
    try:
        try:
            return await api.call(command)
        except MfaRequired:
            code = await ask("Code of the second factor: ", secret=True)
            return await api.call({**command, "mfa": code.replace(" ", "").strip()})
    except Missing:  # -9 here: no such account, or another password
        raise LoginRefused from None
    except StoreError as exc:
        if _EFAILED in str(exc):  # the code
            raise LoginRefused from None
        raise


def opened_session(answer: Any, keys: PasswordKeys, mail: str) -> MegaSession:
    """Open the answer to a login with the password's key; LoginRefused for all that is wrong."""
    try:
        key = unwrap(keys.key, decode(answer["k"]))
        if len(key) != 16:
            raise ValueError
        private = PrivateNumbers.parse(unwrap(key, decode(answer["privk"])))
        sid = private.opened(_mpi(decode(answer["csid"]), 0)[0])
        user = str(answer["u"])
        if len(sid) != _SESSION or sid[_HANDLE] != user.encode():
            raise ValueError
    except (ValueError, TypeError, KeyError):
        raise LoginRefused from None
    return MegaSession(encode(sid), key, user, mail)


class PrivateNumbers(NamedTuple):
    """An account's RSA key."""

    p: int
    q: int
    d: int

    @classmethod
    def parse(cls, data: bytes) -> PrivateNumbers:
        """Read p, q, d and p^-1 mod q; ValueError unless they are one key's.

        Keys at the server are wrapped so that it can change them: a part that was made up opens a
        session's id to something that tells about the others.
        """
        p, at = _mpi(data, 0)
        q, at = _mpi(data, at)
        d, at = _mpi(data, at)
        inverse, at = _mpi(data, at)
        if not 0 <= len(data) - at < 16:
            raise ValueError("what follows the numbers is no padding")
        if p.bit_length() not in _PRIME_BITS or q.bit_length() not in _PRIME_BITS:
            raise ValueError("the primes are of another size")
        if abs(p.bit_length() - q.bit_length()) > 2 or p == q or not p & q & d & 1:
            raise ValueError("these are no primes of one key")
        if inverse >= q or p * inverse % q != 1:
            raise ValueError("the inverse is not that of p")
        # The public exponent, 3, 17 or 65537 as clients have chosen it, is small.  (ValueError of
        # pow, too: what has no inverse is no exponent.)
        if pow(d, -1, math.lcm(p - 1, q - 1)) >= 1 << 32:
            raise ValueError("the exponent is not that of the primes")
        return cls(p, q, d)

    def opened(self, number: int) -> bytes:
        """The session's id in what was closed with the public key; ValueError."""
        modulus = self.p * self.q
        if not 1 < number < modulus:
            raise ValueError("no number below the modulus")
        plain = pow(number, self.d, modulus)
        return plain.to_bytes((plain.bit_length() + 7) // 8, "big")[:_SESSION]


def _mpi(data: bytes, at: int) -> tuple[int, int]:
    """The number at *at*: its bits, in two bytes, then its bytes; and where it ends."""
    bits = int.from_bytes(data[at : at + 2], "big")
    end = at + 2 + (bits + 7) // 8
    if len(data) < end or bits < 2:
        raise ValueError("a number is cut short")
    number = int.from_bytes(data[at + 2 : end], "big")
    if number.bit_length() > bits:
        raise ValueError("a number is longer than it says")
    return number, end
