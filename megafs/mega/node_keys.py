"""Which key opens a node, and what it then says of itself."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from megafs.mega.ciphers import (
    FILE_KEY,
    FOLDER_KEY,
    Unwrapper,
    attributes_key,
    decode,
    mtime_of,
    open_attributes,
    wrap,
)
from megafs.mega.names import plain_name

FILE: Final = 0
FOLDER: Final = 1
ROOT: Final = 2
INBOX: Final = 3
RUBBISH: Final = 4

#: The last second that a node's time may be: 2262-04-11, as a file's (tree/inode.py).
_TIME_MOST: Final = 9_223_372_036


class OpenedNode(NamedTuple):
    """key: None if no key that is known opens it.  mtime: seconds since 1970.

    name: as `plain_name` makes it.
    """

    handle: str
    parent: str
    kind: int
    size: int
    mtime: int
    key: bytes | None
    name: bytes


class NodeKeys:
    """The keys that open nodes, by the handle that stands before a wrapped key.

    A user's handle: the master key.  A shared folder's: its share key.
    """

    def __init__(self) -> None:
        self._open: dict[str, Unwrapper] = {}
        #: The keys of shared folders.
        self.shares: dict[str, bytes] = {}
        self._any: Unwrapper | None = None

    def add_for_all(self, key: bytes) -> None:
        """The key of a folder's link: whatever stands before a wrapped key, it is meant."""
        self._any = Unwrapper(key)

    def add(self, handle: str, key: bytes) -> None:
        self._open[handle] = Unwrapper(key)

    def add_share(self, handle: str, key: bytes) -> None:
        """The key of a shared folder: it opens every node whose key is wrapped for that share."""
        self.shares[handle] = key
        self.add(handle, key)

    def add_own_share(self, master: bytes, entry: object) -> None:
        """An element of `ok`: the key of a folder that the account shares.

        Its proof shows that this account made the entry, not the server.
        """
        if not isinstance(entry, dict):
            return
        handle, proof, wrapped = entry.get("h"), entry.get("ha"), entry.get("k")
        if not (isinstance(handle, str) and isinstance(proof, str) and isinstance(wrapped, str)):
            return
        if len(handle) != 8 or not handle.isascii():
            return
        try:
            if not hmac.compare_digest(decode(proof), wrap(master, (handle + handle).encode())):
                return
            key = Unwrapper(master)(decode(wrapped))
        except ValueError:
            return
        if len(key) == FOLDER_KEY:
            self.add_share(handle, key)

    def add_inbound_share(self, master: bytes, node: Mapping[str, Any]) -> None:
        """A node with `sk`: a folder that another account shares with this one."""
        handle, wrapped = node.get("h"), node.get("sk")
        if not (isinstance(handle, str) and isinstance(wrapped, str)):
            return
        try:
            key = Unwrapper(master)(decode(wrapped))
        except ValueError:
            return
        if len(key) == FOLDER_KEY:  # longer: sealed with RSA, by clients from before 2013
            self.add_share(handle, key)

    def node_key(self, wrapped: object, kind: int) -> bytes | None:
        """The key of a node: of "HANDLE:KEY/HANDLE:KEY", the first that can be opened."""
        if not isinstance(wrapped, str):
            return None
        for part in wrapped.split("/"):
            handle, colon, text = part.partition(":")
            unwrap = self._open.get(handle, self._any)
            if not colon or unwrap is None:
                continue
            try:
                key = unwrap(decode(text))
            except ValueError:
                continue
            if len(key) == (FILE_KEY if kind == FILE else FOLDER_KEY):
                return key
        return None

    def opened(self, node: Mapping[str, Any]) -> OpenedNode | None:
        """*node* as the API sends it, opened as far as the keys reach; None if it is no node."""
        handle, parent, kind = node.get("h"), node.get("p", ""), node.get("t")
        if not is_handle(handle) or kind not in (FILE, FOLDER, ROOT, INBOX, RUBBISH):
            return None
        size, made = node.get("s", 0), node.get("ts", 0)
        key: bytes | None = None
        name, mtime = b"", made if isinstance(made, int) else 0
        if kind in (FILE, FOLDER):
            key = self.node_key(node.get("k"), kind)
            attributes = _attributes(key, node.get("a"))
            if attributes is None:
                key = None
            else:
                name = plain_name(attributes.get("n"))
                said = mtime_of(attributes.get("c"))
                mtime = mtime if said is None else said
        return OpenedNode(
            str(handle),
            parent if is_handle(parent) else "",
            int(kind),
            size if isinstance(size, int) and 0 <= size < 1 << 62 else 0,
            min(max(mtime, 0), _TIME_MOST),
            key,
            name,
        )


def renamed(
    handle: str, parent: str, kind: int, size: int, mtime: int, key: bytes, attributes: object
) -> OpenedNode | None:
    """The node with other attributes; None if its key does not open them."""
    found = _attributes(key, attributes)
    if found is None:
        return None
    said = mtime_of(found.get("c"))
    mtime = mtime if said is None else min(said, _TIME_MOST)
    return OpenedNode(handle, parent, kind, size, mtime, key, plain_name(found.get("n")))


def is_handle(text: object) -> bool:
    """Whether *text* is the handle of a node: 6 bytes, not all of them zero."""
    if not isinstance(text, str) or len(text) != 8:
        return False
    try:
        handle = decode(text)
    except ValueError:
        return False
    return len(handle) == 6 and any(handle)


def _attributes(key: bytes | None, closed: object) -> dict[str, Any] | None:
    if key is None or not isinstance(closed, str):
        return None
    try:
        return open_attributes(attributes_key(key), decode(closed))
    except ValueError:
        return None
