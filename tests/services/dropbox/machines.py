"""A machine whose volume is in the tests' own Dropbox, logged in without a browser."""

from __future__ import annotations

import subprocess
from pathlib import Path

from megafs import clock
from megafs.stores.login.credentials import FILE, CredentialStore
from megafs.stores.login.grant import Grant
from megafs.stores.login.kinds import LoginKey
from tests.mount.machine import Machine
from tests.services.dropbox.server import CLIENT_ID, LASTS, DropboxService


class DropboxMachine(Machine):
    """api: the service, or a proxy in front of it."""

    def __init__(self, place: Path, name: str, service: DropboxService, api: str = "") -> None:
        super().__init__(place, name, url="dropbox:/home")
        self.service = service
        self.options = ("-o", f"api={api or service.url},requests=5000")
        self.log_in()

    def log_in(self) -> None:
        """What `megafs login` leaves behind."""
        grant = Grant(
            self.service.token(),
            self.service.refresh_token(),
            clock.now() + LASTS,
            LASTS,
            CLIENT_ID,
            token_endpoint=f"{self.service.url}/oauth2/token",
        )
        logins = CredentialStore(self.place / "state" / "logins")
        logins.put(LoginKey("dropbox"), grant.text, url=self.url, keep=FILE)

    def format(self, *args: str) -> None:
        super().format(*self.options, *args)

    def mount(self, *args: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        return super().mount(*self.options, *args, code=code)
