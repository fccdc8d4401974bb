"""A volume whose objects are gone is not taken for a place where one can be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from megafs.errors import NotAVolume, Rollback
from megafs.stores.memory import MemoryStore
from tests.fakes.machine import Machine, make_volume


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
