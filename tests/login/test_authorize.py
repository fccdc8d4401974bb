"""The ways to a grant, against a service that holds its clients to the standards."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
import trio

from megafs.concurrency import one_error_nursery
from megafs.errors import BadStore, BadUsage, Denied, StoreError, Unavailable
from megafs.stores.login.authorize import by_browser, by_device, by_paste, revoke
from megafs.stores.login.grant import Grant
from megafs.stores.login.kinds import OAuthLogin
from megafs.stores.login.loopback import Redirect, listening
from tests.fakes.proxy import Answer, Reset
from tests.login.talk import Person, browse, get
from tests.services.oauth import DEVICE_GRANT, OAuthService, serving

URL = "testcloud:/volume"


@pytest.fixture
async def service() -> AsyncIterator[OAuthService]:
    async with serving(OAuthService()) as running:
        yield running


async def in_browser(
    service: OAuthService, login: OAuthLogin | None = None
) -> tuple[Grant, Person]:
    async with one_error_nursery() as nursery:
        person = Person(browser=True, nursery=nursery)
        grant = await by_browser(login or service.login(), person)
    return grant, person


async def test_the_browser_brings_a_grant(service: OAuthService) -> None:
    grant, person = await in_browser(service)
    assert service.accepts(grant.access_token) and grant.refresh_token
    assert service.asked == ["authorize", "authorization_code"]
    ((address, page),) = person.pages
    assert page.status == 200 and b"close this page" in page.body
    # Neither in the browser's last address, nor in what `ps` shows of its start.
    assert urlsplit(address).path == "/done" and not urlsplit(address).query
    assert urlsplit(person.opened[0]).hostname == "127.0.0.1" and "?" not in person.opened[0]
    assert not [s for s in service.secrets if s in " ".join([*person.said, *person.opened])]
    assert not [s for s in service.secrets if s in repr(grant)]


async def test_the_code_is_bound_to_the_verifier(service: OAuthService) -> None:
    """The service checks it: a client with another verifier gets nothing."""
    stolen = ""

    async def take(said: list[str]) -> str:
        nonlocal stolen
        page = next(line for line in said if "/authorize?" in line)
        _, shown = await browse(page)
        stolen = re.search(rb"<code>(.*)</code>", shown.body)[1].decode()  # type: ignore[index]
        return "\x1bnonsense"

    login = msgspec.structs.replace(service.login(), pastes_code=True)
    person = Person(take, "a-code-of-nobody")
    with pytest.raises(Denied, match="invalid_grant"):
        await by_paste(login, person)

    async def use(said: list[str]) -> str:
        return stolen

    with pytest.raises(Denied, match="invalid_grant"):  # it belongs to the first login
        await by_paste(login, Person(use))


async def test_a_code_that_the_service_shows_is_pasted(service: OAuthService) -> None:
    async def copy(said: list[str]) -> str:
        page = next(line for line in said if "/authorize?" in line)
        assert "redirect_uri" not in page
        _, shown = await browse(page)
        return re.search(rb"<code>(.*)</code>", shown.body)[1].decode()  # type: ignore[index]

    login = msgspec.structs.replace(service.login(), pastes_code=True)
    grant = await by_paste(login, Person(copy))
    assert service.accepts(grant.access_token)


async def test_the_address_at_which_the_browser_ends_is_pasted(service: OAuthService) -> None:
    async def copy(said: list[str]) -> str:
        page = next(line for line in said if "/authorize?" in line)
        ended = (await get(page)).headers["location"]
        return f"  {ended} "

    async def of_another_login(said: list[str]) -> str:
        page = next(line for line in said if "/authorize?" in line)
        ended = (await get(page)).headers["location"]
        return re.sub("state=[^&]*", "state=theirs", ended)

    person = Person(of_another_login, copy)
    grant = await by_paste(service.login(), person)
    assert service.accepts(grant.access_token)
    assert "neither a code nor the address" in person.said[-1]


async def test_who_says_no_is_believed(service: OAuthService) -> None:
    service.refuses = True
    with pytest.raises(Denied, match="access_denied"):
        await in_browser(service)


async def test_a_client_that_is_unknown_is_told_so_and_needed_at_all(
    service: OAuthService, tmp_path: Path
) -> None:
    with pytest.raises(BadUsage, match="client_id="):
        await by_paste(service.login(client_id=""), Person())
    service.client_secret = "desktop-secret"
    with pytest.raises(Denied, match="check client_id="):
        await in_browser(service)
    file = tmp_path / "client-secret"
    file.write_text("desktop-secret\n")
    login = msgspec.structs.replace(service.login(), client_secret_file=str(file))
    with pytest.raises(BadStore, match="chmod 600"):
        file.chmod(0o644)
        await in_browser(service, login)
    file.chmod(0o600)
    grant, _ = await in_browser(service, login)
    assert service.accepts(grant.access_token)
    assert "desktop-secret" not in repr(grant)


async def test_a_login_goes_nowhere_without_tls(service: OAuthService) -> None:
    for field in ("token", "authorize"):
        login = msgspec.structs.replace(service.login(), **{field: "http://cloud.example/oauth"})
        with pytest.raises(BadStore, match="https://"):
            await by_paste(login, Person("a-code"))


# ---- the redirect ------------------------------------------------------------------------------


async def other_requests(redirect: Redirect) -> None:
    """What other programs, and pages on the web, may try while a login waits."""
    at = redirect.redirect_uri
    port = urlsplit(at).port
    for target in (
        "",
        "?code=theirs",
        "?code=theirs&state=",
        "?code=theirs&state=guess",
        "?code=theirs&state=guess&state=right",
        "?error=access_denied",
        "?error=access_denied&state=guess",
        "?code=theirs&state=%C3%A9",
        "other?code=theirs&state=right",
        "go/0000?x=1",
    ):
        assert (await get(at + target)).status == 400, target
    for host in (f"evil.example:{port}", "evil.example", f"localhost:{port}", ""):
        if host:
            assert (await get(f"{at}?code=theirs&state=right", host=host)).status == 421
    assert (await get(f"{at}?code=theirs&state=right", method="DELETE")).status == 405
    assert (await get(f"{at}?state=right")).status == 400


async def test_only_the_right_state_ends_the_wait() -> None:
    async with listening("right") as redirect:
        await other_requests(redirect)
        with trio.move_on_after(0.05) as scope:
            await redirect.code()
        assert scope.cancelled_caught
        assert (await get(f"{redirect.redirect_uri}?code=ours&state=right")).status == 303
        assert await redirect.code() == "ours"
        # A second one changes nothing.
        assert (await get(f"{redirect.redirect_uri}?code=theirs&state=right")).status == 400
        assert await redirect.code() == "ours"


async def test_connections_that_say_nothing_keep_nobody_out() -> None:
    async with listening("right") as redirect:
        port = urlsplit(redirect.redirect_uri).port
        assert port is not None
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(8)]
        huge = await trio.open_tcp_stream("127.0.0.1", port)
        with trio.move_on_after(5), pytest.raises((trio.BrokenResourceError, OSError)):
            while True:
                await huge.send_all(b"x: y\r\n" * 1000)
        with trio.fail_after(5):
            await get(f"{redirect.redirect_uri}?code=ours&state=right")
            assert await redirect.code() == "ours"
        for stream in [*silent, huge]:
            await stream.aclose()


async def test_the_start_leads_to_the_page_once() -> None:
    async with listening("right") as redirect:
        start = redirect.lead_to("https://cloud.example/authorize?state=right")
        assert (await get(start)).headers["location"].endswith("state=right")
        assert (await get(start)).status == 400


async def test_a_port_that_is_taken_is_said() -> None:
    async with listening("right") as redirect:
        port = urlsplit(redirect.redirect_uri).port
        assert port is not None
        with pytest.raises(BadUsage, match="--paste"):
            async with listening("right", port):
                pass


async def test_a_fixed_port_is_where_the_browser_comes_back(service: OAuthService) -> None:
    async with listening("x") as free:
        port = urlsplit(free.redirect_uri).port
    assert port is not None
    login = msgspec.structs.replace(service.login(), port=port)
    _, person = await in_browser(service, login)
    page = next(line for line in person.said if "/authorize?" in line)
    assert parse_qs(urlsplit(page).query)["redirect_uri"] == [f"http://127.0.0.1:{port}/"]


# ---- devices -----------------------------------------------------------------------------------


async def test_a_device_waits_for_its_code_and_slows_down(
    service: OAuthService,
) -> None:
    service.interval = 0.05
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await trio.testing.wait_all_tasks_blocked()
        if len(pauses) == 5:
            (device,) = service.devices.values()
            service.decide(device.user_code, True)
        for device in service.devices.values():  # that much time passes for the service
            device.polled -= seconds if len(pauses) != 3 else 0.0

    person = Person()
    grant = await by_device(service.login(device=True), person, sleep=sleep)
    assert service.accepts(grant.access_token)
    (device_code,) = re.findall(r"^[0-9A-F]{6}$", "\n".join(person.said), re.MULTILINE)
    assert device_code
    assert pauses == [0.05, 0.05, 0.05, 5.05, 5.05]  # the third came too soon
    assert service.asked.count(DEVICE_GRANT) == 5
    assert not [s for s in service.secrets if s in "\n".join(person.said)]


async def test_a_device_outlives_a_bad_line(
    service: OAuthService,
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        for device in service.devices.values():
            device.approved = True

    service.proxy.next(Reset(), Answer(503, body=b""), contains="/token")
    grant = await by_device(service.login(device=True), Person(), sleep=sleep)
    assert service.accepts(grant.access_token)
    assert pauses == [0.05, 0.1, 0.2]


@pytest.mark.parametrize(("approved", "said"), [(False, "access_denied"), (None, "expired_token")])
async def test_a_device_that_is_refused_or_forgotten_stops(
    service: OAuthService, approved: bool | None, said: str
) -> None:
    async def sleep(seconds: float) -> None:
        if approved is None:
            service.devices.clear()
        for device in service.devices.values():
            device.approved = approved

    with pytest.raises(Denied, match=said):
        await by_device(service.login(device=True), Person(), sleep=sleep)
    assert service.asked.count(DEVICE_GRANT) == 1


# ---- answers that are none ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"{}",
        b"[]",
        b'{"access_token": 7}',
        b'{"access_token": ""}',
        b'{"access_token": "a b"}',
        b'{"access_token": "a\\r\\nx-evil: 1"}',
        b'{"access_token": "ok", "refresh_token": {"a": 1}}',
        b"<html>" * 1000,
        b"[" * 60_000,
    ],
)
async def test_a_token_that_cannot_be_one_is_refused(service: OAuthService, answer: bytes) -> None:
    service.proxy.always(Answer(200, body=answer), contains="/token")
    with pytest.raises(StoreError):
        await in_browser(service)


@pytest.mark.parametrize("lasts", ["NaN", "1e999", "-5", '"soon"', "null", "{}"])
async def test_an_end_that_is_none_is_as_if_none_was_said(
    service: OAuthService, lasts: str
) -> None:
    answer = b'{"access_token": "ok", "expires_in": %s}' % lasts.encode()
    service.proxy.always(Answer(200, body=answer), contains="/token")
    grant, _ = await in_browser(service)
    assert (grant.access_token, grant.ends) == ("ok", 0.0)


async def test_what_the_service_says_of_a_refusal_is_not_repeated(service: OAuthService) -> None:
    body = b'{"error": "invalid_grant\\u001b[2J", "error_description": "your code is c-123"}'
    service.proxy.always(Answer(400, body=body), contains="/token")
    with pytest.raises(Denied) as raised:
        await in_browser(service)
    assert "\x1b" not in str(raised.value) and "c-123" not in str(raised.value)


async def test_a_login_is_ended_at_the_service(service: OAuthService) -> None:
    grant, _ = await in_browser(service)
    await revoke(service.login(), grant)
    assert not service.accepts(grant.access_token)
    service.proxy.always(Answer(500, body=b""))
    with pytest.raises(Unavailable):
        await revoke(service.login(), grant)
