"""An account's or link's files, opened: API, tree, contents, cache and filesystem, wired."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from megafs import clock
from megafs.concurrency import Background, offload
from megafs.config import Settings
from megafs.errors import Busy, MegafsError, Missing
from megafs.mega.api import ApiChannel
from megafs.mega.contents import FileContents
from megafs.mega.exports import find_path
from megafs.mega.feed import MegaFeed
from megafs.mega.node_keys import NodeKeys, is_handle
from megafs.mega.node_table import INBOUND, NodeRow, NodeTable, ino_of
from megafs.mega.options import MegaOptions
from megafs.mega.places import MegaPlace
from megafs.mega.reader import RangeReader
from megafs.mega.sealed_ranges import SealedRanges
from megafs.mega.session import kept_session
from megafs.mega.tree import apply_packets, load_tree
from megafs.mega.view import MegaFileSystem
from megafs.metrics import Registry
from megafs.private_files import check_directory, make_directories, open_private
from megafs.stores.disk_cache.cached_store import DiskCached
from megafs.supervisor import keep_running

log = logging.getLogger(__name__)

#: Seconds between two questions how much room the account has.
_QUOTA_EVERY: Final = 3600.0
#: Rounds of the feed that bring a tree up to date before it is copied from.
_CATCH_UP: Final = 100


class OpenTree:
    """A tree that is at hand, and the way to the bytes of its files."""

    def __init__(
        self, api: ApiChannel, contents: FileContents, table: NodeTable, keys: NodeKeys
    ) -> None:
        self.api = api
        self.contents = contents
        self.table = table
        self.keys = keys

    def top(self, place: MegaPlace) -> NodeRow:
        """The node that *place* means; Missing if there is none."""
        known: dict[str, Any] = {
            "files": self.table.get("root"),
            "incoming": INBOUND,
            "rubbish": self.table.get("bin"),
        }
        row = self.table.find(int(known[place.part] or 0))
        if row is not None and place.inside:
            row = self.table.find(ino_of(place.inside)) if is_handle(place.inside) else None
        if row is None:
            raise Missing(f"MEGA has nothing at {place.shown}")
        return find_path(self.table, row, place.path)


@asynccontextmanager
async def open_tree(
    place: MegaPlace,
    options: MegaOptions,
    settings: Settings,
    directory: Path,
    say: Callable[[str], None] = log.info,
) -> AsyncIterator[OpenTree]:
    """Open the tree that is kept in *directory*, or load it, for the block.

    say: called with what the user should know while it takes long.  Busy if another process has it.
    """
    make_directories(directory)
    check_directory(directory, instead="choose another with --cache-dir")
    lock = open_private(directory / "lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(
                f"{place.shown} is in use by another megafs on this machine: read its mount, or"
                " choose another --cache-dir"
            ) from None
        table = await offload(NodeTable, directory, place.subkey("tree"), kind="disk")
        api = ApiChannel(options.api, place.query, patience=settings.deadline, say=say)
        contents = FileContents(api, patience=settings.deadline)
        try:
            if table.is_new:
                keys = await load_tree(api, table, place.owner, _counting(say))
            else:
                keys = table.kept_keys(place.owner.keys())
            yield OpenTree(api, contents, table, keys)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await contents.aclose()
                await api.aclose()
            table.close()
    finally:
        os.close(lock)


def _counting(say: Callable[[str], None]) -> Callable[[int], None]:
    """Say how many nodes have come, seldom."""
    last = clock.stopwatch()

    def show(count: int) -> None:
        nonlocal last
        if clock.stopwatch() - last >= 5:
            last = clock.stopwatch()
            say(f"loading the tree: {count} nodes so far")

    return show


async def catch_up(tree: OpenTree, place: MegaPlace) -> None:
    """Bring a tree that was kept up to date with MEGA; before it is copied from."""
    for _ in range(_CATCH_UP):
        answer = await tree.api.feed(str(tree.table.get("sn")))
        if "w" in answer:
            return
        if apply_packets(tree.table, tree.keys, answer).stale:
            tree.keys = await load_tree(tree.api, tree.table, place.owner)


class OpenMega:
    """What a mount of MEGA's files is made of.

    background: runs (`run`) as long as the mount does.
    """

    def __init__(
        self,
        place: MegaPlace,
        tree: OpenTree,
        settings: Settings,
        directory: Path,
        metrics: Registry,
        renew: Callable[[], Any],
    ) -> None:
        self.place = place
        self.settings = settings
        self.metrics = metrics
        self.tree = tree
        self.background = Background()
        self._sealed = SealedRanges(tree.contents, place.subkey("ranges"), place.shown)
        self.cache = DiskCached(
            self._sealed,
            directory / "ranges",
            settings.cache_size,
            settings.cache_min_free,
            metrics=metrics,
        )
        self.reader = RangeReader(self._sealed, self.cache, settings.memory_cache, self.background)
        self.fs = MegaFileSystem(
            tree.table, tree.top(place).ino, self.reader, readahead=settings.readahead
        )
        self.feed = MegaFeed(tree.api, tree.table, place.owner, tree.keys, self.fs, renew)
        self.errors: list[tuple[float, str]] = []
        self.started = clock.now()

    async def run(self) -> None:
        """Follow the feed and the account's room, until cancelled."""
        async with self.background.running() as nursery:
            nursery.start_soon(keep_running, "following MEGA's feed", self.feed.run)
            if self.place.owner.is_account:
                nursery.start_soon(keep_running, "asking for the room", self._follow_quota)
            await trio.sleep_forever()

    async def _follow_quota(self) -> None:
        while True:
            try:
                answer = await self.tree.api.call({"a": "uq", "strg": 1, "xfer": 1})
                if isinstance(answer, dict):
                    room, used = answer.get("mstrg"), answer.get("cstrg")
                    if isinstance(room, int) and isinstance(used, int):
                        self.fs.quota = (room, used)
            except MegafsError as exc:
                log.debug("the room of the account: %s", exc)
            self._sealed.forget_files(self.fs.names_in_use())
            await self.tree.contents.trim()
            await trio.sleep(_QUOTA_EVERY)

    def note_error(self, text: str) -> None:
        """A fault that `status` shows."""
        self.errors.append((clock.now(), text))
        del self.errors[:-20]

    async def clear_cache(self) -> None:
        self.reader.forget()
        await self.cache.clear()

    async def aclose(self) -> None:
        await self.cache.aclose()


@asynccontextmanager
async def open_mega(
    place: MegaPlace,
    options: MegaOptions,
    settings: Settings,
    say: Callable[[str], None] = log.info,
) -> AsyncIterator[OpenMega]:
    """Open *place* to be mounted, for the block.

    Raises what MEGA says if nothing of it is kept here; else it needs no network.
    """
    directory = settings.cache_dir / "mega" / place.directory
    sid = place.query.get("sid")

    async def renew() -> Mapping[str, str] | None:
        nonlocal sid
        if place.account is None:
            return None
        try:
            account = {"account": place.account} if place.account else {}
            now = await offload(kept_session, account, kind="disk")
        except MegafsError:
            return None
        if now.sid == sid or now.user != place.owner.user:
            return None
        sid = now.sid
        return {"sid": sid}

    metrics = Registry()
    async with open_tree(place, options, settings, directory, say) as tree:
        opened = OpenMega(place, tree, settings, directory, metrics, renew)
        try:
            yield opened
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
                await opened.aclose()
