"""A mount of files at MEGA: read-only, nothing to bring anywhere at its end.

As lifecycle.py does for a volume, with the same adapter, attachment, control socket and signals.
"""

from __future__ import annotations

import logging
import os
from typing import Final

import trio
from msgspec.structs import replace

import megafs
from megafs import clock, garbage
from megafs.concurrency import first_of
from megafs.errors import BadUsage, Stopped
from megafs.mega.api import HOST
from megafs.mega.opened import OpenMega, open_mega
from megafs.mega.options import MegaOptions
from megafs.mega.places import MegaPlace
from megafs.mount import mountpoint, source
from megafs.mount.attachment import Attachment
from megafs.mount.control_messages import (
    CacheClearResult,
    DrainProgress,
    JobRequest,
    JsonObject,
    MetricsResult,
    UmountRequest,
    UmountResult,
)
from megafs.mount.control_server import Say, listening
from megafs.mount.daemon import MountFacts, Notifier, ReadyListener, Signals
from megafs.mount.fuse import KernelMount, Presentation
from megafs.mount.mountpoint import Directory
from megafs.mount.options import MountOptions
from megafs.secret_struct import SecretStruct

log = logging.getLogger(__name__)

#: What everybody who reads through a mount should know; also in docs/stores/mega.md.
UNVERIFIED: Final = (
    "reads are not verified: MEGA has a MAC for whole files only (megafs get and import verify)"
)


class MegaMountRequest(SecretStruct, frozen=True):
    """What to mount, where, and how; see lifecycle.MountRequest."""

    place: MegaPlace
    mountpoint: str
    directory: Directory
    options: MountOptions
    mega: MegaOptions

    _shown = ("place", "mountpoint", "options")


def run(request: MegaMountRequest, on_ready: ReadyListener) -> None:
    """Mount and serve.  Blocks the signals of `Signals` for the whole process."""
    trio.run(_main, request, on_ready, Signals())


async def _main(request: MegaMountRequest, on_ready: ReadyListener, signals: Signals) -> None:
    token = trio.lowlevel.current_trio_token()
    everything = trio.CancelScope()
    stopping = trio.Event()
    mounted = False

    def stop() -> None:
        stopping.set() if mounted else everything.cancel()

    def abort() -> None:
        token.run_sync_soon(everything.cancel)
        there = mountpoint.find(request.mountpoint)
        if there is not None and there.fstype == mountpoint.FSTYPE:
            mountpoint.abort(there)

    signals.watch(lambda: token.run_sync_soon(stop), abort)
    with everything:
        settings = request.options.settings
        async with open_mega(request.place, request.mega, settings, log.info) as opened:
            mounted = True
            await _serve(request, opened, stopping, on_ready)
    if everything.cancelled_caught:
        raise Stopped("stopped by a signal")


async def _serve(
    request: MegaMountRequest, opened: OpenMega, stopping: trio.Event, on_ready: ReadyListener
) -> None:
    at, shown, options = request.mountpoint, request.place.shown, request.options
    name = source.of_url(shown) if options.fsname is None else source.plain(options.fsname)
    kernel = KernelMount(
        opened.fs,
        at,
        Presentation.of(replace(options.settings, read_only=True)),
        [*options.kernel, "ro", source.as_option(name), "subtype=megafs"],
        metrics=opened.metrics,
        on_fault=opened.note_error,
    )
    attachment = Attachment(kernel, at, request.directory, name, guarded=options.guard)
    handlers = MegaHandlers(opened, attachment)
    notify = Notifier()
    attachment.open()
    try:
        async with listening(at, shown, handlers), trio.open_nursery() as nursery:
            nursery.start_soon(attachment.serve)
            nursery.start_soon(opened.run)
            await attachment.wait_usable(options.kernel_readahead)
            handlers.state = "mounted"
            notify(READY=1, STATUS=f"{shown} at {at}")
            on_ready.ready(MountFacts(os.getpid(), 0, "", "", 0.0, "", False, 0, 0))
            log.info("mounted %s at %s", shown, at)
            garbage.collect_seldom()
            await first_of(stopping.wait, attachment.gone.wait)
            if not attachment.gone.is_set():
                await _leave(attachment)
            await handlers.all_replied()
            nursery.cancel_scope.cancel()
    finally:
        attachment.close()


async def _leave(attachment: Attachment) -> None:
    """Unmount because of a signal; who uses it gets errors from then on."""
    try:
        await attachment.unmount()
    except Stopped as exc:
        log.warning("%s", exc)
        await attachment.sever()
    held = await attachment.let_go()
    if held:
        log.warning("%s", held)


class MegaHandlers:
    """`control_server.Handlers` of a mount of MEGA's files."""

    def __init__(self, opened: OpenMega, attachment: Attachment) -> None:
        self.state = "mounting"
        self._opened = opened
        self._attachment = attachment
        self._clients = 0
        self._idle = trio.Event()

    async def status(self) -> JsonObject:
        """The status, as `megafs status --json` prints it (docs/commands.md)."""
        await trio.lowlevel.checkpoint()
        opened = self._opened
        nodes, size = opened.tree.table.totals()
        cache = opened.cache.stats()
        waiting = self._attachment.waiting()
        feed, contents = opened.feed, opened.tree.contents
        trouble = feed.trouble or opened.tree.api.trouble
        left = contents.quota_left_in
        facts = [("files", f"{nodes} files and folders"), ("verified", UNVERIFIED)]
        if left:
            facts.append(("quota", f"transfer quota used up for another {left:.0f} s"))
        if feed.state == "expired":
            facts.append(("login", feed.trouble))
        elif trouble:
            facts.append(("MEGA", trouble))
        if opened.tree.api.host != HOST:
            facts.append(("api", opened.tree.api.host))
        return {
            "mountpoint": self._attachment.at,
            "url": opened.place.shown,
            "pid": os.getpid(),
            "state": self.state,
            "version": megafs.__version__,
            "started": opened.started,
            "uptime": round(clock.now() - opened.started, 1),
            "read_only": True,
            "authenticated_ranges": False,
            "facts": facts,
            "feed": feed.state,
            "transfer_quota_left_in": round(left, 1),
            "used_bytes": size,
            "files": nodes,
            "memory_cache_bytes": opened.reader.memory_in_use,
            "cache_bytes": cache["bytes"],
            "cache_limit": opened.settings.cache_size,
            "cache": cache,
            "cache_dir": str(opened.settings.cache_dir),
            "state_dir": str(opened.settings.state_dir),
            "store": {
                "state": "ok" if not trouble else "degraded",
                "requests": opened.tree.api.requests + contents.requests,
                "last_error": trouble or None,
            },
            "errors": [{"time": time, "text": text} for time, text in opened.errors],
            "requests_waiting": {op: round(seconds, 1) for op, seconds in waiting.items()},
        }

    async def umount(self, request: UmountRequest, say: Say) -> UmountResult:
        """Unmount; returns when it is, but for "lazy"."""
        self._clients += 1
        try:
            if request.how == "lazy":
                await self._attachment.detach()
            elif request.how == "force":
                await self._attachment.sever(1.0)
                await self._attachment.gone.wait()
            else:
                await self._attachment.check_unused()
                await self._attachment.unmount()
                await self._attachment.let_go()
                await self._attachment.gone.wait()
            return UmountResult(os.getpid(), 0, 0, "", "", "")
        finally:
            # The reply goes out before anything else can run: nothing is awaited in between.
            self._clients -= 1
            if not self._clients:
                self._idle.set()
                self._idle = trio.Event()

    async def all_replied(self) -> None:
        """Wait, but not long, until every client that unmounts has its reply."""
        self.state = "done"
        with trio.move_on_after(5):
            if self._clients:
                await self._idle.wait()

    async def flush(self, say: Say) -> DrainProgress:
        await trio.lowlevel.checkpoint()
        return DrainProgress(0, 0)

    async def clear_cache(self) -> CacheClearResult:
        """Forget what is cached, on disk and in memory."""
        before = int(self._opened.cache.stats()["bytes"])
        await self._opened.clear_cache()
        return CacheClearResult(before, int(self._opened.cache.stats()["bytes"]))

    async def metrics(self) -> MetricsResult:
        await trio.lowlevel.checkpoint()
        return MetricsResult(self._opened.metrics.text())

    async def job(self, request: JobRequest, say: Say) -> JsonObject:
        raise BadUsage("this is a mount of MEGA's files, not of a volume: there is nothing to do")
