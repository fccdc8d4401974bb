"""How long a server asks us to wait: the header Retry-After, in seconds or as a date."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

from megafs import clock
from megafs.stores.http.session import Response


def retry_after(reply: Response) -> float | None:
    """Return the seconds that the answer asks us to wait, or None."""
    value = reply.headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value[:9])
    try:
        moment = parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
    server_now = _header_time(reply) or clock.now()
    return max(0.0, moment - server_now)


def _header_time(reply: Response) -> float | None:
    try:
        return parsedate_to_datetime(reply.headers.get("date", "")).timestamp()
    except (ValueError, OverflowError):
        return None
