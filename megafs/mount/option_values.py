"""What the text after "=" in an option means.  Each raises BadUsage with what it wants instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from megafs.errors import BadUsage

#: The longest number that is taken.
_DIGITS = 30


def as_text(text: str) -> str:
    """As it is."""
    return text


def as_page(text: str) -> str:
    """The address of a page: http or https, and nothing behind a "?" or "#"."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good or not text.isascii() or not text.isprintable() or set("?# ") & set(text):
        raise BadUsage(
            f"page= takes an address such as https://files.example.org/, not {shortened(text)}"
        )
    return text


def as_path(text: str) -> Path:
    """An absolute path; the mount's own directory changes to / later on."""
    try:
        path = Path(text).expanduser()
    except RuntimeError as exc:  # ~nobody-of-that-name
        raise BadUsage(f"{shortened(text)}: {exc}") from None
    if not path.is_absolute():
        path = Path.cwd() / path
    return path


def number_from(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from *low* to *high*."""

    def parse(text: str) -> int:
        # int() refuses thousands of digits with an error of its own.
        if not text.isdecimal() or len(text) > _DIGITS or not low <= int(text) <= high:
            raise BadUsage(f"not a number from {low} to {high}: {shortened(text)}")
        return int(text)

    return parse


def shortened(text: str) -> str:
    """*text* in quotes, as far as one line has room for it."""
    return repr(text if len(text) <= 40 else text[:40] + "...")


def one_of(*names: str) -> Callable[[str], str]:
    """Return a parser that takes one of *names*."""

    def parse(text: str) -> str:
        if text not in names:
            raise BadUsage(f"{shortened(text)} is not one of {', '.join(names)}")
        return text

    return parse


#: 2^32 - 1 means "no change" to chown(2), and is nobody's.
_id = number_from(0, 2**32 - 2)


def as_uid(text: str) -> int:
    """A user, by number or name."""
    if text.isdecimal():
        return _id(text)
    import pwd

    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise BadUsage(f"there is no user {shortened(text)}") from None


def as_gid(text: str) -> int:
    """A group, by number or name."""
    if text.isdecimal():
        return _id(text)
    import grp

    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise BadUsage(f"there is no group {shortened(text)}") from None


def as_mask(text: str) -> int:
    """An octal mask of permissions, 0 to 0777."""
    if not re.fullmatch(r"[0-7]{1,4}", text) or int(text, 8) > 0o777:
        raise BadUsage(f"not an octal mask like 022: {shortened(text)}")
    return int(text, 8)


def as_yes(text: str) -> bool:
    """Yes or no; yes if nothing is said."""
    lowered = text.lower()
    if lowered not in ("", "1", "0", "yes", "no", "true", "false", "on", "off"):
        raise BadUsage(f"not yes or no: {shortened(text)}")
    return lowered not in ("0", "no", "false", "off")
