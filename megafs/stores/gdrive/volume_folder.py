"""The folder of a volume: found by its path, made by `megafs format`.

Drive's folders have no unique names either, and a folder has no place where two machines could
agree on its id beforehand.  So the one that makes it looks, after a while, what the search shows,
and takes the oldest; a folder that holds nothing is passed over.  Two that both hold something are
never chosen between: one line says so, and nothing is lost.
"""

from __future__ import annotations

import msgspec
import trio
from msgspec import Struct

from megafs.errors import BadStore, Exists, NoStore, StoreError, Unavailable
from megafs.stores.gdrive.files import FOLDER, FORMAT, VOLUME, DriveFile, NewFile, quoted, seconds
from megafs.stores.gdrive.service import DriveService, is_id

#: Properties of the folder: the ids of the first commit and of the first claim.
FIRST_COMMIT, FIRST_CLAIM = "commit", "claim"
#: Seconds that a new folder waits for another machine's, made at the same time, to show.
SETTLE = 3.0
# Seconds until a search must show what was made, and between two looks.
_SHOWN = 60.0
_LOOK_EVERY = 0.5
_WORDS = "; megafs format makes it"


class VolumeFolder(Struct, frozen=True):
    """A volume's folder: its id, and those that all machines begin with."""

    id: str
    first_commit: str
    first_claim: str


class Folders:
    """Looks for the folder at *path*, "a/b" from the top of the account."""

    def __init__(self, service: DriveService, path: str) -> None:
        self._service = service
        self._parts = [part for part in path.split("/") if part]
        self._path = "/".join(self._parts)
        self._made = ""  # the id of the folder that we make, once it is chosen

    async def find(self) -> VolumeFolder:
        """Return the volume's folder; NoStore if there is none, BadStore if it cannot be told."""
        found = await self._look()
        if not found:
            raise NoStore(f"the account has no volume in {self._path}{_WORDS}")
        return await self._choose(found)

    async def find_or_make(self) -> VolumeFolder:
        """The same, and make one if there is none."""
        parents = await self._parents(make=True)
        found = await self._volumes(parents)
        if not found:
            await self._make(parents[0])
            found = await self._settled()
        return await self._choose(found)

    async def check(self, folder: VolumeFolder) -> None:
        """Raise NoStore unless the folder is there and not in the trash."""
        file = await self._service.metadata(folder.id)
        if file is None:
            raise NoStore(f"the folder {self._path} is gone{_WORDS}")
        if file.trashed:
            raise NoStore(f"the folder {self._path} is in Drive's trash: restore it there")

    async def _look(self) -> list[DriveFile]:
        """The volumes' folders that a search shows at the path."""
        return await self._volumes(await self._parents(make=False))

    async def _parents(self, *, make: bool) -> list[str]:
        """The ids of the folders in which the volume's may lie: several may have one name."""
        parents = ["root"]
        for part in self._parts[:-1]:
            found = [file.id for file in await self._search(part, parents)]
            if not found:
                if not make:
                    return []
                found = [await self._make_plain(part, parents[0])]
            parents = found
        return parents

    async def _volumes(self, parents: list[str]) -> list[DriveFile]:
        if not parents:
            return []
        found = await self._search(self._parts[-1], parents)
        return [file for file in found if file.app_properties.get(VOLUME) == FORMAT]

    async def _search(self, name: str, parents: list[str]) -> list[DriveFile]:
        """Folders of a name, the oldest first."""
        places = " or ".join(f"{quoted(parent)} in parents" for parent in parents[:50])
        found = await self._service.search_all(
            f"name = {quoted(name)} and mimeType = {quoted(FOLDER)} and trashed = false"
            f" and ({places})"
        )
        return sorted(
            (file for file in found if is_id(file.id)),
            key=lambda file: (seconds(file.created_time), file.id),
        )

    async def _choose(self, found: list[DriveFile]) -> VolumeFolder:
        volumes = [_read(file) for file in found]
        if len(volumes) > 1:
            used = [volume for volume in volumes if await self._is_used(volume)]
            if len(used) > 1:
                ids = ", ".join(volume.id for volume in used)
                raise BadStore(
                    f"the account has {len(used)} folders {self._path} that hold a volume; rename"
                    f" all but one in Drive, whose addresses end in {ids}"
                )
            volumes = used or volumes
        return volumes[0]

    async def _is_used(self, volume: VolumeFolder) -> bool:
        for first in (volume.first_claim, volume.first_commit):
            if await self._service.metadata(first) is not None:
                return True
        return False

    async def _make_plain(self, name: str, parent: str) -> str:
        file = NewFile(await self._service.fresh_id(), name, (parent,), {}, FOLDER)
        return (await self._service.create_empty(file, msgspec.json.encode(file))).id

    async def _make(self, parent: str) -> None:
        service = self._service
        self._made = self._made or await service.fresh_id()
        properties = {
            VOLUME: FORMAT,
            FIRST_COMMIT: await service.fresh_id(),
            FIRST_CLAIM: await service.fresh_id(),
        }
        file = NewFile(self._made, self._parts[-1], (parent,), properties, FOLDER)
        try:
            await service.create_empty(file, msgspec.json.encode(file))
        except Exists:
            pass  # our own, whose reply was lost

    async def _settled(self) -> list[DriveFile]:
        """Wait until a search shows our folder, and a little longer for others'."""
        deadline = trio.current_time() + _SHOWN
        while trio.current_time() < deadline:
            # The other machine may have made those above it as well.
            if self._made in [file.id for file in await self._look()]:
                await trio.sleep(SETTLE)
                found = await self._look()
                if found:
                    return found
            await trio.sleep(_LOOK_EVERY)
        raise Unavailable(f"the folder {self._path} was made, and no search shows it yet")


def _read(file: DriveFile) -> VolumeFolder:
    properties = file.app_properties
    made = VolumeFolder(file.id, properties.get(FIRST_COMMIT, ""), properties.get(FIRST_CLAIM, ""))
    if not is_id(made.first_commit) or not is_id(made.first_claim):
        raise StoreError(f"the folder {file.id} does not say how commits are created in it")
    return made
