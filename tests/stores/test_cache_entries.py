"""The index of cached ranges, against a model that tries every entry."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megafs.stores.disk_cache.cache_entries import CacheEntries, CacheEntry, parse_key

NAMES = st.sampled_from(["packs/a", "packs/b"])
NUMBER = st.integers(0, 24)


def entry(name: str, start: int, asked: int, size: int) -> CacheEntry:
    return CacheEntry(name, start, asked, min(asked, size))


@given(
    added=st.lists(st.tuples(NAMES, NUMBER, st.integers(1, 12), st.integers(1, 12)), max_size=20),
    removed=st.lists(st.integers(0, 19), max_size=6),
    name=NAMES,
    start=NUMBER,
    length=st.integers(1, 12),
)
def test_finds_a_segment_that_holds_the_range_if_there_is_one(
    added: list[tuple[str, int, int, int]], removed: list[int], name: str, start: int, length: int
) -> None:
    index = CacheEntries()
    model: list[CacheEntry] = []
    for fields in added:
        new = entry(*fields)
        needless = index.add(new)
        if needless is None:
            assert any(old.name == new.name and old.contains(new.start, new.reach) for old in model)
            continue
        for old in needless:
            assert old.name == new.name
            assert new.contains(old.start, old.reach)
            model.remove(old)
        model.append(new)
    for i in removed:
        if i < len(model):
            index.remove(model.pop(i))

    found = index.find(name, start, length)
    holders = [s for s in model if s.name == name and s.contains(start, start + length)]

    assert (found is None) == (not holders)
    assert found is None or found in holders
    row = index.cover(name, start, length)
    held = {n for s in model if s.name == name for n in range(s.start, min(s.reach, 99))}
    assert bool(row) == held.issuperset(range(start, start + length))
    assert all(s in model and s.name == name for s in row)
    reach = start
    for one in row:
        assert one.start <= reach < one.reach
        reach = one.reach
    assert not row or reach >= start + length
    assert list(index.oldest()) == model
    assert len(index) == len(model)
    for each in ("packs/a", "packs/b"):
        row = index.of(each)
        assert sorted(row, key=lambda s: s.start) == row
        assert {id(s) for s in row} == {id(s) for s in model if s.name == each}


def test_a_segment_that_met_the_end_answers_for_what_is_beyond() -> None:
    index = CacheEntries()
    index.add(CacheEntry("packs/a", 10, asked=100, size=5))

    assert index.find("packs/a", 12, 1000) is not None
    assert index.find("packs/a", 2000, 1) is not None
    assert index.find("packs/a", 9, 2) is None


def test_a_used_segment_is_the_last_to_go() -> None:
    index = CacheEntries()
    one, two = CacheEntry("packs/a", 0, 1, 1), CacheEntry("packs/b", 0, 1, 1)
    index.add(one)
    index.add(two)
    index.touch(one)

    assert list(index.oldest()) == [two, one]


@given(st.one_of(st.text(max_size=30), st.integers(), st.binary(max_size=9), st.none()))
def test_any_key_is_parsed_or_refused(key: str) -> None:
    parsed = parse_key(key)
    if parsed is not None:
        assert parse_key(CacheEntry(*parsed).key) == parsed


@given(NAMES, NUMBER, st.integers(1, 12), st.integers(1, 12))
def test_a_key_says_all_of_a_segment(name: str, start: int, asked: int, size: int) -> None:
    entry = CacheEntry(name, start, asked, min(asked, size))
    assert parse_key(entry.key) == (name, start, asked, min(asked, size))
    if size >= asked:
        assert entry.key == f"{name}:{start}:{asked}"
