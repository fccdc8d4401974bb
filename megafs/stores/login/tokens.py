"""Tokens for a driver's requests: renewed by one task for all, and for all processes.

    class DropboxStore(ObjectStore):
        def __init__(self, tokens: TokenSource, ...): ...

        async def _request(self, ...):
            for again in (False, True):
                token = await self._tokens.token()
                reply = await self._session.request(..., {"authorization": f"Bearer {token}"})
                if reply.status != 401:
                    return reply
                await self._tokens.refused(token)  # Denied: people must log in again
            raise Denied(...)  # 401 to a token that came a moment ago

        async def aclose(self):
            await self._tokens.aclose()

    tokens = OAuthTokens(login, url)      # login: an OAuthLogin (kinds.py); asks nobody yet
    tokens = FixedToken("...")            # tests

A grant is renewed in a task of its own, which goes on when the request that began it is cancelled:
a service that gives a new refresh token each time has made the old one worthless by then.
"""

from __future__ import annotations

import contextvars
import logging
import os
from pathlib import Path
from typing import Protocol

import trio

from megafs.concurrency import offload
from megafs.errors import Denied, MegafsError, Unavailable
from megafs.stores import limit
from megafs.stores.http.session import Timeouts
from megafs.stores.login.credentials import CredentialStore
from megafs.stores.login.grant import Grant
from megafs.stores.login.kinds import OAuthLogin
from megafs.stores.login.token_endpoint import TokenRefused, ask

log = logging.getLogger(__name__)

#: Seconds before its end from which on a token is renewed in passing; at most half of its life.
EARLY = 5 * 60.0
#: From here on requests wait for the new one.
URGENT = 20.0
#: After a failure, the next attempt waits so many seconds: a service that is away is not asked by
#: every request, nor is the disk.
PAUSE = 10.0
#: Seconds that closing waits for a renewal that is under way.
CLOSING = 5.0
#: Another process renews the same grant: look again after so many seconds, for so long.
_LOCKED_PAUSE = 0.1
_LOCKED = 60.0


class TokenSource(Protocol):
    """Something that knows an access token that is good now."""

    async def token(self) -> str:
        """Return the access token.  Denied, with what to do, if there is none; Unavailable if the
        service does not renew it just now."""

    async def refused(self, token: str) -> None:
        """The service has answered 401 to *token*: return when there is another one.

        Whoever waits meanwhile waits for the same renewal.  Denied if people have to log in again;
        Unavailable if the service does not answer.
        """

    def advice(self) -> str:
        """What people must do, in one line, "" if nothing: for `status`."""

    async def aclose(self) -> None:
        """Finish a renewal that is under way, for some seconds."""


class FixedToken:
    """A token that never changes."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self) -> str:
        return self._token

    async def refused(self, token: str) -> None:
        raise Denied("the service refuses the token")

    def advice(self) -> str:
        return ""

    async def aclose(self) -> None:
        pass


class OAuthTokens:
    """The tokens of a login that `megafs login` has made (stores/login/credentials.py).

    url: of the store, for people.
    """

    def __init__(
        self,
        login: OAuthLogin,
        url: str,
        *,
        kept: CredentialStore | None = None,
        ca: Path | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        self._login = login
        self._command = f"megafs login {url}"
        self._kept = kept or CredentialStore()
        self._ca = ca
        self._timeouts = timeouts or Timeouts()
        self._grant: Grant | None = None
        self._bad = ""  # the token that was refused
        self._renewal: _Renewal | None = None
        self._failure: MegafsError | None = None
        self._failed_at = self._given_at = float("-inf")
        self._advice = ""

    async def token(self) -> str:
        grant = self._grant
        if grant is None or grant.access_token == self._bad:
            grant = await self._renewed()
        elif grant.ends_within(min(EARLY, grant.lasts / 2)):
            if _is_urgent(grant):
                grant = await self._renewed_or(grant)
            elif self._may_try():
                self._begin()
        return grant.access_token

    async def refused(self, token: str) -> None:
        grant = self._grant
        if grant is not None and grant.access_token != token:
            return  # another request has seen to it
        if trio.current_time() - self._given_at < PAUSE:
            exc = Denied(
                f"{self._login.key} refuses the token that it has just given: may this login do"
                f" what is asked? {self._command}"
            )
            self._tell(exc)
            raise exc
        self._bad = token
        await self._renewed()

    def advice(self) -> str:
        return self._advice

    async def aclose(self) -> None:
        renewal = self._renewal
        if renewal is not None:
            with trio.move_on_after(CLOSING, shield=True):
                await renewal.done.wait()
            renewal.scope.cancel()

    async def _renewed_or(self, grant: Grant) -> Grant:
        """Return a renewed grant, or *grant* as long as it lasts."""
        try:
            return await self._renewed()
        except (Denied, Unavailable):
            if grant.ends_within(0):
                raise
            return grant

    async def _renewed(self) -> Grant:
        """Wait for the renewal that is under way, or begin one."""
        if self._renewal is None and not self._may_try():
            assert self._failure is not None
            raise _anew(self._failure)
        renewal = self._begin()
        await renewal.done.wait()
        if renewal.failure is not None:
            raise _anew(renewal.failure) from renewal.failure
        assert self._grant is not None
        return self._grant

    def _may_try(self) -> bool:
        return self._failure is None or trio.current_time() - self._failed_at >= PAUSE

    def _begin(self) -> _Renewal:
        if self._renewal is None:
            self._renewal = _Renewal()
            context = contextvars.copy_context()
            # It outlives the attempt that began it, whose time is not its own.
            context.run(limit.attempt.set, None)
            trio.lowlevel.spawn_system_task(self._renew, self._renewal, context=context)
        return self._renewal

    async def _renew(self, renewal: _Renewal) -> None:
        """The task.  What it raises would end the process, so it raises nothing."""
        try:
            with renewal.scope:
                self._grant = await self._new_grant()
                self._bad = self._advice = ""
                self._failure = None
        except MegafsError as exc:
            self._failed(renewal, exc)
        except Exception as exc:
            log.exception("renewing a login failed; this is a bug")
            self._failed(renewal, Unavailable(f"the login was not renewed: {type(exc).__name__}"))
        finally:
            if renewal.failure is None and (self._grant is None or renewal.scope.cancelled_caught):
                self._failed(renewal, Unavailable("the login was not renewed in time"))
            self._renewal = None
            renewal.done.set()

    def _failed(self, renewal: _Renewal, exc: MegafsError) -> None:
        renewal.failure = self._failure = exc
        self._failed_at = trio.current_time()
        if isinstance(exc, Denied):
            self._tell(exc)

    def _tell(self, exc: Denied) -> None:
        """Say once what people must do; `status` shows it until there is another grant."""
        if self._advice != str(exc):
            self._advice = str(exc)
            log.error("%s", exc)

    async def _new_grant(self) -> Grant:
        """What is kept, if somebody has renewed it meanwhile, else what the service gives now."""
        grant = await self._read()
        if self._is_new(grant):
            return grant
        lock = await self._lock()
        try:
            grant = await self._read()
            if self._is_new(grant):
                return grant
            return await self._ask(grant)
        finally:
            os.close(lock)

    def _is_new(self, grant: Grant) -> bool:
        """Whether it is worth a request: neither refused, nor at its end, nor the one we have."""
        if grant.access_token == self._bad or _is_urgent(grant):
            return False
        ours = self._grant
        return ours is None or grant.access_token != ours.access_token

    async def _read(self) -> Grant:
        text = await offload(self._kept.get, self._login.key, kind="disk")
        if text is None:
            raise Denied(f"not logged in to {self._login.key}: {self._command}")
        return Grant.of(text)

    async def _lock(self) -> int:
        until = trio.current_time() + _LOCKED
        while True:
            lock = await offload(self._kept.try_lock, self._login.key, kind="disk")
            if lock is not None:
                return lock
            if trio.current_time() >= until:
                raise Unavailable("another process has been renewing the login for a minute")
            await trio.sleep(_LOCKED_PAUSE)

    async def _ask(self, grant: Grant) -> Grant:
        if not grant.refresh_token:
            raise Denied(f"the login to {self._login.key} has ended: {self._command}")
        endpoint = grant.token_endpoint or self._login.token
        form = {
            "grant_type": "refresh_token",
            "refresh_token": grant.refresh_token,
            "client_id": grant.client_id,
        }
        if grant.client_secret:
            form["client_secret"] = grant.client_secret
        try:
            answer = await ask(endpoint, form, ca=self._ca, timeouts=self._timeouts)
        except TokenRefused as exc:
            raise Denied(f"{exc}: log in again: {self._command}") from exc
        renewed = grant.renewed(answer)
        self._given_at = trio.current_time()
        # Whatever becomes of this process: the old refresh token may be worth nothing any more.
        await offload(self._kept.put, self._login.key, renewed.text, kind="disk")
        return renewed


def _is_urgent(grant: Grant) -> bool:
    return grant.ends_within(min(URGENT, grant.lasts / 4))


class _Renewal:
    """One renewal, for which any number of requests wait."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.scope = trio.CancelScope()
        self.failure: MegafsError | None = None


def _anew(failure: MegafsError) -> MegafsError:
    """The same error for one more waiter: a raised one collects the tracebacks of all."""
    if isinstance(failure, Unavailable):
        return Unavailable(str(failure), retry_after=failure.retry_after, busy=failure.busy)
    return (
        type(failure)(str(failure)) if type(failure) is not TokenRefused else Denied(str(failure))
    )
