"""Which chunks one ranged get brings: neighbours in a pack, joined into runs.

A request costs a round trip, so bytes between two chunks that nobody wants are fetched along if
they are few.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar


class Located(Protocol):
    """A sealed chunk: *sealed* bytes from *offset* on in the pack with the number *pack*."""

    @property
    def pack(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def sealed(self) -> int: ...


class SealedRange(NamedTuple):
    """The location of a sealed chunk, for whoever needs nothing else of its extent."""

    pack: int
    offset: int
    sealed: int


C = TypeVar("C", bound=Located)


def runs(chunks: Iterable[C], *, gap: int, longest: int) -> list[list[C]]:
    """Join chunks that follow one another in a pack; all of them, in the order given.

    gap: the most bytes between two chunks of a run.  longest: the most bytes from the beginning of
    a run to its end; a chunk that is larger is a run of its own.  A run goes forward in its pack.
    """
    found: list[list[C]] = []
    run: list[C] | None = None
    pack = first = last = end = 0
    for chunk in chunks:
        offset = chunk.offset
        stop = offset + chunk.sealed
        if (
            run is not None
            and chunk.pack == pack
            and offset >= last
            and offset - end <= gap
            and stop - first <= longest
        ):
            run.append(chunk)
            end = max(end, stop)
        else:
            run = [chunk]
            found.append(run)
            pack, first, end = chunk.pack, offset, stop
        last = offset
    return found


def span(run: Sequence[Located]) -> tuple[int, int]:
    """The range of the pack that a run needs: (offset, length)."""
    first = run[0].offset
    return first, max(chunk.offset + chunk.sealed for chunk in run) - first


def in_pack_order(chunks: Iterable[C]) -> list[C]:
    """The chunks sorted by pack and offset, each once."""
    return [chunk for _, chunk in sorted({(c.pack, c.offset): c for c in chunks}.items())]
