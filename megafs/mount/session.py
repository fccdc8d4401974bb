"""One mount from beginning to end: its parts started in order, stopped in reverse.

    volume    keys, replica, journal, uploads          volume/open.py
    kernel    the FUSE mount                           fuse.py
    socket    status, umount, flush, cache, metrics    listener.py

A mount ends in one of these ways, and each leads to `_finish`, which brings the rest to the store:

    megafs umount, a signal   drain, then unmount; busy refuses (umount) or is detached (signal)
    umount(8), fusermount3    the kernel says it has gone
    megafs umount --lazy      detached; the kernel says so when the last user has left
    megafs umount --force, a second signal
                              detached and severed; what is staged stays for the next mount
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio
from msgspec.structs import asdict

import megafs
from megafs import clock
from megafs.concurrency import offload
from megafs.errors import Fault, MegafsError, MountFailed, Stopped
from megafs.jobs import pins, registry
from megafs.mount import mountpoint
from megafs.mount.control_client import Message
from megafs.mount.control_server import Say, listening
from megafs.mount.daemon import Notifier, Report, Signals, calm_collector, end_soon
from megafs.mount.fuse import KernelMount, View
from megafs.mount.options import MountOptions
from megafs.secret_struct import SecretStruct
from megafs.volume.header import Credential
from megafs.volume.kdf_process import Derivation
from megafs.volume.open import Volume, open_volume

log = logging.getLogger(__name__)

#: Seconds within which the kernel must have begun to ask.
USABLE_WITHIN = 20.0
#: Seconds within which the process must have ended after the last byte was sent.
CLOSED_WITHIN = 60.0
#: How long systemd is asked to wait on while staged data goes to the store.
EXTENSION = 60


class Request(SecretStruct, frozen=True):
    """What is to be mounted where.

    mountpoint: as `mountpoint.canonical` returns it.  early: what `deriving.begin` has begun.
    """

    url: str
    mountpoint: str
    options: MountOptions
    credential: Credential
    early: Derivation | None = None

    _shown = ("url", "mountpoint", "options")


def run(request: Request, report: Report) -> None:
    """Mount, serve, drain.  Blocks the signals of `Signals` for the whole process."""
    trio.run(_main, request, report, Signals())


async def _main(request: Request, report: Report, signals: Signals) -> None:
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
            session = _Session(request, volume, stopping)
            try:
                await session.run(report)
            finally:
                left = session.left()
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


class _Session:
    def __init__(self, request: Request, volume: Volume, stopping: trio.Event) -> None:
        self._request = request
        self._at = request.mountpoint
        self._volume = volume
        self._stopping = stopping
        options = request.options
        self._kernel = KernelMount(
            volume.fs,
            self._at,
            View.of(options.settings),
            [
                *options.kernel,
                f"fsname={_fsname(options.fsname or request.url)}",
                "subtype=megafs",
            ],
            metrics=volume.metrics,
            on_fault=volume.fs.errors.add,
        )
        self._notify = Notifier()
        self._state = "mounting"
        self._device = ""  # of our mount: another may come to lie at the same place
        self._gone = trio.Event()
        self._finished = trio.Event()
        self._keep_staged = False
        self._failure: Fault | None = None
        self._leaving = trio.Lock()
        self._leavers = 0  # clients that still have to be told that all is done
        self._all_told = trio.Event()

    async def run(self, report: Report) -> None:
        """Mount, serve until it ends, and bring everything to the store."""
        handlers = {
            "status": self._status,
            "umount": self._umount,
            "flush": self._flush,
            "cache-clear": self._clear_cache,
            "metrics": self._metrics,
            "job": self._job,
        }
        self._kernel.open()
        try:
            async with (
                listening(self._at, self._request.url, handlers),
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(self._serve)
                await self._wait_usable()
                self._state = "mounted"
                self._notify(READY=1, STATUS=f"{self._request.url} at {self._at}")
                report.ready(**self._welcome())
                log.info("mounted %s at %s", self._request.url, self._at)
                calm_collector()
                nursery.start_soon(self._tell_of_draining)
                nursery.start_soon(pins.keep, self._volume)
                await _first(self._stopping.wait, self._gone.wait)
                if not self._gone.is_set():
                    await self._leave(insist=True)
                    await self._gone.wait()
                await self._finish()
                nursery.cancel_scope.cancel()
        finally:
            self._kernel.close(unmount=self._is_there())
        if self._failure is not None:
            raise self._failure

    def left(self) -> str:
        """What the user should know of data that is not in the store, as the end of a sentence."""
        now = self._volume.progress()
        if now.done or self._request.options.settings.read_only:
            return ""
        place = self._request.options.settings.state_dir
        return (
            f"; {now.staged_bytes} bytes and {now.pending_operations} operations are not in the"
            f" store yet: they stay in {place} and go there with the next mount"
        )

    async def _serve(self) -> None:
        try:
            await self._kernel.serve()
        finally:
            self._gone.set()
        self._kernel.close(unmount=self._is_there())

    async def _wait_usable(self) -> None:
        """Return when a program can use the directory."""
        with trio.move_on_after(USABLE_WITHIN) as scope:
            await self._kernel.started.wait()
            await offload(mountpoint.responds, self._at, USABLE_WITHIN, kind="kernel", abandon=True)
        there = mountpoint.find(self._at)
        if scope.cancelled_caught or there is None or there.fstype != mountpoint.FSTYPE:
            raise MountFailed(f"the kernel did not take the mount at {self._at}")
        self._device = there.device
        mountpoint.tune(there, self._request.options.kernel_readahead)

    def _is_there(self) -> bool:
        """Whether our mount, and no other, lies at the mountpoint."""
        there = mountpoint.find(self._at)
        return there is not None and (there.device == self._device or not self._device)

    def _welcome(self) -> Message:
        status = self._volume.status()
        return {
            "pid": status["pid"],
            **{
                name: status.get(name)
                for name in (
                    "sequence",
                    "head",
                    "head_words",
                    "head_time",
                    "head_host",
                    "offline",
                    "staged_bytes",
                    "pending_operations",
                )
            },
        }

    # -- the end

    async def _leave(self, *, insist: bool, say: Say | None = None) -> None:
        """Bring everything to the store, then unmount.

        insist: detach what is in use, and go even if the store takes nothing; else raise Busy, or
            what the store said, and stay mounted.
        """
        async with self._leaving:
            if self._gone.is_set():
                return
            self._state = "draining"
            try:
                await self._drained(say)
            except Fault as exc:
                if not insist:
                    self._state = "mounted"
                    raise
                log.error("%s%s", exc, self.left())
            try:
                if self._is_there():
                    await offload(mountpoint.unmount, self._at, kind="kernel", abandon=True)
            except Stopped as exc:
                if not insist:
                    self._state = "mounted"
                    raise
                log.warning("%s", exc)
                await self._detach()
                self._kernel.stop()

    async def _detach(self) -> None:
        if self._is_there():
            await offload(mountpoint.detach, self._at, kind="kernel", abandon=True)

    async def _finish(self) -> None:
        """Bring what is left to the store, now that nobody adds to it."""
        self._state = "draining"
        if not self._keep_staged:
            log.info("unmounted; sending what is left to the store")
            try:
                await self._volume.drain()
            except Fault as exc:
                self._failure = exc
                log.error("%s%s", exc, self.left())
        self._state = "done"
        self._finished.set()
        # Nobody uses the mount any more, and all is where it should be: files are closed, no more.
        end_soon(CLOSED_WITHIN, Stopped.exit_code)
        with trio.move_on_after(5):  # let those who wait hear it
            if self._leavers:
                await self._all_told.wait()

    async def _drained(self, say: Say | None) -> None:
        """Drain, telling *say* how it goes."""
        if say is None:
            await self._volume.drain()
        else:
            await self._telling(say, self._volume.drain)

    async def _telling(self, say: Say, what: Callable[[], Awaitable[None]]) -> None:
        async def tell() -> None:
            while True:
                await say(asdict(self._volume.progress()))
                await trio.sleep(0.3)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            await what()
            nursery.cancel_scope.cancel()
        await say(asdict(self._volume.progress()))

    async def _tell_of_draining(self) -> None:
        """Tell systemd and the log how far it is, while it takes long."""
        seconds = 0
        before, moved = None, 0
        while True:
            await trio.sleep(1)
            if self._state != "draining":
                seconds = 0
                continue
            now = self._volume.progress()
            text = f"sending {now.staged_bytes} bytes, {now.pending_operations} operations"
            text += f"; {now.error}" if now.error else ""
            fields: dict[str, str | int] = {"STATUS": text}
            if self._stopping.is_set():
                fields["STOPPING"] = 1
            if (left := (now.staged_bytes, now.pending_operations)) != before:
                before, moved = left, seconds
            # While nothing moves, systemd's own patience counts.
            if seconds - moved < EXTENSION:
                fields["EXTEND_TIMEOUT_USEC"] = EXTENSION * 10**6
            self._notify(**fields)
            if seconds % 10 == 9:
                log.info("%s", text)
            seconds += 1

    # -- what is asked over the socket

    async def _status(self, request: Message, say: Say) -> Message:
        await trio.lowlevel.checkpoint()
        waiting = self._kernel.waiting()
        return {
            **self._volume.status(),
            "url": self._request.url,
            "mountpoint": self._at,
            "state": self._state,
            "version": megafs.__version__,
            "started": self._volume.started,
            "uptime": round(clock.now() - self._volume.started, 1),
            "requests_waiting": {op: round(seconds, 1) for op, seconds in waiting.items()},
            "state_dir": str(self._request.options.settings.state_dir),
            "cache_dir": str(self._request.options.settings.cache_dir),
        }

    async def _umount(self, request: Message, say: Say) -> Message:
        how = request.get("how", "wait")
        if how == "lazy":
            await self._detach()
            return self._gone_facts()
        self._leavers += 1
        try:
            if how == "force":
                self._keep_staged = True
                await self._detach()
                self._kernel.stop(1.0)
                await self._finished.wait()
            else:
                await self._leave(insist=False, say=say)
                await self._telling(say, self._finished.wait)
            if self._failure is not None:
                raise self._failure
            return self._gone_facts()
        finally:
            # The answer goes out before anything else can run: nothing is awaited in between.
            self._leavers -= 1
            if not self._leavers:
                self._all_told.set()
                self._all_told = trio.Event()

    def _gone_facts(self) -> Message:
        return {
            "pid": self._volume.status()["pid"],
            **asdict(self._volume.progress()),
            "left": self.left(),
        }

    async def _flush(self, request: Message, say: Say) -> Message:
        await self._telling(say, self._volume.drain)
        return asdict(self._volume.progress())

    async def _job(self, request: Message, say: Say) -> Message:
        """fsck, scrub, gc and the like (jobs/registry.py); it ends when whoever asked has gone."""
        latest: Message = {"done": 0, "total": 0, "text": ""}
        result: Message = {}

        def progress(step: Message) -> None:
            nonlocal latest
            latest = step

        async def report() -> None:
            while True:
                await trio.sleep(0.5)
                await say(latest)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(report)
            args = request.get("args")
            result = await registry.run(
                self._volume,
                str(request.get("job")),
                args if isinstance(args, dict) else {},
                progress,
            )
            nursery.cancel_scope.cancel()
        return result

    async def _clear_cache(self, request: Message, say: Say) -> Message:
        before = self._volume.status()["cache_bytes"]
        await self._volume.clear_cache()
        return {"before": before, "after": self._volume.status()["cache_bytes"]}

    async def _metrics(self, request: Message, say: Say) -> Message:
        await trio.lowlevel.checkpoint()
        return {"text": self._volume.metrics.text()}


async def _first(*waits: Callable[[], Awaitable[None]]) -> None:
    """Return when the first of *waits* does."""
    async with trio.open_nursery() as nursery:

        async def wait(until: Callable[[], Awaitable[None]]) -> None:
            await until()
            nursery.cancel_scope.cancel()

        for until in waits:
            nursery.start_soon(wait, until)


def _fsname(text: str) -> str:
    """*text* as libfuse takes it in an option: ASCII, commas escaped."""
    plain = "".join(
        c if " " < c < "\x7f" else "".join(f"%{b:02X}" for b in c.encode()) for c in text
    )
    return plain.replace("\\", "\\\\").replace(",", "\\,")
