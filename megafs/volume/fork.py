"""Settles a fork of the journal, for `megafs fsck --repair`: two mounts have written at once.

On a store that cannot create an object only if it is absent, a mount that was paused for longer
than its lease can write over the first commit of the next holder (journal/lease.py), and that one
may have ended before it could put it back.  Then a commit does not follow the one before it, or
this machine stands on a commit that is not in the store any more.

One chain is kept.  From the newest checkpoint on, commit by commit, it is the one that goes on
longest: where two objects of one number are known, in the store and kept on this machine
(journal/kept_commits.py), the one that the next commit follows, and else the one in the store.  If
nobody has the object any more and this machine's tree holds it, a new checkpoint stands for it.
What no chain leads to is taken out of the journal, and what it changed is done again as operations
of this machine (journal/lost_changes.py): changes that fit are made, others become conflict copies.

The order: the lease; the other side's objects are kept on this machine; the chain is made whole;
this machine's tree is brought to where the two part; the volume is opened as ever; the other side's
changes are in the log of operations; only then are its objects forgotten here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgspec import Struct, field

from megafs.concurrency import offload
from megafs.crypto.volume_keys import Keyring, digest
from megafs.errors import Busy, Corrupt, Missing, TooNew
from megafs.journal import checkpoint
from megafs.journal import commit as commit_format
from megafs.journal.commit import VerifiedCommit, object_name
from megafs.journal.kept_commits import KeptCommit, KeptCommits
from megafs.journal.lease import Lease
from megafs.journal.lost_changes import LostChanges
from megafs.journal.reader import JournalReader, Position
from megafs.journal.replica import Replica
from megafs.stores.base import ObjectStore, list_all
from megafs.tree.schema import SequenceNumber

log = logging.getLogger(__name__)


class SettledFork(Struct):
    """How a fork was settled.

    lost: the commits that are not in the journal any more; changes: what they changed, for
    `Replica.bring_back`.  notes: what was done, for people.
    """

    lost: list[KeptCommit]
    changes: LostChanges | None
    notes: list[str]


class _Object(Struct, frozen=True):
    """A commit that opens: its hash, and the one that it names as the one before."""

    sequence: int
    hash: bytes
    prev: bytes
    mount: int
    host: str


class _Chain(Struct):
    """The journal after the newest checkpoint, as it is to be.

    hashes: by number, of what stays.  put_back: kept commits to be put in the place of what is
    there.  out: commits in the store that are none of the chain.
    from_tree: the number of a commit that only this machine's tree holds; 0 if there is none.
    """

    hashes: dict[int, bytes]
    put_back: list[KeptCommit] = field(default_factory=list)
    out: list[_Object] = field(default_factory=list)
    from_tree: int = 0

    @property
    def end(self) -> int:
        return max(self.hashes)


class ForkSettler:
    """Settles a fork before the volume is opened.  kept: the commits of this machine."""

    def __init__(
        self,
        store: ObjectStore,
        replica: Replica,
        keyring: Keyring,
        lease: Lease,
        kept: KeptCommits,
        say: Callable[[str], None],
    ) -> None:
        self._store = store
        self._replica = replica
        self._keyring = keyring
        self._lease = lease
        self._kept = kept
        self._say = say
        self._notes: list[str] = []

    async def settle(self) -> SettledFork | None:
        """Make the journal one chain again; None if it is one.

        Raises Busy if another mount has the right to write.
        """
        left = await offload(lambda: self._kept.read(lost=True), kind="disk")
        if not await self._is_forked() and not left:
            return None
        self._say("two mounts have written at once: taking the right to write, up to 2 minutes")
        if not self._lease.held and not await self._lease.acquire(wait=True):
            raise Busy(
                f"another mount ({self._lease.holder}) has the right to write to this volume:"
                " unmount it there first"
            )
        chain = await self._chain()
        lost = sorted({*left, *await self._take_out(chain), *await self._own_losses(chain)})
        changes = await self._changes(chain, lost)
        if changes is not None and changes.unreadable:
            self._notes.append(
                f"{changes.unreadable} pieces of files were described in full only by a commit that"
                " nobody has any more: they cannot be brought back"
            )
        for commit in lost:
            opened = commit_format.open_commit(self._keyring, commit.sequence, commit.data)
            self._notes.append(
                f"commit {commit.sequence} by {opened.host} had lost its place in the journal to"
                " another one of that number: what it changed is done again, beside what is there"
            )
        return SettledFork(lost, changes, self._notes)

    # ---- looking ----------------------------------------------------------------------------

    async def _is_forked(self) -> bool:
        chain = await self._chain()
        if chain.put_back or chain.out or self._stands_elsewhere(chain):
            return True
        return bool(await self._own_losses(chain))

    def _stands_elsewhere(self, chain: _Chain) -> bool:
        """Whether this machine's tree holds another commit of some number than the chain."""
        at = min(self._replica.sequence, chain.end)
        known = self._replica.hash_at(at)
        return at in chain.hashes and known is not None and known != chain.hashes[at]

    async def _chain(self) -> _Chain:
        manifest = await checkpoint.find_usable(
            self._store, self._keyring, least_epoch=self._keyring.epoch
        )
        begin, newest = 0, commit_format.genesis(self._keyring.fsid)
        history = newest
        if manifest is not None:
            begin, newest, history = manifest.sequence, manifest.head, manifest.history
        first = begin + 1 - len(history) // 32
        hashes = {first + n: history[32 * n : 32 * n + 32] for n in range(len(history) // 32)}
        chain = _Chain(hashes)
        found = await self._listed(begin)
        kept: dict[int, list[tuple[_Object, KeptCommit]]] = {}
        for commit in await offload(self._kept.read, kind="disk"):
            one = self._opened(commit.sequence, commit.data)
            if one is not None:
                kept.setdefault(commit.sequence, []).append((one, commit))
        number = begin + 1
        while number <= max(found, default=0):
            there, following = found.get(number), found.get(number + 1)
            chosen = there if there is not None and there.prev == newest else None
            for one, commit in kept.get(number, ()):
                is_followed = following is not None and following.prev == one.hash
                if one.prev == newest and one != chosen and (is_followed or chosen is None):
                    if chosen is not None and following and following.prev == chosen.hash:
                        continue
                    chosen = one
                    chain.put_back.append(commit)
                    break
            if chosen is None:
                if not self._tree_goes_on(chain, found, number):
                    chain.out += [found[n] for n in sorted(found) if n >= number]
                    break
                newest = chain.hashes[number - 1] = found[number].prev
                continue
            if there is not None and chosen != there:
                chain.out.append(there)
            newest = chain.hashes[number] = chosen.hash
            number += 1
        return chain

    def _tree_goes_on(self, chain: _Chain, found: dict[int, _Object], number: int) -> bool:
        """Whether this machine's tree holds the commit before *number* that its commit follows."""
        there, before = found.get(number), found.get(number - 1)
        if there is None or before is None or chain.from_tree:
            return False
        if self._replica.hash_at(number - 1) != there.prev:
            return False
        chain.from_tree = number - 1
        chain.out.append(before)
        return True

    async def _listed(self, after: int) -> dict[int, _Object]:
        found: dict[int, _Object] = {}
        async for page in list_all(self._store, "commits/", object_name(after)):
            for entry in page.entries:
                sequence = commit_format.sequence_of(entry.name)
                data = await self._get(sequence)
                one = self._opened(sequence, data) if data is not None else None
                if one is None:
                    # Damage, not a fork: what is behind it is left as it is.
                    raise Corrupt(f"{entry.name} does not open: megafs salvage reads what is left")
                found[sequence] = one
        return found

    async def _get(self, sequence: int) -> bytes | None:
        try:
            return await self._store.get(object_name(sequence), 0, commit_format.MAX_OBJECT + 1)
        except Missing:
            return None

    def _opened(self, sequence: int, data: bytes) -> _Object | None:
        try:
            opened = commit_format.open_commit(self._keyring, sequence, data)
        except (Corrupt, TooNew):
            return None
        return _Object(sequence, digest(data), opened.prev, opened.mount, opened.host)

    # ---- acting -----------------------------------------------------------------------------

    async def _take_out(self, chain: _Chain) -> list[KeptCommit]:
        """Make the chain whole; return what was taken out of the store."""
        lost = []
        for one in chain.out:
            data = await self._get(one.sequence)
            if data is None or digest(data) != one.hash:
                raise Busy("another mount writes to this volume: unmount it there first")
            await offload(self._keep_lost, one.sequence, data, kind="disk")
            lost.append(KeptCommit(one.sequence, data, True))
        if chain.from_tree:
            await self._checkpoint(chain)
        for commit in chain.put_back:
            await self._store.put(object_name(commit.sequence), commit.data)
            self._notes.append(
                f"commit {commit.sequence} was written over by another mount, and is put back"
            )
        instead = {commit.sequence for commit in chain.put_back}
        for one in sorted(chain.out, key=lambda one: -one.sequence):
            if one.sequence not in instead:
                await self._store.delete(object_name(one.sequence))
        return lost

    def _keep_lost(self, sequence: int, data: bytes) -> None:
        self._kept.keep(sequence, data, lost=True)

    async def _checkpoint(self, chain: _Chain) -> None:
        """Let a checkpoint of this machine's tree stand for a commit that nobody has any more."""
        replica = self._replica
        await self._follow(chain.end)
        await checkpoint.Checkpointer(replica, self._store, self._keyring).write()
        self._notes.append(
            f"commit {chain.from_tree} was written over by another mount, and nobody has it any"
            " more: the tree of this machine, which holds it, is in a checkpoint now"
        )

    async def _own_losses(self, chain: _Chain) -> list[KeptCommit]:
        """Commits that this machine has made, and kept, and that are none of the chain."""
        kept = await offload(self._kept.read, kind="disk")
        hashed = [(commit, digest(commit.data)) for commit in kept]
        return [
            KeptCommit(commit.sequence, commit.data, True)
            for commit, own in hashed
            if chain.hashes.get(commit.sequence, own) != own
        ]

    async def _changes(self, chain: _Chain, lost: list[KeptCommit]) -> LostChanges | None:
        replica = self._replica
        if self._stands_elsewhere(chain):
            replica.reset()
            await checkpoint.load_newest(
                self._store, replica, self._say, least_epoch=self._keyring.epoch
            )
        if not lost:
            return None
        # Where the two part is where the changes fit best.
        await self._follow(min(chain.end, lost[0].sequence - 1))
        verified = []
        for commit in lost:
            opened = commit_format.open_commit(self._keyring, commit.sequence, commit.data)
            number = SequenceNumber(commit.sequence)
            verified.append(VerifiedCommit(number, digest(commit.data), opened))
        return replica.changes_of(verified)

    async def _follow(self, upto: int) -> None:
        """Bring this machine's tree up to a commit of the chain, if it does not stand there yet."""
        replica = self._replica
        reader = JournalReader(self._store, self._keyring)
        while replica.sequence < upto:
            stand = Position(replica.sequence, replica.head, replica.epoch)
            got = await reader.read(stand, 1)
            if not got:
                raise Corrupt(f"commit {replica.sequence + 1} is missing")
            replica.raise_epoch(reader.epoch)
            replica.follow(got)
