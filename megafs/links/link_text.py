"""The text of a link: where its page is, which link it is, and the secret that opens it.

    <page>#1.<id>.<secret>[.<address>]

id: 22 characters of base64url (16 random bytes).  secret: 43 (32 random bytes).  address: the URL
of the manifest in base64url; without it the manifest lies at share/<id>/manifest beside the page.
Everything after "#" stays in the browser: no server is ever sent it.  Where there is no page the
text begins with "megafs:", and `megafs get` reads it.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final
from urllib.parse import urljoin, urlsplit

from megafs import clock
from megafs.errors import BadUsage
from megafs.secret_struct import SecretStruct
from megafs.tree.link_records import LinkRecord, is_id

SECRET_SIZE: Final = 32
_VERSION: Final = "1"
#: What stands before "#" where no page is known.
NO_PAGE: Final = "megafs:"
_LONGEST: Final = 16 << 10


class ShareLink(SecretStruct, frozen=True):
    """A link.  page: what stands before "#".  address: of the manifest, "" if beside the page."""

    page: str
    id: str
    secret: bytes
    address: str = ""

    _shown = ("page", "id")

    @property
    def text(self) -> str:
        """The link as it is given to people."""
        parts = [_VERSION, self.id, _encode(self.secret)]
        if self.address:
            parts.append(_encode(self.address.encode("ascii")))
        return f"{self.page}#{'.'.join(parts)}"

    @property
    def manifest_url(self) -> str:
        """Where the manifest is; BadUsage if the link does not say."""
        if self.address:
            return self.address
        if self.page == NO_PAGE:
            raise BadUsage("the link says neither its page nor where the file is: copy all of it")
        return urljoin(self.page, f"share/{self.id}/manifest")


def of_record(record: LinkRecord) -> ShareLink:
    """The link that a record of the volume is of."""
    return ShareLink(record.page, record.id, record.secret, record.address)


def new_id() -> str:
    """The id of a new link; it does not look like an option of a command."""
    while (made := _encode(clock.random_bytes(16))).startswith("-"):
        pass
    return made


def is_link(text: str) -> bool:
    """Whether *text* is meant as a link of megafs, right or wrong."""
    head, mark, rest = text.partition("#")
    return bool(mark) and (head == NO_PAGE or rest.startswith(_VERSION + "."))


def parse(text: str) -> ShareLink:
    """Read a link; BadUsage says what is wrong with it, and never quotes what follows "#"."""
    page, mark, fragment = text.strip().partition("#")
    if len(text) > _LONGEST or not mark:
        raise BadUsage("that is no link of megafs: it has a # and the key behind it")
    version, *parts = fragment.split(".")
    if version != _VERSION:
        raise BadUsage("the link is of another kind, or needs a newer megafs: copy all of it")
    if len(parts) not in (2, 3):
        raise BadUsage("the link is cut short: copy all of it, to its last character")
    secret = _decode(parts[1])
    if not is_id(parts[0]) or len(secret) != SECRET_SIZE:
        raise BadUsage("the link is cut short or changed: copy all of it, to its last character")
    address = ""
    if len(parts) == 3:
        try:
            address = _decode(parts[2]).decode("ascii")
        except UnicodeDecodeError:
            raise BadUsage("the link is changed: copy all of it") from None
        check_address(address)
    if page != NO_PAGE:
        check_address(page)
    return ShareLink(page, parts[0], secret, address)


def check_address(url: str) -> None:
    """Raise BadUsage unless *url* can be asked: http, https, or a file of this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        raise BadUsage("the address in the link is none") from None
    if parts.scheme not in ("http", "https", "file"):
        raise BadUsage("the address in the link is neither http://, https:// nor file://")
    if parts.scheme == "file":
        if host or not parts.path.startswith("/"):
            raise BadUsage("a file:// address in a link names a path of this machine")
    elif not host or parts.username is not None:
        raise BadUsage("the address in the link names no server, or holds a user")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _decode(text: str) -> bytes:
    """The bytes of base64url without padding; b"" if it is none."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return b""
    return data if _encode(data) == text else b""
