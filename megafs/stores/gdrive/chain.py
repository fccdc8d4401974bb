"""Commits: each has, in its properties, the id that the next one will have.

Two machines that both stand on commit N want to create N + 1 with the same id; one gets it.  The
first one's id lies on the volume's folder.  Only ids are asked for here, which Drive answers from
what is there now: a commit of another machine is seen at once, however far the feed lags behind.

gc deletes old commits, never the newest, so the chain is always held at its end.
"""

from __future__ import annotations

from itertools import pairwise

import trio

from megafs.stores.gdrive import names
from megafs.stores.gdrive.catalogue import Catalogue
from megafs.stores.gdrive.claims import Claims
from megafs.stores.gdrive.index import IndexedObject

# From so many missing commits on the feed is asked first: it tells of 1,000 in one request.
_MANY = 3
#: Seconds after which a commit is asked for again that must have been there.
AGAIN = (0.5, 2.0)


class CommitChain:
    """The commits of a volume.  first: the id of commit 1."""

    def __init__(self, catalogue: Catalogue, claims: Claims, first: str) -> None:
        self._catalogue = catalogue
        self._claims = claims
        self._first = first
        self._walking = trio.Lock()
        self._ended = float("-inf")  # when the walk began that last found the end
        self._end = 0  # and which commit was the last
        self._dead: set[int] = set()  # gaps that listings do not ask for again

    def known(self, number: int) -> IndexedObject | None:
        """The commit, if the index has it."""
        return self._catalogue.index.settled(names.commit_name(number), lambda: self.agreed(number))

    def agreed(self, number: int) -> str:
        """The id that the commit has or will have; "" if what says so is not known."""
        if number == 1:
            return self._first
        before = self.known(number - 1)
        if before is not None and before.next:
            return before.next
        # The one before it is gone.  If it was the newest, whoever deleted it has bound the id.
        bound = self._claims.known(names.commit_name(number))
        return bound.id if bound is not None else ""

    async def find(self, number: int) -> IndexedObject | None:
        """Look for a commit; None if there is none."""
        asked = trio.current_time()
        found = self.known(number)
        if found is not None:
            return found
        await self._catalogue.load()
        async with self._walking:
            last = self._catalogue.index.last_commit_before(number)
            if number - last > _MANY:
                await self._catalogue.refresh()
                last = self._catalogue.index.last_commit_before(number)
            found = self.known(number)
            if found is not None:
                return found
            if self._ended > asked and number > self._end:
                return None
            begun = trio.current_time()
            for n in range(last + 1, number + 1):
                found = await self._ask_again(n)
                if found is None:
                    self._ended, self._end = begun, n - 1
                    return None
            return found

    async def extend(self) -> None:
        """Look for commits that the index does not have: behind the newest, and in gaps."""
        await self._catalogue.refresh()
        async with self._walking:
            n = self._catalogue.index.last_commit_before(None)
            begun = trio.current_time()
            while await self._ask(n + 1) is not None:
                n += 1
            self._ended, self._end = begun, n

    async def fill(self, numbers: list[int]) -> None:
        """Look for what is missing between *numbers*, which are known and ascend.

        A commit before one that is there was made earlier; if its id has no file, it was deleted.
        """
        for before, after in pairwise(numbers):
            for n in range(before + 1, after):
                if n in self._dead or self.known(n) is not None:
                    continue
                if await self._ask(n) is None:
                    self._dead.update(range(n, after))
                    break

    async def _ask_again(self, number: int) -> IndexedObject | None:
        """As `_ask`; again a little later if a commit after it is there.

        Then it was deleted, or Drive shows it late: what is missing in the middle stops a mount.
        """
        found = await self._ask(number)
        for pause in AGAIN:
            if found is not None or number > self._catalogue.index.last_commit_before(None):
                break
            await trio.sleep(pause)
            found = await self._ask(number)
        return found

    async def _ask(self, number: int) -> IndexedObject | None:
        file_id = self.agreed(number)
        if not file_id:
            return None
        found = await self._catalogue.ask(file_id)
        if found is None and number > 1:
            bound = self._claims.known(names.commit_name(number))
            if bound is not None and bound.id != file_id:
                found = await self._catalogue.ask(bound.id)
        return found
