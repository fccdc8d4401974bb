"""What was listed, kept in the cache directory from one mount to the next.

It spares the whole listing of a folder: 2,000 objects a request.  It holds what the service knows
anyway: names drawn at random, sizes, times.  It may be deleted at any time; what cannot be read, or
belongs to another account, is as good as none.  Dropbox compares: the next look starts from its
cursor.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
from blake3 import blake3
from msgspec import Struct

from megafs.durable import replace_file
from megafs.errors import MegafsError
from megafs.private_files import check_directory, make_directories, read_private
from megafs.stores.dropbox.folder_index import SavedFolder

log = logging.getLogger(__name__)

#: Bytes; 60 for an object.
_LIMIT = 256 << 20
_VERSION = 1
_INSTEAD = "choose another directory with MEGAFS_CACHE_DIR"


class _Saved(Struct, frozen=True):
    version: int
    store: str
    folders: dict[str, SavedFolder]


class SavedListings:
    """directory: where; made if need be.  store: which store, account and folder, as one text."""

    def __init__(self, directory: Path, store: str) -> None:
        self._store = store
        self._path = directory / f"{blake3(store.encode()).hexdigest()[:32]}.listing"

    def load(self) -> dict[str, SavedFolder]:
        """Return what was kept of each folder.  Blocks; never fails."""
        try:
            check_directory(self._path.parent, instead=_INSTEAD)
            saved = msgspec.msgpack.decode(read_private(self._path, _LIMIT), type=_Saved)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError, MegafsError, RecursionError) as exc:
            log.debug("%s: not used: %s", self._path, exc)
            return {}
        if saved.version != _VERSION or saved.store != self._store:
            return {}
        return saved.folders

    def keep(self, folders: dict[str, SavedFolder]) -> None:
        """Write it, over what was there.  Blocks; a failure costs the next mount some requests."""
        try:
            make_directories(self._path.parent)
            check_directory(self._path.parent, instead=_INSTEAD)
            saved = _Saved(_VERSION, self._store, folders)
            replace_file(self._path, msgspec.msgpack.encode(saved))
        except (OSError, MegafsError) as exc:
            log.debug("%s: not kept: %s", self._path, exc)
