"""The bytes of files, by range, from MEGA's storage servers.

The API names an address for a file, good for a while: 403 or 404 means that another is to be asked
for.  Ranges stand in the path.  509 means that the transfer quota of the account, or of this
address on the network, is used up: nothing more is asked until it says there is some again.

What comes is ciphertext, and no part of it can be verified: only the whole file has a MAC.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

import trio
from msgspec import Struct

from megafs import clock
from megafs.errors import Missing, Unavailable
from megafs.mega.api import ApiChannel, origin_and_target
from megafs.mega.errors import error_for, quota_used
from megafs.stores.http.session import Response, Session, Timeouts

log = logging.getLogger(__name__)

#: Connections to one storage server.
_CONNECTIONS: Final = 6
#: Storage servers with connections kept open.
_SERVERS: Final = 16
#: Addresses of files that are remembered.
_ADDRESSES: Final = 4096
#: Seconds without a byte of an answer (the SDK's own limit).
_READ: Final = 60.0
#: Seconds of waiting where X-MEGA-Time-Left does not say.
_UNSAID: Final = 3600.0
#: Seconds before the next try, by status.
_PAUSE: Final = {429: 0.5, 503: 5.0}
#: So often one range asks for a new address.
_RENEWALS: Final = 3


class FileRef(Struct, frozen=True):
    """A file as the API knows it: by its node's handle, or by that of its public link."""

    handle: str
    public: bool = False

    @property
    def selector(self) -> dict[str, str]:
        return {"p" if self.public else "n": self.handle}


class FoundFile(Struct, frozen=True):
    """What the API says of a file.  attributes: closed, in base64."""

    size: int
    attributes: str
    address: str


class FileContents:
    """See the module.  patience: seconds for which a range is tried."""

    def __init__(self, api: ApiChannel, *, patience: float = 60.0) -> None:
        self._api = api
        self._patience = patience
        self._servers: OrderedDict[str, Session] = OrderedDict()
        self._addresses: OrderedDict[FileRef, str] = OrderedDict()
        self._asking: dict[FileRef, trio.Lock] = {}
        #: When there is transfer quota again, on trio's clock; in the past while there is.
        self._used_up_until = float("-inf")
        self.received = 0
        self.requests = 0

    @property
    def quota_left_in(self) -> float:
        """Seconds until there is transfer quota again; 0 while there is."""
        return max(self._used_up_until - trio.current_time(), 0.0)

    async def find(self, file: FileRef) -> FoundFile:
        """Ask the API for a file, and remember where its bytes are."""
        answer = await self._api.call({"a": "g", "g": 1, "ssl": 2, **file.selector}, in_turn=False)
        found = _found(answer)
        if found.address:
            self._addresses[file] = found.address
            while len(self._addresses) > _ADDRESSES:
                self._addresses.popitem(last=False)
        return found

    async def get(self, file: FileRef, start: int, length: int) -> bytes:
        """The ciphertext [start, start+length), which must lie within the file."""
        deadline = trio.current_time() + self._patience
        renewals = 0
        wait = 0.0
        while True:
            await self._while_used_up(deadline)
            address = self._addresses.get(file) or await self._address(file)
            base, path = origin_and_target(address, local=self._api.is_local)
            first = 0.3
            try:
                self.requests += 1
                reply = await self._server(base).request(
                    "GET", f"{path}/{start}-{start + length - 1}", {}, limit=length
                )
                if reply.status in (200, 206) and len(reply.body) == length and not reply.more:
                    self.received += length
                    return reply.body
                if reply.status in (403, 404):
                    if self._addresses.get(file) == address:
                        del self._addresses[file]
                    renewals += 1
                    if renewals <= _RENEWALS:
                        continue
                    raise Missing(f"MEGA's storage servers do not have this ({reply.status})")
                if reply.status == 509:
                    self._note_quota(reply)
                    continue
                first = _PAUSE.get(reply.status, first)
                raise Unavailable(
                    "a storage server of MEGA sent another range than was asked for"
                    if reply.status in (200, 206)
                    else f"a storage server of MEGA is busy (HTTP {reply.status})",
                    busy=reply.status in (429, 500, 503),
                )
            except Unavailable:
                wait = min(max(first, 2 * wait), 30.0)
                pause = wait + clock.uniform(0, wait / 2)
                if trio.current_time() + pause > deadline:
                    raise
                await trio.sleep(pause)

    async def _address(self, file: FileRef) -> str:
        """Ask where a file is; once for all who want to know."""
        lock = self._asking.setdefault(file, trio.Lock())
        try:
            async with lock:
                if file not in self._addresses:
                    found = await self.find(file)
                    if not found.address:
                        raise Unavailable("MEGA names no address for this file")
                return self._addresses[file]
        finally:
            if not lock.locked():
                self._asking.pop(file, None)

    def _note_quota(self, reply: Response) -> None:
        try:
            left = float(reply.headers.get("x-mega-time-left", ""))
        except ValueError:
            left = 0.0
        if not 0 < left <= 7 * 86400:
            left = _UNSAID
        self._used_up_until = trio.current_time() + left
        log.warning("%s", quota_used(left))

    async def _while_used_up(self, deadline: float) -> None:
        left = self.quota_left_in
        if left <= 0:
            return
        if trio.current_time() + left > deadline:
            raise quota_used(left)
        await trio.sleep(left)

    def _server(self, base: str) -> Session:
        session = self._servers.get(base)
        if session is None:
            session = Session(base, connections=_CONNECTIONS, timeouts=Timeouts(read=_READ))
            self._servers[base] = session
        self._servers.move_to_end(base)
        return session

    async def trim(self) -> None:
        """Close connections to servers that nothing came from lately."""
        while len(self._servers) > _SERVERS:
            _, session = self._servers.popitem(last=False)
            await session.aclose()

    async def aclose(self) -> None:
        while self._servers:
            _, session = self._servers.popitem()
            await session.aclose()


def _found(answer: Mapping[str, Any] | Any) -> FoundFile:
    if not isinstance(answer, dict):
        raise Unavailable("MEGA's answer about a file is not understood")
    size, attributes, address = answer.get("s"), answer.get("at", ""), answer.get("g", "")
    refused = answer.get("e")
    if isinstance(refused, int) and refused < 0:
        raise error_for(refused)
    if not isinstance(size, int) or size < 0 or not isinstance(attributes, str):
        raise Unavailable("MEGA's answer about a file is not understood")
    if isinstance(address, list):  # pieces for a RAID of servers, which was not asked for
        address = ""
    return FoundFile(size, attributes, address if isinstance(address, str) else "")
