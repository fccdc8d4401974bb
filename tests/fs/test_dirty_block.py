"""What waits in memory of one place of a file, against a plain buffer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megafs.fs.dirty_block import DirtyBlock

SIZE = 200
WRITES = st.lists(st.tuples(st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=60)))


def written(writes: list[tuple[int, bytes]], cell: DirtyBlock) -> tuple[bytearray, set[int], int]:
    model, where, grown = bytearray(2 * SIZE), set[int](), 0
    for start, data in writes:
        grown += cell.write(start, memoryview(data))
        model[start : start + len(data)] = data
        where.update(range(start, start + len(data)))
    return model, where, grown


def check(cell: DirtyBlock, model: bytearray, where: set[int]) -> None:
    assert {n for a, b in cell.ranges for n in range(a, b)} == where
    assert all(a < b for a, b in cell.ranges)
    assert all(one[1] < two[0] for one, two in zip(cell.ranges, cell.ranges[1:], strict=False))
    for a, b in cell.ranges:
        assert cell.part(a, b) == model[a:b]


@given(WRITES, st.integers(0, 2 * SIZE))
def test_a_cell_holds_what_was_written_and_where(writes: list[tuple[int, bytes]], end: int) -> None:
    cell = DirtyBlock()
    model, where, grown = written(writes, cell)
    check(cell, model, where)
    assert grown == cell.size == (max(where) - min(where) + 1 if where else 0)
    check(cell.before(end), model, {n for n in where if n < end})


@given(st.binary(min_size=SIZE, max_size=SIZE), WRITES)
def test_a_cell_that_was_taken_whole_can_be_written_to(
    whole: bytes, writes: list[tuple[int, bytes]]
) -> None:
    cell = DirtyBlock()
    assert cell.adopt(memoryview(whole)) == SIZE
    model, where, _ = written(writes, cell)
    model[:SIZE] = whole
    for start, data in writes:
        model[start : start + len(data)] = data
    check(cell, model, where | set(range(SIZE)))


@given(WRITES, WRITES)
def test_a_cell_that_somebody_looks_at_can_be_written_to(
    first: list[tuple[int, bytes]], second: list[tuple[int, bytes]]
) -> None:
    cell = DirtyBlock()
    written(first, cell)
    views = [cell.part(a, b) for a, b in cell.ranges]
    model, where, _ = written(first + second, cell)
    check(cell, model, where)
    del views


def test_a_page_takes_a_page() -> None:
    cell = DirtyBlock()
    assert cell.write(200_000, memoryview(bytes(4096))) == 4096
    assert cell.size == 4096
