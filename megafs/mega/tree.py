"""Bring the tree of an account or a folder's link from MEGA, and keep it as MEGA changes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from megafs.concurrency import offload
from megafs.errors import Unavailable
from megafs.mega.api import ApiChannel
from megafs.mega.errors import KeyRefused
from megafs.mega.node_keys import FILE, FOLDER, NodeKeys, OpenedNode, is_handle, renamed
from megafs.mega.node_stream import Item, ReplyScanner
from megafs.mega.node_table import Loader, Moved, NodeTable, handle_of, ino_of
from megafs.secret_struct import SecretStruct

#: Characters of a node that no key opens, which are kept for when one comes.
_RAW: Final = 64 << 10


class TreeOwner(SecretStruct, frozen=True):
    """Whose tree it is.

    key: 16 bytes, the account's master key or that of the folder's link.
    user: the account's handle; "" for a link.
    """

    key: bytes
    user: str = ""

    @property
    def is_account(self) -> bool:
        return bool(self.user)

    def keys(self) -> NodeKeys:
        """The keys to begin with; shares bring others."""
        keys = NodeKeys()
        if self.is_account:
            keys.add(self.user, self.key)
        else:
            keys.add_for_all(self.key)
        return keys


class _TreeReceiver:
    """Takes the answer to `f`: opens the nodes and puts them into the table, in threads."""

    def __init__(self, loader: Loader, owner: TreeOwner, say: Callable[[int], None]) -> None:
        self._loader = loader
        self._owner = owner
        self._say = say
        self._scanner = ReplyScanner()
        self.keys = owner.keys()
        self._sn = ""
        self._top: OpenedNode | None = None  # of a link: the folder that it is for
        loader.begin()

    async def take(self, piece: bytes) -> None:
        await offload(self._take, piece)
        self._say(self._loader.count)

    async def ended(self) -> None:
        self._scanner.close()
        if not self._sn:
            raise Unavailable("the list of nodes that MEGA sends does not say how new it is")
        await offload(self._complete)

    def _take(self, piece: bytes) -> None:
        nodes: list[tuple[OpenedNode, bytes | None]] = []
        shared: set[str] = set()
        for item in self._scanner.feed(piece):
            if item.key == "f" and isinstance(item.value, dict):
                self._take_node(item.value, nodes, shared)
            else:
                self._take_other(item)
        if nodes:
            self._loader.add(nodes, shared)

    def _take_node(
        self,
        node: Mapping[str, Any],
        nodes: list[tuple[OpenedNode, bytes | None]],
        shared: set[str],
    ) -> None:
        if self._owner.is_account and "sk" in node:
            self.keys.add_inbound_share(self._owner.key, node)
            if is_handle(node.get("h")):
                shared.add(str(node["h"]))
        opened = self.keys.opened(node)
        if opened is None:
            return
        if not self._owner.is_account and (self._top is None or _is_top(node)):
            self._top = opened
        nodes.append((opened, raw_node(node) if opened.key is None else None))

    def _take_other(self, item: Item) -> None:
        if item.key == "sn" and isinstance(item.value, str):
            self._sn = item.value
        elif item.key == "ok" and self._owner.is_account:
            self.keys.add_own_share(self._owner.key, item.value)

    def _complete(self) -> None:
        for raw in self._loader.unopened():
            opened = self.keys.opened(json.loads(raw))
            if opened is not None and opened.key is not None:
                self._loader.reopen(opened)
        if not self._owner.is_account:
            if self._top is None or self._top.key is None:
                raise KeyRefused
            self._loader.put("root", ino_of(self._top.handle))
        self._loader.commit(self._sn, self.keys.shares)


def _is_top(node: Mapping[str, Any]) -> bool:
    """Whether *node*, of a link's tree, is the folder that the link is for."""
    return node.get("t") == FOLDER and str(node.get("k", "")).startswith(f"{node.get('h')}:")


def raw_node(node: Mapping[str, Any]) -> bytes | None:
    """What is kept of a node that no key opens."""
    if node.get("t") not in (FILE, FOLDER):
        return None
    text = json.dumps({name: node.get(name) for name in ("h", "p", "t", "s", "ts", "k", "a")})
    return text.encode() if len(text) <= _RAW else None


async def load_tree(
    api: ApiChannel,
    table: NodeTable,
    owner: TreeOwner,
    say: Callable[[int], None] = lambda count: None,
) -> NodeKeys:
    """Load the whole tree into *table*; return the keys that came with it.

    say: called with how many nodes there are so far.  Raises KeyRefused if the key of a link opens
    nothing, and then the table holds what it held.
    """
    receivers: list[_TreeReceiver] = []
    loader = table.loader()
    try:

        def begin() -> _TreeReceiver:
            loader.rollback()
            receivers[:] = [_TreeReceiver(loader, owner, say)]
            return receivers[0]

        await api.stream({"a": "f", "c": 1, "r": 1, "ca": 1}, begin)
    finally:
        loader.close()
    return receivers[0].keys


class TreeNews(SecretStruct, frozen=True):
    """What a round of the feed changed.  stale: the whole tree is to be loaded anew."""

    moved: list[Moved]
    stale: bool = False


def apply_packets(table: NodeTable, keys: NodeKeys, answer: Mapping[str, Any]) -> TreeNews:
    """Bring what the feed told into the table.

    News of shares make the tree stale: keys come with them that open any number of nodes.
    """
    moved: list[Moved] = []
    stale = False
    sn = answer.get("sn")
    packets = answer.get("a")
    if not isinstance(sn, str) or not isinstance(packets, list):
        raise Unavailable("MEGA's feed of changes is not understood")
    for packet in packets:
        if not isinstance(packet, dict):
            continue
        match packet.get("a"):
            case "t":
                moved += _take_nodes(table, keys, packet)
            case "u":
                moved += _take_attributes(table, packet)
            case "d":
                if is_handle(packet.get("n")):
                    moved += table.remove(packet["n"])
            case "s" | "s2":
                stale = True
    table.put("sn", sn)
    return TreeNews(moved, stale)


def _take_nodes(table: NodeTable, keys: NodeKeys, packet: Mapping[str, Any]) -> list[Moved]:
    inside = packet.get("t")
    nodes = inside.get("f") if isinstance(inside, dict) else None
    if not isinstance(nodes, list):
        return []
    opened = []
    for node in nodes:
        if isinstance(node, dict):
            made = keys.opened(node)
            if made is not None:
                opened.append((made, raw_node(node) if made.key is None else None))
    return table.apply(opened)


def _take_attributes(table: NodeTable, packet: Mapping[str, Any]) -> list[Moved]:
    """Another name or time: the node's key is here, its attributes come anew."""
    if not is_handle(packet.get("n")):
        return []
    row = table.find(ino_of(packet["n"]))
    if row is None or row.key is None:
        return []
    made = renamed(
        row.handle,
        handle_of(row.parent),
        row.kind,
        row.size,
        row.mtime,
        row.key,
        packet.get("at"),
    )
    return [] if made is None else table.apply([(made, None)])
