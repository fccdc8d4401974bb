"""Paths inside a volume: bytes that begin with a slash, as text for people and JSON and back.

Names are any bytes.  Python's surrogateescape carries them through str; what is shown has
backslashes instead of bytes that are not UTF-8, and so cannot be typed in again; --json has the
exact bytes of such a path beside it (`exact`).
"""

from __future__ import annotations

import base64

from msgspec import UNSET, UnsetType

from megafs.errors import BadUsage


def parse(path: str) -> bytes:
    """Return *path* without "." and empty parts; BadUsage if it has "..".  "" is the root."""
    parts = [p for p in path.encode("utf-8", "surrogateescape").split(b"/") if p not in (b"", b".")]
    if b".." in parts:
        raise BadUsage(f"{path}: give a path without ..")
    return b"/" + b"/".join(parts)


def show(path: bytes) -> str:
    """Return a path or a name for people and JSON."""
    return path.decode("utf-8", "backslashreplace")


def exact(path: bytes) -> str | UnsetType:
    """Return the bytes in base64 if they are not UTF-8, so that `show` cannot be undone."""
    try:
        path.decode()
    except UnicodeDecodeError:
        return base64.b64encode(path).decode()
    return UNSET
