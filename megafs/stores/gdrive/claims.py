"""Which id belongs to a name that several machines may want to create.

Drive keeps two files of one name, but never two of one id.  So machines that want the same name
must first agree on an id.  They do that in a chain of small files, the claims: each binds a name to
a fresh id, and has, in its properties, the id of the claim after it.  Whoever wants to add a claim
creates the file of that id; one of several gets it, the others read what it says and go on behind
it.  So the claims are one sequence for all, and the first that binds a name settles its id.

The volume's folder has the id of the first claim.  A deleted object's name is bound anew ("free"),
since Drive does not promise that an id can be used again.  Claims have no content, and stay.
"""

from __future__ import annotations

import msgspec
import trio
from msgspec import Struct

from megafs.errors import Exists, Unavailable
from megafs.stores.gdrive import names
from megafs.stores.gdrive.catalogue import Catalogue
from megafs.stores.gdrive.files import VOLUME, NewFile
from megafs.stores.gdrive.index import BOUND, CLAIM, FREE, NEXT, IndexedClaim

# A claim that is taken and cannot be read: seconds between looks, and how many.
_LOOK_EVERY = 0.3
_LOOKS = 10


class Binding(Struct, frozen=True):
    """The id that is bound to a name.  free: the object that had another id was deleted."""

    id: str
    free: bool


class Claims:
    """The claims of a volume, as far as they are known here.

    first: the id of the first.  folder: where new ones lie.
    """

    def __init__(self, catalogue: Catalogue, first: str, folder: str) -> None:
        self._catalogue = catalogue
        self._folder = folder
        self._end = first  # the id of the claim after those that were read
        self._number = 1
        self._bound: dict[str, Binding] = {}
        self._busy = trio.Lock()

    def known(self, name: str) -> Binding | None:
        """What is bound to a name, as far as the claims were read."""
        claims = self._catalogue.index.claims
        while (claim := claims.get(self._end)) is not None:
            self._read(claim)
        return self._bound.get(name)

    async def look(self) -> None:
        """Read the claims to their end, which is asked for by id."""
        async with self._busy:
            await self._look()

    def names(self, prefix: str) -> list[tuple[str, Binding]]:
        """The names that begin with *prefix* and are bound, as far as the claims were read."""
        self.known("")
        return [item for item in self._bound.items() if item[0].startswith(prefix)]

    async def bind(self, name: str, *, instead_of: str = "", to: str = "") -> str:
        """Return the id that is bound to *name*; bind one if there is none.

        instead_of: the id of an object that was deleted: if that one is bound, bind another.
        to: bind this id.
        """
        service = self._catalogue.service
        async with self._busy:
            while True:
                found = self.known(name)
                if found is not None and found.id != instead_of:
                    return found.id
                bound = to or await service.fresh_id()
                file = NewFile(
                    self._end,
                    name + names.CLAIM,
                    (self._folder,),
                    {
                        VOLUME: self._catalogue.index.volume,
                        CLAIM: str(self._number),
                        NEXT: await service.fresh_id(),
                        BOUND: bound,
                        **({FREE: "1"} if instead_of else {}),
                    },
                    "application/octet-stream",
                )
                try:
                    await service.create_empty(file, msgspec.json.encode(file))
                except Exists:
                    pass
                # What counts is what is there: also after a success, should a service let two
                # creates of one id both succeed.
                await self._read_next()

    async def _look(self) -> None:
        self.known("")
        while (claim := await self._catalogue.ask_claim(self._end)) is not None:
            self._read(claim)

    async def _read_next(self) -> None:
        """Read the claim at the end, which is known to be there."""
        for _ in range(_LOOKS):
            claim = await self._catalogue.ask_claim(self._end)
            if claim is not None:
                self._read(claim)
                return
            await trio.sleep(_LOOK_EVERY)
        raise Unavailable("a claim of another machine is there and cannot be read yet")

    def _read(self, claim: IndexedClaim) -> None:
        if claim.number != self._number or not claim.next:
            raise Unavailable(f"claim {self._number} of the volume cannot be read")
        self._bound[claim.name] = Binding(claim.bound, claim.free)
        self._end = claim.next
        self._number += 1
