"""Access tokens for a driver's requests: one renewal for all, and none that loses the grant."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from megafs import clock
from megafs.errors import Denied, Unavailable
from megafs.stores.login import tokens as tokens_module
from megafs.stores.login.credentials import FILE, CredentialStore
from megafs.stores.login.grant import Grant
from megafs.stores.login.tokens import OAuthTokens
from tests.fakes.proxy import Answer, Hang
from tests.services.oauth import OAuthService, serving

URL = "testcloud:/volume"


@pytest.fixture
async def service() -> AsyncIterator[OAuthService]:
    async with serving(OAuthService()) as running:
        yield running


@pytest.fixture
def kept(tmp_path: Path) -> CredentialStore:
    return CredentialStore(tmp_path / "logins", {})


def log_in(service: OAuthService, kept: CredentialStore) -> None:
    """As `megafs login` does."""
    grant = Grant("", client_id="our-client", token_endpoint=f"{service.endpoint}/token")
    grant = grant.renewed(service.answer(service.give()))
    kept.put(service.login().key, grant.text, url=URL, keep=FILE)


def tokens_of(service: OAuthService, kept: CredentialStore) -> OAuthTokens:
    return OAuthTokens(service.login(), URL, kept=kept)


async def test_the_token_that_is_kept_is_used_as_it_is(
    service: OAuthService, kept: CredentialStore
) -> None:
    log_in(service, kept)
    tokens = tokens_of(service, kept)
    assert service.accepts(await tokens.token())
    assert await tokens.token() == await tokens.token()
    assert service.asked == []


async def test_a_refused_token_is_renewed_once_for_all_who_wait(
    service: OAuthService, kept: CredentialStore
) -> None:
    log_in(service, kept)
    service.slow = 0.05
    tokens = tokens_of(service, kept)
    old = await tokens.token()
    service.forget_access()

    async def meets_401() -> None:
        await tokens.refused(old)
        assert service.accepts(await tokens.token())

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(meets_401)
    assert service.asked == ["refresh_token"]
    # What came is kept: another process, or the next mount, asks nothing.
    assert service.accepts(await tokens_of(service, kept).token())
    assert service.asked == ["refresh_token"]


async def test_two_processes_renew_a_grant_once(
    service: OAuthService, kept: CredentialStore
) -> None:
    log_in(service, kept)
    service.slow = 0.2
    one, other = tokens_of(service, kept), tokens_of(service, kept)
    old = await one.token()
    assert await other.token() == old
    service.forget_access()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.refused, old)
        nursery.start_soon(other.refused, old)
    assert await one.token() == await other.token() != old
    # A second one would have used a refresh token that was replaced, and lost the grant.
    assert service.asked == ["refresh_token"]


async def test_a_token_near_its_end_is_renewed_in_passing(
    service: OAuthService, kept: CredentialStore
) -> None:
    log_in(service, kept)
    service.slow = 0.1
    tokens = tokens_of(service, kept)
    old = await tokens.token()
    later = clock.now_ns() + int((3600 - 200) * 1e9)
    with clock.replaced(now_ns=lambda: later):
        begun = trio.current_time()
        assert await tokens.token() == old
        assert trio.current_time() - begun < 0.1  # nobody waits
        await tokens.aclose()
        assert service.asked == ["refresh_token"]
        assert await tokens.token() != old


async def test_a_renewal_outlives_the_request_that_began_it(
    service: OAuthService, kept: CredentialStore
) -> None:
    """Cancelled in the middle, it would have used up the refresh token and lost the new one."""
    log_in(service, kept)
    tokens = tokens_of(service, kept)
    old = await tokens.token()
    service.forget_access()
    service.slow = 0.2
    with trio.move_on_after(0.1) as scope:
        await tokens.refused(old)
    assert scope.cancelled_caught
    await tokens.aclose()
    assert service.asked == ["refresh_token"]
    again = await tokens_of(service, kept).token()
    assert service.accepts(again)


async def test_a_grant_that_was_taken_away_says_what_to_do_and_comes_back(
    service: OAuthService,
    kept: CredentialStore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log_in(service, kept)
    tokens = tokens_of(service, kept)
    old = await tokens.token()
    service.revoke_all()
    with caplog.at_level(logging.DEBUG):
        for _ in range(5):
            with pytest.raises(Denied, match=f"megafs login {URL}"):
                await tokens.refused(old)
            with pytest.raises(Denied, match=f"megafs login {URL}"):
                await tokens.token()
    assert service.asked == ["refresh_token"]  # not for every request
    lines = [r.message for r in caplog.records if "megafs login" in r.message]
    assert len(lines) == 1
    assert f"megafs login {URL}" in tokens.advice()
    assert not [s for s in service.secrets if s in caplog.text]

    log_in(service, kept)  # people do what the line says
    monkeypatch.setattr(tokens_module, "PAUSE", 0.0)
    assert service.accepts(await tokens.token())
    assert tokens.advice() == ""


async def test_a_service_that_is_away_is_no_reason_to_log_in_again(
    service: OAuthService, kept: CredentialStore
) -> None:
    log_in(service, kept)
    tokens = tokens_of(service, kept)
    old = await tokens.token()
    service.proxy.always(Answer(503, body=b"busy", headers=(("retry-after", "7"),)))
    with pytest.raises(Unavailable) as raised:
        await tokens.refused(old)
    assert raised.value.retry_after == 7
    assert tokens.advice() == ""


async def test_a_token_that_still_lasts_is_used_while_the_service_is_away(
    service: OAuthService, kept: CredentialStore
) -> None:
    log_in(service, kept)
    tokens = tokens_of(service, kept)
    old = await tokens.token()
    service.proxy.always(Answer(500, body=b""))
    for before_end in (15, 5):
        soon = clock.now_ns() + int((3600 - before_end) * 1e9)
        with clock.replaced(now_ns=partial(int, soon)):
            assert await tokens.token() == old
    later = clock.now_ns() + int(3601 * 1e9)
    with clock.replaced(now_ns=lambda: later), pytest.raises(Unavailable):
        await tokens.token()


async def test_a_service_that_refuses_what_it_just_gave_is_not_asked_for_ever(
    service: OAuthService, kept: CredentialStore
) -> None:
    log_in(service, kept)
    tokens = tokens_of(service, kept)
    await tokens.refused(await tokens.token())
    for _ in range(5):
        with pytest.raises(Denied, match="just given"):
            await tokens.refused(await tokens.token())
    assert service.asked == ["refresh_token"]
    assert "megafs login" in tokens.advice(), "status says nothing of it"


async def test_without_a_login_the_command_is_named(
    service: OAuthService, kept: CredentialStore
) -> None:
    with pytest.raises(Denied, match=f"not logged in to testcloud: megafs login {URL}"):
        await tokens_of(service, kept).token()


async def test_closing_does_not_wait_for_a_service_that_hangs(
    service: OAuthService, kept: CredentialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "CLOSING", 0.1)
    log_in(service, kept)
    tokens = tokens_of(service, kept)
    old = await tokens.token()
    service.proxy.always(Hang())
    with trio.move_on_after(0.1):
        await tokens.refused(old)
    with trio.move_on_after(5) as scope:
        await tokens.aclose()
    assert not scope.cancelled_caught


async def test_the_services_limit_of_time_is_not_that_of_the_request(
    service: OAuthService, kept: CredentialStore
) -> None:
    log_in(service, kept)
    tokens = tokens_of(service, kept)
    old = await tokens.token()
    service.forget_access()
    service.slow = 0.3
    with trio.move_on_after(0.05):
        await tokens.refused(old)
    await tokens.refused(old)  # waits for the same one
    assert service.accepts(await tokens.token())
    assert service.asked == ["refresh_token"]
