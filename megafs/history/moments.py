"""Moments as people write them: a commit's number, a time, or the name of a snapshot."""

from __future__ import annotations

import datetime
import re

from msgspec import Struct

_UNITS = {
    "s": 1,
    "sec": 1,
    "second": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hour": 3600,
    "d": 86400,
    "day": 86400,
    "w": 604800,
    "week": 604800,
    "month": 30 * 86400,
    "year": 365 * 86400,
}


class Moment(Struct, frozen=True):
    """A moment as a text names it: one of the three is set."""

    sequence: int | None = None
    time_ns: int | None = None
    name: str | None = None


def parse_moment(text: str, now_ns: int) -> Moment:
    """Return the moment that *text* names.

    "1234" and "@1234" are sequence numbers; "now", "2h ago", "2026-11-23", "2026-11-23 14:05" and
    "2026-11-23T14:05:00Z" are times (without a zone: of this machine); anything else is the name of
    a snapshot.
    """
    text = text.strip()
    digits = text.removeprefix("@")
    if digits.isascii() and digits.isdecimal():
        return Moment(sequence=int(digits))
    if text.lower() == "now":
        return Moment(time_ns=now_ns)
    ago = re.match(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s+ago\Z", text, re.IGNORECASE)
    if ago is not None:
        unit = ago.group(2).lower()
        seconds = _UNITS.get(unit) or _UNITS.get(unit.removesuffix("s"))
        if seconds is not None:
            return Moment(time_ns=now_ns - int(float(ago.group(1)) * seconds * 1e9))
    if re.match(r"\d{4}-?\d\d-?\d\d", text):
        try:
            when = datetime.datetime.fromisoformat(text)
            return Moment(time_ns=int(when.timestamp()) * 10**9 + when.microsecond * 1000)
        except (ValueError, OverflowError):
            pass
    return Moment(name=text)


def show_time(time_ns: int) -> str:
    """A time as people and `parse_moment` read it: UTC, to the second."""
    when = datetime.datetime.fromtimestamp(time_ns // 10**9, datetime.UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
