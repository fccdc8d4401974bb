"""The kernel's side of a mount: attached to its mountpoint, usable, detached, gone."""

from __future__ import annotations

from contextlib import ExitStack

import trio

from megafs.concurrency import offload
from megafs.errors import Busy, MountFailed
from megafs.mount import guard, holders, mountpoint, source, utab
from megafs.mount.fuse import KernelMount, Presentation
from megafs.mount.guardian import Guardian
from megafs.mount.holders import Holder
from megafs.mount.mountpoint import Directory, Mounted
from megafs.mount.options import MountOptions
from megafs.printable import printable
from megafs.volume.volume import Volume

#: Seconds within which the kernel ends the connection of a mount that is gone everywhere.
ENDS_WITHIN = 2.0
#: Seconds within which the kernel must have begun to ask.
USABLE_WITHIN = 20.0


class Attachment:
    """A FUSE mount at a mountpoint.

    gone: set once the kernel has ended the connection: nobody uses the mount any more.
    """

    def __init__(
        self,
        kernel: KernelMount,
        at: str,
        directory: Directory,
        source: str,
        *,
        guarded: bool = False,
        netdev: bool = False,
        url: str = "",
    ) -> None:
        """at: as `mountpoint.canonical` returns it.  directory: which `mountpoint.check` has seen
        there.  source: what the kernel shows as mounted.  guarded: keep others from writing into
        the directory while nothing is mounted there.  netdev: let systemd know that the mount
        needs the network; mount(8) does so under *url*.
        """
        self._guarded = guarded
        self._netdev, self._url = netdev, url
        self.at = at
        self._directory = directory
        self._source = source
        self.gone = trio.Event()
        self._kernel = kernel
        self._guardian: Guardian | None = None
        self._device = ""  # of our mount: another may come to lie at the same mountpoint
        self._mounted: Mounted | None = None

    @classmethod
    def of(cls, volume: Volume, at: str, directory: Directory, options: MountOptions) -> Attachment:
        """Return what will attach *volume* at *at*, which is *directory*."""
        name = options.fsname
        shown = source.of_url(volume.url) if name is None else source.plain(name)
        kernel = KernelMount(
            volume.fs,
            at,
            Presentation.of(options.settings),
            [
                *options.kernel,
                source.as_option(shown),
                "subtype=megafs",
            ],
            metrics=volume.metrics,
            on_fault=volume.fs.errors.add,
        )
        netdev = options.netdev
        return cls(
            kernel, at, directory, shown, guarded=options.guard, netdev=netdev, url=volume.url
        )

    def open(self) -> None:
        """Attach.  To be called on the main thread, which the guardian watches."""
        if self._netdev:
            utab.note(self._source, self.at, ["_netdev"])
        try:
            self._open()
        except BaseException:
            self._forget()
            raise
        # Before any thread of ours asks the mount something.
        there = mountpoint.find(self.at)
        if there is not None:
            self._guardian = Guardian(there)

    def _open(self) -> None:
        with guard.lifted(self.at), ExitStack() as guarded:
            if self._guarded:
                guarded.enter_context(guard.guarding(self.at, self._directory))
            with mountpoint.pinned(self.at, self._directory, self._source) as path:
                self._kernel.open(path)

    def close(self) -> None:
        """Give the connection back, and unmount what still lies there of it."""
        if self.is_there():
            mountpoint.detach_in_time(self.at, USABLE_WITHIN)
        self._kernel.close(unmount=False)
        if not self.is_there():
            self._forget()

    def _forget(self) -> None:
        """Take back our line of utab, and mount(8)'s, which umount(8) alone would remove."""
        if self._netdev:
            utab.forget(self.at, {self._source, self._url})

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
        self._mounted = there
        mountpoint.tune(there, readahead)

    def is_there(self) -> bool:
        """Whether our mount, and no other, lies at the mountpoint."""
        return self._there() is not None

    def _there(self) -> Mounted | None:
        there = mountpoint.find(self.at)
        ours = there is not None and (there.device == self._device or not self._device)
        return there if ours else None

    def waiting(self) -> dict[str, float]:
        """Return for how many seconds the oldest request of each operation has waited."""
        return self._kernel.waiting()

    async def check_unused(self) -> None:
        """Raise Busy, with who uses it, if `unmount` would be refused now."""
        there = self._there()
        if there is not None:
            await offload(holders.check_unused, there, kind="kernel", abandon=True)

    async def unmount(self) -> None:
        """Unmount; Busy, or MountFailed, if that cannot be."""
        there = self._there()
        if there is None:
            return
        try:
            await offload(mountpoint.unmount, self.at, kind="kernel", abandon=True)
            return
        except Busy:
            pass
        raise Busy(await offload(holders.why_busy, there, kind="kernel", abandon=True))

    async def let_go(self) -> str:
        """Stop serving, now that the mount is gone from our namespace, although others have it.

        Returns who does, as a sentence, or "".
        """
        others: list[Holder] = []
        # Nobody is to be suspected because this machine is slow.
        for patience in (ENDS_WITHIN, 3 * ENDS_WITHIN):
            with trio.move_on_after(patience):
                await self.gone.wait()
                return ""
            others = await self.elsewhere()
            if others:
                break
        self._kernel.stop()
        await self.gone.wait()
        by = f" of {holders.listed(others)}" if others else ""
        return (
            f"another mount namespace{by} still had {printable(self.at)} mounted, and gets"
            " errors from now on"
        )

    async def elsewhere(self) -> list[Holder]:
        """Return a process of each other mount namespace that has our mount."""
        return await offload(holders.elsewhere, self._device, kind="kernel", abandon=True)

    async def is_only_elsewhere(self) -> bool:
        """Whether our mount is gone here, nobody here uses it, and other namespaces have it."""
        if self.is_there() or self._mounted is None:
            return False
        using = await offload(holders.users, self._mounted, kind="kernel", abandon=True)
        return not using and bool(await self.elsewhere())

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
