"""The operations of gc, compaction and fsck look themselves at what is still as it was."""

from __future__ import annotations

import apsw
import pytest

from megafs.errors import Corrupt, Refused
from megafs.tree import ops
from megafs.tree.inode import ROOT
from megafs.tree.schema import INDEXES, REPLICATED
from megafs.tree.tree import Extent, Tree

CHUNK = 16384


def extent(pack: int, offset: int = 0, start: int = 0) -> Extent:
    return Extent(start, CHUNK, pack, offset, 20_000, CHUNK, 0, b"d" * 32, None)


@pytest.fixture
def tree() -> Tree:
    db = apsw.Connection(":memory:")
    for table in REPLICATED:
        db.execute(table.sql)
    for sql in INDEXES:
        db.execute(sql)
    made = Tree(db, CHUNK)
    ops.empty_tree(made, 1, 0, 0)
    ops.Create(ROOT, b"f", 2, 1, 0o100644, 0, 0, 0, 1).apply(made)
    for pack in (10, 11, 12):
        ops.AddPack(pack, bytes([pack]) * 16, 0).apply(made)
    lay(made, extent(10))
    return made


def lay(tree: Tree, *pieces: Extent) -> None:
    inode = tree.inode(2)
    size = max(inode.size, *(piece.end for piece in pieces))
    ops.SetContents(2, inode.version, inode.version + 1, None, size, 1, 1, pieces).apply(tree)


def marks(tree: Tree) -> dict[int, int]:
    rows: list[tuple[int, int]]
    rows = tree.db.execute("SELECT pack, since FROM garbage").fetchall()  # type: ignore[assignment]
    return dict(rows)


def packs(tree: Tree) -> set[int]:
    return {row[0] for row in tree.db.execute("SELECT pack FROM packs")}


def test_only_what_nothing_names_is_marked_and_the_first_mark_stands(tree: Tree) -> None:
    ops.MarkGarbage((10, 11, 99), 5).apply(tree)
    ops.MarkGarbage((11, 12), 7).apply(tree)
    assert marks(tree) == {11: 5, 12: 7}


def test_what_names_a_pack_takes_its_mark_away(tree: Tree) -> None:
    ops.MarkGarbage((11, 12), 5).apply(tree)
    lay(tree, extent(11, start=CHUNK))
    assert marks(tree) == {12: 5}
    ops.DropPacks((11, 12), ()).apply(tree)
    assert packs(tree) == {10, 11}
    assert marks(tree) == {}


def test_what_is_not_marked_or_named_again_is_not_dropped(tree: Tree) -> None:
    ops.MarkGarbage((11,), 5).apply(tree)
    tree.put_extent(2, extent(11, start=CHUNK))  # without taking the mark away
    ops.DropPacks((11, 12), ()).apply(tree)
    assert packs(tree) == {10, 11, 12}
    assert marks(tree) == {}


def test_nothing_is_dropped_beside_a_snapshot_that_was_not_looked_at(tree: Tree) -> None:
    ops.MarkGarbage((11,), 5).apply(tree)
    ops.Snapshot("one", 3, 1).apply(tree)
    with pytest.raises(Refused):
        ops.DropPacks((11,), ()).apply(tree)
    assert packs(tree) == {10, 11, 12}
    ops.DropPacks((11,), (3,)).apply(tree)
    assert packs(tree) == {10, 12}
    with pytest.raises(Corrupt):
        tree.pack(11)


def test_a_moved_chunk_changes_only_what_still_names_the_old_place(tree: Tree) -> None:
    lay(tree, extent(10, 50_000, CHUNK))
    lay(tree, extent(12, 0, 2 * CHUNK)._replace(length=100))  # a part of a chunk
    moved = Extent(0, CHUNK, 11, 7, 21_000, CHUNK, 0, b"e" * 32, None)
    ops.Relocate(((10, 0, moved), (12, 0, moved._replace(offset=8)), (99, 0, moved))).apply(tree)
    one, two, three = tree.all_extents(2)
    assert (one.pack, one.offset, one.sealed, one.digest) == (11, 7, 21_000, b"e" * 32)
    assert (two.pack, two.offset) == (10, 50_000)
    assert (three.pack, three.offset, three.length, three.start) == (11, 8, 100, 2 * CHUNK)


def test_a_piece_that_lay_in_the_tree_lies_in_a_pack_if_it_is_still_the_same(tree: Tree) -> None:
    data = bytes(range(200)) * 10
    lay(tree, Extent(CHUNK, len(data), 0, 0, 0, len(data), 0, None, data))
    version = tree.inode(2).version
    moved = Extent(CHUNK, len(data), 11, 7, 2100, len(data), 0, b"e" * 32, None)

    ops.Repack(((2, version - 1, moved), (99, version, moved))).apply(tree)  # it has changed since
    assert tree.all_extents(2)[1].data == data

    used, blocks = tree.used, tree.inode(2).blocks
    ops.Repack(((2, version, moved), (2, version, extent(12)))).apply(tree)
    one, two = tree.all_extents(2)
    assert one == extent(10)  # in a pack already
    assert two == moved
    assert (tree.used, tree.inode(2).blocks, tree.inode(2).version) == (used, blocks, version)


def test_a_row_is_mended_only_as_it_was_seen(tree: Tree) -> None:
    row = tree.db.execute("SELECT * FROM inodes WHERE ino=2").fetchone()
    assert row is not None
    wrong = (*row[:7], 99, *row[8:])
    with pytest.raises(Refused):
        ops.Mend("inodes", wrong, row).apply(tree)
    used = tree.used
    ops.Mend("inodes", row, wrong).apply(tree)
    assert tree.inode(2).blocks == 99
    assert tree.used == used + 99 - CHUNK
    with pytest.raises(Refused):
        ops.Mend("dirents", None, (ROOT, b"f", 2, 1)).apply(tree)
    with pytest.raises(Corrupt):
        ops.Mend("local", None, ("a", "b")).apply(tree)


def test_they_survive_the_log_of_operations(tree: Tree) -> None:
    made: list[ops.Operation] = [
        ops.MarkGarbage((1, 2), 3),
        ops.DropPacks((1,), (2, 3)),
        ops.Relocate(((1, 2, extent(3)),)),
        ops.Repack(((1, 2, extent(3)),)),
        ops.Mend("dirents", (1, b"\xff", 2, 3), None),
    ]
    assert ops.decode(ops.encode(made)) == made
