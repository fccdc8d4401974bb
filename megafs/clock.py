"""Real clocks and randomness: the only place that reads either for a decision.

The simulation and the tests replace them through `replaced()`; nothing else in megafs may import
`random`, `secrets` or read `time.time()` (ruff TID251).
Monotonic time for waiting is trio's (`trio.current_time()`), which tests run on a virtual clock.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

_now_ns: Callable[[], int] = time.time_ns
_boottime: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
_stopwatch: Callable[[], float] = time.perf_counter
_random_bytes: Callable[[int], bytes] = os.urandom
# Jitter needs no secrecy, only independence between machines.
_uniform: Callable[[float, float], float] = random.SystemRandom().uniform


def now_ns() -> int:
    """Nanoseconds since 1970, as for a file's timestamps."""
    return _now_ns()


def now() -> float:
    """Seconds since 1970."""
    return _now_ns() / 1e9


def boottime() -> float:
    """Seconds since this machine started, those that it was suspended included."""
    return _boottime()


def stopwatch() -> float:
    """Seconds since any moment, to tell how long a call took."""
    return _stopwatch()


def random_bytes(n: int) -> bytes:
    """*n* bytes fit for keys and identifiers (os.urandom)."""
    return _random_bytes(n)


def uniform(low: float, high: float) -> float:
    """A number between *low* and *high*, for jitter only."""
    return _uniform(low, high)


@contextmanager
def replaced(
    *,
    now_ns: Callable[[], int] | None = None,
    boottime: Callable[[], float] | None = None,
    stopwatch: Callable[[], float] | None = None,
    random_bytes: Callable[[int], bytes] | None = None,
    uniform: Callable[[float, float], float] | None = None,
) -> Iterator[None]:
    """Put other sources in place for the block: virtual time, seeded randomness."""
    global _now_ns, _boottime, _stopwatch, _random_bytes, _uniform
    saved = (_now_ns, _boottime, _stopwatch, _random_bytes, _uniform)
    _now_ns = now_ns or _now_ns
    _boottime = boottime or _boottime
    _stopwatch = stopwatch or _stopwatch
    _random_bytes = random_bytes or _random_bytes
    _uniform = uniform or _uniform
    try:
        yield
    finally:
        _now_ns, _boottime, _stopwatch, _random_bytes, _uniform = saved
