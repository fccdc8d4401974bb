"""How far a long piece of work is: one value for jobs, the control socket and the terminal."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct


class Progress(Struct, frozen=True):
    """done of total steps; total is 0 while it is not known.  text: what is counted, for people."""

    done: int = 0
    total: int = 0
    text: str = ""


#: Called now and then, at least every few seconds, by whoever works.
OnProgress = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """Show no progress."""
