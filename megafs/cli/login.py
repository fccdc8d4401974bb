"""`megafs login`: who this user is to the service of a store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from megafs.cli import arguments, output
from megafs.errors import AlreadyThere, BadUsage, Denied, StoreError, Unavailable
from megafs.stores.drivers import DRIVERS, driver_of, location_of
from megafs.stores.login.kinds import LoginKind, OAuthLogin, PasswordLogin, SessionLogin

if TYPE_CHECKING:
    from megafs.cli.talk import Terminal


@click.command(name="login", short_help="Log in to the service of a store.")
@click.argument("url", required=False)
@click.option(
    "-o",
    "options",
    multiple=True,
    metavar="NAME=VALUE,...",
    help="Options of the store (client_id=, user=, auth=, ...); see megafs help options.",
)
@click.option("--list", "as_list", is_flag=True, help="Show the logins of this user.")
@click.option(
    "--paste", is_flag=True, help="For a browser on another machine: bring the code by hand."
)
@click.option(
    "--device", is_flag=True, help="Type a short code into the service's page, on any machine."
)
@click.option(
    "--password-file",
    type=click.Path(path_type=Path),
    help="File whose first line is the password or token, instead of the terminal.",
)
@click.option(
    "--keep",
    type=click.Choice(["keyring", "file"]),
    help="Where it is kept. [the desktop's keyring if there is one, else a file]",
)
@click.option(
    "--write-credential",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write it to a new FILE for systemd's LoadCredential, and keep it nowhere else.",
)
@arguments.json_option
def command(
    url: str | None,
    options: tuple[str, ...],
    *,
    as_list: bool,
    paste: bool,
    device: bool,
    password_file: Path | None,
    keep: str | None,
    write_credential: Path | None,
    as_json: bool,
) -> None:
    """Log in to the service of the store at URL, once for all volumes of that account there.

    The login is kept for this user on this machine, and mounts renew it. No secret is taken from
    the command line.
    """
    if as_list:
        if url is not None:
            raise BadUsage("--list takes no URL")
        _list(as_json)
        return
    if url is None:
        raise BadUsage("megafs login URL, or megafs login --list")
    if paste and device:
        raise BadUsage("say only one of --paste and --device")
    chosen = dict(arguments.mount_options(url, options).settings.store_options)
    kind = login_of(url, chosen)
    if write_credential is not None and os.path.lexists(write_credential):
        raise AlreadyThere(f"{write_credential} is there already")

    from megafs.cli.talk import Terminal
    from megafs.concurrency import run_interruptible
    from megafs.stores.login.credentials import CredentialStore, credential_name

    kept = CredentialStore()
    talk = Terminal()

    async def log_in() -> str:
        match kind:
            case OAuthLogin():
                return await _granted(kind, talk, chosen, paste=paste, device=device)
            case PasswordLogin():
                return await _password(kind, talk, password_file)
            case SessionLogin():
                from megafs.stores.login.session_login import log_in_of

                return await log_in_of(kind)(location_of(url), chosen, talk.ask)

    if isinstance(kind, PasswordLogin) and (paste or device):
        raise BadUsage("--paste and --device are for services with a page to log in")
    if password_file is not None and not isinstance(kind, PasswordLogin):
        raise BadUsage(f"{kind.key} has no password that a file could give")
    secret = run_interruptible(log_in)
    if write_credential is not None:
        _write_new(write_credential, secret)
        name = credential_name(kind.key)
        if as_json:
            output.show_json({"file": str(write_credential), "credential": name})
        else:
            output.show(f"written; in the unit: LoadCredential={name}:{write_credential}")
        return
    before = kept.get(kind.key)
    where = kept.put(kind.key, secret, url=url, keep=keep or "")
    if isinstance(kind, PasswordLogin):
        try:
            run_interruptible(_check, url, chosen)
        except Unavailable as exc:
            output.warn(f"the login is kept, but could not be tried: {exc}")
        except Denied:
            if before is None:
                kept.delete(kind.key)
            else:
                kept.put(kind.key, before, url=url)
            raise
    if as_json:
        output.show_json({"service": kind.key.service, "account": kind.key.account, "kept": where})
    else:
        output.show(f"logged in to {kind.key}; kept in {_place(where)}")


def login_of(url: str, options: dict[str, str]) -> LoginKind:
    """Return how to log in to the store at *url*; BadUsage if its service has no such thing."""
    driver = driver_of(url)
    location = location_of(url)
    if driver.login is None:
        others = sorted({d.prefix for d in DRIVERS.values() if d.login and not d.for_tests})
        advice = {
            "s3": "; keys for S3 come from the environment or ~/.aws: README.md, Use it",
        }.get(driver.scheme, "")
        raise BadUsage(
            f"{driver.prefix} stores have no login{advice} (those with one: {', '.join(others)})"
        )
    return driver.login(location, options)


async def _granted(
    kind: OAuthLogin, talk: Terminal, options: dict[str, str], *, paste: bool, device: bool
) -> str:
    from megafs.stores.login import authorize

    ca = Path(options["ca"]) if options.get("ca") else None
    if device and not kind.device:
        raise BadUsage(f"{kind.key} has no codes for devices: use --paste")
    if paste:
        way = authorize.by_paste
    elif device or (kind.device and not talk.has_browser()):
        way = authorize.by_device
    elif talk.has_browser():
        way = authorize.by_browser
    else:
        way = authorize.by_paste
    return (await way(kind, talk, ca=ca)).text


async def _password(kind: PasswordLogin, talk: Terminal, file: Path | None) -> str:
    from megafs.cli.passphrase import first_line_of
    from megafs.stores.login.kept_password import KeptPassword

    if kind.advice and file is None:
        talk.say(kind.advice)
    user = kind.user
    if kind.wants_user and not user:
        if file is not None:
            raise BadUsage("--password-file gives no user: give -o user= as well")
        user = await talk.ask("User: ")
    if file is not None:
        password = first_line_of(file, "password file")
    else:
        what = "App password" if kind.wants_user else "Token"
        password = await talk.ask(f"{what}: ", secret=True)
    if not password:
        raise BadUsage("an empty password is none")
    return KeptPassword(password, user).text


async def _check(url: str, options: dict[str, str]) -> None:
    """Ask the store for something: Denied if it does not know us."""
    from megafs.stores.stack import open_driver

    store = open_driver(url, options, connections=1)
    try:
        await store.list("", limit=1)
    except (Denied, Unavailable):
        raise
    except StoreError:
        pass  # a folder that is still to be made
    finally:
        await store.aclose()


def _write_new(path: Path, secret: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    with open(fd, "w") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())


def _list(as_json: bool) -> None:
    from megafs.stores.login.credentials import CredentialStore

    known = CredentialStore().all()
    if as_json:
        output.show_json(
            [
                {
                    "service": login.service,
                    "account": login.account,
                    "url": login.url,
                    "kept": login.kept,
                    "changed": login.changed,
                }
                for login in known
            ]
        )
    elif known:
        heads = ["service", "account", "kept in", "changed", "url"]
        lines = [
            [
                login.service,
                login.account or "-",
                _place(login.kept),
                output.ago(login.changed),
                login.url,
            ]
            for login in known
        ]
        output.show(*output.table(heads, lines))
    else:
        output.note("this user is logged in nowhere")


def _place(kept: str) -> str:
    return {"keyring": "the desktop's keyring", "file": "a private file"}.get(kept, kept)
