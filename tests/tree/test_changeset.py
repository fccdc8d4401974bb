"""The rows of the tree by name, and what a changeset does to them, decoded once."""

from __future__ import annotations

import stat

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megafs.errors import Corrupt
from megafs.tree import ops
from megafs.tree.changeset import (
    Changes,
    DirentChange,
    ExtentChange,
    InodeChange,
    PackChange,
    XattrChange,
    is_given,
    row_changes,
)
from megafs.tree.inode import ROOT
from megafs.tree.schema import REPLICATED, Table
from megafs.tree.tree import Extent, Tree


def new_tree() -> Tree:
    db = apsw.Connection(":memory:")
    for table in REPLICATED:
        db.execute(table.sql)
    tree = Tree(db, 1 << 14)
    ops.empty_tree(tree, 0, 0, 0)
    return tree


def recorded(tree: Tree, *done: ops.Operation) -> bytes:
    """The changeset of some operations."""
    session = apsw.Session(tree.db, "main")
    for table in REPLICATED:
        session.attach(table.name)
    for op in done:
        op.apply(tree)
    changeset = session.changeset()
    session.close()
    return changeset


def create(ino: int, name: bytes, kind: int = stat.S_IFREG) -> ops.Create:
    return ops.Create(ROOT, name, ino, ino, kind | 0o644, 0, 0, 0, 5)


def write(ino: int, base: int, version: int, length: int, pack: int = 0) -> ops.SetContents:
    data = None if pack else bytes(length)
    piece = Extent(0, length, pack, 0, length, length, 0, None, data)
    return ops.SetContents(ino, base, version, 0, length, 6, 6, (piece,) if length else ())


@pytest.mark.parametrize("table", REPLICATED, ids=lambda table: table.name)
def test_a_row_type_has_the_columns_of_its_table(table: Table) -> None:
    db = apsw.Connection(":memory:")
    db.execute(table.sql)
    found = db.execute(f"SELECT name, pk FROM pragma_table_info('{table.name}')").fetchall()
    assert tuple(name for name, _ in found) == table.row._fields == table.columns
    assert [name for name, place in found if place] == list(table.columns[: table.key])


def test_a_new_file_with_contents() -> None:
    tree = new_tree()
    changes = Changes.of(
        recorded(tree, ops.AddPack(9, b"n" * 16, 1), create(7, b"a"), write(7, 0, 8, 100, 9))
    )
    assert changes.inodes == {ROOT, 7}
    assert changes.contents == set()  # nobody can have had it open
    assert changes.names == {(ROOT, b"a")}
    assert changes.touched == {ROOT, 7}
    assert (changes.used, changes.files) == (100, 1)
    assert ("extents", (7, 0)) in changes.keys
    assert ("packs", (9,)) in changes.keys
    assert not changes.removed
    assert not changes.dropped_packs


def test_changed_contents_and_a_removed_file() -> None:
    tree = new_tree()
    recorded(tree, create(7, b"a"), write(7, 0, 8, 100), create(9, b"b"), write(9, 0, 10, 50))
    changes = Changes.of(recorded(tree, write(7, 8, 11, 30), ops.Unlink(ROOT, b"b", 9, 10, 7)))
    assert changes.contents == {7, 9}
    assert changes.removed == {9}
    assert changes.named == {9}
    assert (changes.used, changes.files) == (-120, -1)


def test_a_pack_that_goes_is_told_with_its_name() -> None:
    tree = new_tree()
    recorded(tree, ops.AddPack(9, b"n" * 16, 3))
    session = apsw.Session(tree.db, "main")
    session.attach("packs")
    tree.drop_pack(9)
    (pack,) = Changes.of(session.changeset()).dropped_packs.values()
    assert (pack.pack, pack.name, pack.epoch) == (9, b"n" * 16, 3)


def test_rows_of_an_update_hold_what_changes() -> None:
    tree = new_tree()
    recorded(tree, create(7, b"a"))
    changeset = recorded(tree, ops.SetAttributes(7, {"mode": stat.S_IFREG | 0o600, "ctime": 9}))
    (change,) = row_changes(changeset)
    assert isinstance(change, InodeChange)
    assert change.old is not None
    assert change.new is not None
    assert (change.row.ino, change.old.mode & 0o777, change.new.mode & 0o777) == (7, 0o644, 0o600)
    assert not is_given(change.new.size)


def test_no_changes() -> None:
    assert list(row_changes(b"")) == []
    assert Changes.of(b"") == Changes(b"")


def test_a_table_that_is_not_the_tree_is_refused() -> None:
    db = apsw.Connection(":memory:")
    db.execute("CREATE TABLE local(key TEXT PRIMARY KEY, value)")
    session = apsw.Session(db, "main")
    session.attach("local")
    db.execute("INSERT INTO local VALUES('mount', 1)")
    with pytest.raises(Corrupt, match="'local'"):
        Changes.of(session.changeset())
    with pytest.raises(Corrupt, match="'local'"):
        list(row_changes(session.changeset()))


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["create", "write", "remove", "chmod", "xattr"]),
        st.integers(10, 13),
        st.integers(0, 3),
    ),
    max_size=25,
)


def _do(tree: Tree, step: str, ino: int, n: int, number: int) -> None:
    there = tree.find(ino)
    name = b"f%d" % ino
    if step == "create" and there is None:
        create(ino, name).apply(tree)
    elif there is None:
        return
    elif step == "write":
        write(ino, there.version, number, 100 * n).apply(tree)
    elif step == "remove":
        ops.Unlink(ROOT, name, ino, there.version, 7).apply(tree)
    elif step == "chmod":
        ops.SetAttributes(ino, {"mode": stat.S_IFREG | n}).apply(tree)
    elif step == "xattr":
        ops.SetXattr(ino, b"user.x", bytes([n]), 0, 7).apply(tree)


@given(before=_STEPS, after=_STEPS)
def test_what_is_decoded_is_what_happened(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]
) -> None:
    """Against the rows themselves, before and after, and against `row_changes`."""
    tree = new_tree()
    number = 1000
    for step in before:
        _do(tree, *step, number := number + 1)
    used, files = tree.used, tree.files
    old = {ino: tree.find(ino) for ino in range(10, 14)}
    session = apsw.Session(tree.db, "main")
    for table in REPLICATED:
        session.attach(table.name)
    for step in after:
        _do(tree, *step, number := number + 1)
    changeset = session.changeset()
    changes = Changes.of(changeset)
    new = {ino: tree.find(ino) for ino in range(10, 14)}
    assert (changes.used, changes.files) == (tree.used - used, tree.files - files)
    assert changes.removed == {i for i in old if old[i] is not None and new[i] is None}
    for ino, was in old.items():
        now = new[ino]
        if was != now:
            assert ino in changes.inodes
        if was is not None and (now is None or was.version != now.version):
            assert ino in changes.contents
    rows = list(row_changes(changeset))
    tables = {table.name: table for table in REPLICATED}
    assert changes.keys == [(c.table, tuple(c.row[: tables[c.table].key])) for c in rows]
    assert changes.extents == {c.row.ino for c in rows if isinstance(c, ExtentChange)}
    assert changes.names == {c.row[:2] for c in rows if isinstance(c, DirentChange)}
    assert changes.inodes == {c.row.ino for c in rows if isinstance(c, InodeChange | XattrChange)}
    assert not any(isinstance(c, PackChange) for c in rows)
