"""What every store promises, as one suite for drivers and wrappers alike.

    class TestMyStore(StoreContract):
        @pytest.fixture
        async def store(self):
            yield MyStore(...)

The fixture gives an empty store, made by `create()` if it needs making.  Names follow the rule of
the format: none is the beginning of another up to a slash.
"""

from __future__ import annotations

import pytest
import trio

from megafs.errors import BadUsage, Exists, Missing
from megafs.stores.base import ObjectStore, list_all
from megafs.stores.probe import RACES, probe_create_if_absent

BIG = 10**12


async def names(store: ObjectStore, prefix: str = "", after: str = "") -> list[str]:
    return [entry.name async for page in list_all(store, prefix, after) for entry in page.entries]


class StoreContract:
    """Subclass it and give it a `store` fixture."""

    async def test_what_is_put_is_got(self, store: ObjectStore) -> None:
        await store.put_new("packs/ab/one", b"hello, store")

        assert await store.get("packs/ab/one", 0, 100) == b"hello, store"

    async def test_a_range_is_what_was_asked_for(self, store: ObjectStore) -> None:
        await store.put_new("packs/ab/one", bytes(range(256)) * 40)

        assert await store.get("packs/ab/one", 0, 1) == b"\0"
        assert await store.get("packs/ab/one", 255, 3) == b"\xff\0\1"
        assert await store.get("packs/ab/one", 10239, 1) == b"\xff"

    async def test_a_range_ends_where_the_object_does(self, store: ObjectStore) -> None:
        await store.put_new("packs/ab/one", b"0123456789")

        assert await store.get("packs/ab/one", 7, 10) == b"789"
        assert await store.get("packs/ab/one", 0, BIG) == b"0123456789"
        assert await store.get("packs/ab/one", 10, 5) == b""
        assert await store.get("packs/ab/one", 11, 5) == b""
        assert await store.get("packs/ab/one", BIG, 5) == b""

    async def test_an_empty_range_is_empty_but_wants_the_object(self, store: ObjectStore) -> None:
        await store.put_new("packs/ab/one", b"0123456789")

        assert await store.get("packs/ab/one", 3, 0) == b""
        with pytest.raises(Missing):
            await store.get("packs/ab/two", 3, 0)

    async def test_an_object_may_be_empty(self, store: ObjectStore) -> None:
        await store.put_new("mounts/empty", b"")

        assert await store.get("mounts/empty", 0, 10) == b""
        with pytest.raises(Exists):
            await store.put_new("mounts/empty", b"x")

    async def test_any_buffer_can_be_put(self, store: ObjectStore) -> None:
        await store.put_new("packs/ab/array", bytearray(b"array"))
        await store.put_new("packs/ab/view", memoryview(b"a view")[2:])

        assert await store.get("packs/ab/array", 0, 10) == b"array"
        assert await store.get("packs/ab/view", 0, 10) == b"view"

    async def test_the_callers_buffer_is_copied(self, store: ObjectStore) -> None:
        buffer = bytearray(b"first")
        await store.put_new("packs/ab/one", buffer)
        buffer[:] = b"other"

        assert await store.get("packs/ab/one", 0, 10) == b"first"

    async def test_a_large_object(self, store: ObjectStore) -> None:
        data = bytes(range(251)) * 20_000  # 5 MB, and no power of two repeats in it
        await store.put_new("packs/ab/large", data)

        assert await store.get("packs/ab/large", 0, len(data) + 1) == data
        assert await store.get("packs/ab/large", 3_000_000, 100_000) == data[3_000_000:3_100_000]

    async def test_a_missing_object_is_missing(self, store: ObjectStore) -> None:
        with pytest.raises(Missing):
            await store.get("packs/ab/none", 0, 10)
        with pytest.raises(Missing):
            await store.get("nothing/like/it", 0, 10)

    async def test_a_directory_of_objects_is_no_object(self, store: ObjectStore) -> None:
        await store.put_new("packs/ab/one", b"1")

        with pytest.raises(Missing):
            await store.get("packs/ab", 0, 10)
        with pytest.raises(Missing):
            await store.get("packs/ab/one/more", 0, 10)
        await store.delete("packs/ab")
        assert await store.get("packs/ab/one", 0, 10) == b"1"

    async def test_put_new_never_replaces(self, store: ObjectStore) -> None:
        await store.put_new("commits/0001", b"mine")

        with pytest.raises(Exists):
            await store.put_new("commits/0001", b"yours")
        with pytest.raises(Exists):  # not even by the same bytes
            await store.put_new("commits/0001", b"mine")
        assert await store.get("commits/0001", 0, 10) == b"mine"

    async def test_put_replaces(self, store: ObjectStore) -> None:
        await store.put("mounts/m1", b"a longer heartbeat")
        await store.put("mounts/m1", b"later")

        assert await store.get("mounts/m1", 0, 100) == b"later"
        with pytest.raises(Exists):
            await store.put_new("mounts/m1", b"x")

    async def test_a_deleted_object_is_gone_and_its_name_free(self, store: ObjectStore) -> None:
        await store.put_new("packs/ab/one", b"1")
        await store.delete("packs/ab/one")

        with pytest.raises(Missing):
            await store.get("packs/ab/one", 0, 10)
        assert await names(store) == []
        await store.put_new("packs/ab/one", b"2")
        assert await store.get("packs/ab/one", 0, 10) == b"2"

    async def test_deleting_what_is_not_there_is_no_error(self, store: ObjectStore) -> None:
        await store.put_new("packs/ab/x", b"x")
        await store.delete("packs/ab/none")
        await store.delete("nothing/like/it")
        assert await names(store) == ["packs/ab/x"]

    async def test_an_empty_store_lists_nothing(self, store: ObjectStore) -> None:
        page = await store.list("")

        assert page.entries == []
        assert not page.more

    async def test_a_listing_is_in_order_of_name(self, store: ObjectStore) -> None:
        # "-" sorts before "/", "/" before digits, "_" between the cases: the order of whole names
        # is not that of a walk through directories.
        wanted = sorted(
            ["a-b/x", "a/b", "a/b-c", "a0", "a_b", "aB/1", "ab/1", "A/z", "a/Z/1", "a-b/x-y/1"]
        )
        for name in reversed(wanted):
            await store.put_new(name, name.encode())

        assert await names(store) == wanted
        for i, name in enumerate(wanted):
            assert await names(store, after=name) == wanted[i + 1 :]

    async def test_a_listing_can_begin_anywhere(self, store: ObjectStore) -> None:
        for name in ("commits/0001", "commits/0003", "keys/0001", "packs/aa/x", "packs/bb/x"):
            await store.put_new(name, b"x")

        assert await names(store, "commits/") == ["commits/0001", "commits/0003"]
        assert await names(store, "commits/", after="commits/0002") == ["commits/0003"]
        assert await names(store, "commits/0003") == ["commits/0003"]
        assert await names(store, "commits/0") == ["commits/0001", "commits/0003"]
        assert await names(store, "packs/", after="packs/aa/z") == ["packs/bb/x"]
        assert await names(store, "pac") == ["packs/aa/x", "packs/bb/x"]
        assert await names(store, "commits/", after="zzz") == []
        assert await names(store, "keys/", after="commits/9") == ["keys/0001"]
        assert await names(store, "nothing/") == []

    async def test_a_listing_comes_in_pages(self, store: ObjectStore) -> None:
        wanted = [f"commits/{i:04}" for i in range(7)]
        for name in wanted:
            await store.put_new(name, b"x")

        first = await store.list("commits/", limit=3)
        assert [entry.name for entry in first.entries] == wanted[:3]
        assert first.more
        second = await store.list("commits/", wanted[2], limit=3)
        assert [entry.name for entry in second.entries] == wanted[3:6]
        assert second.more
        third = await store.list("commits/", wanted[5], limit=3)
        assert [entry.name for entry in third.entries] == wanted[6:]
        assert not third.more

    async def test_a_listing_tells_sizes_and_times(self, store: ObjectStore) -> None:
        await store.put_new("packs/ab/one", bytes(1234))

        (entry,) = (await store.list("packs/")).entries

        assert entry.size == 1234
        assert entry.modified > 0

    async def test_only_legal_names_are_taken(self, store: ObjectStore) -> None:
        for name in ("", "/a", "a/", "a//b", "../a", "a/./b", "a b", "ä", "a.b", "a" * 201):
            with pytest.raises(BadUsage):
                await store.put_new(name, b"x")
            with pytest.raises(BadUsage):
                await store.get(name, 0, 1)
            with pytest.raises(BadUsage):
                await store.delete(name)
        assert await names(store) == []

    async def test_a_name_may_be_200_characters_long(self, store: ObjectStore) -> None:
        name = "packs/" + "n" * 194
        await store.put_new(name, b"x")

        assert await store.get(name, 0, 10) == b"x"
        assert await names(store, "packs/") == [name]

    async def test_of_racing_writers_exactly_one_wins(self, store: ObjectStore) -> None:
        won = []

        async def write(i: int) -> None:
            try:
                await store.put_new("commits/0001", b"%d" % i)
            except Exists:
                return
            won.append(i)

        async with trio.open_nursery() as nursery:
            for i in range(16):
                nursery.start_soon(write, i)

        assert len(won) == 1
        assert await store.get("commits/0001", 0, 10) == b"%d" % won[0]

    async def test_the_probe_finds_it_and_leaves_nothing(self, store: ObjectStore) -> None:
        assert await probe_create_if_absent(store, races=RACES[:6])
        assert await names(store) == []

    async def test_a_cancelled_put_happened_whole_or_not_at_all(self, store: ObjectStore) -> None:
        data = bytes(range(251)) * 4000
        for i in range(6):
            name = f"packs/ab/{i}"
            with trio.move_on_after(0.002 * i):
                await store.put_new(name, data)
            try:
                found = await store.get(name, 0, BIG)
            except Missing:
                continue
            assert found == data

    async def test_many_at_once(self, store: ObjectStore) -> None:
        async def one(i: int) -> None:
            await store.put_new(f"packs/{i % 7:02}/{i}", b"%d" % i * 100)
            assert await store.get(f"packs/{i % 7:02}/{i}", 0, 5000) == b"%d" % i * 100

        async with trio.open_nursery() as nursery:
            for i in range(40):
                nursery.start_soon(one, i)

        assert len(await names(store, "packs/")) == 40

    async def test_health_never_asks_the_store(self, store: ObjectStore) -> None:
        assert store.health().state == "ok"
        await store.put_new("packs/ab/one", b"1")
        assert store.health().state == "ok"
