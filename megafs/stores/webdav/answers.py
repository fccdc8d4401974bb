"""What a WebDAV server says of a folder: a multistatus document (RFC 4918, 13), read in passing.

A folder of 40,000 packs is 20 MB of XML.  No tree is made of it: expat calls as it goes, and what
is kept of a member is its name, size and time.  A document type is refused (entities can make
gigabytes out of a line), and depth, texts and members are bounded.
"""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urlsplit
from xml.parsers import expat

from msgspec import Struct

#: What is asked for.
PROPFIND = (
    b'<?xml version="1.0" encoding="utf-8"?><D:propfind xmlns:D="DAV:"><D:prop><D:resourcetype/>'
    b"<D:getcontentlength/><D:getlastmodified/></D:prop></D:propfind>"
)
#: The same of the account's room (RFC 4331).
PROPFIND_ROOM = (
    b'<?xml version="1.0" encoding="utf-8"?><D:propfind xmlns:D="DAV:"><D:prop>'
    b"<D:quota-available-bytes/></D:prop></D:propfind>"
)
#: The most bytes of an answer: 200,000 members of 320 bytes.
LIMIT = 64 << 20

_DEPTH = 64
_TEXT = 4096
_PIECE = 256 << 10
_SIZE = re.compile(r"[0-9]{1,19}\Z")
_LARGEST = (1 << 63) - 1
_OK = re.compile(r"HTTP/[0-9.]+ 200\b")
# Namespace and name, as expat joins them.
_DAV = "DAV: "


class Member(Struct, frozen=True):
    """One resource.

    path: of its URL, without percent-encoding.  size: bytes, None if not said.
    modified: seconds since 1970, 0.0 if not said.  room: bytes left in the account, if that was
    asked for and is known.
    """

    path: str
    is_folder: bool
    size: int | None
    modified: float
    room: int | None = None


def read_multistatus(body: bytes) -> list[Member]:
    """Return the members in an answer; ValueError if it is no multistatus document."""
    reader = _Reader()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    parser.StartDoctypeDeclHandler = reader.refuse
    parser.EntityDeclHandler = reader.refuse
    parser.buffer_text = True
    view = memoryview(body)
    try:
        for at in range(0, len(body), _PIECE):
            parser.Parse(bytes(view[at : at + _PIECE]), False)
        parser.Parse(b"", True)
    except (expat.ExpatError, LookupError) as exc:
        raise ValueError("not XML") from exc
    if not reader.is_multistatus:
        raise ValueError("not a multistatus document")
    return reader.members


class _Reader:
    """Follows the elements: multistatus / response / href, propstat / (prop / ...), status."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.is_multistatus = False
        self._stack: list[str] = []
        self._text: list[str] | None = None
        self._length = 0
        self._response: dict[str, str] = {}
        self._pending: dict[str, str] = {}
        self._status = ""

    def refuse(self, *what: object) -> None:
        raise ValueError("a document type")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        tag = tag.removeprefix(_DAV)
        stack = self._stack
        if not stack:
            self.is_multistatus = tag == "multistatus"
            if not self.is_multistatus:
                raise ValueError("not a multistatus document")
        stack.append(tag)
        if len(stack) > _DEPTH:
            raise ValueError("too deep")
        self._text = None
        if len(stack) == 2 and tag == "response":
            self._response, self._pending, self._status = {}, {}, ""
        elif tag == "propstat":
            self._pending, self._status = {}, ""
        elif tag == "collection" and len(stack) > 1 and stack[-2] == "resourcetype":
            self._pending["collection"] = "yes"
        if tag in ("href", "status", "getcontentlength", "getlastmodified") or tag.startswith(
            "quota-"
        ):
            self._text, self._length = [], 0

    def text(self, text: str) -> None:
        if self._text is None:
            return
        self._length += len(text)
        if self._length > _TEXT:
            raise ValueError("a value without an end")
        self._text.append(text)

    def end(self, tag: str) -> None:
        stack = self._stack
        tag = stack.pop()
        value = "" if self._text is None else "".join(self._text).strip()
        self._text = None
        parent = stack[-1] if stack else ""
        if tag == "href" and parent == "response":
            self._response.setdefault("href", value)
        elif tag == "status" and parent == "propstat":
            self._status = value
        elif parent == "prop" and value:
            self._pending[tag] = value
        elif tag == "propstat":
            if not self._status or _OK.match(self._status):
                self._response.update(self._pending)
        elif tag == "response" and len(stack) == 1:
            self._add()

    def _add(self) -> None:
        values = self._response
        if "href" not in values:
            raise ValueError("a member without a name")
        size = values.get("getcontentlength", "")
        known = bool(_SIZE.match(size)) and int(size) <= _LARGEST
        room = values.get("quota-available-bytes", "")
        self.members.append(
            Member(
                unquote(urlsplit(values["href"]).path),
                "collection" in values,
                int(size) if known else None,
                _seconds(values.get("getlastmodified", "")),
                int(room) if _SIZE.match(room) else None,
            )
        )


def _seconds(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return 0.0
