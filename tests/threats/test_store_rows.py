"""What a malicious store may do, row by row of the threat table (docs/threats.md).

The rows about the key header alone (4, 23, 24, 27, 28) are in tests/volume and tests/crypto; those
about share links (35, 36) belong to their page; 38 and 39 are documentation.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from megafs import compression
from megafs.chunks import codec as chunk_format
from megafs.crypto import aead
from megafs.crypto.volume_keys import chunk_key
from megafs.errors import Corrupt, Denied, Missing, Refused, Rollback, TooNew, Unavailable
from megafs.journal import checkpoint as checkpoints
from megafs.journal.commit import object_name
from megafs.stores.local.driver import LocalStore
from megafs.volume import header_store
from megafs.volume.header import Credential
from megafs.volume.upkeep import write_checkpoint
from tests.fakes.faulty import Faulty
from tests.fakes.machine import (
    KEY,
    ROOT_USER,
    Machine,
    make_volume,
    mkdir,
    read_file,
    replay,
    resolve,
    snapshot,
    store_of,
    unlink,
    write_file,
)
from tests.threats.hostile import PARAMETERS, Lying, Site, readable, refused


def flipped(data: bytes, bit: int) -> bytes:
    spoilt = bytearray(data)
    spoilt[bit // 8] ^= 1 << bit % 8
    return bytes(spoilt)


def new_machine(base: Path) -> Machine:
    return Machine(base / "new", host="new")


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.ERROR) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= level]


# ---- chunks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
async def test_row_01_a_flipped_bit_of_a_chunk_is_eio_for_its_file_alone(
    autojump_clock: MockClock,
    site: Site,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    seed: int,
) -> None:
    rng = random.Random(seed)
    path = rng.choice(["a", "b", "dir/c", "over"])
    name = site.pack_of[path]
    size = sum(aead.sealed_size(min(65536, left) + 5) for left in _lengths(site, path))
    objects = site.objects | {name: flipped(site.objects[name], rng.randrange(size * 8))}

    async with new_machine(tmp_path).open(store_of(objects)) as volume:
        failed = await readable(volume.fs, site.tree)

        assert list(failed) == [path]
        assert failed[path].errno == errno.EIO
        assert path in str(failed[path])
        assert name in str(failed[path])
        assert 1 <= len([line for line in lines(caplog) if name in line]) <= 3
        assert any(path in error["text"] for error in volume.status()["errors"])


def _lengths(site: Site, path: str) -> list[int]:
    size = len(site.tree[path][1])
    return [min(65536, size - start) for start in range(0, size, 65536)]


async def test_row_05_swapped_chunks_of_one_file_are_eio(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    name = site.pack_of["dir/c"]
    pack = site.objects[name]
    n = aead.sealed_size(65536 + 5)
    swapped = pack[n : 2 * n] + pack[:n] + pack[2 * n :]
    assert swapped != pack

    async with new_machine(tmp_path).open(store_of(site.objects | {name: swapped})) as volume:
        assert list(await readable(volume.fs, site.tree)) == ["dir/c"]


async def test_row_05_06_swapped_packs_of_two_files_are_eio(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    a, b = site.pack_of["a"], site.pack_of["b"]
    objects = site.objects | {a: site.objects[b], b: site.objects[a]}

    async with new_machine(tmp_path).open(store_of(objects)) as volume:
        assert sorted(await readable(volume.fs, site.tree)) == ["a", "b"]


async def test_row_07_old_bytes_under_a_current_id_are_eio(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    assert site.pack_of["over"] != site.before_overwrite
    objects = site.objects | {site.pack_of["over"]: site.objects[site.before_overwrite]}

    async with new_machine(tmp_path).open(store_of(objects)) as volume:
        assert list(await readable(volume.fs, site.tree)) == ["over"]


@pytest.mark.parametrize("how", ["404", "403", "500", "empty", "short"])
async def test_row_08_a_chunk_that_is_not_there_is_an_error_never_zeros(
    autojump_clock: MockClock, site: Site, tmp_path: Path, how: str
) -> None:
    name = site.pack_of["a"]
    store = Lying(site.objects)

    def on_get(asked: str, start: int, length: int, true: bytes | None) -> bytes:
        if asked == name:
            match how:
                case "404":
                    raise Missing(f"no object {asked}")
                case "403":
                    raise Denied("403")
                case "500":
                    raise Unavailable("500")
                case "empty":
                    return b""
                case "short":
                    return (true or b"")[:-1]
        if true is None:
            raise Missing(asked)
        return true

    store.on_get = on_get
    async with new_machine(tmp_path).open(store) as volume:
        failed = await readable(volume.fs, site.tree)

        assert list(failed) == ["a"]
        assert failed["a"].errno == errno.EIO
        assert volume.fs.lookup(1, b"a").size == 60_000
        assert volume.writer.frozen is None


async def test_row_21_injected_packs_are_ignored(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    objects = site.objects | {"packs/00/" + "00" * 16: os.urandom(1000), "packs/zz": b"x"}

    async with new_machine(tmp_path).open(store_of(objects)) as volume:
        assert await snapshot(volume.fs) == site.tree


@pytest.mark.parametrize("segment", range(1, 4))
async def test_row_30_a_chunk_cut_at_the_edge_of_a_segment_is_eio(
    autojump_clock: MockClock, site: Site, tmp_path: Path, segment: int
) -> None:
    name = site.pack_of["a"]
    cut = site.objects[name][: 56 + segment * (16384 + 16)]

    async with new_machine(tmp_path).open(store_of(site.objects | {name: cut})) as volume:
        assert list(await readable(volume.fs, site.tree)) == ["a"]


@pytest.mark.parametrize("how", ["shifted", "start", "other", "zeros", "random"])
async def test_row_31_another_range_than_was_asked_for_is_eio(
    autojump_clock: MockClock, site: Site, tmp_path: Path, how: str
) -> None:
    store = Lying(site.objects)

    def on_get(asked: str, start: int, length: int, true: bytes | None) -> bytes:
        if true is None:
            raise Missing(asked)
        if not asked.startswith("packs/"):
            return true
        pack = site.objects[asked]
        match how:
            case "shifted":
                return pack[start + 1 : start + 1 + length]
            case "start":
                return pack[:length] if start else pack[1 : 1 + length]
            case "other":
                other = site.pack_of["b"] if asked != site.pack_of["b"] else site.pack_of["a"]
                return site.objects[other][start : start + length]
            case "zeros":
                return bytes(len(true))
        return random.Random(1).randbytes(len(true))

    store.on_get = on_get
    async with new_machine(tmp_path).open(store) as volume:
        failed = await readable(volume.fs, site.tree)
        assert sorted(failed) == ["a", "b", "dir/c", "over"]
        assert {exc.errno for exc in failed.values()} == {errno.EIO}


def test_row_32_decompression_stops_at_the_size_of_a_chunk() -> None:
    bomb = compression.compress(bytes(256 << 20))
    assert len(bomb) < 64 << 10
    tracemalloc.start()
    try:
        for size in (100, chunk_format.MAX_CHUNK):
            plain = chunk_format.HEAD.pack(size, chunk_format.ZSTD) + bomb
            with pytest.raises(Corrupt):
                chunk_format.decode(plain)
        with pytest.raises(Corrupt):
            chunk_format.decode(chunk_format.HEAD.pack(1 << 31, chunk_format.ZSTD) + bomb)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


async def test_row_33_bytes_before_a_bad_last_segment_reach_neither_reader_nor_cache(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    name = site.pack_of["a"]
    sealed = aead.sealed_size(60_005)
    objects = site.objects | {name: flipped(site.objects[name], sealed * 8 - 1)}

    async with new_machine(tmp_path).open(store_of(objects)) as volume:
        fs = volume.fs
        fh, _ = await fs.open(resolve(fs, "a"), os.O_RDONLY, ROOT_USER)
        for offset in (0, 16384, 59_000):
            with pytest.raises(Corrupt):
                await fs.read(fh, offset, 100)
        assert volume.chunks.size == 0
        await fs.release(fh)


async def test_row_34_a_chunk_forged_with_its_own_key_is_eio(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    """Somebody with a share link has the key of the chunk, and colludes with the store."""
    name = site.pack_of["a"]
    async with new_machine(tmp_path).open(store_of(site.objects)) as volume:
        ring, pack = volume.keyring, bytes.fromhex(name.rpartition("/")[2])
        key = chunk_key(ring.pack_key(pack), 0)
        plain = chunk_format.encode(b"forged" * 10_000, compress=False)
        assert len(plain) == 60_005
        context = aead.context("chunk", ring.fsid, ring.epoch, pack, 0)
        forged = aead.seal(key, context, plain)
        assert bytes(aead.open_sealed(key, context, forged)) == plain
    objects = site.objects | {name: forged + site.objects[name][len(forged) :]}

    async with Machine(tmp_path / "b").open(store_of(objects)) as volume:
        assert list(await readable(volume.fs, site.tree)) == ["a"]


async def test_row_40_every_failure_of_a_chunk_costs_the_same_requests(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    name = site.pack_of["a"]
    pack = site.objects[name]
    ways = {
        "flip": flipped(pack, 1000),
        "flip at the end": flipped(pack, aead.sealed_size(60_005) * 8 - 1),
        "cut": pack[:1000],
        "empty": b"",
        "other": site.objects[site.pack_of["b"]],
        "zeros": bytes(len(pack)),
    }
    seen = {}
    for number, (how, bad) in enumerate(ways.items()):
        store = Lying(site.objects | {name: bad})
        async with Machine(tmp_path / str(number)).open(store) as volume:
            with pytest.raises(Corrupt) as failure:
                await read_file(volume.fs, "a")
            seen[how] = (
                [(start, length) for asked, start, length in store.gets if asked == name],
                type(failure.value),
                failure.value.errno,
            )
    assert len({str(what) for what in seen.values()}) == 1, seen
    assert len(seen["flip"][0]) == 2


# ---- the journal -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
async def test_row_02_a_flipped_bit_of_a_commit_refuses_to_mount(
    autojump_clock: MockClock, site: Site, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    name = object_name(rng.randint(site.checkpoints[1] + 1, site.head))
    bit = rng.choice([0, 7, 8, 39, 40, rng.randrange(len(site.objects[name]) * 8)])
    objects = site.objects | {name: flipped(site.objects[name], bit)}

    with pytest.raises((Corrupt, TooNew)) as failure:
        async with new_machine(tmp_path).open(store_of(objects)):
            pass
    assert name in str(failure.value)


async def test_row_02_a_bad_commit_freezes_a_mount_that_goes_on_reading(
    autojump_clock: MockClock, site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_of(site.objects)
    async with site.known(tmp_path / "a").open(store) as volume:
        fs = volume.fs
        fh, _ = await fs.create(1, b"open", 0o644, os.O_RDWR, ROOT_USER)
        await fs.fsync(fh, False)
        before = set(store.objects)
        store._place(object_name(volume.replica.sequence + 1), os.urandom(500))
        await trio.sleep(20)

        assert volume.writer.frozen is not None
        with pytest.raises(Refused) as no:
            await fs.write(fh, 0, b"more")
        assert no.value.errno == errno.EROFS
        attempts: tuple[Callable[[], Awaitable[None]], ...] = (
            lambda: mkdir(fs, "no"),
            lambda: unlink(fs, "a"),
            lambda: write_file(fs, "no", b""),
        )
        for attempt in attempts:
            with pytest.raises(Refused) as no:
                await attempt()
            assert no.value.errno == errno.EROFS
        assert await readable(fs, site.tree) == {}
        status = volume.status()
        assert status["read_only"]
        assert "commits/" in status["frozen"]
        await trio.sleep(600)
        assert len([line for line in lines(caplog) if "read-only" in line]) == 1
        written = {n for n in set(store.objects) - before if not n.startswith("mounts/")}
        assert written == {object_name(volume.replica.sequence + 1)}
        await fs.release(fh)


async def test_row_02_nothing_is_committed_over_a_bad_commit_that_vanishes(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    store = store_of(site.objects)
    async with site.known(tmp_path / "a").open(store) as volume:
        bad = object_name(volume.replica.sequence + 1)
        store._place(bad, os.urandom(500))
        await trio.sleep(20)
        await store.delete(bad)
        volume.writer.poke(urgent=True)
        await trio.sleep(60)

        assert bad not in store.objects
        assert volume.status()["read_only"]


@pytest.mark.parametrize("how", ["swap", "duplicate", "renumber", "twice"])
async def test_row_09_commits_out_of_order_are_refused(
    autojump_clock: MockClock, site: Site, tmp_path: Path, how: str
) -> None:
    n = site.head
    objects = dict(site.objects)
    first, second = object_name(n - 1), object_name(n)
    match how:
        case "swap":
            objects[first], objects[second] = objects[second], objects[first]
        case "duplicate":
            objects[object_name(n + 1)] = objects[second]
        case "renumber":
            objects[first] = objects.pop(second)
        case "twice":
            objects[second] = objects[first]

    await refused(new_machine(tmp_path), objects, Corrupt)


@pytest.mark.parametrize("back", [1, 2, 3])
async def test_row_10_a_missing_commit_in_the_middle_is_refused(
    autojump_clock: MockClock, site: Site, tmp_path: Path, back: int
) -> None:
    gone = object_name(site.head - back)
    objects = {n: d for n, d in site.objects.items() if n != gone}

    await refused(new_machine(tmp_path), objects, Corrupt, f"{site.head - back} .*although")


async def test_row_10_a_missing_first_commit_is_not_made_again(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    objects = {
        n: d
        for n, d in site.objects.items()
        if n != object_name(1) and not n.startswith("checkpoints/")
    }
    store = Lying(objects)

    with pytest.raises(Corrupt, match="although"):
        async with new_machine(tmp_path).open(store):
            pass
    assert object_name(1) not in store.objects


@pytest.mark.parametrize("replica", [True, False], ids=["replica", "replica-deleted"])
@pytest.mark.parametrize("back", [1, 3])
async def test_row_11_a_truncated_journal_is_refused_where_it_was_known(
    autojump_clock: MockClock, site: Site, tmp_path: Path, replica: bool, back: int
) -> None:
    objects = {
        n: d
        for n, d in site.objects.items()
        if n not in {object_name(site.head - i) for i in range(back)}
    }

    machine = site.known(tmp_path / "a", replica=replica)
    await refused(machine, objects, Rollback, "accept_state")
    await refused(machine, objects, Rollback, "accept_state")  # a second try changes nothing
    store = store_of(objects)
    async with machine.open(store, accept_state=True) as volume:
        assert volume.replica.sequence == site.head - back
        await write_file(volume.fs, "goes on", b"x", sync=True)
    async with new_machine(tmp_path).open(store) as volume:  # and others can read it
        assert await read_file(volume.fs, "goes on") == b"x"


@pytest.mark.parametrize("forked_too", [False, True], ids=["truncated", "forked"])
async def test_row_11_a_mount_that_began_without_the_store_checks_when_it_is_back(
    autojump_clock: MockClock, site: Site, tmp_path: Path, forked_too: bool
) -> None:
    store = store_of(
        {
            n: d
            for n, d in site.objects.items()
            if n not in {object_name(site.head), object_name(site.head - 1)}
        }
    )
    if forked_too:
        async with Machine(tmp_path / "other").open(store) as volume:
            for n in range(4):
                await write_file(volume.fs, f"fork{n}", b"x", sync=True)
    before = set(store.objects)
    away = Faulty(store)
    away.partitioned = True
    machine = site.known(tmp_path / "a")
    async with machine.open(away) as volume:
        await write_file(volume.fs, "offline", b"x")
        away.partitioned = False
        await trio.sleep(60)
        assert isinstance(volume.writer.frozen, Rollback)
        assert await read_file(volume.fs, "offline") == b"x"
    assert not [n for n in set(store.objects) - before if n.startswith("commits/")]
    await refused(machine, store.objects, Rollback)


async def test_row_12_a_new_machine_cannot_notice_but_shows_the_head(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    objects = {n: d for n, d in site.objects.items() if n != object_name(site.head)}

    async with new_machine(tmp_path).open(store_of(objects)) as volume:
        status = volume.status()
        assert status["sequence"] == site.head - 1
        assert status["head_words"]
        assert status["head_host"] == "known"
        assert status["head_time"] > 0


@pytest.mark.parametrize("left", ["tail", "nothing"])
async def test_row_12_an_expected_head_refuses_a_truncated_journal(
    autojump_clock: MockClock, site: Site, tmp_path: Path, left: str
) -> None:
    expect: dict[str, Any] = {"expect_head": f"{site.head}:{site.head_hash}"}
    async with Machine(tmp_path / "ok").open(store_of(site.objects), **expect):
        pass
    objects = {n: d for n, d in site.objects.items() if n != object_name(site.head)}
    if left == "nothing":
        objects = {n: d for n, d in site.objects.items() if n.startswith("keys/")}
    store = Lying(objects)

    with pytest.raises(Rollback, match="not the expected"):
        async with new_machine(tmp_path).open(store, **expect):
            pass
    assert not [n for n in store.puts if n.startswith("commits/")]


async def test_row_13_a_store_that_shows_news_late_moves_nobody_backwards(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    store = Lying(site.objects)
    late: set[str] = set()
    other = store_of({})
    other.objects = store.objects  # one store, seen by the other without delay
    other._names = store._names
    other._modified = store._modified
    store.hidden = late.__contains__
    a, b = site.known(tmp_path / "a"), new_machine(tmp_path)
    async with a.open(store) as slow, b.open(other) as quick:
        before = slow.replica.sequence
        late.update(object_name(before + n) for n in (1, 2))
        await write_file(quick.fs, "first", b"1", sync=True)
        await trio.sleep(10)
        assert slow.replica.sequence == before
        assert slow.writer.frozen is None

        async def fsync() -> None:
            await write_file(slow.fs, "second", b"2", sync=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fsync)
            await trio.sleep(8)
            assert slow.replica.committed < slow.replica.batch
            late.clear()
        assert slow.writer.frozen is None
        assert await read_file(slow.fs, "first") == b"1"
        await trio.sleep(10)
        assert await read_file(quick.fs, "second") == b"2"


async def forked(site: Site, tmp_path: Path) -> tuple[Machine, Lying, Machine, Lying]:
    """Two machines that knew one history; each has since been shown only its own commits."""
    a, store_a = site.known(tmp_path / "a"), Lying(site.objects)
    b, store_b = new_machine(tmp_path), Lying(site.objects)
    async with a.open(store_a) as volume:
        await write_file(volume.fs, "from a", b"a", sync=True)
        await volume.drain()
    async with b.open(store_b) as volume:
        await write_file(volume.fs, "from b", b"b", sync=True)
        await volume.drain()
    return a, store_a, b, store_b


async def test_row_14_a_fork_is_noticed_when_one_sees_the_others_commit(
    autojump_clock: MockClock, site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, store_a, b, store_b = await forked(site, tmp_path)
    async with b.open(store_b) as volume:
        await write_file(volume.fs, "more from b", b"b", sync=True)
        newest = object_name(volume.replica.sequence)

    async with a.open(store_a) as volume:
        store_a._place(newest, store_b.objects[newest])
        await trio.sleep(20)
        assert "different histories" in str(volume.writer.frozen)
        with pytest.raises(Refused) as no:
            await mkdir(volume.fs, "no")
        assert no.value.errno == errno.EROFS
        assert await read_file(volume.fs, "from a") == b"a"
        assert len([x for x in lines(caplog) if "different histories" in x]) == 1


async def test_row_14_a_machine_that_is_shown_the_other_fork_at_mount_refuses(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    a, _, _, store_b = await forked(site, tmp_path)

    await refused(a, store_b.objects, Rollback)
    await refused(a, store_b.objects, Rollback)  # and is not won over by trying again
    for path in a.volume_dir.glob("replica.db*"):
        path.unlink()
    await refused(a, store_b.objects, Rollback)
    await refused(a, store_b.objects, Rollback)


async def test_row_15_machines_kept_apart_show_different_heads(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    a, store_a, b, store_b = await forked(site, tmp_path)

    async with a.open(store_a) as at_a, b.open(store_b) as at_b:
        assert at_a.replica.sequence == at_b.replica.sequence
        assert at_a.status()["head_words"] != at_b.status()["head_words"]


async def test_row_16_created_said_to_both_freezes_whoever_sees_the_next(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    a, store_a = site.known(tmp_path / "a"), Lying(site.objects)
    b, store_b = new_machine(tmp_path), Lying(site.objects)
    async with a.open(store_a) as at_a, b.open(store_b) as at_b:
        await write_file(at_a.fs, "x", b"a", sync=True)
        await write_file(at_b.fs, "y", b"b", sync=True)
        assert at_a.replica.sequence == at_b.replica.sequence
        await write_file(at_b.fs, "z", b"b", sync=True)
        newest = object_name(at_b.replica.sequence)
        store_a._place(newest, store_b.objects[newest])
        await trio.sleep(20)
        assert at_a.writer.frozen is not None
        assert at_b.writer.frozen is None


async def test_row_17_exists_for_ever_is_a_bounded_effort_and_loses_nothing(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    store = Lying(site.objects)
    machine = new_machine(tmp_path)
    async with machine.open(store, deadline=60.0) as volume:
        store.taken = lambda name: name.startswith("commits/")
        began = trio.current_time()
        with pytest.raises(Unavailable, match="still staged"):
            await write_file(volume.fs, "x", b"contents", sync=True)
        assert trio.current_time() - began == pytest.approx(60, abs=1)
        assert len([n for n in store.puts if n.startswith("commits/")]) < 40
        assert volume.writer.frozen is None
        assert await read_file(volume.fs, "x") == b"contents"
        store.taken = lambda name: False
        await volume.drain()
    async with Machine(tmp_path / "c").open(store) as volume:
        assert await read_file(volume.fs, "x") == b"contents"


async def test_row_17_a_pack_lost_after_it_was_acknowledged_is_eio_for_its_file(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    objects = {n: d for n, d in site.objects.items() if n != site.pack_of["b"]}

    async with new_machine(tmp_path).open(store_of(objects)) as volume:
        assert list(await readable(volume.fs, site.tree)) == ["b"]


async def test_row_21_an_injected_commit_is_refused(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    garbage = b"\x01" + os.urandom(399)
    for number, data in enumerate((b"", garbage, site.objects[object_name(1)])):
        objects = site.objects | {object_name(site.head + 1): data}
        await refused(Machine(tmp_path / str(number)), objects, Corrupt)


@pytest.mark.parametrize(
    "what", ["commits/", "checkpoints/", "packs/", "all"], ids=lambda x: x.strip("/")
)
async def test_row_22_objects_of_another_volume_with_the_same_key_are_refused(
    autojump_clock: MockClock, site: Site, tmp_path: Path, what: str
) -> None:
    other = store_of({})
    await make_volume(other, **PARAMETERS)
    async with Machine(tmp_path / "o").open(other) as volume:
        for name in sorted(site.tree):
            if "/" not in name and site.tree[name][0] == "file":
                await write_file(volume.fs, name, site.tree[name][1], sync=True)
        for n in range(12):
            await write_file(volume.fs, f"x{n}", b"x", sync=True)
        await write_checkpoint(volume)
    foreign = dict(other.objects)
    objects = dict(site.objects)
    if what == "all":
        objects |= {n: d for n, d in foreign.items() if not n.startswith("keys/")}
        await refused(new_machine(tmp_path), objects, Corrupt)
        return
    mine = sorted(n for n in objects if n.startswith(what))
    theirs = sorted(n for n in foreign if n.startswith(what))
    for name, source in zip(mine, theirs * len(mine), strict=False):
        objects[name] = foreign[source]
    if what == "packs/":
        async with new_machine(tmp_path).open(store_of(objects)) as volume:
            failed = await readable(volume.fs, site.tree)
            assert sorted(failed) == ["a", "b", "dir/c", "over"]
    else:
        await refused(new_machine(tmp_path), objects, Corrupt)


# ---- checkpoints -------------------------------------------------------------------------------


def parts_of(site: Site, sequence: int) -> list[str]:
    return sorted(n for n in site.objects if n.startswith(f"checkpoints/{sequence:016d}/"))


@pytest.mark.parametrize("which", ["manifest", "part"])
@pytest.mark.parametrize("seed", range(3))
async def test_row_03_a_flipped_bit_in_the_newest_checkpoint_uses_the_one_before(
    autojump_clock: MockClock,
    site: Site,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    which: str,
    seed: int,
) -> None:
    rng = random.Random(seed)
    names = parts_of(site, site.checkpoints[1])
    name = rng.choice([n for n in names if n.endswith("manifest") == (which == "manifest")])
    bit = 40 + rng.randrange(len(site.objects[name]) * 8 - 40)
    objects = site.objects | {name: flipped(site.objects[name], bit)}

    async with new_machine(tmp_path).open(store_of(objects)) as volume:
        assert await snapshot(volume.fs) == site.tree
        assert volume.replica.checkpoint == site.checkpoints[0]
    warnings = [x for x in lines(caplog, logging.WARNING) if "is damaged" in x]
    assert len(warnings) == 1
    assert str(site.checkpoints[1]) in warnings[0]


async def test_row_03_a_missing_part_uses_the_checkpoint_before(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    gone = parts_of(site, site.checkpoints[1])[0]
    objects = {n: d for n, d in site.objects.items() if n != gone}

    async with new_machine(tmp_path).open(store_of(objects)) as volume:
        assert await snapshot(volume.fs) == site.tree


async def test_row_03_all_checkpoints_damaged_refuses(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    manifests = [checkpoints.manifest_name(n) for n in site.checkpoints]
    objects = site.objects | {n: flipped(site.objects[n], 500) for n in manifests}

    await refused(new_machine(tmp_path), objects, Corrupt, "no checkpoint in the store is whole")


async def test_row_18_an_old_checkpoint_under_a_new_name_is_not_taken(
    autojump_clock: MockClock, site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = (checkpoints.manifest_name(n) for n in site.checkpoints)
    objects = site.objects | {new: site.objects[old]}
    later = objects | {checkpoints.manifest_name(site.head): site.objects[old]}

    for number, attack in enumerate((objects, later)):
        async with Machine(tmp_path / str(number)).open(store_of(attack)) as volume:
            assert await snapshot(volume.fs) == site.tree
            assert volume.replica.checkpoint == site.checkpoints[0]
    assert any("is damaged" in x for x in lines(caplog, logging.WARNING))


@pytest.mark.parametrize("replica", [True, False], ids=["replica", "replica-deleted"])
async def test_row_19_only_the_old_checkpoint_and_the_old_journal_are_refused(
    autojump_clock: MockClock, site: Site, tmp_path: Path, replica: bool
) -> None:
    old = site.at(site.checkpoints[1])

    await refused(site.known(tmp_path / "a", replica=replica), old, Rollback)


async def test_row_20_history_folded_past_the_remembered_head_needs_consent(
    autojump_clock: MockClock, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "HASH_TAIL", 3)
    store = store_of(site.objects)
    async with Machine(tmp_path / "b").open(store) as volume:
        for n in range(6):
            await write_file(volume.fs, f"more{n}", b"x", sync=True)
        await volume.checkpointer.write()
        last = volume.replica.sequence
        tree = await snapshot(volume.fs)
    folded = {
        n: d
        for n, d in store.objects.items()
        if not n.startswith("commits/") or n > object_name(last)
    }
    for n in site.checkpoints:
        folded.pop(checkpoints.manifest_name(n))

    for number, replica in enumerate((True, False)):
        machine = site.known(tmp_path / str(number), replica=replica)
        await refused(machine, folded, Rollback, "accept_state")
        async with machine.open(store_of(folded), accept_state=True) as volume:
            assert await snapshot(volume.fs) == tree


@pytest.mark.parametrize("replica", [True, False], ids=["replica", "replica-deleted"])
async def test_history_folded_past_a_machine_that_the_checkpoint_tells_of_mounts(
    autojump_clock: MockClock, site: Site, tmp_path: Path, replica: bool
) -> None:
    """The honest case of row 20: an old machine comes back after its commits were removed."""
    store = store_of(site.objects)
    async with Machine(tmp_path / "b").open(store) as volume:
        for n in range(6):
            await write_file(volume.fs, f"more{n}", b"x", sync=True)
        await volume.checkpointer.write()
        last = volume.replica.sequence
        await write_file(volume.fs, "after", b"x", sync=True)
        tree = await snapshot(volume.fs)
    folded = {
        n: d
        for n, d in store.objects.items()
        if not n.startswith("commits/") or n > object_name(last)
    }

    async with site.known(tmp_path / "a", replica=replica).open(store_of(folded)) as volume:
        assert await snapshot(volume.fs) == tree


async def test_injected_names_among_the_checkpoints_are_ignored(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    objects = site.objects | {
        "checkpoints/x": b"1",
        "checkpoints/9/manifest": b"2",
        "checkpoints/0000000000000009/x/y": b"3",
        "checkpoints/999999999999999999999/manifest": b"4",
    }
    async with new_machine(tmp_path).open(store_of(objects)) as volume:
        assert await snapshot(volume.fs) == site.tree
        assert volume.replica.checkpoint == site.checkpoints[1]


# ---- keys, and the volume as a whole -----------------------------------------------------------


async def test_row_25_rolled_back_keys_are_refused(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    store = store_of(site.objects)
    machine = site.known(tmp_path / "a")
    async with machine.open(store) as volume:
        unlocked = await header_store.unlock(store, KEY)
        await header_store.add_passphrase(
            store, unlocked, Credential(keyfile=bytes(range(100, 164)))
        )
        await volume.drain()
    new_keys = {n for n in store.objects if n.startswith("keys/")}
    async with machine.open(store) as volume:
        await write_file(volume.fs, "x", b"x", sync=True)  # the journal names the new generation
        await volume.drain()
    rolled = {n: d for n, d in store.objects.items() if n not in new_keys}
    rolled |= {n: d for n, d in site.objects.items() if n.startswith("keys/")}

    await refused(machine, rolled, Rollback)
    await refused(new_machine(tmp_path), rolled, Rollback, "keys were rolled back")


async def test_keys_changed_by_another_machine_freeze_nobody(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    store = store_of(site.objects)
    async with site.known(tmp_path / "a").open(store) as at_a:
        unlocked = await header_store.unlock(store, KEY)
        await header_store.add_passphrase(
            store, unlocked, Credential(keyfile=bytes(range(100, 164)))
        )
        async with new_machine(tmp_path).open(store) as at_b:
            await write_file(at_b.fs, "x", b"x", sync=True)
        await trio.sleep(20)
        assert at_a.writer.frozen is None
        assert await read_file(at_a.fs, "x") == b"x"


async def test_row_26_another_volume_in_its_place_is_refused(
    autojump_clock: MockClock, site: Site, tmp_path: Path
) -> None:
    other = store_of({})
    await make_volume(other, **PARAMETERS)

    machine = site.known(tmp_path / "a")
    await refused(machine, other.objects, Rollback, "another volume was put in its place")


@pytest.mark.parametrize("what", ["commit", "manifest", "part", "pack"])
async def test_row_29_enlarged_objects_are_never_read_whole(
    autojump_clock: MockClock, site: Site, tmp_path: Path, what: str
) -> None:
    name = {
        "commit": object_name(site.head),
        "manifest": checkpoints.manifest_name(site.checkpoints[1]),
        "part": next(n for n in parts_of(site, site.checkpoints[1]) if "manifest" not in n),
        "pack": site.pack_of["a"],
    }[what]
    store = Lying(site.objects)
    endless = site.objects[name]
    given = 0

    def on_get(asked: str, start: int, length: int, true: bytes | None) -> bytes:
        nonlocal given
        if asked == name:
            # A store that would send for ever: the driver reads as much as is asked for.
            part = endless[start : start + length]
            part += bytes(min(length - len(part), 1 << 20))
            given += min(length, 1 << 62)
            return part
        if true is None:
            raise Missing(asked)
        return true

    store.on_get = on_get
    machine = new_machine(tmp_path)
    if what == "commit":
        with pytest.raises(Corrupt):
            async with machine.open(store):
                pass
        assert given <= 4 * (64 << 20)
        return
    async with machine.open(store) as volume:
        assert await readable(volume.fs, site.tree) == {}
        if what == "pack":
            assert given == aead.sealed_size(60_005)
        elif what == "part":
            assert given <= 2 * (len(endless) + 1)
            assert volume.replica.checkpoint == site.checkpoints[0]


# ---- what can be seen from outside -------------------------------------------------------------


CANARIES = {
    "name": b"canary-name-Ahzai5ui",
    "directory": b"canary-directory-ieGh4oon",
    "contents": b"canary-contents-Ohn7ooth",
    "inline": b"canary-inline-uGh2Ohng",
    "xattr": b"user.canary-xattr-name-eeph3Oha",
    "value": b"canary-xattr-value-Aech9oon",
    "target": b"canary-symlink-target-Iu0ohdai",
    "host": b"canary-host-xoh6Aiph",
    "snapshot": b"canary-later-name-vie7Ohqu",
}


def found_in(root: Path) -> set[tuple[str, str]]:
    found = set()
    for path in root.rglob("*"):
        what = os.fsencode(path.name)
        if path.is_file():
            what += path.read_bytes()
        for label, canary in CANARIES.items():
            if canary in what:
                found.add((label, str(path.relative_to(root))))
    return found


def padme_sizes_only(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}: {path.stat().st_size}"
        for path in root.rglob("*")
        if path.is_file()
        and path.relative_to(root).parts[0] in ("packs", "commits", "checkpoints")
        and aead.padme(path.stat().st_size) != path.stat().st_size
    ]


async def test_row_37_nothing_readable_lies_in_store_state_cache_or_log(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    root = tmp_path / "store"
    url = f"file://{root}"
    store = LocalStore(root)
    await make_volume(store, **PARAMETERS, compression="none")
    await store.aclose()
    said: list[str] = []
    machine = Machine(tmp_path / "m", host=CANARIES["host"].decode())

    def check() -> None:
        assert found_in(tmp_path) == set()

    async with machine.open(None, url=url, say=said.append) as volume:
        fs = volume.fs
        directory = await fs.mkdir(1, CANARIES["directory"], 0o755, ROOT_USER)
        await fs.symlink(1, b"link", CANARIES["target"], ROOT_USER)
        fh, inode = await fs.create(directory.ino, CANARIES["name"], 0o644, os.O_RDWR, ROOT_USER)
        await fs.setxattr(inode.ino, CANARIES["xattr"], CANARIES["value"], 0, ROOT_USER)
        await fs.write(fh, 0, CANARIES["contents"] * 5000)
        await fs.flush(fh)
        check()  # staged, not committed
        await fs.fsync(fh, False)
        check()
        await fs.release(fh)
        fh, _ = await fs.create(1, b"inline", 0o644, os.O_RDWR, ROOT_USER)
        await fs.write(fh, 0, CANARIES["inline"])
        await fs.flush(fh)
        await fs.release(fh)
        await fs.rename(directory.ino, CANARIES["name"], 1, CANARIES["snapshot"], 0, ROOT_USER)
        await volume.drain()
        await write_checkpoint(volume)
        volume.chunks.clear()
        assert await read_file(fs, CANARIES["snapshot"].decode())
        check()
        text = str(volume.status()).encode()
        assert not any(c in text for k, c in CANARIES.items() if k != "host")
    check()
    async with Machine(tmp_path / "n", host="n").open(None, url=url, say=said.append) as volume:
        volume.chunks.clear()
        data = await read_file(volume.fs, CANARIES["snapshot"].decode())
        assert CANARIES["contents"] in data
        cached = sum(p.stat().st_size for p in (tmp_path / "n" / "cache").rglob("*"))
        assert cached > len(data)
        check()
    check()
    logged = "\n".join([*said, caplog.text]).encode()
    assert not [k for k, c in CANARIES.items() if c in logged]
    assert padme_sizes_only(root) == []


async def test_row_37_sizes_in_the_store_are_padme_sizes(
    autojump_clock: MockClock, site: Site
) -> None:
    odd = {
        n: len(d)
        for n, d in site.objects.items()
        if not n.startswith(("keys/", "mounts/")) and aead.padme(len(d)) != len(d)
    }
    assert odd == {}


def test_the_site_is_what_the_tests_think(site: Site) -> None:
    assert replay(site.changes).keys() >= site.objects.keys()
    assert len(parts_of(site, site.checkpoints[1])) > 1
