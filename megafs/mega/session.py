"""A session with an account: what is kept of a login, so that no mount ever logs in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from megafs.errors import Corrupt, Denied
from megafs.mega.ciphers import decode, encode
from megafs.secret_struct import SecretStruct
from megafs.stores.login.credentials import CredentialStore
from megafs.stores.mega.login_kind import mega_login
from megafs.stores.urls import Location

_LOCATION: Final = Location("", "")
_KEY_SIZE: Final = 16


class MegaSession(SecretStruct, frozen=True):
    """sid: what the API knows the session by.  key: the account's master key, 16 bytes.

    user: the account's handle.  mail: for people.
    """

    sid: str
    key: bytes
    user: str
    mail: str

    _shown = ("mail",)

    def text(self) -> str:
        """The session as it is kept."""
        fields = {"sid": self.sid, "key": encode(self.key), "user": self.user, "mail": self.mail}
        return json.dumps(fields)

    @classmethod
    def parse(cls, text: str) -> MegaSession:
        """Read what `text` made; Corrupt, which quotes nothing of it."""
        try:
            fields = json.loads(text)
            made = cls(
                str(fields["sid"]), decode(fields["key"]), str(fields["user"]), str(fields["mail"])
            )
            if len(made.key) != _KEY_SIZE:
                raise ValueError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise Corrupt("the login that is kept for MEGA is none: megafs login mega:") from None
        return made


def kept_session(options: Mapping[str, str]) -> MegaSession:
    """The session that `megafs login` has kept; Denied if there is none.  Blocks."""
    key = mega_login(_LOCATION, options).key
    text = CredentialStore().get(key)
    if text is None:
        account = f" -o account={key.account}" if key.account else ""
        raise Denied(f"nobody is logged in to MEGA here: megafs login mega:{account}")
    return MegaSession.parse(text)
