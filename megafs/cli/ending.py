"""How a command ends: its exit code, and one line for whatever went wrong.

For `megafs` (main.py) and for mount(8)'s helper (mount_helper.py), whose codes differ.
"""

from __future__ import annotations

import os
import sys
from typing import IO

from msgspec import Struct

from megafs.errors import MegafsError, leaf, of_this_machine

INTERRUPTED = 130


class Ending(Struct, frozen=True):
    """What is to be said of an error.

    kind: the name of its class.  is_bug: it is none that megafs raises on purpose.
    """

    text: str
    exit_code: int
    kind: str
    is_bug: bool = False


def of(exc: BaseException) -> Ending:
    """What to say of *exc*, or of the one error in it that says most."""
    if was_interrupted(exc):
        return Ending("interrupted", INTERRUPTED, "KeyboardInterrupt")
    cause = leaf(exc)
    known = cause if isinstance(cause, MegafsError) else of_this_machine(cause)
    if known is not None:
        return Ending(str(known), known.exit_code, type(known).__name__)
    kind = type(cause).__name__
    return Ending(f"{kind}: {cause}", MegafsError.exit_code, kind, is_bug=True)


def was_interrupted(exc: BaseException) -> bool:
    """Whether Ctrl-C is in it: a nursery wraps that in a group, with what its other tasks said."""
    if isinstance(exc, BaseExceptionGroup):
        return any(was_interrupted(inner) for inner in exc.exceptions)
    return isinstance(exc, KeyboardInterrupt)


def open_missing_outputs() -> None:
    """Put something in the place of a standard descriptor that is closed (`megafs ... >&-`).

    The next file that is opened would take its number, and a database would be printed into.
    What is opened here fails as a closed one does, with EBADF: it cannot be used in that direction.
    """
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest free number is taken, so this is *fd*.
            os.open(os.devnull, flags)
            os.set_inheritable(fd, True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = _writer(1)
    if sys.stderr is None:
        sys.stderr = _writer(2)


def _writer(fd: int) -> IO[str]:
    return open(fd, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
