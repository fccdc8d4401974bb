"""The options of `dropbox:` URLs, and how to log in to them: text only, for help and the table of
drivers."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from megafs.errors import BadStore
from megafs.stores.login.kinds import LoginKey, OAuthLogin
from megafs.stores.urls import Location, StoreOption

DROPBOX_OPTIONS: tuple[StoreOption, ...] = (
    StoreOption(
        "client_id",
        "5ad3kq1lchqmzs5",
        "The key of your own Dropbox app (docs/stores/dropbox.md: making one); needed to log in.",
    ),
    StoreOption(
        "account",
        "work",
        "A name of your choice that tells apart several logins on this machine.",
    ),
    StoreOption("requests", "12", "The most requests a second, over longer than a few seconds."),
    StoreOption("api", "http://127.0.0.1:8080", "For tests: a server on this machine instead."),
    StoreOption("connect_timeout", "10", "Seconds for a connection."),
    StoreOption("read_timeout", "30", "Seconds for the next bytes of an answer."),
)

#: What the app must be allowed to.  The last is for `df`, and may be left out.
SCOPES = ("files.content.write", "files.content.read", "files.metadata.read", "account_info.read")

#: Where the browser is sent on this machine.  Dropbox takes what is registered with the app, only.
PORT = 51739

_API, _WWW = "https://api.dropboxapi.com", "https://www.dropbox.com"


def dropbox_login(location: Location, options: Mapping[str, str]) -> OAuthLogin:
    """How to log in: see stores/login/kinds.py."""
    api = local_api(options)
    return OAuthLogin(
        LoginKey("dropbox", options.get("account", "")),
        authorize=f"{api or _WWW}/oauth2/authorize",
        token=f"{api or _API}/oauth2/token",
        scopes=SCOPES,
        client_id=options.get("client_id", ""),
        parameters=(("token_access_type", "offline"),),
        pastes_code=True,
        port=PORT,
        advice="make an app of your own: docs/stores/dropbox.md says how, in ten lines",
    )


def local_api(options: Mapping[str, str]) -> str:
    """The server that stands in for Dropbox, "" for none; BadStore if it is not on this machine."""
    url = options.get("api", "").rstrip("/")
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        here = ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        here = False
    if not here or parts.scheme != "http" or parts.path or parts.query or parts.username:
        raise BadStore(
            "api= is for tests and takes http://127.0.0.1:PORT: tokens go there in clear"
        )
    return url
