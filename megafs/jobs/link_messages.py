"""The arguments and results of the jobs of links; see messages.py for what holds of all of them."""

from __future__ import annotations

from typing import Final

from msgspec import UNSET, Struct, UnsetType

from megafs.jobs.messages import JobKind, Nothing
from megafs.secret_struct import SecretStruct


class ShareArgs(SecretStruct, frozen=True):
    """path: inside the volume.  name: for the recipient, "" for the file's own.

    password: "" for none.  expires: seconds from now, None for the longest that the store allows.
    copy: seal the bytes anew, in objects of the link's own.  follow: refresh a folder's listing.
    out: a directory of this machine that the link is written into instead of the store.
    page: the address of the page; "" for what the mount was told (page=).
    public: the store lets anybody read its objects, so that nothing needs to be signed.
    """

    path: str
    name: str = ""
    password: str = ""
    expires: float | None = None
    copy: bool = False
    follow: bool = False
    public: bool = False
    out: str = ""
    page: str = ""

    _shown = ("path", "name", "copy", "follow", "public", "out")


class SharedLink(SecretStruct, frozen=True):
    """A link.  link: its text, with the key.  expires: 0 if it does not end.

    reachable_until: when the signatures end that give access to the bytes; a mount renews them
    before, if `renewable`.  0 if they need none.  state: "live", "expired".  how: "presigned",
    "public", "folder".  size: of all its files, in bytes.
    """

    id: str
    link: str
    path: str
    name: str
    folder: bool
    files: int
    size: int
    created: float
    expires: float
    reachable_until: float
    renewable: bool
    password: bool
    copy: bool
    follow: bool
    how: str
    host: str
    state: str
    text: str = ""
    left_out: int = 0
    path_b64: str | UnsetType = UNSET

    _shown = ("id", "path", "name", "state")


class LinkList(Struct, frozen=True):
    """The links of the volume, oldest first."""

    links: list[SharedLink]


class LinkArgs(Struct, frozen=True):
    """which: the id of a link, its beginning, or a path inside the volume."""

    which: str


class RenewArgs(Struct, frozen=True):
    """expires: seconds from now; None to leave the end as it is."""

    which: str
    expires: float | None = None


class Revoked(Struct, frozen=True):
    """ids: of the links that lead nowhere now."""

    ids: list[str]
    text: str


class SetupArgs(Struct, frozen=True):
    """page: the address of the page; "" for what the mount was told.  manifests: let everybody get
    what lies below share/, so that links outlast signatures.
    """

    page: str = ""
    manifests: bool = False


class SetupResult(Struct, frozen=True):
    """exit_code 0 if links open in a browser now.  lines: what was done, and what is left to do."""

    exit_code: int
    origin: str
    browsers: bool
    manifests: bool
    lines: list[str]


SHARE: Final = JobKind("share", ShareArgs, SharedLink)
SHARE_LIST: Final = JobKind("share-list", Nothing, LinkList)
SHARE_SHOW: Final = JobKind("share-show", LinkArgs, LinkList)
SHARE_RENEW: Final = JobKind("share-renew", RenewArgs, LinkList)
SHARE_SETUP: Final = JobKind("share-setup", SetupArgs, SetupResult)
SHARE_REVOKE: Final = JobKind("share-revoke", LinkArgs, Revoked)
