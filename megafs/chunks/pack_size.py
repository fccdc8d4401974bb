"""How large packs are made: as the volume says, less where the store takes no such bodies."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Final

from megafs.crypto.aead import padme
from megafs.durable import replace_file
from megafs.errors import TooLarge
from megafs.private_files import read_private

log = logging.getLogger(__name__)

#: The most plaintext that is sealed in one go, before the size of the open pack is looked at again.
GROUP: Final = 2 << 20
# What sealing adds to a chunk, and a pack to its chunks: far less than this.
_OVERHEAD: Final = 4 << 10
#: Packs of a mount that does not know yet what the store takes.
CAUTIOUS: Final = 640 << 10


def largest_object(pack_size: int) -> int:
    """The bytes of the largest object that packs of *pack_size* come to."""
    return padme(pack_size + group_of(pack_size) + _OVERHEAD)


def group_of(pack_size: int, chunk_size: int = 0) -> int:
    """The plaintext that goes into such a pack in one go."""
    return max(chunk_size, min(GROUP, pack_size // 4))


def fitting(pack_size: int, chunk_size: int, limit: int) -> int:
    """The largest size of packs, up to *pack_size*, of which no object has more than *limit* bytes.

    Raises TooLarge if not even a chunk fits.
    """
    size = pack_size
    while padme(size + group_of(size, chunk_size) + _OVERHEAD) > limit:
        size -= 32 << 10
        if size < chunk_size:
            raise TooLarge(
                f"objects of at most {limit >> 10} KiB can be stored there: too few for chunks of"
                f" {chunk_size >> 10} KiB. Let the proxy take larger bodies (nginx:"
                " client_max_body_size), or format with a smaller --chunk-size"
            )
    return size


class PackSize:
    """The size at which packs of this mount are cut; kept on this machine once it was lowered.

    wanted: what the volume, or an option of the mount, says.
    path: remembers what was found; None to remember nothing.
    is_bound: no object may be larger than packs of that size come to; else the last chunks of a
        pack may take it up to 2 MiB beyond.
    """

    def __init__(
        self, wanted: int, chunk_size: int, path: Path | None = None, *, is_bound: bool = False
    ) -> None:
        self._chunk_size = chunk_size
        self._path = path
        self._known = self._is_cautious = self._raced = False
        self._is_bound = is_bound
        self._limit: int | None = None  # bytes of an object, if there is a limit
        self._wanted = self._size = wanted
        limit = self._read()
        if limit is not None:
            self._known = True
            self._fit(limit)

    @property
    def wanted(self) -> int:
        """What packs shall be, if the store takes that."""
        return self._wanted

    @property
    def known(self) -> bool:
        """Whether this machine has tried once what the store takes."""
        return self._known

    @property
    def raced(self) -> bool:
        """Whether this machine has seen once that the store keeps mounts apart."""
        return self._raced

    @property
    def proved(self) -> bool:
        """Whether nothing is left to be tried on this machine."""
        return self._known and self._raced

    def note_races(self) -> None:
        """The store keeps mounts apart, or need not: that is not tried again."""
        self._raced = True
        self._keep()

    @property
    def size(self) -> int:
        """Bytes at which a pack is cut."""
        return self._size

    @property
    def others(self) -> int:
        """Bytes that any other object (a commit, a part of a checkpoint) may have."""
        return self._size if self._known else self._wanted

    @property
    def group(self) -> int:
        """Plaintext that is sealed into a pack in one go."""
        largest = padme(self._size + GROUP + _OVERHEAD)
        bound = self._is_bound or self._is_cautious
        if not bound and (self._limit is None or largest <= self._limit):
            return GROUP
        return group_of(self._size, self._chunk_size)

    def be_cautious(self) -> None:
        """Make small packs until `found` is called."""
        self._is_cautious = True
        self._size = max(self._chunk_size, min(self._wanted, CAUTIOUS))

    def found(self, limit: int) -> None:
        """The store takes objects of *limit* bytes, and perhaps none that are larger."""
        self._known = True
        self._is_cautious = False
        self._size = self._wanted
        self._fit(limit)
        self._keep()

    def _keep(self) -> None:
        if self._path is not None:
            found = {"largest_object": self._limit, "raced": self._raced}
            replace_file(self._path, json.dumps(found).encode())

    def refused(self, size: int) -> None:
        """The store refused an object of *size* bytes for its size."""
        limit = size // 2
        if padme(self._size + self.group + _OVERHEAD) > limit:
            log.warning(
                "the store takes no objects of %d KiB: new packs are made smaller", size >> 10
            )
            self.found(limit)

    def _fit(self, limit: int) -> None:
        self._limit = limit
        try:
            self._size = fitting(self._wanted, self._chunk_size, limit)
        except TooLarge as exc:
            log.warning("%s", exc)
            self._size = self._chunk_size

    def _read(self) -> int | None:
        if self._path is None:
            return None
        try:
            found = json.loads(read_private(self._path))
            limit = found["largest_object"]
            # A megafs that did not say so raced first.
            self._raced = found.get("raced", True) is True
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return limit if isinstance(limit, int) and limit > 0 else None
