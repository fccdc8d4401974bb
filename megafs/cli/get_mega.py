"""`megafs get` of a link to MEGA, or of an account's file or folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from megafs.cli import mega_source, output
from megafs.cli.get import GetRequest
from megafs.cli.get_output import STDOUT, CountedBytes, place_for, write_stdout
from megafs.concurrency import run_interruptible
from megafs.mega.api import ApiChannel
from megafs.mega.contents import FileContents
from megafs.mega.exports import file_of_link
from megafs.mega.links import MegaLink
from megafs.mega.options import MegaOptions, read_options
from megafs.mega.transfer import Copying, WantedFile
from megafs.mount.options import Secrets


def get(request: GetRequest) -> int:
    """Fetch; return the exit code."""
    options = read_options(request.options.settings.store_options)
    secrets = request.options.secrets
    if request.password_file is not None:
        secrets = Secrets(passphrase_file=request.password_file)
    link = mega_source.read_link(request.link, secrets)
    return run_interruptible(_get_file, request, link, options)


async def _get_file(request: GetRequest, link: MegaLink, options: MegaOptions) -> int:
    async with _opened(request, options) as contents:
        file = await file_of_link(contents, link)
        if request.list_only:
            _show(request, [(file.name, file.size, file.mtime)])
            return 0
        if request.dest == STDOUT:
            with output.progress("get") as step:
                await Copying(contents, CountedBytes(step, file.size)).to_sink(file, write_stdout)
            return 0
        path = place_for(file.name, request.dest)
        with output.progress("get") as step:
            fetched = await Copying(contents, CountedBytes(step, file.size)).to_file(file, path)
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
