"""The API and the storage servers over HTTP, and what the tests make them do wrong.

    with MegaServer() as mega:
        owner = mega.add_account("a@example.org", "password")
        file = owner.put("/Folder/name.txt", b"...", mtime=1_700_000_000)
        link = owner.link(file)
        ... api=mega.url ...

Faults come before an answer, each once unless said otherwise:

    mega.refuse("g", -3, -4)         the next two requests with that command get these codes
    mega.fail("g", 500, 503)         ... these statuses of HTTP
    mega.lose_reply("g")             it is carried out, and the connection closed without an answer
    mega.gates["f"] = Event()        the next answer to that command waits until it is set
    mega.hashcash["us"] = 180        proof of work is asked for, until it is set to None
    mega.transfer_left = 120         the storage servers answer 509
    mega.storage_faults = [503, ...] the storage servers answer with these first
    mega.half_bodies = 2             so many answers of the storage servers end in the middle
    mega.tampered = {handle}         one bit of what is sent of these is turned
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from tests.services.mega import reference as client
from tests.services.mega.state import FILE, FOLDER, ROOT, Account, Node, Refusal, State

_WAIT = 20.0  # seconds that the feed's wait blocks, if nothing happens


class Owner:
    """An account, with what its owner's client can do."""

    def __init__(self, server: MegaServer, account: Account) -> None:
        self._server = server
        self.state = server.state
        self.account = account

    def folder(self, path: str) -> Node:
        """The folder at *path* below the root, made if it is not there."""
        at = self.state.root(self.account)
        for name in [part for part in path.split("/") if part]:
            at = self._child(at, name) or self.make_folder(at, name)
        return at

    def _child(self, parent: Node, name: str) -> Node | None:
        for handle in self.state.children.get(parent.handle, ()):
            node = self.state.nodes[handle]
            if self.name_of(node) == name:
                return node
        return None

    def key_of(self, node: Node) -> bytes:
        return client.ecb(self.account.master, client.unb64(node.key), opening=True)

    def cipher_key(self, node: Node) -> bytes:
        key = self.key_of(node)
        return client.xor(key[:16], key[16:]) if node.kind == FILE else key

    def name_of(self, node: Node) -> str | None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        worker = Cipher(algorithms.AES(self.cipher_key(node)), modes.CBC(bytes(16))).decryptor()
        text = worker.update(client.unb64(node.attributes)).rstrip(b"\0")
        return json.loads(text[4:]).get("n") if text.startswith(b"MEGA") else None

    def make_folder(self, parent: Node, name: str) -> Node:
        key = os.urandom(16)
        return self._add(parent, FOLDER, client.attributes(name, key), key)

    def put(self, path: str, data: bytes, *, mtime: int | None = None) -> Node:
        above, _, name = path.rpartition("/")
        return self.put_in(self.folder(above), name, data, mtime=mtime)

    def put_in(
        self,
        parent: Node,
        name: str,
        data: bytes,
        *,
        mtime: int | None = None,
        attributes: str | None = None,
        created: int = 1_357_000_000,
    ) -> Node:
        """attributes: in place of those that are made of name and mtime."""
        key = os.urandom(16)
        made = client.encrypt_file(data, key, os.urandom(8))
        if attributes is None:
            attributes = client.attributes(name, key, mtime)
        return self._add(parent, FILE, attributes, made.node_key, made.data, created)

    def _add(
        self,
        parent: Node,
        kind: int,
        attributes: str,
        key: bytes,
        content: bytes = b"",
        created: int = 1_357_000_000,
    ) -> Node:
        wrapped = client.b64(client.ecb(self.account.master, key))
        node = Node(
            self.state.handle(),
            parent.handle,
            self.account.handle,
            kind,
            attributes,
            wrapped,
            content,
            created,
        )
        for share in self.state.shares_above(parent.handle):
            node.shared_keys[share] = client.b64(client.ecb(self._share_key(share), key))
        return self.state.add(node)

    def rename(self, node: Node, name: str, mtime: int | None = None) -> None:
        self.state.change_attributes(
            node.handle, client.attributes(name, self.cipher_key(node), mtime)
        )

    def move(self, node: Node, parent: Node) -> None:
        self.state.move(node.handle, parent.handle)

    def delete(self, node: Node) -> None:
        self.state.delete(node.handle)

    def _share_key(self, handle: str) -> bytes:
        if handle not in self.account.share_keys:
            key = os.urandom(16)
            proof = client.ecb(self.account.master, (handle + handle).encode())
            self.account.share_keys[handle] = (
                client.b64(proof),
                client.b64(client.ecb(self.account.master, key)),
            )
        return client.ecb(
            self.account.master, client.unb64(self.account.share_keys[handle][1]), opening=True
        )

    def _share(self, node: Node) -> bytes:
        key = self._share_key(node.handle)
        for each in self.state.below(node.handle):
            each.shared_keys[node.handle] = client.b64(client.ecb(key, self.key_of(each)))
        return key

    def link_parts(self, node: Node) -> tuple[str, bytes]:
        """The public handle of *node*, and the key that its link carries."""
        with self.state.lock:
            key = self.key_of(node) if node.kind == FILE else self._share(node)
            public = self.state.handle()
            self.state.links[public] = node.handle
            return public, key

    def link(self, node: Node) -> str:
        public, key = self.link_parts(node)
        kind = "file" if node.kind == FILE else "folder"
        return f"https://mega.nz/{kind}/{public}#{client.b64(key)}"

    def old_link(self, node: Node) -> str:
        public, key = self.link_parts(node)
        return f"https://mega.nz/#{'' if node.kind == FILE else 'F'}!{public}!{client.b64(key)}"

    def password_link(self, node: Node, password: str, *, algorithm: int = 2) -> str:
        public, key = self.link_parts(node)
        kind = 1 if node.kind == FILE else 0
        return client.password_link(kind, public, key, password, algorithm=algorithm)

    def share_with(self, node: Node, other: Owner) -> None:
        """An inbound share of *other*, its key wrapped with that account's master key."""
        key = self._share(node)
        wrapped = client.b64(client.ecb(other.account.master, key))
        self.state.inbound.setdefault(other.account.mail, []).append((node.handle, wrapped))

    def session(self) -> str:
        """A session id, without a login."""
        return client.b64(self.state.session(self.account))


class MegaServer:
    """See the module.  url: what a client takes for the API."""

    def __init__(self) -> None:
        self.state = State()
        self.commands: list[str] = []  # every command that was carried out or refused
        self.numbers: list[str] = []  # of every request: its `id`
        self.gates: dict[str, threading.Event] = {}
        self.logins = 0
        self.ranges: list[tuple[str, int, int]] = []  # node, first and last byte asked for
        self.hashcash: dict[str, int | None] = {}
        self.solved = 0
        self.token = os.urandom(48)
        self.transfer_left: int | None = None
        self.storage_faults: list[int] = []
        self.half_bodies = 0
        self.tampered: set[str] = set()
        self.largest_reply = 0
        self.clock: Callable[[], float] = time.time
        self.closing = threading.Event()
        self._faults: dict[str, list[tuple[str, int]]] = {}
        self._replies: dict[tuple[str, str], bytes] = {}
        self._urls: dict[str, str] = {}  # token: node
        self._uploads: dict[str, dict[int, bytes]] = {}
        self._sizes: dict[str, int] = {}
        self._binary: set[str] = set()
        self._done: dict[str, bytes] = {}
        self._httpd = _Http(("127.0.0.1", 0), self)
        self.url = f"http://127.0.0.1:{self._httpd.server_address[1]}"

    def __enter__(self) -> MegaServer:
        self._thread = threading.Thread(target=self._httpd.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.closing.set()
        with self.state.changed:
            self.state.changed.notify_all()
        self._httpd.shutdown()
        self._httpd.server_close()
        self._thread.join(10)

    def add_account(
        self, mail: str, password: str, *, version: int = 2, totp: bytes | None = None
    ) -> Owner:
        return Owner(self, self.state.add_account(mail, password, version=version, totp=totp))

    def owner(self, mail: str) -> Owner:
        return Owner(self, self.state.accounts[mail])

    # Faults

    def refuse(self, command: str, *codes: int) -> None:
        self._faults.setdefault(command, []).extend(("code", code) for code in codes)

    def fail(self, command: str, *statuses: int) -> None:
        self._faults.setdefault(command, []).extend(("status", status) for status in statuses)

    def lose_reply(self, command: str) -> None:
        self._faults.setdefault(command, []).append(("lose", 0))

    def expire_urls(self) -> None:
        """Every address at the storage servers answers 403 from now on."""
        with self.state.lock:
            self._urls.clear()

    def expire_sessions(self) -> None:
        with self.state.changed:
            self.state.sessions.clear()
            self.state.changed.notify_all()

    def forget_packets(self) -> None:
        """Who asks for what happened before now is told to load the whole tree again."""
        with self.state.changed:
            for account in self.state.accounts.values():
                account.forgotten = len(account.packets) + 1
                account.packets.append(("", {"a": "forgotten"}))
            self.state.changed.notify_all()

    def fault_for(self, commands: list[str]) -> tuple[str, int] | None:
        with self.state.lock:
            for command in commands:
                if self._faults.get(command):
                    return self._faults[command].pop(0)
        return None

    # The API

    def reply(self, query: dict[str, str], body: bytes) -> bytes:
        """Carry out the commands of one request; a request that comes again gets the same reply."""
        once = (query.get("sid", query.get("n", "")), query.get("id", ""))
        with self.state.lock:
            if query.get("id") and once in self._replies:
                return self._replies[once]
            try:
                commands = json.loads(body)
                answers = [self._answer(query, command) for command in commands]
                made: Any = answers
            except Refusal as no:
                made = no.code
            text = json.dumps(made).encode()
            if query.get("id") and made != -3:
                self._replies[once] = text
            self.largest_reply = max(self.largest_reply, len(text))
            return text

    def _answer(self, query: dict[str, str], command: dict[str, Any]) -> Any:
        handler = getattr(self, f"_do_{command['a']}", None)
        if handler is None:
            return -2
        try:
            return handler(query, command)
        except Refusal as no:
            if no.code in (-15, -16):
                raise
            return no.code

    def _do_us0(self, query: dict[str, str], command: dict[str, Any]) -> Any:
        account = self.state.accounts.get(command["user"])
        if account is None or account.version == 1:
            return {"v": 1}
        return {"v": 2, "s": client.b64(account.salt)}

    def _do_us(self, query: dict[str, str], command: dict[str, Any]) -> Any:
        if "user" not in command:
            account = self.state.account_of(query.get("sid", ""))
            return {"u": account.handle, "ach": 1}
        self.logins += 1
        account = self.state.accounts.get(command["user"])  # type: ignore[assignment]
        if account is None or account.user_hash != command.get("uh"):
            raise Refusal(-9)
        if account.blocked:
            raise Refusal(-16)
        if account.totp_secret is not None:
            if "mfa" not in command:
                raise Refusal(-26)
            now = self.clock()
            good = {client.totp(account.totp_secret, now + step) for step in (-30, 0, 30)}
            if command["mfa"] not in good:
                raise Refusal(-5)
        sid = self.state.session(account)
        return {
            "k": client.b64(account.wrapped_master),
            "privk": client.b64(account.wrapped_private),
            "csid": client.sealed_session(sid, client.private_key()),
            "u": account.handle,
            "ach": 1,
        }

    def _do_ug(self, query: dict[str, str], command: dict[str, Any]) -> Any:
        account = self.state.account_of(query.get("sid", ""))
        return {
            "u": account.handle,
            "email": account.mail,
            "name": "Test",
            "k": client.b64(account.wrapped_master),
            "s": 1,
        }

    def _do_sml(self, query: dict[str, str], command: dict[str, Any]) -> Any:
        self.state.account_of(query.get("sid", ""))
        del self.state.sessions[query["sid"]]
        return 0

    def _do_uq(self, query: dict[str, str], command: dict[str, Any]) -> Any:
        account = self.state.account_of(query.get("sid", ""))
        used = sum(len(n.content) for n in self.state.nodes.values() if n.owner == account.handle)
        return {"mstrg": account.quota, "cstrg": used, "mxfer": 10**10, "caxfer": 0}

    def _do_f(self, query: dict[str, str], command: dict[str, Any]) -> Any:
        if "n" in query:
            top = self._linked(query["n"])
            if top.kind == FILE:
                raise Refusal(-9)
            nodes = [self.state.shown(n, top.handle) for n in self.state.below(top.handle)]
            return {"f": nodes, "sn": self._sn(self.state.owner(top))}
        account = self.state.account_of(query.get("sid", ""))
        nodes = []
        for kind in (ROOT, 3, 4):
            root = self.state.root(account, kind)
            nodes += [self.state.shown(n) for n in self.state.below(root.handle)]
        for top_handle, wrapped in self.state.inbound.get(account.mail, ()):
            for node in self.state.below(top_handle):
                shown = self.state.shown(node, top_handle)
                if node.handle == top_handle:
                    shown |= {"su": node.owner, "sk": wrapped, "r": 0}
                nodes.append(shown)
        keys = [{"h": h, "ha": ha, "k": k} for h, (ha, k) in account.share_keys.items()]
        links = [
            {"h": h, "ph": ph}
            for ph, h in self.state.links.items()
            if h in self.state.nodes and self.state.nodes[h].owner == account.handle
        ]
        users = [{"u": account.handle, "c": 2, "m": account.mail}]
        made = {"f": nodes, "ok": keys, "s": [], "u": users, "sn": self._sn(account)}
        return made | ({"ph": links} if links else {})

    def _linked(self, public: str) -> Node:
        return self.state.node(self.state.links.get(public, ""))

    def _do_g(self, query: dict[str, str], command: dict[str, Any]) -> Any:
        if "p" in command:
            node = self._linked(command["p"])
        elif "n" in query:
            top = self._linked(query["n"])
            node = self.state.node(command["n"])
            if all(each is not node for each in self.state.below(top.handle)):
                raise Refusal(-11)
        else:
            account = self.state.account_of(query.get("sid", ""))
            node = self.state.node(command["n"])
            given = [h for h, _ in self.state.inbound.get(account.mail, ())]
            if node.owner != account.handle and not set(given) & set(
                self.state.shares_above(node.handle)
            ):
                raise Refusal(-11)
        if node.kind != FILE:
            raise Refusal(-9)
        made: dict[str, Any] = {"s": len(node.content), "at": node.attributes, "tl": 0}
        if command.get("g"):
            token = client.b64(os.urandom(12))
            self._urls[token] = node.handle
            made["g"] = f"{self.url}/dl/{token}"
        return made

    def _do_u(self, query: dict[str, str], command: dict[str, Any]) -> Any:
        account = self.state.account_of(query.get("sid", ""))
        if command["s"] > account.quota:
            raise Refusal(-17)
        token = client.b64(os.urandom(12))
        self._uploads[token] = {}
        self._sizes[token] = command["s"]
        if command.get("v", 1) >= 2:
            self._binary.add(token)
        return {"p": f"{self.url}/ul/{token}"}

    def _do_p(self, query: dict[str, str], command: dict[str, Any]) -> Any:
        account = self.state.account_of(query.get("sid", ""))
        made = []
        for wanted in command["n"]:
            node = Node(
                self.state.handle(),
                command["t"],
                account.handle,
                wanted["t"],
                wanted["a"],
                wanted["k"],
                created=int(self.clock()),
            )
            if node.kind == FILE:
                node.content = self._done.pop(wanted["h"], b"")
            self._take_share_keys(command.get("cr"), node, wanted["h"])
            self.state.add(node)
            made.append(self.state.shown(node))
        return {"f": made}

    def _take_share_keys(self, request: Any, node: Node, called: str) -> None:
        if request:
            shares, names, triples = request
            for at in range(0, len(triples), 3):
                if names[triples[at + 1]] == called:
                    node.shared_keys[shares[triples[at]]] = triples[at + 2]

    def _do_s2(self, query: dict[str, str], command: dict[str, Any]) -> Any:
        account = self.state.account_of(query.get("sid", ""))
        if "ok" in command:
            account.share_keys[command["n"]] = (command["ha"], command["ok"])
        shares, names, triples = command.get("cr", ([], [], []))
        for at in range(0, len(triples), 3):
            node = self.state.node(names[triples[at + 1]])
            node.shared_keys[shares[triples[at]]] = triples[at + 2]
        return {"r": [0]}

    def _do_l(self, query: dict[str, str], command: dict[str, Any]) -> Any:
        self.state.account_of(query.get("sid", ""))
        node = self.state.node(command["n"])
        if command.get("d"):
            for public, handle in list(self.state.links.items()):
                if handle == node.handle:
                    del self.state.links[public]
            return 0
        public = self.state.handle()
        self.state.links[public] = node.handle
        return public

    def _do_a(self, query: dict[str, str], command: dict[str, Any]) -> Any:
        self.state.account_of(query.get("sid", ""))
        self.state.change_attributes(command["n"], command.get("at") or command["attr"])
        return 0

    def _do_m(self, query: dict[str, str], command: dict[str, Any]) -> Any:
        self.state.account_of(query.get("sid", ""))
        self.state.move(command["n"], command["t"])
        return 0

    def _do_d(self, query: dict[str, str], command: dict[str, Any]) -> Any:
        self.state.account_of(query.get("sid", ""))
        self.state.delete(command["n"])
        return 0

    # The feed

    @staticmethod
    def _number(sn: str) -> int:
        return int.from_bytes(client.unb64(sn), "big")

    def _sn(self, account: Account) -> str:
        return client.b64(len(account.packets).to_bytes(8, "big"))

    def feed(self, query: dict[str, str]) -> bytes:
        """What happened after `sn`, or where to wait."""
        with self.state.lock:
            try:
                made = self._feed(query)
            except Refusal as no:
                made = no.code
        return json.dumps(made).encode()

    def _viewer(self, query: dict[str, str]) -> tuple[Account, str]:
        if "n" in query:
            top = self._linked(query["n"])
            return self.state.owner(top), top.handle
        return self.state.account_of(query.get("sid", "")), ""

    def _feed(self, query: dict[str, str]) -> Any:
        account, share = self._viewer(query)
        after = self._number(query["sn"])
        if after < account.forgotten:
            raise Refusal(-6)
        if after >= len(account.packets):
            who = f"n={query['n']}" if share else f"sid={query['sid']}"
            return {"w": f"{self.url}/wait?{who}&after={len(account.packets)}"}
        packets = []
        for handle, packet in account.packets[after:]:
            if packet["a"] == "t":
                if packet["t"] not in self.state.nodes:
                    continue  # deleted since; its "d" follows
                inside = self.state.below(packet["t"])
                nodes = [self.state.shown(n, share, account) for n in inside]
                packets.append({"a": "t", "t": {"f": nodes}, "ou": account.handle})
            elif packet["a"] != "forgotten" and (handle or not share):
                packets.append(packet)
        return {"a": packets, "sn": self._sn(account)}

    def wait(self, query: dict[str, str]) -> None:
        """Block until something happens."""
        deadline = time.monotonic() + _WAIT
        with self.state.changed:
            while not self.closing.is_set() and time.monotonic() < deadline:
                try:
                    account, _ = self._viewer(query)
                except Refusal:
                    return
                if len(account.packets) > int(query["after"]):
                    return
                self.state.changed.wait(0.5)

    # The storage servers

    def download(self, token: str, first: int, last: int) -> tuple[int, bytes]:
        with self.state.lock:
            if self.storage_faults:
                return self.storage_faults.pop(0), b""
            if self.transfer_left is not None:
                return 509, b""
            handle = self._urls.get(token)
            if handle is None or handle not in self.state.nodes:
                return 403, b""
            node = self.state.nodes[handle]
            self.ranges.append((handle, first, last))
            data = bytearray(node.content[first : last + 1])
            if handle in self.tampered and data:
                data[len(data) // 2] ^= 1
            return 200, bytes(data)

    def upload(self, token: str, offset: int, body: bytes) -> bytes:
        with self.state.lock:
            if token not in self._uploads:
                return b"-8"
            pieces = self._uploads[token]
            pieces[offset] = body
            if sum(map(len, pieces.values())) < self._sizes[token]:
                return b""
            content = b"".join(pieces[at] for at in sorted(pieces))
            # The first protocol names what was uploaded by 36 letters, later ones by 36 bytes.
            name = os.urandom(36) if token in self._binary else client.b64(os.urandom(27)).encode()
            self._done[client.b64(name) if token in self._binary else name.decode()] = content
            return name


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], mega: MegaServer) -> None:
        self.mega = mega
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http
    _EMPTY: ClassVar[dict[str, str]] = {}

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle(b"")

    def do_POST(self) -> None:
        self._handle(self.rfile.read(int(self.headers.get("content-length", 0))))

    def _handle(self, body: bytes) -> None:
        mega = self.server.mega
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        path = parts.path
        if path.rstrip("/") == "/cs":
            self._api(mega, query, body)
        elif path.rstrip("/") in ("/sc", "/wsc"):
            fault = mega.fault_for(["sc"])
            if fault is not None and fault[0] == "status":
                self._send(fault[1], b"")
            else:
                reply = str(fault[1]).encode() if fault is not None else mega.feed(query)
                self._send(200, reply)
        elif path == "/wait":
            mega.wait(query)
            self._send(200, b"0")
        elif match := re.fullmatch(r"/dl/([\w-]+)/(\d+)-(\d+)?", path):
            last = int(match[3]) if match[3] else 1 << 62
            status, data = mega.download(match[1], int(match[2]), last)
            headers = {}
            if status == 509:
                headers["X-MEGA-Time-Left"] = str(mega.transfer_left)
            self._send(status, data, headers)
        elif match := re.fullmatch(r"/dl/([\w-]+)", path):
            status, data = mega.download(match[1], 0, 1 << 62)
            self._send(status, data)
        elif match := re.fullmatch(r"/ul/([\w-]+)/(\d+)", path):
            self._send(200, mega.upload(match[1], int(match[2]), body))
        else:
            self._send(404, b"")

    def _api(self, mega: MegaServer, query: dict[str, str], body: bytes) -> None:
        try:
            commands = [str(command["a"]) for command in json.loads(body)]
        except (ValueError, TypeError, KeyError):
            self._send(200, b"-2")
            return
        for command in commands:
            easiness = mega.hashcash.get(command)
            if easiness is not None and not self._worked(mega, easiness):
                challenge = client.b64(mega.token)
                said = f"1:{easiness}:{int(time.time())}:{challenge}"
                self._send(402, b"", {"X-Hashcash": said})
                return
        mega.commands.extend(commands)
        mega.numbers.append(query.get("id", ""))
        for command in commands:
            gate = mega.gates.pop(command, None)
            if gate is not None:
                gate.wait(30)
        fault = mega.fault_for(commands)
        if fault is not None and fault[0] == "status":
            self._send(fault[1], b"")
            return
        reply = str(fault[1]).encode() if fault and fault[0] == "code" else mega.reply(query, body)
        if fault is not None and fault[0] == "lose":
            self.close_connection = True
            self.connection.close()
            return
        self._send(200, reply)

    def _worked(self, mega: MegaServer, easiness: int) -> bool:
        said = self.headers.get("X-Hashcash", "").split(":")
        if len(said) != 3 or said[0] != "1":
            return False
        nonce, token = client.unb64(said[2]), mega.token
        if len(nonce) != 4 or client.unb64(said[1]) != token:
            return False
        if not client.easy_enough(token, nonce, easiness):
            return False
        mega.solved += 1
        return True

    def _send(self, status: int, body: bytes, headers: dict[str, str] = _EMPTY) -> None:
        mega = self.server.mega
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path.startswith("/dl/") and len(body) > 1 and mega.half_bodies > 0:
            mega.half_bodies -= 1
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)
