"""How people log in to a service: what a driver's row in stores/drivers.py says of it.

A row has a function `login` that returns one of these for a URL and its options:

    OAuthLogin     a page in the browser, or a code; megafs keeps a token and renews it
    PasswordLogin  a password of its own for megafs, or a token, kept as it is
    SessionLogin   the service's own way: the driver asks for what it needs and returns a session

Text only: the table of drivers is read for `megafs --help` too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from msgspec import Struct

from megafs.errors import BadStore
from megafs.stores.urls import Location


class LoginKey(Struct, frozen=True, order=True):
    """Which login: of what service, and which account there.  Neither is a secret.

    service: the driver's scheme, or its common part: "dropbox", "webdav".
    account: what tells apart several logins at it; "" where one machine needs only one.
    """

    service: str
    account: str = ""

    def __str__(self) -> str:
        return f"{self.service} {self.account}".rstrip()


class OAuthLogin(Struct, frozen=True):
    """OAuth 2.0: an authorization code with PKCE (RFC 6749, 7636, 8252), or a device (RFC 8628).

    authorize, token, device, revoke: URLs of the service; "" where it has no such endpoint.
    scopes: what megafs asks for.
    client_id: of the application, which users register themselves; "" if none was given.
    client_secret_file: of services that give their desktop applications a "secret" as well.
    parameters: what the page for the browser wants besides, such as access_type=offline.
    pastes_code: the service shows the code to people if no redirect_uri is sent.
    port: on loopback, where the service takes no redirect_uri but a registered one; 0 for any.
    advice: where a client_id is to be had, for people.
    """

    key: LoginKey
    authorize: str
    token: str
    scopes: tuple[str, ...] = ()
    client_id: str = ""
    client_secret_file: str = ""
    device: str = ""
    revoke: str = ""
    parameters: tuple[tuple[str, str], ...] = ()
    pastes_code: bool = False
    port: int = 0
    advice: str = ""


class PasswordLogin(Struct, frozen=True):
    """A user and a password of its own for megafs, or a bearer token.

    user: "" if it is asked for.  wants_user: False for a token.
    """

    key: LoginKey
    user: str = ""
    wants_user: bool = True
    advice: str = ""


class SessionLogin(Struct, frozen=True):
    """A service with a way of its own.

    module: has `log_in` and `log_out`; see stores/login/session_login.py.
    """

    key: LoginKey
    module: str
    advice: str = ""


LoginKind = OAuthLogin | PasswordLogin | SessionLogin

#: Says how to log in to the store of a URL; BadStore if the options cannot be right.
LoginOf = Callable[[Location, Mapping[str, str]], LoginKind]


def check_endpoint(url: str) -> str:
    """Return *url* if a secret may be sent there: https://, or this machine; BadStore if not."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        host, parts = "", urlsplit("")
    if parts.scheme == "https" and host:
        return url
    if parts.scheme == "http" and _is_here(host):
        return url
    raise BadStore(f"{url[:200]!r} is no https:// URL, and a login goes nowhere else")


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
