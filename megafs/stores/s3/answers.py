"""Read S3's answers: errors, listings and times, in XML.

Expat expands entities, which can make gigabytes out of a line, and they can only be defined in a
document type: none is allowed.  An element, an attribute, a line and a reference each cost up to
330 bytes of memory for the two to seven that they take: they are counted before anything is parsed.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import unquote

from msgspec import Struct

from megafs.errors import BadUsage, StoreError, Unavailable
from megafs.stores.base import Entry, check_name
from megafs.stores.http.session import Response

#: The most marks (`<`, `=`, `&` and ends of lines) in what says one thing.
MARKS = 4096
#: And for each object of a listing: the wordiest service takes 50.
ENTRY_MARKS = 100
_MARKS = (b"<", b"=", b"&", b"\n", b"\r")

# A size that a file can have; more digits than these are not read at all.
_SIZE = re.compile(r"[0-9]{1,19}\Z")
_LARGEST = (1 << 63) - 1


class _Plain(ET.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("a document type")


def parse(body: bytes, marks: int = MARKS) -> ET.Element | None:
    """The root of an XML document in UTF-8, None if *body* is not one or has more than *marks*."""
    if sum(map(body.count, _MARKS)) > marks or b"\0" in body:
        return None
    parser = ET.XMLParser(target=_Plain(), encoding="utf-8")
    try:
        parser.feed(body)
        root: ET.Element = parser.close()
    except (ET.ParseError, ValueError, LookupError):
        return None
    return root


def tag_of(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]  # engines differ in the namespace they give


def child_text(reply: Response, tag: str) -> str:
    """The text of a child of the answer's root, or ""."""
    root = parse(reply.body) if reply.body[:1] == b"<" else None
    if root is not None:
        for child in root:
            if tag_of(child) == tag:
                return (child.text or "").strip()[:64]
    return ""


def error_of(reply: Response) -> tuple[str, str]:
    """The code and the message of an error, "" where there is none; safe to print."""
    body = reply.body.lstrip()
    root = parse(body) if body[:1] == b"<" else None
    if root is None or tag_of(root) != "Error":
        return "", ""
    values = {tag_of(child): child.text or "" for child in root}
    code = re.sub(r"[^A-Za-z0-9.]", "", values.get("Code", ""))[:64]
    message = re.sub(r"[^ -~]+", " ", values.get("Message", "")).strip()[:200]
    return code, message


def seconds_of(iso: str) -> float:
    """Seconds since 1970 of a time as S3 writes it: 2026-01-31T12:00:00.000Z.

    Raises ValueError if it is none.
    """
    moment = datetime.fromisoformat(iso.strip()[:64])
    if moment.tzinfo is None:  # the local time of whoever reads it is not meant
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()


class Listing(Struct, frozen=True):
    """One page of ListObjectsV2.

    entries: those whose names are ours.  more: whether others follow.  last: the last name of the
    page, whosever it is.
    """

    entries: list[Entry]
    more: bool
    last: str


def read_listing(reply: Response, server: str, prefix: str, after: str, limit: int) -> Listing:
    """Read a page of *limit* keys below *prefix* that begins behind the name *after*.

    server: its name for error texts.  Raises StoreError or Unavailable for what is not a listing,
    not in order, or not what was asked for.
    """
    if reply.more:
        raise StoreError(f"{server}: a listing is longer than it can be")
    root = parse(reply.body, MARKS + limit * ENTRY_MARKS)
    if root is None or tag_of(root) != "ListBucketResult":
        raise Unavailable(f"{server}: this is not a listing; is it S3?")
    entries: list[Entry] = []
    last = after
    more = False
    for child in root:
        tag = tag_of(child)
        if tag == "IsTruncated":
            more = (child.text or "").strip() == "true"
        if tag != "Contents":
            continue
        values = {tag_of(part): part.text or "" for part in child}
        key = unquote(values.get("Key", ""))
        if not key.startswith(prefix):
            raise StoreError(f"{server}: a listing holds what was not asked for")
        name = key[len(prefix) :]
        if last and name <= last:
            raise StoreError(f"{server}: a listing is not in order")
        last = name
        try:
            check_name(name)
            entries.append(Entry(name, _size_of(values), seconds_of(values["LastModified"])))
        except BadUsage:
            continue  # somebody else's object
        except (ValueError, KeyError) as exc:
            raise StoreError(f"{server}: a listing cannot be read") from exc
    return Listing(entries, more and last != after, last)


def _size_of(values: Mapping[str, str]) -> int:
    size = values.get("Size", "").strip()
    if not _SIZE.match(size) or int(size) > _LARGEST:
        raise ValueError("a size")
    return int(size)
