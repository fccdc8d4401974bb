"""The login to a WebDAV server that `megafs login` has kept on this machine."""

from __future__ import annotations

from megafs.stores.login.credentials import CredentialStore
from megafs.stores.login.kept_password import KeptPassword
from megafs.stores.urls import Location
from megafs.stores.webdav.login_kind import webdav_login


class KeptLogin:
    """That of the server of *location*.  url: of the store, for people."""

    def __init__(self, location: Location, url: str) -> None:
        self._location = location
        self._url = url

    def read(self, user: str) -> KeptPassword | None:
        """Return the login of *user*, "" for anybody; None if there is none.  Blocks."""
        store = CredentialStore()
        for named in dict.fromkeys((user, "")):
            text = store.get(webdav_login(self._location, {"user": named}).key)
            kept = None if text is None else KeptPassword.of(text)
            if kept is not None and (named or not user or kept.user in ("", user)):
                return kept
        return None

    @property
    def command(self) -> str:
        """The command that makes one."""
        return f"megafs login {self._url}"
