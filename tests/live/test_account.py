"""The contract of stores, the races, and two mounts, in a real account."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from megafs.stores.abilities import SpaceLeft, Watch
from megafs.stores.base import ObjectStore
from megafs.stores.probe import probe_create_if_absent
from megafs.stores.stack import unlimited
from tests.live.conftest import OPTIONS, empty, fresh_url
from tests.mount.conftest import mounts_below
from tests.mount.machine import Machine, eventually
from tests.stores.contract import StoreContract

pytestmark = pytest.mark.timeout(3600)

CREATES = int(os.environ.get("MEGAFS_LIVE_CREATES", "50"))


class TestInTheAccount(StoreContract):
    """`store` is that of conftest.py."""


async def test_one_winner_for_a_name(store: ObjectStore) -> None:
    assert await probe_create_if_absent(unlimited(store))


async def test_what_the_store_says_it_can_do(store: ObjectStore) -> None:
    room = SpaceLeft.of(store)
    if room is not None:
        left = await room.space_left()
        print(f"left in the account: {left}")
        assert left is None or left >= 0
    watch = Watch.of(store)
    if watch is None:
        return
    took: list[float] = []

    async def wait() -> None:
        begun = trio.current_time()
        await watch.wait_for_change("commits/")
        took.append(trio.current_time() - begun)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(5)
        await store.put_new("commits/0000000000000001", b"news")
        with trio.fail_after(60):
            while not took:
                await trio.sleep(0.1)
    print(f"the news took {took[0] - 5:.1f} s")


@pytest.fixture
def machines(tmp_path: Path, logins: Path) -> Iterator[list[Machine]]:
    """Two machines of the user who runs the tests: with the same logins."""
    made = [Machine(tmp_path, name, url="nowhere:") for name in ("a", "b")]
    for machine in made:
        state = machine.place / "state"
        state.mkdir(mode=0o700)
        if logins.is_dir():
            (state / "logins").symlink_to(logins)
        machine.environ.update({k: v for k, v in os.environ.items() if k.startswith("AWS_")})
    yield made
    for machine in made:
        machine.kill()
    assert mounts_below(tmp_path) == []


@pytest.mark.fuse
def test_two_machines_lose_and_double_nothing(machines: list[Machine]) -> None:
    url = fresh_url()
    options = ("-o", OPTIONS) if OPTIONS else ()
    try:
        for machine in machines:
            machine.url = url
        machines[0].format(*options)
        for machine in machines:
            machine.mount(*options)
        data = os.urandom(9 << 20)
        (machines[0].mnt / "large").write_bytes(data)

        def create(machine: Machine) -> None:
            for n in range(CREATES):
                path = machine.mnt / f"{machine.place.name}{n}"
                fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                os.write(fd, path.name.encode())
                os.close(fd)

        begun = time.monotonic()
        writers = [threading.Thread(target=create, args=(machine,)) for machine in machines]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        names = {f"{name}{n}" for name in "ab" for n in range(CREATES)} | {"large"}
        for machine in machines:
            eventually(lambda m=machine: names <= set(os.listdir(m.mnt)), within=1800)
            assert set(os.listdir(machine.mnt)) == names
            for name in names - {"large"}:
                assert (machine.mnt / name).read_text() == name
            assert (machine.mnt / "large").read_bytes() == data
        print(f"2 x {CREATES} creates on both after {time.monotonic() - begun:.0f} s")
        for machine in machines:
            machine.umount()
    finally:
        trio.run(empty, url)
