"""What the Dropbox driver makes of a service, and of a line, that fails."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import trio

from megafs.errors import (
    BadStore,
    Denied,
    Exists,
    Full,
    Missing,
    NoStore,
    StoreError,
    TooLarge,
    Unavailable,
)
from megafs.stores.base import ObjectStore
from megafs.stores.dropbox import uploads
from megafs.stores.dropbox.driver import DropboxStore
from megafs.stores.http.session import Timeouts
from megafs.stores.retry import Retrying
from tests.fakes.proxy import (
    Answer,
    Change,
    Cut,
    Fault,
    Hang,
    Proxy,
    Request,
    Reset,
    Response,
)
from tests.services.dropbox.account import tag
from tests.services.dropbox.server import DropboxService
from tests.stores.contract import names
from tests.stores.dropbox.conftest import ConnectDropbox

DATA = bytes(range(256)) * 1000
PACK, COMMIT, BEAT = "packs/ab/one", "commits/0000000000000001", "mounts/0000000000000001"
QUICK = Timeouts(read=1.0, write=1.0)


@pytest.fixture
async def store(proxy: Proxy, connect_dropbox: ConnectDropbox) -> DropboxStore:
    """A store behind the proxy, with a pack and a commit in it."""
    made = connect_dropbox(api=proxy.endpoint, timeouts=QUICK)
    await made.create()
    await made.put_new(PACK, DATA)
    await made.put_new(COMMIT, DATA)
    proxy.seen.clear()
    return made


def union(status: int, *tags: str, **more: object) -> Answer:
    body = {"error_summary": "x/..", "error": tag(*tags, **more)}
    return Answer(status, body=json.dumps(body).encode())


def routes(proxy: Proxy) -> list[str]:
    return [request.target.removeprefix("/2/files/") for request, _ in proxy.seen]


NO_SCOPE = b"Error: your app does not have the required scope 'files.content.write'. The owner"


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (Answer(503, body=b""), Unavailable, "503"),
        (Answer(429, body=b"slow down"), Unavailable, "429"),
        (Answer(502, body=b"<html>bad gateway</html>"), Unavailable, "502"),
        (Answer(302, headers=(("location", "http://login"),), body=b""), Unavailable, "302"),
        (Answer(200, body=b"<html>welcome</html>"), Unavailable, "not come from Dropbox"),
        (Answer(200, body=b"[[[[" * 9000), Unavailable, "not come from Dropbox"),
        (union(401, "missing_scope", required_scope="files.content.write"), Denied, "app console"),
        (union(401, "user_suspended"), Denied, "megafs login"),
        (Answer(400, body=NO_SCOPE), Denied, "permission files.content.write: tick it"),
        (Answer(400, body=b"\x1b[31mbad\n\n"), StoreError, r"^[ -~]*Dropbox answers 400$"),
        (Answer(403, body=b""), Denied, "403"),
        (Answer(404, body=b""), BadStore, "is this Dropbox"),
        (Answer(413, body=b""), TooLarge, "a proxy on the way"),
        (union(409, "path", "insufficient_space"), Full, "space is used up"),
        (union(409, "path", "member_folder_insufficient_space"), Full, "space is used up"),
        (union(409, "path", "upload_traffic_limit_reached"), Full, "of this month is used up"),
        (union(409, "path", "no_write_permission"), Denied, "may this account"),
        (union(409, "path", "disallowed_name"), BadStore, "another folder"),
        (union(409, "path", "too_many_write_operations"), Unavailable, "too_many_write"),
        (union(409, "content_hash_mismatch"), Unavailable, "content_hash_mismatch"),
        (union(409, "payload_too_large"), TooLarge, "payload_too_large"),
        (union(409, "\x1b]0;owned"), Unavailable, r"^[ -~]*Dropbox answers 409$"),
        (Answer(418, body=b"\xff\x00"), StoreError, "418"),
    ],
)
async def test_a_refusal_says_what_to_do(
    store: DropboxStore,
    proxy: Proxy,
    answer: Answer,
    error: type[StoreError],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploads, "_WAIT", 0.01)
    for route, attempt in (
        ("download", lambda: store.get(PACK, 0, 10)),
        ("upload ", lambda: store.put_new("packs/ab/two", b"x")),
        ("upload ", lambda: store.put_new("commits/0000000000000002", b"x")),
        ("upload ", lambda: store.put(BEAT, b"x")),
        ("upload_session/start", lambda: store.put_new("packs/ab/two", bytes(600_000))),
        ("delete_v2", lambda: store.delete("packs/ab/one")),
        ("list_folder", lambda: store.list("packs/")),
        ("get_space_usage", store.space_left),
    ):
        proxy.always(answer, contains=route.strip())
        if route == "get_space_usage" and error is Denied:
            assert await store.space_left() is None  # the permission for it need not be given
        elif not (route == "upload_session/start" and answer.status == 200):
            with pytest.raises(error, match=text) as caught:
                await attempt()
            assert type(caught.value) is error or error is Unavailable
        proxy.heal()
        store._api.pace._until = 0.0

    assert await names(store) == [COMMIT, PACK]
    await store.put_new("packs/ab/two", b"x")
    await store.put_new("commits/0000000000000002", b"x")


async def test_the_wait_that_was_asked_for_is_told_and_kept(
    store: DropboxStore, proxy: Proxy
) -> None:
    date, later = (f"Wed, 01 Jan 2025 00:00:{second} GMT" for second in ("00", "20"))
    for answer, wait in (
        (Answer(503, "", (("retry-after", "7"),)), 7.0),
        (Answer(429, "", (("retry-after", "90"),)), 90.0),
        (Answer(503, "", (("date", date), ("retry-after", later))), 20.0),
        (Answer(429, "", (("date", date), ("retry-after", later))), 20.0),
        (Answer(503, "", (("retry-after", "soon"),)), None),
    ):
        proxy.next(answer)
        with pytest.raises(Unavailable) as caught:
            await store.get(PACK, 0, 1)
        assert caught.value.busy and caught.value.retry_after == wait
        if answer.status == 429:  # what is refused counts, too: nothing is sent meanwhile
            seen = len(proxy.seen)
            assert store.health().details["limit"]
            with pytest.raises(Unavailable, match="asked to wait") as caught:
                await store.put(BEAT, b"x")
            assert len(proxy.seen) == seen and 0 < (caught.value.retry_after or 0) <= (wait or 0)
            store._api.pace._until = 0.0
        assert await store.get(PACK, 0, 1) == DATA[:1]


SMALL, LARGE = DATA[:5000], bytes(700_000) + DATA


@pytest.mark.parametrize("fault", [Reset(), Reset(after_done=True)])
@pytest.mark.parametrize(
    ("route", "data"),
    [
        ("files/upload", SMALL),
        ("upload_session/start", LARGE),
        ("upload_session/finish_batch", LARGE),
        ("get_metadata", SMALL),
    ],
)
@pytest.mark.parametrize("name", ["packs/ab/two", "commits/0000000000000101", BEAT])
async def test_a_lost_reply_neither_loses_nor_doubles(
    store: DropboxStore, proxy: Proxy, route: str, data: bytes, fault: Fault, name: str
) -> None:
    retrying = Retrying(store)
    proxy.next(fault, contains=route)
    if route == "get_metadata":  # by which a lost reply is settled
        proxy.next(Reset(after_done=True), contains="files/upload")
    if name == BEAT:
        await retrying.put(name, data)
    else:
        await retrying.put_new(name, data)
    if name.startswith("commits/"):
        with pytest.raises(Exists):
            await retrying.put_new(name, data)
    with pytest.raises(Exists):
        await retrying.put_new(name, b"other")
    assert await store.get(name, 0, len(data) + 1) == data
    assert sorted([COMMIT, PACK, name]) == await names(store)


@pytest.mark.parametrize("route", ["files/upload", "upload_session/finish_batch"])
async def test_an_answer_that_never_comes_neither_loses_nor_doubles(
    store: DropboxStore, proxy: Proxy, route: str
) -> None:
    retrying = Retrying(store)
    proxy.next(Hang(after_done=True), contains=route)
    data = SMALL if route == "files/upload" else LARGE
    await retrying.put_new("commits/0000000000000101", data)
    with pytest.raises(Exists):
        await retrying.put_new("commits/0000000000000101", data)


async def test_a_lost_reply_is_settled_without_reading_the_object(
    store: DropboxStore, proxy: Proxy
) -> None:
    proxy.next(Reset(after_done=True), contains="files/upload")
    await store.put_new("commits/0000000000000002", SMALL)
    assert routes(proxy) == ["upload", "get_metadata"]


async def test_a_race_that_was_lost_with_the_reply_is_lost(
    store: DropboxStore, proxy: Proxy, connect_dropbox: ConnectDropbox
) -> None:
    other = connect_dropbox(store._root)

    class OthersFirst(Fault):
        async def before(self, request: Request, client: trio.SocketStream) -> Response | None:
            await other.put_new("commits/0000000000000002", b"theirs")
            return await Reset().before(request, client)

    proxy.next(OthersFirst(), contains="files/upload")
    with pytest.raises(Exists):
        await store.put_new("commits/0000000000000002", b"ours")
    assert await store.get("commits/0000000000000002", 0, 99) == b"theirs"


@pytest.mark.parametrize("fault", [Reset(), Reset(after_done=True), Hang(after_done=True)])
async def test_a_piece_that_got_no_answer_is_sent_once(
    store: DropboxStore,
    proxy: Proxy,
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
    dropbox: DropboxService,
) -> None:
    monkeypatch.setattr(uploads, "PIECE", 400_000)
    proxy.next(fault, contains="append_v2")
    await store.put_new("packs/ab/two", LARGE + LARGE)
    pieces = dropbox.requests["files/upload_session/append_v2"]
    assert pieces == (5 if fault != Reset() else 4)
    assert await store.get("packs/ab/two", 0, 10**7) == LARGE + LARGE


@pytest.mark.parametrize("fault", [Cut(50), Hang(), Reset()])
async def test_half_an_answer_is_no_answer(store: DropboxStore, proxy: Proxy, fault: Fault) -> None:
    async def read(store: ObjectStore) -> object:
        return await store.get(PACK, 0, 10**6)

    async def listed(store: ObjectStore) -> object:
        return await names(store, "packs/")

    for route, ask, wanted in (("download", read, DATA), ("list_folder", listed, [PACK])):
        proxy.next(fault, fault, contains=route)  # a get our transport may send again by itself
        with pytest.raises(Unavailable):
            await ask(store)
            await ask(store)
        proxy.heal()
        proxy.next(fault, contains=route)
        assert await ask(Retrying(store)) == wanted


class _WholeBody(Fault):
    """Somebody on the way drops the range."""

    async def before(self, request: Request, client: trio.SocketStream) -> Response | None:
        return Response(200, {"dropbox-api-result": "{}"}, DATA)


async def test_a_whole_body_where_a_range_was_asked_for(store: DropboxStore, proxy: Proxy) -> None:
    proxy.always(_WholeBody(), contains="download")
    assert await store.get(PACK, 1000, 10) == DATA[1000:1010]
    assert await store.get(PACK, len(DATA) - 3, 10) == DATA[-3:]
    assert await store.get(PACK, len(DATA), 10) == b""


async def test_another_range_than_asked_for_is_refused(store: DropboxStore, proxy: Proxy) -> None:
    def shift(response: Response) -> None:
        response.headers["content-range"] = f"bytes 5-14/{len(DATA)}"

    proxy.next(Change(shift), contains="download")
    with pytest.raises(Unavailable, match="another range"):
        await store.get(PACK, 0, 10)


async def test_bytes_that_were_changed_on_the_way_are_noticed(
    store: DropboxStore, proxy: Proxy, dropbox: DropboxService
) -> None:
    def flip(response: Response) -> None:
        response.body = b"\xff" + response.body[1:]

    proxy.next(Change(flip), contains="download")
    with pytest.raises(Unavailable, match="changed on the way"):
        await store.get(PACK, 0, 10**6)

    class Flip(Fault):
        async def before(self, request: Request, client: trio.SocketStream) -> Response | None:
            request.body = b"\xff" + request.body[1:]
            return None

    for data in (SMALL, LARGE):
        proxy.next(Flip(), contains="upload")
        with pytest.raises(Unavailable, match="content_hash_mismatch"):
            await store.put_new("packs/ab/two", data)
    assert await names(store, "packs/") == [PACK]


async def test_a_folder_that_is_not_there(connect_dropbox: ConnectDropbox) -> None:
    store = connect_dropbox("/Apps/never made")
    for attempt in (lambda: store.get(COMMIT, 0, 1), lambda: store.list("")):
        with pytest.raises(NoStore, match="megafs format makes it"):
            await attempt()


async def test_not_there_counts_only_from_dropbox(store: DropboxStore, proxy: Proxy) -> None:
    store._folder_seen = float("-inf")
    for pretended in (Answer(404, body=b"<html>nothing</html>"), Answer(409, body=b"no")):
        proxy.always(pretended)
        with pytest.raises(StoreError) as caught:
            await store.get(PACK, 0, 1)
        assert not isinstance(caught.value, Missing | NoStore)
        proxy.heal()


async def test_a_full_account_loses_nothing(store: DropboxStore, dropbox: DropboxService) -> None:
    dropbox.account.quota = dropbox.account.used + 1000
    assert await store.space_left() == 1000
    for name, data in (("packs/ab/two", SMALL), (COMMIT[:-1] + "2", SMALL), ("packs/ab/3", LARGE)):
        with pytest.raises(Full, match="insufficient_space"):
            await store.put_new(name, data)
    with pytest.raises(Full):
        await store.put(BEAT, SMALL)
    await store.put(BEAT, b"fits")
    assert await names(store) == [COMMIT, BEAT, PACK]
    dropbox.account.quota = None
    await store.put_new("packs/ab/two", SMALL)


async def test_a_team_member_has_what_the_team_and_the_admin_leave(
    store: DropboxStore, dropbox: DropboxService
) -> None:
    dropbox.account.team, dropbox.account.quota = True, dropbox.account.used + 5000
    assert await store.space_left() == 5000
    dropbox.scopes = dropbox.scopes - {"account_info.read"}
    assert await store.space_left() is None


# Tokens


class _Renewing:
    """Tokens of the service, a new one after each refusal."""

    def __init__(self, service: DropboxService, *, refused: Sequence[StoreError] = ()) -> None:
        self._service = service
        self._token = service.token()
        self._errors = list(refused)
        self.renewed = 0
        self.closed = False

    async def token(self) -> str:
        return self._token

    async def refused(self, token: str) -> None:
        if self._errors:
            raise self._errors.pop(0)
        if token == self._token:
            self.renewed += 1
            self._token = self._service.token()

    def advice(self) -> str:
        return ""

    async def aclose(self) -> None:
        self.closed = True


async def test_a_token_that_ends_is_renewed_in_the_middle(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox
) -> None:
    tokens = _Renewing(dropbox)
    store = connect_dropbox(tokens=tokens)
    await store.create()
    for i, attempt in enumerate(
        (
            lambda: store.put_new(PACK, LARGE),
            lambda: store.put_new(COMMIT, SMALL),
            lambda: store.get(PACK, 0, 10),
            lambda: store.list(""),
            lambda: store.delete(PACK),
            store.space_left,
        )
    ):
        dropbox.expire()
        await attempt()
        assert tokens.renewed == i + 1
    await store.aclose()
    assert tokens.closed


async def test_a_login_that_is_over_says_so_and_comes_back(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox
) -> None:
    over = Denied("log in again: megafs login dropbox:/x")
    tokens = _Renewing(dropbox, refused=[over, Unavailable("no answer")])
    store = connect_dropbox(tokens=tokens)
    dropbox.revoke()
    with pytest.raises(Denied, match="megafs login dropbox:/x"):
        await store.put_new(COMMIT, SMALL)
    with pytest.raises(Unavailable):
        await store.put_new(COMMIT, SMALL)
    await store.put_new(COMMIT, SMALL)
    assert await store.get(COMMIT, 0, 9999) == SMALL


async def test_no_token_is_in_any_text(
    store: DropboxStore, proxy: Proxy, dropbox: DropboxService
) -> None:
    (token,) = list(dropbox.tokens)
    texts = [repr(store.health()), repr(vars(store)), store.url]
    for answer in (Answer(401, body=token.encode()), Answer(500, body=token.encode())):
        proxy.next(answer)
        with pytest.raises(StoreError) as caught:
            await store.get(PACK, 0, 1)
        texts.append(repr(caught.value) + store.health().last_error)
    assert not any(token in text for text in texts)
