"""Read-ahead asks for what comes next, once, and only while reading goes forward."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from megafs.chunks.prefetch import ReadAhead

KIB, MIB = 1 << 10, 1 << 20
LIMIT = 8 * MIB
lengths = st.lists(st.integers(1, 1 * MIB), min_size=1, max_size=200)


@given(lengths, st.integers(0, 64 * MIB))
def test_reading_on_asks_for_every_byte_at_most_once(sizes: list[int], size: int) -> None:
    plan = ReadAhead(LIMIT)
    position = asked = 0
    for length in sizes:
        wanted = plan.after(position, length, size)
        position += length
        if wanted is None:
            continue
        start, stop = wanted
        assert position <= start < stop <= size
        assert start >= asked, "asked for the same bytes twice"
        assert stop - position <= LIMIT
        asked = stop


def test_a_long_sequential_read_is_always_ahead_of_the_reader() -> None:
    plan, size, step = ReadAhead(LIMIT), 200 * MIB, 128 * KIB
    asked: list[tuple[int, int]] = []
    for position in range(0, size, step):
        if position > MIB:
            assert asked[-1][1] >= position, "the reader caught up"
        wanted = plan.after(position, step, size)
        if wanted is not None:
            asked.append(wanted)
    assert asked[-1][1] == size
    # Without gaps from the first request on, in pieces worth a request.
    assert all(a[1] == b[0] for a, b in pairwise(asked))
    assert len(asked) < 250


@given(st.lists(st.integers(0, 1 << 40), min_size=2, max_size=50))
def test_random_access_asks_for_nothing(offsets: list[int]) -> None:
    plan = ReadAhead(LIMIT)
    last = -10 * MIB
    for offset in offsets:
        if abs(offset - last) <= 2 * MIB or offset == 0:
            continue
        assert plan.after(offset, 4096, 1 << 41) is None
        last = offset


def test_a_jump_closes_the_window_and_reading_on_opens_it_again() -> None:
    plan, size = ReadAhead(LIMIT), 1 << 40
    for n in range(100):
        plan.after(n * MIB, MIB, size)
    assert plan.after(500 * MIB, MIB, size) is None
    wanted = plan.after(501 * MIB, MIB, size)
    assert wanted is not None
    assert wanted[0] >= 502 * MIB and wanted[1] - wanted[0] <= 2 * MIB


def test_the_kernels_requests_may_come_a_little_out_of_order() -> None:
    plan, size, step = ReadAhead(LIMIT), 100 * MIB, 128 * KIB
    order = [n ^ 3 for n in range(size // step)]
    asked = [w for n in order if (w := plan.after(n * step, step, size)) is not None]
    assert asked[-1][1] == size
    assert all(a[1] <= b[0] for a, b in pairwise(asked))


def test_a_limit_of_nothing_turns_it_off() -> None:
    plan = ReadAhead(0)
    assert all(plan.after(n * MIB, MIB, 1 << 40) is None for n in range(20))
