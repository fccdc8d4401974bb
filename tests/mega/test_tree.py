"""The tree: streamed, opened with every kind of key, kept sealed, followed through the feed."""

from __future__ import annotations

import json
import os
import threading
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from megafs.errors import Refused, Unavailable
from megafs.mega.api import ApiChannel
from megafs.mega.contents import FileContents, FileRef
from megafs.mega.errors import KeyRefused, SessionExpired, TreeStale
from megafs.mega.exports import walk
from megafs.mega.feed import MegaFeed
from megafs.mega.node_keys import NodeKeys
from megafs.mega.node_stream import ReplyScanner
from megafs.mega.node_table import INBOUND, Moved, NodeRow, NodeTable
from megafs.mega.tree import TreeOwner, apply_packets, load_tree
from megafs.mega.view import MegaFileSystem
from megafs.tree.inode import ROOT
from tests.services.mega.server import MegaServer, Owner
from tests.services.mega.state import Account, Node

# The answer in pieces


@given(
    nodes=st.lists(st.dictionaries(st.sampled_from("hpta"), st.text(max_size=5)), max_size=5),
    cuts=st.lists(st.integers(0, 400), max_size=10),
    wrapped=st.booleans(),
)
def test_the_answer_is_read_however_it_is_cut(
    nodes: list[dict[str, str]], cuts: list[int], wrapped: bool
) -> None:
    answer: Any = {"f": nodes, "ok": [{"h": "x"}], "n": 5, "sn": "]}\u20ac", "deep": {"a": [1]}}
    text = json.dumps([answer] if wrapped else answer, ensure_ascii=False).encode()
    scanner = ReplyScanner()
    items = []
    at = 0
    for cut in [*sorted(cuts), len(text)]:
        items += scanner.feed(text[at:cut])
        at = max(at, cut)
    scanner.close()
    assert [i.value for i in items if i.key == "f"] == nodes
    rest = {i.key: i.value for i in items if i.key != "f"}
    assert rest == {"ok": {"h": "x"}, "n": 5, "sn": "]}\u20ac", "deep": {"a": [1]}}


@pytest.mark.parametrize("text", ["", "[", "[{", '[{"f":[', '[{"f":[{}],"sn"', "<html>", "[1]"])
def test_an_answer_that_is_cut_short_is_said(text: str) -> None:
    scanner = ReplyScanner()
    with pytest.raises(Unavailable):
        scanner.feed(text.encode())
        scanner.close()


@pytest.mark.parametrize("text", ["-15", "[-15]", " [ -15 ] "])
def test_a_number_in_its_place_is_an_error(text: str) -> None:
    scanner = ReplyScanner()
    assert scanner.feed(text.encode()) == []
    with pytest.raises(SessionExpired):
        scanner.close()


def test_the_memory_it_takes_does_not_grow(tmp_path: Path) -> None:
    """Of the answer for 100,000 nodes, 20 MB, less than a tenth is ever held."""
    scanner = ReplyScanner()
    node = json.dumps({"h": "AAAAAAAA", "p": "AAAAAAAB", "a": "x" * 120, "k": "y" * 60}) + ","
    tracemalloc.start()
    scanner.feed(b'[{"f":[')
    count = 0
    for _ in range(1000):
        count += len(scanner.feed(node.encode() * 100))
    scanner.feed(b'{}],"sn":"x"}]')
    scanner.close()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 100_000 and peak < 2 << 20


# Loading


@pytest.fixture
def table(tmp_path: Path) -> NodeTable:
    return NodeTable(tmp_path, os.urandom(32))


@pytest.fixture
async def api(mega: MegaServer, owner: Owner) -> AsyncIterator[ApiChannel]:
    channel = ApiChannel(mega.url, {"sid": owner.session()}, patience=30)
    yield channel
    await channel.aclose()


def owner_of(owner: Owner) -> TreeOwner:
    return TreeOwner(owner.account.master, owner.account.handle)


def names(table: NodeTable, top: NodeRow | None = None) -> dict[str, int]:
    """Size by path; folders end in a slash."""
    top = top or table.find(table.get("root"))
    assert top is not None
    return {
        "/".join(path) + ("" if row.is_file else "/"): row.size
        for path, row in walk(table, top)
        if path
    }


async def test_names_sizes_and_times(api: ApiChannel, owner: Owner, table: NodeTable) -> None:
    owner.put("/a/b/c.txt", b"abc", mtime=1_600_000_000)
    owner.put("/d", b"")
    await load_tree(api, table, owner_of(owner))
    assert names(table) == {"a/": 0, "a/b/": 0, "a/b/c.txt": 3, "d": 0}
    row = next(row for path, row in walk(table, _top(table)) if path == ("a", "b", "c.txt"))
    assert row.mtime == 1_600_000_000
    assert table.totals()[1] == 3 and table.keyless() == 0


def _top(table: NodeTable) -> NodeRow:
    top = table.find(table.get("root"))
    assert top is not None
    return top


async def test_versions_are_left_out(
    mega: MegaServer, api: ApiChannel, owner: Owner, table: NodeTable
) -> None:
    old = owner.put("/a.txt", b"old")
    new = owner.put("/a.txt", b"newer")
    owner.move(old, new)
    await load_tree(api, table, owner_of(owner))
    assert names(table) == {"a.txt": 5}


async def test_a_name_that_two_have(api: ApiChannel, owner: Owner, table: NodeTable) -> None:
    owner.put("/a.txt", b"1", mtime=1)
    old = owner.put("/a.txt", b"22", mtime=2)
    owner.put("/a.txt", b"333", mtime=3)
    await load_tree(api, table, owner_of(owner))
    shown = names(table)
    assert shown["a.txt"] == 3 and shown[f"a (mega {old.handle}).txt"] == 2 and len(shown) == 3


async def test_the_tree_of_a_link(mega: MegaServer, owner: Owner, table: NodeTable) -> None:
    owner.put("/a/b/c.txt", b"abc")
    owner.put("/other", b"x")
    public, key = owner.link_parts(owner.folder("/a"))
    api = ApiChannel(mega.url, {"n": public})
    try:
        await load_tree(api, table, TreeOwner(key))
        assert names(table) == {"b/": 0, "b/c.txt": 3}
        with pytest.raises(KeyRefused):
            await load_tree(api, table, TreeOwner(os.urandom(16)))
        assert names(table) == {"b/": 0, "b/c.txt": 3}  # as it was
    finally:
        await api.aclose()


async def test_a_folder_that_lies_within_itself(
    mega: MegaServer, owner: Owner, table: NodeTable
) -> None:
    owner.put("/a/b/c.txt", b"abc")
    public, key = owner.link_parts(owner.folder("/a"))
    honest = mega.state.shown
    top, inner = owner.folder("/a"), owner.folder("/a/b")

    def lying(node: Node, share: str = "", viewer: Account | None = None) -> dict[str, Any]:
        shown = honest(node, share, viewer)
        return shown | {"p": inner.handle} if node is top else shown

    mega.state.shown = lying  # type: ignore[method-assign]
    api = ApiChannel(mega.url, {"n": public})
    try:
        await load_tree(api, table, TreeOwner(key))
    finally:
        await api.aclose()
    assert names(table) == {"b/": 0, "b/c.txt": 3}
    fs = MegaFileSystem(table, table.get("root"), None, readahead=0)  # type: ignore[arg-type]
    below = fs.lookup(ROOT, b"b").ino
    assert [name for name, _, _ in fs.readdir(fs.opendir(below), 0, 100)] == [b"c.txt"]
    with pytest.raises(Refused):
        fs.lookup(below, b"a")
    assert table.remove(inner.handle)  # ends


async def test_folders_that_others_share(
    mega: MegaServer, api: ApiChannel, owner: Owner, table: NodeTable
) -> None:
    other = mega.add_account("other@example.org", "x")
    other.put("/Pictures/cat.jpg", b"cat!")
    other.share_with(other.folder("/Pictures"), owner)
    keys = await load_tree(api, table, owner_of(owner))
    assert names(table) == {}
    assert names(table, table.find(INBOUND)) == {"Pictures/": 0, "Pictures/cat.jpg": 4}
    assert table.keyless() == 0
    # The keys are kept for the feed of a later mount.
    again = table.kept_keys(NodeKeys())
    assert again.shares == keys.shares and again.shares


async def test_a_node_that_no_key_opens(api: ApiChannel, owner: Owner, table: NodeTable) -> None:
    node = owner.put("/a.txt", b"abc")
    node.key = "AAAA"
    await load_tree(api, table, owner_of(owner))
    assert names(table) == {f"no key (mega {node.handle})": 3}
    assert table.keyless() == 1


async def test_a_body_cut_short_is_asked_for_again(
    mega: MegaServer, api: ApiChannel, owner: Owner, table: NodeTable
) -> None:
    owner.put("/a.txt", b"abc")
    mega.refuse("f", -3)
    mega.lose_reply("f")
    await load_tree(api, table, owner_of(owner))
    assert names(table) == {"a.txt": 3}
    assert mega.commands == ["f"] * 3


async def test_files_can_be_asked_for_while_a_tree_is_loaded(
    mega: MegaServer, api: ApiChannel, owner: Owner, table: NodeTable
) -> None:
    file = owner.put("/a.txt", b"abc")
    gate = mega.gates["f"] = threading.Event()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load_tree, api, table, owner_of(owner))
            with trio.fail_after(20):
                while "f" not in mega.commands:
                    await trio.sleep(0.01)
                found = await FileContents(api).find(FileRef(file.handle))
            assert found.size == 3 and table.is_new
            gate.set()
    finally:
        gate.set()
    assert names(table) == {"a.txt": 3}


def test_a_share_key_that_the_server_made_up_is_not_taken(owner: Owner) -> None:
    folder = owner.folder("/a")
    owner.link_parts(folder)
    proof, wrapped = owner.account.share_keys[folder.handle]
    master = owner.account.master
    for entry, wanted in (
        ({"h": folder.handle, "ha": proof, "k": wrapped}, True),
        ({"h": folder.handle, "ha": proof[::-1], "k": wrapped}, False),
        ({"h": "AAAAAAAB", "ha": proof, "k": wrapped}, False),
        ({"h": folder.handle, "k": wrapped}, False),
        ({"h": folder.handle, "ha": proof, "k": "AAAA"}, False),
        ("x", False),
    ):
        keys = NodeKeys()
        keys.add_own_share(master, entry)
        assert bool(keys.shares) is wanted, entry


# The feed


async def test_every_kind_of_news(api: ApiChannel, owner: Owner, table: NodeTable) -> None:
    folder = owner.folder("/a")
    doomed = owner.put("/a/doomed", b"1")
    keys = await load_tree(api, table, owner_of(owner))

    async def news() -> list[Moved]:
        answer = await api.feed(str(table.get("sn")))
        return apply_packets(table, keys, answer).moved

    added = owner.put("/a/new", b"22")
    await news()
    assert names(table) == {"a/": 0, "a/doomed": 1, "a/new": 2}
    owner.rename(added, "renamed", mtime=77)
    moved = await news()
    assert {one.shown for one in moved} == {b"new", b"renamed"}
    assert names(table) == {"a/": 0, "a/doomed": 1, "a/renamed": 2}
    owner.move(added, owner.state.root(owner.account))
    owner.delete(doomed)
    await news()
    assert names(table) == {"a/": 0, "renamed": 2}
    owner.delete(folder)
    await news()
    assert names(table) == {"renamed": 2}
    assert "w" in await api.feed(str(table.get("sn")))


async def test_a_new_version_takes_the_old_ones_place(
    api: ApiChannel, owner: Owner, table: NodeTable
) -> None:
    old = owner.put("/a.txt", b"old")
    keys = await load_tree(api, table, owner_of(owner))
    new = owner.put("/a.txt", b"newer")
    owner.move(old, new)
    apply_packets(table, keys, await api.feed(str(table.get("sn"))))
    assert names(table) == {"a.txt": 5}


async def test_a_feed_that_no_longer_reaches_back(
    mega: MegaServer, api: ApiChannel, owner: Owner, table: NodeTable
) -> None:
    await load_tree(api, table, owner_of(owner))
    mega.forget_packets()
    with pytest.raises(TreeStale):
        await api.feed(str(table.get("sn")))


class Listener:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.woken = trio.Event()

    def changed(self, moved: list[Moved]) -> None:
        self.events += sorted({one.shown.decode() for one in moved})
        self._wake()

    def changed_wholly(self) -> None:
        self.events.append("all")
        self._wake()

    def _wake(self) -> None:
        self.woken.set()
        self.woken = trio.Event()

    async def until(self, event: str) -> None:
        with trio.fail_after(20):
            while event not in self.events:
                await self.woken.wait()


async def test_the_feed_is_followed_and_outlives_its_troubles(
    mega: MegaServer, api: ApiChannel, owner: Owner, table: NodeTable
) -> None:
    keys = await load_tree(api, table, owner_of(owner))
    listener = Listener()
    renewed: list[str] = []

    async def renew() -> dict[str, str] | None:
        await trio.lowlevel.checkpoint()
        return {"sid": renewed[0]} if renewed else None

    feed = MegaFeed(api, table, owner_of(owner), keys, listener, renew)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run)
        owner.put("/one", b"1")
        await listener.until("one")
        mega.forget_packets()
        owner.put("/two", b"2")
        await listener.until("all")
        assert names(table) == {"one": 1, "two": 1}
        renewed.append(owner.session())
        for sid in [sid for sid in mega.state.sessions if sid != renewed[0]]:
            del mega.state.sessions[sid]
        owner.put("/three", b"3")
        await listener.until("three")
        nursery.cancel_scope.cancel()
    assert mega.logins == 0
