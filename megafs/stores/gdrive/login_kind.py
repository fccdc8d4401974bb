"""How `megafs login gdrive:` logs in: OAuth for a desktop program, with access to its own files."""

from __future__ import annotations

from collections.abc import Mapping

from megafs.errors import BadStore
from megafs.stores.login.kinds import LoginKey, OAuthLogin, check_endpoint
from megafs.stores.urls import Location

#: The API, and where tests may put another.
ENDPOINT = "https://www.googleapis.com"
#: Files that this client id has made, and no others; wants no review of the program by Google.
SCOPE = "https://www.googleapis.com/auth/drive.file"

_ADVICE = (
    "give your own client_id= and client_secret_file=: docs/stores/gdrive.md has the ten lines"
)


def gdrive_login(location: Location, options: Mapping[str, str]) -> OAuthLogin:
    """Return how to log in to the store of a URL; BadStore if the options cannot be right."""
    local = options.get("endpoint", "")
    endpoint_of(options)
    oauth = f"{local}/token" if local else "https://oauth2.googleapis.com/token"
    return OAuthLogin(
        LoginKey("gdrive"),
        authorize=f"{local}/auth" if local else "https://accounts.google.com/o/oauth2/v2/auth",
        token=oauth,
        scopes=(SCOPE,),
        client_id=options.get("client_id", ""),
        client_secret_file=options.get("client_secret_file", ""),
        device=f"{local}/device/code" if local else "https://oauth2.googleapis.com/device/code",
        revoke=f"{local}/revoke" if local else "https://oauth2.googleapis.com/revoke",
        # Without these there is no refresh token, or none the second time.
        parameters=(("access_type", "offline"), ("prompt", "consent")),
        advice=_ADVICE,
    )


def endpoint_of(options: Mapping[str, str]) -> str:
    """Return where the API is; BadStore if `endpoint=` names another machine."""
    local = options.get("endpoint")
    if not local:
        return ENDPOINT
    if not check_endpoint(local).startswith("http://"):
        raise BadStore("endpoint= takes an address of this machine, as http://127.0.0.1:8080")
    return local.rstrip("/")
