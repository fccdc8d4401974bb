"""What the text after "=" in an option means.  Each raises BadUsage with what it wants instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from megafs.errors import BadUsage


def as_text(text: str) -> str:
    """As it is."""
    return text


def as_path(text: str) -> Path:
    """An absolute path; the mount's own directory changes to / later on."""
    path = Path(text).expanduser()
    if not path.is_absolute():
        path = Path.cwd() / path
    return path


def number_from(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from *low* to *high*."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise BadUsage(f"not a number from {low} to {high}: {text!r}")
        return int(text)

    return parse


def one_of(*names: str) -> Callable[[str], str]:
    """Return a parser that takes one of *names*."""

    def parse(text: str) -> str:
        if text not in names:
            raise BadUsage(f"{text!r} is not one of {', '.join(names)}")
        return text

    return parse


def as_uid(text: str) -> int:
    """A user, by number or name."""
    if text.isdecimal():
        return int(text)
    import pwd

    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise BadUsage(f"there is no user {text!r}") from None


def as_gid(text: str) -> int:
    """A group, by number or name."""
    if text.isdecimal():
        return int(text)
    import grp

    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise BadUsage(f"there is no group {text!r}") from None


def as_mask(text: str) -> int:
    """An octal mask of permissions, 0 to 0777."""
    if not re.fullmatch(r"[0-7]{1,4}", text) or int(text, 8) > 0o777:
        raise BadUsage(f"not an octal mask like 022: {text!r}")
    return int(text, 8)


def as_yes(text: str) -> bool:
    """Yes or no; yes if nothing is said."""
    lowered = text.lower()
    if lowered not in ("", "1", "0", "yes", "no", "true", "false", "on", "off"):
        raise BadUsage(f"not yes or no: {text!r}")
    return lowered not in ("0", "no", "false", "off")
