"""The past: moments, and trees as they were at them."""

from __future__ import annotations

from pathlib import Path

import pytest

from megafs import clock
from megafs.errors import BadUsage, Corrupt, Missing
from megafs.history.moments import Moment, parse_moment, show_time
from megafs.jobs import registry
from megafs.volume import upkeep
from megafs.volume.volume import Volume
from tests.fs.opened import ROOT, contents, new_store_here, opened, put_file

NOW = 1_800_000_000 * 10**9


async def moment(volume: Volume) -> int:
    """Commit everything; the number of the last commit."""
    await volume.drain()
    return volume.replica.sequence


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("1234", Moment(sequence=1234)),
        ("@7", Moment(sequence=7)),
        ("now", Moment(time_ns=NOW)),
        ("2h ago", Moment(time_ns=NOW - 7200 * 10**9)),
        ("90 minutes ago", Moment(time_ns=NOW - 5400 * 10**9)),
        ("1.5 days ago", Moment(time_ns=NOW - 129600 * 10**9)),
        ("2026-11-23T14:05:00Z", Moment(time_ns=1795442700 * 10**9)),
        ("2026-11-23T15:05:00.5+01:00", Moment(time_ns=1795442700_500_000_000)),
        ("before the exam", Moment(name="before the exam")),
        ("two hours ago", Moment(name="two hours ago")),
        ("2026-13-99", Moment(name="2026-13-99")),
    ],
)
def test_moments_as_people_write_them(text: str, means: Moment) -> None:
    assert parse_moment(text, NOW) == means


def test_a_time_that_is_shown_is_understood() -> None:
    assert parse_moment(show_time(NOW), 0) == Moment(time_ns=NOW)


async def test_every_moment_can_be_read_from_the_first_commit_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        moments = {}
        for n in range(6):
            await put_file(volume.fs, 1, b"f%d" % n, b"x" * n)
            moments[await moment(volume)] = n + 1
        for sequence, count in moments.items():
            async with volume.history.view(sequence) as tree:
                assert [d.name for d in tree.names(1)] == [b"f%d" % n for n in range(count)]


async def test_a_view_starts_at_the_checkpoint_before_it(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path, store) as volume:
        await put_file(volume.fs, 1, b"a")
        await moment(volume)
        await upkeep.write_checkpoint(volume)
        await put_file(volume.fs, 1, b"b")
        at = await moment(volume)
        await put_file(volume.fs, 1, b"c")
        await moment(volume)
        del store.objects["commits/" + "1".zfill(16)]  # what lies before it is not needed
        store._names.remove("commits/" + "1".zfill(16))
        async with volume.history.view(at) as tree:
            assert [d.name for d in tree.names(1)] == [b"a", b"b"]


async def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path, store) as volume:
        await put_file(volume.fs, 1, b"a")
        at = await moment(volume)
        await upkeep.write_checkpoint(volume)
        for name in store.objects:
            if name.startswith("checkpoints/") and not name.endswith("manifest"):
                store.objects[name] = store.objects[name][:-1] + b"?"
        async with volume.history.view(at) as tree:
            assert tree.child(1, b"a") is not None


async def test_another_history_is_not_shown(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path, store) as volume:
        await put_file(volume.fs, 1, b"a")
        at = await moment(volume)
        name = f"commits/{at:016d}"
        store.objects[name] = store.objects[name][:-1] + b"?"
        with pytest.raises(Corrupt, match="not the commit that this machine has seen"):
            await volume.history.have(at)


async def test_a_view_that_failed_is_tried_again(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path, store) as volume:
        await put_file(volume.fs, 1, b"a")
        at = await moment(volume)
        name = f"commits/{at:016d}"
        kept = store.objects.pop(name)
        with pytest.raises(Missing):
            await volume.history.have(at)
        store.objects[name] = kept
        assert (await volume.history.have(at)).child(1, b"a") is not None


async def test_views_leave_no_files_and_only_few_are_kept(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        for n in range(8):
            await put_file(volume.fs, 1, b"f%d" % n)
            await volume.history.have(await moment(volume))
        assert len(volume.history._views) == 3
        assert list(volume.history.directory.iterdir()) == []


async def test_a_view_in_use_is_not_taken_away(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        await put_file(volume.fs, 1, b"first")
        async with volume.history.view(await moment(volume)) as tree:
            for n in range(8):
                await put_file(volume.fs, 1, b"f%d" % n)
                await volume.history.have(await moment(volume))
            assert [d.name for d in tree.names(1)] == [b"first"]


async def test_a_time_means_the_last_commit_before_it(tmp_path: Path) -> None:
    base = clock.now_ns()
    now = [base + 1000 * 10**9]
    with clock.replaced(now_ns=lambda: now[0]):
        async with opened(tmp_path) as volume:
            moments = []
            for n in range(5):
                now[0] = base + (n + 1) * 3600 * 10**9
                await put_file(volume.fs, 1, b"f%d" % n)
                moments.append(await moment(volume))
            history = volume.history
            assert await history.resolve("now") == moments[4]
            assert await history.resolve("30 min ago") == moments[3]
            assert await history.resolve("1h ago") == moments[3]
            assert await history.resolve("61 min ago") == moments[2]
            with pytest.raises(BadUsage, match="the journal begins at"):
                await history.resolve("10 years ago")
            with pytest.raises(BadUsage, match="in the future"):
                await history.resolve("2099-01-01")
            with pytest.raises(BadUsage, match="there is no commit"):
                await history.resolve("99999")
            with pytest.raises(BadUsage, match="neither a snapshot nor a time"):
                await history.resolve("never")


async def test_times_from_before_this_machine_came_are_read_from_the_commits(
    tmp_path: Path,
) -> None:
    store = await new_store_here()
    base = clock.now_ns()
    now = [base]
    moments = []
    with clock.replaced(now_ns=lambda: now[0]):
        async with opened(tmp_path / "one", store) as volume:
            for n in range(9):
                now[0] = base + (n + 1) * 3600 * 10**9
                await put_file(volume.fs, 1, b"f%d" % n)
                moments.append(await moment(volume))
            await upkeep.write_checkpoint(volume)
        async with opened(tmp_path / "two", store) as volume:
            for n, sequence in enumerate(moments):
                time_ns = base + (n + 1) * 3600 * 10**9 + 1
                # Opening claims no number, so the last commit is the last one above.
                assert await volume.history.sequence_at(time_ns) == sequence


async def test_a_view_is_checked_against_what_a_new_machine_knows(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path / "one", store) as volume:
        for n in range(5):
            await put_file(volume.fs, 1, b"f%d" % n)
            at = await moment(volume)
        await upkeep.write_checkpoint(volume)
        await volume.fs.mkdir(1, b"d", 0o755, ROOT)
        await moment(volume)
    async with opened(tmp_path / "two", store) as volume:
        volume.replica.db.execute("DELETE FROM history WHERE seq<=?", (at,))
        tree = await volume.history.have(at - 2)
        assert [d.name for d in tree.names(1)] == [b"f0", b"f1", b"f2"]


async def test_a_snapshot_outlives_the_journal_around_it(tmp_path: Path) -> None:
    """gc keeps for a snapshot what leads to it, and nothing between it and the retention."""
    store = await new_store_here()
    now = [clock.now_ns()]
    with clock.replaced(now_ns=lambda: now[0]):
        async with opened(tmp_path / "one", store) as volume:
            ino = await put_file(volume.fs, 1, b"f", b"text" * 50_000)
            await registry.run(volume, "snapshot-create", {"name": "s"}, lambda step: None)
            await volume.fs.unlink(1, b"f", ROOT)
            for n in range(10):
                now[0] += 86400 * 10**9
                await put_file(volume.fs, 1, b"g%d" % n, b"")
                await moment(volume)
                if n % 4 == 3:
                    await upkeep.write_checkpoint(volume)
            old = volume.history.snapshot("s")
            now[0] += 40 * 86400 * 10**9
            await put_file(volume.fs, 1, b"new", b"")
            at = await moment(volume)
            await upkeep.write_checkpoint(volume)
            for _ in range(3):
                done = await registry.run(volume, "gc", {}, lambda step: None)
                now[0] += 32 * 86400 * 10**9
            assert old is not None
            assert f"commits/{old + 2:016d}" not in store.objects, done
            assert f"commits/{at:016d}" in store.objects
            past = volume.fs.snapshots
            assert past is not None
            with pytest.raises(BadUsage, match="the journal begins at"):
                await volume.history.resolve("200 days ago")
        for place in ("one", "three"):
            async with opened(tmp_path / place, store) as volume:
                if place == "three":
                    volume.replica.db.execute("DELETE FROM history WHERE seq<=?", (old,))
                async with volume.history.view(await volume.history.resolve("s")) as tree:
                    assert tree.inode(ino).size == 200_000
                await registry.run(
                    volume,
                    "restore",
                    {"path": "/f", "at": "s", "to": f"/{place}"},
                    lambda step: None,
                )
                back = volume.replica.tree.walk(f"/{place}".encode())
                assert await contents(volume.fs, back) == b"text" * 50_000
                with pytest.raises(BadUsage, match="the journal begins at"):
                    await volume.history.resolve("150 days ago")
