"""The kernel's side of a mount: attached to its mountpoint, usable, detached, gone."""

from __future__ import annotations

import trio

from megafs.concurrency import offload
from megafs.errors import MountFailed
from megafs.mount import mountpoint
from megafs.mount.fuse import KernelMount, Presentation
from megafs.mount.guardian import Guardian
from megafs.mount.options import MountOptions
from megafs.volume.volume import Volume

#: Seconds within which the kernel must have begun to ask.
USABLE_WITHIN = 20.0


class Attachment:
    """A FUSE mount at a mountpoint.

    gone: set once the kernel has ended the connection: nobody uses the mount any more.
    """

    def __init__(self, kernel: KernelMount, at: str) -> None:
        """at: as `mountpoint.canonical` returns it."""
        self.at = at
        self.gone = trio.Event()
        self._kernel = kernel
        self._guardian: Guardian | None = None
        self._device = ""  # of our mount: another may come to lie at the same mountpoint

    @classmethod
    def of(cls, volume: Volume, at: str, options: MountOptions) -> Attachment:
        """Return what will attach *volume* at *at*."""
        kernel = KernelMount(
            volume.fs,
            at,
            Presentation.of(options.settings),
            [
                *options.kernel,
                f"fsname={_fsname(options.fsname or volume.url)}",
                "subtype=megafs",
            ],
            metrics=volume.metrics,
            on_fault=volume.fs.errors.add,
        )
        return cls(kernel, at)

    def open(self) -> None:
        """Attach.  To be called on the main thread, which the guardian watches."""
        self._kernel.open()
        # Before any thread of ours asks the mount something.
        there = mountpoint.find(self.at)
        if there is not None:
            self._guardian = Guardian(there)

    def close(self) -> None:
        """Give the connection back, and unmount what still lies there of it."""
        self._kernel.close(unmount=self.is_there())

    async def serve(self) -> None:
        """Answer the kernel until the mount has gone."""
        try:
            await self._kernel.serve()
        finally:
            self.gone.set()
        self.close()

    async def wait_usable(self, readahead: int) -> None:
        """Return when a program can use the directory.

        readahead: bytes that the kernel is asked to read ahead.
        """
        with trio.move_on_after(USABLE_WITHIN) as scope:
            await self._kernel.started.wait()
            await offload(mountpoint.responds, self.at, USABLE_WITHIN, kind="kernel", abandon=True)
        there = mountpoint.find(self.at)
        if scope.cancelled_caught or there is None or there.fstype != mountpoint.FSTYPE:
            raise MountFailed(f"the kernel did not take the mount at {self.at}")
        self._device = there.device
        mountpoint.tune(there, readahead)

    def is_there(self) -> bool:
        """Whether our mount, and no other, lies at the mountpoint."""
        there = mountpoint.find(self.at)
        return there is not None and (there.device == self._device or not self._device)

    def waiting(self) -> dict[str, float]:
        """Return for how many seconds the oldest request of each operation has waited."""
        return self._kernel.waiting()

    async def unmount(self) -> None:
        """Unmount; Busy, or MountFailed, if that cannot be."""
        if self.is_there():
            await offload(mountpoint.unmount, self.at, kind="kernel", abandon=True)

    async def detach(self) -> None:
        """Take the directory away; who has files open goes on using them."""
        if self.is_there():
            await offload(mountpoint.detach, self.at, kind="kernel", abandon=True)

    async def sever(self, patience: float = 5.0) -> None:
        """Detach, and stop serving, so that `gone` comes although somebody uses the mount.

        patience: seconds for requests that are being served.
        """
        await self.detach()
        self._kernel.stop(patience)


def _fsname(text: str) -> str:
    """*text* as libfuse takes it in an option: ASCII, commas escaped."""
    plain = "".join(
        c if " " < c < "\x7f" else "".join(f"%{b:02X}" for b in c.encode()) for c in text
    )
    return plain.replace("\\", "\\\\").replace(",", "\\,")
