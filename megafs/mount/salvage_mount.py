"""`megafs salvage --mount`: what is left of a damaged volume, read-only, in the foreground."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable

import trio

from megafs.concurrency import run_interruptible
from megafs.config import Settings
from megafs.jobs.salvage import SalvageReport
from megafs.jobs.salvage_view import salvaged
from megafs.mount import mountpoint, source
from megafs.mount.fuse import KernelMount, Presentation
from megafs.mount.mountpoint import Directory
from megafs.stores.stack import Traffic, open_store
from megafs.supervisor import keep_running
from megafs.volume.header import Credential

#: Seconds within which the mount must be detached at the end.
DETACHED_WITHIN = 20.0


def run(
    url: str,
    at: str,
    credential: Credential,
    settings: Settings,
    commit: int | None,
    say: Callable[[str], None],
) -> None:
    """Mount at *at* until a signal, or until somebody unmounts it.

    commit: the tree as of that commit instead of the newest one.  say: called with what is damaged.
    """
    path = mountpoint.canonical(at)
    mountpoint.check_fuse(allow_other=False)
    directory = mountpoint.check(path, nonempty=False)
    run_interruptible(_main, url, path, directory, credential, settings, commit, say)


async def _main(
    url: str,
    path: str,
    directory: Directory,
    credential: Credential,
    settings: Settings,
    commit: int | None,
    say: Callable[[str], None],
) -> None:
    store = open_store(url, settings.store_options, Traffic(patience=settings.deadline))
    report = SalvageReport()
    try:
        async with salvaged(store, url, credential, settings, report, at=commit) as fs:
            for text in report.problems:
                say(text)
            shown = source.of_url(url)
            options = ("ro", "subtype=megafs", source.as_option(shown))
            kernel = KernelMount(fs, path, Presentation.of(settings), options)
            with mountpoint.pinned(path, directory, shown) as name:
                kernel.open(name)
            ours = mountpoint.find(path)
            try:
                with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(
                            keep_running, "waiting for a signal", _until_signal, signals, kernel
                        )
                        say(f"what is left of {url} is mounted at {path}, read-only")
                        await kernel.serve()
                        nursery.cancel_scope.cancel()
            finally:
                there = mountpoint.find(path)
                if there is not None and ours is not None and there.number == ours.number:
                    mountpoint.detach_in_time(path, DETACHED_WITHIN)
                kernel.close(unmount=False)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await store.aclose()


async def _until_signal(signals: AsyncIterator[int], kernel: KernelMount) -> None:
    async for _ in signals:
        kernel.stop()
        return
