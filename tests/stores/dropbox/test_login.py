"""Logging in to Dropbox: what the page is asked for, and a store that works with what comes."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from megafs.errors import BadStore
from megafs.stores.dropbox.driver import DropboxStore
from megafs.stores.dropbox.option_table import dropbox_login, local_api
from megafs.stores.dropbox.options import DropboxSettings, read_options
from megafs.stores.login.authorize import by_paste
from megafs.stores.login.credentials import FILE, CredentialStore
from megafs.stores.login.tokens import OAuthTokens
from megafs.stores.urls import Location
from tests.login.talk import Person
from tests.services.dropbox.server import CLIENT_ID, DropboxService

HOME = Location("", "/home")


async def test_a_code_that_is_pasted_opens_the_account(
    dropbox: DropboxService, tmp_path: Path
) -> None:
    login = dropbox_login(HOME, {"client_id": CLIENT_ID, "api": dropbox.url})
    asked: dict[str, list[str]] = {}

    async def copy(said: list[str]) -> str:
        page = next(line for line in said if "/oauth2/authorize?" in line)
        asked.update(parse_qs(urlsplit(page).query))
        return dropbox.code(asked["code_challenge"][0])

    grant = await by_paste(login, Person(copy))
    assert "redirect_uri" not in asked and asked["response_type"] == ["code"]
    assert asked["code_challenge_method"] == ["S256"]
    assert asked["token_access_type"] == ["offline"]  # else there is no refresh token
    assert set(asked["scope"][0].split()) == dropbox.scopes
    assert grant.refresh_token in dropbox.refresh_tokens and grant.lasts == 14400

    kept = CredentialStore(tmp_path / "logins", {})
    kept.put(login.key, grant.text, url="dropbox:/home", keep=FILE)
    tokens = OAuthTokens(login, "dropbox:/home", kept=kept)
    store = DropboxStore("/home", DropboxSettings(api=dropbox.url), tokens)
    await store.create()
    dropbox.expire()
    await store.put_new("packs/ab/1", b"1")
    assert dropbox.requests["oauth2/token"] == 2
    await store.aclose()


def test_a_browser_here_is_sent_to_the_registered_port() -> None:
    login = dropbox_login(HOME, {"client_id": "x", "account": "work"})
    doc = (Path(__file__).parents[3] / "docs" / "stores" / "dropbox.md").read_text()
    assert f"http://127.0.0.1:{login.port}/" in doc
    assert login.authorize == "https://www.dropbox.com/oauth2/authorize"
    assert login.token == "https://api.dropboxapi.com/oauth2/token"
    assert str(login.key) == "dropbox work"


@pytest.mark.parametrize(
    "api",
    ["https://api.dropboxapi.com", "http://192.0.2.1:8080", "http://localhost:1", "x", "http://[",
     "http://127.0.0.1:1/path", "http://u@127.0.0.1:1", "https://127.0.0.1:1"],
)  # fmt: skip
def test_tokens_go_to_dropbox_or_to_this_machine(api: str) -> None:
    with pytest.raises(BadStore, match="api= is for tests"):
        local_api({"api": api})
    assert local_api({"api": "http://127.0.0.1:8080/"}) == "http://127.0.0.1:8080"
    assert local_api({"api": "http://[::1]:8080"}) == "http://[::1]:8080"


@pytest.mark.parametrize("requests", ["0", "-1", "many", "nan", "inf", "1e9"])
def test_requests_a_second_are_a_number(requests: str) -> None:
    with pytest.raises(BadStore, match="requests= takes a number"):
        read_options({"requests": requests})
    assert read_options({"requests": "2.5"}).requests == 2.5
