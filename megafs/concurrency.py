"""Concurrency: the one door to threads, background tasks, a nursery that raises one error.

trio's autojump clock takes a running worker thread for idleness and jumps ahead, so every hop
goes through `offload()`, which the tests run in place (`in_place()`).  A hop costs 90 to 170
microseconds: work below some 100 microseconds is cheaper done on the loop.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, TypeVarTuple

import trio

from megafs import clock
from megafs.errors import leaf
from megafs.supervisor import run_once

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_in_place: ContextVar[bool] = ContextVar("offload_in_place", default=False)
# Of one event loop each: a thread that outlives its loop, after Ctrl-C, never gives its token back.
_limiters: trio.lowlevel.RunVar[dict[str, trio.CapacityLimiter]] = trio.lowlevel.RunVar("limiters")

# The threads of each kind of work: ciphers gain nothing beyond the cores; disk waits more than it
# works, and a stuck disk must not take the threads that ciphers need.
_LIMITS = {"cpu": max(2, os.cpu_count() or 2), "disk": 8, "net": 40, "kernel": 4}


def run_interruptible(work: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
    """Run *work* as trio.run does; Ctrl-C comes where it waits, as a cancellation would.

    trio's own way is to raise KeyboardInterrupt between any two steps of a task, also in what
    counts on not being interrupted: an operation on the tree, or a close half done.
    """
    return trio.run(work, *args, restrict_keyboard_interrupt_to_checkpoints=True)


@contextmanager
def in_place() -> Iterator[None]:
    """Run offloaded work on the calling task, for tests on a virtual clock."""
    token = _in_place.set(True)
    try:
        yield
    finally:
        _in_place.reset(token)


#: A disk that was quicker than this, in seconds, so many times in a row, is waited for on the event
#: loop: other programs wait no longer than for any other call.
QUICK = 0.001
TRUSTED = 16


class Syncs:
    """Small syncs to one disk: on the event loop as long as it is quick, else in a thread.

    The way to a thread and back costs as much as a quick disk (docs/decisions/0009).
    """

    def __init__(self) -> None:
        self._quick = 0  # in a row

    async def run(self, fn: Callable[..., None], *args: Any, large: bool = False) -> None:
        """Call ``fn(*args)``, which syncs.  large: it may take long even if the disk is quick."""
        if self._quick >= TRUSTED and not large:
            self._timed(QUICK, fn, *args)
        else:
            # A thread may have waited longer for the interpreter than for the disk, so that what
            # it measures says nothing between these two.
            await offload(self._timed, 8 * QUICK, fn, *args, kind="disk")

    def _timed(self, slow: float, fn: Callable[..., None], *args: Any) -> None:
        begin = clock.stopwatch()
        fn(*args)
        took = clock.stopwatch() - begin
        if took < QUICK:
            self._quick += 1
        elif took >= slow:
            self._quick = 0


@asynccontextmanager
async def one_error_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery from which one error comes, not a group: the one that says most about the cause."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        cause = leaf(group)
        if isinstance(cause, Exception):
            raise cause from group
        raise  # a cancellation, which is for trio


async def first_of(*waits: Callable[[], Awaitable[None]]) -> None:
    """Return when the first of *waits* does; the others are cancelled."""
    async with trio.open_nursery() as nursery:

        async def wait(until: Callable[[], Awaitable[None]]) -> None:
            await until()
            nursery.cancel_scope.cancel()

        for until in waits:
            nursery.start_soon(wait, until)


class Background:
    """Starts tasks that end when the block of `running` does.

    Made before the parts that start tasks, and run (`running`) when all of them are there.
    """

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None

    def start(self, work: Callable[..., Awaitable[object]], *args: object) -> bool:
        """Start ``work(*args)``; return False, and do nothing, unless this is running.

        What it raises is logged, and ends nothing else.
        """
        if self._nursery is None:
            return False
        self._nursery.start_soon(run_once, "a task in the background", work, *args)
        return True

    @property
    def is_running(self) -> bool:
        return self._nursery is not None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[trio.Nursery]:
        """Run for the block; leaving it cancels the tasks."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield nursery
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()


async def offload(fn: Callable[..., T], *args: Any, kind: str = "cpu", abandon: bool = False) -> T:
    """Run ``fn(*args)`` in a worker thread and return what it returns.

    kind: "cpu", "disk", "net" or "kernel": each has its own bound on threads.
    abandon: a cancelled caller leaves the thread behind instead of waiting for it.  Only for work
        without side effects that matter.
    """
    if _in_place.get():
        await trio.lowlevel.checkpoint()
        return fn(*args)
    return await trio.to_thread.run_sync(
        fn, *args, limiter=_limiter(kind), abandon_on_cancel=abandon
    )


def _limiter(kind: str) -> trio.CapacityLimiter:
    try:
        limiters = _limiters.get()
    except LookupError:
        limiters = {}
        _limiters.set(limiters)
    limiter = limiters.get(kind)
    if limiter is None:
        limiter = limiters[kind] = trio.CapacityLimiter(_LIMITS[kind])
    return limiter
