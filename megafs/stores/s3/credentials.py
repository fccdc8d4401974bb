"""Where S3 credentials come from: the chain every AWS tool follows.

AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), AWS_PROFILE, ~/.aws/credentials
and ~/.aws/config with all they can say (roles, SSO, credential_process, web identity), containers,
and, only at AWS itself, the machine's own role.  botocore walks that chain; it takes 0.15 s and
25 MiB to import, so it is left out when the environment already has the answer, which is what the
chain would look at first.

A source hands out `Credentials` for one request at a time: those that expire are renewed before
they do, in a thread, because that may ask a server.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

import trio

from megafs.concurrency import offload
from megafs.errors import BadStore, Denied, Unavailable
from megafs.stores.s3.sigv4 import Credentials

#: How the credentials can be given, for people who have given none.
ADVICE = (
    "give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or as a profile"
    " in ~/.aws/credentials named by AWS_PROFILE or the option profile="
)

# A store that refuses everybody must not make us read files and ask token servers at every request.
_PAUSE = 10.0


class Source(Protocol):
    """Something that knows our credentials."""

    async def current(self) -> Credentials:
        """Return credentials that are good now; Denied with advice if there are none."""

    async def renewed(self, refused: Credentials) -> bool:
        """Look again after the store has *refused* some; say if there are others now."""


class Fixed:
    """Credentials that are known and never change."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def current(self) -> Credentials:
        return self._credentials

    async def renewed(self, refused: Credentials) -> bool:
        return False


class Found:
    """Credentials that botocore's chain has found.

    found: botocore's object.  renews: whether they expire, and it knows how to renew them.
    """

    def __init__(self, found: Any, renews: bool) -> None:
        self._found = found
        self._renews = renews

    def must_renew(self) -> bool:
        """Whether they expire soon."""
        return self._renews and bool(self._found.refresh_needed())

    def values(self) -> Credentials:
        """Return the credentials, renewed if it is time; blocks."""
        import botocore.exceptions

        try:
            values = self._found.get_frozen_credentials()
        except botocore.exceptions.ConnectionError as exc:
            raise Unavailable(f"cannot renew the store's credentials: {_sentence(exc)}") from exc
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as exc:
            raise Denied(f"cannot renew the store's credentials: {_sentence(exc)}") from exc
        if not values.access_key or not values.secret_key:
            raise Denied(f"no credentials for the store: {ADVICE}")
        return Credentials(values.access_key, values.secret_key, values.token or "")


class Chain:
    """Credentials as AWS tools find them.

    profile: a section of the AWS files; then the environment's keys are not looked at.
    at_aws: whether the machine's own role may be asked for (it is AWS's metadata service).
    """

    def __init__(self, profile: str = "", *, at_aws: bool = True) -> None:
        self._profile = profile
        self._at_aws = at_aws
        self._found: Found | None = None
        self._credentials: Credentials | None = None
        self._reading = trio.Lock()
        self._read_at = -_PAUSE

    async def current(self) -> Credentials:
        if self._credentials is None or self._must_renew():
            async with self._reading:
                if self._credentials is None:
                    await self._read()
                elif self._found is not None and self._found.must_renew():
                    self._credentials = await offload(self._found.values, kind="net")
        assert self._credentials is not None
        return self._credentials

    async def renewed(self, refused: Credentials) -> bool:
        async with self._reading:
            if self._credentials != refused:
                return True  # somebody else has read them again meanwhile
            if trio.current_time() - self._read_at < _PAUSE:
                return False
            try:
                await self._read()
            except Denied:
                return False
            return self._credentials != refused

    def _must_renew(self) -> bool:
        return self._found is not None and self._found.must_renew()

    async def _read(self) -> None:
        self._read_at = trio.current_time()
        environment = None if self._profile else _from_environment()
        if environment:
            self._found, self._credentials = None, environment
            return
        found = await offload(_walk, self._profile, self._at_aws, kind="net")
        self._credentials = await offload(found.values, kind="net")
        self._found = found


def _from_environment() -> Credentials | None:
    access, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not access or not secret or os.environ.get("AWS_CREDENTIAL_EXPIRATION"):
        return None
    token = os.environ.get("AWS_SESSION_TOKEN") or os.environ.get("AWS_SECURITY_TOKEN") or ""
    return Credentials(access, secret, token)


def _walk(profile: str, at_aws: bool) -> Found:
    """Ask botocore's chain; blocks."""
    import botocore.credentials
    import botocore.exceptions
    import botocore.session

    try:
        session = botocore.session.Session(profile=profile or None)
        if not at_aws:
            # Elsewhere the machine's role is worth nothing, and asking takes seconds to fail.
            session.get_component("credential_provider").remove("iam-role")
        found = session.get_credentials()
    except botocore.exceptions.ProfileNotFound as exc:
        raise BadStore(f"{exc}; see ~/.aws/config and ~/.aws/credentials") from exc
    except botocore.exceptions.BotoCoreError as exc:
        raise Denied(f"no credentials for the store: {_sentence(exc)}; {ADVICE}") from exc
    if found is None:
        raise Denied(f"no credentials for the store: {ADVICE}")
    return Found(found, isinstance(found, botocore.credentials.RefreshableCredentials))


def _sentence(exc: Exception) -> str:
    return " ".join(str(exc).split())[:200].rstrip(".")
