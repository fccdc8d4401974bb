"""Removals, each with those that belong to it."""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from megafs.history.backwards import Backwards, Step
from megafs.tree.changeset import is_given

#: What was removed below a directory without a longer pause went together with it.
TOGETHER_NS: Final = 60 * 10**9


class Removal(Struct):
    """A file or directory that lost its last name."""

    sequence: int
    time_ns: int
    host: str
    path: bytes
    is_dir: bool
    size: int
    mtime_ns: int
    files: int = 0
    below: bytes | None = None


async def removals(
    backwards: Backwards,
    path: bytes,
    take: Callable[[Removal], bool],
    changed: Callable[[int, bytes], None],
    watching: Callable[[], bool],
) -> None:
    """Give *take* what was removed at *path* or below, newest first, until it returns False.

    changed: called before that, while *watching*, with (sequence, path) of each file that a commit
        made or wrote to.
    """
    rewind = backwards.rewind
    prefix = b"" if path == b"/" else path

    def look(step: Step) -> list[Removal]:
        if watching():
            for ino, touched in step.inodes.items():
                new = touched.new
                if new is not None and (touched.old is None or is_given(new.version)):
                    changed(step.sequence, rewind.path(ino) or b"")
        gone = [
            (ino, touched.gone)
            for ino, touched in step.inodes.items()
            if touched.gone and not rewind.names_of(ino)
        ]
        backwards.back(step)
        found = []
        for ino, names in gone:
            where = rewind.join(*names[0])
            if where == prefix or where.startswith(prefix + b"/"):
                mode, size, mtime = rewind.known(ino)
                is_dir = stat.S_ISDIR(mode)
                found.append(
                    Removal(
                        step.sequence,
                        step.commit.time_ns,
                        step.commit.host,
                        where,
                        is_dir,
                        0 if is_dir else size,
                        mtime,
                    )
                )
        # Of one commit, directories first: what lay in them belongs to them.
        found.sort(key=lambda removal: removal.path)
        return found

    while (step := await backwards.next()) is not None:
        for removal in await backwards.work(step, look):
            if not take(removal):
                return


class Gathering:
    """Removed directories, each with the removals that belong to it; the journal is read backwards.

    A removal below a directory belongs to the directory's own if no pause between two of them is
    longer than `TOGETHER_NS`, and nothing was made or written there meanwhile: then it was one
    `rm -r`.
    """

    def __init__(self) -> None:
        self._open: dict[bytes, tuple[Removal, list[int]]] = {}

    def watching(self) -> bool:
        """Whether there is a directory to which something might belong."""
        return bool(self._open)

    def changed(self, sequence: int, path: bytes) -> None:
        """Something was made or written to at *path*."""
        for above in _above(path):
            found = self._open.get(above)
            if found is not None and found[0].sequence != sequence:
                del self._open[above]

    def home(self, removal: Removal) -> Removal | None:
        """The removed directory that *removal* went with, the topmost one, or None."""
        for above in _above(removal.path):
            found = self._open.get(above)
            if found is None:
                continue
            top, latest = found
            if latest[0] - removal.time_ns > TOGETHER_NS:
                del self._open[above]
                continue
            latest[0] = removal.time_ns
            return top
        return None

    def add(self, removal: Removal) -> None:
        """A directory went that belongs to no other."""
        self._open[removal.path] = (removal, [removal.time_ns])


def _above(path: bytes) -> list[bytes]:
    """The directories above a path but the root, topmost first."""
    parts = path.split(b"/")
    return [b"/".join(parts[:count]) for count in range(2, len(parts))]


async def removal_of(backwards: Backwards, path: bytes) -> int | None:
    """The commit that removed *path* or, of a directory, the first thing that went with it.

    Before that commit *path* was whole.  None if the journal knows of no removal.
    """
    gathering = Gathering()
    first: Removal | None = None

    def take(removal: Removal) -> bool:
        nonlocal first
        if first is None:
            if removal.path == path:
                first = removal
                gathering.add(removal)
            return first is None or removal.is_dir
        if removal.path == path:
            return False  # an earlier life of the same path
        if gathering.home(removal) is None:
            return False
        first = removal
        return True

    await removals(backwards, path, take, gathering.changed, gathering.watching)
    return None if first is None else first.sequence
