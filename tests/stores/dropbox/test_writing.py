"""The Dropbox driver writes with few requests, one at a time, and shares the folder with others."""

from __future__ import annotations

import pytest
import trio

from megafs.errors import Exists, TooLarge, Unavailable
from megafs.stores.dropbox import uploads
from megafs.stores.probe import probe_create_if_absent
from megafs.stores.retry import Retrying
from tests.fakes.proxy import Delay, Hang, Proxy
from tests.services.dropbox.server import DropboxService
from tests.stores.contract import names
from tests.stores.dropbox.conftest import ConnectDropbox

COMMIT = "commits/0000000000000001"


async def test_what_waits_together_is_one_write(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox
) -> None:
    store = connect_dropbox(connections=64)
    await store.create()
    dropbox.account.write_seconds = 0.05
    before, writes = dropbox.requests.copy(), dropbox.account.writes

    async with trio.open_nursery() as nursery:
        for i in range(300):
            nursery.start_soon(store.put_new, f"packs/{i % 7:02}/{i}", b"%d" % i)
    asked = dropbox.requests - before
    assert asked["files/upload"] == 1  # the first, as nobody had the turn
    assert asked["files/upload_session/start"] == 299
    assert asked["files/upload_session/finish_batch_v2"] < 100
    assert dropbox.account.writes - writes == 1 + asked["files/upload_session/finish_batch_v2"]
    assert len(await names(store)) == 300

    before, writes = dropbox.requests.copy(), dropbox.account.writes
    async with trio.open_nursery() as nursery:
        for i in range(300):
            nursery.start_soon(store.delete, f"packs/{i % 7:02}/{i}")
    asked = dropbox.requests - before
    assert asked["files/delete_v2"] + asked["files/delete_batch"] <= 4
    assert await names(store) == []


async def test_one_request_at_a_time_changes_the_folder(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox
) -> None:
    store = connect_dropbox(connections=64)
    await store.create()
    # Whoever comes while the lock is held is refused, and counts.
    dropbox.account.write_seconds, dropbox.account.most_waiting = 0.02, 0

    async def mixed(i: int) -> None:
        await store.put_new(f"packs/ab/{i}", bytes(i))
        await store.put(f"mounts/{i % 3}", b"%d" % i)
        await store.put_new(f"commits/{i:016}", b"%d" % i)
        await store.delete(f"packs/ab/{i}")

    async with trio.open_nursery() as nursery:
        for i in range(20):
            nursery.start_soon(mixed, i)
    assert dropbox.account.refused_writes == 0
    assert len(await names(store, "commits/")) == 20
    assert await names(store, "packs/") == []


async def test_a_commit_is_one_request_and_a_pack_two(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox
) -> None:
    store = connect_dropbox()
    await store.create()
    for name, size, wanted in (
        (COMMIT, 30_000, {"files/upload"}),
        ("packs/ab/1", uploads.DIRECT, {"files/upload"}),
        (
            "packs/ab/2",
            uploads.DIRECT + 1,
            {"files/upload_session/start", "files/upload_session/finish_batch_v2"},
        ),
    ):
        before = dropbox.requests.copy()
        await store.put_new(name, bytes(size))
        assert set(dropbox.requests - before) == wanted
        assert (dropbox.requests - before).total() == len(wanted)


async def test_each_in_a_batch_has_its_own_answer(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox
) -> None:
    store = connect_dropbox()
    await store.create()
    await store.put_new("commits/0", b"there")
    dropbox.account.write_seconds = 0.05
    ended: dict[str, str] = {}

    async def write(name: str) -> None:
        try:
            await store.put_new(name, bytes(600_000))
            ended[name] = "stored"
        except Exists:
            ended[name] = "taken"

    async with trio.open_nursery() as nursery:
        for i in range(6):
            nursery.start_soon(write, f"commits/{i}")
    assert ended == {"commits/0": "taken"} | {f"commits/{i}": "stored" for i in range(1, 6)}
    assert await store.get("commits/0", 0, 9) == b"there"


async def test_who_does_the_work_may_be_cancelled(
    proxy: Proxy, connect_dropbox: ConnectDropbox
) -> None:
    """The others hear that nobody knows, and ask again."""
    store = connect_dropbox(api=proxy.endpoint)
    await store.create()
    retrying = Retrying(store)
    # The second batch is of all who have come while the first was under way.
    proxy.next(Delay(0.5), Hang(after_done=True), contains="finish_batch")
    leader = trio.CancelScope()
    bodies = {f"commits/{i}": bytes([i]) * 600_000 for i in range(5)}

    def batches() -> int:
        return sum("finish_batch" in request.target for request, _ in proxy.seen)

    async def lead() -> None:
        with leader:
            await store.put_new("packs/ab/leads", bytes(600_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.put_new, "packs/ab/first", bytes(600_000))
        while batches() < 1:
            await trio.sleep(0.005)
        nursery.start_soon(lead)
        while len(store._namespace._finishes) < 1:
            await trio.sleep(0.005)
        for name, data in bodies.items():
            nursery.start_soon(retrying.put_new, name, data)
        while batches() < 2:
            await trio.sleep(0.005)
        leader.cancel()
    assert leader.cancelled_caught
    for name, data in bodies.items():
        assert await store.get(name, 0, 10**6) == data


async def test_two_machines_share_the_lock(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox
) -> None:
    one = connect_dropbox()
    two = connect_dropbox(one._root)
    await one.create()
    dropbox.account.write_seconds, dropbox.account.most_waiting = 0.01, 0
    dropbox.retry_after = "0"
    taken = 0

    async def write(store: Retrying, mark: bytes) -> None:
        nonlocal taken
        for i in range(40):
            try:
                await store.put_new(f"commits/{i:016}", mark * 600_000 if i % 2 else mark)
            except Exists:
                taken += 1

    async with trio.open_nursery() as nursery:
        for mark, store in ((b"1", one), (b"2", two)):
            nursery.start_soon(write, Retrying(store, patience=300), mark)
    assert taken == 40
    assert dropbox.account.refused_writes > 0
    assert one.health().details["contended"] + two.health().details["contended"] > 0
    assert len(await names(one)) == 40


async def test_a_lock_that_is_never_free_is_told(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_WAIT", 0.01)
    store = connect_dropbox()
    await store.create()
    dropbox.account.most_waiting = -1
    for size in (10, 600_000):
        with pytest.raises(Unavailable, match="too_many_write_operations") as caught:
            await store.put_new(COMMIT, bytes(size))
        assert caught.value.busy and not caught.value.maybe_done
    with pytest.raises(Unavailable):
        await store.delete(COMMIT)
    # The lock is no limit of requests: reading goes on.
    assert store.health().details["limit"] == ""


async def test_large_objects_go_in_pieces(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PIECE", 1 << 20)
    store = connect_dropbox()
    await store.create()
    for size in ((1 << 20) + 1, 3 << 20, 5 << 20):
        data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        await store.put_new(f"packs/ab/{size}", data)
        assert await store.get(f"packs/ab/{size}", 0, size + 1) == data
    monkeypatch.setattr(uploads, "LARGEST", 5 << 20)
    with pytest.raises(TooLarge):
        await store.put_new("packs/ab/more", bytes((5 << 20) + 1))


ROUNDS = 10


async def test_of_two_machines_that_race_exactly_one_wins(
    dropbox: DropboxService, connect_dropbox: ConnectDropbox
) -> None:
    one = connect_dropbox()
    await one.create()
    stores = [one, *(connect_dropbox(one._root) for _ in range(7))]
    for round_ in range(ROUNDS):
        won: list[int] = []

        async def race(i: int, size: int, won: list[int] = won, round_: int = round_) -> None:
            try:
                await stores[i].put_new(f"commits/{round_:016}", bytes([i]) * size)
            except Exists:
                return
            won.append(i)

        size = 700_000 if round_ % 5 == 0 else 2000
        async with trio.open_nursery() as nursery:
            for i in range(len(stores)):
                nursery.start_soon(race, i, size)
        assert len(won) == 1
        found = await one.get(f"commits/{round_:016}", 0, size + 1)
        assert found == bytes([won[0]]) * size
    assert await probe_create_if_absent(one)
