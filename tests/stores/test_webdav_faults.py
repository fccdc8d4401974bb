"""What the WebDAV driver makes of a server that fails: a real one behind a proxy that breaks it."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator

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
from megafs.stores.http.session import Timeouts
from megafs.stores.probe import probe_create_if_absent
from megafs.stores.retry import Retrying
from megafs.stores.webdav import exclusive, server
from megafs.stores.webdav.driver import WebDavStore
from megafs.stores.webdav.exclusive import Way
from tests.engines.dav import Dav
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
    proxying,
)
from tests.stores.conftest import ConnectDav, Servers, prepare
from tests.stores.contract import names

pytestmark = pytest.mark.webdav

DATA = bytes(range(256)) * 1000
PACK, COMMIT, BEAT = "packs/ab/one", "commits/0000000000000001", "mounts/0000000000000001"
QUICK = Timeouts(read=1.0, write=1.0)


@pytest.fixture
def nginx(dav: Servers) -> Dav:
    return dav("nginx")


@pytest.fixture
async def proxy(nginx: Dav) -> AsyncIterator[Proxy]:
    async with proxying(nginx.origin) as running:
        yield running


@pytest.fixture
async def store(proxy: Proxy, connect_dav: ConnectDav) -> WebDavStore:
    """A store behind the proxy, with a pack and a commit in it."""
    made = await prepare(connect_dav(proxy.endpoint, timeouts=QUICK), Way.MOVE_FOLDER)
    await made.put_new(PACK, DATA)
    await made.put_new(COMMIT, DATA)
    proxy.seen.clear()
    return made


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (Answer(503, body=b""), Unavailable, "503"),
        (Answer(429, body=b""), Unavailable, "429"),
        (Answer(423, body=b""), Unavailable, "423"),
        (Answer(502, body=b"<html>bad gateway</html>"), Unavailable, "502"),
        (Answer(507, body=b""), Full, "507.* full"),
        (Answer(413, body=b""), TooLarge, "client_max_body_size"),
        (Answer(401, body=b""), Denied, "give user= and password_file="),
        (Answer(302, headers=(("location", "http://login"),), body=b""), Unavailable, "login page"),
        (Answer(501, body=b""), BadStore, "is this WebDAV"),
        (Answer(418, body=b"\xff\x00 not XML"), StoreError, "418"),
    ],
)
async def test_a_refusal_says_what_to_do(
    store: WebDavStore, proxy: Proxy, answer: Answer, error: type[StoreError], text: str
) -> None:
    for method, attempt in (
        ("GET", lambda: store.get(PACK, 0, 10)),
        ("PUT", lambda: store.put_new("packs/ab/two", b"x")),
        ("PUT", lambda: store.put_new("commits/0000000000000002", b"x")),
        ("PUT", lambda: store.put(BEAT, b"x")),
        ("MOVE", lambda: store.put_new("packs/ab/two", b"x")),
        ("MOVE", lambda: store.put_new("commits/0000000000000002", b"x")),
        ("DELETE", lambda: store.delete("packs/ab/two")),
        ("PROPFIND", lambda: store.list("packs/")),
    ):
        # A 4xx of a write to a folder is tried once more, should the folder have gone.
        proxy.always(answer, method=method)
        with pytest.raises(error, match=text) as caught:
            await attempt()
        assert type(caught.value) is error
        proxy.heal()

    assert await names(store) == [COMMIT, PACK]
    await store.put_new("packs/ab/two", b"x")
    await store.put_new("commits/0000000000000002", b"x")


async def test_the_wait_that_was_asked_for_is_told(store: WebDavStore, proxy: Proxy) -> None:
    date, later = (f"Wed, 01 Jan 2025 00:00:{second} GMT" for second in ("00", "20"))
    proxy.next(
        Answer(503, "", (("retry-after", "7"),)),
        Answer(429, "", (("retry-after", "90"),)),
        Answer(503, "", (("date", date), ("retry-after", later))),
        Answer(423, "", (("retry-after", "soon"),)),
    )
    waits = []
    for _ in range(4):
        with pytest.raises(Unavailable) as caught:
            await store.get(PACK, 0, 1)
        assert caught.value.busy
        waits.append(caught.value.retry_after)
    assert waits == [7.0, 90.0, 20.0, None]


@pytest.mark.parametrize("method", ["PUT", "MOVE", "MKCOL"])
@pytest.mark.parametrize("fault", [Reset(), Reset(after_done=True), Hang(after_done=True)])
@pytest.mark.parametrize("name", ["packs/ab/two", "commits/0000000000000101", BEAT])
async def test_a_lost_reply_neither_loses_nor_doubles(
    store: WebDavStore, proxy: Proxy, method: str, fault: Fault, name: str
) -> None:
    retrying = Retrying(store)
    proxy.next(fault, method=method)
    if name == BEAT:
        await retrying.put(name, DATA)
    else:
        await retrying.put_new(name, DATA)
        with pytest.raises(Exists):
            await retrying.put_new(name, DATA)
    assert await store.get(name, 0, len(DATA) + 1) == DATA
    assert sorted([COMMIT, PACK, name]) == await names(store)


@pytest.mark.parametrize("method", ["GET", "PROPFIND"])
@pytest.mark.parametrize("fault", [Cut(50), Hang(), Reset()])
async def test_half_an_answer_is_no_answer(
    store: WebDavStore, proxy: Proxy, method: str, fault: Fault
) -> None:
    async def ask(store: ObjectStore) -> object:
        return await (store.get(PACK, 0, 10**6) if method == "GET" else names(store, "packs/"))

    proxy.next(fault, fault, method=method)  # our transport asks once more by itself
    with pytest.raises(Unavailable):
        await ask(store)
        await ask(store)
    proxy.heal()
    proxy.next(fault, method=method)
    assert await ask(Retrying(store)) in (DATA, [PACK])


class _WholeBody(Fault):
    """The server does not know ranges."""

    async def before(self, request: Request, client: trio.SocketStream) -> Response | None:
        return Response(200, {}, DATA)


async def test_a_server_without_ranges(store: WebDavStore, proxy: Proxy) -> None:
    proxy.always(_WholeBody(), method="GET", contains="packs/")
    assert await store.get(PACK, 1000, 10) == DATA[1000:1010]
    assert await store.get(PACK, len(DATA) - 3, 10) == DATA[-3:]
    assert await store.get(PACK, len(DATA), 10) == b""


async def test_another_range_than_asked_for_is_refused(store: WebDavStore, proxy: Proxy) -> None:
    def shift(response: Response) -> None:
        response.headers["content-range"] = f"bytes 5-14/{len(DATA)}"

    proxy.next(Change(shift), method="GET")
    with pytest.raises(Unavailable, match="another range"):
        await store.get(PACK, 0, 10)


async def test_500_where_a_folder_is_missing(store: WebDavStore, proxy: Proxy) -> None:
    proxy.always(Answer(500, body=b""), contains="nothing")
    with pytest.raises(Missing):
        await store.get("packs/nothing/x", 0, 1)
    await store.delete("packs/nothing/x")
    assert await names(store, "packs/nothing/") == []
    with pytest.raises(Unavailable):  # while of what is there it is a failure
        proxy.next(Answer(500, body=b""), method="GET")
        await store.get(PACK, 0, 1)


@pytest.mark.parametrize("status", [200, 201, 204, 405, 409, 301, 403])
async def test_any_answer_to_making_a_folder_that_is_there(
    store: WebDavStore, proxy: Proxy, status: int, connect_dav: ConnectDav, nginx: Dav
) -> None:
    second = connect_dav(proxy.endpoint, path=store.url.split(proxy.endpoint, 1)[1])
    proxy.always(Answer(status, body=b""), method="MKCOL", contains="/packs")
    proxy.always(Answer(status, body=b""), method="MKCOL", contains="/tmp.d/ ")
    await second.put_new("packs/ab/two", b"2")
    assert await names(second, "packs/") == [PACK, "packs/ab/two"]


async def test_folders_are_made_once_and_again_when_they_are_gone(
    store: WebDavStore, proxy: Proxy, nginx: Dav
) -> None:
    await store.put_new("packs/ab/two", b"2")
    assert not [r for r, _ in proxy.seen if r.method == "MKCOL"]
    here = nginx.directory / "data" / store.url.partition("/dav/")[2]
    root = nginx.files / here.name
    for path in (root / "packs" / "ab").iterdir():
        path.unlink()
    (root / "packs" / "ab").rmdir()
    (root / "tmp.d").rmdir()
    await store.put_new("packs/ab/three", b"3")
    assert await names(store, "packs/") == ["packs/ab/three"]


@pytest.mark.parametrize("way", [Way.MOVE_FOLDER, Way.MOVE_FILE, Way.MKCOL])
async def test_no_body_is_ever_sent_to_an_objects_own_name(
    proxy: Proxy, connect_dav: ConnectDav, way: Way
) -> None:
    """What a server shows of half a PUT is never an object."""
    store = await prepare(connect_dav(proxy.endpoint), way)
    for name in (PACK, COMMIT, "keys/00000001"):
        await store.put_new(name, DATA)
    await store.put(BEAT, DATA)
    await store.put(BEAT, b"again")
    puts = [request.target for request, _ in proxy.seen if request.method == "PUT"]
    assert len(puts) == 6  # and the record
    assert all("/tmp.d/" in target for target in puts)
    assert {request.headers["depth"] for request, _ in proxy.seen if request.method == "PROPFIND"} \
        <= {"0", "1"}  # fmt: skip
    assert {request.headers["accept-encoding"] for request, _ in proxy.seen} == {"identity"}


async def test_old_uploads_are_swept_and_young_ones_stay(
    store: WebDavStore, nginx: Dav, proxy: Proxy, connect_dav: ConnectDav
) -> None:
    path = store.url.split(proxy.endpoint, 1)[1]
    folder = nginx.directory / "data" / path.lstrip("/") / "tmp.d"
    old, young, old_folder = folder / "1-old", folder / "2-young", folder / "3-old"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    old_folder.mkdir()
    (old_folder / "o").write_bytes(b"x")
    past = time.time() - server.STALE - 60
    for each in (old, old_folder / "o", old_folder):
        os.chown(each, folder.stat().st_uid, folder.stat().st_gid)
        os.utime(each, (past, past))
    second = connect_dav(proxy.endpoint, path=path)
    await second.put_new("packs/ab/two", b"2")
    assert [entry.name for entry in folder.iterdir()] == ["2-young"]
    assert await names(second) == [COMMIT, PACK, "packs/ab/two"]


async def test_a_folder_that_is_not_there(
    nginx: Dav, connect_dav: ConnectDav, proxy: Proxy
) -> None:
    store = connect_dav(proxy.endpoint)
    for attempt in (
        lambda: store.get(COMMIT, 0, 1),
        lambda: store.list(""),
        lambda: store.put_new(PACK, b"x"),
    ):
        with pytest.raises(NoStore, match="is it the right address"):
            await attempt()


async def test_not_there_counts_only_from_a_webdav_server(store: WebDavStore, proxy: Proxy) -> None:
    """A login page, or a server without its disk, must not make objects missing."""
    proxy.always(Answer(404, body=b"<html>nothing here</html>"))
    with pytest.raises(NoStore):
        await store.get(PACK, 0, 1)
    proxy.heal()
    proxy.always(Answer(404, body=b""), method="GET")
    proxy.always(Answer(200, body=b"<html>welcome</html>"), method="PROPFIND")
    with pytest.raises(Unavailable):
        await store.get(PACK, 0, 1)


# What format chooses


class _IgnoresConditions(Fault):
    """The server overwrites whatever is asked for, and says 201 to MKCOL of what is there."""

    async def before(self, request: Request, client: trio.SocketStream) -> Response | None:
        request.head = request.head.replace(b"overwrite: F", b"overwrite: T")
        request.head = request.head.replace(b"if-none-match: *", b"x-nothing: *")
        return None

    async def after(self, response: Response, client: trio.SocketStream) -> None:
        if response.status == 405:
            response.status = 201


async def test_where_nothing_is_exclusive_it_is_said_for_good(
    proxy: Proxy, connect_dav: ConnectDav, nginx: Dav
) -> None:
    proxy.always(_IgnoresConditions())
    store = connect_dav(proxy.endpoint)
    await store.create()
    assert store.health().details["exclusive_create"] == "none"
    # Whoever races again is sure to see it, even where the server is honest now.
    proxy.heal()
    assert not await probe_create_if_absent(store)
    await store.put_new(COMMIT, b"1")
    with pytest.raises(Exists):
        await store.put_new(COMMIT, b"2")


async def test_what_the_server_cannot_do_is_passed_over(
    dav: Servers, connect_dav: ConnectDav
) -> None:
    class NoFolders(Fault):
        async def before(self, request: Request, client: trio.SocketStream) -> Response | None:
            return Response(502, {}, b"") if request.target.endswith("/") else None

    async with proxying(dav("lighttpd").origin) as proxy:
        proxy.always(NoFolders(), method="MOVE")
        store = connect_dav(proxy.endpoint)
        await store.create()
        assert store.health().details["exclusive_create"] == "mkcol"


async def test_the_choice_is_read_by_other_machines_and_kept(
    store: WebDavStore, proxy: Proxy, connect_dav: ConnectDav
) -> None:
    path = store.url.split(proxy.endpoint, 1)[1]
    second = connect_dav(proxy.endpoint, path=path)
    await second.create()
    with pytest.raises(Exists):
        await second.put_new(COMMIT, b"2")
    assert second.health().details["exclusive_create"] == "move-folder"
    third = connect_dav(proxy.endpoint, path=path)
    proxy.always(Answer(200, body=b"move-house"), contains="exclusive.txt")
    with pytest.raises(BadStore, match="it knows move-folder"):
        await third.put_new(COMMIT, b"2")
    proxy.heal()
    await store._server.remove("exclusive.txt")
    assert await third.get(COMMIT, 0, 3) == DATA[:3]  # what is there stays readable
    with pytest.raises(BadStore, match=r"lacks the file exclusive\.txt"):
        await third.put_new(COMMIT, b"2")


async def test_a_claim_of_a_machine_that_died_ends(
    proxy: Proxy, connect_dav: ConnectDav, nginx: Dav, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exclusive, "_CLAIM_WAIT", 0.2)
    store = await prepare(connect_dav(proxy.endpoint), Way.MKCOL)
    await store.put_new(COMMIT, b"1")
    folder = nginx.directory / "data" / store.url.split(proxy.endpoint, 1)[1].lstrip("/")
    claim = folder / "commits" / "00000000000000.s" / "0000000000000002.x"
    claim.mkdir()
    os.chown(claim, folder.stat().st_uid, folder.stat().st_gid)
    second = "commits/0000000000000002"
    assert await names(store) == [COMMIT]
    with pytest.raises(Missing):
        await store.get(second, 0, 1)
    with pytest.raises(Unavailable, match="about to store"):
        await store.put_new(second, b"2")
    past = time.time() - exclusive.CLAIM_ENDS - 5
    os.utime(claim, (past, past))
    await store.put_new(second, b"2")
    assert await store.get(second, 0, 9) == b"2"
    assert await names(store) == [COMMIT, second]


async def test_a_loser_that_was_moved_into_the_winners_folder_knows_it(
    store: WebDavStore, proxy: Proxy, nginx: Dav
) -> None:
    """wsgidav reports success for it, now and then."""
    proxy.next(Answer(201, body=b""), method="MOVE")
    with pytest.raises(Exists):
        await store.put_new(COMMIT, b"mine")
    assert await store.get(COMMIT, 0, 10**6) == DATA
