"""Who wins on Google Drive when several machines want one name: `make gdrive-races` races longer.

Each racer is a driver of its own: it knows nothing of the others but what the service says.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import trio

from megafs.errors import Exists, StoreError
from megafs.stores.gdrive import names as gdrive_names
from megafs.stores.gdrive import volume_folder
from megafs.stores.gdrive.driver import GDriveStore
from megafs.stores.probe import RACES, probe_create_if_absent
from megafs.stores.retry import Retrying
from tests.fakes.proxy import Reset
from tests.services.gdrive.server import DriveServer
from tests.stores.contract import names
from tests.stores.gdrive import Machines

ROUNDS = int(os.environ.get("GDRIVE_ROUNDS", "12"))
RACERS = 6


async def _race(
    stores: list[GDriveStore], name: str, wrap: Callable[[GDriveStore], GDriveStore | Retrying]
) -> list[int]:
    """Let all create *name*, and return who was told that it had."""
    won: list[int] = []

    async def create(i: int) -> None:
        try:
            await wrap(stores[i]).put_new(name, b"%d of %s" % (i, name.encode()))
        except Exists:
            return
        won.append(i)

    async with trio.open_nursery() as nursery:
        for i in range(len(stores)):
            nursery.start_soon(create, i)
    return won


@pytest.fixture
async def racers(machines: Machines) -> list[GDriveStore]:
    one = machines.open()
    await one.create()
    path = one.url.removeprefix("gdrive:/")
    return [one, *(machines.open(path, connections=4) for _ in range(RACERS - 1))]


@pytest.mark.parametrize("lag", [0.0, 3600.0], ids=["fresh", "lagging"])
@pytest.mark.parametrize("family", ["commits", "keys", "manifests", "probe"])
async def test_one_winner_whose_bytes_all_read(
    racers: list[GDriveStore], drive: DriveServer, family: str, lag: float
) -> None:
    for racer in racers:
        await names(racer)  # they know what there is; from now on searches and the feed lag
    drive.drive.list_lag = drive.drive.change_lag = lag
    for n in range(1, ROUNDS + 1):
        name = {
            "commits": gdrive_names.commit_name(n),
            "keys": f"keys/{n:08}",
            "manifests": f"checkpoints/{n:016}/manifest",
            "probe": f"probe/race/{n}",
        }[family]
        (winner,) = await _race(racers, name, lambda store: store)
        for racer in racers:
            assert await racer.get(name, 0, 99) == b"%d of %s" % (winner, name.encode())


async def test_lost_replies_make_neither_two_winners_nor_none(
    racers: list[GDriveStore], drive: DriveServer
) -> None:
    drive.front.weather(7, [(0.1, Reset(after_done=True)), (0.1, Reset())])
    wrapped = {id(store): Retrying(store) for store in racers}
    for n in range(1, ROUNDS + 1):
        name = gdrive_names.commit_name(n)
        (winner,) = await _race(racers, name, lambda store: wrapped[id(store)])
        found = await wrapped[id(racers[n % RACERS])].get(name, 0, 99)
        assert found == b"%d of %s" % (winner, name.encode())
    drive.front.heal()
    assert len(await names(racers[0])) == ROUNDS
    files = [f.name for f in drive.drive.files.values()]
    assert len(files) == len(set(files))  # nothing was made twice


async def test_where_an_id_is_given_twice_one_wins_all_the_same(
    racers: list[GDriveStore], drive: DriveServer
) -> None:
    drive.drive.doubles = True
    for n in range(1, ROUNDS + 1):
        for name in (gdrive_names.commit_name(n), f"keys/{n:08}"):
            (winner,) = await _race(racers, name, lambda store: store)
            for racer in racers:
                assert await racer.get(name, 0, 99) == b"%d of %s" % (winner, name.encode())
    assert drive.drive.ghosts  # it happened


async def test_the_probe_passes_and_finds_a_service_that_lies(
    machines: Machines, drive: DriveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machines.open()
    await store.create()
    assert await probe_create_if_absent(store, races=RACES[:6])

    async def deceived(*args: object) -> bool:
        await GDriveStore._create_contested(store, *args)  # type: ignore[arg-type]
        return True

    monkeypatch.setattr(store, "_create_contested", deceived)
    assert not await probe_create_if_absent(store, races=RACES[:6])


async def test_two_machines_that_make_the_folder_agree_on_one(
    machines: Machines, drive: DriveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_folder, "SETTLE", 0.3)
    drive.drive.list_lag = 0.1
    for n in range(4):
        pair = [machines.open(f"homes/h{n}") for _ in range(2)]
        async with trio.open_nursery() as nursery:
            for store in pair:
                nursery.start_soon(store.create)
        (winner,) = await _race(pair, gdrive_names.commit_name(1), lambda store: store)
        late = machines.open(f"homes/h{n}")
        assert await late.get(gdrive_names.commit_name(1), 0, 1) == b"%d" % winner


async def test_two_folders_that_both_hold_a_volume_are_not_chosen_between(
    machines: Machines, drive: DriveServer
) -> None:
    """A search that lagged by more than a new folder waits."""
    one, other = machines.open("twice"), machines.open("twice")
    await one.create()
    await one.put_new(gdrive_names.commit_name(1), b"one")
    (folder,) = [f for f in drive.drive.files.values() if f.name == "twice"]
    folder.name = "hidden"
    await other.create()
    folder.name = "twice"
    late = machines.open("twice")
    assert await late.get(gdrive_names.commit_name(1), 0, 9) == b"one"  # the other is empty
    await other.put_new(gdrive_names.commit_name(1), b"other")
    with pytest.raises(StoreError, match="2 folders twice that hold a volume; rename"):
        await machines.open("twice").list("")
    assert await one.get(gdrive_names.commit_name(1), 0, 9) == b"one"
    assert await other.get(gdrive_names.commit_name(1), 0, 9) == b"other"
