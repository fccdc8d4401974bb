"""A password or bearer token as `megafs login` keeps it, with the user whose it is."""

from __future__ import annotations

import msgspec

from megafs.errors import Corrupt
from megafs.secret_struct import SecretStruct


class KeptPassword(SecretStruct, frozen=True):
    """user: "" with a token."""

    password: str
    user: str = ""

    _shown = ("user",)

    @classmethod
    def of(cls, text: str) -> KeptPassword:
        """Read what `text` was; a text that is no JSON is the password itself, as in a credential
        of systemd that somebody wrote by hand."""
        if not text.startswith("{"):
            return cls(text)
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError:  # its text may quote the secret
            raise Corrupt("the login that is kept here is damaged: log in again") from None

    @property
    def text(self) -> str:
        """As it is kept (stores/login/credentials.py)."""
        return msgspec.json.encode(self).decode()
