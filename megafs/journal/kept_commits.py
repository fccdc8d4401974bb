"""Commits that another mount may write over, kept in the state directory as they are in the store.

Only where a store cannot create an object only if it is absent.  There a mount that was paused for
longer than its lease may have one put under way, of the number that the next holder of the lease
commits first.  So a holder keeps what it commits first, durably, before anybody is told of it, and
puts it back if it is written over (lease.py).  `megafs fsck --repair` also keeps the commits here
that it takes out of the journal, until what they changed is in the log of operations
(volume/fork.py).

    kept/<number>-<hash>         16 digits, and 32 of the object's hash
    kept/<number>-<hash>.lost    taken out of the journal

What they hold is sealed, as the store has it.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Final, NamedTuple

from megafs.crypto.volume_keys import digest
from megafs.durable import replace_file, sync_directory
from megafs.errors import Full
from megafs.journal.commit import MAX_OBJECT
from megafs.private_files import read_private

log = logging.getLogger(__name__)

#: So many are kept: one for each time that this machine took the lease.
_MOST: Final = 4
_NAME: Final = re.compile(r"(\d{16})-[0-9a-f]{32}(\.lost)?")


class KeptCommit(NamedTuple):
    """The object of a commit.  is_lost: it was taken out of the journal."""

    sequence: int
    data: bytes
    is_lost: bool


class KeptCommits:
    """The commits kept below one state directory.  All methods block; `keep` for two syncs."""

    def __init__(self, state: Path) -> None:
        self._directory = state / "kept"

    def keep(self, sequence: int, data: bytes, *, lost: bool = False) -> None:
        """Keep the object of a commit, durably; Full if that is not possible."""
        path = self._path(sequence, data, lost)
        try:
            if not self._directory.is_dir():
                self._directory.mkdir(mode=0o700)
                sync_directory(self._directory.parent)
            replace_file(path, data)
        except OSError as exc:
            raise Full(f"{path} cannot be written: {exc.strerror}") from exc
        for old in self._paths(lost=False)[:-_MOST]:
            old.unlink(missing_ok=True)

    def read(self, *, lost: bool = False) -> list[KeptCommit]:
        """The commits that are kept, by number; those that do not have their hash are left out."""
        found = []
        for path in self._paths(lost=lost):
            try:
                data = read_private(path, MAX_OBJECT + 1)
            except OSError as exc:
                log.warning("%s cannot be read: %s", path, exc.strerror)
                continue
            sequence = int(path.name[:16])
            if self._path(sequence, data, lost) == path:
                found.append(KeptCommit(sequence, data, lost))
            else:
                log.warning("%s is damaged", path)
        return found

    def forget_settled(self, lost: list[KeptCommit]) -> None:
        """What these commits changed is in the log of operations: they need not be kept."""
        for sequence, data, _ in lost:
            for is_lost in (True, False):
                self._path(sequence, data, is_lost).unlink(missing_ok=True)

    def _path(self, sequence: int, data: bytes, lost: bool) -> Path:
        name = f"{sequence:016d}-{digest(data).hex()[:32]}" + (".lost" if lost else "")
        return self._directory / name

    def _paths(self, *, lost: bool) -> list[Path]:
        if not self._directory.is_dir():
            return []
        matches = ((path, _NAME.fullmatch(path.name)) for path in self._directory.iterdir())
        return sorted(path for path, match in matches if match and bool(match[2]) == lost)
