"""The links of a volume: which there are, and which packs they need.

A link (jobs/share.py) is kept in the tree, so that it travels in the journal like everything else:
every machine lists and revokes it, and a store that serves an older record is found out.  It is an
extended attribute of the root directory, in a namespace that no program can reach:

    megafs.link.<id>      MessagePack of a `LinkRecord`

gc leaves the packs alone that a record names, also when no file names them any more: whoever has
the link reads the file as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import apsw
import msgspec

from megafs.errors import Corrupt
from megafs.secret_struct import SecretStruct
from megafs.tree.inode import ROOT

#: Attributes whose names begin with this are megafs's own, and never shown to programs.
INTERNAL: Final = b"megafs."
PREFIX: Final = b"megafs.link."
_AFTER: Final = b"megafs.link/"  # follows all names that begin with PREFIX

_ID: Final = re.compile(r"[A-Za-z0-9_-]{22}\Z")


class LinkPacks(SecretStruct, frozen=True, array_like=True, omit_defaults=True):
    """The beginning of a record, up to the packs: what gc reads; whatever follows is skipped."""

    id: str
    secret: bytes
    password_key: bytes
    name: str
    path: bytes
    ino: int
    folder: bool
    size: int
    files: int
    created_ns: int
    expires_ns: int
    packs: tuple[int, ...]

    _shown = ("id", "name", "path")


class LinkRecord(LinkPacks, frozen=True, array_like=True, omit_defaults=True):
    """One link, as the volume keeps it.

    id: 22 characters of base64url.  secret: the 32 bytes that the link carries.
    password_key: what the link's password comes to (links/manifest.py); empty without one.
    name: what the recipient sees.  path: where it was when it was shared.  ino: the inode there.
    created_ns, expires_ns: expires_ns 0 if it does not end.
    packs: the numbers of the packs that it needs.  copies: objects of its own (`--copy`).
    reach: how the recipient gets at the bytes ("presigned", "public", "folder").
    address: the URL of the manifest that the link carries; "" if it lies beside the page.
    page: the address of the page that the link opens.
    reachable_until_ns: when the signatures end that the manifest, or the link, holds; 0 if never.
    directory: where it lies on the machine that made it, instead of in the store; "" if nowhere.
    salt: of the password.
    state: a digest of the folder as it was when the listing was made, if it is followed.
    follow: whether the listing of a folder is refreshed.  host: the machine that made it.
    """

    reach: str
    address: str
    page: str
    reachable_until_ns: int
    host: str
    copies: int = 0
    follow: bool = False
    salt: bytes = b""
    directory: str = ""
    state: bytes = b""

    def is_expired(self, now_ns: int) -> bool:
        """Whether nobody may use it any more."""
        return bool(self.expires_ns) and now_ns >= self.expires_ns


_ENCODER: Final = msgspec.msgpack.Encoder()
_RECORD: Final = msgspec.msgpack.Decoder(LinkRecord)
_PACKS: Final = msgspec.msgpack.Decoder(LinkPacks)


def attribute(link: str) -> bytes:
    """The name of the attribute that holds the record of this link."""
    return PREFIX + link.encode("ascii")


def is_id(text: str) -> bool:
    """Whether *text* has the form of a link's id."""
    return _ID.match(text) is not None


def encode(record: LinkRecord) -> bytes:
    """The value of the attribute."""
    return _ENCODER.encode(record)


def records(db: apsw.Connection) -> list[LinkRecord]:
    """Every link, oldest first; Corrupt if one cannot be read."""
    found = []
    for name, value in _rows(db):
        try:
            found.append(_RECORD.decode(value))
        except msgspec.MsgspecError as exc:
            raise Corrupt(f"the record of the link {_shown(name)} is damaged: {exc}") from None
    return sorted(found, key=lambda record: (record.created_ns, record.id))


def linked_packs(db: apsw.Connection) -> set[int]:
    """The numbers of all packs that links need.

    Corrupt if a record cannot be read: then it is not known what may be removed.
    """
    found: set[int] = set()
    for name, value in _rows(db):
        try:
            found.update(_PACKS.decode(value).packs)
        except msgspec.MsgspecError as exc:
            raise Corrupt(f"the record of the link {_shown(name)} is damaged: {exc}") from None
    return found


def _rows(db: apsw.Connection) -> Iterator[tuple[bytes, bytes]]:
    rows: Any = db.execute(
        "SELECT name, value FROM xattrs WHERE ino=? AND name>=? AND name<?",
        (ROOT, PREFIX, _AFTER),
    )
    yield from rows


def _shown(name: bytes) -> str:
    return name[len(PREFIX) :].decode("ascii", "backslashreplace")
