"""What a driver with a login of its own (`SessionLogin`) has in the module that its row names.

    async def log_in(location, options, ask) -> str
    async def log_out(location, options, session) -> None

log_in: asks people through *ask* for what it needs, and returns the session as one text, which is
    kept as a secret (stores/login/credentials.py).  Denied if the service refuses them.
log_out: ends the session at the service.  StoreError if that cannot be; it is forgotten all the
    same.

The driver reads the session by `CredentialStore.get` with the `key` of its `SessionLogin`, in a
thread, and puts back what it renews with `CredentialStore.put`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol

from megafs.stores.login.kinds import SessionLogin
from megafs.stores.urls import Location


class Ask(Protocol):
    """A question to whoever logs in.  secret: what is typed is not shown."""

    async def __call__(self, question: str, *, secret: bool = False) -> str: ...


class LogIn(Protocol):
    """The function `log_in` of the module."""

    async def __call__(self, location: Location, options: Mapping[str, str], ask: Ask) -> str: ...


class LogOut(Protocol):
    """The function `log_out` of the module."""

    async def __call__(
        self, location: Location, options: Mapping[str, str], session: str
    ) -> None: ...


def log_in_of(login: SessionLogin) -> LogIn:
    """Import the module and return its `log_in`."""
    found: LogIn = importlib.import_module(login.module).log_in
    return found


def log_out_of(login: SessionLogin) -> LogOut:
    """Import the module and return its `log_out`."""
    found: LogOut = importlib.import_module(login.module).log_out
    return found
