"""One mount from beginning to end: its parts started in order, stopped in reverse.

    volume    keys, replica, journal, uploads          volume/open.py
    kernel    the FUSE mount                           attachment.py, fuse.py
    socket    status, umount, flush, cache, metrics    control_server.py, control_handlers.py

A mount ends in one of these ways, and each leads to `Shutdown.finish` (shutdown.py), which brings
the rest to the store:

    megafs umount, a signal   drain, then unmount; busy refuses (umount) or is detached (signal)
    umount(8), fusermount3    the kernel says that the mount has gone
    megafs umount --lazy      detached; the kernel says so when the last user has left
    megafs umount --force, a second signal
                              detached and severed; what is staged stays for the next mount
"""

from __future__ import annotations

import logging

import msgspec
import trio

from megafs import garbage, memory
from megafs.concurrency import first_of
from megafs.errors import MegafsError, Stopped
from megafs.jobs import pins, share
from megafs.mount import mountpoint
from megafs.mount.attachment import Attachment
from megafs.mount.control_handlers import ControlHandlers
from megafs.mount.control_server import listening
from megafs.mount.daemon import MountFacts, Notifier, ReadyListener, Signals
from megafs.mount.mountpoint import Directory
from megafs.mount.options import MountOptions
from megafs.mount.shutdown import Shutdown, unsent
from megafs.secret_struct import SecretStruct
from megafs.supervisor import keep_running
from megafs.volume.header import Credential
from megafs.volume.kdf_process import Derivation
from megafs.volume.open import open_volume
from megafs.volume.volume import Volume

log = logging.getLogger(__name__)


class MountRequest(SecretStruct, frozen=True):
    """The volume to mount, where, and how.

    mountpoint: as `mountpoint.canonical` returns it.  directory: which `prepare` has seen there.
    early: the key derivation that `kdf_process.begin` has begun.
    """

    url: str
    mountpoint: str
    directory: Directory
    options: MountOptions
    credential: Credential
    early: Derivation | None = None

    _shown = ("url", "mountpoint", "options")


def run(request: MountRequest, on_ready: ReadyListener) -> None:
    """Mount, serve, drain.  Blocks the signals of `Signals` for the whole process."""
    trio.run(_main, request, on_ready, Signals())


async def _main(request: MountRequest, on_ready: ReadyListener, signals: Signals) -> None:
    token = trio.lowlevel.current_trio_token()
    everything = trio.CancelScope()
    stopping = trio.Event()
    mounted = False

    def stop() -> None:
        # While it is still being opened there is nothing to bring anywhere.
        stopping.set() if mounted else everything.cancel()

    def abort() -> None:
        token.run_sync_soon(everything.cancel)
        _sever(request.mountpoint)

    signals.watch(lambda: token.run_sync_soon(stop), abort)
    left = ""
    with everything:
        async with open_volume(
            request.url,
            request.credential,
            request.options.settings,
            say=log.info,
            early=request.early,
        ) as volume:
            mounted = True
            try:
                await _serve(request, volume, stopping, on_ready)
            finally:
                left = unsent(volume)
    if everything.cancelled_caught:
        raise Stopped(f"stopped by a signal{left}")


def _sever(at: str) -> None:
    """Let nobody wait for this mount any more; from any thread."""
    there = mountpoint.find(at)
    if there is None or there.fstype != mountpoint.FSTYPE:
        return
    mountpoint.abort(there)
    try:
        mountpoint.detach(at)
    except MegafsError as exc:
        log.warning("%s", exc)


async def _serve(
    request: MountRequest, volume: Volume, stopping: trio.Event, on_ready: ReadyListener
) -> None:
    """Mount *volume*, serve until it ends, and bring everything to the store.

    stopping: set by the first signal.
    """
    url, at = request.url, request.mountpoint
    attachment = Attachment.of(volume, at, request.directory, request.options)
    notify = Notifier()
    shutdown = Shutdown(volume, attachment)
    attachment.open()
    try:
        async with (
            listening(at, url, ControlHandlers(volume, attachment, shutdown)),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(attachment.serve)
            await attachment.wait_usable(request.options.kernel_readahead)
            shutdown.mounted()
            notify(READY=1, STATUS=f"{url} at {at}")
            on_ready.ready(msgspec.convert(volume.status(), MountFacts))
            log.info("mounted %s at %s", url, at)
            garbage.collect_seldom()
            for what, work, args in (
                ("reporting", shutdown.report_draining, (notify, stopping.is_set)),
                ("watching other namespaces", shutdown.watch_elsewhere, ()),
                ("keeping what is pinned", pins.keep, (volume,)),
                ("looking after links", share.keep_links, (volume,)),
                ("giving memory back", memory.give_back, (lambda: volume.memory_in_use,)),
            ):
                nursery.start_soon(keep_running, what, work, *args)
            await first_of(stopping.wait, attachment.gone.wait)
            if not attachment.gone.is_set():
                await shutdown.leave(insist=True)
                await attachment.gone.wait()
            await shutdown.finish()
            nursery.cancel_scope.cancel()
    finally:
        attachment.close()
    if shutdown.failure is not None:
        raise shutdown.failure
