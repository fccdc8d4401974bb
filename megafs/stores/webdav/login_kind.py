"""How people log in to a WebDAV server: what the table of drivers says of it."""

from __future__ import annotations

from collections.abc import Mapping

from megafs.stores.login.kinds import LoginKey, PasswordLogin
from megafs.stores.urls import Location


def webdav_login(location: Location, options: Mapping[str, str]) -> PasswordLogin:
    """A password for the server of a URL, or a token with auth=bearer."""
    user = options.get("user", "")
    token = options.get("auth", "").lower() == "bearer"
    account = f"{location.name} {user}" if user else location.name
    return PasswordLogin(
        LoginKey("webdav", account),
        user=user,
        wants_user=not token,
        advice=""
        if token
        else "make a password for megafs alone, if the service has such (app passwords)",
    )
