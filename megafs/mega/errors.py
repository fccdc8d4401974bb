"""What MEGA's API answers when it says no, each as an error that says what to do."""

from __future__ import annotations

import errno
from typing import Final

from megafs.errors import BadPassphrase, Denied, Missing, StoreError, Unavailable

EAGAIN: Final = -3
ERATELIMIT: Final = -4
ETOOMANY: Final = -6
ENOENT: Final = -9
EMFAREQUIRED: Final = -26

_NAMES: Final = {
    -1: "EINTERNAL",
    -2: "EARGS",
    -3: "EAGAIN",
    -4: "ERATELIMIT",
    -5: "EFAILED",
    -6: "ETOOMANY",
    -7: "ERANGE",
    -8: "EEXPIRED",
    -9: "ENOENT",
    -10: "ECIRCULAR",
    -11: "EACCESS",
    -12: "EEXIST",
    -13: "EINCOMPLETE",
    -14: "EKEY",
    -15: "ESID",
    -16: "EBLOCKED",
    -17: "EOVERQUOTA",
    -18: "ETEMPUNAVAIL",
    -19: "ETOOMANYCONNECTIONS",
    -24: "EGOINGOVERQUOTA",
    -26: "EMFAREQUIRED",
    -29: "EPAYWALL",
}


class SessionExpired(Denied):
    """The session's id is no longer good at MEGA (-15)."""


class MfaRequired(Denied):
    """The account has a second factor, and no code was given (-26)."""


class TreeStale(StoreError):
    """The feed does not reach back to what is known here: all is to be loaded anew (-6)."""


class QuotaUsed(Unavailable):
    """The transfer quota of this account, or of this address, is used up (509, -17).

    retry_after: seconds until there is some again.
    """

    errno = errno.EDQUOT


class KeyRefused(BadPassphrase):
    """A key does not open what it should: one error for all of them.

    How far a wrong key led would tell a hostile server something about the right one ("MEGA:
    Malleable Encryption Goes Awry", 2022): neither text nor class says it.
    """

    def __init__(self) -> None:
        super().__init__("the key does not open this: is it the whole link, and no more than that?")


def span(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def quota_used(left: float) -> QuotaUsed:
    """The error for a transfer quota that is used up for another *left* seconds."""
    return QuotaUsed(
        f"MEGA's transfer quota is used up; there is some again in {span(left)}: what is cached can"
        " be read, and a download that is started again then goes on where it stopped",
        retry_after=left,
    )


def error_for(code: int) -> StoreError:
    """The error for the number *code* in the place of an answer."""
    match code:
        case -3 | -18 | -19:
            return Unavailable(f"MEGA is congested just now ({_named(code)})", busy=True)
        case -4:
            return Unavailable(
                "MEGA takes no more requests of this account or address for now (ERATELIMIT)",
                busy=True,
            )
        case -6:
            return TreeStale("MEGA no longer has the changes since this tree was loaded (ETOOMANY)")
        case -9:
            return Missing("MEGA has nothing there: it was removed, or its link was (ENOENT)")
        case -11:
            return Denied("MEGA does not allow this (EACCESS)")
        case -15:
            return SessionExpired("the session with MEGA has ended: megafs login mega:")
        case -16:
            return Denied(
                "MEGA has blocked this account or link (EBLOCKED): nothing more is asked; look at"
                " https://mega.nz with a browser"
            )
        case -17 | -24 | -29:
            return quota_used(3600.0)
        case -26:
            return MfaRequired("this account asks for a code of its second factor")
    return StoreError(f"MEGA answers with the error {_named(code)}")


def _named(code: int) -> str:
    return f"{_NAMES[code]}, {code}" if code in _NAMES else str(code)
