"""How people log in to MEGA: mail, password and, if the account wants it, a code."""

from __future__ import annotations

from collections.abc import Mapping

from megafs.stores.login.kinds import LoginKey, SessionLogin
from megafs.stores.urls import Location


def mega_login(location: Location, options: Mapping[str, str]) -> SessionLogin:
    """Return how to log in to the account that the options name."""
    return SessionLogin(
        LoginKey("mega", options.get("account", "").lower()),
        "megafs.mega.login",
        "the session is kept, so that a mount logs in never: MEGA blocks accounts that often do",
    )
