"""`megafs login`, `logout` and `login --list`, with a service of OAuth and a WebDAV server."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import sys
import threading
import types
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from megafs.cli import main
from megafs.errors import Denied
from megafs.stores.drivers import DRIVERS, Driver
from megafs.stores.login.credentials import CredentialStore
from megafs.stores.login.grant import Grant
from megafs.stores.login.kept_password import KeptPassword
from megafs.stores.login.kinds import LoginKey, OAuthLogin, SessionLogin
from megafs.stores.login.session_login import Ask
from megafs.stores.urls import Location, StoreOption, path_only
from tests.engines.dav import PASSWORD, USER, Dav
from tests.services.oauth import OAuthService, ThreadedOAuth

URL = "testcloud:/volume"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a desktop, a terminal or a login."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "DBUS_SESSION_BUS_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MEGAFS_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "config.toml").touch()
    monkeypatch.setenv("MEGAFS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setattr("megafs.cli.passphrase.has_terminal", lambda: False)
    return tmp_path


@pytest.fixture
def service() -> Iterator[OAuthService]:
    made = OAuthService()
    with ThreadedOAuth(made):
        yield made


@pytest.fixture
def testcloud(service: OAuthService, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for the service in the table of drivers."""
    device = False

    def login(location: Location, options: Mapping[str, str]) -> OAuthLogin:
        made = service.login(client_id=options.get("client_id", ""), device=device)
        key = LoginKey("testcloud", options.get("account", ""))
        return msgspec.structs.replace(made, key=key, advice="see docs/stores/testcloud.md")

    row = Driver(
        scheme="testcloud",
        module="none",
        form=path_only,
        example="testcloud:/path",
        described=(
            StoreOption("client_id", "ID", "An application."),
            StoreOption("account", "work", "One of several accounts."),
        ),
        login=login,
    )
    monkeypatch.setitem(DRIVERS, "testcloud", row)


def types_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def browser(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A browser that writes down its command line, and follows what it gets."""
    seen = home / "browser-arguments"
    program = home / "browser"
    program.write_text(
        f"#!{sys.executable}\nimport sys, urllib.request\n"
        f"open({str(seen)!r}, 'a').write(' '.join(sys.argv) + '\\n')\n"
        "urllib.request.urlopen(sys.argv[1]).read()\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{program} %s")
    return seen


def everything_below(directory: Path) -> str:
    return "".join(p.read_text("latin-1") for p in directory.rglob("*") if p.is_file())


def test_the_browser_and_the_list_and_the_end(
    service: OAuthService,
    testcloud: None,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = browser(home, monkeypatch)
    assert main.run(["login", URL, "-o", "client_id=our-client"]) == 0
    said = capfd.readouterr()
    assert "logged in to testcloud; kept in a private file" in said.out
    grant = Grant.of(CredentialStore().get(LoginKey("testcloud")) or "")
    assert service.accepts(grant.access_token)
    shown = said.out + said.err + arguments.read_text()
    assert not [s for s in service.secrets if s in shown]
    assert "state=" not in arguments.read_text()

    assert main.run(["login", "--list", "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)
    assert (row["service"], row["account"], row["kept"], row["url"]) == (
        *("testcloud", "", "file", URL),
    )
    assert main.run(["login", "--list"]) == 0
    said = capfd.readouterr()
    assert URL in said.out and not [s for s in service.secrets if s in said.out + said.err]

    assert main.run(["logout", URL, "-o", "client_id=our-client"]) == 0
    assert not service.accepts(grant.access_token)
    assert not [s for s in service.secrets if s in everything_below(home / "state")]
    assert main.run(["logout", URL]) == 2
    assert "not logged in to testcloud" in capfd.readouterr().err


def test_without_a_browser_a_code_is_pasted(
    service: OAuthService,
    testcloud: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The person reads the page's address from the terminal, and types where the browser ends."""

    class Person:
        def readline(self) -> str:
            page = re.search(r"http://\S+/authorize\?\S+", capfd.readouterr().err)
            assert page is not None

            class Stop(urllib.request.HTTPRedirectHandler):
                def redirect_request(self, *args: Any) -> None:
                    return None

            try:
                urllib.request.build_opener(Stop()).open(page[0])
            except urllib.error.HTTPError as exc:
                return f"{exc.headers['location']}\n"
            raise AssertionError("no redirect")

    monkeypatch.setattr(sys, "stdin", Person())
    assert main.run(["login", URL, "-o", "client_id=our-client", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {
        "service": "testcloud",
        "account": "",
        "kept": "file",
    }


def test_a_login_for_a_unit_of_systemd_is_a_file_and_nothing_else(
    service: OAuthService,
    testcloud: None,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    browser(home, monkeypatch)
    args = ["login", URL, "-o", "client_id=our-client,account=work"]
    file = home / "megafs.login.testcloud.work"
    assert main.run([*args, "--write-credential", str(file)]) == 0
    assert f"LoadCredential=megafs.login.testcloud.work:{file}" in capfd.readouterr().out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert CredentialStore().all() == []
    assert main.run([*args, "--write-credential", str(file)]) == 18
    kept = CredentialStore(environ={**os.environ, "CREDENTIALS_DIRECTORY": str(home)})
    grant = Grant.of(kept.get(LoginKey("testcloud", "work")) or "")
    assert service.accepts(grant.access_token)


def test_a_login_that_failed_changes_nothing(
    service: OAuthService,
    testcloud: None,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    browser(home, monkeypatch)
    assert main.run(["login", URL, "-o", "client_id=our-client"]) == 0
    before = CredentialStore().get(LoginKey("testcloud"))
    service.refuses = True
    assert main.run(["login", URL, "-o", "client_id=our-client"]) == 13
    assert "access_denied" in capfd.readouterr().err
    assert CredentialStore().get(LoginKey("testcloud")) == before


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["login"], "megafs login URL"),
        (["login", "--list", URL], "--list takes no URL"),
        (["login", "file:///srv/volume"], "file:// stores have no login"),
        (["login", "s3://bucket"], "keys for S3 come from the environment"),
        (["login", URL], "client_id=, of an application of your own: see docs/stores/testcloud"),
        (["login", URL, "--paste", "--device"], "only one of"),
        (["login", URL, "--device", "-o", "client_id=our-client"], "no codes for devices"),
        (["login", URL, "--password-file", "x"], "no password that a file could give"),
        (["login", URL, "-o", "colour=x"], "colour"),
        (["login", "webdav+http://127.0.0.1:9/x", "--device"], "a page to log in"),
        (["login", "webdav+http://127.0.0.1:9/x", "--password-file", "x"], "give -o user="),
        (["login", "testcloud://me:hunter2@x/"], "credentials do not belong"),
        (["logout", "webdav+http://127.0.0.1:9/x"], "not logged in to webdav"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    testcloud: None, capfd: pytest.CaptureFixture[str], args: list[str], said: str
) -> None:
    assert main.run(args) == 2
    error = capfd.readouterr().err
    assert said in error and len(error.splitlines()) == 1 and "hunter2" not in error


def test_nobody_at_the_terminal_is_no_hang(
    service: OAuthService,
    testcloud: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    types_in(monkeypatch, "")
    assert main.run(["login", URL, "-o", "client_id=our-client"]) == 2
    assert "nothing was typed" in capfd.readouterr().err
    assert CredentialStore().all() == []


# ---- a service with a way of its own ------------------------------------------------------------


def test_a_driver_asks_for_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ended: list[str] = []
    module = types.ModuleType("own_way")

    async def log_in(location: Location, options: Mapping[str, str], ask: Ask) -> str:
        user = await ask("Mail: ")
        if await ask("Password: ", secret=True) != "right":
            raise Denied("wrong mail or password")
        return f"session of {user} with {await ask('Code: ', secret=True)}"

    async def log_out(location: Location, options: Mapping[str, str], session: str) -> None:
        ended.append(session)

    module.log_in, module.log_out = log_in, log_out  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_way", module)
    row = Driver(
        scheme="own",
        module="own_way",
        form=path_only,
        example="own:",
        login=lambda location, options: SessionLogin(LoginKey("own"), "own_way"),
    )
    monkeypatch.setitem(DRIVERS, "own", row)
    types_in(monkeypatch, "a@b\nwrong\n")
    assert main.run(["login", "own:"]) == 13
    assert CredentialStore().all() == []
    types_in(monkeypatch, "a@b\nright\n123456\n")
    assert main.run(["login", "own:"]) == 0
    assert CredentialStore().get(LoginKey("own")) == "session of a@b with 123456"
    assert main.run(["logout", "own:"]) == 0
    assert ended == ["session of a@b with 123456"] and CredentialStore().all() == []


# ---- WebDAV ------------------------------------------------------------------------------------


@pytest.mark.webdav
def test_a_password_of_webdav_is_tried_before_it_counts(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with Dav("nginx", auth="basic") as server:
        url = f"{server.url}/home"
        key = LoginKey("webdav", server.origin)
        types_in(monkeypatch, f"{USER}\nguess\n")
        assert main.run(["login", url]) == 13
        assert CredentialStore().get(key) is None
        types_in(monkeypatch, f"{USER}\n{PASSWORD}\n")
        assert main.run(["login", url]) == 0
        assert KeptPassword.of(CredentialStore().get(key) or "") == KeptPassword(PASSWORD, USER)
        types_in(monkeypatch, f"{USER}\nguess\n")
        assert main.run(["login", url]) == 13
        assert KeptPassword.of(CredentialStore().get(key) or "").password == PASSWORD
        file = home / "password"
        file.write_text(f"{PASSWORD}\n")
        file.chmod(0o600)
        assert main.run(["login", url, "-o", f"user={USER}", "--password-file", str(file)]) == 0
        said = capfd.readouterr()
        assert PASSWORD not in said.out + said.err and "guess" not in said.out + said.err
        assert len(CredentialStore().all()) == 2
    types_in(monkeypatch, f"{USER}\n{PASSWORD}\n")
    assert main.run(["login", url]) == 0  # the server is away: kept, and said
    assert "could not be tried" in capfd.readouterr().err


def test_a_code_for_a_device_is_asked_for_where_no_browser_is(
    service: OAuthService,
    testcloud: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    row = DRIVERS["testcloud"]
    offered = service.login(device=True)
    monkeypatch.setitem(
        DRIVERS, "testcloud", msgspec.structs.replace(row, login=lambda *_: offered)
    )

    def approve() -> None:
        while not service.devices:
            if stop.wait(0.02):
                return
        for device in list(service.devices.values()):
            service.decide(device.user_code, True)

    stop = threading.Event()
    person = threading.Thread(target=approve)
    person.start()
    try:
        assert main.run(["login", URL]) == 0
    finally:
        stop.set()
        person.join()
    assert "type this code there" in capfd.readouterr().err
    grant = Grant.of(CredentialStore().get(LoginKey("testcloud")) or "")
    assert service.accepts(grant.access_token)
