"""Long work on a whole volume: fsck, scrub, gc and what else takes minutes.

A job is `async def job(volume, args, on_progress) -> result`, with the types of its `JobKind`
(messages.py).  The same function runs inside a mount's process, asked over its control socket, and
in a command of its own that has opened the volume.

Jobs live in modules of their own, which are imported when a job is first asked for.  Whatever is
asked of the store within `run` gives way to what programs wait for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Generic, TypeVar

from msgspec import Struct

from megafs.errors import BadUsage
from megafs.jobs import link_messages, messages
from megafs.jobs.messages import JobKind, as_message
from megafs.progress import OnProgress
from megafs.stores.limit import background
from megafs.volume.volume import Volume

A = TypeVar("A", bound=Struct)
R = TypeVar("R", bound=Struct)

Function = Callable[[Volume, A, OnProgress], Awaitable[R]]


class Job(Generic[A, R]):
    """A job, and how to come by the function that does it."""

    def __init__(self, kind: JobKind[A, R], load: Callable[[], Function[A, R]]) -> None:
        self.kind = kind
        self._load = load

    async def run(
        self, volume: Volume, args: dict[str, Any], on_progress: OnProgress
    ) -> dict[str, Any]:
        """Do it; *args* and the result are JSON objects, as they travel."""
        asked = self.kind.args_of(args)
        return as_message(await self._load()(volume, asked, on_progress))


def _fsck() -> Function[messages.FsckArgs, messages.FsckResult]:
    from megafs.jobs.fsck import fsck

    return fsck


def _scrub() -> Function[messages.ScrubArgs, messages.ScrubResult]:
    from megafs.jobs.scrub import scrub

    return scrub


def _gc() -> Function[messages.GcArgs, messages.GcResult]:
    from megafs.jobs.gc import collect_garbage

    return collect_garbage


def _reencrypt() -> Function[messages.ReencryptArgs, messages.ReencryptResult]:
    from megafs.jobs.reencrypt import reencrypt

    return reencrypt


def _log() -> Function[messages.LogArgs, messages.LogOfCommits | messages.LogOfPath]:
    from megafs.jobs.log import log

    return log


def _undelete() -> Function[messages.UndeleteArgs, messages.RemovedFiles | messages.RestoreResult]:
    from megafs.jobs.undelete import undelete

    return undelete


def _restore() -> Function[messages.RestoreArgs, messages.RestoreResult]:
    from megafs.jobs.restore import restore

    return restore


def _pin() -> Function[messages.PinArgs, messages.PinResult]:
    from megafs.jobs.pins import pin

    return pin


def _unpin() -> Function[messages.PinArgs, messages.UnpinResult]:
    from megafs.jobs.pins import unpin

    return unpin


def _pin_list() -> Function[messages.Nothing, messages.PinList]:
    from megafs.jobs.pins import list_pins

    return list_pins


def _snapshot_create() -> Function[messages.SnapshotArgs, messages.SnapshotCreated]:
    from megafs.jobs.snapshots import create

    return create


def _snapshot_list() -> Function[messages.Nothing, messages.SnapshotList]:
    from megafs.jobs.snapshots import list_snapshots

    return list_snapshots


def _snapshot_delete() -> Function[messages.SnapshotArgs, messages.SnapshotDeleted]:
    from megafs.jobs.snapshots import delete

    return delete


def _share() -> Function[link_messages.ShareArgs, link_messages.SharedLink]:
    from megafs.jobs.share import share

    return share


def _share_list() -> Function[messages.Nothing, link_messages.LinkList]:
    from megafs.jobs.share import list_links

    return list_links


def _share_show() -> Function[link_messages.LinkArgs, link_messages.LinkList]:
    from megafs.jobs.share import show

    return show


def _share_renew() -> Function[link_messages.RenewArgs, link_messages.LinkList]:
    from megafs.jobs.share import renew

    return renew


def _share_setup() -> Function[link_messages.SetupArgs, link_messages.SetupResult]:
    from megafs.jobs.share_setup import set_up

    return set_up


def _share_revoke() -> Function[link_messages.LinkArgs, link_messages.Revoked]:
    from megafs.jobs.share import revoke

    return revoke


_ALL: Final[tuple[Job[Any, Any], ...]] = (
    Job(messages.FSCK, _fsck),
    Job(messages.SCRUB, _scrub),
    Job(messages.GC, _gc),
    Job(messages.REENCRYPT, _reencrypt),
    Job(messages.LOG, _log),
    Job(messages.UNDELETE, _undelete),
    Job(messages.RESTORE, _restore),
    Job(messages.PIN, _pin),
    Job(messages.UNPIN, _unpin),
    Job(messages.PIN_LIST, _pin_list),
    Job(messages.SNAPSHOT_CREATE, _snapshot_create),
    Job(messages.SNAPSHOT_LIST, _snapshot_list),
    Job(messages.SNAPSHOT_DELETE, _snapshot_delete),
    Job(link_messages.SHARE, _share),
    Job(link_messages.SHARE_LIST, _share_list),
    Job(link_messages.SHARE_SHOW, _share_show),
    Job(link_messages.SHARE_RENEW, _share_renew),
    Job(link_messages.SHARE_REVOKE, _share_revoke),
    Job(link_messages.SHARE_SETUP, _share_setup),
)

#: Every job by name.
JOBS: Final[Mapping[str, Job[Any, Any]]] = {job.kind.name: job for job in _ALL}


async def run(
    volume: Volume, name: str, args: dict[str, Any], on_progress: OnProgress
) -> dict[str, Any]:
    """Run the job called *name*; BadUsage if there is none, or if it cannot be asked that."""
    job = JOBS.get(name)
    if job is None:
        raise BadUsage(f"there is no job {name!r}; there are {', '.join(sorted(JOBS))}")
    with background():
        return await job.run(volume, args, on_progress)
