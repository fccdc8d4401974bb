"""The lease: the right to write, where a store cannot keep two writers apart.

Where a store cannot create an object only if it is absent, no two mounts may commit at once.  Then
`mounts/lease` names the one that may, in the format of a heartbeat: it is taken by writing it,
waiting `CONTEST` seconds for others who do the same, and reading it back; it is kept by writing it
again.  A lease that did not change for `LEASE_DEAD` seconds, by the clock of whoever looks, is
free.  Nobody compares two machines' clocks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from megafs import clock
from megafs.crypto.volume_keys import Keyring
from megafs.errors import Missing, StoreError
from megafs.journal.heartbeat import LEASE, MAX_OBJECT, Heartbeat, open_heartbeat, seal
from megafs.journal.replica import Replica
from megafs.stores.base import ObjectStore

log = logging.getLogger(__name__)

#: Seconds between writing a lease and reading it back, in which others who want it write theirs.
CONTEST: Final = 10.0
#: Seconds between two writes by who holds it.
LEASE_INTERVAL: Final = 20.0
#: Seconds without a change after which a lease is free.
LEASE_DEAD: Final = 120.0


class Lease:
    """The right to write where the store cannot keep two writers apart.

    on_lost: called when somebody else has it although we kept it alive.
    """

    def __init__(
        self, replica: Replica, store: ObjectStore, keyring: Keyring, on_lost: Callable[[str], None]
    ) -> None:
        self._replica = replica
        self._store = store
        self._keyring = keyring
        self._on_lost = on_lost
        self._token = clock.random_bytes(16)
        self._beat = 0
        self.held = False
        self.holder = ""

    async def acquire(self, *, wait: bool) -> bool:
        """Try to take the lease; false if another mount has it (`holder` says which).

        wait: watch another's lease for as long as it takes to tell whether it is dead.
        """
        there = await self._read()
        if there is not None and there.mount != self._replica.mount:
            self.holder = there.host
            if not wait:
                return False
            deadline = trio.current_time() + LEASE_DEAD
            while trio.current_time() < deadline:
                await trio.sleep(LEASE_INTERVAL / 2)
                now = await self._read()
                if now is None:
                    break
                if (now.token, now.beat) != (there.token, there.beat):
                    return False
        await self._write()
        await trio.sleep(CONTEST)
        there = await self._read()
        self.held = there is not None and there.token == self._token
        if there is not None and not self.held:
            self.holder = there.host
        return self.held

    async def keep(self) -> None:
        """Keep the lease alive, for ever or until somebody else has it."""
        last = trio.current_time()
        while self.held:
            await trio.sleep(LEASE_INTERVAL)
            try:
                there = await self._read()
                if there is None or there.token != self._token:
                    self._lose(there.host if there is not None else "nobody")
                    return
                await self._write()
                last = trio.current_time()
            except StoreError as exc:
                log.debug("lease: %s", exc)
                if trio.current_time() - last > LEASE_DEAD / 2:
                    # Somebody may take it as dead from now on: stop before that.
                    self._lose("nobody yet, but the store was away for too long")
                    return

    def _lose(self, who: str) -> None:
        self.held = False
        self.holder = who
        self._on_lost(
            f"the right to write to this volume was lost (it is held by {who}): the store cannot"
            " keep two writers apart"
        )

    async def release(self) -> None:
        """Let others have it at once."""
        if not self.held:
            return
        self.held = False
        try:
            await self._store.delete(LEASE)
        except StoreError as exc:
            log.debug("lease: %s", exc)

    async def _read(self) -> Heartbeat | None:
        try:
            data = await self._store.get(LEASE, 0, MAX_OBJECT)
        except Missing:
            return None
        return open_heartbeat(self._keyring, LEASE, data)

    async def _write(self) -> None:
        self._beat += 1
        beat = Heartbeat(
            self._replica.mount,
            self._replica.host,
            self._replica.sequence,
            clock.now_ns(),
            self._beat,
            False,
            self._token,
        )
        await self._store.put(LEASE, seal(self._keyring, LEASE, beat))
