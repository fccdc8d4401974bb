"""Whatever leaves a driver is a store error: the tasks of a mount know what to do with no other.

A driver may have a mistake in it, meet an answer that nobody thought of, or run requests side by
side in a nursery, which raises a group.  No mount ends because of that, and no retry helps, unless
the cause says so itself.
"""

from __future__ import annotations

import logging

import trio

from megafs import supervisor
from megafs.errors import MegafsError, StoreError, leaf

log = logging.getLogger(__name__)

#: What a mistake in a driver raises most often; a test that wants to hear of mistakes hears of the
#: others (`supervisor.unexpected_is_raised`): they are its own.
_COMMON = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)


def store_error(url: str, exc: BaseException) -> BaseException:
    """Return what to raise in place of *exc*, which came out of the driver of the store at *url*.

    A cancellation stays one, also where other tasks of a nursery failed at the same moment.
    """
    if isinstance(exc, BaseExceptionGroup):
        cancelled, rest = exc.split(trio.Cancelled)
        if rest is None or not isinstance(rest, Exception):
            return exc
        if cancelled is not None:
            return cancelled
    cause = leaf(exc)
    if isinstance(cause, MegafsError) or not isinstance(cause, Exception):
        return cause
    if supervisor.raises() and not isinstance(cause, _COMMON):
        return exc
    log.debug("%s: unexpected", url, exc_info=exc)
    reason = " ".join(f"{type(cause).__name__}: {cause}"[:200].split())
    return StoreError(f"{url}: an answer cannot be used: {reason}")
