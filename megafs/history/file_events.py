"""What happened to files: the events of a path, through renames, newest first."""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from megafs.history.backwards import Backwards, Step, Touched
from megafs.tree import link_records, paths
from megafs.tree.changeset import is_given
from megafs.tree.inode import ROOT
from megafs.tree.rewind import Rewind

# Within one commit nobody knows what came first; this order reads well, newest first.
_ORDER: Final = (
    "xattr",
    "attributes",
    "contents",
    "renamed",
    "unlinked",
    "linked",
    "removed",
    "created",
)


class Event(Struct):
    """One thing that a commit did to one inode.

    what: "created", "contents", "renamed", "linked", "unlinked", "removed", "attributes", "xattr".
    path: afterwards; of what was removed, before.  was: the path before, of what was renamed.
    """

    sequence: int
    time_ns: int
    host: str
    ino: int
    what: str
    path: bytes
    was: bytes | None = None
    size: int | None = None
    old_size: int | None = None
    text: str = ""


class _Draft(Struct):
    """An inode that a commit changed, with what was true right after it."""

    ino: int
    touched: Touched
    path: bytes | None
    come: list[bytes]
    has_name: bool
    mode: int
    size: int


def _drafts(step: Step, wanted: set[int] | None, rewind: Rewind) -> list[_Draft]:
    """The inodes that a commit changed, of those that are wanted; *rewind* is after it."""
    drafts = []
    for ino, touched in step.inodes.items():
        if wanted is None or ino in wanted:
            mode, size, _ = rewind.known(ino)
            come = [rewind.join(*name) for name in touched.come]
            named = ino == ROOT or bool(rewind.names_of(ino))
            drafts.append(_Draft(ino, touched, rewind.path(ino), come, named, mode, size))
    return drafts


def _finished(step: Step, draft: _Draft, rewind: Rewind) -> list[Event]:
    """The events of one inode; *rewind* is before the commit."""
    touched, commit = draft.touched, step.commit
    old, new = touched.old, touched.new
    before = rewind.path(draft.ino)
    here = (draft.path if draft.path is not None else before) or b"/"
    mode, old_size, _ = rewind.known(draft.ino)
    is_dir = stat.S_ISDIR(draft.mode or mode)
    made: list[Event] = []

    def add(what: str, path: bytes, **more: Any) -> None:
        made.append(
            Event(step.sequence, commit.time_ns, commit.host, draft.ino, what, path, **more)
        )

    if touched.is_changed and old is None and new is not None:
        add("created", here, size=None if is_dir else draft.size)
        return made
    if touched.gone or touched.come:
        gone = [rewind.join(*name) for name in touched.gone]
        come = list(draft.come)
        if not draft.has_name:
            add("removed", gone[0] if gone else here, size=None if is_dir else old_size)
            return made
        while gone and come:
            add("renamed", come.pop(), was=gone.pop())
        for path in gone:
            add("unlinked", path, text=f"still there as {paths.show(here)}")
        for path in come:
            add("linked", path)
    if touched.is_changed and old is not None and new is not None:
        if is_given(new.version) or is_given(new.size):
            add("contents", here, size=draft.size, old_size=old_size)
        changes = []
        if is_given(new.mode):
            changes.append(f"mode {stat.S_IMODE(old.mode):o} to {stat.S_IMODE(new.mode):o}")
        if is_given(new.uid):
            changes.append(f"owner {old.uid} to {new.uid}")
        if is_given(new.gid):
            changes.append(f"group {old.gid} to {new.gid}")
        if (
            not changes
            and not is_dir
            and is_given(new.mtime)
            and not any(event.what == "contents" for event in made)
        ):
            changes.append("time")
        if changes:
            add("attributes", here, text=", ".join(changes))
    for attribute, was, is_there in touched.xattrs:
        if attribute.startswith(link_records.INTERNAL):
            continue
        how = "removed" if not is_there else "changed" if was else "set"
        add("xattr", here, text=f"{paths.show(attribute)} {how}")
    return made


async def path_events(
    backwards: Backwards, path: bytes, recursive: bool, take: Callable[[Event], bool]
) -> None:
    """Give *take* the events of one path, newest first, through renames, until it returns False.

    recursive: also those of everything below it.
    """
    rewind = backwards.rewind
    leaf = path.rpartition(b"/")[2]
    here = rewind.walk(path)
    tracked = set() if here is None else {here}

    def look(step: Step) -> list[Event]:
        # Whoever had the name before a rename over it, or before it was removed, counts, too.
        before = {ino for _, name, ino, _ in step.names if name == leaf and ino is not None}
        drafts = _drafts(step, None if recursive else tracked | before, rewind)
        tops = _tops(rewind, path, tracked)
        backwards.back(step)
        if step.names:
            was = rewind.walk(path)
            if was is not None:
                tracked.add(was)
            tops |= _tops(rewind, path, tracked)
        events: list[Event] = []
        for draft in drafts:
            if draft.ino in tracked:
                events += _finished(step, draft, rewind)
            elif recursive:
                events += [x for x in _finished(step, draft, rewind) if _is_below(x, tops)]
        events.sort(key=lambda event: (_ORDER.index(event.what), event.path))
        return events

    while (step := await backwards.next()) is not None:
        for event in await backwards.work(step, look):
            if not take(event):
                return


def _tops(rewind: Rewind, path: bytes, tracked: set[int]) -> set[bytes]:
    """The paths at this commit of *path* and of the inodes in *tracked*, each ending in a slash."""
    found = {b"/" if path == b"/" else path + b"/"}
    for ino in tracked:
        there = rewind.path(ino)
        if there is not None:
            found.add(there + b"/")
    return found


def _is_below(event: Event, tops: set[bytes]) -> bool:
    starts = tuple(tops)
    return event.path.startswith(starts) or (event.was is not None and event.was.startswith(starts))
