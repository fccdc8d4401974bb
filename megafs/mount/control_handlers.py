"""What a mount does for each request on its control socket."""

from __future__ import annotations

import os
from typing import Any

import trio

import megafs
from megafs import clock
from megafs.jobs import registry
from megafs.mount import shutdown as shutdowns
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
from megafs.mount.control_server import Say
from megafs.mount.shutdown import Shutdown
from megafs.progress import Progress
from megafs.volume.volume import Volume

#: Seconds between two reports of a job's progress.
REPORT_EVERY = 0.5


class ControlHandlers:
    """`control_server.Handlers` of one mount."""

    def __init__(self, volume: Volume, attachment: Attachment, shutdown: Shutdown) -> None:
        self._volume = volume
        self._attachment = attachment
        self._shutdown = shutdown

    async def status(self) -> JsonObject:
        """The status, as `megafs status --json` prints it (docs/commands.md)."""
        await trio.lowlevel.checkpoint()
        waiting = self._attachment.waiting()
        settings = self._volume.settings
        return {
            **self._volume.status(),
            "mountpoint": self._attachment.at,
            "state": self._shutdown.state,
            "version": megafs.__version__,
            "started": self._volume.started,
            "uptime": round(clock.now() - self._volume.started, 1),
            "requests_waiting": {op: round(seconds, 1) for op, seconds in waiting.items()},
            "state_dir": str(settings.state_dir),
            "cache_dir": str(settings.cache_dir),
        }

    async def umount(self, request: UmountRequest, say: Say) -> UmountResult:
        """Unmount; returns when the mount has finished, but for "lazy"."""
        if request.how == "lazy":
            await self._attachment.detach()
        elif request.how == "force":
            await self._shutdown.force()
        else:
            await self._shutdown.unmount(say)
        now = shutdowns.progress_of(self._volume)
        return UmountResult(
            os.getpid(),
            now.staged_bytes,
            now.pending_operations,
            now.error,
            shutdowns.unsent(self._volume),
            self._shutdown.held,
        )

    async def flush(self, say: Say) -> DrainProgress:
        """Bring everything to the store."""
        await shutdowns.drain(self._volume, say)
        return shutdowns.progress_of(self._volume)

    async def clear_cache(self) -> CacheClearResult:
        """Forget what is cached, on disk and in memory."""
        before = self._cached()
        await self._volume.clear_cache()
        return CacheClearResult(before, self._cached())

    def _cached(self) -> int:
        return int(self._volume.status()["cache_bytes"])

    async def metrics(self) -> MetricsResult:
        """The mount's numbers."""
        await trio.lowlevel.checkpoint()
        return MetricsResult(self._volume.metrics.text())

    async def job(self, request: JobRequest, say: Say) -> JsonObject:
        """fsck, scrub, gc and the like (jobs/registry.py); it ends when whoever asked has gone."""
        latest = Progress()
        result: dict[str, Any] = {}

        def progress(step: Progress) -> None:
            nonlocal latest
            latest = step

        async def report() -> None:
            while True:
                await trio.sleep(REPORT_EVERY)
                await say(latest)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(report)
            result = await registry.run(self._volume, request.job, request.args, progress)
            nursery.cancel_scope.cancel()
        return result
