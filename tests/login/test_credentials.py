"""Where a login's secret is kept: a private file, the desktop's keyring, systemd's credential."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from megafs.errors import Corrupt, Denied, Unavailable
from megafs.stores.login import desktop_keyring
from megafs.stores.login.credentials import FILE, KEYRING, SYSTEMD, CredentialStore, credential_name
from megafs.stores.login.kinds import LoginKey, check_endpoint

KEY = LoginKey("testcloud", "alice@example.org")
SECRET = "correct-horse-battery"


@pytest.fixture
def kept(tmp_path: Path) -> CredentialStore:
    return CredentialStore(tmp_path / "logins", {})


class Keyring:
    """A desktop's keyring with behaviour: it can be locked."""

    priority = 5.0

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], str] = {}
        self.locked = False

    def _unlocked(self) -> None:
        if self.locked:
            raise RuntimeError(f"locked; it holds {list(self.entries.values())}")

    def get_password(self, service: str, name: str) -> str | None:
        self._unlocked()
        return self.entries.get((service, name))

    def set_password(self, service: str, name: str, secret: str) -> None:
        self._unlocked()
        self.entries[service, name] = secret

    def delete_password(self, service: str, name: str) -> None:
        self._unlocked()
        del self.entries[service, name]


@pytest.fixture
def desktop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Keyring]:
    """The package `keyring` with a backend of ours."""
    import keyring
    import keyring.backend

    made = Keyring()

    class Backend(keyring.backend.KeyringBackend):
        priority = 5

        def get_password(self, service: str, username: str) -> str | None:
            return made.get_password(service, username)

        def set_password(self, service: str, username: str, password: str) -> None:
            made.set_password(service, username, password)

        def delete_password(self, service: str, username: str) -> None:
            made.delete_password(service, username)

    before = keyring.get_keyring()
    keyring.set_keyring(Backend())  # type: ignore[no-untyped-call]
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere")
    yield made
    keyring.set_keyring(before)


def files(tmp_path: Path) -> list[Path]:
    return sorted(p for p in (tmp_path / "logins").iterdir())


def test_without_a_keyring_it_is_a_file_for_its_owner_alone(
    kept: CredentialStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    umask = os.umask(0)
    try:
        assert kept.put(KEY, SECRET, url="testcloud:/x") == FILE
    finally:
        os.umask(umask)
    (file,) = files(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert kept.get(KEY) == SECRET
    assert kept.put(KEY, "renewed") == FILE
    assert CredentialStore(tmp_path / "logins", {}).get(KEY) == "renewed"
    (listed,) = kept.all()
    assert (listed.key, listed.url, listed.secret) == (KEY, "testcloud:/x", "")
    assert kept.delete(KEY) and not kept.delete(KEY)
    assert kept.get(KEY) is None and files(tmp_path) == [] and kept.all() == []


def test_with_a_keyring_the_file_holds_no_secret(
    kept: CredentialStore, tmp_path: Path, desktop: Keyring
) -> None:
    assert kept.put(KEY, SECRET) == KEYRING
    (file,) = files(tmp_path)
    assert SECRET not in file.read_text()
    assert kept.get(KEY) == SECRET
    assert kept.put(KEY, "renewed") == KEYRING
    assert list(desktop.entries.values()) == ["renewed"]
    assert kept.delete(KEY)
    assert desktop.entries == {} and files(tmp_path) == []


def test_a_login_moves_and_leaves_nothing_behind(
    kept: CredentialStore, tmp_path: Path, desktop: Keyring
) -> None:
    kept.put(KEY, SECRET, keep=KEYRING)
    assert kept.put(KEY, SECRET, keep=FILE) == FILE
    assert desktop.entries == {}
    kept.put(KEY, SECRET, keep=KEYRING)
    assert SECRET not in files(tmp_path)[0].read_text()


def test_a_locked_keyring_is_no_lost_login_and_tells_nothing(
    kept: CredentialStore, desktop: Keyring
) -> None:
    kept.put(KEY, SECRET)
    desktop.locked = True
    with pytest.raises(Unavailable) as raised:
        kept.get(KEY)
    assert SECRET not in str(raised.value) and raised.value.__cause__ is None
    desktop.locked = False
    assert kept.get(KEY) == SECRET


def test_a_backend_that_writes_plain_files_is_none(
    desktop: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keyring

    assert desktop_keyring.is_there()
    monkeypatch.setattr(type(keyring.get_keyring()), "priority", 0.5)
    assert not desktop_keyring.is_there()


def test_a_file_that_others_may_read_is_refused(kept: CredentialStore, tmp_path: Path) -> None:
    kept.put(KEY, SECRET, keep=FILE)
    (file,) = files(tmp_path)
    file.chmod(0o640)
    with pytest.raises(Denied, match=f"chmod 600 {file}"):
        kept.get(KEY)


@pytest.mark.parametrize("damage", [b"", b"{", b'{"service": 7}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_said_without_what_it_holds(
    kept: CredentialStore, tmp_path: Path, damage: bytes
) -> None:
    kept.put(KEY, SECRET, keep=FILE)
    (file,) = files(tmp_path)
    file.write_bytes(damage)
    with pytest.raises(Corrupt, match="log in again") as raised:
        kept.get(KEY)
    assert raised.value.__cause__ is None


def test_a_link_in_its_place_is_not_followed(kept: CredentialStore, tmp_path: Path) -> None:
    kept.put(KEY, SECRET, keep=FILE)
    (file,) = files(tmp_path)
    target = tmp_path / "elsewhere"
    target.write_text("theirs")
    file.unlink()
    file.symlink_to(target)
    with pytest.raises(Denied):
        kept.get(KEY)
    kept.put(LoginKey("other"), SECRET, keep=FILE)
    assert target.read_text() == "theirs"


def test_systemd_gives_a_credential_and_what_was_renewed_counts_after_it(tmp_path: Path) -> None:
    loaded = tmp_path / "credentials"
    loaded.mkdir()
    file = loaded / credential_name(KEY)
    file.write_text("from-systemd\n")
    environ = {"CREDENTIALS_DIRECTORY": str(loaded)}
    kept = CredentialStore(tmp_path / "logins", environ)
    assert kept.get(KEY) == "from-systemd"
    assert kept.put(KEY, "renewed") == SYSTEMD
    assert kept.get(KEY) == "renewed" and file.read_text() == "from-systemd\n"
    file.write_text("a later login")
    assert kept.get(KEY) == "a later login"
    kept.put(KEY, "renewed again")
    assert CredentialStore(tmp_path / "logins", environ).get(KEY) == "renewed again"


def test_credentials_of_systemd_have_names_that_it_takes() -> None:
    assert credential_name(LoginKey("dropbox")) == "megafs.login.dropbox"
    assert (
        credential_name(LoginKey("webdav", "https://h:1/p")) == "megafs.login.webdav.https---h-1-p"
    )


def test_one_process_at_a_time_renews(kept: CredentialStore, tmp_path: Path) -> None:
    other = CredentialStore(tmp_path / "logins", {})
    lock = kept.try_lock(KEY)
    assert lock is not None and other.try_lock(KEY) is None
    another = other.try_lock(LoginKey("testcloud", "bob"))
    assert another is not None
    os.close(another)
    os.close(lock)
    again = other.try_lock(KEY)
    assert again is not None
    os.close(again)
    assert kept.all() == []


@pytest.mark.parametrize(
    "url", ["https://a.example/token", "http://127.0.0.1:1/x", "http://[::1]/"]
)
def test_secrets_go_over_tls_or_stay_here(url: str) -> None:
    assert check_endpoint(url) == url


@pytest.mark.parametrize(
    "url", ["http://a.example/token", "ftp://a/", "", "https://", "http://127.0.0.1.evil.example/"]
)
def test_secrets_go_nowhere_else(url: str) -> None:
    from megafs.errors import BadStore

    with pytest.raises(BadStore, match="no https://"):
        check_endpoint(url)
