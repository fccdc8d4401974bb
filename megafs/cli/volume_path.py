"""Which volume a command means, and which path inside it.

A path on this machine names the mount it lies in, whether it exists now or not.  For a volume that
is not mounted the URL is given, and after it the path inside the volume.
"""

from __future__ import annotations

import os

from msgspec import Struct

from megafs.errors import BadUsage
from megafs.mount import mountpoint, source
from megafs.mount.mount_record import is_alive, records, runtime_dir
from megafs.stores.drivers import is_url

_PAST = "/.megafs/snapshots/"


class VolumePath(Struct, frozen=True):
    """where: a mountpoint or URL.  path: inside the volume, from "/".  moment: see `of`."""

    where: str
    path: str
    moment: str | None = None

    def in_same_volume(self, to: str | None) -> str | None:
        """Another path that the user gave, inside the same volume."""
        if to is None:
            return None
        if is_url(self.where):
            return to if to.startswith("/") else f"/{to}"
        there = of(to, None)
        if there.where != self.where:
            raise BadUsage(f"{to} does not lie in the mount at {self.where}")
        return there.path

    def as_typed(self, path: str) -> str:
        """A path inside the volume as the user would write it."""
        if is_url(self.where):
            return path
        return os.path.join(self.where, path.lstrip("/")) if path != "/" else self.where


def of(where: str, path: str | None) -> VolumePath:
    """The volume and the path inside it that WHERE and PATH name together.

    moment: what a path below .megafs/snapshots names, "monday" in .megafs/snapshots/monday/f.
    """
    if is_url(where):
        inner = "/" + (path or "").strip("/")
        return VolumePath(where, inner)
    if path is not None:
        raise BadUsage("a PATH of its own goes with a URL only; say one path inside the mount")
    whole = os.path.abspath(where)
    mounted = _mount_of(whole)
    if mounted is None:
        # A link outside may lead into the mount; the last part stays what it is, link or not.
        parent, name = os.path.split(whole)
        whole = os.path.join(os.path.realpath(parent), name)
        mounted = _mount_of(whole) or _mount_of(os.path.realpath(whole))
        if mounted is not None and not _lies_in(whole, mounted):
            whole = os.path.realpath(whole)
    if mounted is None:
        raise BadUsage(
            f"{where} does not lie in a megafs mount; for a volume that is not mounted say its URL"
            " and the path inside it"
        )
    inner = "/" + whole[len(mounted) :].strip("/")
    if inner.startswith(_PAST):
        moment, _, rest = inner[len(_PAST) :].partition("/")
        if moment:
            return VolumePath(mounted, "/" + rest, moment)
    return VolumePath(mounted, inner)


def mountpoint_of(where: str) -> str:
    """The mountpoint that *where* names: its path, or the URL of the volume that is mounted there.

    Raises BadUsage for the URL of a volume that is not mounted once.
    """
    at = mountpoint.canonical(where)
    if not is_url(where) or mountpoint.find(at) is not None:
        return at
    url = where.rstrip("/")
    ours = [m for m in mountpoint.mounts() if m.fstype == mountpoint.FSTYPE]
    found = {m.mountpoint for m in ours if source.to_url(m.source).rstrip("/") == url}
    # Where -o fsname= says otherwise, the mount's record has the URL.
    found |= {
        r.mountpoint for r in records(runtime_dir()) if r.url.rstrip("/") == url and is_alive(r)
    }
    if len(found) > 1:
        places = " and ".join(sorted(found))
        raise BadUsage(f"{where} is mounted at {places}: say which of them")
    if not found:
        raise BadUsage(f"no volume of the URL {where} is mounted")
    return found.pop()


def _mount_of(path: str) -> str | None:
    """The mountpoint of the megafs mount that *path* lies in."""
    found = [m for m in mountpoint.mounts() if _lies_in(path, m.mountpoint)]
    deepest = max(found, key=lambda m: len(m.mountpoint), default=None)
    if deepest is None or deepest.fstype != mountpoint.FSTYPE:
        return None
    return deepest.mountpoint


def _lies_in(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
