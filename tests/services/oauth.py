"""A service with OAuth 2.0: authorization code with PKCE, refresh, device, revocation.

    async with serving(OAuthService()) as service:
        login = service.login()            # an OAuthLogin with this service's endpoints
        ...
        service.revoke_all()               # somebody has taken the access away

It holds clients to the standards: a wrong verifier, redirect, client or scheme is refused, a code
works once (RFC 6749, 4.1.2), a refresh token that was replaced already takes the whole grant with
it (RFC 9700, 4.14.2), a device that polls sooner than it was told is told to slow down (RFC 8628).
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlencode, urlsplit

import trio

from megafs.stores.login.kinds import LoginKey, OAuthLogin
from tests.fakes.proxy import Fault, Proxy, Request, Response, ThreadedProxy, proxying

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


@dataclass
class Given:
    """An access that somebody gave to a client."""

    client: str
    access: set[str] = field(default_factory=set)
    refresh: str = ""
    replaced: set[str] = field(default_factory=set)
    ended: bool = False


@dataclass
class Code:
    client: str
    challenge: str
    redirect: str
    used: bool = False


@dataclass
class Device:
    client: str
    user_code: str
    interval: float
    polled: float = float("-inf")
    approved: bool | None = None


class OAuthService(Fault):
    """The service.

    lasts: seconds of an access token.  rotates: every refresh gives a new refresh token.
    keeps_time: whether it says how long a token lasts.  slow: seconds before a token's answer.
    refuses: the owner says no on the page.
    """

    def __init__(
        self,
        *,
        lasts: float = 3600.0,
        rotates: bool = True,
        keeps_time: bool = True,
        slow: float = 0.0,
        refuses: bool = False,
        client_secret: str = "",
        interval: float = 0.05,
    ) -> None:
        self.lasts, self.rotates, self.keeps_time = lasts, rotates, keeps_time
        self.slow, self.refuses, self.interval = slow, refuses, interval
        self.client_secret = client_secret
        self.clients = {"our-client"}
        self.given: list[Given] = []
        self.codes: dict[str, Code] = {}
        self.devices: dict[str, Device] = {}
        #: Requests by what they asked for: "authorization_code", "refresh_token", "device" ...
        self.asked: list[str] = []
        #: Every secret that was given out or sent here, to look for them elsewhere.
        self.secrets: set[str] = set()
        self.proxy: Proxy

    @property
    def endpoint(self) -> str:
        return self.proxy.endpoint

    def login(self, *, client_id: str = "our-client", device: bool = False) -> OAuthLogin:
        """How to log in here."""
        return OAuthLogin(
            LoginKey("testcloud"),
            authorize=f"{self.endpoint}/authorize",
            token=f"{self.endpoint}/token",
            device=f"{self.endpoint}/device" if device else "",
            revoke=f"{self.endpoint}/revoke",
            scopes=("files.read", "files.write"),
            client_id=client_id,
        )

    def give(self, client: str = "our-client") -> Given:
        """An access without the way there."""
        given = Given(client)
        self.given.append(given)
        return given

    def answer(self, given: Given) -> dict[str, object]:
        """The answer of the token endpoint: new tokens."""
        access = self._secret("a")
        given.access = {access}
        if self.rotates or not given.refresh:
            if given.refresh:
                given.replaced.add(given.refresh)
            given.refresh = self._secret("r")
        values: dict[str, object] = {"access_token": access, "token_type": "Bearer"}
        if self.keeps_time:
            values["expires_in"] = self.lasts
        if self.rotates or not given.replaced:
            values["refresh_token"] = given.refresh
        return values

    def accepts(self, access: str) -> bool:
        """Whether the token opens anything."""
        return any(access in given.access and not given.ended for given in self.given)

    def forget_access(self) -> None:
        """Every access token ends now; refresh tokens do not."""
        for given in self.given:
            given.access.clear()

    def revoke_all(self) -> None:
        """Nobody has access any more."""
        for given in self.given:
            given.ended = True

    def decide(self, user_code: str, approved: bool) -> None:
        """Somebody types the code of a device into the page, and says yes or no."""
        next(d for d in self.devices.values() if d.user_code == user_code).approved = approved

    async def before(self, request: Request, client: trio.SocketStream) -> Response:
        parts = urlsplit(request.target)
        query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        form = {k: v[0] for k, v in parse_qs(request.body.decode("latin-1")).items()}
        match request.method, parts.path:
            case "GET", "/authorize":
                return self._authorize(query)
            case "POST", "/token" if not query:
                await trio.sleep(self.slow)
                return self._token(form)
            case "POST", "/device" if not query:
                return self._device(form)
            case "POST", "/revoke" if not query:
                self.asked.append("revoke")
                for given in self.given:
                    if form.get("token") in {given.refresh, *given.access}:
                        given.ended = True
                return Response(200, {}, b"")
            case "GET", "/resource":
                scheme, _, token = request.headers.get("authorization", "").partition(" ")
                good = scheme == "Bearer" and self.accepts(token)
                return Response(200 if good else 401, {}, b"")
        return Response(404, {}, b"")

    def _authorize(self, query: dict[str, str]) -> Response:
        self.asked.append("authorize")
        redirect = query.get("redirect_uri", "")
        wrong = (
            query.get("client_id") not in self.clients
            or query.get("response_type") != "code"
            or query.get("code_challenge_method") != "S256"
            or len(query.get("code_challenge", "")) != 43
            or bool(set(query) & {"client_secret", "code_verifier"})
            or (redirect and urlsplit(redirect).hostname not in ("127.0.0.1", "::1"))
        )
        if wrong:  # never a redirect: the address may be an attacker's (RFC 6749, 4.1.2.1)
            return Response(400, {"content-type": "text/html"}, b"<p>bad request</p>")
        state = {"state": query["state"]} if "state" in query else {}
        if self.refuses:
            return _redirect(redirect, {"error": "access_denied"} | state)
        code = self._secret("c")
        self.codes[code] = Code(query["client_id"], query["code_challenge"], redirect)
        if not redirect:
            page = f"<p>Your code: <code>{code}</code></p>"
            return Response(200, {"content-type": "text/html"}, page.encode())
        return _redirect(redirect, {"code": code} | state)

    def _token(self, form: dict[str, str]) -> Response:
        kind = form.get("grant_type", "")
        self.asked.append(kind)
        if form.get("client_id") not in self.clients:
            return _error(401, "invalid_client")
        if self.client_secret and form.get("client_secret") != self.client_secret:
            return _error(401, "invalid_client")
        match kind:
            case "authorization_code":
                return self._code(form)
            case "refresh_token":
                return self._refresh(form)
            case _ if kind == DEVICE_GRANT:
                return self._poll(form)
        return _error(400, "unsupported_grant_type")

    def _code(self, form: dict[str, str]) -> Response:
        code = self.codes.get(form.get("code", ""))
        verifier = form.get("code_verifier", "")
        self.secrets.add(verifier)
        digest = hashlib.sha256(verifier.encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if (
            code is None
            or code.used
            or code.challenge != challenge
            or not 43 <= len(verifier) <= 128
            or code.client != form["client_id"]
            or code.redirect != form.get("redirect_uri", "")
        ):
            return _error(400, "invalid_grant")
        code.used = True
        return _json(200, self.answer(self.give(code.client)))

    def _refresh(self, form: dict[str, str]) -> Response:
        token = form.get("refresh_token", "")
        for given in self.given:
            if token in given.replaced:
                given.ended = True  # it was stolen, for all that the service knows
            if token == given.refresh and not given.ended and given.client == form["client_id"]:
                return _json(200, self.answer(given))
        return _error(400, "invalid_grant")

    def _device(self, form: dict[str, str]) -> Response:
        self.asked.append("device")
        if form.get("client_id") not in self.clients:
            return _error(401, "invalid_client")
        code = self._secret("d")
        device = Device(form["client_id"], secrets.token_hex(3).upper(), self.interval)
        self.devices[code] = device
        values = {
            "device_code": code,
            "user_code": device.user_code,
            "verification_uri": f"{self.endpoint}/activate",
            "expires_in": 600,
            "interval": self.interval,
        }
        return _json(200, values)

    def _poll(self, form: dict[str, str]) -> Response:
        device = self.devices.get(form.get("device_code", ""))
        if device is None:
            return _error(400, "expired_token")
        now = trio.current_time()
        early = now - device.polled < device.interval * 0.9
        device.polled = now
        if early:
            device.interval += 5
            return _error(400, "slow_down")
        if device.approved is None:
            return _error(428, "authorization_pending")  # as Google does; RFC 8628 says 400
        if not device.approved:
            return _error(400, "access_denied")
        del self.devices[form["device_code"]]
        return _json(200, self.answer(self.give(device.client)))

    def _secret(self, kind: str) -> str:
        made = f"{kind}-{secrets.token_urlsafe(24)}"
        self.secrets.add(made)
        return made


def _json(status: int, values: dict[str, object]) -> Response:
    headers = {"content-type": "application/json", "cache-control": "no-store"}
    return Response(status, headers, json.dumps(values).encode())


def _error(status: int, code: str) -> Response:
    return _json(status, {"error": code, "error_description": "as the \x1b[31mstandard says"})


def _redirect(to: str, values: dict[str, str]) -> Response:
    return Response(302, {"location": f"{to}?{urlencode(values)}"}, b"")


class _Front(Proxy):
    """A proxy whose last rule is the service: faults are put before it as everywhere."""

    service: OAuthService

    def _fault(self, request: Request) -> Fault | None:
        return super()._fault(request) or self.service


class ThreadedOAuth(ThreadedProxy):
    """A service in a thread of its own, for programs."""

    def __init__(self, service: OAuthService) -> None:
        super().__init__("")
        self.service = service

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        async with serving(self.service) as service:
            yield service.proxy


@asynccontextmanager
async def serving(service: OAuthService) -> AsyncIterator[OAuthService]:
    """Run *service* for the block."""
    async with proxying("http://127.0.0.1:9", _Front) as front:
        assert isinstance(front, _Front)
        front.service = service
        service.proxy = front
        yield service
