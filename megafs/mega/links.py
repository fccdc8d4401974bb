"""Links to what is public at MEGA: https://mega.nz/file|folder/HANDLE#KEY, and the older forms.

A link's key opens what it leads to, so a link is a secret: `MegaLink.shown` is what may be shown.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final

from megafs.errors import BadPassphrase, BadUsage
from megafs.mega.ciphers import FILE_KEY, FOLDER_KEY, decode, encode, xor
from megafs.secret_struct import SecretStruct
from megafs.stores.mega.urls import LINK_HOST

_HANDLE: Final = r"[A-Za-z0-9_-]{8}"
_NEW: Final = re.compile(
    rf"(file|folder)/({_HANDLE})(?:#([A-Za-z0-9_,-]+)(?:/(file|folder)/({_HANDLE}))?)?/?"
)
_OLD: Final = re.compile(rf"#(F?)!({_HANDLE})(?:!([A-Za-z0-9_,-]+)(?:[!?]({_HANDLE}))?)?")
_PASSWORD: Final = re.compile(r"#P!([A-Za-z0-9_,-]+)")
#: Rounds of PBKDF2-HMAC-SHA512 between a password and the key of its link.
_ROUNDS: Final = 100_000


class MegaLink(SecretStruct, frozen=True):
    """handle: the public one, 8 characters.  key: 32 bytes for a file, 16 for a folder.

    inside: the handle of a file or folder within the folder that the link is for, or "".
    """

    is_folder: bool
    handle: str
    key: bytes
    inside: str = ""

    _shown = ("shown",)

    @property
    def shown(self) -> str:
        """The link without its key."""
        below = f"#.../{self.inside}" if self.inside else ""
        return f"https://mega.nz/{'folder' if self.is_folder else 'file'}/{self.handle}{below}"


class PasswordLink(SecretStruct, frozen=True):
    """A link whose key opens with a password."""

    algorithm: int
    is_folder: bool
    body: bytes  # all but the proof
    proof: bytes

    def opened(self, password: str) -> MegaLink:
        """The link that it stands for; BadPassphrase.  Takes a tenth of a second."""
        handle, salt, closed = self.body[2:8], self.body[8:40], self.body[40:]
        derived = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ROUNDS, 64)
        secret = derived[32:]
        # The first clients exchanged the arguments, and their links are still about.
        key, text = (self.body, secret) if self.algorithm == 1 else (secret, self.body)
        if not hmac.compare_digest(hmac.digest(key, text, "sha256"), self.proof):
            raise BadPassphrase("that is not the password of this link")
        return MegaLink(self.is_folder, encode(handle), xor(closed, derived[: len(closed)]))


def parse_link(text: str) -> MegaLink | PasswordLink:
    """Take *text* apart; BadUsage, without the key, if it is no link to a file or folder."""
    text = text.strip()
    host = LINK_HOST.match(text)
    if host is None:
        raise BadUsage("not a link to MEGA: they begin with https://mega.nz/")
    rest = text[host.end() :]
    if match := _PASSWORD.fullmatch(rest):
        return _password_link(match[1])
    if match := _NEW.fullmatch(rest):
        kind, handle, key, _, inside = match.groups()
        is_folder = kind == "folder"
    elif match := _OLD.fullmatch(rest):
        folder, handle, key, inside = match.groups()
        is_folder = bool(folder)
    else:
        raise BadUsage(
            "not a link to a file or folder of MEGA: they look like"
            " https://mega.nz/file/HANDLE#KEY; quote it, for a shell takes some of it away"
        )
    if not key:
        raise BadUsage(
            f"the link https://mega.nz/{'folder' if is_folder else 'file'}/{handle} lacks its key,"
            " which is what follows #: ask for the whole link, and put it in quotation marks"
        )
    if inside and not is_folder:
        raise BadUsage("a link to a file leads to nothing within it")
    try:
        opened = decode(key)
    except ValueError:
        opened = b""
    if len(opened) != (FOLDER_KEY if is_folder else FILE_KEY):
        raise BadUsage("the key of this link, what follows #, is cut short or not a key")
    return MegaLink(is_folder, handle, opened, inside or "")


def _password_link(text: str) -> PasswordLink:
    try:
        data = decode(text)
    except ValueError:
        data = b""
    if len(data) < 2 or data[0] not in (1, 2) or data[1] not in (0, 1):
        raise BadUsage("this link with a password is cut short, or of a kind not known here")
    size = FOLDER_KEY if data[1] == 0 else FILE_KEY
    if len(data) != 40 + size + 32:
        raise BadUsage("this link with a password is cut short")
    return PasswordLink(data[0], data[1] == 0, data[:-32], data[-32:])
