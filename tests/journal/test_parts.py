"""Which object holds which rows: memory and table say the same, and no change is forgotten."""

from __future__ import annotations

from typing import Any

import apsw
import msgspec
from hypothesis import given
from hypothesis import strategies as st

from megafs.journal.checkpoint_parts import Part, Parts, _carry_marks
from megafs.tree.schema import LOCAL

LOWS = st.lists(st.integers(1, 30), unique=True, max_size=8).map(
    lambda lows: [(), *((low,) for low in sorted(lows))]
)


def made(lows: list[Any], generation: int) -> list[Part]:
    return [Part(low, f"{generation}/{low}", bytes(32), 1, 1) for low in lows]


def stored(db: apsw.Connection) -> list[tuple[Any, str, int]]:
    rows: list[tuple[bytes, str, int]]
    rows = db.execute("SELECT low, object, dirty FROM parts WHERE tbl=0").fetchall()  # type: ignore[assignment]
    return sorted((tuple(msgspec.msgpack.decode(low)), name, dirty) for low, name, dirty in rows)


@given(st.lists(st.tuples(LOWS, st.lists(st.integers(0, 31)), st.data()), max_size=5))
def test_replacing_writes_what_changed_and_leaves_the_same_as_writing_all(
    rounds: list[tuple[list[Any], list[int], st.DataObject]],
) -> None:
    db = apsw.Connection(":memory:")
    for sql in LOCAL:
        db.execute(sql)
    parts = Parts(db)
    for generation, (lows, changed, data) in enumerate(rounds):
        # What the checkpoint before left and nothing changed stands in this one again.
        kept = [part for part in parts.of("inodes") if data.draw(st.booleans())]
        taken = {part.low for part in kept}
        new = [part for part in made(lows, generation) if part.low not in taken]
        for part in new:
            part.dirty = data.draw(st.booleans())
        result = [*kept, *new]
        if result:
            min(result, key=lambda part: part.low).low = ()  # as a checkpoint does
        parts.replace({"inodes": result})
        for number in changed:
            parts.mark([("inodes", (number,))])
        memory = [(part.low, part.object, int(part.dirty)) for part in parts.of("inodes")]
        assert stored(db) == memory
        assert [low for low, _, _ in memory] == sorted(low for low, _, _ in memory)


@given(LOWS, LOWS, st.lists(st.integers(0, 31)))
def test_marks_are_carried_to_every_part_that_overlaps(
    before: list[Any], after: list[Any], changed: list[int]
) -> None:
    def holder(lows: list[Any], number: int) -> Any:
        return max(low for low in lows if low <= (number,))

    marked = {holder(before, number) for number in changed}
    result = made(after, 1)
    _carry_marks(before, marked, result)

    dirty = {part.low for part in result if part.dirty}
    assert dirty == {
        holder(after, number) for number in range(100) if holder(before, number) in marked
    }
