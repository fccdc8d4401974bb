"""`megafs logout`: forget a login, and end it at the service."""

from __future__ import annotations

import click

from megafs.cli import arguments, output
from megafs.cli.login import login_of
from megafs.errors import BadUsage, MegafsError, StoreError
from megafs.stores.drivers import location_of
from megafs.stores.login.kinds import LoginKind, OAuthLogin, SessionLogin


@click.command(name="logout", short_help="Forget a login, and end it at the service.")
@click.argument("url")
@click.option(
    "-o",
    "options",
    multiple=True,
    metavar="NAME=VALUE,...",
    help="Options of the store that say which login it is (user=, account=, ...).",
)
def command(url: str, options: tuple[str, ...]) -> None:
    """Forget the login to the service of the store at URL, and end it at the service if that can
    be.

    Mounts that use it go on with what is cached and staged, until somebody logs in again.
    """
    chosen = dict(arguments.mount_options(url, options).settings.store_options)
    kind = login_of(url, chosen)

    from megafs.concurrency import run_interruptible
    from megafs.stores.login.credentials import CredentialStore

    kept = CredentialStore()
    try:
        secret = kept.get(kind.key)
    except MegafsError as exc:  # damaged, or in a keyring that is locked: it is to go all the same
        output.warn(f"it could not be ended at the service: {exc}")
        secret = ""
    if secret is None:
        raise BadUsage(f"not logged in to {kind.key}; megafs login --list shows the logins")
    if secret:
        try:
            run_interruptible(_end, kind, url, chosen, secret)
        except StoreError as exc:
            output.warn(f"it is forgotten here, but could not be ended at the service: {exc}")
    if not kept.delete(kind.key):
        raise BadUsage(f"the login to {kind.key} is a credential of systemd: remove it there")
    output.show(f"logged out of {kind.key}")


async def _end(kind: LoginKind, url: str, options: dict[str, str], secret: str) -> None:
    from pathlib import Path

    if isinstance(kind, OAuthLogin):
        from megafs.stores.login.authorize import revoke
        from megafs.stores.login.grant import Grant

        ca = Path(options["ca"]) if options.get("ca") else None
        await revoke(kind, Grant.of(secret), ca=ca)
    elif isinstance(kind, SessionLogin):
        from megafs.stores.login.session_login import log_out_of

        await log_out_of(kind)(location_of(url), options, secret)
