"""Objects in a folder of Google Drive (API v3).

Every file is made with an id that was drawn before, so that a create whose reply was lost is never
done twice.  What has one winner among machines, and how: names.py, chain.py, claims.py; what of it
is known here: index.py, catalogue.py; the folder itself: volume_folder.py.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping

import trio

from megafs.errors import BadStore, BadUsage, Exists, Missing, StoreError, Unavailable
from megafs.stores.abilities import SpaceLeft, Watch
from megafs.stores.base import Buffer, Entry, Health, ObjectStore, Page, check_name
from megafs.stores.gdrive import names
from megafs.stores.gdrive.catalogue import Catalogue
from megafs.stores.gdrive.chain import CommitChain
from megafs.stores.gdrive.claims import Claims
from megafs.stores.gdrive.files import VOLUME, DriveFile, NewFile
from megafs.stores.gdrive.index import HINTED, NEXT, IndexedObject, hint, hint_properties
from megafs.stores.gdrive.login_kind import endpoint_of, gdrive_login
from megafs.stores.gdrive.service import DriveService
from megafs.stores.gdrive.uploads import AT_ONCE, Uploads
from megafs.stores.gdrive.volume_folder import Folders, VolumeFolder
from megafs.stores.http.session import Session, Timeouts
from megafs.stores.login.tokens import OAuthTokens, TokenSource
from megafs.stores.urls import Location

#: Seconds after which what neither the feed nor a search knows is looked for again: both lag
#: behind, mostly by less.
LAG = (0.5, 2.0)
#: Seconds between two looks of `wait_for_change`, each one small request: at least, at most; and a
#: twentieth of the time since something was committed here or elsewhere.
WATCH = (1.0, 10.0)
_WATCH_SHARE = 20.0
#: "Not there" counts only while the folder is there, which is asked this seldom, in seconds.
_CONFIRM_EVERY = 60.0
# Rounds of a create whose name is bound anew meanwhile.
_ROUNDS = 5
# Creates under way, or that failed, whose ids are remembered for the next attempt.
_REMEMBERED = 1000
# Listings that show no name with a claim.
_WITHOUT_CLAIMS = ("packs/", "mounts/", names.COMMITS)


def open_driver(location: Location, options: Mapping[str, str], connections: int) -> GDriveStore:
    """Open gdrive:/folder: see stores/drivers.py."""
    path = location.path.strip("/")
    login = gdrive_login(location, options)
    timeouts = Timeouts.of(options)
    tokens = OAuthTokens(login, f"gdrive:/{path}", timeouts=timeouts)
    return GDriveStore(
        path, tokens, endpoint=endpoint_of(options), timeouts=timeouts, connections=connections
    )


class GDriveStore(ObjectStore, SpaceLeft, Watch):
    """Objects in the folder *path* of the account that *tokens* open.

    endpoint: "https://host", where the API is.
    """

    def __init__(
        self,
        path: str,
        tokens: TokenSource,
        *,
        endpoint: str,
        timeouts: Timeouts | None = None,
        connections: int = 16,
    ) -> None:
        path = path.strip("/")
        if not path:
            raise BadStore("gdrive: names no folder; write for example gdrive:/megafs")
        if {".", ".."} & set(path.split("/")):
            raise BadStore(f"the path {path!r} may not hold '.' or '..'")
        self.url = f"gdrive:/{path}"
        session = Session(endpoint, connections=connections, timeouts=timeouts)
        self._service = DriveService(session, tokens, f"megafs login {self.url}")
        self._uploads = Uploads(self._service)
        self._folders = Folders(self._service, path)
        self._opening = trio.Lock()
        self._known: _Volume | None = None
        self._attempts: dict[str, str] = {}  # ids of creates that may have happened
        self._untold: deque[str] = deque()  # packs that no commit of ours has told of
        self._listed: dict[str, str] = {}  # by prefix: where the last page ended
        self._confirmed = float("-inf")
        self._stirred: float | None = None  # when something was committed last

    async def get(self, name: str, start: int, length: int) -> bytes:
        check_name(name)
        volume = await self._volume()
        for again in (False, True):
            found = await self._find(volume, name)
            if found is None:
                break
            try:
                return await self._service.read(found.id, name, start, length)
            except Missing:
                volume.index.forget(found.id)
                if again:
                    raise
        await self._confirm(volume)
        raise Missing(f"{name} is not there")

    async def put_new(self, name: str, data: Buffer) -> None:
        check_name(name)
        volume = await self._volume()
        if names.has_one_writer(name):
            await self._put_alone(volume, name, data)
            return
        number = names.commit_number(name)
        if number is not None:
            await self._create_commit(volume, number, name, data)
        else:
            await self._create_claimed(volume, name, data)

    async def put(self, name: str, data: Buffer) -> None:
        if not names.has_one_writer(check_name(name)):
            raise BadUsage(f"{name}: only what one writer has may be replaced, as mounts/*")
        volume = await self._volume()
        await volume.catalogue.load()
        if volume.index.settled(name) is None:
            await self._look_for(volume, name)
        old = volume.index.settled(name)
        small = len(data) <= AT_ONCE
        if old is not None and small and await self._replace(volume, old.id, name, data):
            return
        others = volume.index.files_of(name)
        if not await self._create_alone(volume, name, data):
            # Our own create, whose reply was lost; it may have had other bytes.
            file_id = self._attempts.pop(name, "")
            if small and not await self._replace(volume, file_id, name, data):
                raise Unavailable(f"store {name}: another machine deletes it")
            others = tuple(each for each in others if each.id != file_id)
        for other in others:
            await self._service.delete(other.id, name)
            volume.index.deleted(other.id)

    async def _replace(self, volume: _Volume, file_id: str, name: str, data: Buffer) -> bool:
        """Give a file other content; False if there is no such file."""
        made = await self._uploads.replace(file_id, name, data)
        if made is None:
            volume.index.forget(file_id)
            return False
        volume.index.add(made)
        return True

    async def delete(self, name: str) -> None:
        check_name(name)
        volume = await self._volume()
        found = await self._find(volume, name, patient=False)
        number = names.commit_number(name)
        files = {each.id for each in volume.index.files_of(name)}
        if found is not None:
            files.add(found.id)
        if not files:
            return
        is_newest = number is not None and volume.chain.known(number + 1) is None
        if number is not None and found is not None and is_newest and found.next:
            # The id of the next one must outlive the commit that has it.
            await volume.claims.bind(names.commit_name(number + 1), to=found.next)
        for file_id in sorted(files):
            await self._service.delete(file_id, name)
            volume.index.deleted(file_id)
        self._attempts.pop(name, None)
        if names.has_one_writer(name) or not names.comes_back(name) or found is None:
            return
        if number is None:
            await volume.claims.bind(name, instead_of=found.id)
        elif is_newest:
            await self._free_commit(volume, name, found)

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        volume = await self._volume()
        if not after or self._listed.get(prefix) != after:
            await self._look_at(volume, prefix)
        wanted, more = volume.index.names_after(prefix, after, limit)
        entries = []
        for name in wanted:
            found = await self._whole(volume, name)
            if found is not None:
                entries.append(Entry(name, found.size, found.modified))
        if more:
            self._listed[prefix] = wanted[-1]
        return Page(entries, more)

    async def create(self) -> None:
        async with self._opening:
            if self._known is None:
                self._known = _Volume(self._service, await self._folders.find_or_make())

    async def space_left(self) -> int | None:
        return await self._service.room()

    async def wait_for_change(self, prefix: str) -> None:
        """As `Watch`.  Drive has no call that waits, so it asks now and then.

        For commits: whether the next one is there, by its id, which no feed delays.
        """
        volume = await self._volume()
        await volume.catalogue.load()
        if self._stirred is None:
            self._stirred = trio.current_time()
        while True:
            least, most = WATCH
            since = trio.current_time() - self._stirred
            await trio.sleep(min(most, max(least, since / _WATCH_SHARE)))
            if prefix.startswith(names.COMMITS):
                number = volume.index.last_commit_before(None)
                changed = await volume.chain.find(number + 1) is not None
            else:
                changed = await volume.catalogue.changed()
                if changed:
                    await volume.catalogue.refresh()
            if changed:
                self._stirred = trio.current_time()
                return

    async def aclose(self) -> None:
        await self._service.tokens.aclose()
        await self._service.session.aclose()

    def health(self) -> Health:
        session = self._service.session
        details = session.details()
        if self._known is not None:
            details["folder"] = self._known.folder.id
            details["files_known"] = len(self._known.index)
            details["names_with_several_files"] = self._known.index.doubles
        if self._service.limit:
            details["limit"] = self._service.limit
        advice = self._service.tokens.advice()
        return Health(last_error=advice or session.last_error, details=details)

    # The volume

    async def _volume(self) -> _Volume:
        if self._known is None:
            async with self._opening:
                if self._known is None:
                    self._known = _Volume(self._service, await self._folders.find())
        return self._known

    async def _confirm(self, volume: _Volume) -> None:
        now = trio.current_time()
        if now - self._confirmed > _CONFIRM_EVERY:
            await self._folders.check(volume.folder)
            self._confirmed = now

    # Looking for objects

    async def _find(
        self, volume: _Volume, name: str, *, patient: bool = True
    ) -> IndexedObject | None:
        """Return the file that is the object.

        patient: what neither the feed nor a search shows is looked for again a little later.
        """
        number = names.commit_number(name)
        if number is not None:
            return await volume.chain.find(number)
        await volume.catalogue.load()
        if names.has_one_writer(name):
            found = volume.index.settled(name)
            if found is None:
                await self._look_for(volume, name)
                for pause in LAG if patient else ():
                    if volume.index.settled(name) is not None:
                        break
                    await trio.sleep(pause)
                    await self._look_for(volume, name)
                found = volume.index.settled(name)
            return found
        return await self._find_claimed(volume, name)

    async def _look_for(self, volume: _Volume, name: str) -> None:
        await volume.catalogue.refresh()
        if volume.index.settled(name) is None:
            await volume.catalogue.find(name)

    async def _find_claimed(self, volume: _Volume, name: str) -> IndexedObject | None:
        bound = volume.claims.known(name)
        found = volume.settled(name)
        if found is not None and (bound is None or bound.id == found.id):
            return found
        await volume.claims.look()
        bound = volume.claims.known(name)
        if bound is None:  # bound by nobody: only a stray file can be there
            await volume.catalogue.refresh()
            return volume.settled(name)
        return await volume.catalogue.ask(bound.id)

    async def _look_at(self, volume: _Volume, prefix: str) -> None:
        """Bring the index up to date for a listing of *prefix*."""
        if _meets(prefix, names.COMMITS):
            await volume.chain.extend()
            found, _ = volume.index.names_after(names.COMMITS, "", len(volume.index) + 1)
            numbers = [n for n in map(names.commit_number, found) if n is not None]
            await volume.chain.fill(numbers)
        else:
            await volume.catalogue.refresh()
        if not prefix.startswith(_WITHOUT_CLAIMS):
            await volume.claims.look()
            for name, bound in volume.claims.names(prefix):
                wanted = names.comes_back(name) and names.commit_number(name) is None
                # What was deleted and is made again is rare, and matters for keys alone.
                if wanted and (not bound.free or name.startswith("keys/")):
                    there = [each.id for each in volume.index.files_of(name)]
                    if bound.id not in there:
                        await volume.catalogue.ask(bound.id)

    async def _whole(self, volume: _Volume, name: str) -> IndexedObject | None:
        """The object *name* with its size: what a commit alone tells of a pack is its id."""
        for _ in range(_ROUNDS):
            found = volume.settled(name)
            if found is None or found.whole:
                return found
            await volume.catalogue.ask(found.id)
        return None

    # Creating them

    async def _put_alone(self, volume: _Volume, name: str, data: Buffer) -> None:
        """Create what nobody else creates."""
        await volume.catalogue.load()
        old = volume.index.settled(name)
        if old is not None and await volume.catalogue.ask(old.id) is not None:
            raise Exists(f"{name}: the name is taken")
        if not await self._create_alone(volume, name, data):
            raise Exists(f"{name}: the name is taken")

    async def _create_alone(self, volume: _Volume, name: str, data: Buffer) -> bool:
        """Create a file with any id; another attempt takes the first one's, and returns False if
        that one had worked.
        """
        file_id = self._attempts.get(name)
        if file_id is None:
            file_id = await self._service.fresh_id()
            while len(self._attempts) >= _REMEMBERED:
                self._attempts.pop(next(iter(self._attempts)))
            file_id = self._attempts.setdefault(name, file_id)
        made: DriveFile | None = None
        try:
            made = await self._uploads.create(volume.file(file_id, name, {}), data)
        except Exists:
            pass
        if made is None:
            await volume.catalogue.ask(file_id)
            return False
        self._attempts.pop(name, None)
        volume.index.add(made)
        if told := hint(name, file_id):
            self._untold.append(told)
        return True

    async def _create_commit(self, volume: _Volume, number: int, name: str, data: Buffer) -> None:
        if number > 1:
            await volume.chain.find(number - 1)
        else:
            await volume.catalogue.load()
        file_id = volume.chain.agreed(number)
        if not file_id:
            # The one before it is gone, and with it the id: a claim settles another.  Whoever
            # commits behind a gap looks for what is missing (journal/writer.py).
            file_id = await volume.claims.bind(name)
        told = [self._untold[n] for n in range(min(HINTED, len(self._untold)))]
        properties = {NEXT: await self._service.fresh_id(), **hint_properties(told)}
        for _ in range(_ROUNDS):
            if await self._create_contested(volume, file_id, name, properties, data):
                break
            file_id = await self._other_id(volume, name, file_id)
        else:
            raise Unavailable(f"{name}: other machines create and delete it all the time")
        self._stirred = trio.current_time()
        for each in told:
            if self._untold and self._untold[0] == each:
                self._untold.popleft()

    async def _create_claimed(self, volume: _Volume, name: str, data: Buffer) -> None:
        await volume.catalogue.load()
        file_id = await volume.claims.bind(name)
        for _ in range(_ROUNDS):
            if await self._create_contested(volume, file_id, name, {}, data):
                return
            file_id = await self._other_id(volume, name, file_id)
        raise Unavailable(f"{name}: other machines create and delete it all the time")

    async def _other_id(self, volume: _Volume, name: str, taken: str) -> str:
        """Return the id that *name* has now that the file *taken* was deleted.

        Raises Exists if the file is there, or nobody has said that it was deleted: a file that was
        made a moment ago is now and then not found.
        """
        if await volume.catalogue.ask(taken) is None:
            await volume.claims.look()
            bound = volume.claims.known(name)
            if bound is not None and bound.id != taken:
                return bound.id
        raise Exists(f"{name}: the name is taken")

    async def _create_contested(
        self, volume: _Volume, file_id: str, name: str, properties: dict[str, str], data: Buffer
    ) -> bool:
        """Create a file with an id that others may want, and say whether it is ours.

        The look costs one request, and is for a service that lets two creates of one id succeed:
        all but one then see another's bytes, and have lost.
        """
        try:
            made = await self._uploads.create(volume.file(file_id, name, properties), data)
        except Exists:
            return False
        wanted = hashlib.md5(data, usedforsecurity=False).hexdigest()
        there = await self._service.metadata(file_id)
        if there is None:
            raise Unavailable(f"store {name}: stored, and not there", maybe_done=True)
        volume.index.add(there)
        return not (_is_other(made, wanted) or _is_other(there, wanted))

    async def _free_commit(self, volume: _Volume, name: str, found: IndexedObject) -> None:
        """After the newest commit was deleted: its name gets another id, should it come back."""
        try:
            bound = volume.claims.known(name)
            if bound is None:
                await volume.claims.bind(name)
            else:
                await volume.claims.bind(name, instead_of=found.id)
        except StoreError:
            pass  # the name stays taken, which stops whoever wants it and loses nothing


class _Volume:
    """What is known of the volume in a folder, once the folder is known."""

    def __init__(self, service: DriveService, folder: VolumeFolder) -> None:
        self.folder = folder
        self.catalogue = Catalogue(service, folder.id)
        self.index = self.catalogue.index
        self.claims = Claims(self.catalogue, folder.first_claim, folder.id)
        self.chain = CommitChain(self.catalogue, self.claims, folder.first_commit)

    def file(self, file_id: str, name: str, properties: dict[str, str]) -> NewFile:
        """A new file of the volume."""
        return NewFile(file_id, name, (self.folder.id,), {VOLUME: self.folder.id, **properties})

    def settled(self, name: str) -> IndexedObject | None:
        """The file that is the object, as far as the index and the claims are known."""
        number = names.commit_number(name)
        if number is not None:
            return self.chain.known(number)
        if names.has_one_writer(name):
            return self.index.settled(name)
        bound = self.claims.known(name)
        return self.index.settled(name, lambda: bound.id if bound is not None else "")


def _meets(prefix: str, family: str) -> bool:
    """Whether names of *family* may begin with *prefix*."""
    return prefix.startswith(family) or family.startswith(prefix)


def _is_other(file: DriveFile, wanted: str) -> bool:
    """Whether the file's content is not ours; md5: of bytes that nobody chose to collide."""
    return bool(file.md5_checksum) and file.md5_checksum != wanted
