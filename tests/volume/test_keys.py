"""Who can open a volume changes whole or not at all, whatever other machines and the store do."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from megafs import clock
from megafs.config import Parameters
from megafs.crypto import kdf
from megafs.errors import (
    AlreadyThere,
    BadPassphrase,
    BadUsage,
    Busy,
    Corrupt,
    Denied,
    NotAVolume,
    Rollback,
    TooNew,
    Unavailable,
)
from megafs.stores.base import Buffer
from megafs.stores.memory import MemoryStore
from megafs.volume import header as headers
from megafs.volume import header_store
from megafs.volume.header import Credential, Unlocked

FLOOR = kdf.Cost(time=1, memory=64 << 10, lanes=4)

# A key file alone needs no Argon2id; a passphrase is used where it matters.
ALICE = Credential(keyfile=b"alice" + bytes(range(60)))
BOB = Credential(keyfile=b"bob" + bytes(range(60)))
CAROL = Credential(keyfile=b"carol" + bytes(range(60)))


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kdf.PROFILES, "default", FLOOR)


async def volume(store: MemoryStore, credential: Credential = ALICE) -> header_store.Changed:
    return await header_store.create(
        store,
        credential,
        parameters=Parameters(),
        create_if_absent=True,
        label="first",
        deliver=taken,
    )


def taken(fsid: bytes, recovery: str) -> None:
    """Somebody has the recovery key: the test, from what the change returns."""


async def opened(store: MemoryStore, credential: Credential = ALICE) -> Unlocked:
    return await header_store.unlock(store, credential)


def names(store: MemoryStore) -> list[str]:
    return sorted(store.objects)


# A new volume


async def test_a_new_volume_opens_with_its_passphrase_and_with_its_recovery_key() -> None:
    store = MemoryStore()
    made = await volume(store, Credential(passphrase="correct horse"))

    assert names(store) == ["keys/00000001"]
    assert made.recovery is not None
    by_passphrase = await opened(store, Credential(passphrase="correct horse"))
    by_recovery = await opened(store, Credential(recovery=made.recovery))
    assert by_passphrase.keyring.master(0) == by_recovery.keyring.master(0)
    assert by_passphrase.keyring.master(0) == made.unlocked.keyring.master(0)
    assert by_passphrase.remembered() == made.unlocked.remembered()
    with pytest.raises(BadPassphrase):
        await opened(store, Credential(passphrase="correct house"))


async def test_two_volumes_share_nothing() -> None:
    one, other = await volume(MemoryStore()), await volume(MemoryStore())

    assert one.unlocked.header.fsid != other.unlocked.header.fsid
    assert one.unlocked.keyring.master(0) != other.unlocked.keyring.master(0)
    assert one.recovery != other.recovery


async def test_a_volume_is_never_made_over_another() -> None:
    store = MemoryStore()
    await volume(store)
    await header_store.add_passphrase(store, await opened(store), BOB)
    before = dict(store.objects)

    with pytest.raises(AlreadyThere):
        await volume(store, BOB)
    assert store.objects == before


async def test_of_two_that_make_a_volume_at_once_one_wins() -> None:
    store = MemoryStore()
    results: list[header_store.Changed | None] = []

    async def make(credential: Credential) -> None:
        try:
            results.append(await volume(store, credential))
        except AlreadyThere:
            results.append(None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(make, ALICE)
        nursery.start_soon(make, BOB)

    assert len([r for r in results if r]) == 1
    assert names(store) == ["keys/00000001"]


async def test_the_header_holds_no_secret() -> None:
    store = MemoryStore()
    made = await volume(store, Credential(passphrase="correct horse"))
    data = store.objects["keys/00000001"]

    master = made.unlocked.keyring.master(0)
    for secret in (
        b"correct",
        b"horse",
        master,
        master.hex().encode(),
        str(made.recovery).encode(),
    ):
        assert secret not in data
    assert str(made.recovery) not in repr(made)
    assert master.hex() not in repr(made)


async def test_randomness_and_time_come_from_the_clock() -> None:
    taken = []

    def random_bytes(n: int) -> bytes:
        taken.append(n)
        return bytes([len(taken)]) * n

    with clock.replaced(now_ns=lambda: 42, random_bytes=random_bytes):
        made = await volume(MemoryStore())

    assert taken == [16, 32, 32, 24, 24]
    assert made.unlocked.header.fsid == b"\1" * 16
    assert made.unlocked.keyring.master(0) == b"\2" * 32
    assert made.unlocked.header.created_ns == 42


# What is not a volume


async def test_an_empty_store_is_told_with_what_to_do() -> None:
    with pytest.raises(NotAVolume, match="megafs format"):
        await header_store.load(MemoryStore())


async def test_a_store_with_other_things_is_told_with_their_names() -> None:
    store = MemoryStore()
    await store.put_new("photos/2024", b"x")

    with pytest.raises(NotAVolume, match=r"photos/2024.*right place"):
        await header_store.load(store)


async def test_a_volume_without_its_header_is_told_from_no_volume() -> None:
    store = MemoryStore()
    await store.put_new("commits/0000000000000001", b"x")

    with pytest.raises(Corrupt, match="key header"):
        await header_store.load(store)


async def test_a_newer_format_is_told() -> None:
    store = MemoryStore()
    await volume(store)
    document = json.loads(store.objects["keys/00000001"])
    document["format"] = 2
    store.objects["keys/00000001"] = json.dumps(document).encode()

    with pytest.raises(TooNew):
        await header_store.load(store)


async def test_other_names_below_keys_are_not_generations() -> None:
    store = MemoryStore()
    await volume(store)
    for name in ("keys/0000000x", "keys/2", "keys/00000002/x", "keys/00000000", "keysx"):
        await store.put_new(name, b"x")

    assert (await header_store.load(store)).generation == 1


async def test_a_damaged_newest_header_is_not_replaced_by_an_older_one() -> None:
    store = MemoryStore()
    await volume(store)
    await store.put_new("keys/00000002", store.objects["keys/00000001"][:-1])

    with pytest.raises(Corrupt, match="keys/00000002"):
        await opened(store)


async def test_an_endless_header_is_read_no_further_than_the_limit() -> None:
    asked = []

    class Endless(MemoryStore):
        async def get(self, name: str, start: int, length: int) -> bytes:
            asked.append(length)
            return b"{" * length

    store = Endless()
    await store.put_new("keys/00000001", b"x")

    with pytest.raises(Corrupt, match="larger"):
        await header_store.load(store)
    assert asked == [headers.SIZE_LIMIT + 1]


async def test_a_listing_without_end_is_given_up() -> None:
    class Endless(MemoryStore):
        async def list(self, prefix: str, after: str = "", limit: int = 1000):  # type: ignore[no-untyped-def]
            page = await super().list(prefix, "", limit)
            return type(page)(page.entries, more=True)

    store = Endless()
    await store.put_new("keys/00000001", b"x")

    with pytest.raises(Corrupt, match="far more"):
        await header_store.load(store)


async def test_a_header_replaced_between_list_and_get_is_looked_for_again() -> None:
    store = Meddling()
    made = await volume(store)

    async def replaced() -> None:
        await header_store.add_passphrase(store, made.unlocked, BOB)

    store.before["get"] = [replaced]

    assert (await header_store.load(store)).generation == 2


# Changes


class Meddling(MemoryStore):
    """Runs what a test says just before (or after) the next call of an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, list[Callable[[], Awaitable[None]]]] = {}
        self.after: dict[str, list[Callable[[], Awaitable[None]]]] = {}

    async def _meddle(self, when: dict[str, list[Callable[[], Awaitable[None]]]], op: str) -> None:
        if when.get(op):
            await when[op].pop(0)()

    async def get(self, name: str, start: int, length: int) -> bytes:
        await self._meddle(self.before, "get")
        return await super().get(name, start, length)

    async def put_new(self, name: str, data: Buffer) -> None:
        await self._meddle(self.before, "put_new")
        await super().put_new(name, data)
        await self._meddle(self.after, "put_new")

    async def delete(self, name: str) -> None:
        await self._meddle(self.before, "delete")
        await super().delete(name)


async def test_an_added_passphrase_opens_and_the_old_header_is_removed() -> None:
    store = MemoryStore()
    await volume(store)

    change = await header_store.add_passphrase(store, await opened(store), BOB, label="laptop")

    assert names(store) == ["keys/00000002"]
    assert (await opened(store, BOB)).slot_id == change.slot_id
    assert (await opened(store, ALICE)).header == change.unlocked.header
    assert [s.label for s in header_store.list_slots(change.unlocked.header)] == [
        "first",
        "",
        "laptop",
    ]


async def test_a_removed_slot_opens_nothing_and_the_text_says_what_that_does_not_mean() -> None:
    store = MemoryStore()
    await volume(store)
    added = await header_store.add_passphrase(store, await opened(store), BOB)
    assert added.slot_id is not None

    change = await header_store.remove_slot(store, await opened(store), added.slot_id)

    with pytest.raises(BadPassphrase):
        await opened(store, BOB)
    assert "does not lock out anyone who had the old way in" in change.text
    assert "master key" in change.text


async def test_the_slot_that_opened_can_be_removed_by_its_owner() -> None:
    store = MemoryStore()
    made = await volume(store)
    unlocked = await opened(store)

    await header_store.remove_slot(store, unlocked, unlocked.slot_id)

    with pytest.raises(BadPassphrase):
        await opened(store)
    assert await opened(store, Credential(recovery=made.recovery))
    with pytest.raises(BadUsage, match="no key slot"):
        await header_store.remove_slot(
            store, await opened(store, Credential(recovery=made.recovery)), b"x"
        )


async def test_the_last_slot_stays() -> None:
    store = MemoryStore()
    made = await volume(store)
    first = await opened(store)
    after = await header_store.remove_slot(store, first, first.slot_id)
    before = dict(store.objects)

    with pytest.raises(BadUsage, match="last key slot"):
        await header_store.remove_slot(store, after.unlocked, after.unlocked.header.slots[0].id)
    assert store.objects == before
    assert made.recovery


async def test_a_changed_passphrase_replaces_the_one_that_opened() -> None:
    store = MemoryStore()
    await volume(store, Credential(passphrase="old"))

    change = await header_store.change_passphrase(
        store, await opened(store, Credential(passphrase="old")), Credential(passphrase="new")
    )

    with pytest.raises(BadPassphrase):
        await opened(store, Credential(passphrase="old"))
    assert (await opened(store, Credential(passphrase="new"))).slot_id == change.slot_id
    assert change.unlocked.slot_id == change.slot_id
    assert [s.label for s in change.unlocked.header.slots] == ["first", ""]
    assert "does not lock out" in change.text


async def test_the_recovery_slot_is_not_changed_into_a_passphrase_by_mistake() -> None:
    store = MemoryStore()
    made = await volume(store)
    unlocked = await opened(store, Credential(recovery=made.recovery))

    with pytest.raises(BadUsage, match="megafs key recover"):
        await header_store.change_passphrase(store, unlocked, BOB)


async def test_a_forgotten_passphrase_is_got_over_with_the_recovery_key() -> None:
    store = MemoryStore()
    made = await volume(store, Credential(passphrase="forgotten"))
    assert made.recovery is not None

    change = await header_store.recover(store, made.recovery.lower(), BOB)

    assert (await opened(store, BOB)).slot_id == change.slot_id == change.unlocked.slot_id
    assert await opened(store, Credential(recovery=made.recovery))
    with pytest.raises(BadPassphrase, match="mistyped"):
        await header_store.recover(
            store, made.recovery[:-1] + ("1" if made.recovery.endswith("0") else "0"), CAROL
        )


async def test_a_new_recovery_key_takes_the_place_of_every_old_one() -> None:
    store = MemoryStore()
    made = await volume(store)

    change = await header_store.new_recovery_key(store, await opened(store), taken)

    assert change.recovery is not None
    assert change.recovery != made.recovery
    assert await opened(store, Credential(recovery=change.recovery))
    with pytest.raises(BadPassphrase, match="was replaced"):
        await opened(store, Credential(recovery=made.recovery))
    assert len(change.unlocked.header.slots) == 2
    assert change.unlocked.slot_id == change.unlocked.header.slots[0].id
    assert "does not lock out" in change.text
    assert change.recovery not in change.text


async def test_there_is_no_slot_for_a_recovery_key_that_nobody_took() -> None:
    def lost(fsid: bytes, recovery: str) -> None:
        raise BadUsage("the terminal is gone")

    store = MemoryStore()
    made = await header_store.create(store, ALICE, parameters=Parameters(), create_if_absent=True)
    assert [slot.kind for slot in made.unlocked.header.slots] == [ALICE.kind]
    assert made.recovery is None
    before = dict(store.objects)
    with pytest.raises(BadUsage, match="terminal"):
        await header_store.new_recovery_key(store, await opened(store), lost)
    with pytest.raises(BadUsage, match="terminal"):
        await header_store.rotate(store, await opened(store), ALICE, lost)
    assert dict(store.objects) == before
    other = MemoryStore()
    with pytest.raises(BadUsage, match="terminal"):
        await header_store.create(
            other, ALICE, parameters=Parameters(), create_if_absent=True, deliver=lost
        )
    assert not other.objects


async def test_two_do_not_each_remove_the_slot_that_the_other_keeps() -> None:
    store = MemoryStore()
    await volume(store)
    await header_store.add_passphrase(store, await opened(store), BOB)
    alice, bob = await opened(store), await opened(store, BOB)
    await header_store.remove_slot(store, bob, alice.slot_id, keeping=bob.slot_id)
    with pytest.raises(Busy, match="nothing was removed"):
        await header_store.remove_slot(store, alice, bob.slot_id, keeping=alice.slot_id)
    assert await opened(store, BOB)


async def test_a_recovery_key_can_be_made_where_there_was_none() -> None:
    store = MemoryStore()
    made = await volume(store)
    recovery_slot = made.unlocked.header.slots[1].id
    without = await header_store.remove_slot(store, await opened(store), recovery_slot)

    change = await header_store.new_recovery_key(store, without.unlocked, taken)

    assert await opened(store, Credential(recovery=change.recovery))
    assert "does not lock out" not in change.text


async def test_slots_are_found_by_id_by_its_start_and_by_label() -> None:
    store = MemoryStore()
    await volume(store)
    change = await header_store.add_passphrase(store, await opened(store), BOB, label="laptop")
    header = change.unlocked.header
    added = header.slots[-1].id

    assert header_store.find_slot(header, "laptop") == added
    assert header_store.find_slot(header, added.hex()) == added
    assert header_store.find_slot(header, added.hex()[:10].upper()) == added
    for bad in ("", "nosuch", "zz"):
        with pytest.raises(BadUsage, match="no key slot"):
            header_store.find_slot(header, bad)


# Other machines


async def test_changes_of_two_machines_at_once_are_both_kept() -> None:
    store = MemoryStore()
    await volume(store)
    here, there = await opened(store), await opened(store)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(header_store.add_passphrase, store, here, BOB)
        nursery.start_soon(header_store.add_passphrase, store, there, CAROL)

    assert names(store) == ["keys/00000003"]
    for credential in (ALICE, BOB, CAROL):
        assert (await opened(store, credential)).header.generation == 3


@pytest.mark.parametrize("others", [1, 2, 3, 5])
async def test_a_stale_view_never_undoes_what_others_did_since(others: int) -> None:
    # Their generations came and went: the next number after ours is free again.
    store = MemoryStore()
    await volume(store)
    stale = await opened(store)
    for n in range(others):
        await header_store.add_passphrase(store, await opened(store), BOB if n == 0 else CAROL)

    change = await header_store.change_passphrase(
        store, stale, Credential(keyfile=bytes(range(99)))
    )

    assert names(store) == [f"keys/{others + 2:08d}"]
    assert change.unlocked.header.generation == others + 2
    assert await opened(store, BOB)
    assert await opened(store, Credential(keyfile=bytes(range(99))))
    with pytest.raises(BadPassphrase):
        await opened(store, ALICE)


async def test_a_successor_written_on_top_of_ours_is_no_loss() -> None:
    store = Meddling()
    await volume(store)
    mine = await opened(store)

    async def another_adds() -> None:
        await header_store.add_passphrase(store, await opened(store), CAROL)

    store.after["put_new"] = [another_adds]
    change = await header_store.add_passphrase(store, mine, BOB)

    assert change.unlocked.header.generation == 3
    assert len(change.unlocked.header.slots) == 4
    for credential in (ALICE, BOB, CAROL):
        assert await opened(store, credential)


async def test_a_lost_reply_is_not_a_second_change() -> None:
    class LostReply(MemoryStore):
        async def put_new(self, name: str, data: Buffer) -> None:
            if name in self.objects:
                return await super().put_new(name, data)
            await super().put_new(name, data)
            if name == "keys/00000002":
                await super().put_new(name, data)  # says Exists to what it has just stored
            return None

    store = LostReply()
    await volume(store)

    change = await header_store.add_passphrase(store, await opened(store), BOB)

    assert names(store) == ["keys/00000002"]
    assert change.unlocked.header.generation == 2


@given(st.lists(st.sampled_from(["add", "remove", "change", "recovery"]), min_size=2, max_size=5))
@settings(max_examples=25, deadline=None)
def test_any_changes_at_once_leave_one_whole_header_that_opens(operations: list[str]) -> None:
    async def scene() -> None:
        store = MemoryStore()
        await volume(store)
        bob = await header_store.add_passphrase(store, await opened(store), BOB)
        assert bob.slot_id is not None
        refused = []

        async def run(n: int, operation: str, unlocked: Unlocked) -> None:
            mine = Credential(keyfile=bytes([n]) + bytes(range(60)))
            try:
                if operation == "add":
                    await header_store.add_passphrase(store, unlocked, mine)
                elif operation == "remove":
                    await header_store.remove_slot(store, unlocked, bob.slot_id or b"")
                elif operation == "change":
                    await header_store.change_passphrase(store, unlocked, mine, slot_id=bob.slot_id)
                else:
                    await header_store.new_recovery_key(store, unlocked, taken)
            except BadUsage:
                refused.append(operation)  # somebody else took Bob's slot away first

        unlocked = await opened(store)
        async with trio.open_nursery() as nursery:
            for n, operation in enumerate(operations):
                nursery.start_soon(run, n, operation, unlocked)

        assert set(refused) <= {"change"}
        assert len(names(store)) == 1
        after = await opened(store)
        kinds = [slot.kind for slot in after.header.slots]
        assert kinds.count(headers.RECOVERY) == 1
        for n, operation in enumerate(operations):
            if operation == "add":
                assert await opened(store, Credential(keyfile=bytes([n]) + bytes(range(60))))
        if "remove" in operations or "change" in operations:
            with pytest.raises(BadPassphrase):
                await opened(store, BOB)

    trio.run(scene)


async def test_a_header_forged_by_the_store_during_a_change_is_refused() -> None:
    store = Meddling()
    await volume(store)
    mine = await opened(store)
    forged = json.loads(store.objects["keys/00000001"])
    forged["generation"] = 2
    forged["slots"].pop()

    async def forge() -> None:
        data = json.dumps(forged, sort_keys=True, separators=(",", ":")).encode()
        await store.put("keys/00000002", data)

    store.before["put_new"] = [forge]
    with pytest.raises(Corrupt, match="authentication code"):
        await header_store.add_passphrase(store, mine, BOB)


async def test_a_store_that_says_taken_and_shows_nothing_is_not_believed() -> None:
    from megafs.errors import Exists

    class Taken(MemoryStore):
        async def put_new(self, name: str, data: Buffer) -> None:
            if self.objects:
                raise Exists(name)
            await super().put_new(name, data)

    store = Taken()
    await volume(store)

    with pytest.raises(Rollback, match=r"keys/00000002 is there, but shows only keys/00000001"):
        await header_store.add_passphrase(store, await opened(store), BOB)


async def test_the_old_header_goes_only_when_the_new_one_was_read_back() -> None:
    class Forgetful(MemoryStore):
        async def put_new(self, name: str, data: Buffer) -> None:
            if name != "keys/00000002":
                await super().put_new(name, data)

    store = Forgetful()
    await volume(store)

    with pytest.raises(Exception, match="no object"):
        await header_store.add_passphrase(store, await opened(store), BOB)
    assert names(store) == ["keys/00000001"]
    assert await opened(store)


async def test_a_store_that_lets_nothing_be_deleted_is_said_so() -> None:
    class AppendOnly(MemoryStore):
        async def delete(self, name: str) -> None:
            raise Denied("no deletes here")

    store = AppendOnly()
    await volume(store)

    change = await header_store.change_passphrase(store, await opened(store), BOB)

    assert names(store) == ["keys/00000001", "keys/00000002"]
    assert "keys/00000001 could not be removed" in change.text
    assert (await opened(store, BOB)).header.generation == 2


@pytest.mark.parametrize("op", ["get", "put_new", "list", "delete"])
async def test_an_outage_at_any_step_leaves_a_volume_that_opens(op: str) -> None:
    for calls in range(6):

        class Down(MemoryStore):
            left = 10**9

            async def _maybe(self, name: str) -> None:
                if name == op:
                    self.left -= 1
                    if self.left < 0:
                        raise Unavailable("down")

            async def get(self, name: str, start: int, length: int) -> bytes:
                await self._maybe("get")
                return await super().get(name, start, length)

            async def put_new(self, name: str, data: Buffer) -> None:
                await self._maybe("put_new")
                await super().put_new(name, data)

            async def list(self, prefix: str, after: str = "", limit: int = 1000):  # type: ignore[no-untyped-def]
                await self._maybe("list")
                return await super().list(prefix, after, limit)

            async def delete(self, name: str) -> None:
                await self._maybe("delete")
                await super().delete(name)

        store = Down()
        await volume(store)
        unlocked = await opened(store)
        store.left = calls
        changed = True
        try:
            await header_store.change_passphrase(store, unlocked, BOB)
        except Unavailable:
            changed = False
        store.left = 10**9

        newest = await header_store.load(store)
        if changed or newest.generation == 2:
            assert await opened(store, BOB)
        else:
            assert await opened(store, ALICE)


# Freshness


async def test_an_older_header_served_again_is_refused_on_a_machine_that_saw_the_newer() -> None:
    store = MemoryStore()
    await volume(store)
    old = dict(store.objects)
    change = await header_store.change_passphrase(store, await opened(store), BOB)

    rolled_back = MemoryStore()
    for name, data in old.items():
        await rolled_back.put_new(name, data)

    with pytest.raises(Rollback):
        await header_store.unlock(rolled_back, ALICE, change.unlocked.remembered())


async def test_unlock_runs_in_a_thread_and_can_be_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import threading

    release, where = threading.Event(), []

    def slow(*_: object) -> bytes:
        where.append(threading.current_thread())
        release.wait(5)
        return bytes(32)

    store = MemoryStore()
    await volume(store, Credential(passphrase="x"))
    monkeypatch.setattr(kdf, "from_passphrase", slow)
    try:
        with trio.move_on_after(0.1) as scope:
            await header_store.unlock(store, Credential(passphrase="x"))
    finally:
        release.set()

    assert scope.cancelled_caught
    assert where
    assert where[0] is not threading.main_thread()
