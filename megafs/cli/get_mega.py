"""`megafs get` of a link to MEGA, or of an account's file or folder."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from megafs.cli import mega_source, output
from megafs.cli.get import GetRequest
from megafs.concurrency import run_interruptible
from megafs.errors import BadUsage
from megafs.mega.api import ApiChannel
from megafs.mega.ciphers import Buffer
from megafs.mega.contents import FileContents
from megafs.mega.exports import file_of_link
from megafs.mega.links import MegaLink
from megafs.mega.options import MegaOptions, read_options
from megafs.mega.transfer import Copying, WantedFile

_STDOUT = "-"


def get(request: GetRequest) -> int:
    """Fetch; return the exit code."""
    options = read_options(request.options.settings.store_options)
    link = mega_source.read_link(request.link, request.options.secrets)
    return run_interruptible(_get_file, request, link, options)


async def _get_file(request: GetRequest, link: MegaLink, options: MegaOptions) -> int:
    async with _opened(request, options) as contents:
        file = await file_of_link(contents, link)
        if request.list_only:
            _show(request, [(file.name, file.size, file.mtime)])
            return 0
        if request.dest == _STDOUT:
            with output.progress("get") as step:
                await Copying(contents, _counting(step, file.size)).to_sink(file, _write_stdout)
            return 0
        path = place_for(file.name, request.dest)
        with output.progress("get") as step:
            fetched = await Copying(contents, _counting(step, file.size)).to_file(file, path)
        _tell(request, path, file, fetched)
        return 0


@asynccontextmanager
async def _opened(request: GetRequest, options: MegaOptions) -> AsyncIterator[FileContents]:
    patience = request.options.settings.deadline
    api = ApiChannel(options.api, patience=patience, say=output.note)
    contents = FileContents(api, patience=patience)
    try:
        yield contents
    finally:
        await contents.aclose()
        await api.aclose()


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


def _counting(step: output.OnStep, whole: int) -> CountedBytes:
    return CountedBytes(step, whole)


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


def _tell(request: GetRequest, path: Path, file: WantedFile, fetched: bool) -> None:
    if request.as_json:
        output.show_json({"path": str(path), "size": file.size, "fetched": fetched})
    elif fetched:
        output.note(f"{path}: {output.size(file.size)}, verified")
    else:
        output.note(f"{path} is there already")


def _show(request: GetRequest, files: list[tuple[str, int, int | None]]) -> None:
    if request.as_json:
        output.show_json([{"path": n, "size": s, "mtime": t} for n, s, t in files])
        return
    lines = [[output.size(s), "" if t is None else output.moment(t), n] for n, s, t in files]
    output.show(*output.table(["size", "modified", "name"], lines))
