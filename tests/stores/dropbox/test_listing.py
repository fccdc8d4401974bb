"""Listings of the Dropbox driver: by cursors, kept from one mount to the next; and their news."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from megafs.errors import Unavailable
from megafs.stores.abilities import Watch
from megafs.stores.dropbox import folder_index, listing
from megafs.stores.dropbox.driver import DropboxStore
from megafs.stores.retry import Retrying
from tests.fakes.proxy import Change, Proxy, Response
from tests.services.dropbox.server import DropboxService
from tests.stores.contract import names
from tests.stores.dropbox.conftest import ConnectDropbox

COMMITS = [f"commits/{i:016}" for i in range(12)]


async def filled(store: DropboxStore) -> DropboxStore:
    await store.create()
    for name in COMMITS:
        await store.put_new(name, name.encode())
    return store


async def test_a_folder_is_listed_once_and_then_its_changes(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_index, "PAGE", 5)
    store = await filled(connect_dropbox())
    other = connect_dropbox(store._root)
    assert await names(store, "commits/") == COMMITS
    assert dropbox.requests["files/list_folder"] == 1
    assert dropbox.requests["files/list_folder/continue"] == 2
    await other.put_new("commits/0000000000000099", b"x")
    await other.delete(COMMITS[3])
    wanted = [*COMMITS[:3], *COMMITS[4:], "commits/0000000000000099"]
    assert await names(store, "commits/") == wanted
    assert dropbox.requests["files/list_folder"] == 1
    assert dropbox.requests["files/list_folder/continue"] == 3


async def test_listings_at_once_are_one_request(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox
) -> None:
    store = await filled(connect_dropbox())
    await names(store, "commits/")
    before = dropbox.requests["files/list_folder/continue"]
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(names, store, "commits/")
    assert dropbox.requests["files/list_folder/continue"] - before <= 3


async def test_the_next_mount_goes_on_from_the_cursor(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox, listings: Path
) -> None:
    first = await filled(connect_dropbox(listings=listings))
    assert await names(first, "commits/") == COMMITS
    await first.aclose()
    (kept,) = listings.iterdir()
    assert kept.stat().st_mode & 0o077 == 0
    other = connect_dropbox(first._root)
    await other.delete(COMMITS[0])

    before = dropbox.requests.copy()
    second = connect_dropbox(first._root, listings=listings)
    assert await names(second, "commits/") == COMMITS[1:]
    assert dropbox.requests - before == {"files/list_folder/continue": 1}
    entry = (await second.list("commits/")).entries[0]
    assert entry.size == len(COMMITS[1]) and entry.modified > 0


@pytest.mark.parametrize("damage", ["cut", "other bytes", "gone", "others may write", "forgotten"])
async def test_a_listing_that_cannot_be_used_is_made_anew(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox, listings: Path, damage: str
) -> None:
    first = await filled(connect_dropbox(listings=listings))
    await names(first, "commits/")
    await first.aclose()
    (kept,) = listings.iterdir()
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:-9])
    elif damage == "other bytes":
        kept.write_bytes(b"\xde\xad" * 500)
    elif damage == "gone":
        kept.unlink()
    elif damage == "others may write":
        listings.parent.chmod(0o777)
    else:
        dropbox.account.forget_cursors()
    second = connect_dropbox(first._root, listings=listings)
    assert await names(second, "commits/") == COMMITS
    assert dropbox.requests["files/list_folder"] == 2
    await second.aclose()


async def test_another_folder_or_account_has_a_listing_of_its_own(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox, listings: Path
) -> None:
    for _ in range(2):
        store = await filled(connect_dropbox(listings=listings))
        assert await names(store, "commits/") == COMMITS
        await store.aclose()
    assert len(list(listings.iterdir())) == 2


async def test_what_others_put_into_the_folder_is_left_alone(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox
) -> None:
    store = await filled(connect_dropbox())
    with dropbox.account.writing():
        for stray in ("/commits/x (1).o", "/commits/Notes.txt", "/top.txt", "/commits/ab=5.o",
                      "/commits/ab=.o", "/commits/ab=00.o", "/commits/sub dir/x.o"):  # fmt: skip
            dropbox.account.commit({"path": store._root + stray}, b"stray")
    assert await names(store) == COMMITS
    assert await names(store, "commits/") == COMMITS


async def test_a_folder_that_goes_takes_its_objects_with_it(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox
) -> None:
    store = await filled(connect_dropbox())
    await store.put_new("packs/ab/1", b"1")
    await store.put_new("packs/cd/2", b"2")
    assert await names(store, "packs/") == ["packs/ab/1", "packs/cd/2"]
    with dropbox.account.writing():
        dropbox.account.remove(f"{store._root}/packs/ab")
    assert await names(store, "packs/") == ["packs/cd/2"]
    with dropbox.account.writing():
        dropbox.account.remove(f"{store._root}/commits")
    assert await names(store, "commits/") == []
    await store.put_new(COMMITS[0], b"again")
    assert await names(store, "commits/") == COMMITS[:1]


async def test_names_that_differ_in_case_only_do_not_meet(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox
) -> None:
    store = connect_dropbox()
    await store.create()
    wanted = sorted(["packs/ab/x", "packs/AB/x", "packs/aB/x", "packs/ab/X", "Packs/ab/x"])
    for name in wanted:
        await store.put_new(name, name.encode())
    assert await names(store) == wanted
    for name in wanted:
        assert await store.get(name, 0, 99) == name.encode()
    paths = [path.lower() for path in dropbox.account.files()]
    assert len(set(paths)) == len(paths) == len(wanted)
    longest = "packs/" + "Ab" * 97
    await store.put_new(longest, b"x")
    assert await names(store, "packs/A") == ["packs/AB/x", longest]


async def test_a_page_that_makes_no_sense_moves_no_cursor(
    proxy: Proxy, connect_dropbox: ConnectDropbox
) -> None:
    store = await filled(connect_dropbox(api=proxy.endpoint))
    assert await names(store, "commits/") == COMMITS
    await store.put_new("commits/0000000000000050", b"x")

    def empty(response: Response) -> None:
        response.body = b'{"entries": [{".tag": "file"}], "cursor": "AAx", "has_more": false}'

    proxy.next(Change(empty), contains="continue")
    with pytest.raises(Unavailable):
        await store.list("commits/")
    assert await names(store, "commits/") == [*COMMITS, "commits/0000000000000050"]


# News


async def test_a_change_by_another_machine_wakes(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox
) -> None:
    store = await filled(connect_dropbox())
    other = connect_dropbox(store._root)
    watch = Watch.of(Retrying(store))
    assert watch is not None
    woken: list[float] = []

    async def wait() -> None:
        assert watch is not None
        await watch.wait_for_change("commits/")
        woken.append(trio.current_time())

    doings: list[Callable[[], Awaitable[None]]] = [
        lambda: other.put_new("commits/0000000000000100", b"x"),
        lambda: other.delete(COMMITS[0]),
    ]
    for i, others_doing in enumerate(doings):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            while dropbox.polls <= i:
                await trio.sleep(0.005)
            await store.put_new(f"commits/00000000000002{i:02}", b"ours")
            await store.put("mounts/1", b"%d" % i)
            await other.put_new(f"packs/ab/{i}", b"elsewhere")
            await trio.sleep(0.1)
            assert len(woken) == i  # neither by our own doing, nor by other folders
            await others_doing()
            begun = trio.current_time()
        assert woken[-1] - begun < 5
        dropbox.polls = i + 1


async def test_what_changed_between_two_waits_wakes_the_second_at_once(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox
) -> None:
    store = await filled(connect_dropbox())
    other = connect_dropbox(store._root)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.wait_for_change, "commits/")
        while not dropbox.polls:
            await trio.sleep(0.005)
        await other.put_new("commits/0000000000000100", b"x")
    await other.put_new("commits/0000000000000101", b"x")
    await store.list("commits/")  # somebody else's look must not swallow the news
    with trio.move_on_after(5) as waiting:
        await store.wait_for_change("commits/")
    assert not waiting.cancelled_caught


async def test_polls_end_without_news_and_go_on(
    proxy: Proxy,
    dropbox: DropboxService,
    connect_dropbox: ConnectDropbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(response: Response) -> None:
        response.body = b'{"changes": false}'

    store = await filled(connect_dropbox(api=proxy.endpoint))
    await names(store, "commits/")
    other = connect_dropbox(store._root)
    await other.put_new("commits/0000000000000100", b"x")
    proxy.next(*[Change(nothing)] * 3, contains="longpoll")
    store._listings._told["/commits"] = store._listings._folders["/commits"].news
    with trio.fail_after(10):
        await store.wait_for_change("commits/")
    polls = [request for request, _ in proxy.seen if "longpoll" in request.target]
    assert len(polls) == 4
    assert not any("authorization" in request.headers for request in polls)


async def test_a_poll_is_put_off_if_dropbox_says_so(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_MOST_BACKOFF", 0.2)
    store = await filled(connect_dropbox())
    other = connect_dropbox(store._root)
    dropbox.backoff = 60
    await names(store, "commits/")
    store._listings._told["/commits"] = store._listings._folders["/commits"].news
    for i in range(2):
        await other.put_new(f"commits/00000000000001{i:02}", b"x")
        begun = trio.current_time()
        await store.wait_for_change("commits/")
        assert i == 0 or trio.current_time() - begun > 0.15
