"""Whether an answer with part of an object (206) holds the part that was asked for."""

from __future__ import annotations

import re

from megafs.stores.http.session import Response

_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")


def holds_range(reply: Response, start: int, end: int) -> bool:
    """Whether *reply* holds all the bytes [start, end), or all of them that the object has."""
    match = _RANGE.fullmatch(reply.headers.get("content-range", "").strip())
    if not match:
        return False
    first, beyond = int(match[1]), int(match[2]) + 1
    total = beyond if match[3] == "*" else int(match[3])
    whole = beyond == end <= total or beyond == total < end
    return first == start and whole and len(reply.body) == beyond - start and not reply.more
