"""How pyfuse3 waits for the kernel, without a turn of the event loop for every request.

pyfuse3's workers take a lock, wait until /dev/fuse is readable, let the next worker have the lock,
read one request and answer it.  Done with trio's own lock and wait, a request that is answered from
memory in 10 microseconds costs another 40: an epoll and two task switches.  A program that makes
thousands of small requests sends the next one within some 20 microseconds of the answer, so:

- `wait_readable` looks whether a request is there before it goes back to the event loop, and goes
  on looking for `SPIN` seconds if one came just now;
- the lock is not handed to a sleeping worker while the one that gave it up goes on; a guard task
  does so as soon as that one really waits;
- every `TURN` seconds of unbroken requests the event loop gets its turn all the same.

pyfuse3 takes `Lock` and `lowlevel.wait_readable` from the module bound to its global name `trio`,
which is how its own asyncio mode works; `install` binds a stand-in there that passes everything
else on. Measured through a mount with one client on two cores, before and after:
docs/performance.md.
"""

from __future__ import annotations

import select
from collections import deque
from time import perf_counter
from types import ModuleType, TracebackType
from typing import Any, Final

import trio

#: Longer than a client needs to come back, shorter than the turn of the loop that it saves.
SPIN: Final = 50e-6
#: Requests count as a stream if they come this close together.
CLOSE: Final = 500e-6
#: Other tasks wait no longer than this for their turn.
TURN: Final = 2e-3


class Waiting:
    """Waits for one file descriptor, the quick way."""

    def __init__(self) -> None:
        self._fd = -1
        self._poll = select.poll()
        self._last = 0.0
        self._turn = 0.0

    async def wait_readable(self, fd: Any) -> None:
        """As trio.lowlevel.wait_readable; not always a checkpoint."""
        if fd != self._fd:
            self._fd = fd
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
        now = perf_counter()
        if now - self._turn > TURN:
            await trio.lowlevel.checkpoint()
            now = self._turn = perf_counter()
        stop = now + SPIN if now - self._last < CLOSE else now
        poll = self._poll.poll
        while True:
            if poll(0):
                self._last = perf_counter()
                return
            if perf_counter() >= stop:
                break
        await trio.lowlevel.wait_readable(fd)
        self._last = self._turn = perf_counter()


class Lock:
    """As trio.Lock in a ``with``, but whoever gives it up may have it again at once.

    Sleepers are woken by a guard task that runs when the event loop next does.
    """

    def __init__(self) -> None:
        self._held = False
        self._sleepers: deque[trio.lowlevel.Task] = deque()
        self._guarded = False

    async def __aenter__(self) -> None:
        while self._held:
            task = trio.lowlevel.current_task()
            self._sleepers.append(task)

            def abort(_raise: Any, sleeper: trio.lowlevel.Task = task) -> trio.lowlevel.Abort:
                if sleeper in self._sleepers:
                    self._sleepers.remove(sleeper)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        self._held = True

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._held = False
        if self._sleepers and not self._guarded:
            self._guarded = True
            trio.lowlevel.spawn_system_task(self._wake)

    async def _wake(self) -> None:
        self._guarded = False
        if not self._held and self._sleepers:
            trio.lowlevel.reschedule(self._sleepers.popleft())


class _Passing:
    """A stand-in for a module: some names of its own, the rest from *module*."""

    def __init__(self, module: Any, **own: Any) -> None:
        self.__dict__.update(own)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def install(pyfuse3: ModuleType) -> None:
    """Have *pyfuse3* wait the quick way from its next `main` on."""
    lowlevel = _Passing(trio.lowlevel, wait_readable=Waiting().wait_readable)
    pyfuse3.trio = _Passing(trio, Lock=Lock, lowlevel=lowlevel)  # type: ignore[attr-defined]
