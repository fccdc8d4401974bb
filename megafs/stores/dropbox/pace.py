"""No more requests a second than the service takes, and none while it asked us to wait.

A refused request counts against the limit as well, so after a refusal nothing is sent until the
time is over that the answer gave.
"""

from __future__ import annotations

import trio

from megafs.errors import Unavailable

#: Seconds' worth of requests that may go out at once after a rest.
_BURST = 5.0
#: A wait longer than this is told instead of waited.
_LONGEST = 5.0


class RequestPace:
    """rate: requests a second."""

    def __init__(self, rate: float) -> None:
        self._step = 1 / rate
        self._next = float("-inf")
        self._until = float("-inf")
        self._why = ""
        self.refusals = 0

    @property
    def held_for(self) -> float:
        """Seconds until something may be sent again."""
        return max(0.0, self._until - trio.current_time())

    @property
    def why(self) -> str:
        """What limit holds now, "" for none."""
        return self._why if self.held_for else ""

    async def turn(self) -> None:
        """Wait until a request may be sent; Unavailable if that takes longer."""
        held = self.held_for
        if held > _LONGEST:
            raise Unavailable(f"Dropbox asked to wait: {self._why}", retry_after=held, busy=True)
        if held:
            await trio.sleep(held)
        now = trio.current_time()
        self._next = max(now - _BURST, self._next + self._step)
        await trio.sleep_until(self._next)

    def hold(self, seconds: float, why: str) -> None:
        """Send nothing for so long."""
        self.refusals += 1
        self._until = max(self._until, trio.current_time() + seconds)
        self._why = why
