"""Background tasks that outlive what nobody expected: a mount never vanishes by itself.

A task that meets an error that is none of ours would end its nursery, and with it the mount;
programs would go on and write plaintext into the bare directory below.  So it is begun again after
a pause, and the log says so; what changes the tree gives up after a few times, and its mount is
read-only from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import trio

from megafs.errors import Fault, leaf

log = logging.getLogger(__name__)

#: Seconds before a task is begun again: the first time, and at most.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
#: A task that failed so often, with less than so many seconds between, is given up.
ATTEMPTS: Final = 5
SETTLED: Final = 600.0

_raised: ContextVar[bool] = ContextVar("unexpected_is_raised", default=False)


@contextmanager
def unexpected_is_raised() -> Iterator[None]:
    """Let what nobody expected end the tasks that are started in the block, for tests."""
    token = _raised.set(True)
    try:
        yield
    finally:
        _raised.reset(token)


def raises() -> bool:
    """Whether this task was started in such a block, and is to raise what nobody expected."""
    return _raised.get()


async def keep_running(
    what: str,
    work: Callable[..., Awaitable[object]],
    *args: object,
    give_up: Callable[[Fault], None] | None = None,
) -> None:
    """Run ``work(*args)`` until it returns, anew whenever it raises.

    what: names it in the log.  give_up: called after `ATTEMPTS` failures, and this returns; without
        it there is no end.
    """
    failures = 0
    while True:
        begun = trio.current_time()
        failure = await _failure(what, work, *args)
        if failure is None:
            return
        if trio.current_time() - begun > SETTLED:
            failures = 0
        failures += 1
        if give_up is not None and failures >= ATTEMPTS:
            give_up(Fault(f"{what} failed {failures} times, last with {failure}; this is a bug"))
            return
        await trio.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures - 1, 10)))


async def run_once(what: str, work: Callable[..., Awaitable[object]], *args: object) -> None:
    """Run ``work(*args)``; what it raises is logged and ends nothing else."""
    await _failure(what, work, *args)


async def _failure(what: str, work: Callable[..., Awaitable[object]], *args: object) -> str | None:
    """Run ``work(*args)``; return what nobody expected, logged; None if it returned."""
    cancelled: BaseException | None = None
    try:
        await work(*args)
        return None
    except Exception as exc:
        if raises():
            raise
        failure = exc
    except BaseExceptionGroup as group:
        cancelled, rest = group.split(trio.Cancelled)
        if raises() or not isinstance(rest, Exception):
            raise
        failure = rest
    cause = leaf(failure)
    said = f"{type(cause).__name__}: {cause}"[:300]
    log.error("%s failed: %s; the mount goes on; this is a bug", what, said, exc_info=failure)
    if cancelled is not None:
        raise cancelled
    return said
