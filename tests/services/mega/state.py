"""What MEGA's servers know: accounts, nodes, shares, links, and the feed of what changed.

One lock for everything, as an account has one order of changes.  Contents are ciphertext; the
servers never see a key that is not wrapped.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.services.mega import reference as client

FILE, FOLDER, ROOT, INBOX, RUBBISH = range(5)


class Refusal(Exception):
    """A command's answer is this negative number."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Account:
    """keys: what only the account's owner knows, for tests that act as that owner."""

    mail: str
    handle: str
    version: int
    salt: bytes
    user_hash: str
    wrapped_master: bytes
    wrapped_private: bytes
    master: bytes
    totp_secret: bytes | None = None
    blocked: bool = False
    quota: int = 50 * 10**9
    share_keys: dict[str, tuple[str, str]] = field(default_factory=dict)  # node: (ha, ok)
    packets: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # (node, packet)
    forgotten: int = 0  # packets before this number are no longer kept


@dataclass
class Node:
    handle: str
    parent: str
    owner: str
    kind: int
    attributes: str
    key: str = ""  # wrapped for the owner
    content: bytes = b""
    created: int = 1_357_000_000
    shared_keys: dict[str, str] = field(default_factory=dict)  # share: key wrapped for it


class State:
    """See the module."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.accounts: dict[str, Account] = {}
        self.nodes: dict[str, Node] = {}
        self.children: dict[str, list[str]] = {}
        self.links: dict[str, str] = {}  # public handle: node
        self.sessions: dict[str, str] = {}  # sid: mail
        self.inbound: dict[str, list[tuple[str, str]]] = {}  # mail: [(node, key wrapped for it)]

    # Accounts

    def add_account(
        self, mail: str, password: str, *, version: int = 2, totp: bytes | None = None
    ) -> Account:
        """An account as its owner's client would have made it."""
        salt, master = os.urandom(16), os.urandom(16)
        if version == 2:
            key, user_hash = client.password_keys_v2(password, salt)
        else:
            key = client.password_key_v1(password)
            user_hash = client.user_hash_v1(mail, key)
        private = client.packed_private_key(client.private_key())
        account = Account(
            mail,
            client.b64(os.urandom(8)),
            version,
            salt,
            user_hash,
            client.ecb(key, master),
            client.ecb(master, private),
            master,
            totp,
        )
        with self.lock:
            self.accounts[mail] = account
            for kind in (ROOT, INBOX, RUBBISH):
                self._place(Node(self.handle(), "", account.handle, kind, ""))
        return account

    def owner(self, node: Node) -> Account:
        return next(a for a in self.accounts.values() if a.handle == node.owner)

    def session(self, account: Account) -> bytes:
        """A new session id: 43 bytes."""
        sid = bytes([1 + os.urandom(1)[0] % 255]) + os.urandom(15)
        sid += account.handle.encode() + os.urandom(16)
        with self.lock:
            self.sessions[client.b64(sid)] = account.mail
        return sid

    def account_of(self, sid: str) -> Account:
        with self.lock:
            mail = self.sessions.get(sid)
            if mail is None:
                raise Refusal(-15)
            account = self.accounts[mail]
            if account.blocked:
                raise Refusal(-16)
            return account

    # Nodes

    def handle(self) -> str:
        return client.b64(os.urandom(6))

    def _place(self, node: Node) -> None:
        self.nodes[node.handle] = node
        self.children.setdefault(node.parent, []).append(node.handle)

    def root(self, account: Account, kind: int = ROOT) -> Node:
        return next(n for n in self.nodes.values() if n.owner == account.handle and n.kind == kind)

    def node(self, handle: str) -> Node:
        try:
            return self.nodes[handle]
        except KeyError:
            raise Refusal(-9) from None

    def below(self, handle: str) -> Iterator[Node]:
        """The node and everything below it; parents first."""
        waiting = [handle]
        while waiting:
            at = waiting.pop()
            yield self.nodes[at]
            waiting.extend(reversed(self.children.get(at, ())))

    def shares_above(self, handle: str) -> Iterator[str]:
        """The shared folders that a node lies in, or is."""
        links = set(self.links.values())
        shared = {node for given in self.inbound.values() for node, _ in given}
        while handle:
            if handle in links or handle in shared:
                yield handle
            handle = self.nodes[handle].parent

    def add(self, node: Node) -> Node:
        with self.changed:
            self.node(node.parent)
            self._place(node)
            self._tell(node, {"a": "t", "t": node.handle})
            return node

    def change_attributes(self, handle: str, attributes: str) -> None:
        with self.changed:
            node = self.node(handle)
            node.attributes = attributes
            self._tell(node, {"a": "u", "n": handle, "u": node.owner, "at": attributes})

    def move(self, handle: str, parent: str) -> None:
        with self.changed:
            node, _ = self.node(handle), self.node(parent)
            if any(each.handle == parent for each in self.below(handle)):
                raise Refusal(-10)
            self._tell(node, {"a": "d", "n": handle, "m": 1})
            self.children[node.parent].remove(handle)
            node.parent = parent
            self.children.setdefault(parent, []).append(handle)
            self._tell(node, {"a": "t", "t": handle})

    def delete(self, handle: str) -> None:
        with self.changed:
            node = self.node(handle)
            self._tell(node, {"a": "d", "n": handle})
            for each in list(self.below(handle)):
                self.nodes.pop(each.handle)
                self.children.pop(each.handle, None)
            self.children[node.parent].remove(handle)

    def _tell(self, node: Node, packet: dict[str, Any]) -> None:
        """Put a packet into the feed of the node's owner."""
        self.owner(node).packets.append((node.handle, packet))
        self.changed.notify_all()

    # What is sent

    def shown(self, node: Node, share: str = "", viewer: Account | None = None) -> dict[str, Any]:
        """A node as `f` and the feed have it.  share: the link or share it is seen through."""
        if share:
            keys = f"{share}:{node.shared_keys[share]}" if share in node.shared_keys else ""
        else:
            parts = [f"{node.owner}:{node.key}"] if node.key else []
            parts += [f"{at}:{key}" for at, key in node.shared_keys.items()]
            keys = "/".join(parts)
        made: dict[str, Any] = {
            "h": node.handle,
            "p": node.parent,
            "u": node.owner,
            "t": node.kind,
            "a": node.attributes,
            "k": keys,
            "ts": node.created,
        }
        if node.kind == FILE:
            made["s"] = len(node.content)
        return made
