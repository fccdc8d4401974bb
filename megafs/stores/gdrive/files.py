"""Files of Drive as values: what is asked of one, and what an answer says of it."""

from __future__ import annotations

from datetime import datetime
from typing import TypeVar

import msgspec
from msgspec import Struct, field

from megafs.errors import Unavailable
from megafs.stores.http.session import Response

T = TypeVar("T")

FOLDER = "application/vnd.google-apps.folder"
#: What is asked of a file.
FIELDS = "id,name,size,md5Checksum,createdTime,modifiedTime,trashed,appProperties"

#: A property of every file of a volume: the id of its folder.  Of the folder: FORMAT.
VOLUME = "megafs"
FORMAT = "volume-1"


class DriveFile(Struct, frozen=True, rename="camel"):
    """What Drive says of a file.  times: as RFC 3339."""

    id: str
    name: str = ""
    size: int = 0
    md5_checksum: str = ""
    created_time: str = ""
    modified_time: str = ""
    trashed: bool = False
    app_properties: dict[str, str] = field(default_factory=dict)


class NewFile(Struct, rename="camel", omit_defaults=True):
    """What a file is to be."""

    id: str
    name: str
    parents: tuple[str, ...] = ()
    app_properties: dict[str, str] = field(default_factory=dict)
    mime_type: str = ""


class SearchPage(Struct, frozen=True, rename="camel"):
    """A page of a search."""

    files: list[DriveFile] = field(default_factory=list)
    next_page_token: str = ""


class FeedChange(Struct, frozen=True, rename="camel"):
    """One entry of the feed of changes."""

    file_id: str = ""
    removed: bool = False
    file: DriveFile | None = None


class FeedPage(Struct, frozen=True, rename="camel"):
    """A page of the feed."""

    changes: list[FeedChange] = field(default_factory=list)
    next_page_token: str = ""
    new_start_page_token: str = ""


def read(reply: Response, kind: type[T], server: str) -> T:
    """Return what an answer says; Unavailable if it cannot be read."""
    try:
        return msgspec.json.decode(reply.body, type=kind, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise Unavailable(
            f"{server} answers with what cannot be read: {str(exc)[:100]}", maybe_done=True
        ) from exc


def seconds(time: str) -> float:
    """Seconds since 1970 of a time of RFC 3339; 0.0 if it is none."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def quoted(text: str) -> str:
    """*text* as a value in a search."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
