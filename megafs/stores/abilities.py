"""What some stores can do and others cannot.

An ability is an abstract class.  A driver or wrapper that has it derives from it:

    class DropboxStore(ObjectStore, Watch, SpaceLeft): ...

and whoever can use it asks the class, in the one way there is:

    watch = Watch.of(store)
    if watch is not None:
        await watch.wait_for_change(prefix)

`of` looks at the store and then beneath its wrappers, so that limits, retries and the cache need
not know every ability.  A driver's own ability is therefore neither limited nor retried: it raises
what the driver raises (StoreError), and the caller tries again at its own pace.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from megafs.stores.base import Buffer, ObjectStore
from megafs.stores.wrapper import Wrapper


class Ability:
    """Something that not every store can do."""

    @classmethod
    def of(cls, store: ObjectStore) -> Self | None:
        """Return the outermost of *store* and what it wraps that can do this; None if none can."""
        while True:
            if isinstance(store, cls):
                return store
            if not isinstance(store, Wrapper):
                return None
            store = store.beneath


class UnconditionalPuts(Ability, ABC):
    """Can create objects without telling the store that the name must be free."""

    @abstractmethod
    def do_without_conditions(self) -> None:
        """From now on look whether a name is free, and write then: the volume's header says that
        this store refuses the condition, or ignores it.
        """


# ---- the disk cache ----------------------------------------------------------------------------


class RangeCache(Ability, ABC):
    """Keeps ranges of packs at hand.  What reading and writing chunks needs of the disk cache."""

    @abstractmethod
    def holder(self, name: str, start: int, length: int) -> int:
        """The number of the one cached range that holds this one, 0 if there is none.

        No other ever has that number: what goes and is fetched again has another, a later one.
        """

    @property
    @abstractmethod
    def newest(self) -> int:
        """The number of the last range that came."""

    @abstractmethod
    def peek(self, name: str, start: int, length: int, holder: int | None = None) -> bytes | None:
        """As `get`, if that needs neither the store nor any waiting; None if it does.

        None as well where the range is not wholly there.  holder: in that cached range, which was
        verified: what came later may be another's.
        """

    @abstractmethod
    def cached(self, name: str, start: int, length: int) -> bool:
        """Whether a get of this range would be answered without the store."""

    @abstractmethod
    async def forget(self, name: str) -> None:
        """Drop what is cached of an object, for its bytes did not verify.  Never asks the store."""

    @abstractmethod
    async def remember(self, name: str, start: int, data: Buffer | Path | str) -> None:
        """Cache what was just stored: bytes from *start* on, or the file that holds them.

        The file must not change any more, and stay where it is until this returns; then it has one
        more name in the cache, or was copied, or is not cached.  Never asks the store, never fails.
        """


class NoRangeCache(RangeCache):
    """Where there is no cache: nothing is at hand."""

    def holder(self, name: str, start: int, length: int) -> int:
        return 0

    @property
    def newest(self) -> int:
        return 0

    def peek(self, name: str, start: int, length: int, holder: int | None = None) -> bytes | None:
        return None

    def cached(self, name: str, start: int, length: int) -> bool:
        return False

    async def forget(self, name: str) -> None:
        pass

    async def remember(self, name: str, start: int, data: Buffer | Path | str) -> None:
        pass


class DiskCache(Wrapper, RangeCache):
    """A wrapper that keeps ranges on the local disk: what a volume and its jobs use of it.

    `beneath` is the store without the cache.  (The implementation is disk_cache/, which imports
    diskcache and is loaded only when a cache is opened.)
    """

    @abstractmethod
    def begin(self) -> None:
        """Start to fill the index from the disk, without waiting for it."""

    @abstractmethod
    def pin(self, names: Iterable[str]) -> None:
        """Never evict ranges of these objects."""

    @abstractmethod
    def unpin(self, names: Iterable[str]) -> None:
        """Evict ranges of these objects again when room is needed."""

    @abstractmethod
    async def clear(self) -> None:
        """Throw out everything, pinned or not."""

    @abstractmethod
    async def written(self) -> None:
        """Wait until everything is on the disk that waits to be written."""

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """Numbers for `megafs status`; JSON-able."""


def uncached(store: ObjectStore) -> ObjectStore:
    """Return *store* without its disk cache: what the store itself holds."""
    cache = DiskCache.of(store)
    return store if cache is None else cache.beneath


# ---- the way to the store ----------------------------------------------------------------------


class LineAdvice(Ability, ABC):
    """Knows the way to the store from recent requests.  Every answer is 0 while it is not known."""

    @abstractmethod
    def latency_bytes(self) -> int:
        """How many bytes arrive in the time of one round trip."""

    @abstractmethod
    def useful_uploads(self) -> int:
        """How many packs at once the store has use for at present."""

    @abstractmethod
    def useful_downloads(self) -> int:
        """How many large reads ahead at once the store has use for."""


class NoLineAdvice(LineAdvice):
    """Where nobody measures: nothing is known."""

    def latency_bytes(self) -> int:
        return 0

    def useful_uploads(self) -> int:
        return 0

    def useful_downloads(self) -> int:
        return 0


# ---- abilities of some drivers -----------------------------------------------------------------


class Watch(Ability, ABC):
    """The store can tell that something changed, sooner than asking every few seconds would."""

    @abstractmethod
    async def wait_for_change(self, prefix: str) -> None:
        """Return when an object whose name begins with *prefix* may have been stored or removed.

        Returning for nothing costs the caller one listing; not returning costs it only its next
        look by the clock, which goes on beside this.  So it may miss changes, and need not say
        which object it was.
        """


class SpaceLeft(Ability, ABC):
    """The store knows how much more it takes."""

    @abstractmethod
    async def space_left(self) -> int | None:
        """Return the bytes that can still be stored; None if there is no limit or none is known."""


class LimitedBodies(Ability):
    """Objects travel in bodies of HTTP requests: the service, or a proxy on the way, may take none
    as large as a pack.  Others store what fits on their disk."""


class PublicLink(Ability, ABC):
    """The store can give out an object to people without an account."""

    @abstractmethod
    async def public_link(self, name: str) -> str:
        """Return a URL from which anybody can get the object, until it is deleted.

        Raises Missing if there is no such object, Denied if the account may not share.
        """


class Presign(Ability, ABC):
    """The store's requests can be signed ahead, for somebody who has no credentials."""

    @abstractmethod
    async def presign_get(self, name: str, seconds: int) -> str:
        """Return a URL that answers GETs of the object, or of ranges of it, for so many seconds.

        It ends earlier where the credentials themselves end earlier.
        """

    @abstractmethod
    async def presign_put(self, name: str, seconds: int) -> str:
        """Return a URL that takes PUTs of the object for so many seconds."""


class WebAccess(Ability, ABC):
    """The store can be told to answer browsers, and people without credentials."""

    @abstractmethod
    async def allow_origin(self, origin: str) -> bool:
        """Let the page at *origin* ("https://host") read objects in a browser, where a request is
        allowed otherwise; False if the service has no such thing.
        """

    @abstractmethod
    async def allow_public(self, prefix: str) -> bool:
        """Let everybody get objects whose names begin with *prefix*; False if it is refused."""


class PlainUrls(Ability, ABC):
    """The store's objects have URLs, under which it may serve them to anybody."""

    @abstractmethod
    def plain_url(self, name: str) -> str:
        """Return the object's URL, without a signature.  Whether it answers is to be tried."""
