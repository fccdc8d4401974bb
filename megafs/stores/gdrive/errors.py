"""Which of our errors an answer of Drive is: by the reason that it gives, then by its status.

Drive says 403 of what passes in a second, of what passes tomorrow and of what never passes.
https://developers.google.com/workspace/drive/api/guides/handle-errors
"""

from __future__ import annotations

import msgspec

from megafs.errors import BadStore, Denied, Full, Missing, StoreError, TooLarge, Unavailable
from megafs.printable import printable
from megafs.stores.http.retry_after import retry_after
from megafs.stores.http.session import Response

#: Too many requests just now.
_BUSY = frozenset({"userRateLimitExceeded", "rateLimitExceeded", "backendError", "internalError"})
#: A limit that ends at midnight, Pacific time, or a day after it was passed.
_TOMORROW = frozenset(
    {"dailyLimitExceeded", "dailyLimitExceededUnreg", "downloadQuotaExceeded", "quotaExceeded"}
)
_FULL = frozenset(
    {
        "storageQuotaExceeded",
        "teamDriveFileLimitExceeded",
        "numChildrenInNonRootLimitExceeded",
        "activeItemCreationLimitExceeded",
        "myDriveHierarchyDepthLimitExceeded",
    }
)
_ADVICE = {
    "accessNotConfigured": "enable the Google Drive API in the project of your client id",
    "SERVICE_DISABLED": "enable the Google Drive API in the project of your client id",
    "appNotAuthorizedToFile": "another client id has made this file: log in with that one",
    "insufficientPermissions": "log in again and grant the access that is asked for",
    "domainPolicy": "the administrator of the account does not allow this application",
}
_NUMBER_OF_FILES = frozenset(
    {"numChildrenInNonRootLimitExceeded", "activeItemCreationLimitExceeded"}
)
#: Seconds until a limit of the day is tried again.
_TOMORROW_AFTER = 3600.0


class _Item(msgspec.Struct):
    reason: str = ""
    message: str = ""


class _Error(msgspec.Struct):
    errors: list[_Item] = []
    message: str = ""


class _Body(msgspec.Struct):
    error: _Error


def reason_of(reply: Response) -> str:
    """Return the reason that an answer gives, "" if it is not one of Drive's."""
    try:
        error = msgspec.json.decode(reply.body, type=_Body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return error.errors[0].reason[:80] if error.errors else "unknown"


def error_for(reply: Response, what: str, *, server: str, login: str, write: bool) -> StoreError:
    """Return the error that *reply* is.

    what: the operation, for the text.  login: the command that helps against a refused login.
    write: whether the request may have changed something.
    """
    status, reason = reply.status, reason_of(reply)
    said = f"{what}: {server} answers {status}" + (f" {printable(reason)}" if reason else "")
    if status in (403, 429) and reason in _TOMORROW:
        return Unavailable(
            f"{said}: a limit of the day is used up", retry_after=_TOMORROW_AFTER, busy=True
        )
    if status == 429 or (status == 403 and reason in _BUSY):
        return Unavailable(said, retry_after=retry_after(reply), busy=True)
    if reason in _FULL:
        if reason in _NUMBER_OF_FILES:
            return Full(f"{said}; Drive takes no more files there")
        return Full(f"{said}; the account is full")
    if status == 413:
        return TooLarge(said)
    if status == 404 and reason and not write:
        return Missing(said)
    if status == 401:
        return Denied(f"{said}; {login}")
    if status == 403 and reason:
        return Denied(f"{said}; {_ADVICE.get(reason, 'may this login read and write there?')}")
    if status == 400 and reason:
        return StoreError(said)
    if status in (403, 404, 408, 409, 410) or status >= 500 or 200 <= status < 400:
        # Not in Drive's words: a proxy or a login page on the way.
        return Unavailable(
            said, retry_after=retry_after(reply), maybe_done=write, busy=status == 503
        )
    return BadStore(said) if status == 405 else StoreError(said)
