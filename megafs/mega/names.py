"""The names that nodes are shown with: every node of a folder has one, and no two the same.

MEGA's names are any text, two nodes of one folder may have the same, and none need be there at all.
Linux wants 1 to 255 bytes without "/" and NUL, not "." or "..", each once in a directory.

    what Linux cannot have     look-alikes stand in: "/" as U+2215, NUL as U+2400, "." as U+FF0E
    too long                   cut, and marked
    the same name              the newest keeps it, the others are marked
    no name, or no key to it   marked

The mark is " (mega HANDLE)" before the extension: the node's own handle, so that it stays whatever
becomes of the others.  A name that looks marked already is marked again: so no two ever meet.
"""

from __future__ import annotations

import re
from typing import Final

from megafs.tree.inode import NAME_MAX

_MARK: Final = re.compile(rb" \(mega [A-Za-z0-9_-]{8}\)")
_LOOKALIKES: Final = str.maketrans({"/": "\u2215", "\0": "\u2400"})
#: The longest extension that stays behind a mark, in bytes.
_EXTENSION: Final = 16
NAMELESS: Final = b"unnamed"
KEYLESS: Final = b"no key"


def plain_name(name: object) -> bytes:
    """The bytes to show for the attribute `n`, whatever it is; b"" if there is no name in it."""
    if not isinstance(name, str) or not name:
        return b""
    text = name.translate(_LOOKALIKES)
    if text in (".", ".."):
        text = text.replace(".", "\uff0e")
    return text.encode("utf-8", "replace")


def needs_mark(name: bytes) -> bool:
    """Whether a node of this `plain_name` is marked even if it is the only one."""
    return not name or len(name) > NAME_MAX or _MARK.search(name) is not None


def marked(name: bytes, handle: str) -> bytes:
    """*name* with the mark of the node *handle*, cut to what Linux takes."""
    name = name or NAMELESS
    mark = f" (mega {handle})".encode()
    stem, dot, extension = name.rpartition(b".")
    if not stem or not extension or len(extension) >= _EXTENSION or b" " in extension:
        stem, dot, extension = name, b"", b""
    room = NAME_MAX - len(mark) - len(dot) - len(extension)
    return _cut(stem, room) + mark + dot + extension


def _cut(name: bytes, room: int) -> bytes:
    """At most *room* bytes of *name*, whole characters."""
    return name if len(name) <= room else name[:room].decode("utf-8", "ignore").encode()
