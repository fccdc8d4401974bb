"""Snapshots, restore, the log of changes, undelete."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from megafs import clock
from megafs.errors import AlreadyThere, BadUsage, Full, Missing, Refused
from megafs.jobs import registry
from megafs.jobs.snapshots import check_name
from megafs.journal.batches import StrictOutcome
from megafs.stores.base import ObjectStore
from megafs.tree.inode import SetAttr
from megafs.tree.ops import Operation
from megafs.volume.volume import Volume
from tests.fs.opened import CHUNK, ROOT, SMALL, USER, contents, new_store_here, opened, put_file


async def job(volume: Volume, name: str, /, **args: Any) -> dict[str, Any]:
    return await registry.run(volume, name, args, lambda progress: None)


async def commit(volume: Volume) -> int:
    await volume.drain()
    return volume.replica.sequence


def ino(volume: Volume, path: bytes) -> int:
    return volume.replica.tree.walk(path)


def listed(volume: Volume, path: bytes) -> list[bytes]:
    tree = volume.replica.tree
    return [entry.name for entry in tree.names(tree.walk(path))]


async def write(volume: Volume, path: bytes, data: bytes, offset: int = 0) -> None:
    handle, _ = await volume.fs.open(ino(volume, path), os.O_WRONLY, ROOT)
    await volume.fs.write(handle, offset, data)
    await volume.fs.flush(handle)
    await volume.fs.release(handle)


# ---- snapshots ----------------------------------------------------------------------------------


async def test_a_snapshot_has_everything_that_was_acknowledged(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        handle, _ = await volume.fs.create(1, b"f", 0o644, os.O_WRONLY, ROOT)
        await volume.fs.write(handle, 0, b"not even closed")
        made = await job(volume, "snapshot-create", name="s")
        async with volume.history.view(made["sequence"]) as tree:
            assert tree.inode(tree.walk(b"/f")).size == 15


async def test_snapshots_are_listed_and_deleted(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        for name in ("b", "a"):
            await put_file(volume.fs, 1, name.encode(), b"")
            await job(volume, "snapshot-create", name=name)
        rows = (await job(volume, "snapshot-list"))["snapshots"]
        assert [row["name"] for row in rows] == ["b", "a"]
        assert rows[0]["sequence"] < rows[1]["sequence"]
        with pytest.raises(AlreadyThere):
            await job(volume, "snapshot-create", name="a")
        await job(volume, "snapshot-delete", name="a")
        assert [r["name"] for r in (await job(volume, "snapshot-list"))["snapshots"]] == ["b"]
        with pytest.raises(BadUsage):
            await job(volume, "snapshot-delete", name="a")


async def test_other_machines_see_a_snapshot(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path / "one", store) as one, opened(tmp_path / "two", store) as two:
        await put_file(one.fs, 1, b"f", b"")
        await one.drain()
        made = await job(two, "snapshot-create", name="s")  # two has not looked yet
        await one.writer.catch_up()
        rows = (await job(one, "snapshot-list"))["snapshots"]
        assert rows == [{k: made[k] for k in ("name", "sequence", "time")}]
        async with one.history.view(made["sequence"]) as tree:
            assert tree.child(1, b"f") is not None


@pytest.mark.parametrize(
    "name",
    ["", " a", "a/b", ".x", "@1", "-x", "2026-11-23", "17", "now", "2h ago", "a\n", "x" * 200],
)
def test_names_that_mean_something_else_are_refused(name: str) -> None:
    with pytest.raises(BadUsage, match="cannot be the name of a snapshot"):
        check_name(name)


# ---- restore ------------------------------------------------------------------------------------


async def scene(volume: Volume) -> int:
    """A directory with one of everything; the number of the commit that has it."""
    fs = volume.fs
    top = (await fs.mkdir(1, b"d", 0o750, USER)).ino
    big = await put_file(fs, top, b"big", bytes(range(256)) * (CHUNK // 64))
    await put_file(fs, top, b"small", b"tiny")
    await put_file(fs, top, b"empty", b"")
    handle, sparse = await fs.create(top, b"sparse", 0o600, os.O_WRONLY, USER)
    await fs.write(handle, 5 * CHUNK, b"end")
    await fs.flush(handle)
    await fs.release(handle)
    inner = (await fs.mkdir(top, b"inner", 0o2755, ROOT)).ino
    await fs.link(big, inner, b"big too", ROOT)
    await fs.symlink(inner, b"link", b"../small", ROOT)
    await fs.mknod(inner, b"pipe", stat.S_IFIFO | 0o600, 0, ROOT)
    await fs.setxattr(big, b"user.color", b"red", 0, ROOT)
    for number in (big, inner, top, sparse.ino):
        await fs.setattr(number, SetAttr(mtime_ns=10**18, atime_ns=10**18 + 5), ROOT)
    return await commit(volume)


async def fingerprint(volume: Volume, path: bytes) -> list[Any]:
    """Everything that a user can see of a tree, but inode numbers and ctimes."""
    tree, found = volume.replica.tree, []
    links: dict[int, bytes] = {}
    waiting = [(b"", tree.walk(path))]
    while waiting:
        name, number = waiting.pop()
        inode = tree.inode(number)
        same = links.setdefault(number, name)
        found.append(
            (
                name,
                same,
                inode.mode,
                inode.nlink,
                inode.uid,
                inode.gid,
                inode.size,
                inode.blocks,
                inode.mtime_ns,
                inode.atime_ns,
                tree.xattrs(number),
                tree.target(number) if inode.is_symlink else None,
                await contents(volume.fs, number) if inode.is_file else None,
            )
        )
        if inode.is_dir:
            waiting.extend((name + b"/" + d.name, d.ino) for d in tree.names(number))
    return sorted(found)


async def remove(volume: Volume, path: bytes) -> None:
    tree = volume.replica.tree
    above, _, name = path.rpartition(b"/")
    if tree.inode(tree.walk(path)).is_dir:
        for entry in list(tree.names(tree.walk(path))):
            await remove(volume, path + b"/" + entry.name)
        await volume.fs.rmdir(tree.walk(above), name, ROOT)
    else:
        await volume.fs.unlink(tree.walk(above), name, ROOT)


async def test_a_directory_comes_back_as_it_was(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        at = await scene(volume)
        was = await fingerprint(volume, b"/d")
        used, files = volume.replica.tree.used, volume.replica.tree.files
        await remove(volume, b"/d")
        await commit(volume)
        done = await job(volume, "restore", path="/d", at=str(at))
        assert await fingerprint(volume, b"/d") == was
        assert (volume.replica.tree.used, volume.replica.tree.files) == (used, files)
        assert (done["files"], done["directories"]) == (6, 2)
        assert volume.progress().done


async def test_no_data_is_sent_again(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path, store) as volume:
        await put_file(volume.fs, 1, b"f", os.urandom(20 * CHUNK))
        at = await commit(volume)
        packs = {name for name in store.objects if name.startswith("packs/")}
        await job(volume, "restore", path="/f", at=str(at), to="/copy")
        assert {name for name in store.objects if name.startswith("packs/")} == packs


async def test_what_is_there_is_replaced_only_when_asked_for(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        at = await scene(volume)
        was = await fingerprint(volume, b"/d")
        await write(volume, b"/d/small", b"changed")
        await remove(volume, b"/d/inner")
        await put_file(volume.fs, ino(volume, b"/d"), b"new", b"")
        with pytest.raises(AlreadyThere, match="--replace"):
            await job(volume, "restore", path="/d", at=str(at))
        await job(volume, "restore", path="/d/small", at=str(at), replace=True)
        assert await contents(volume.fs, ino(volume, b"/d/small")) == b"tiny"
        before = await commit(volume)
        await job(volume, "restore", path="/d", at=str(at), replace=True)
        assert await fingerprint(volume, b"/d") == was
        assert listed(volume, b"/") == [b"d"]
        # What was replaced stays in the history.
        await job(volume, "restore", path="/d/new", at=str(before), to="/new")


async def test_a_restored_file_goes_its_own_way(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        at = await scene(volume)
        await job(volume, "restore", path="/d/big", at=str(at), to="/copy")
        await write(volume, b"/copy", b"XXXX", 3)
        assert (await contents(volume.fs, ino(volume, b"/d/big")))[3:7] == bytes(range(3, 7))


async def test_the_past_by_time_snapshot_and_through_machines(tmp_path: Path) -> None:
    store = await new_store_here()
    now = [clock.now_ns() + 3600 * 10**9]
    with clock.replaced(now_ns=lambda: now[0]):
        async with opened(tmp_path / "one", store) as one:
            await put_file(one.fs, 1, b"f", b"first")
            await job(one, "snapshot-create", name="s")
            now[0] += 7200 * 10**9
            await write(one, b"/f", b"other")
            await one.drain()
        async with opened(tmp_path / "two", store) as two:
            for at, to in (("s", "/by-name"), ("1h ago", "/by-time")):
                await job(two, "restore", path="/f", at=at, to=to)
                assert await contents(two.fs, ino(two, to.encode())) == b"first"


async def test_what_cannot_be_restored_says_why(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path, store) as volume:
        at = await scene(volume)
        for args, error, text in (
            ({"path": "/nothing"}, BadUsage, "did not exist"),
            ({"path": "/"}, BadUsage, "--to"),
            ({"path": "/d", "to": "/no/such"}, BadUsage, "/no does not exist"),
            ({"path": "/d", "to": "/d/small/x"}, BadUsage, "not a directory"),
            ({"path": "/d/../d"}, BadUsage, r"without \.\."),
        ):
            with pytest.raises(error, match=text):
                await job(volume, "restore", at=str(at), **args)
        await remove(volume, b"/d")
        packs: list[tuple[int]]
        packs = volume.replica.tree.db.execute("SELECT pack FROM packs").fetchall()  # type: ignore[assignment]
        for (pack,) in packs:
            volume.replica.tree.drop_pack(pack)  # as gc does after the retention
        with pytest.raises(Missing, match="removed from the store since"):
            await job(volume, "restore", path="/d", at=str(at))
        assert listed(volume, b"/") == []


async def test_a_quota_holds_for_restores(tmp_path: Path) -> None:
    from msgspec.structs import replace

    params = replace(SMALL, quota=6 * CHUNK)
    async with opened(tmp_path, None, params) as volume:
        await put_file(volume.fs, 1, b"f", bytes(4 * CHUNK))
        at = await commit(volume)
        with pytest.raises(Full, match="quota"):
            await job(volume, "restore", path="/f", at=str(at), to="/g")


async def test_a_restore_that_fails_leaves_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        at = await scene(volume)
        await remove(volume, b"/d")
        record, calls = volume.replica.record, 0

        def failing(op: Operation, outcome: StrictOutcome | None = None) -> None:
            nonlocal calls
            calls += 1
            if calls == 9:
                raise Refused(5)
            record(op, outcome)

        volume.replica.record = failing  # type: ignore[method-assign]
        with pytest.raises(Refused):
            await job(volume, "restore", path="/d", at=str(at))
        assert listed(volume, b"/") == []


# ---- log ----------------------------------------------------------------------------------------


async def told(volume: Volume, path: str, **args: Any) -> list[tuple[str, str]]:
    events = (await job(volume, "log", path=path, **args))["events"]
    return [(event["what"], event["path"]) for event in events]


async def test_the_log_of_a_file_follows_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        fs = volume.fs
        d = (await fs.mkdir(1, b"d", 0o755, ROOT)).ino
        await put_file(fs, d, b"a", b"12345")
        await commit(volume)
        await write(volume, b"/d/a", b"123456789")
        await commit(volume)
        await fs.setattr(ino(volume, b"/d/a"), SetAttr(mode=0o600, uid=7), ROOT)
        await commit(volume)
        await fs.rename(d, b"a", 1, b"b", 0, ROOT)
        await commit(volume)
        await fs.setxattr(ino(volume, b"/b"), b"user.x", b"1", 0, ROOT)
        await commit(volume)
        await fs.link(ino(volume, b"/b"), d, b"c", ROOT)
        await commit(volume)
        await fs.unlink(1, b"b", ROOT)
        await commit(volume)
        await put_file(fs, 1, b"other", b"")
        events = (await job(volume, "log", path="/d/c"))["events"]
        assert [(x["what"], x["path"]) for x in events] == [
            ("unlinked", "/b"),
            ("linked", "/d/c"),
            ("xattr", "/b"),
            ("renamed", "/b"),
            ("attributes", "/d/a"),
            ("contents", "/d/a"),
            ("created", "/d/a"),
        ]
        assert events[3]["was"] == "/d/a"
        assert events[4]["text"] == "mode 644 to 600, owner 0 to 7"
        assert (events[5]["old_size"], events[5]["size"]) == (5, 9)
        assert events[6]["size"] == 5
        assert all(event["host"] == "here" for event in events)
        assert await told(volume, "/d/c", limit=2) == [("unlinked", "/b"), ("linked", "/d/c")]
        assert (await job(volume, "log", path="/d/c", limit=2))["more"]
        since = str(events[3]["sequence"])
        assert len(await told(volume, "/d/c", since=since)) == 4


async def test_the_log_of_a_file_that_editors_replace(tmp_path: Path) -> None:
    """Saved as `f.new` and renamed over `f`: what `f` was before belongs to its log."""
    async with opened(tmp_path) as volume:
        await put_file(volume.fs, 1, b"f", b"one")
        await commit(volume)
        await put_file(volume.fs, 1, b"f.new", b"second")
        await commit(volume)
        await volume.fs.rename(1, b"f.new", 1, b"f", 0, ROOT)
        await commit(volume)
        assert await told(volume, "/f") == [
            ("renamed", "/f"),
            ("removed", "/f"),
            ("created", "/f.new"),
            ("created", "/f"),
        ]


async def test_the_log_of_what_is_gone(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        d = (await volume.fs.mkdir(1, b"d", 0o755, ROOT)).ino
        await put_file(volume.fs, d, b"f", b"1")
        await commit(volume)
        await remove(volume, b"/d")
        await commit(volume)
        assert await told(volume, "/d/f") == [("removed", "/d/f"), ("created", "/d/f")]
        with pytest.raises(BadUsage, match="no such file"):
            await told(volume, "/never")


async def test_the_log_below_a_directory(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        fs = volume.fs
        d = (await fs.mkdir(1, b"d", 0o755, ROOT)).ino
        e = (await fs.mkdir(1, b"e", 0o755, ROOT)).ino
        await commit(volume)
        await put_file(fs, d, b"in", b"")
        await put_file(fs, e, b"out", b"")
        await commit(volume)
        await fs.rename(e, b"out", d, b"moved in", 0, ROOT)
        await commit(volume)
        await fs.rename(1, b"d", 1, b"D", 0, ROOT)
        await commit(volume)
        assert await told(volume, "/D", recursive=True) == [
            ("renamed", "/D"),
            ("renamed", "/d/moved in"),
            ("created", "/d/in"),
            ("created", "/d"),
        ]
        assert await told(volume, "/", recursive=True) == [
            ("renamed", "/D"),
            ("renamed", "/d/moved in"),
            ("created", "/d/in"),
            ("created", "/e/out"),
            ("created", "/d"),
            ("created", "/e"),
            ("created", "/"),
        ]


async def test_the_commits_of_a_volume(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path / "one", store, host="one") as volume:
        await put_file(volume.fs, 1, b"f", b"")
        await commit(volume)
    async with opened(tmp_path / "two", store, host="two") as volume:
        await put_file(volume.fs, 1, b"g", b"")
        await commit(volume)
        commits = (await job(volume, "log", path="/"))["commits"]
        assert commits[0]["host"] == "two"
        assert commits[0]["this"]
        assert "one" in [c["host"] for c in commits]
        assert [c["sequence"] for c in commits] == list(range(volume.replica.sequence, 0, -1))
        assert len((await job(volume, "log", path="/", limit=1))["commits"]) == 1


async def test_a_journal_whose_beginning_is_gone_says_so(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path, store) as volume:
        for n in range(4):
            await put_file(volume.fs, 1, b"f%d" % n, b"")
            await commit(volume)
        await forget(store, "commits/0000000000000002")
        done = await job(volume, "log", path="/f3")
        assert [event["what"] for event in done["events"]] == ["created"]
        assert done["cut_short"]


async def forget(store: ObjectStore, name: str) -> None:
    await store.delete(name)


# ---- undelete -----------------------------------------------------------------------------------


async def test_removed_files_are_listed(tmp_path: Path) -> None:
    now = [clock.now_ns() + 3600 * 10**9]
    with clock.replaced(now_ns=lambda: now[0]):
        async with opened(tmp_path) as volume:
            fs = volume.fs
            d = (await fs.mkdir(1, b"d", 0o755, ROOT)).ino
            for name in (b"one", b"two", b"three"):
                await put_file(fs, d, name, name)
            await put_file(fs, 1, b"kept", b"")
            await commit(volume)
            await fs.unlink(d, b"one", ROOT)
            await commit(volume)
            now[0] += 3600 * 10**9
            await fs.unlink(d, b"two", ROOT)
            await commit(volume)
            now[0] += 10 * 10**9
            await remove(volume, b"/d")
            await commit(volume)
            rows = (await job(volume, "undelete", path="/"))["removed"]
            assert [(r["path"], r["directory"], r["size"], r["files"]) for r in rows] == [
                ("/d", True, 8, 2),
                ("/d/one", False, 3, 0),
            ]
            everything = (await job(volume, "undelete", path="/", all=True))["removed"]
            assert {(r["path"], r["with"]) for r in everything} == {
                ("/d", None),
                ("/d/three", "/d"),
                ("/d/two", "/d"),
                ("/d/one", None),
            }
            assert not any(r["exists"] for r in everything)


async def test_a_removed_file_comes_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        await put_file(volume.fs, 1, b"f", b"first life")
        await commit(volume)
        await volume.fs.unlink(1, b"f", ROOT)
        await commit(volume)
        await put_file(volume.fs, 1, b"f", b"second life")
        await commit(volume)
        await volume.fs.unlink(1, b"f", ROOT)
        await job(volume, "undelete", path="/f")
        assert await contents(volume.fs, ino(volume, b"/f")) == b"second life"
        with pytest.raises(AlreadyThere):
            await job(volume, "undelete", path="/f")
        await job(volume, "undelete", path="/f", to="/g")
        with pytest.raises(BadUsage, match="nothing named /never was removed"):
            await job(volume, "undelete", path="/never")


async def test_a_removed_directory_comes_back_with_what_went_with_it(tmp_path: Path) -> None:
    now = [clock.now_ns() + 3600 * 10**9]
    with clock.replaced(now_ns=lambda: now[0]):
        async with opened(tmp_path) as volume:
            await scene(volume)
            await put_file(volume.fs, ino(volume, b"/d"), b"unwanted", b"")
            await commit(volume)
            await remove(volume, b"/d/unwanted")
            was = await fingerprint(volume, b"/d")
            await commit(volume)
            now[0] += 3600 * 10**9
            for entry in (b"inner", b"big", b"small", b"empty", b"sparse"):  # rm -r over a while
                await remove(volume, b"/d/" + entry)
                await commit(volume)
                now[0] += 20 * 10**9
            await volume.fs.rmdir(1, b"d", ROOT)
            await job(volume, "undelete", path="/d")
            assert await fingerprint(volume, b"/d") == was


async def test_what_was_removed_before_the_last_change_is_another_matter(tmp_path: Path) -> None:
    """rm d/old; edit d/kept; rm -r d, all within a minute: `kept` must come back as edited."""
    async with opened(tmp_path) as volume:
        d = (await volume.fs.mkdir(1, b"d", 0o755, ROOT)).ino
        for name in (b"old", b"kept"):
            await put_file(volume.fs, d, name, b"first")
        await commit(volume)
        await remove(volume, b"/d/old")
        await commit(volume)
        await write(volume, b"/d/kept", b"edited")
        await commit(volume)
        await remove(volume, b"/d/kept")
        await commit(volume)
        await remove(volume, b"/d")
        await commit(volume)
        rows = (await job(volume, "undelete", path="/"))["removed"]
        assert [(r["path"], r["files"]) for r in rows] == [("/d", 1), ("/d/old", 0)]
        await job(volume, "undelete", path="/d")
        assert listed(volume, b"/d") == [b"kept"]
        assert await contents(volume.fs, ino(volume, b"/d/kept")) == b"edited"


async def test_a_file_comes_back_with_the_directories_above_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        await scene(volume)
        await remove(volume, b"/d")
        await commit(volume)
        await job(volume, "undelete", path="/d/inner/link")
        assert listed(volume, b"/d") == [b"inner"]
        assert volume.replica.tree.inode(ino(volume, b"/d")).uid == USER.uid
        assert volume.replica.tree.target(ino(volume, b"/d/inner/link")) == b"../small"


async def test_a_file_that_was_open_when_it_was_removed(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        await put_file(volume.fs, 1, b"f", b"x" * 100)
        handle, _ = await volume.fs.open(ino(volume, b"/f"), os.O_RDONLY, ROOT)
        await commit(volume)
        await volume.fs.unlink(1, b"f", ROOT)
        await commit(volume)
        rows = (await job(volume, "undelete", path="/"))["removed"]
        assert [(r["path"], r["size"]) for r in rows] == [("/f", 100)]
        await volume.fs.release(handle)
        await commit(volume)
        rows = (await job(volume, "undelete", path="/"))["removed"]
        assert [(r["path"], r["size"]) for r in rows] == [("/f", 100)]
        await job(volume, "undelete", path="/f")
        assert await contents(volume.fs, ino(volume, b"/f")) == b"x" * 100
