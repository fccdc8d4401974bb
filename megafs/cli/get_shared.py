"""`megafs get` of a link that `megafs share` made."""

from __future__ import annotations

import msgspec

from megafs.cli import link_password, output
from megafs.cli.get import GetRequest
from megafs.cli.get_output import STDOUT, CountedBytes, place_for, write_stdout
from megafs.concurrency import run_interruptible
from megafs.errors import BadPassphrase, BadUsage
from megafs.hardening import hide_argument
from megafs.links import link_text
from megafs.links.fetch import Fetcher
from megafs.links.link_text import ShareLink
from megafs.links.reader import SharedFiles, open_link
from megafs.links.saving import SavedLink, Saving, checked_name, path_of
from megafs.tree.paths import exact


def get(request: GetRequest) -> int:
    """Fetch what a link gives out; return the exit code."""
    hide_argument(request.link.partition("#")[2])
    return run_interruptible(_get, link_text.parse(request.link), request)


async def _get(link: ShareLink, request: GetRequest) -> int:
    dest = request.dest
    async with Fetcher(output.note) as fetcher:
        shared = await _opened(link, fetcher, link_password.known(request.password_file))
        if request.list_only:
            _show(shared, request.as_json)
            return 0
        whole = sum(file.size for file in shared.manifest.files)
        if dest == STDOUT:
            if shared.manifest.folder:
                raise BadUsage("a folder does not go to standard output: say a directory")
            with output.progress("get") as step:
                saving = Saving(shared, CountedBytes(step, whole))
                await saving.to_stdout(shared.manifest.files[0], write_stdout)
            return 0
        path = place_for(checked_name(shared.manifest.name), dest)
        with output.progress("get") as step:
            saved = await Saving(shared, CountedBytes(step, whole)).to_place(path)
        _tell(saved, request.as_json)
        return 0


async def _opened(link: ShareLink, fetcher: Fetcher, password: str | None) -> SharedFiles:
    """Open the link; a password that is needed and was not given is asked for, three times."""
    tries = 3 if password is None else 1
    while True:
        try:
            return await open_link(link, fetcher, password)
        except BadPassphrase as exc:
            tries -= 1
            if password is not None:
                if not tries:
                    raise
                output.note(str(exc))
        password = link_password.ask()


def _tell(saved: SavedLink, as_json: bool) -> None:
    if as_json:
        output.show_json(msgspec.to_builtins(saved))
        return
    there = f", {saved.skipped} of them were there already" if saved.skipped else ""
    files = f"{saved.files} files, " if saved.files != 1 else ""
    output.note(f"{saved.path}: {files}{output.size(saved.size)}, verified{there}")


def _show(shared: SharedFiles, as_json: bool) -> None:
    manifest = shared.manifest
    if as_json:
        rows = []
        for file in manifest.files:
            raw = path_of(file)
            row = {"path": file.path or manifest.name, "size": file.size, "mtime": file.modified}
            row |= {"directory": file.folder}
            exactly = exact(raw)
            rows.append(row | ({"path_b64": exactly} if isinstance(exactly, str) else {}))
        output.show_json({"name": manifest.name, "expires": manifest.expires, "files": rows})
        return
    lines = [
        [
            "" if file.folder else output.size(file.size),
            output.moment(file.modified),
            (file.path or manifest.name) + ("/" if file.folder else ""),
        ]
        for file in manifest.files
    ]
    output.show(*output.table(["size", "modified", "name"], lines))
