"""Walking through a subtree, in steps that let others run in between."""

from __future__ import annotations

from collections.abc import Iterator

from megafs.tree.inode import Inode
from megafs.tree.tree import Tree

_AT_ONCE = 500


def below(tree: Tree, top: Inode) -> Iterator[tuple[int, bytes, Inode]]:
    """Everything below a directory, directories before what is in them: (parent, name, inode).

    The caller may await between two entries: names that are made meanwhile may or may not come.
    """
    waiting = [top.ino] if top.is_dir else []
    while waiting:
        parent = waiting.pop()
        after = -1
        while entries := tree.entries(parent, after, _AT_ONCE):
            for name, inode, cookie in entries:
                after = cookie
                yield parent, name, inode
                if inode.is_dir:
                    waiting.append(inode.ino)
