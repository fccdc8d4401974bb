"""What OAuth gives: an access token with an end, and most often a refresh token to renew it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from megafs import clock
from megafs.errors import Corrupt, StoreError
from megafs.secret_struct import SecretStruct

# What may stand in the header Authorization (RFC 6750), and is no bomb.
_TOKEN = re.compile(r"[!-~]{1,16384}\Z")


class Grant(SecretStruct, frozen=True):
    """An access to an account.

    ends: when the access token does, in seconds since 1970; 0 if it was not said.
    lasts: seconds that it had when it came.
    token_endpoint: where the refresh token may be sent, and nowhere else.
    """

    access_token: str
    refresh_token: str = ""
    ends: float = 0.0
    lasts: float = 0.0
    client_id: str = ""
    client_secret: str = ""
    token_endpoint: str = ""
    scope: str = ""

    _shown = ("ends", "client_id", "token_endpoint", "scope")

    @classmethod
    def of(cls, text: str) -> Grant:
        """Read what `text` of a grant was."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError:  # its text may quote the secret
            raise Corrupt("the login that is kept here is damaged: log in again") from None

    @property
    def text(self) -> str:
        """As it is kept (stores/login/credentials.py)."""
        return msgspec.json.encode(self).decode()

    def ends_within(self, seconds: float) -> bool:
        """Whether the access token ends so soon."""
        return bool(self.ends) and self.ends - clock.now() < seconds

    def renewed(self, answer: Mapping[str, Any]) -> Grant:
        """Return what a token endpoint's *answer* makes of it; StoreError if that is none.

        Without a new refresh token the old one stays (RFC 6749, 6).
        """
        access = answer.get("access_token")
        refresh = answer.get("refresh_token") or self.refresh_token
        if not isinstance(access, str) or not _TOKEN.match(access):
            raise StoreError("the service's answer to the login holds no token that can be used")
        if not isinstance(refresh, str) or (refresh and not _TOKEN.match(refresh)):
            raise StoreError("the service's answer to the login holds a damaged refresh token")
        lasts = _seconds(answer.get("expires_in"))
        scope = answer.get("scope")
        return msgspec.structs.replace(
            self,
            access_token=access,
            refresh_token=refresh,
            ends=clock.now() + lasts if lasts else 0.0,
            lasts=lasts,
            scope=scope if isinstance(scope, str) else self.scope,
        )


def _seconds(value: object) -> float:
    try:
        seconds = float(value) if isinstance(value, int | float | str) else 0.0
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
