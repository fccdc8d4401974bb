"""A volume whose objects are gone is not taken for a place where one can be made."""

from __future__ import annotations

from pathlib import Path

import pytest
from trio.testing import MockClock

from megafs.errors import NoStore, NotAVolume, Rollback, Unavailable
from megafs.stores.memory import MemoryStore
from megafs.stores.stack import open_store
from tests.fakes.machine import Machine, make_volume, snapshot, write_file


async def test_a_machine_that_knew_the_volume_advises_no_format(tmp_path: Path) -> None:
    store = MemoryStore()
    await make_volume(store)
    machine = Machine(tmp_path / "one")
    async with machine.open(store):
        pass
    for name in list(store.objects):
        await store.delete(name)

    with pytest.raises(Rollback, match=r"its objects are gone.*right bucket") as caught:
        async with machine.open(store):
            pass

    assert "megafs format" not in str(caught.value)


async def test_also_where_others_things_lie(tmp_path: Path) -> None:
    store = MemoryStore()
    await make_volume(store)
    machine = Machine(tmp_path / "one")
    async with machine.open(store):
        pass
    for name in list(store.objects):
        await store.delete(name)
    await store.put("photos/1", b"")
    with pytest.raises(Rollback, match="Make no new volume there"):
        async with machine.open(store):
            pass


async def test_a_new_machine_asks_whether_the_address_is_right(tmp_path: Path) -> None:
    with pytest.raises(NotAVolume, match=r"right bucket.*megafs format makes a new volume"):
        async with Machine(tmp_path / "new").open(MemoryStore()):
            pass


async def test_a_disk_that_is_not_mounted_is_no_place_for_a_new_volume(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Neither to a mount whose store goes away, nor to the next one; to a new machine it may be."""
    place = tmp_path / "disk"
    await make_volume(open_store(f"file://{place}", {}))
    url = f"file://{place}"
    machine = Machine(tmp_path / "one", settings={"deadline": 2})
    async with machine.open(None, url=url) as volume:
        await write_file(volume.fs, "a", b"there", sync=True)
        place.rename(tmp_path / "away")
        with pytest.raises(Unavailable, match="is its disk mounted") as failure:
            await write_file(volume.fs, "b", b"staged", sync=True)
        assert "megafs format" not in str(failure.value)
        assert "megafs format" not in str(volume.status())
    with pytest.raises(NoStore, match=r"is its disk mounted.*Make no new volume there") as refusal:
        async with machine.open(None, url=url):
            pass
    assert "megafs format" not in str(refusal.value)
    with pytest.raises(NoStore, match=r"is its disk mounted.*megafs format makes a new volume"):
        async with Machine(tmp_path / "new").open(None, url=url):
            pass
    (tmp_path / "away").rename(place)
    async with machine.open(None, url=url) as volume:
        await volume.drain()
        assert (await snapshot(volume.fs))["b"] == ("file", b"staged")
