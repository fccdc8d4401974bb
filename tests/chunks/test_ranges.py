"""Runs hold every chunk, in order, and none that one get should not bring."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from megafs.chunks.ranges import SealedRange, in_pack_order, runs, span

GAP, LONGEST = 10, 100

chunks = st.lists(
    st.builds(SealedRange, st.integers(0, 2), st.integers(0, 300), st.integers(0, 150)),
    max_size=30,
)


def fits(run: list[SealedRange], chunk: SealedRange) -> bool:
    """Whether one get may bring *chunk* after *run*, by the words of the docstring."""
    first, length = span(run)
    return (
        run[-1].pack == chunk.pack
        and chunk.offset >= run[-1].offset
        and chunk.offset - (first + length) <= GAP
        and chunk.offset + chunk.sealed - first <= LONGEST
    )


@given(chunks)
def test_runs_are_as_long_as_they_may_be_and_no_longer(given_: list[SealedRange]) -> None:
    found = runs(given_, gap=GAP, longest=LONGEST)
    assert [chunk for run in found for chunk in run] == given_
    for run in found:
        for n in range(1, len(run)):
            assert fits(run[:n], run[n])
    for run, following in pairwise(found):
        assert not fits(run, following[0])


@given(chunks)
def test_a_span_holds_every_chunk_of_its_run(given_: list[SealedRange]) -> None:
    for run in runs(in_pack_order(given_), gap=GAP, longest=LONGEST):
        offset, length = span(run)
        assert all(offset <= c.offset and c.offset + c.sealed <= offset + length for c in run)


@given(chunks)
def test_pack_order_names_each_chunk_once(given_: list[SealedRange]) -> None:
    ordered = in_pack_order(given_)
    places = [(c.pack, c.offset) for c in ordered]
    assert places == sorted({(c.pack, c.offset) for c in given_})
    assert set(ordered) <= set(given_)


def test_inline_extents_have_no_offset_and_share_a_run() -> None:
    inline = [SealedRange(0, 0, 0)] * 3
    assert runs(inline, gap=GAP, longest=LONGEST) == [inline]
