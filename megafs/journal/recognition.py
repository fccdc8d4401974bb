"""Which of this state directory's batches are in the journal, whoever brought them there."""

from __future__ import annotations

from typing import NamedTuple

from megafs.journal.batches import BatchOrigin
from megafs.journal.commit import VerifiedCommit
from megafs.tree.schema import SequenceNumber
from megafs.tree.tree import Tree


class KnownPart(NamedTuple):
    """How many of the first operations of a batch are in the journal.

    by_key: another process than the one that did them has brought them there.
    """

    operations: int
    by_key: bool


class Recognition:
    """Knows a batch of this mount in the journal (identity.py), and a commit that it has made.

    mount: its number.  state_number: that of the state directory.

    twin: a commit under this mount's number that this process did not make, if there is one:
    another process has the number, for this one was copied with its memory.
    """

    def __init__(self, tree: Tree, mount: int, state_number: int) -> None:
        self._tree = tree
        self._mount = mount
        # An earlier process had the same number; so it is in tests alone.
        self._is_heir = mount == state_number
        #: Hashes of the commits that this process may have created.
        self._attempts: dict[SequenceNumber, set[bytes]] = {}
        self.twin: SequenceNumber | None = None

    def attempt(self, sequence: SequenceNumber, digest: bytes) -> None:
        """This mount is about to create a commit, and may never hear whether it did."""
        self._attempts.setdefault(sequence, set()).add(digest)

    def attempted(self, verified: VerifiedCommit) -> bool:
        """Whether this process has made that commit."""
        return verified.hash in self._attempts.get(verified.sequence, ())

    def settled(self, sequence: SequenceNumber) -> None:
        """A commit of that number was applied."""
        self._attempts.pop(sequence, None)

    def see(self, verified: VerifiedCommit) -> None:
        """A commit is being applied: look whether another process has our number."""
        ours = verified.commit.mount == self._mount
        if ours and not self._is_heir and not self.attempted(verified):
            self.twin = verified.sequence

    def is_key(self, key: int) -> bool:
        """Whether the journal has a batch of this key."""
        return self._tree.last_batch(key) != 0

    def known(self, number: int, origin: BatchOrigin, count: int) -> KnownPart:
        """How much of a batch, as it was done first, is in the journal.

        number: of the batch, among those of the process that did it.  count: its operations.
        """
        is_twins = self.twin is not None and origin.number == self._mount
        if not is_twins and self._tree.last_batch(origin.number) >= number:
            return KnownPart(count, False)
        part = next((n for n, key in reversed(origin.prefixes) if self.is_key(key)), 0)
        return KnownPart(part, part > 0)
