"""The ways to a grant: a code from the browser with PKCE (RFC 7636), or a device's code (RFC 8628).

`Talk` is whoever sits at the terminal.  Nothing secret is ever in an address: the page for the
browser gets the hash of the verifier, and the code that comes back is worth nothing without it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, urlencode, urlsplit

import trio

from megafs import clock
from megafs.errors import BadStore, BadUsage, Denied, Unavailable
from megafs.stores.login.grant import Grant
from megafs.stores.login.kinds import OAuthLogin, check_endpoint
from megafs.stores.login.loopback import listening
from megafs.stores.login.token_endpoint import TokenRefused, ask

_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
#: Seconds that people have for the page.
PATIENCE = 600.0
#: Seconds between two questions of a device, unless the service says otherwise; what `slow_down`
#: adds (RFC 8628, 3.5); and the most that a service can ask for.
_INTERVAL, _SLOWER, _LONGEST = 5.0, 5.0, 60.0
_SECRET_LIMIT = 4 << 10


class Talk(Protocol):
    """The people who log in."""

    def say(self, *lines: str) -> None:
        """Show lines."""

    async def ask(self, question: str, *, secret: bool = False) -> str:
        """Ask a question.  secret: what is typed is not shown."""

    async def open_browser(self, address: str) -> bool:
        """Open the browser of this machine; False if there is none.  address: holds no secret."""


async def by_browser(login: OAuthLogin, talk: Talk, *, ca: Path | None = None) -> Grant:
    """Log in with the browser of this machine.

    Raises Denied if the service or its user says no, Unavailable if it does not answer or nobody
    does.
    """
    state, verifier = _random(), _random()
    async with listening(state, login.port) as redirect:
        page = _page(login, verifier, state, redirect.redirect_uri)
        if not await talk.open_browser(redirect.lead_to(page)):
            talk.say("no browser can be opened here")
        talk.say("If no page opens in the browser, open this one:", page)
        with trio.move_on_after(PATIENCE) as scope:
            code = await redirect.code()
    if scope.cancelled_caught:
        raise Unavailable(f"nobody answered the page within {PATIENCE / 60:.0f} minutes")
    return await _exchange(login, code, verifier, redirect.redirect_uri, ca)


async def by_paste(login: OAuthLogin, talk: Talk, *, ca: Path | None = None) -> Grant:
    """Log in with the browser of another machine: people bring the code.

    Where the service does not show the code, the browser is sent to an address of loopback that
    nobody serves, and people bring that address.
    """
    state, verifier = _random(), _random()
    # Nobody listens there; any port will do, and this one is no program's (RFC 6335).
    redirect = "" if login.pastes_code else f"http://127.0.0.1:{login.port or 49151}/"
    talk.say("Open this page in any browser:", _page(login, verifier, state, redirect))
    if redirect:
        talk.say(
            "At its end the browser cannot show a page whose address begins with"
            f" {redirect}: that is right. Copy that address."
        )
    while True:
        typed = (
            await talk.ask("Code, or address: " if redirect else "Code: ", secret=True)
        ).strip()
        code = _code_in(typed, state)
        if code:
            break
        talk.say("that is neither a code nor the address with one from this login")
    return await _exchange(login, code, verifier, redirect, ca)


async def by_device(
    login: OAuthLogin,
    talk: Talk,
    *,
    ca: Path | None = None,
    sleep: Callable[[float], Awaitable[object]] = trio.sleep,
) -> Grant:
    """Log in by a short code that people type into a page of the service, on any machine."""
    secret = _client_secret(login)
    form = {"client_id": _client_id(login), "scope": " ".join(login.scopes)}
    answer = await ask(login.device, form, ca=ca)
    device_code, user_code = answer.get("device_code"), answer.get("user_code")
    page = answer.get("verification_uri") or answer.get("verification_url")  # as Google calls it
    if not (isinstance(device_code, str) and isinstance(user_code, str) and isinstance(page, str)):
        raise BadStore("the service's answer to the login holds no code for a device")
    talk.say(f"Open {check_endpoint(page)} in any browser and type this code there:", user_code)
    form = {
        "grant_type": _DEVICE_GRANT,
        "device_code": device_code,
        "client_id": form["client_id"],
    }
    if secret:
        form["client_secret"] = secret
    pause = _number(answer.get("interval"), _INTERVAL, _LONGEST)
    ends = trio.current_time() + _number(answer.get("expires_in"), PATIENCE, 3600.0)
    while True:
        await sleep(pause)
        try:
            return _begun(login, secret).renewed(await ask(login.token, form, ca=ca))
        except TokenRefused as exc:
            if exc.code == "slow_down":
                pause = min(pause + _SLOWER, _LONGEST)
            elif exc.code != "authorization_pending":
                raise _refused(exc) from None
        except Unavailable as exc:  # RFC 8628, 3.5: back off, and go on
            pause = min(max(2 * pause, exc.retry_after or 0.0), _LONGEST)
        if trio.current_time() >= ends:
            raise Unavailable("nobody typed the code in time")


async def revoke(login: OAuthLogin, grant: Grant, *, ca: Path | None = None) -> None:
    """Tell the service that the grant is over, if it can be told (RFC 7009)."""
    if login.revoke:
        token = grant.refresh_token or grant.access_token
        form = {"token": token, "client_id": grant.client_id}
        if grant.client_secret:
            form["client_secret"] = grant.client_secret
        await ask(login.revoke, form, ca=ca)


async def _exchange(
    login: OAuthLogin, code: str, verifier: str, redirect: str, ca: Path | None
) -> Grant:
    secret = _client_secret(login)
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "code_verifier": verifier,
        "client_id": _client_id(login),
    }
    if redirect:
        form["redirect_uri"] = redirect
    if secret:
        form["client_secret"] = secret
    try:
        return _begun(login, secret).renewed(await ask(login.token, form, ca=ca))
    except TokenRefused as exc:
        raise _refused(exc) from None


def _page(login: OAuthLogin, verifier: str, state: str, redirect: str) -> str:
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
    query = {
        "client_id": _client_id(login),
        "response_type": "code",
        "code_challenge": challenge.rstrip(b"=").decode(),
        "code_challenge_method": "S256",
        "state": state,
        **({"redirect_uri": redirect} if redirect else {}),
        **({"scope": " ".join(login.scopes)} if login.scopes else {}),
        **dict(login.parameters),
    }
    return f"{check_endpoint(login.authorize)}?{urlencode(query)}"


def _code_in(typed: str, state: str) -> str:
    """The code in what people brought; "" if there is none, or it is another login's."""
    if "://" not in typed:
        return typed if re.fullmatch(r"[!-~]{1,4096}", typed) else ""
    try:
        query = parse_qs(urlsplit(typed).query, max_num_fields=32)
    except ValueError:
        return ""
    if not hmac.compare_digest(query.get("state", [""])[0].encode(), state.encode()):
        return ""
    if "error" in query:
        raise Denied("the service did not allow the login")
    return query.get("code", [""])[0]


def _begun(login: OAuthLogin, secret: str) -> Grant:
    return Grant("", client_id=login.client_id, client_secret=secret, token_endpoint=login.token)


def _client_id(login: OAuthLogin) -> str:
    if not login.client_id:
        raise BadUsage(f"give -o client_id=, of an application of your own: {login.advice}")
    return login.client_id


def _client_secret(login: OAuthLogin) -> str:
    if not login.client_secret_file:
        return ""
    path = Path(login.client_secret_file)
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            secret = file.read(_SECRET_LIMIT).decode("ascii").partition("\n")[0].strip()
    except OSError as exc:
        raise BadStore(f"client_secret_file={path}: {exc.strerror}") from None
    except UnicodeDecodeError:
        secret = ""
    if stat.S_ISREG(mode) and mode & 0o077:
        raise BadStore(f"client_secret_file={path} can be read by others: chmod 600 {path}")
    if not secret:
        raise BadStore(f"client_secret_file={path}: the first line holds no secret")
    return secret


def _refused(exc: TokenRefused) -> Denied:
    what = {
        "access_denied": "the login was refused at the service",
        "expired_token": "nobody typed the code in time",
        "invalid_client": "the service does not know the application: check client_id=",
        "invalid_grant": "the service does not take the code: is it this login's, and used once?",
    }.get(exc.code)
    return Denied(f"{exc}; {what}" if what else str(exc))


def _random() -> str:
    """43 letters: a verifier of PKCE has at least as many."""
    return base64.urlsafe_b64encode(clock.random_bytes(32)).rstrip(b"=").decode()


def _number(value: object, otherwise: float, most: float) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) else otherwise
    except ValueError:
        number = otherwise
    return min(number, most) if number > 0 else otherwise
