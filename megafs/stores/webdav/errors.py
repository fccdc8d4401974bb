"""Which of our errors an answer of a WebDAV server is, and what to tell people to do."""

from __future__ import annotations

from megafs.errors import (
    BadStore,
    Denied,
    Full,
    Missing,
    StoreError,
    TooLarge,
    Unavailable,
)
from megafs.stores.http.retry_after import retry_after
from megafs.stores.http.session import Response


def error_for(reply: Response, what: str, *, server: str, advice: str, write: bool) -> StoreError:
    """Return the error that *reply* is.

    what: the operation, for the text.  advice: what helps against a refused login.
    write: whether the request may have changed something.
    """
    status = reply.status
    said = f"{what}: {server} answers {status}"
    if status == 507:
        return Full(f"{said}; the account or the disk behind it is full")
    if status == 413:
        return TooLarge(
            f"{said}; it takes no request that large: raise its limit for the size of a request"
            " (client_max_body_size, LimitRequestBody, server.max-request-size)"
        )
    if status in (404, 410) and not write:
        return Missing(said)
    if status == 401:
        return Denied(f"{said}; {advice}")
    if status in (403, 407):
        return Denied(f"{said}; may this user read and write there?")
    if status in (405, 501):
        return BadStore(f"{said}; is this WebDAV, and may this user write there?")
    if 300 <= status < 400:
        return Unavailable(f"{said}; is there a login page on the way, or another address?")
    if status in (404, 408, 409, 410, 423, 425, 429) or status >= 500 or 200 <= status < 300:
        # Only a plain "too many", and a lock, are sure to have been answered first.
        return Unavailable(
            said,
            retry_after=retry_after(reply),
            maybe_done=write and status not in (423, 429),
            busy=status in (423, 429, 503),
        )
    return StoreError(said)
