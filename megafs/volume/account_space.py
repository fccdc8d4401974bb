"""What the account behind the store has left, asked now and then, for `df`.

statfs(2) must not wait for a network, and many programs call it often: it gets the last answer,
less what was sent since.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from megafs import clock
from megafs.errors import StoreError
from megafs.stores.abilities import SpaceLeft

log = logging.getLogger(__name__)

#: Seconds after which the account is asked again: when much was sent, when anything was, and when
#: nothing was, for others may use the account too.
SOON, LATER, IDLE = 30.0, 300.0, 1800.0
#: So much, or so large a part of what was left, is much.
MUCH, PART = 256 << 20, 0.05
_LOOK = 5.0
#: Seconds for an answer.
_PATIENCE = 60.0


class AccountSpace:
    """The bytes that the account takes.

    sent: how many bytes were sent to the store so far.
    """

    def __init__(self, store: SpaceLeft, sent: Callable[[], int]) -> None:
        self._store = store
        self._sent = sent
        self._answer: int | None = None
        self._sent_then = 0
        self._asked_at = float("-inf")
        self._sent_at_asking = 0

    @property
    def left(self) -> int | None:
        """The bytes left; None if there is no limit or none is known."""
        if self._answer is None:
            return None
        return max(0, self._answer - max(0, self._sent() - self._sent_then))

    async def run(self) -> None:
        """Ask, for ever."""
        while True:
            if self._is_due():
                await self._ask()
            await trio.sleep(clock.uniform(0.8, 1.2) * _LOOK)

    def _is_due(self) -> bool:
        age = trio.current_time() - self._asked_at
        sent = self._sent() - self._sent_at_asking
        if age >= IDLE or (sent and age >= LATER):
            return True
        much = MUCH if self._answer is None else min(MUCH, max(1, int(PART * self._answer)))
        return sent >= much and age >= SOON

    async def _ask(self) -> None:
        self._asked_at = trio.current_time()
        self._sent_at_asking = sent = self._sent()
        try:
            with trio.fail_after(_PATIENCE):
                self._answer = await self._store.space_left()
            self._sent_then = sent
        except (StoreError, trio.TooSlowError) as exc:
            log.debug("the account does not say what it has left: %s", exc)
