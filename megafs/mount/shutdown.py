"""How a mount ends: everything is brought to the store, the kernel lets go, whoever waits is told.

See lifecycle.py for the ways that lead here.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Literal

import trio

from megafs.errors import Fault, Stopped
from megafs.mount.attachment import Attachment
from megafs.mount.control_messages import DrainProgress
from megafs.mount.control_server import Say
from megafs.mount.daemon import Notifier, end_soon
from megafs.mount.mountpoint import MountTable
from megafs.volume.volume import Volume

log = logging.getLogger(__name__)

#: Seconds within which the process must have ended after the last byte was sent.
CLOSED_WITHIN = 60.0
#: Seconds for which systemd is asked to wait on while staged data goes to the store.
EXTENSION = 60
#: Seconds between two looks at who uses a mount that is gone from our namespace.
LOOK_EVERY = 5.0
#: Seconds between two reports of progress to a client.
REPORT_EVERY = 0.3

State = Literal["mounting", "mounted", "draining", "done"]


def progress_of(volume: Volume) -> DrainProgress:
    """Return what is not in the store yet, as it is told over the control socket."""
    now = volume.progress()
    return DrainProgress(now.staged_bytes, now.pending_operations, now.error)


def unsent(volume: Volume) -> str:
    """The warning about data that is not in the store, as the end of a sentence."""
    now = volume.progress()
    if now.done or volume.settings.read_only:
        return ""
    return (
        f"; {now.staged_bytes} bytes and {now.pending_operations} operations are not in the"
        f" store yet: they stay in {volume.settings.state_dir} and go there with the next mount"
    )


async def drain(volume: Volume, say: Say) -> None:
    """Bring everything to the store, and report to *say* meanwhile."""
    await _reporting(volume, say, volume.drain)


async def _reporting(volume: Volume, say: Say, work: Callable[[], Awaitable[None]]) -> None:
    """Report to *say* what is not in the store yet, until *work* is done, and once more then."""

    async def report() -> None:
        while True:
            await say(progress_of(volume))
            await trio.sleep(REPORT_EVERY)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(report)
        await work()
        nursery.cancel_scope.cancel()
    await say(progress_of(volume))


class Shutdown:
    """The end of one mount, and how far it is.

    failure: why not everything is in the store, once `finish` is done.  held: who still had the
    mount when we let go of it, as a sentence, or "".
    """

    def __init__(self, volume: Volume, attachment: Attachment) -> None:
        self.state: State = "mounting"
        self.failure: Fault | None = None
        self.held = ""
        self._volume = volume
        self._attachment = attachment
        self._finished = trio.Event()
        self._keep_staged = False
        self._leaving = trio.Lock()
        self._clients = 0  # that wait in `unmount` or `force`, and still have to get their reply
        self._all_replied = trio.Event()

    def mounted(self) -> None:
        """The directory is usable: from now on there is something to be brought to the store."""
        self.state = "mounted"

    async def leave(self, *, insist: bool, say: Say | None = None) -> None:
        """Bring everything to the store, then unmount.

        insist: detach what is in use, and go even if the store takes nothing; else raise Busy, or
            what the store said, and stay mounted.
        say: called with how far it is.
        """
        async with self._leaving:
            if self._attachment.gone.is_set():
                return
            if not insist:
                await self._attachment.check_unused()
            self.state = "draining"
            try:
                await self._leave(insist, say)
            except BaseException:  # a client that has gone, too
                if self._attachment.is_there():
                    self.state = "mounted"
                raise

    async def _leave(self, insist: bool, say: Say | None) -> None:
        try:
            if say is None:
                await self._volume.drain()
            else:
                await drain(self._volume, say)
        except Fault as exc:
            if not insist:
                raise
            log.error("%s%s", exc, unsent(self._volume))
        try:
            await self._attachment.unmount()
        except Stopped as exc:
            if not insist:
                raise
            log.warning("%s", exc)
            await self._attachment.sever()
        self.held = await self._attachment.let_go()
        if self.held:
            log.warning("%s", self.held)

    async def watch_elsewhere(self) -> None:
        """Leave once the mount is gone from our namespace and only others still have it.

        Somebody unmounts it with umount(8), or the last user of a detached one leaves, while a
        container has a copy: the kernel would keep the connection for as long as that runs.
        """
        table = MountTable()
        gone = False
        while True:
            await trio.sleep(LOOK_EVERY if gone else 1.0)
            if not gone and not table.has_changed():
                continue
            gone = not self._attachment.is_there()
            if gone and await self._attachment.is_only_elsewhere():
                log.info("unmounted here, but not in every mount namespace")
                await self.leave(insist=True)
                return

    async def finish(self) -> None:
        """Bring what is left to the store, now that nobody adds to it, and tell the clients."""
        self.state = "draining"
        if not self._keep_staged:
            log.info("unmounted; sending what is left to the store")
            try:
                await self._volume.drain()
            except Fault as exc:
                self.failure = exc
                log.error("%s%s", exc, unsent(self._volume))
        self.state = "done"
        self._finished.set()
        # Nobody uses the mount any more, and all is in the store: files are closed, no more.
        end_soon(CLOSED_WITHIN, Stopped.exit_code)
        with trio.move_on_after(5):
            if self._clients:
                await self._all_replied.wait()

    async def unmount(self, say: Say) -> None:
        """For a client: `leave`, and return when the mount has finished; raise its failure."""
        await self._to_the_end(lambda: self._unmount(say))

    async def _unmount(self, say: Say) -> None:
        await self.leave(insist=False, say=say)
        await _reporting(self._volume, say, self._finished.wait)

    async def force(self) -> None:
        """For a client: end now, and leave what is staged for the next mount."""
        await self._to_the_end(self._force)

    async def _force(self) -> None:
        self._keep_staged = True
        await self._attachment.sever(1.0)
        await self._finished.wait()

    async def _to_the_end(self, end: Callable[[], Awaitable[None]]) -> None:
        self._clients += 1
        try:
            await end()
            if self.failure is not None:
                raise self.failure
        finally:
            # The reply goes out before anything else can run: nothing is awaited in between.
            self._clients -= 1
            if not self._clients:
                self._all_replied.set()
                self._all_replied = trio.Event()

    async def report_draining(self, notify: Notifier, is_stopping: Callable[[], bool]) -> None:
        """While draining takes long, tell systemd and the log how far it is.

        is_stopping: whether a signal has asked for the end.
        """
        seconds = 0
        before, moved = None, 0
        while True:
            await trio.sleep(1)
            if self.state != "draining":
                seconds = 0
                continue
            now = self._volume.progress()
            text = f"sending {now.staged_bytes} bytes, {now.pending_operations} operations"
            text += f"; {now.error}" if now.error else ""
            fields: dict[str, str | int] = {"STATUS": text}
            if is_stopping():
                fields["STOPPING"] = 1
            if (left := (now.staged_bytes, now.pending_operations)) != before:
                before, moved = left, seconds
            # While nothing moves, systemd's own patience counts.
            if seconds - moved < EXTENSION:
                fields["EXTEND_TIMEOUT_USEC"] = EXTENSION * 10**6
            notify(**fields)
            if seconds % 10 == 9:
                log.info("%s", text)
            seconds += 1
