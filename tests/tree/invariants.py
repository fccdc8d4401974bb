"""What holds of every tree, whatever was done to it."""

from __future__ import annotations

import stat
from collections import Counter
from typing import Any

from megafs.tree.inode import ROOT
from megafs.tree.schema import REPLICATED
from megafs.tree.tree import Tree


def rows(tree: Tree, *, without: tuple[str, ...] = ()) -> dict[str, list[Any]]:
    """Every replicated row, for comparing two trees."""
    return {
        table.name: sorted(tree.db.execute(f"SELECT * FROM {table.name}"), key=repr)
        for table in REPLICATED
        if table.name not in without
    }


def check(tree: Tree) -> None:
    """Fail if a link count, a sum or a reference is wrong."""
    db = tree.db
    inodes = {
        row[0]: row
        for row in db.execute("SELECT ino, mode, nlink, blocks, size, parent FROM inodes")
    }
    names: Counter[int] = Counter()
    subdirectories: Counter[int] = Counter()
    above: dict[int, int] = {}
    cookies: set[tuple[int, int]] = set()
    for parent, name, ino, cookie in db.execute("SELECT parent, name, ino, cookie FROM dirents"):
        assert parent in inodes, f"{name!r} lies in {parent}, which is not there"
        assert stat.S_ISDIR(inodes[parent][1]), f"{name!r} lies in a file"
        assert ino in inodes, f"{name!r} stands for {ino}, which is not there"
        assert (parent, cookie) not in cookies, "two names with one cookie"
        cookies.add((parent, cookie))
        names[ino] += 1
        if stat.S_ISDIR(inodes[ino][1]):
            subdirectories[parent] += 1
            above[ino] = parent
    orphans = {row[0] for row in db.execute("SELECT ino FROM orphans")}
    for ino, mode, nlink, blocks, size, parent in inodes.values():
        if stat.S_ISDIR(mode):
            assert nlink == 2 + subdirectories[ino], f"directory {ino}: nlink {nlink}"
            assert names[ino] == (0 if ino == ROOT else 1), f"directory {ino}: {names[ino]} names"
            assert parent == (ROOT if ino == ROOT else above[ino]), f"directory {ino}: parent"
            seen, at = set(), ino
            while at != ROOT:
                assert at not in seen, f"directory {ino} lies inside itself"
                seen.add(at)
                at = above[at]
        else:
            assert nlink == names[ino], f"file {ino}: nlink {nlink}, {names[ino]} names"
            assert (nlink == 0) == (ino in orphans), f"file {ino}: nlink {nlink}, orphans"
        end = allocated = 0
        for x in tree.all_extents(ino):
            assert stat.S_ISREG(mode)
            assert x.start >= end, f"file {ino}: extents overlap at {x.start}"
            assert 0 < x.length <= tree.longest
            assert x.skip + x.length <= x.plain
            assert (x.pack == 0) == (x.data is not None)
            if x.pack:
                tree.pack(x.pack)
            end = x.end
            allocated += x.length
        assert end <= size or not allocated, f"file {ino}: an extent beyond its end"
        assert blocks == allocated, f"file {ino}: blocks {blocks}, extents {allocated}"
    for table in ("extents", "xattrs", "orphans"):
        left = {row[0] for row in db.execute(f"SELECT ino FROM {table}")} - inodes.keys()
        assert not left, f"{table} of inodes that are gone: {left}"
    assert tree.used == sum(row[3] for row in inodes.values()), "used"
    assert tree.files == len(inodes), "files"
