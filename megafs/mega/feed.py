"""Follow what changes at MEGA, and tell the filesystem."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

import trio

from megafs.errors import MegafsError, StoreError, Unavailable
from megafs.mega.api import ApiChannel
from megafs.mega.errors import SessionExpired, TreeStale
from megafs.mega.node_keys import NodeKeys
from megafs.mega.node_table import Moved, NodeTable
from megafs.mega.tree import TreeOwner, apply_packets, load_tree

log = logging.getLogger(__name__)

#: Seconds before the feed is asked again after it failed, at first and at most.
_FIRST: Final = 2.0
_MOST: Final = 300.0
#: Seconds between two rounds that brought nothing, however the server answers.
_PACE: Final = 0.5
#: Seconds between two loads of the whole tree: a million nodes are some 200 MB.
_LOADS: Final = 60.0
#: Seconds between two looks for a new login, once the session has ended.
_LOGIN: Final = 5.0


class TreeListener(Protocol):
    """Is told what changed."""

    def changed(self, moved: list[Moved]) -> None: ...

    def changed_wholly(self) -> None: ...


#: Gives the query of a newer login than the one that is used; None if there is none.
Renew = Callable[[], Awaitable[Mapping[str, str] | None]]


class MegaFeed:
    """See the module.

    state: "live", "expired" (the session has ended), "behind" (the feed does not answer).
    """

    def __init__(
        self,
        api: ApiChannel,
        table: NodeTable,
        owner: TreeOwner,
        keys: NodeKeys,
        listener: TreeListener,
        renew: Renew,
    ) -> None:
        self._api = api
        self._table = table
        self._owner = owner
        self._keys = keys
        self._listener = listener
        self._renew = renew
        self._loaded = float("-inf")
        self.state = "live"
        self.trouble = ""
        self.packets = 0

    async def run(self) -> None:
        """Follow, for ever."""
        wait = 0.0
        while True:
            try:
                await self._round()
                self.state, self.trouble, wait = "live", "", 0.0
            except TreeStale:
                await self._reload()
            except SessionExpired as exc:
                await self._wait_for_login(exc)
            except MegafsError as exc:
                wait = min(max(_FIRST, 2 * wait), _MOST)
                self._note("behind", str(exc))
                await trio.sleep(wait)

    async def _round(self) -> None:
        begin = trio.current_time()
        answer = await self._api.feed(str(self._table.get("sn")))
        address = answer.get("w")
        if isinstance(address, str):
            await self._api.wait(address)
            await trio.sleep_until(begin + _PACE)
            return
        news = apply_packets(self._table, self._keys, answer)
        self.packets += 1
        if news.moved:
            self._listener.changed(news.moved)
        if news.stale:
            await self._reload()

    async def _reload(self) -> None:
        """Load the whole tree; the old one is shown until the new one is complete."""
        await trio.sleep_until(self._loaded + _LOADS)
        self._loaded = trio.current_time()
        log.info("the tree at MEGA changed too much: loading it anew")
        try:
            self._keys = await load_tree(self._api, self._table, self._owner)
        except Unavailable as exc:
            self._note("behind", str(exc))
            return
        self._listener.changed_wholly()

    async def _wait_for_login(self, exc: StoreError) -> None:
        self._note("expired", str(exc))
        while True:
            query = await self._renew()
            if query is not None:
                log.info("there is a new session with MEGA")
                self._api.set_query(query)
                return
            await trio.sleep(_LOGIN)

    def _note(self, state: str, text: str) -> None:
        if self.trouble != text:
            log.warning("%s; what is here is shown, and may be old", text)
        self.state, self.trouble = state, text
