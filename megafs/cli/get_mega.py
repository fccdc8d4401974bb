"""`megafs get` of a link to MEGA, or of a file or folder of an account."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from megafs.cli import mega_source, output
from megafs.cli.get import GetRequest
from megafs.cli.mount_mega import place_of
from megafs.concurrency import run_interruptible
from megafs.errors import BadUsage, Busy
from megafs.mega.api import ApiChannel
from megafs.mega.ciphers import Buffer
from megafs.mega.contents import FileContents
from megafs.mega.exports import (
    CopiedTree,
    copy_tree,
    file_of_link,
    name_of,
    walk,
    wanted_file,
)
from megafs.mega.links import MegaLink
from megafs.mega.opened import OpenTree, catch_up, open_tree
from megafs.mega.options import MegaOptions, read_options
from megafs.mega.places import MegaPlace, place_of_link
from megafs.mega.transfer import Copying, WantedFile
from megafs.mount.options import MountOptions

_STDOUT = "-"


def get(request: GetRequest) -> int:
    """Fetch; return the exit code."""
    if mega_source.is_account(request.link):
        place, options = place_of(request.link, request.options)
        return run_interruptible(_get_tree, request, place, options)
    options = read_options(request.options.settings.store_options)
    link = mega_source.read_link(request.link, request.options.secrets)
    if link.is_folder:
        return run_interruptible(_get_tree, request, place_of_link(link), options)
    return run_interruptible(_get_file, request, link, options)


# A file


async def _get_file(request: GetRequest, link: MegaLink, options: MegaOptions) -> int:
    async with open_contents(options, request.options) as contents:
        return await _fetch(request, contents, await file_of_link(contents, link))


@asynccontextmanager
async def open_contents(options: MegaOptions, chosen: MountOptions) -> AsyncIterator[FileContents]:
    """The way to files behind links, for whoever has no account."""
    patience = chosen.settings.deadline
    api = ApiChannel(options.api, patience=patience, say=output.note)
    contents = FileContents(api, patience=patience)
    try:
        yield contents
    finally:
        await contents.aclose()
        await api.aclose()


async def _fetch(request: GetRequest, contents: FileContents, file: WantedFile) -> int:
    if request.list_only:
        _show(request, [(file.name, file.size, file.mtime)])
        return 0
    with output.progress("get") as step:
        copying = Copying(contents, CountedBytes(step, file.size))
        if request.dest == _STDOUT:
            await copying.to_sink(file, _write_stdout)
            return 0
        path = place_for(file.name, request.dest)
        fetched = await copying.to_file(file, path)
    if request.as_json:
        output.show_json({"path": str(path), "size": file.size, "fetched": fetched})
    elif fetched:
        output.note(f"{path}: {output.size(file.size)}, verified")
    else:
        output.note(f"{path} is there already")
    return 0


# A folder


async def _get_tree(request: GetRequest, place: MegaPlace, options: MegaOptions) -> int:
    async with tree_of(place, options, request.options) as tree:
        top = tree.top(place)
        name = name_of(top)
        if top.is_file:
            return await _fetch(request, tree.contents, wanted_file(top, name))
        if request.list_only:
            rows = [("/".join(path), row) for path, row in walk(tree.table, top) if path]
            _show(request, [(p if r.is_file else f"{p}/", r.size, r.mtime) for p, r in rows])
            return 0
        if request.dest == _STDOUT:
            raise BadUsage("a folder cannot be written to standard output: give a directory")
        path = place_for(name, request.dest)
        copied = await copied_tree("get", tree, place, path)
    return tell_of_tree(copied, path, request.as_json)


@asynccontextmanager
async def tree_of(
    place: MegaPlace, options: MegaOptions, chosen: MountOptions
) -> AsyncIterator[OpenTree]:
    """The tree of *place*, as new as MEGA has it: the one that mounts keep here if it is free."""
    settings = chosen.settings
    kept = settings.cache_dir / "mega" / place.directory
    if place.owner.is_account or kept.exists():
        try:
            async with open_tree(place, options, settings, kept, output.note) as tree:
                await catch_up(tree, place)
                yield tree
                return
        except Busy:
            pass
    with tempfile.TemporaryDirectory(prefix="megafs-mega-") as directory:
        async with open_tree(place, options, settings, Path(directory), output.note) as tree:
            yield tree


async def copied_tree(
    title: str, tree: OpenTree, place: MegaPlace, path: Path, *, each_durable: bool = True
) -> CopiedTree:
    """Copy the folder that *place* means to *path*, and show how far it is."""
    top = tree.top(place)
    whole = sum(row.size for _, row in walk(tree.table, top) if row.is_file)
    with output.progress(title) as step:
        counted = CountedBytes(step, whole)
        copying = Copying(tree.contents, counted, each_durable=each_durable)
        return await copy_tree(copying, tree.table, top, path)


def tell_of_tree(copied: CopiedTree, path: Path, as_json: bool) -> int:
    """Say how it went; return the exit code: 4 if files are missing."""
    if as_json:
        output.show_json({"path": str(path), **copied._asdict()})
    else:
        there = f", {copied.skipped} of them there already" if copied.skipped else ""
        output.note(f"{path}: {copied.files} files{there}, each verified")
    if copied.unopened:
        output.warn(f"{copied.unopened} files have no key that opens them, and were left out")
        return 4
    return 0


# Both


def place_for(name: str, dest: str | None) -> Path:
    """Where a file or folder of that name goes; BadUsage if there is no such directory."""
    path = Path.cwd() if dest is None else Path(dest).absolute()
    if path.is_dir():
        return path / name
    if dest is not None and dest.endswith("/"):
        raise BadUsage(f"{dest} is no directory")
    if not path.parent.is_dir():
        raise BadUsage(f"{path.parent} is no directory")
    return path


class CountedBytes:
    """Tells how much is left."""

    def __init__(self, step: output.OnStep, whole: int) -> None:
        self._step = step
        self._left = whole
        step(whole, "")

    def __call__(self, count: int) -> None:
        self._left -= count
        self._step(max(self._left, 0), "")


def _write_stdout(plain: Buffer) -> None:
    view = memoryview(plain)
    while view:
        view = view[os.write(sys.stdout.fileno(), view) :]


def _show(request: GetRequest, files: list[tuple[str, int, int | None]]) -> None:
    if request.as_json:
        output.show_json([{"path": n, "size": s, "mtime": t} for n, s, t in files])
        return
    lines = [[output.size(s), output.moment(t) if t else "", n] for n, s, t in files]
    output.show(*output.table(["size", "modified", "name"], lines))
