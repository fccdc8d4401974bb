"""Drives a volume from plain, synchronous code: hypothesis' state machines know no trio."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import trio

from megafs.config import Parameters
from megafs.stores.base import ObjectStore
from megafs.volume.volume import Volume
from tests.fs.opened import SMALL, opened

T = TypeVar("T")


class Machine:
    """One machine with the volume in *store* open; `call` runs an async function in its loop."""

    def __init__(self, store: ObjectStore, params: Parameters = SMALL, **settings: Any) -> None:
        self.store = store
        self.params = params
        self.settings = settings
        # In memory if possible: thousands of fsyncs would be most of the time.
        home = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.place = Path(tempfile.mkdtemp(prefix="megafs-test-", dir=home))
        self.volume: Volume
        self._start()

    def _start(self) -> None:
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def _main(self) -> None:
        try:
            trio.run(self._run)
        except BaseException as exc:  # noqa: ASYNC103  (raised in the thread that asks)
            self._error = exc
            self._ready.set()

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._end = trio.Event()
        async with opened(
            self.place, self.store, self.params, host="machine", **self.settings
        ) as self.volume:
            self._ready.set()
            await self._end.wait()

    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        if self._error is not None:
            raise self._error
        return trio.from_thread.run(function, *args, trio_token=self._token)

    def now(self, function: Callable[..., T], *args: Any) -> T:
        return trio.from_thread.run_sync(function, *args, trio_token=self._token)

    def stop(self) -> None:
        if self._thread.is_alive():
            self.now(self._end.set)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def reopen(self, *, empty: bool) -> None:
        """Unmount and mount; with empty state, as another machine would after a drain."""
        if empty:
            self.call(self.volume.drain)
        self.stop()
        if empty:
            shutil.rmtree(self.place)
            self.place.mkdir(mode=0o700)
        self._start()

    def close(self) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self.place, ignore_errors=True)
