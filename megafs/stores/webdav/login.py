"""Who we are to a WebDAV server: basic (RFC 7617), digest (RFC 7616) and bearer (RFC 6750).

The secret is read from a file, the environment, a netrc file, or what `megafs login` has kept;
never from the URL or the command line.  It only ever leaves in the header Authorization.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import netrc
import os
import re
import stat
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from megafs import clock
from megafs.concurrency import offload
from megafs.errors import BadStore, Denied
from megafs.secret_struct import SecretStruct
from megafs.stores.login.kept_password import KeptPassword
from megafs.stores.webdav.options import WebDavSettings

VARIABLE = "MEGAFS_WEBDAV_PASSWORD"
_FILE_LIMIT = 64 << 10
_PARAMETER = re.compile(r'([A-Za-z0-9_-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s",]+)')
_HASHES = {"MD5": "md5", "SHA-256": "sha256"}


class Secret(SecretStruct, frozen=True):
    """A user and what proves it."""

    user: str
    password: str

    _shown = ("user",)


class Challenge(Struct, frozen=True):
    """What the server asks for: scheme in lower case, "" if it is none of ours."""

    scheme: str = ""
    realm: str = ""
    nonce: str = ""
    opaque: str = ""
    algorithm: str = ""
    qop: bool = False
    stale: bool = False


class Kept(Protocol):
    """What `megafs login` has kept for this server."""

    def read(self, user: str) -> KeptPassword | None:
        """Return the login of *user*, "" for anybody; None if there is none.  Blocks."""

    @property
    def command(self) -> str:
        """The command that makes one."""


class Login:
    """Makes the header Authorization, and learns from refusals how it is to be made.

    kept: where to look if the options, the environment and netrc= give nothing; None for nowhere.
    """

    def __init__(
        self, settings: WebDavSettings, host: str, *, secure: bool, kept: Kept | None = None
    ) -> None:
        self._settings = settings
        self._host = host
        self._kept = kept
        self._prepared = False
        # What is sent without TLS must not be readable, except on this machine.
        self._clear = secure or _is_here(host)
        self._secret = self._read()
        self._challenge = Challenge(settings.auth if settings.auth in ("basic", "bearer") else "")
        self._count = 0

    @property
    def secret(self) -> Secret | None:
        return self._secret

    async def prepare(self) -> None:
        """Before the first request: read what is kept, if nothing else was given.

        Raises Denied if the options want a login and there is none.
        """
        if not self._prepared:
            if self._secret is None:
                self._secret = await self._read_kept()
            self._prepared = True

    def header(self, method: str, target: str) -> str | None:
        """Return the header's value for a request; None to send none."""
        secret, challenge = self._secret, self._challenge
        if secret is None:
            return None
        if challenge.scheme == "bearer":
            return f"Bearer {secret.password}"
        if challenge.scheme == "basic":
            both = f"{secret.user}:{secret.password}".encode()
            return "Basic " + base64.b64encode(both).decode()
        if challenge.scheme == "digest":
            self._count += 1
            return _digest(secret, challenge, self._count, method, target)
        return None

    async def refused(self, asked: str, sent: str | None, *, again: bool = False) -> bool:
        """Learn from a 401; say whether the request is worth sending once more.

        asked: its WWW-Authenticate.  sent: the Authorization that was refused.
        again: an Authorization was refused before, for the same request.
        """
        challenge = self._understood(asked)
        if sent is None:
            if self._secret is None:
                self._secret = await self._read_kept()  # somebody may have logged in meanwhile
            if self._secret is None:
                return False
            self._adopt(challenge)
            return bool(self._challenge.scheme)
        fresh = None if challenge.stale else self._read() or await self._read_kept()
        if fresh is not None and fresh != self._secret:
            self._secret = fresh
            self._adopt(challenge)
            return True
        # A nonce has an end, and this is the next one.  Not every server says that it was stale;
        # guessing for ever would have the account locked.
        if challenge.scheme == "digest" and challenge.nonce not in sent:
            self._adopt(challenge)
            return challenge.stale or not again
        return False

    def advice(self) -> str:
        """What to do about a refusal."""
        if self._secret is None:
            login = f"log in: {self._kept.command}; or " if self._kept is not None else ""
            return (
                f"{login}give user= and password_file= (a file with the password in its first"
                f" line), or {VARIABLE} in the environment, or netrc="
            )
        if not self._challenge.scheme:
            if not self._clear and self._settings.auth == "auto":
                return (
                    "it asks for a password that everybody on the way could read: use"
                    " webdav+https://, or auth=basic if the network is yours alone"
                )
            return f"it asks for no login that megafs knows, or not for auth={self._settings.auth}"
        if self._kept is not None and not self._is_given:
            return (
                f"log in again: {self._kept.command}; services with two factors want app passwords"
            )
        return "check user= and the password; services with two factors want an app password"

    @property
    def _is_given(self) -> bool:
        """Whether an option or the environment says where the password is."""
        given = self._settings.password_file or self._settings.netrc or os.environ.get(VARIABLE)
        return bool(given)

    def _adopt(self, challenge: Challenge) -> None:
        if challenge.scheme and challenge != self._challenge:
            self._challenge = challenge
            self._count = 0

    def _understood(self, asked: str) -> Challenge:
        """The best of what the server offers that the options allow."""
        auth = self._settings.auth
        found = {c.scheme: c for c in reversed(_challenges(asked))}
        for scheme in ("digest", "basic", "bearer"):
            if scheme in found and auth in ("auto", scheme):
                if scheme != "digest" and auth == "auto" and not self._clear:
                    continue
                return found[scheme]
        return Challenge()

    def _read(self) -> Secret | None:
        settings = self._settings
        user = settings.user
        if settings.password_file is not None:
            lines = _private(settings.password_file, "password_file").splitlines()
            return self._checked(user, lines[0] if lines else "", settings.password_file)
        if password := os.environ.get(VARIABLE):
            return self._checked(user, password, VARIABLE)
        if settings.netrc is not None:
            _private(settings.netrc, "netrc")
            try:
                known = netrc.netrc(str(settings.netrc)).authenticators(self._host)
            except (netrc.NetrcParseError, OSError, UnicodeDecodeError):
                # The error's text may quote the password.
                raise BadStore(f"netrc={settings.netrc} cannot be read as a netrc file") from None
            if known is None or (user and known[0] != user):
                raise Denied(f"netrc={settings.netrc} has no password for {self._host}")
            return self._checked(user or known[0], known[2] or "", settings.netrc)
        if self._kept is None and (user or settings.auth != "auto"):
            raise Denied(f"no password for {self._host}: give password_file=, netrc= or {VARIABLE}")
        return None

    async def _read_kept(self) -> Secret | None:
        settings = self._settings
        if self._kept is None or self._is_given:
            return None
        kept = await offload(self._kept.read, settings.user, kind="disk")
        if kept is not None:
            user = settings.user or kept.user
            return self._checked(user, kept.password, "the login that is kept")
        if settings.user or settings.auth != "auto":
            raise Denied(
                f"no password for {self._host}: {self._kept.command}; or give password_file=,"
                f" netrc= or {VARIABLE}"
            )
        return None

    def _checked(self, user: str, password: str, source: Path | str) -> Secret:
        where = str(source)
        if not password:
            raise Denied(f"{where}: the first line holds no password")
        if self._settings.auth == "bearer" and not re.fullmatch(r"[!-~]+", password):
            raise BadStore(f"{where}: a token is letters, digits and signs without spaces")
        if not user and self._settings.auth != "bearer":
            raise BadStore(f"{where} gives a password; give user= as well")
        return Secret(user, password)


def _private(path: Path, option: str) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_FILE_LIMIT)
    except OSError as exc:
        raise BadStore(f"{option}={path}: {exc.strerror}") from None
    if stat.S_ISREG(mode) and mode & 0o077:
        raise BadStore(f"{option}={path} can be read by others: chmod 600 {path}")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadStore(f"{option}={path} is not text in UTF-8") from None


def _challenges(asked: str) -> list[Challenge]:
    """Read WWW-Authenticate: several challenges may stand in one line (RFC 9110, 11.6.1)."""
    found: list[Challenge] = []
    starts = [
        match
        for match in re.finditer(r"(?:^|,)\s*([A-Za-z][A-Za-z-]*)(?=\s+[A-Za-z]|\s*(?:,|$))", asked)
        if match[1].lower() in ("basic", "digest", "bearer")
    ]
    for i, match in enumerate(starts):
        end = starts[i + 1].start() if i + 1 < len(starts) else len(asked)
        values = {}
        for name, value in _PARAMETER.findall(asked[match.end() : end]):
            if value.startswith('"'):
                value = re.sub(r"\\(.)", r"\1", value[1:-1])
            values[name.lower()] = value
        algorithm = values.get("algorithm", "MD5").upper()
        scheme = match[1].lower()
        if scheme == "digest":
            qops = [q.strip().lower() for q in values.get("qop", "").split(",") if q.strip()]
            if algorithm not in _HASHES or (qops and "auth" not in qops):
                continue
            found.append(
                Challenge(
                    scheme,
                    values.get("realm", ""),
                    values.get("nonce", ""),
                    values.get("opaque", ""),
                    algorithm,
                    bool(qops),
                    values.get("stale", "").lower() == "true",
                )
            )
        else:
            found.append(Challenge(scheme))
    # SHA-256 before MD5.
    return sorted(found, key=lambda c: c.algorithm != "SHA-256")


def _digest(secret: Secret, challenge: Challenge, count: int, method: str, target: str) -> str:
    def digest(*parts: str) -> str:
        return hashlib.new(
            _HASHES[challenge.algorithm], ":".join(parts).encode(), usedforsecurity=False
        ).hexdigest()

    who = digest(secret.user, challenge.realm, secret.password)
    what = digest(method, target)
    fields = {
        "username": secret.user,
        "realm": challenge.realm,
        "nonce": challenge.nonce,
        "uri": target,
    }
    if challenge.qop:
        client_nonce = clock.random_bytes(16).hex()
        number = f"{count:08x}"
        response = digest(who, challenge.nonce, number, client_nonce, "auth", what)
        more = f', qop=auth, nc={number}, cnonce="{client_nonce}"'
    else:
        response, more = digest(who, challenge.nonce, what), ""
    if challenge.opaque:
        fields["opaque"] = challenge.opaque
    fields["response"] = response
    quoted = ", ".join(
        '{}="{}"'.format(name, value.replace("\\", "\\\\").replace('"', '\\"'))
        for name, value in fields.items()
    )
    return f"Digest {quoted}, algorithm={challenge.algorithm}{more}"


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
