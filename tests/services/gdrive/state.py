"""What an account of the service holds: files, ids, the feed of changes, the room.

One process and one event loop: nothing waits between looking and writing, which is the one lock
that makes an id belong to exactly one file.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

FOLDER = "application/vnd.google-apps.folder"
#: A property's key and value together, and the most properties of one application on a file.
PROPERTY_BYTES = 124
PROPERTIES = 30


class Refusal(Exception):
    """An answer that says no, as Drive words it."""

    def __init__(self, status: int, reason: str, message: str = "") -> None:
        super().__init__(reason)
        self.status, self.reason, self.message = status, reason, message or reason


@dataclass
class FileRecord:
    """One file or folder.  times: seconds since 1970; removed: when it was deleted, 0 for not."""

    id: str
    name: str
    mime: str
    parents: list[str]
    app_properties: dict[str, str]
    content: bytes = b""
    created: float = 0.0
    modified: float = 0.0
    removed: float = 0.0
    trashed: bool = False

    def __post_init__(self) -> None:
        self.md5 = hashlib.md5(self.content).hexdigest()

    def write(self, content: bytes) -> None:
        self.content = content
        self.__post_init__()

    def resource(self) -> dict[str, Any]:
        """As the API shows it."""
        values: dict[str, Any] = {
            "kind": "drive#file",
            "id": self.id,
            "name": self.name,
            "mimeType": self.mime,
            "parents": list(self.parents),
            "trashed": self.trashed,
            "explicitlyTrashed": self.trashed,
            "createdTime": _date(self.created),
            "modifiedTime": _date(self.modified),
            "spaces": ["drive"],
            "capabilities": {"canEdit": True, "canDownload": True},
            "ownedByMe": True,
        }
        if self.app_properties:
            values["appProperties"] = dict(self.app_properties)
        if self.mime != FOLDER:
            values["size"] = str(len(self.content))
            values["md5Checksum"] = self.md5
        return values


@dataclass
class Drive:
    """An account.

    limit: bytes it may hold, None for no limit.  list_lag, change_lag: seconds until a search, or
    the feed, knows of a change.  doubles: an id that is taken is given out again, with 200; whoever
    asks for the file gets the first.  children: the most files in a folder.
    """

    limit: int | None = None
    list_lag: float = 0.0
    change_lag: float = 0.0
    doubles: bool = False
    children: int = 500_000
    files: dict[str, FileRecord] = field(default_factory=dict)
    gone: list[FileRecord] = field(default_factory=list)
    ghosts: list[FileRecord] = field(default_factory=list)
    issued: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    changes: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root = self.new_id()
        self.files[self.root] = FileRecord(self.root, "My Drive", FOLDER, [], {})
        self.used.add(self.root)

    # Ids

    def new_id(self) -> str:
        """An id of 33 characters, as Drive's are."""
        made = "1" + base64.urlsafe_b64encode(secrets.token_bytes(24)).decode()
        self.issued.add(made)
        return made

    def resolve(self, file_id: str) -> str:
        return self.root if file_id == "root" else file_id

    def get(self, file_id: str) -> FileRecord:
        """The file, known by its id at once to everybody."""
        try:
            return self.files[self.resolve(file_id)]
        except KeyError:
            raise Refusal(404, "notFound", f"File not found: {file_id}.") from None

    # Changes

    def check_new(self, values: dict[str, Any]) -> None:
        """Raise what a create with this metadata is refused with."""
        wanted = values.get("id")
        if wanted is not None:
            if wanted not in self.issued:
                raise Refusal(400, "invalid", "The provided file ID is not usable.")
            if wanted in self.used and not self.doubles:
                raise Refusal(409, "fileIdInUse", "A file already exists with the provided ID.")
        for parent in values.get("parents", []):
            if self.get(parent).mime != FOLDER:
                raise Refusal(403, "parentNotAFolder")
            if len(self.files) > self.children and self._is_full(self.resolve(parent)):
                raise Refusal(403, "numChildrenInNonRootLimitExceeded")
        _check_properties(values.get("appProperties") or {})

    def _is_full(self, parent: str) -> bool:
        return sum(parent in f.parents for f in self.files.values()) >= self.children

    def create(self, values: dict[str, Any], content: bytes, mime: str = "") -> FileRecord:
        """Make a file of *values*, a resource as the client sent it."""
        self.check_new(values)
        self._check_room(len(content))
        now = time.time()
        made = FileRecord(
            values.get("id") or self.new_id(),
            str(values.get("name", "Untitled")),
            str(values.get("mimeType") or mime or "application/octet-stream"),
            [self.resolve(parent) for parent in values.get("parents") or ["root"]],
            dict(values.get("appProperties") or {}),
            content,
            now,
            now,
        )
        if made.id in self.files:
            self.ghosts.append(made)
            return made
        self.files[made.id] = made
        self.used.add(made.id)
        self._changed(made.id)
        return made

    def update(self, file_id: str, values: dict[str, Any], content: bytes | None) -> FileRecord:
        file = self.get(file_id)
        _check_properties(values.get("appProperties") or {})
        if content is not None:
            self._check_room(len(content) - len(file.content))
            file.write(content)
        file.name = values.get("name", file.name)
        file.trashed = values.get("trashed", file.trashed)
        for key, value in (values.get("appProperties") or {}).items():
            if value is None:
                file.app_properties.pop(key, None)
            else:
                file.app_properties[key] = value
        file.modified = time.time()
        self._changed(file.id)
        return file

    def move(self, file_id: str, add: str, remove: str) -> None:
        file = self.get(file_id)
        file.parents = [p for p in file.parents if p not in remove.split(",")]
        file.parents += [self.resolve(p) for p in add.split(",") if p]

    def delete(self, file_id: str) -> None:
        """Remove it for good, past the trash, and what lies below it."""
        file = self.get(file_id)
        for child in [f.id for f in self.files.values() if file.id in f.parents]:
            self.delete(child)
        del self.files[file.id]
        file.removed = time.time()
        self.gone.append(file)
        self._changed(file.id)

    def _changed(self, file_id: str) -> None:
        self.changes.append((time.time(), file_id))

    # What is seen of it

    def listed(self) -> list[FileRecord]:
        """What a search sees: as it was `list_lag` seconds ago."""
        limit = time.time() - self.list_lag
        seen = [f for f in self.files.values() if f.created <= limit]
        seen += [f for f in self.gone if f.created <= limit and f.removed > limit]
        seen += [f for f in self.ghosts if f.created <= limit]
        return [f for f in seen if f.id != self.root]

    def feed(self, position: int, most: int) -> tuple[list[dict[str, Any]], int, bool]:
        """Changes from *position* on, where the next begin, and whether there are more now."""
        limit = time.time() - self.change_lag
        end = position
        while end < len(self.changes) and self.changes[end][0] <= limit:
            end += 1
        stop = min(end, position + most)
        ids = dict.fromkeys(file_id for _, file_id in self.changes[position:stop])
        found = []
        for file_id in ids:
            file = self.files.get(file_id)
            change: dict[str, Any] = {
                "kind": "drive#change",
                "changeType": "file",
                "fileId": file_id,
                "removed": file is None,
            }
            if file is not None:
                change["file"] = file.resource()
            found.append(change)
        return found, stop, stop < end

    @property
    def feed_end(self) -> int:
        limit = time.time() - self.change_lag
        return sum(at <= limit for at, _ in self.changes)

    @property
    def usage(self) -> int:
        return sum(len(file.content) for file in self.files.values())

    def _check_room(self, more: int) -> None:
        if self.limit is not None and self.usage + more > self.limit:
            raise Refusal(
                403,
                "storageQuotaExceeded",
                "The user's Drive storage quota has been exceeded.",
            )


def _check_properties(properties: dict[str, Any]) -> None:
    if len(properties) > PROPERTIES:
        raise Refusal(403, "appPropertiesLimitExceeded")
    for key, value in properties.items():
        if len(key.encode()) + len(str(value or "").encode()) > PROPERTY_BYTES:
            raise Refusal(400, "invalid", f"The property {key} is too long.")


def _date(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
