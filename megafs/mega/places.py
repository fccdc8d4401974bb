"""Where files of MEGA are read from: an account that somebody is logged in to, or a link."""

from __future__ import annotations

import hashlib
import hmac

from megafs.mega.links import MegaLink
from megafs.mega.options import MegaOptions, Part
from megafs.mega.session import MegaSession
from megafs.mega.tree import TreeOwner
from megafs.secret_struct import SecretStruct


class MegaPlace(SecretStruct, frozen=True):
    """shown: for people and logs.  query: what says at the API who asks.

    account: which login it is of; None of a link.
    part, path, inside: what of the tree is meant; inside is a handle, or "".
    """

    shown: str
    query: dict[str, str]
    owner: TreeOwner
    account: str | None = None
    part: Part = "files"
    path: str = ""
    inside: str = ""

    _shown = ("shown",)

    @property
    def directory(self) -> str:
        """The name of the directory for what is kept of it: the same for every part of a tree."""
        who = self.owner.user or self.query["n"]
        return hashlib.blake2b(f"mega {who}".encode(), digest_size=12).hexdigest()

    def subkey(self, purpose: str) -> bytes:
        """32 bytes to seal with what is kept here: whoever has the key of the tree has them."""
        return hmac.digest(self.owner.key, f"megafs mega {purpose} 1".encode(), "sha256")


def place_of_session(session: MegaSession, options: MegaOptions, path: str) -> MegaPlace:
    """The account's tree, as far as *options* and *path* say: "" or "/a/b"."""
    path = "/".join(part for part in path.split("/") if part)
    return MegaPlace(
        f"mega:/{path}" if path else "mega:",
        {"sid": session.sid},
        TreeOwner(session.key, session.user),
        options.account,
        options.part,
        path,
    )


def place_of_link(link: MegaLink) -> MegaPlace:
    """The tree of a link to a folder."""
    return MegaPlace(link.shown, {"n": link.handle}, TreeOwner(link.key), inside=link.inside)
