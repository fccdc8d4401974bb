"""Text from anywhere as one line for a terminal, a log or a message.

A name may hold every byte but "/" and NUL, and a server answers what it likes.  Written raw, ESC
moves the cursor, a newline forges a line of the log, and U+202E shows "exe.pdf" for "fdp.exe".
Whatever is shown or logged passes `printable` last, at the one place where it is written:
cli/output.py, logs.py and `Notifier` in mount/daemon.py.  --json needs no such thing: JSON escapes
control characters itself, and exact bytes are kept beside a name that is not UTF-8 (tree/paths.py).
"""

from __future__ import annotations

import unicodedata

# Cc: C0, DEL and C1.  Cf: bidi controls, invisible characters.  Cs: bytes that are not UTF-8, as
# Python carries them.  Zl, Zp: separators of lines and paragraphs.  Cn: what no Unicode of ours
# knows.  Private use (Co) has glyphs in many fonts and moves nothing.
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"})
# The joiners: Persian, the scripts of India and emoji are spelled with them.
_SPELLING = frozenset("\u200c\u200d")
# From here to U+DCFF surrogateescape puts the bytes 0x80 to 0xFF.
_BYTES = 0xDC00


def printable(text: str) -> str:
    r"""Return *text* with ``\n``, ``\x1b``, ``\u202e`` for what does not print.

    For people: a backslash stays as it is, so that this cannot be undone; it may be done twice.
    """
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def indented(text: str) -> list[str]:
    """Return the lines of a traceback, none of which can pass for a line of its own."""
    return [f"    {printable(line)}" for line in text.splitlines()]


def _shown(letter: str) -> str:
    if letter.isprintable() or letter in _SPELLING:
        return letter
    if unicodedata.category(letter) not in _ESCAPED:
        return letter  # spaces of other widths
    number = ord(letter)
    if _BYTES + 0x80 <= number <= _BYTES + 0xFF:
        return f"\\x{number - _BYTES:02x}"
    return letter.encode("unicode_escape").decode("ascii")
