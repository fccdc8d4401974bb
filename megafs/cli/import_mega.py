"""`megafs import` from MEGA."""

from __future__ import annotations

import os
from pathlib import Path

from megafs.cli import mega_source, output
from megafs.cli.get_mega import (
    CountedBytes,
    copied_tree,
    open_contents,
    place_for,
    tell_of_tree,
    tree_of,
)
from megafs.cli.mount_mega import place_of
from megafs.concurrency import offload, run_interruptible
from megafs.mega.contents import FileContents
from megafs.mega.exports import file_of_link, name_of, wanted_file
from megafs.mega.links import MegaLink
from megafs.mega.options import MegaOptions, read_options
from megafs.mega.places import MegaPlace, place_of_link
from megafs.mega.transfer import Copying, WantedFile
from megafs.mount.options import MountOptions


def import_from_mega(source: str, dest: str, options: MountOptions, *, as_json: bool) -> int:
    """Copy; return the exit code."""
    if mega_source.is_account(source):
        place, chosen = place_of(source, options)
        return run_interruptible(_import_tree, place, chosen, dest, options, as_json)
    chosen = read_options(options.settings.store_options)
    link = mega_source.read_link(source, options.secrets)
    if link.is_folder:
        place = place_of_link(link)
        return run_interruptible(_import_tree, place, chosen, dest, options, as_json)
    return run_interruptible(_import_link, link, chosen, dest, options, as_json)


async def _import_link(
    link: MegaLink, chosen: MegaOptions, dest: str, options: MountOptions, as_json: bool
) -> int:
    async with open_contents(chosen, options) as contents:
        file = await file_of_link(contents, link)
        return await _import_file(contents, file, dest, as_json)


async def _import_tree(
    place: MegaPlace, chosen: MegaOptions, dest: str, options: MountOptions, as_json: bool
) -> int:
    async with tree_of(place, chosen, options) as tree:
        top = tree.top(place)
        if top.is_file:
            file = wanted_file(top, name_of(top))
            return await _import_file(tree.contents, file, dest, as_json)
        path = place_for(name_of(top), dest)
        copied = await copied_tree("import", tree, place, path, each_durable=False)
    await offload(_make_durable, path, kind="disk")
    return tell_of_tree(copied, path, as_json)


async def _import_file(contents: FileContents, file: WantedFile, dest: str, as_json: bool) -> int:
    path = place_for(file.name, dest)
    with output.progress("import") as step:
        fetched = await Copying(contents, CountedBytes(step, file.size)).to_file(file, path)
    if as_json:
        output.show_json({"path": str(path), "size": file.size, "fetched": fetched})
    else:
        there = "verified" if fetched else "there already"
        output.note(f"{path}: {output.size(file.size)}, {there}")
    return 0


def _make_durable(path: Path) -> None:
    """Return when all of it is as durable as the mount's fsync makes it: one commit, not one each.

    close(2) of each file has already made it safe on this machine (docs/semantics.md).
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
