"""What the Google Drive driver makes of a service that fails, lags, refuses or is full."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

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
from megafs.stores.gdrive import chain
from megafs.stores.gdrive import driver as gdrive_driver
from megafs.stores.gdrive.driver import GDriveStore
from megafs.stores.gdrive.login_kind import gdrive_login
from megafs.stores.http.session import Timeouts
from megafs.stores.login.credentials import FILE, CredentialStore
from megafs.stores.login.grant import Grant
from megafs.stores.login.tokens import OAuthTokens
from megafs.stores.retry import Retrying
from megafs.stores.stack import open_driver
from megafs.stores.urls import Location
from tests.fakes.proxy import Answer, Change, Cut, Fault, Hang, Reset, Response
from tests.services.gdrive.server import UNIT, DriveServer, refusal
from tests.services.gdrive.state import Drive
from tests.stores.contract import names
from tests.stores.gdrive import Machines

DATA = bytes(range(256)) * 1000
LARGE = bytes(range(251)) * 27_000  # 6.8 MB: in pieces
PACK, PACK2 = (f"packs/{d * 2}/{d * 32}" for d in "ab")
COMMIT, COMMIT2 = "commits/0000000000000001", "commits/0000000000000002"
KEYS, BEAT = "keys/00000001", "mounts/0000000000000001"
MANIFEST = "checkpoints/0000000000000001/manifest"


@pytest.fixture
async def store(machines: Machines, drive: DriveServer) -> GDriveStore:
    """A store with an object of each kind in it."""
    made = machines.open(timeouts=Timeouts(read=1.0, write=1.0))
    await made.create()
    for name in (KEYS, PACK, COMMIT):
        await made.put_new(name, DATA)
    drive.front.seen.clear()
    return made


def second(store: GDriveStore, machines: Machines) -> GDriveStore:
    """Another machine on the same volume."""
    return machines.open(store.url.removeprefix("gdrive:/"))


def files_named(drive: Drive, name: str) -> int:
    return sum(f.name == name for f in drive.files.values())


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (refusal(403, "userRateLimitExceeded"), Unavailable, "userRateLimit"),
        (refusal(403, "rateLimitExceeded"), Unavailable, "rateLimit"),
        (refusal(403, "dailyLimitExceeded"), Unavailable, "limit of the day"),
        (refusal(403, "downloadQuotaExceeded"), Unavailable, "limit of the day"),
        (refusal(403, "storageQuotaExceeded"), Full, "account is full"),
        (refusal(403, "numChildrenInNonRootLimitExceeded"), Full, "no more files"),
        (refusal(403, "insufficientFilePermissions"), Denied, "may this login"),
        (refusal(403, "appNotAuthorizedToFile"), Denied, "another client id"),
        (refusal(403, "accessNotConfigured"), Denied, "enable the Google Drive API"),
        (refusal(403, "\x1b[31mred"), Denied, r"\\x1b\[31mred"),
        (refusal(400, "invalid"), StoreError, "400 invalid"),
        (refusal(413, "uploadTooLarge"), TooLarge, "413"),
        (refusal(429, "rateLimitExceeded"), Unavailable, "429"),
        (refusal(500, "backendError"), Unavailable, "500"),
        (refusal(401, "authError"), Denied, "refuses the token"),
        (Answer(503, body=b"<html>busy</html>"), Unavailable, "503"),
        (Answer(302, headers=(("location", "http://login"),), body=b""), Unavailable, "302"),
        (
            Answer(200, body=b"<html>welcome</html>"),
            Unavailable,
            "cannot be read|web page|no upload address",
        ),
        (Answer(404, body=b"<html>nothing</html>"), Unavailable, "404"),
        (Answer(418, body=b"\xff\x00 no JSON"), StoreError, "418"),
    ],
)
async def test_a_refusal_says_what_to_do(
    store: GDriveStore, drive: DriveServer, answer: Answer, error: type[StoreError], text: str
) -> None:
    attempts: dict[str, Callable[[], Awaitable[object]]] = {
        "POST pack": lambda: store.put_new(PACK2, b"x"),
        "POST commit": lambda: store.put_new(COMMIT2, b"x"),
        "POST large": lambda: store.put_new(PACK2, LARGE),
        "POST beat": lambda: store.put(BEAT, b"x"),
        "DELETE": lambda: store.delete(PACK),
        "GET list": lambda: store.list("packs/"),
    }
    if answer.body != b"<html>welcome</html>":  # which may be an object's bytes
        attempts["GET"] = lambda: store.get(PACK, 0, 10)
    for what, attempt in attempts.items():
        if what == "DELETE" and answer.status == 200:
            continue
        drive.front.always(answer, method=what.split()[0])
        with pytest.raises(error, match=text) as caught:
            await attempt()
        assert type(caught.value) is error
        drive.front.heal()
    assert await names(store) == [COMMIT, KEYS, PACK]
    await store.put_new(PACK2, b"x")
    await store.put_new(COMMIT2, b"x")
    assert all(files_named(drive.drive, name) == 1 for name in (PACK, PACK2, COMMIT, COMMIT2))


async def test_the_wait_that_was_asked_for_is_told(store: GDriveStore, drive: DriveServer) -> None:
    date, later = (f"Wed, 01 Jan 2025 00:00:{second} GMT" for second in ("00", "20"))
    drive.front.next(
        Answer(503, "", (("retry-after", "7"),)),
        refusal(429, "rateLimitExceeded", retry_after="90"),
        refusal(403, "userRateLimitExceeded", date=date, retry_after=later),
        refusal(429, "rateLimitExceeded"),
        refusal(403, "dailyLimitExceeded"),
    )
    waits = []
    for _ in range(5):
        with pytest.raises(Unavailable) as caught:
            await store.get(PACK, 0, 1)
        assert caught.value.busy
        waits.append(caught.value.retry_after)
    assert waits == [7.0, 90.0, 20.0, None, 3600.0]
    assert "limit of the day" in store.health().details["limit"]


@pytest.mark.parametrize("fault", [Reset(), Reset(after_done=True), Hang(after_done=True)])
@pytest.mark.parametrize("name", [PACK2, COMMIT2, "keys/00000002", MANIFEST, BEAT])
async def test_a_lost_reply_neither_loses_nor_doubles(
    store: GDriveStore, drive: DriveServer, machines: Machines, fault: Fault, name: str
) -> None:
    retrying = Retrying(store)
    data = LARGE if name == PACK2 else DATA
    for method in ("POST", "PUT", "GET"):
        drive.front.next(fault, method=method)
    if name == BEAT:
        await retrying.put(name, b"1")
        drive.front.next(fault, method="PATCH")
        await retrying.put(name, data)
    else:
        await retrying.put_new(name, data)
        drive.front.heal()
        with pytest.raises(Exists):
            await retrying.put_new(name, data)
    drive.front.heal()
    for machine in (store, second(store, machines)):
        assert await machine.get(name, 0, len(data) + 1) == data
        assert sorted([COMMIT, KEYS, PACK, name]) == await names(machine)
    assert files_named(drive.drive, name) == 1


@pytest.mark.parametrize("fault", [Cut(50), Hang(), Reset()])
async def test_half_an_answer_is_no_answer(
    store: GDriveStore, drive: DriveServer, fault: Fault
) -> None:
    drive.front.next(fault, fault, fault, method="GET")  # our transport asks once more by itself
    with pytest.raises(Unavailable):
        await store.get(PACK, 0, 10**6)
        await store.get(PACK, 0, 10**6)
    drive.front.heal()
    drive.front.next(fault, method="GET")
    assert await Retrying(store).get(PACK, 0, 10**6) == DATA
    drive.front.next(fault, method="GET", contains="/changes")
    assert await names(Retrying(store), "packs/") == [PACK]


async def test_a_large_upload_goes_on_where_it_was(store: GDriveStore, drive: DriveServer) -> None:
    drive.keeps = 3 * UNIT
    with pytest.raises(Unavailable):
        await store.put_new(PACK2, LARGE)
    drive.front.seen.clear()
    await store.put_new(PACK2, LARGE)
    sent = sum(len(request.body) for request, _ in drive.front.seen)
    assert sent == len(LARGE) - 3 * UNIT
    assert await store.get(PACK2, 0, len(LARGE) + 1) == LARGE
    # A session that the service has forgotten begins anew, with the same id.
    drive.keeps = UNIT
    other = "packs/cc/" + "c" * 32
    with pytest.raises(Unavailable):
        await store.put_new(other, LARGE)
    drive.sessions.clear()
    await store.put_new(other, LARGE)
    assert await store.get(other, 0, len(LARGE) + 1) == LARGE
    assert files_named(drive.drive, PACK2) == files_named(drive.drive, other) == 1


async def test_an_upload_address_elsewhere_gets_no_token(
    store: GDriveStore, drive: DriveServer
) -> None:
    def elsewhere(response: Response) -> None:
        response.headers["location"] = "http://127.0.0.1:9/upload?upload_id=x"

    drive.front.next(Change(elsewhere), method="POST")
    with pytest.raises(Unavailable, match="no upload address"):
        await store.put_new(PACK2, LARGE)


async def test_a_server_without_ranges_and_one_with_others(
    store: GDriveStore, drive: DriveServer
) -> None:
    def whole(response: Response) -> None:
        response.status, response.body = 200, DATA

    def shift(response: Response) -> None:
        response.headers["content-range"] = f"bytes 5-14/{len(DATA)}"

    drive.front.always(Change(whole), contains="alt=media")
    assert await store.get(PACK, 1000, 10) == DATA[1000:1010]
    assert await store.get(PACK, len(DATA), 10) == b""
    drive.front.heal()
    drive.front.next(Change(shift), contains="alt=media")
    with pytest.raises(Unavailable, match="another range"):
        await store.get(PACK, 0, 10)


async def test_what_looks_like_malware_is_read_all_the_same(
    store: GDriveStore, drive: DriveServer
) -> None:
    drive.front.next(refusal(403, "cannotDownloadAbusiveFile"), contains="alt=media")
    assert await store.get(PACK, 0, 10) == DATA[:10]
    assert "acknowledgeAbuse=true" in drive.front.seen[-1][0].target


async def test_an_answer_about_another_file_is_refused(
    store: GDriveStore, drive: DriveServer
) -> None:
    """As of a service that gives a file another id than it was asked for."""

    def rename(response: Response) -> None:
        response.body = response.body.replace(b'"id": "1', b'"id": "2')

    drive.front.next(Change(rename), method="POST")
    with pytest.raises(StoreError, match="another file"):
        await store.put_new(COMMIT2, b"x")


# What lags behind


async def test_another_machines_commit_and_packs_are_seen_at_once(
    store: GDriveStore, drive: DriveServer, machines: Machines
) -> None:
    other = second(store, machines)
    assert await names(other) == [COMMIT, KEYS, PACK]
    drive.drive.list_lag = drive.drive.change_lag = 3600.0
    packs = [f"packs/{n:02x}/{n:02x}{'0' * 30}" for n in range(50)]
    for name in packs:
        await store.put_new(name, name.encode())
    await store.put_new(COMMIT2, DATA)
    assert await other.get(COMMIT2, 0, 10) == DATA[:10]
    for name in packs:
        assert await other.get(name, 0, 99) == name.encode()
    assert await names(other, "commits/") == [COMMIT, COMMIT2]
    listed = (await other.list("packs/", limit=100)).entries
    assert [(entry.name, entry.size) for entry in listed] == [
        (name, len(DATA if name == PACK else name)) for name in sorted([*packs, PACK])
    ]
    drive.front.seen.clear()
    with pytest.raises(Missing):  # the look of an idle mount: one request
        await other.get("commits/0000000000000003", 0, 10)
    assert len(drive.front.seen) <= 2


async def test_what_a_search_shows_late_is_waited_for(
    store: GDriveStore, drive: DriveServer, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gdrive_driver, "LAG", (0.05, 0.4))
    other = second(store, machines)
    await names(other)
    drive.drive.list_lag = drive.drive.change_lag = 0.2
    part = "checkpoints/0000000000000001/" + "f" * 32
    await store.put_new(part, DATA)
    assert await other.get(part, 0, 10) == DATA[:10]
    await store.put(BEAT, b"beat")
    await trio.sleep(0.25)
    assert await names(other, "mounts/") == [BEAT]


async def test_a_feed_that_has_forgotten_where_we_were(
    store: GDriveStore, drive: DriveServer, machines: Machines
) -> None:
    other = second(store, machines)
    await names(other)
    await store.put_new(PACK2, DATA)
    drive.front.next(refusal(400, "invalid"), contains="/changes?")
    assert await names(other, "packs/") == [PACK, PACK2]
    await store.delete(PACK)
    assert await names(other, "packs/") == [PACK2]


async def test_a_commit_that_is_not_found_for_a_moment_is_found_later(
    store: GDriveStore, drive: DriveServer, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = "commits/0000000000000003"
    for name in (COMMIT2, third):
        await store.put_new(name, name.encode())
    other = second(store, machines)
    (hidden,) = [f for f in drive.drive.files.values() if f.name == COMMIT2]
    del drive.drive.files[hidden.id]
    assert await names(other, "commits/") == [COMMIT, third]
    with pytest.raises(Missing):
        await other.get(COMMIT2, 0, 99)
    monkeypatch.setattr(chain, "AGAIN", (0.3,))

    async def show() -> None:
        await trio.sleep(0.1)
        drive.drive.files[hidden.id] = hidden

    async with trio.open_nursery() as nursery:
        nursery.start_soon(show)
        assert await other.get(COMMIT2, 0, 99) == COMMIT2.encode()
    assert await other.get(COMMIT2, 0, 99) == COMMIT2.encode()
    assert await names(other, "commits/") == [COMMIT, COMMIT2, third]


async def test_keys_are_listed_as_they_are_now(
    store: GDriveStore, drive: DriveServer, machines: Machines
) -> None:
    other = second(store, machines)
    assert await names(other, "keys/") == [KEYS]
    drive.drive.list_lag = drive.drive.change_lag = 3600.0
    await store.put_new("keys/00000002", b"2")
    await store.delete(KEYS)
    assert await other.get("keys/00000002", 0, 9) == b"2"
    assert "keys/00000002" in await names(other, "keys/")
    with pytest.raises(Missing):
        await other.get(KEYS, 0, 9)


async def test_names_that_come_back_have_one_winner_again(
    store: GDriveStore, drive: DriveServer, machines: Machines
) -> None:
    """Whether an id may be used again after its file was deleted, Drive does not say."""
    other = second(store, machines)
    await names(other)
    drive.drive.list_lag = drive.drive.change_lag = 3600.0
    for round_ in range(3):
        for name in (MANIFEST, COMMIT):
            if round_:
                await (store if round_ == 1 else other).delete(name)
            elif name == COMMIT:
                continue
            won = []
            for machine in (other, store):
                try:
                    await machine.put_new(name, b"%d" % round_)
                except Exists:
                    continue
                won.append(machine)
            assert len(won) == 1
            assert await store.get(name, 0, 9) == await other.get(name, 0, 9) == b"%d" % round_
    # The id of the next commit outlived the one that had it.
    await store.put_new(COMMIT2, b"next")
    assert await other.get(COMMIT2, 0, 9) == b"next"


async def test_old_commits_may_go(
    store: GDriveStore, drive: DriveServer, machines: Machines
) -> None:
    commits = [f"commits/{n:016}" for n in range(1, 9)]
    for name in commits[1:]:
        await store.put_new(name, name.encode())
    drive.front.seen.clear()
    for name in commits[:5]:
        await store.delete(name)
    assert len(drive.front.seen) == 5  # gc deletes by the thousand
    late = second(store, machines)
    assert await names(late, "commits/") == commits[5:]
    with pytest.raises(Missing):
        await late.get(commits[2], 0, 9)
    ninth = "commits/0000000000000009"
    await late.put_new(ninth, b"9")
    with pytest.raises(Exists):
        await store.put_new(ninth, b"nine")
    drive.front.seen.clear()
    assert await names(store, "commits/") == [*commits[5:], ninth]
    assert len(drive.front.seen) <= 2
    await store.delete(commits[6])  # a gap
    assert await names(late, "commits/") == [commits[5], commits[7], ninth]


# Several files of one name


async def test_several_files_of_one_name_are_settled_alike(
    store: GDriveStore, drive: DriveServer, machines: Machines
) -> None:
    state = drive.drive
    (pack,) = [f for f in state.files.values() if f.name == PACK]
    (commit,) = [f for f in state.files.values() if f.name == COMMIT]
    for original, content in ((pack, DATA[:100]), (pack, DATA + b"more"), (commit, b"forged")):
        state.create(
            {
                "name": original.name,
                "parents": original.parents,
                "appProperties": dict(original.app_properties),
            },
            content,
        )
    for machine in (store, second(store, machines)):
        await machine.list("")
        assert await machine.get(PACK, 0, 10**6) == DATA + b"more"  # of packs, the longest
        assert await machine.get(COMMIT, 0, 10**6) == DATA  # of commits, the one agreed on
        assert await names(machine) == [COMMIT, KEYS, PACK]
        assert machine.health().details["names_with_several_files"] == 2
    assert files_named(state, PACK) == 3  # reading deletes none
    await store.delete(PACK)
    assert files_named(state, PACK) == 0


# The account and the folder


async def test_a_full_account(store: GDriveStore, drive: DriveServer) -> None:
    assert await store.space_left() is None
    drive.drive.limit = drive.drive.usage + 1000
    assert await store.space_left() == 1000
    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: store.put_new(PACK2, DATA),
        lambda: store.put_new(PACK2, LARGE),
        lambda: store.put_new(COMMIT2, DATA),
        lambda: store.put(BEAT, DATA),
    ]
    for attempt in attempts:
        with pytest.raises(Full, match="account is full"):
            await attempt()
    assert "account is full" in store.health().details["limit"]
    drive.drive.limit = None
    await store.put_new(PACK2, LARGE)
    await store.put_new(COMMIT2, DATA)
    assert await names(store) == [COMMIT, COMMIT2, KEYS, PACK, PACK2]


async def test_a_folder_that_is_gone_or_in_the_trash(
    store: GDriveStore, drive: DriveServer, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gdrive_driver, "_CONFIRM_EVERY", -1.0)
    with pytest.raises(NoStore, match="megafs format makes it"):
        await machines.open("nowhere").list("")
    folder = drive.drive.files[store._known.folder.id]  # type: ignore[union-attr]
    folder.trashed = True
    with pytest.raises(NoStore, match="in Drive's trash"):
        await store.get(COMMIT2, 0, 1)
    with pytest.raises(NoStore):
        await second(store, machines).list("")
    folder.trashed = False
    await second(store, machines).list("")
    drive.drive.delete(folder.id)
    with pytest.raises(NoStore, match="is gone"):
        await store.get(COMMIT2, 0, 1)
    with pytest.raises(NoStore):
        await store.put_new(COMMIT2, b"x")


@pytest.mark.parametrize(
    ("path", "options", "text"),
    [
        ("", {}, "names no folder"),
        ("/a/../b", {}, "may not hold"),
        ("/a", {"endpoint": "https://example.org"}, "an address of this machine"),
        ("/a", {"endpoint": "http://example.org"}, "https://"),
        ("/a", {"read_timeout": "soon"}, "takes seconds"),
    ],
)
def test_what_cannot_be_right_is_said(path: str, options: dict[str, str], text: str) -> None:
    with pytest.raises(BadStore, match=text):
        open_driver(f"gdrive:{path}", options)


# Logging in


async def test_a_token_that_ends_is_renewed_and_a_login_that_ends_comes_back(
    drive: DriveServer, machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = gdrive_login(Location("", "/a"), {"endpoint": drive.endpoint, "client_id": "ours"})
    kept = CredentialStore(tmp_path / "logins", {})

    def log_in() -> None:
        grant = Grant(
            next(iter(drive.tokens)), drive.refresh, client_id="ours", token_endpoint=login.token
        )
        kept.put(login.key, grant.text, url="gdrive:/a", keep=FILE)

    log_in()
    tokens = OAuthTokens(login, "gdrive:/a", kept=kept)
    store = machines.open("a", tokens)
    await store.create()
    await store.put_new(COMMIT, DATA)
    drive.new_token()  # in the middle of it
    await store.put_new(PACK, LARGE)
    monkeypatch.setattr("megafs.stores.login.tokens.PAUSE", 0.0)
    old, drive.refresh = drive.refresh, "revoked"
    drive.new_token()
    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: store.get(PACK, 0, 1),
        lambda: store.put_new(COMMIT2, b"2"),
    ]
    for attempt in attempts:
        with pytest.raises(Denied, match="megafs login gdrive:/a"):
            await attempt()
    assert "megafs login" in store.health().last_error
    assert old not in store.health().last_error
    drive.refresh = "1//another"
    log_in()  # no new mount is needed
    await store.put_new(COMMIT2, b"2")
    assert await store.get(PACK, 0, len(LARGE) + 1) == LARGE


async def test_news_come_by_asking_for_the_next_commit(
    store: GDriveStore, drive: DriveServer, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gdrive_driver, "WATCH", (0.05, 0.05))
    other = second(store, machines)
    await names(other)
    drive.drive.list_lag = drive.drive.change_lag = 3600.0
    done = trio.Event()

    async def wait() -> None:
        await other.wait_for_change("commits/")
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(0.2)
        assert not done.is_set()
        await store.put_new(COMMIT2, b"2")
        with trio.fail_after(5):
            await done.wait()
    drive.drive.change_lag = 0.0
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.wait_for_change, "mounts/")
            await store.put(BEAT, b"x")


async def test_requests_of_each_operation(store: GDriveStore, drive: DriveServer) -> None:
    """What docs/stores/gdrive.md says that they cost."""

    async def count(attempt: Awaitable[object]) -> int:
        drive.front.seen.clear()
        await attempt
        return len(drive.front.seen)

    wrapped: ObjectStore = store
    assert await count(wrapped.get(PACK, 0, 10)) == 1
    assert await count(wrapped.put_new(PACK2, DATA)) == 1
    assert await count(wrapped.put_new("packs/cc/" + "c" * 32, LARGE)) == 2
    assert await count(wrapped.put_new(COMMIT2, DATA)) == 2
    assert await count(wrapped.put_new(MANIFEST, DATA)) == 4
    await wrapped.put(BEAT, b"1")
    assert await count(wrapped.put(BEAT, b"2")) == 1
    assert await count(wrapped.delete(PACK)) == 1
    assert await count(wrapped.list("packs/")) == 1
    assert await count(wrapped.list("commits/")) == 2
