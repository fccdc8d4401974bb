"""Operations: what they change is counted right, can be undone exactly, or nothing has changed."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megafs.errors import Corrupt, Refused
from megafs.tree import ops
from megafs.tree.inode import LINK_MAX, NAME_MAX, ROOT
from megafs.tree.schema import INDEXES, LOCAL, REPLICATED
from megafs.tree.tree import Extent, Tree
from tests.tree.invariants import check, rows

LONGEST = 100


def new_tree() -> Tree:
    db = apsw.Connection(":memory:")
    for table in REPLICATED:
        db.execute(table.sql)
    for sql in INDEXES + LOCAL:
        db.execute(sql)
    tree = Tree(db, LONGEST)
    ops.empty_tree(tree, 1, 0, 0)
    tree.add_pack(7, bytes(16), 1)
    return tree


@pytest.fixture
def tree() -> Iterator[Tree]:
    made = new_tree()
    yield made
    check(made)
    made.db.close()


FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


def create(parent: int, name: bytes, ino: int, mode: int = FILE, **more: Any) -> ops.Create:
    return ops.Create(parent, name, ino, ino, mode, 0, 0, 0, 5, **more)


def rename(
    old: tuple[int, bytes], new: tuple[int, bytes], ino: int, replaced: int = 0, flags: int = 0
) -> ops.Rename:
    return ops.Rename(*old, *new, flags, ino, replaced, 0, 1000 + ino, 2000 + ino, 9)


def piece(start: int, length: int, pack: int = 0) -> Extent:
    if pack:
        return Extent(start, length, pack, 0, length + 9, length + 5, 2, b"d", None)
    return Extent(start, length, 0, 0, 0, length, 0, None, bytes(length))


def refuses(tree: Tree, op: ops.Operation) -> int:
    """The errno with which *op* is refused, having changed nothing."""
    before = rows(tree)
    with pytest.raises(Refused) as no:
        op.apply(tree)
    assert rows(tree) == before
    assert no.value.errno is not None
    return no.value.errno


# ---- any operations at all --------------------------------------------------------------------

inos = st.integers(2, 9)
parents = st.one_of(st.just(ROOT), st.just(ROOT), inos)
names = st.sampled_from((b"a", b"b", b"c"))
anything = st.one_of(
    st.builds(create, parents, names, inos, st.sampled_from((FILE, DIRECTORY, DIRECTORY))),
    st.builds(create, parents, names, inos, st.sampled_from((FILE, DIRECTORY))),
    st.builds(ops.Link, inos, parents, names, st.integers(100, 10**6), st.just(6)),
    st.builds(ops.Unlink, parents, names, inos, st.just(0), st.just(7), st.sampled_from((0, 3))),
    st.builds(ops.Rmdir, parents, names, inos, st.just(8)),
    st.builds(
        ops.Rename,
        parents,
        names,
        parents,
        names,
        st.sampled_from((0, 0, 1, 2)),
        inos,
        st.one_of(st.just(0), inos),
        st.just(0),
        st.integers(100, 10**6),
        st.integers(10**6, 10**7),
        st.just(9),
        st.sampled_from((0, 3)),
    ),
    st.builds(ops.SetAttributes, inos, st.just({"uid": 5, "ctime": 9})),
    st.builds(
        ops.SetXattr, inos, names, st.binary(max_size=3), st.sampled_from((0, 1, 2)), st.just(4)
    ),
    st.builds(ops.RemoveXattr, inos, names, st.just(4)),
    st.builds(
        lambda ino, cut, pieces, size: (ino, cut, pieces, size),
        inos,
        st.one_of(st.none(), st.integers(0, 500)),
        st.lists(
            st.tuples(st.integers(0, 450), st.integers(1, LONGEST), st.sampled_from((0, 7))),
            max_size=4,
        ),
        st.integers(0, 100),
    ),
    st.builds(ops.Reap, inos),
)


def made_of(tree: Tree, step: Any) -> ops.Operation | None:
    """An operation that could have been recorded on this tree: its own names and versions."""
    if isinstance(step, tuple):
        ino, cut, pieces, more = step
        inode = tree.find(ino)
        if inode is None:
            return None
        laid: list[Extent] = []
        for start, length, pack in sorted(pieces):
            if not laid or laid[-1].end <= start:
                laid.append(piece(start, length, pack))
        size = inode.size if cut is None else cut
        size = max([size + more] + [x.end for x in laid])
        return ops.SetContents(ino, inode.version, inode.version + 1, cut, size, 3, 3, tuple(laid))
    if isinstance(step, ops.Create) and tree.find(step.ino) is not None:
        return None
    if isinstance(step, ops.Link | ops.Rename) and tree.one(
        "SELECT 1 FROM dirents WHERE cookie=?", (step.cookie,)
    ):
        return None
    assert isinstance(step, ops.Operation)
    return step


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(anything, min_size=5, max_size=40))
def test_every_tree_holds_together_and_every_operation_can_be_undone(steps: list[Any]) -> None:
    tree = new_tree()
    history: list[tuple[Any, bytes]] = []
    for step in steps:
        op = made_of(tree, step)
        if op is None:
            continue
        before = rows(tree)
        counts = (tree.used, tree.files)
        session = apsw.Session(tree.db, "main")
        for table in REPLICATED:
            session.attach(table.name)
        (copy,) = ops.decode(ops.encode([op]))
        assert copy == op
        try:
            copy.apply(tree)
        except Refused:
            assert rows(tree) == before, f"{op} was refused and changed something"
            assert (tree.used, tree.files) == counts
        else:
            check(tree)
            history.append((before, session.changeset()))
        session.close()
    for before, changeset in reversed(history):
        if changeset:
            apsw.Changeset.apply(
                apsw.Changeset.invert(changeset),
                tree.db,
                conflict=lambda *_: apsw.SQLITE_CHANGESET_ABORT,
            )
        assert rows(tree) == before
    tree.recount()
    check(tree)
    tree.db.close()


# ---- one by one -------------------------------------------------------------------------------


def test_what_is_not_a_list_of_operations_is_corrupt() -> None:
    for data in (b"", b"\x93", ops.encode([ops.Reap(5)])[:-1], b"\x91\x92\xa4reap\xa1x"):
        with pytest.raises(Corrupt):
            ops.decode(data)


def test_an_operation_cannot_set_columns_it_has_no_business_with(tree: Tree) -> None:
    create(ROOT, b"a", 2).apply(tree)
    with pytest.raises(Corrupt):
        ops.SetAttributes(2, {"nlink": 5}).apply(tree)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b"])
def test_names_that_no_directory_may_hold_are_refused(tree: Tree, name: bytes) -> None:
    assert refuses(tree, create(ROOT, name, 2)) == 22


def test_names_are_up_to_255_bytes_of_any_kind(tree: Tree) -> None:
    create(ROOT, bytes(range(1, 47)) + bytes(range(48, 256)) + b"!", 2).apply(tree)
    assert refuses(tree, create(ROOT, b"x" * (NAME_MAX + 1), 3)) == 36


def test_a_file_has_at_most_link_max_names(tree: Tree) -> None:
    create(ROOT, b"a", 2).apply(tree)
    tree.set_fields(2, {"nlink": LINK_MAX - 1})
    ops.Link(2, ROOT, b"b", 50, 1).apply(tree)
    assert refuses(tree, ops.Link(2, ROOT, b"c", 51, 1)) == 31
    tree.set_fields(2, {"nlink": 2})


def test_an_unlinked_file_lives_while_it_is_open_and_goes_with_reap(tree: Tree) -> None:
    create(ROOT, b"a", 2).apply(tree)
    ops.SetContents(2, 0, 1, None, 10, 3, 3, (piece(0, 10),)).apply(tree)
    assert refuses(tree, ops.Reap(2)) == 16
    ops.Unlink(ROOT, b"a", 2, 1, 4, keep=9).apply(tree)
    assert tree.orphans(9) == [2] and tree.used == 10
    check(tree)
    ops.Reap(2).apply(tree)
    assert tree.used == 0 and tree.find(2) is None


def test_contents_of_another_base_are_refused(tree: Tree) -> None:
    create(ROOT, b"a", 2).apply(tree)
    assert refuses(tree, ops.SetContents(2, 5, 6, None, 0, 3, 3, ())) == 116


def test_extents_are_cut_where_newer_ones_lie(tree: Tree) -> None:
    create(ROOT, b"a", 2).apply(tree)
    ops.SetContents(2, 0, 1, None, 300, 3, 3, (piece(0, 100, 7), piece(200, 100, 7))).apply(tree)
    ops.SetContents(2, 1, 2, None, 300, 3, 3, (piece(40, 20), piece(190, 20))).apply(tree)
    found = [(x.start, x.length, x.pack, x.skip) for x in tree.all_extents(2)]
    assert found == [
        (0, 40, 7, 2),
        (40, 20, 0, 0),
        (60, 40, 7, 62),
        (190, 20, 0, 0),
        (210, 90, 7, 12),
    ]
    assert tree.used == 210
    assert tree.allocated(2, 30, 205) == 70 + 15
    ops.SetContents(2, 2, 3, 50, 1000, 3, 3, ()).apply(tree)
    assert [(x.start, x.length) for x in tree.all_extents(2)] == [(0, 40), (40, 10)]


def test_a_directory_cannot_move_into_itself_or_over_a_filled_one(tree: Tree) -> None:
    create(ROOT, b"a", 2, DIRECTORY).apply(tree)
    create(2, b"b", 3, DIRECTORY).apply(tree)
    create(ROOT, b"c", 4, DIRECTORY).apply(tree)
    create(ROOT, b"f", 5).apply(tree)
    assert refuses(tree, rename((ROOT, b"a"), (3, b"x"), 2)) == 22
    assert refuses(tree, rename((ROOT, b"a"), (2, b"x"), 2)) == 22
    assert refuses(tree, rename((ROOT, b"c"), (ROOT, b"a"), 4, 2)) == 39
    assert refuses(tree, rename((ROOT, b"c"), (ROOT, b"f"), 4, 5)) == 20
    assert refuses(tree, rename((ROOT, b"f"), (ROOT, b"c"), 5, 4)) == 21
    exchange = rename((ROOT, b"a"), (2, b"b"), 2, 3, ops.RENAME_EXCHANGE)
    assert refuses(tree, exchange) == 22


def test_a_listing_gives_names_that_stay_exactly_once_while_others_come_and_go(tree: Tree) -> None:
    number = 10
    for n in range(60):
        create(ROOT, b"stays%d" % n, number := number + 1).apply(tree)
        create(ROOT, b"goes%d" % n, number := number + 1).apply(tree)
    seen: list[bytes] = []
    after, turn = 0, 0
    while page := tree.entries(ROOT, after, 7):
        seen.extend(name for name, _, _ in page)
        after = page[-1][2]
        for n in (turn, 59 - turn):
            ino = tree.child(ROOT, b"goes%d" % n)
            if ino is not None:
                ops.Unlink(ROOT, b"goes%d" % n, ino, 0, 1).apply(tree)
        if turn < 20:
            create(ROOT, b"new%d" % turn, number := number + 1).apply(tree)
        turn += 1
    stayed = [name for name in seen if name.startswith(b"stays")]
    assert sorted(stayed) == sorted(b"stays%d" % n for n in range(60))
    assert len(seen) == len(set(seen))


def test_a_directory_of_ten_thousand_names_lists_whole_and_looks_up(tree: Tree) -> None:
    for n in range(10_000):
        create(ROOT, b"%05d" % (n * 7919 % 10_000), 10 + n).apply(tree)
    seen: list[bytes] = []
    after = 0
    while page := tree.entries(ROOT, after, 500):
        seen.extend(name for name, _, _ in page)
        after = page[-1][2]
    assert sorted(seen) == [b"%05d" % n for n in range(10_000)]
    found = tree.lookup(ROOT, b"04711")
    assert found is not None and found.ino == tree.child(ROOT, b"04711")


def test_paths_are_found_both_ways(tree: Tree) -> None:
    create(ROOT, b"a", 2, DIRECTORY).apply(tree)
    create(2, b"b", 3, DIRECTORY).apply(tree)
    create(3, b"f", 4).apply(tree)
    assert tree.path(4) == b"/a/b/f" and tree.walk(b"/a//b/./f") == 4
    assert tree.path(3) == b"/a/b" and tree.path(ROOT) == b"/" and tree.path(99) is None
    with pytest.raises(Refused):
        tree.walk(b"/a/c")
