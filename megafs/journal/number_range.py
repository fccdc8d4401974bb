"""Numbers that nothing in the volume has ever had: for inodes, cookies, versions and packs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from megafs import clock
from megafs.tree.ops import ClaimRange, Operation
from megafs.tree.tree import Tree

# A number is a range's prefix (38 random bits) and a counter (25 bits): below 2**63, as inode
# numbers, SQLite's integers and readdir's offsets must be.  Two mounts that claim ranges at the
# same moment take the same one once in 2**38 times; the second claim is then refused
# (`Replica.follow`).
_COUNTER_BITS: Final = 25
_PREFIX_BITS: Final = 38


class NumberRange:
    """The range that one mount takes its numbers from; it claims another one when that is used up.

    record: applies the claim as an operation of the mount.

    prefix, counter: the last number that was given out.  0, 0: none, and no range is claimed.
    """

    def __init__(self, tree: Tree, mount: int, record: Callable[[Operation], None]) -> None:
        self._tree = tree
        self._mount = mount
        self._record = record
        self.prefix = 0
        self.counter = 0

    def next(self) -> int:
        """A number that nothing in the volume has ever had."""
        if not self.prefix or self.counter >> _COUNTER_BITS:
            self._claim()
        self.counter += 1
        return self.prefix << _COUNTER_BITS | self.counter

    @property
    def last(self) -> tuple[int, int]:
        """The last number given out, and the last one that may follow it in its range."""
        first = self.prefix << _COUNTER_BITS
        return first | self.counter, first | (1 << _COUNTER_BITS) - 1

    def _claim(self) -> None:
        while True:
            prefix = int.from_bytes(clock.random_bytes(5), "big") >> (40 - _PREFIX_BITS)
            if prefix and not self._tree.is_claimed(prefix):  # 0 holds the root directory
                break
        self.prefix, self.counter = prefix, 0
        self._record(ClaimRange(prefix, self._mount))
