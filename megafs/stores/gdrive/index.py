"""What this process knows of a volume's files: names, ids, sizes; sync, and without requests.

It is filled by searches, the feed of changes, our own creates, and what commits tell of the packs
that they name.  All but our own and what was asked by id may be seconds old.

Several files may have one name: names are not unique in Drive.  Which of them is the object is
settled in the same way on every machine, and reading never deletes the others:

- the one whose id was agreed beforehand, where one was (`agreed`);
- else the largest: of two packs of one name one is the beginning of the other (a state directory
  that was copied, chunks/stage.py), and uploaded twice they are equal;
- then the oldest, then the smallest id.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct

from megafs.errors import BadUsage
from megafs.stores.base import check_name
from megafs.stores.gdrive import names
from megafs.stores.gdrive.files import VOLUME, DriveFile, FeedChange, seconds
from megafs.stores.gdrive.service import is_id

# Of what we deleted, the last so many: searches and the feed lag by minutes at most.
_REMEMBERED = 20_000
_PACK = re.compile(r"packs/([0-9a-f]{2})/\1[0-9a-f]{30}\Z")
# 124 bytes less the key ("p13"), a space and two names.
_ID_LENGTH = 38

#: Properties: of a commit, the id of the next; of a claim, its number, the next and the bound id.
NEXT, CLAIM, BOUND, FREE = "next", "claim", "to", "free"
#: Properties "p0", "p1", ...: packs that came since the commit before, two in each.
HINT = "p"
#: The most packs that one commit tells of: a file has 30 properties of one application.
HINTED = 52


class IndexedObject(Struct, frozen=True, gc=False):
    """A file that is an object.  times: seconds since 1970.  next: of a commit, the next one's id.

    whole: what is known came from Drive itself, not from what a commit says of its packs.
    """

    id: str
    name: str
    size: int = 0
    created: float = 0.0
    modified: float = 0.0
    next: str = ""
    whole: bool = True


class IndexedClaim(Struct, frozen=True, gc=False):
    """A claim: *name* is bound to the id *bound*.  free: an object of the name was deleted."""

    id: str
    name: str
    number: int
    bound: str
    next: str
    free: bool = False


class Index:
    """The files of the volume in the folder *volume* (its id)."""

    def __init__(self, volume: str) -> None:
        self.volume = volume
        self._objects: dict[str, tuple[IndexedObject, ...]] = {}
        self._names: dict[str, str] = {}  # by id
        self._sorted: list[str] | None = None
        self.claims: dict[str, IndexedClaim] = {}
        # What we have deleted: searches and the feed go on to tell of it for a while.
        self._gone: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._names)

    @property
    def doubles(self) -> int:
        """How many names have more than one file."""
        return sum(len(found) > 1 for found in self._objects.values())

    # What comes in

    def add(self, file: DriveFile, *, is_new: bool = True) -> IndexedObject | IndexedClaim | None:
        """Note a file as Drive shows it; None if it is none of the volume's.

        is_new: what a commit says of packs counts; packs of old ones may be deleted.
        """
        properties = file.app_properties
        if properties.get(VOLUME) != self.volume or file.id in self._gone:
            return None
        if file.trashed:
            self.forget(file.id)
            return None
        if CLAIM in properties:
            return self._add_claim(file)
        try:
            check_name(file.name)
        except BadUsage:
            return None
        made = IndexedObject(
            file.id,
            file.name,
            file.size,
            seconds(file.created_time),
            seconds(file.modified_time),
            properties.get(NEXT, ""),
        )
        self._put(made)
        for key, value in properties.items() if is_new else ():
            if key.startswith(HINT) and key[1:].isdecimal():
                self._add_hints(value)
        return made

    def apply(self, changes: Iterable[FeedChange]) -> None:
        """Note what the feed says."""
        for change in changes:
            if change.removed:
                self.forget(change.file_id)
            elif change.file is not None:
                self.add(change.file)

    def forget(self, file_id: str) -> None:
        """There is no such file any more, for all that is known."""
        name = self._names.pop(file_id, None)
        if name is None:
            return
        rest = tuple(each for each in self._objects[name] if each.id != file_id)
        if rest:
            self._objects[name] = rest
        else:
            del self._objects[name]
            self._sorted = None

    def deleted(self, file_id: str) -> None:
        """We have deleted it."""
        self._gone[file_id] = None
        if len(self._gone) > _REMEMBERED:
            del self._gone[next(iter(self._gone))]
        self.forget(file_id)

    def _add_claim(self, file: DriveFile) -> IndexedClaim | None:
        properties = file.app_properties
        number = properties[CLAIM]
        if not number.isdecimal() or not file.name.endswith(names.CLAIM):
            return None
        claim = IndexedClaim(
            file.id,
            file.name.removesuffix(names.CLAIM),
            int(number),
            properties.get(BOUND, ""),
            properties.get(NEXT, ""),
            FREE in properties,
        )
        self.claims[file.id] = claim
        return claim

    def _put(self, made: IndexedObject) -> None:
        found = self._objects.get(made.name, ())
        if not found:
            self._sorted = None
        self._objects[made.name] = (*(each for each in found if each.id != made.id), made)
        self._names[made.id] = made.name

    def _add_hints(self, value: str) -> None:
        for name, file_id in read_hints(value):
            if file_id not in self._names and file_id not in self._gone:
                self._put(IndexedObject(file_id, name, whole=False))

    # What is known

    def settled(self, name: str, agreed: Callable[[], str] | None = None) -> IndexedObject | None:
        """Return the file that is the object *name*; None if none is known.

        agreed: its id, "" if that is not known; asked for only if there are several.
        """
        found = self._objects.get(name, ())
        if len(found) > 1:
            wanted = agreed() if agreed is not None else ""
            # Of a pack that only a commit tells of, the size is not known: it is one of two.
            return min(found, key=lambda o: (o.id != wanted, -o.size, o.created, o.id))
        return found[0] if found else None

    def files_of(self, name: str) -> tuple[IndexedObject, ...]:
        """Every file of the name."""
        return self._objects.get(name, ())

    def names_after(self, prefix: str, after: str, limit: int) -> tuple[list[str], bool]:
        """Up to *limit* names that begin with *prefix* and come after *after*; are there more?"""
        if self._sorted is None:
            self._sorted = sorted(self._objects)
        ordered = self._sorted
        at = max(bisect_left(ordered, prefix), bisect_right(ordered, after))
        found = []
        for name in ordered[at : at + limit + 1]:
            if not name.startswith(prefix):
                break
            found.append(name)
        return found[:limit], len(found) > limit

    def last_commit_before(self, number: int | None) -> int:
        """The number of the newest commit that is known, below *number* if given; 0 for none."""
        if self._sorted is None:
            self._sorted = sorted(self._objects)
        ordered = self._sorted
        end = names.COMMITS + "~" if number is None else names.commit_name(number)
        at = bisect_left(ordered, end)
        while at > 0 and ordered[at - 1].startswith(names.COMMITS):
            at -= 1
            found = names.commit_number(ordered[at])
            if found:
                return found
        return 0


def hint(name: str, file_id: str) -> str:
    """Return what tells the id of a pack, "" if it cannot be told in so few bytes.

    A property holds 124 bytes, its key among them: two names of 32 digits would not fit beside two
    ids of 33, so the digits travel as 22 letters (URL-safe Base64).
    """
    if not _PACK.match(name) or len(file_id) > _ID_LENGTH:
        return ""
    digits = bytes.fromhex(name.rpartition("/")[2])
    return urlsafe_b64encode(digits).decode().rstrip("=") + file_id


def hint_properties(told: Sequence[str]) -> dict[str, str]:
    """Return the properties that hold up to HINTED hints."""
    return {f"{HINT}{n // 2}": " ".join(told[n : n + 2]) for n in range(0, len(told), 2)}


def read_hints(value: str) -> list[tuple[str, str]]:
    """Return the names and ids that a property tells."""
    found = []
    for piece in value.split(" "):
        try:
            digits = urlsafe_b64decode(piece[:22] + "==").hex()
        except ValueError:
            continue
        file_id = piece[22:]
        if len(digits) == 32 and is_id(file_id):
            found.append((f"packs/{digits[:2]}/{digits}", file_id))
    return found
