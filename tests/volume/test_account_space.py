"""`df` shows what the account has left, if that is less than the quota leaves; it never waits."""

from __future__ import annotations

from pathlib import Path

import trio
from trio.testing import MockClock

from megafs.errors import StoreError, Unavailable
from megafs.stores.abilities import SpaceLeft
from megafs.stores.memory import MemoryStore
from megafs.stores.retry import Retrying
from megafs.volume.account_space import IDLE, LATER, SOON
from tests.fakes.machine import Machine, make_volume, write_file

MIB = 1 << 20


class Account(MemoryStore, SpaceLeft):
    """An account of so many bytes.  delay: seconds for the answer about its room."""

    def __init__(self, size: int | None) -> None:
        super().__init__("account")
        self.size = size
        self.delay = 0.0
        self.error: StoreError | None = None
        self.asked = 0

    async def space_left(self) -> int | None:
        self.asked += 1
        await trio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        if self.size is None:
            return None
        return self.size - sum(map(len, self.objects.values()))


async def test_the_smaller_of_quota_and_account_is_shown(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    account = Account(40 * MIB)
    await make_volume(account, quota=100 * MIB)
    async with Machine(tmp_path).open(Retrying(account)) as volume:
        await trio.sleep(10)
        room = volume.fs.statfs()
        assert 38 * MIB < room.bfree * room.bsize <= 40 * MIB
        assert room.blocks * room.bsize < 41 * MIB
        known = volume.status()["account_left"]
        left = account.size - sum(map(len, account.objects.values()))  # type: ignore[operator]
        assert abs(known - left) < 4096  # a heartbeat may lie between the two
        account.size = 400 * MIB
        await trio.sleep(2 * IDLE)
        room = volume.fs.statfs()
        assert room.blocks * room.bsize == 100 * MIB
        account.size = None
        await trio.sleep(2 * IDLE)
        assert volume.fs.statfs() == room
        assert volume.status()["account_left"] is None


async def test_what_is_written_counts_before_the_account_says_so(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    account = Account(40 * MIB)
    await make_volume(account, quota=100 * MIB, compression="none")
    async with Machine(tmp_path).open(Retrying(account)) as volume:
        await trio.sleep(10)
        asked = account.asked
        before = volume.fs.statfs()
        data = bytes(range(256)) * (4 * MIB // 256)
        await write_file(volume.fs, "f", data, sync=True)
        now = volume.fs.statfs()
        assert account.asked == asked
        gone = (before.bfree - now.bfree) * now.bsize
        assert 4 * MIB <= gone <= 5 * MIB
        await trio.sleep(SOON + 10)
        assert account.asked == asked + 1  # for 5 % of it was written
        after = volume.fs.statfs()
        assert abs(after.bfree - now.bfree) * now.bsize < MIB


async def test_statfs_never_waits_and_a_failure_keeps_the_last_answer(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    account = Account(40 * MIB)
    account.delay = 1e6
    await make_volume(account, quota=100 * MIB)
    async with Machine(tmp_path).open(Retrying(account)) as volume:
        await trio.sleep(300)
        assert account.asked == 1
        assert volume.fs.statfs().blocks * 4096 == 100 * MIB
        account.delay = 0.0
        await trio.sleep(2 * IDLE)
        room = volume.fs.statfs()
        assert room.blocks * room.bsize < 41 * MIB
        account.error = Unavailable("away")
        await trio.sleep(2 * IDLE)
        now = volume.fs.statfs()
        assert 0 <= room.bfree - now.bfree < 100  # what heartbeats took


async def test_an_idle_mount_asks_twice_an_hour(autojump_clock: MockClock, tmp_path: Path) -> None:
    account = Account(40 * MIB)
    await make_volume(account)
    # Without the retries nothing is known of what was sent: heartbeats would count.
    async with Machine(tmp_path).open(account) as volume:
        await trio.sleep(60)
        before = account.asked
        await trio.sleep(4 * 3600)
        assert account.asked - before <= 9
        assert volume.account is not None and LATER < IDLE
