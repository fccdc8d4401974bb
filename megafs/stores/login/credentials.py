"""What proves who we are, kept on this machine: one secret text for each login.

A login is a file `<state>/logins/<service>-<hash>`, mode 0600, written atomically.  It holds the
secret itself, or says that the desktop's keyring holds it.  Keyrings cannot be listed, and are not
there when a mount starts at boot; so `megafs login` uses one only if it is there, and whoever
renews a secret writes it back to where it was.

systemd: a unit with `LoadCredential=megafs.login.dropbox:/etc/...` finds it in
$CREDENTIALS_DIRECTORY, which is read-only.  What was renewed is kept in the state directory, with
the hash of the credential that it came from, and counts as long as that is the one that is loaded.

Everything here blocks, for a sync or for the keyring: call it in a thread.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
from blake3 import blake3

from megafs import clock
from megafs.config import state_home
from megafs.durable import replace_file, sync_directory
from megafs.errors import Corrupt, Denied, Full, MegafsError, Stopped
from megafs.private_files import check_directory, make_directories, open_private, read_private
from megafs.secret_struct import SecretStruct
from megafs.stores.login import desktop_keyring
from megafs.stores.login.kinds import LoginKey

#: A session of MEGA has some kilobytes of keys.
LIMIT = 256 << 10
_INSTEAD = "choose another directory with MEGAFS_STATE_DIR"

FILE, KEYRING, SYSTEMD = "file", "keyring", "systemd"


class KnownLogin(SecretStruct, frozen=True):
    """A login as its file has it.

    url: what `megafs login` was given, for people.  kept: FILE, KEYRING or SYSTEMD.
    changed: seconds since 1970.  origin: the hash of the systemd credential that it came from.
    secret: "" if the keyring has it.
    """

    service: str
    account: str
    url: str = ""
    kept: str = FILE
    changed: float = 0.0
    origin: str = ""
    secret: str = ""

    _shown = ("service", "account", "kept")

    @property
    def key(self) -> LoginKey:
        return LoginKey(self.service, self.account)


class CredentialStore:
    """The logins of this user on this machine.

    directory: where their files are; by default below the state directory.
    """

    def __init__(
        self, directory: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        environ = os.environ if environ is None else environ
        self._directory = directory or state_home(environ) / "logins"
        loaded = environ.get("CREDENTIALS_DIRECTORY", "")
        self._loaded = Path(loaded) if loaded.startswith("/") else None

    def get(self, key: LoginKey) -> str | None:
        """Return the secret of a login; None if there is none.

        Raises Denied if others can read or change its file, Unavailable if the keyring is locked.
        """
        known = self._known(self._path(key))
        loaded = self._from_systemd(key)
        if loaded is not None and (known is None or known.origin != _hash(loaded)):
            return loaded
        if known is None:
            return None
        return desktop_keyring.get(_entry(key)) if known.kept == KEYRING else known.secret

    def put(self, key: LoginKey, secret: str, *, url: str = "", keep: str = "") -> str:
        """Keep *secret*, over an older one; durable when it returns.  Return where it is.

        keep: FILE or KEYRING; "": where it was, else in the keyring if there is one.
        """
        path = self._path(key)
        self._make_directory()
        old = self._known(path)
        loaded = self._from_systemd(key)
        if keep:
            kept = keep
        elif loaded is not None:
            kept = SYSTEMD
        elif old is not None:
            kept = old.kept
        else:
            kept = KEYRING if desktop_keyring.is_there() else FILE
        if kept == KEYRING:
            desktop_keyring.put(_entry(key), secret)
        self._write(
            path,
            KnownLogin(
                key.service,
                key.account,
                url or (old.url if old is not None else ""),
                kept,
                clock.now(),
                _hash(loaded) if loaded is not None else "",
                "" if kept == KEYRING else secret,
            ),
        )
        if old is not None and old.kept == KEYRING and kept != KEYRING:
            desktop_keyring.delete(_entry(key))
        return kept

    def delete(self, key: LoginKey) -> bool:
        """Forget a login; return whether there was one."""
        path = self._path(key)
        known = self._known(path)
        if known is None:
            return False
        if known.kept == KEYRING:
            desktop_keyring.delete(_entry(key))
        try:
            path.unlink(missing_ok=True)
            sync_directory(path.parent)
        except OSError as exc:
            raise _failed(path, exc) from exc
        return True

    def all(self) -> list[KnownLogin]:
        """Every login, in order of service and account, without the secrets."""
        try:
            names = sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise _failed(self._directory, exc) from exc
        found = []
        for name in names:
            if name.endswith((".new", ".lock")):
                continue
            known = self._known(self._directory / name)
            if known is not None:
                found.append(msgspec.structs.replace(known, secret=""))
        return sorted(found, key=lambda known: known.key)

    def try_lock(self, key: LoginKey) -> int | None:
        """Take the right to renew a login from all processes of this machine, if it is free.

        Returns a descriptor: closing it gives the right back.
        """
        path = self._path(key)
        self._make_directory()
        try:
            fd = open_private(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT)
        except OSError as exc:
            raise _failed(path, exc) from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def _path(self, key: LoginKey) -> Path:
        service = re.sub(r"[^a-z0-9]", "-", key.service.lower())[:40]
        return self._directory / f"{service}-{blake3(_entry(key).encode()).hexdigest()[:24]}"

    def _make_directory(self) -> None:
        try:
            make_directories(self._directory)
            check_directory(self._directory, instead=_INSTEAD)
        except OSError as exc:
            raise _failed(self._directory, exc) from exc

    def _known(self, path: Path) -> KnownLogin | None:
        try:
            if os.lstat(path).st_mode & 0o077:
                raise Denied(f"{path} holds a login and others may read it: chmod 600 {path}")
            data = read_private(path, LIMIT)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise _failed(path, exc) from exc
        try:
            return msgspec.json.decode(data, type=KnownLogin)
        except msgspec.MsgspecError:  # its text may quote the secret
            raise Corrupt(f"{path} is no login of megafs: remove it and log in again") from None

    def _write(self, path: Path, known: KnownLogin) -> None:
        try:
            replace_file(path, msgspec.json.encode(known))
        except OSError as exc:
            raise _failed(path, exc) from exc

    def _from_systemd(self, key: LoginKey) -> str | None:
        if self._loaded is None:
            return None
        path = self._loaded / credential_name(key)
        try:
            # Not `read_private`: systemd may keep them behind links.
            with path.open("rb") as file:
                data = file.read(LIMIT)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise _failed(path, exc) from exc
        try:
            return data.decode().strip()
        except UnicodeDecodeError:
            raise Corrupt(f"{path} is no login: text in UTF-8 is expected") from None


def credential_name(key: LoginKey) -> str:
    """What a systemd unit calls a login: `megafs.login.dropbox`, or with the account after it."""
    name = f"megafs.login.{key.service}"
    account = re.sub(r"[^A-Za-z0-9@._-]", "-", key.account)
    return f"{name}.{account}" if account else name


def _entry(key: LoginKey) -> str:
    return f"{key.service}:{key.account}"


def _hash(secret: str) -> str:
    return blake3(b"megafs login" + secret.encode()).hexdigest()[:32]


def _failed(path: Path, exc: OSError) -> MegafsError:
    text = f"{exc.filename or path}: {exc.strerror}; {_INSTEAD}"
    if isinstance(exc, PermissionError):
        return Denied(text)
    if exc.errno in (28, 122):  # ENOSPC, EDQUOT
        return Full(text)
    return Stopped(text)
