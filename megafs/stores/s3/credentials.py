"""Where S3 credentials come from: the chain every AWS tool follows.

AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), AWS_PROFILE, ~/.aws/credentials
and ~/.aws/config with all they can say (roles, SSO, credential_process, web identity), containers,
and, only at AWS itself, the machine's own role.  botocore walks that chain; it takes 0.15 s and
25 MiB to import, so it is left out when the environment already has the answer, which is what the
chain would look at first.

An option may name a file with the keys instead, for fstab and units, which have no environment.

A source hands out `Credentials` for one request at a time: those that expire are renewed before
they do, in a thread, because that may ask a server.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Any, Protocol

import trio

from megafs.concurrency import offload
from megafs.errors import BadStore, Denied, Unavailable
from megafs.stores.s3.profile import read_sections
from megafs.stores.s3.sigv4 import Credentials

log = logging.getLogger(__name__)

#: How the credentials can be given, for people who have given none.
ADVICE = (
    "give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or as a profile"
    " in ~/.aws/credentials named by AWS_PROFILE or the option profile=, or in a file named by the"
    " option credentials_file="
)
#: Said besides where the store is not Amazon's.
NO_ROLE = "; a machine's own role (instance metadata) is asked for at AWS's endpoints only"

# A store that refuses everybody must not make us read files and ask token servers at every request.
_PAUSE = 10.0
# Seconds before their end from which on credentials are renewed in passing, every _AGAIN at most
# (those that live shorter than _EARLY are never outside of it), and from which on requests wait.
_EARLY = 15 * 60.0
_AGAIN = 60.0
_URGENT = 60.0

# A file of keys has a hundred bytes.
_FILE_LIMIT = 64 << 10


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

    def ends_within(self, seconds: float) -> bool:
        """Whether they expire so soon."""
        return self._renews and bool(self._found.refresh_needed(seconds))

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
    region: of the token service that a role is assumed at; "" for what the AWS files say.
    file: a file with the keys: nothing else is looked at.
    """

    def __init__(
        self, profile: str = "", *, at_aws: bool = True, region: str = "", file: Path | None = None
    ) -> None:
        self._profile = profile
        self._at_aws = at_aws
        self._region = region
        self._file = file
        self._found: Found | None = None
        self._credentials: Credentials | None = None
        self._reading = trio.Lock()
        self._renewing = False
        self._read_at = self._failed_at = self._renewed_at = float("-inf")

    async def current(self) -> Credentials:
        if self._credentials is None:
            async with self._reading:
                if self._credentials is None:
                    await self._read()
        elif self._found is not None and self._is_time(self._found):
            await self._renew()
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
            except (Denied, BadStore) as exc:
                # Perhaps somebody is just writing the file.
                log.debug("credentials, read again: %s", exc)
                return False
            return self._credentials != refused

    def _is_time(self, found: Found) -> bool:
        """Whether to renew: once when the end comes near, and not at every request then."""
        now = trio.current_time()
        if not found.ends_within(_EARLY):
            return False
        if found.ends_within(_URGENT):
            return found.ends_within(0) or now - self._failed_at >= _PAUSE
        return not self._renewing and now - self._renewed_at >= _AGAIN

    async def _renew(self) -> None:
        async with self._reading:
            found = self._found
            if found is None or not self._is_time(found):
                return  # another request has done it
            self._renewing, self._renewed_at = True, trio.current_time()
            try:
                self._credentials = await offload(found.values, kind="net")
            except (Denied, Unavailable) as exc:
                if found.ends_within(0):
                    raise
                self._failed_at = trio.current_time()
                log.debug("going on with credentials that end soon: %s", exc)
            finally:
                self._renewing = False

    async def _read(self) -> None:
        self._read_at = self._renewed_at = trio.current_time()
        if self._file is not None:
            self._found = None
            self._credentials = await offload(_from_file, self._file, self._profile, kind="disk")
            return
        environment = None if self._profile else _from_environment()
        if environment:
            self._found, self._credentials = None, environment
            return
        found = await offload(_walk, self._profile, self._at_aws, self._region, kind="net")
        self._credentials = await offload(found.values, kind="net")
        self._found = found


def _from_environment() -> Credentials | None:
    access, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not access or not secret or os.environ.get("AWS_CREDENTIAL_EXPIRATION"):
        return None
    token = os.environ.get("AWS_SESSION_TOKEN") or os.environ.get("AWS_SECURITY_TOKEN") or ""
    return Credentials(access, secret, token)


def _from_file(path: Path, section: str) -> Credentials:
    """Read a file of keys, in the form of ~/.aws/credentials or one line ACCESS:SECRET; blocks."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_FILE_LIMIT)
    except OSError as exc:
        raise BadStore(f"credentials_file={path}: {exc.strerror}") from exc
    if stat.S_ISREG(mode) and mode & 0o077:
        raise BadStore(f"credentials_file={path} can be read by others: chmod 600 {path}")
    try:
        text = data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise BadStore(f"credentials_file={path} is not text in ASCII") from None
    parts = text.split(":")
    if len(text.split()) == 1 and len(parts) == 2 and all(parts):
        return Credentials(*parts)
    section = section or "default"
    values = read_sections(text, f"credentials_file={path}").get(section, {})
    access, secret = values.get("aws_access_key_id"), values.get("aws_secret_access_key")
    if not access or not secret:
        raise Denied(
            f"credentials_file={path} has no aws_access_key_id and aws_secret_access_key in a"
            f" section [{section}], and is no line ACCESS:SECRET"
        )
    return Credentials(access, secret, values.get("aws_session_token", ""))


def _walk(profile: str, at_aws: bool, region: str) -> Found:
    """Ask botocore's chain; blocks."""
    import botocore.credentials
    import botocore.exceptions
    import botocore.session

    try:
        session = botocore.session.Session(profile=profile or None)
        if not region and session.get_config_variable("region") is None:
            region = "us-east-1"
        if region:  # a role is assumed at a token service, which lies in a region
            session.set_config_variable("region", region)
        if not at_aws:
            # Elsewhere the machine's role is worth nothing, and asking takes seconds to fail.
            session.get_component("credential_provider").remove("iam-role")
        found = session.get_credentials()
    except botocore.exceptions.ProfileNotFound as exc:
        raise BadStore(f"{exc}; see ~/.aws/config and ~/.aws/credentials") from exc
    except botocore.exceptions.BotoCoreError as exc:
        raise Denied(f"no credentials for the store: {_sentence(exc)}; {ADVICE}") from exc
    if found is None:
        raise Denied(f"no credentials for the store: {ADVICE}{'' if at_aws else NO_ROLE}")
    return Found(found, isinstance(found, botocore.credentials.RefreshableCredentials))


def _sentence(exc: Exception) -> str:
    return " ".join(str(exc).split())[:200].rstrip(".")
