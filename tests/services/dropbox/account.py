"""One account's files, as Dropbox keeps them: paths without case, revisions, cursors, sessions.

Every change is made under one lock, as in the service, where a namespace has one; so of several
that race for a path, exactly one wins.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

#: Bytes of a block of the content hash, and of what a request may hold.
BLOCK = 4 << 20
PAYLOAD = 150 << 20
MOST_IN_BATCH = 1000
LONGEST_NAME = 255

Json = dict[str, Any]


class ApiError(Exception):
    """An error that the specification has for a route: 409 with a union."""

    def __init__(self, error: Json) -> None:
        self.error = error
        super().__init__(summary(error))


class BadInput(Exception):
    """400: the request is not one that the route knows."""


class TooMany(Exception):
    """429: the lock of the namespace is taken."""


def summary(error: Json) -> str:
    """What the service writes beside an error: "path/conflict/file/..."."""
    words = []
    at: object = error
    while isinstance(at, dict) and ".tag" in at:
        words.append(str(at[".tag"]))
        at = at.get(at[".tag"]) or at.get("reason")
    return "/".join(words) + "/.."


def tag(*words: str, **more: object) -> Json:
    """Nested unions: tag("path", "not_found") is {".tag": "path", "path": {".tag": ...}}."""
    first, *rest = words
    if rest:
        return {".tag": first, first: tag(*rest, **more)}
    return {".tag": first, **more}


def content_hash(data: bytes) -> str:
    blocks = (data[at : at + BLOCK] for at in range(0, len(data), BLOCK))
    return hashlib.sha256(b"".join(hashlib.sha256(b).digest() for b in blocks)).hexdigest()


@dataclass
class Node:
    """A file, or a folder (data is None).  display: its name as it was first given."""

    display: str
    id: str
    data: bytes | None = None
    hash: str = ""
    rev: str = ""
    client_modified: str = ""
    server_modified: str = ""


@dataclass
class Session:
    data: bytearray = field(default_factory=bytearray)
    closed: bool = False
    #: Of a concurrent session: where each piece begins.
    pieces: dict[int, bytes] | None = None


@dataclass
class Cursor:
    """rest: what the first listing has still to give.  at: the change it has seen last."""

    path: str
    recursive: bool
    include_deleted: bool
    limit: int
    rest: list[Json]
    at: int


class Account:
    """Knobs: quota (bytes, None for none); write_seconds, how long a write holds the namespace's
    lock; most_waiting, how many may wait for it before others are told too_many_write_operations;
    team, whether the space belongs to a team; async_deletes, how often delete_batch/check says
    "in_progress".
    """

    def __init__(self) -> None:
        self.quota: int | None = None
        self.write_seconds = 0.0
        self.most_waiting: int | None = None
        self.team = False
        self.async_deletes = 1
        self.writes = 0
        self.refused_writes = 0
        #: Changed paths, in order.
        self.changes: list[str] = []
        self.nodes: dict[str, Node] = {}
        self.sessions: dict[str, Session] = {}
        self.cursors: dict[str, Cursor] = {}
        self.jobs: dict[str, list[Any]] = {}
        self.changed = threading.Condition()
        self._turn = threading.Lock()
        self._waiting = 0
        self._numbers = itertools.count(1)

    # Paths

    def key(self, path: str) -> str:
        """The key of a path, which may be an id or a revision too."""
        if path.startswith(("id:", "rev:")):
            wanted, _, rest = path.partition("/")
            for key, node in self.nodes.items():
                if wanted in (node.id, f"rev:{node.rev}"):
                    return key + ("/" + rest.lower() if rest else "")
            return "/\0"  # nobody has it
        if path and not path.startswith("/"):
            raise BadInput(
                f"path: {path!r} did not match pattern '(/(.|[\\r\\n])*)|(ns:.*)|(id:.*)'"
            )
        # Slashes too many do not matter: rclone asks for "//folder", and lives with it.
        return "".join("/" + part for part in path.lower().split("/") if part)

    def metadata(self, key: str, *, tagged: bool = True) -> Json:
        node = self.nodes[key]
        common: Json = {
            "name": node.display,
            "id": node.id,
            "path_lower": key,
            "path_display": self._display(key),
        }
        if node.data is None:
            return {".tag": "folder", **common} if tagged else common
        made = {
            **common,
            "client_modified": node.client_modified,
            "server_modified": node.server_modified,
            "rev": node.rev,
            "size": len(node.data),
            "is_downloadable": True,
            "content_hash": node.hash,
        }
        return {".tag": "file", **made} if tagged else made

    def _display(self, key: str) -> str:
        parts = key.split("/")[1:]
        return "".join(
            "/" + self.nodes["/" + "/".join(parts[: i + 1])].display for i in range(len(parts))
        )

    # Writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the namespace's lock."""
        with self.changed:
            if self.most_waiting is not None and self._waiting > self.most_waiting:
                self.refused_writes += 1
                raise TooMany
            self._waiting += 1
        try:
            with self._turn:
                if self.write_seconds:
                    time.sleep(self.write_seconds)
                with self.changed:
                    self.writes += 1
                    yield
                    self.changed.notify_all()
        finally:
            with self.changed:
                self._waiting -= 1

    @property
    def used(self) -> int:
        return sum(len(node.data) for node in self.nodes.values() if node.data is not None)

    def commit(self, info: Json, data: bytes) -> Json:
        """Save a file; the lock is held.  Raises ApiError(WriteError)."""
        path, mode = str(info["path"]), info.get("mode", "add")
        how = mode if isinstance(mode, str) else mode[".tag"]
        strict = bool(info.get("strict_conflict"))
        key = self.key(path)
        display = path.rstrip("/").rpartition("/")[2]
        self._check_name(path)
        digest = content_hash(data)
        old = self.nodes.get(key)
        for above in _above(key):
            if above in self.nodes and self.nodes[above].data is not None:
                raise ApiError(tag("conflict", "file_ancestor"))
        conflict = ""
        if old is not None and old.data is None:
            conflict = "folder"
        elif old is not None and how != "overwrite":
            same = old.hash == digest and not strict
            if how == "update" and old.rev == mode["update"]:
                pass
            elif same:
                return self.metadata(key)
            else:
                conflict = "file"
        elif old is None and how == "update" and strict:
            conflict = "file"
        if conflict and not info.get("autorename"):
            raise ApiError(tag("conflict", conflict))
        if conflict:
            stem, dot, ending = display.partition(".")
            number = next(n for n in itertools.count(1)
                          if f"{key[: -len(display)]}{stem} ({n}){dot}{ending}".lower()
                          not in self.nodes)  # fmt: skip
            display = f"{stem} ({number}){dot}{ending}"
            key = f"{key.rpartition('/')[0]}/{display.lower()}"
            old = None
        freed = len(old.data) if old is not None and old.data is not None else 0
        if self.quota is not None and self.used - freed + len(data) > self.quota:
            raise ApiError(tag("insufficient_space"))
        self._make_folders(key, path)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.nodes[key] = Node(
            old.display if old is not None else display,
            old.id if old is not None else self._id(),
            bytes(data),
            digest,
            f"{next(self._numbers):09x}",
            info.get("client_modified") or now,
            now,
        )
        self.changes.append(key)
        return self.metadata(key)

    def make_folder(self, path: str, autorename: bool) -> Json:
        self._check_name(path)
        key = self.key(path)
        if key in self.nodes and not autorename:
            kind = "folder" if self.nodes[key].data is None else "file"
            raise ApiError(tag("path", "conflict", kind))
        if key in self.nodes:
            path = next(p for n in itertools.count(1) if (p := f"{path} ({n})").lower()
                        not in self.nodes)  # fmt: skip
            key = self.key(path)
        for above in _above(key):
            if above in self.nodes and self.nodes[above].data is not None:
                raise ApiError(tag("path", "conflict", "file_ancestor"))
        self._make_folders(key + "/x", path + "/x")
        return self.metadata(key, tagged=False)

    def remove(self, path: str, parent_rev: str | None = None) -> Json:
        key = self.key(path)
        if key not in self.nodes:
            raise ApiError(tag("path_lookup", "not_found"))
        if parent_rev is not None and self.nodes[key].rev != parent_rev:
            raise ApiError(tag("path_write", "conflict", "file"))
        gone = self.metadata(key)
        for each in [k for k in self.nodes if k == key or k.startswith(key + "/")]:
            del self.nodes[each]
        self.changes.append(key)
        return gone

    def move(self, source: str, target: str, autorename: bool, *, copy: bool = False) -> Json:
        old, new = self.key(source), self.key(target)
        if old not in self.nodes:
            raise ApiError(tag("from_lookup", "not_found"))
        if new in self.nodes:
            if not autorename:
                kind = "folder" if self.nodes[new].data is None else "file"
                raise ApiError(tag("to", "conflict", kind))
            target = next(p for n in itertools.count(1) if (p := f"{target} ({n})").lower()
                          not in self.nodes)  # fmt: skip
            new = self.key(target)
        if new.startswith(old + "/"):
            raise ApiError(tag("cant_move_folder_into_itself"))
        self._make_folders(new, target)
        for each in [k for k in self.nodes if k == old or k.startswith(old + "/")]:
            node = self.nodes[each] if copy else self.nodes.pop(each)
            made = Node(**vars(node))
            if each == old:
                made.display = target.rpartition("/")[2]
            if copy:
                made.id, made.rev = self._id(), f"{next(self._numbers):09x}"
            self.nodes[new + each[len(old) :]] = made
            self.changes += [each, new + each[len(old) :]]
        return self.metadata(new)

    def _make_folders(self, key: str, path: str) -> None:
        parts, shown = key.split("/")[1:-1], path.split("/")[1:-1]
        for i in range(len(parts)):
            above = "/" + "/".join(parts[: i + 1])
            if above not in self.nodes:
                self.nodes[above] = Node(shown[i], self._id())
                self.changes.append(above)

    def _check_name(self, path: str) -> None:
        last = path.rpartition("/")[2]
        if not path.startswith("/") or "//" in path or not last:
            raise ApiError(tag("malformed_path"))
        if any(len(part) > LONGEST_NAME for part in path.split("/")):
            raise ApiError(tag("malformed_path"))
        for part in path.split("/")[1:]:
            if part in (".", "..") or part.endswith((" ", ".")) or set('\\:?*"|<>') & set(part):
                raise ApiError(tag("disallowed_name"))
            if part.lower() in ("desktop.ini", "thumbs.db", ".dropbox", ".dropbox.attr"):
                raise ApiError(tag("disallowed_name"))

    def _id(self) -> str:
        return f"id:{secrets.token_urlsafe(16)}"

    # Listing

    def list_folder(self, path: str, recursive: bool, include_deleted: bool, limit: int) -> str:
        """Begin a listing; return its cursor."""
        key = self.key(path)
        if key and key not in self.nodes:
            raise ApiError(tag("path", "not_found"))
        if key and self.nodes[key].data is not None:
            raise ApiError(tag("path", "not_folder"))
        found = [self.metadata(k) for k in sorted(self.nodes) if _within(k, key, recursive)]
        if recursive and key:  # the folder itself is among them, as in the service
            found.insert(0, self.metadata(key))
        return self.keep(Cursor(key, recursive, include_deleted, limit, found, len(self.changes)))

    def keep(self, cursor: Cursor) -> str:
        name = "AA" + secrets.token_urlsafe(48)
        self.cursors[name] = cursor
        return name

    def page(self, name: str) -> Json:
        """Return the next page of a listing, or what has changed since."""
        cursor = self._cursor(name)
        fresh = Cursor(**vars(cursor))
        if not fresh.rest:
            seen = []
            for key in self.changes[fresh.at :]:
                if _within(key, fresh.path, fresh.recursive) and key not in seen:
                    seen.append(key)
            fresh.at = len(self.changes)
            fresh.rest = [
                self.metadata(key) if key in self.nodes
                else {".tag": "deleted", "name": key.rpartition("/")[2], "path_lower": key,
                      "path_display": key}
                for key in seen
            ]  # fmt: skip
        entries, fresh.rest = fresh.rest[: fresh.limit], fresh.rest[fresh.limit :]
        return {"entries": entries, "cursor": self.keep(fresh), "has_more": bool(fresh.rest)}

    def latest(self, name: str) -> str:
        fresh = Cursor(**vars(self._cursor(name)))
        fresh.rest, fresh.at = [], len(self.changes)
        return self.keep(fresh)

    def has_news(self, name: str) -> bool:
        cursor = self._cursor(name)
        return bool(cursor.rest) or any(
            _within(key, cursor.path, cursor.recursive) for key in self.changes[cursor.at :]
        )

    def _cursor(self, name: str) -> Cursor:
        if not name.startswith("AA"):
            raise BadInput("cursor: not a cursor")
        if name not in self.cursors:
            raise ApiError(tag("reset"))
        return self.cursors[name]

    # For tests

    def files(self) -> dict[str, bytes]:
        """Every file, by its path as it was given."""
        with self.changed:
            return {
                self._display(key): node.data
                for key, node in sorted(self.nodes.items())
                if node.data is not None
            }

    def forget_cursors(self) -> None:
        """As the service may do at any time."""
        with self.changed:
            self.cursors.clear()


def _above(key: str) -> list[str]:
    parts = key.split("/")[1:-1]
    return ["/" + "/".join(parts[: i + 1]) for i in range(len(parts))]


def _within(key: str, folder: str, recursive: bool) -> bool:
    if not key.startswith(folder + "/"):
        return False
    return recursive or "/" not in key[len(folder) + 1 :]
